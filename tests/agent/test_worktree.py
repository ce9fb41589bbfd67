from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from garzone.agent.scene import Scene
from garzone.agent.worktree import Repository, Worktree, remove_tree
from garzone.core.errors import RepositoryError
from tests.agent.repositories import PAGER, git, make_repository


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    return make_repository(tmp_path / "repo")


def test_not_a_repository_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match=r"not a git repository.*git init"):
        Repository.open(tmp_path)
    with pytest.raises(RepositoryError, match="no such directory"):
        Repository.open(tmp_path / "nowhere")


def test_no_commit_bare_and_inside_git_are_told_apart(tmp_path: Path, repo: Path) -> None:
    (tmp_path / "empty").mkdir()
    git(tmp_path / "empty", "init", "-q")
    with pytest.raises(RepositoryError, match="no commit yet"):
        Repository.open(tmp_path / "empty")
    git(tmp_path, "init", "-q", "--bare", "bare.git")
    for place in (tmp_path / "bare.git", repo / ".git"):
        with pytest.raises(RepositoryError, match="bare repository or inside"):
            Repository.open(place)


def test_a_dirty_tree_is_named_and_untracked_files_are_not(repo: Path) -> None:
    (repo / "notes.txt").write_text("mine")
    assert Repository.open(repo).prefix == ""
    (repo / "pager.py").write_text("changed")
    with pytest.raises(RepositoryError, match=r"uncommitted changes \(pager.py\).*git stash") as caught:
        Repository.open(repo)
    assert caught.value.exit_code == 2


def test_files_are_located_or_refused(tmp_path: Path) -> None:
    repo = make_repository(tmp_path / "r", {"sub/a.py": "a = 1\n", "top.py": "b = 1\n"})
    (repo / "new.py").write_text("")
    (repo / "link.py").symlink_to("top.py")
    (tmp_path / "out.py").write_text("")
    repository = Repository.open(repo / "sub")
    tracked = set(repository.tracked())
    assert repository.prefix == "sub"
    assert repository.locate("a.py", tracked) == "sub/a.py"
    assert repository.locate("sub/a.py", tracked) == "sub/a.py"
    assert repository.locate("../top.py", tracked) == "top.py"
    assert repository.locate(str(repo / "top.py"), tracked) == "top.py"
    for name, complaint in (
        ("../../out.py", "outside"),
        (str(tmp_path / "out.py"), "outside"),
        ("/etc/passwd", "outside"),
        ("../new.py", "not committed"),
        ("../link.py", "symbolic link"),
        ("nope.py", "no such file"),
        ("..", "directory"),
        (".git/config", "no such file"),
    ):
        with pytest.raises(RepositoryError, match=complaint):
            repository.locate(name, tracked)


def test_nothing_of_the_repository_is_executed(repo: Path, tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    script = repo / ".git" / "evil.sh"
    script.write_text(f"#!/bin/sh\ntouch {mark}\ncat\n")
    script.chmod(0o755)
    for hook in (
        "post-checkout",
        "pre-commit",
        "post-commit",
        "commit-msg",
        "prepare-commit-msg",
        "reference-transaction",
    ):
        place = repo / ".git" / "hooks" / hook
        place.parent.mkdir(exist_ok=True)
        place.write_text(f"#!/bin/sh\ntouch {mark}\n")
        place.chmod(0o755)
    (repo / ".gitattributes").write_text("*.py filter=evil diff=evil\n")
    git(repo, "add", "-A")
    subprocess.run(
        ["git", "-c", "core.hooksPath=/dev/null", "-c", "user.name=u", "-c", "user.email=u", "commit", "-qm", "x"],
        cwd=repo,
        check=True,
    )
    drivers = (
        "filter.evil.smudge",
        "filter.evil.clean",
        "filter.evil.process",
        "diff.evil.textconv",
        "diff.evil.command",
    )
    programs = ("core.fsmonitor", "diff.external", "core.pager", "core.editor", "core.sshCommand")
    for key in (*drivers, *programs):
        git(repo, "config", key, str(script))
    git(repo, "config", "filter.evil.required", "true")
    mark.unlink(missing_ok=True)
    repository = Repository.open(repo)
    with Worktree(repository) as worktree:
        change = worktree.commit({"pager.py": b"x = 1\n"}, "garzone/fix-1", "fix")
    assert "+x = 1" in change.patch
    assert not mark.exists()


def test_a_commit_is_a_branch_and_the_tree_of_the_user_stays(repo: Path) -> None:
    before = (repo / "pager.py").read_bytes()
    git(repo, "branch", "garzone/fix-1")
    with Worktree(Repository.open(repo)) as worktree:
        place = worktree.path
        change = worktree.commit({"pager.py": PAGER.replace("page * size", "0").encode()}, "garzone/fix-1", "fix: x")
    assert change.branch == "garzone/fix-1-2"
    assert [(f.path, f.added, f.removed) for f in change.files] == [("pager.py", 1, 1)]
    assert git(repo, "log", "-1", "--format=%an <%ae> %s", change.branch) == "garzone <garzone@localhost> fix: x"
    assert git(repo, "rev-parse", f"{change.branch}^") == git(repo, "rev-parse", "HEAD")
    assert (repo / "pager.py").read_bytes() == before
    assert not place.exists()
    assert len(git(repo, "worktree", "list").splitlines()) == 1
    assert git(repo, "status", "--porcelain") == ""


def test_a_killed_task_is_swept_up_by_the_next(repo: Path) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    left = Worktree(Repository.open(repo))
    left.__enter__()
    stale = left.workshop.with_name(f"garzone-{gone.pid}-stale")
    left.workshop.rename(stale)
    git(repo, "worktree", "repair", str(stale / "worktree"))
    with Worktree(Repository.open(repo)):
        assert not stale.exists()
        assert len(git(repo, "worktree", "list").splitlines()) == 2


def test_a_scene_has_no_git_and_is_fresh_after_each_run(repo: Path, tmp_path: Path) -> None:
    with Worktree(Repository.open(repo)) as worktree:
        scene = Scene(worktree.path, tmp_path / "scene")
        scene.prepare({"pager.py": b"one"})
        assert not (scene.path / ".git").exists()
        (scene.path / "conftest.py").write_text("evil")
        (scene.path / "deep" / "er").mkdir(parents=True)
        traces = scene.inspect()
        assert traces.changed == ()
        assert traces.added == ("conftest.py", "deep", "deep/er")
        scene.prepare()
        assert sorted(entry.name for entry in scene.path.iterdir()) == ["pager.py", "test_pager.py"]
        assert (scene.path / "pager.py").read_text() == PAGER


def test_a_scene_that_was_tampered_with_is_made_anew(repo: Path, tmp_path: Path) -> None:
    with Worktree(Repository.open(repo)) as worktree:
        scene = Scene(worktree.path, tmp_path / "scene")
        scene.prepare({"pager.py": b"one"})
        test = scene.path / "test_pager.py"
        old, status = test.read_bytes(), test.stat()
        test.write_bytes(b"pass")
        test.write_bytes(old)
        os.utime(test, ns=(status.st_atime_ns, status.st_mtime_ns))  # all put back, but the change time tells
        assert scene.inspect().changed == ("test_pager.py",)
        scene.prepare({"pager.py": b"two"})
        test.unlink()
        test.symlink_to("/etc/passwd")
        assert scene.inspect().changed == ("test_pager.py",)
        scene.prepare()
        assert test.read_bytes() == old
        assert not test.is_symlink()


def test_what_locks_itself_can_still_be_removed(tmp_path: Path) -> None:
    place = tmp_path / "locked" / "inner"
    place.mkdir(parents=True)
    (place / "file").write_text("")
    (place / "out").symlink_to(tmp_path)
    place.chmod(0)
    remove_tree(tmp_path / "locked")
    assert not (tmp_path / "locked").exists()
    assert tmp_path.exists()
