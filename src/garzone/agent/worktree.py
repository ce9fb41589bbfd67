"""The user's repository as the worker may use it, and an isolated git worktree in which a result is written.

The user's working tree is only ever read. The worktree is trusted: nothing is executed in it (`scene.py` makes the
copies in which checks run), so git may be run in it without looking over its shoulder.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from garzone.agent.git import Git, GitFailed
from garzone.core.errors import RepositoryError
from garzone.core.task import FileChange

PREFIX = "garzone-"
SHOWN = 5  # how many dirty paths an error names


@dataclass(frozen=True, slots=True)
class Repository:
    """A clean repository at one commit.

    `top` is its top level, `prefix` the subdirectory the task named ("" or `a/b`), `head` the commit's full hash,
    `notes` what the person should know about how it is used.
    """

    top: Path
    prefix: str
    head: str
    notes: tuple[str, ...]

    @classmethod
    def open(cls, path: Path) -> Repository:
        """Look at a repository.

        Raises:
            RepositoryError: not git, bare, without commits, or with uncommitted changes; says what to do.
        """
        path = path.expanduser()
        if not path.is_dir():
            raise RepositoryError(f"{path}: no such directory")
        git = Git(path)
        try:
            inside = git.text("rev-parse", "--is-inside-work-tree")
        except GitFailed as error:
            if "dubious ownership" in error.detail:
                raise RepositoryError(
                    f"{path} belongs to another user, and git refuses it: git config --global --add safe.directory "
                    f"{path.resolve()}"
                ) from error
            raise RepositoryError(
                f"{path} is not a git repository: the result is handed back as a branch, so run "
                "`git init && git add -A && git commit -m start` there first"
            ) from error
        if inside != "true":
            raise RepositoryError(f"{path} is a bare repository or inside .git: name a working tree")
        top, prefix = Path(git.text("rev-parse", "--show-toplevel")), git.text("rev-parse", "--show-prefix").rstrip("/")
        try:
            head = git.text("rev-parse", "--verify", "HEAD^{commit}")
        except GitFailed as error:
            raise RepositoryError(f"{top} has no commit yet: git add -A && git commit -m start") from error
        dirty = [
            line
            for line in git.text(
                "status", "--porcelain", "--untracked-files=no", "--ignore-submodules=all"
            ).splitlines()
            if line
        ]
        if dirty:
            names = ", ".join(line[3:] for line in dirty[:SHOWN])
            more = f" and {len(dirty) - SHOWN} more" if len(dirty) > SHOWN else ""
            raise RepositoryError(
                f"{top} has uncommitted changes ({names}{more}): commit them, or git stash, then try again"
            )
        notes: list[str] = []
        if git.text("ls-files", "--stage", "--", ":/.gitmodules"):
            notes.append("submodules are not checked out where the check runs")
        return cls(top, prefix, head, tuple(notes))

    def tracked(self) -> list[str]:
        """All tracked regular files, relative to the top level; links and submodules are left out."""
        listed = Git(self.top).run("ls-tree", "-r", "-z", "--full-tree", self.head).decode("utf-8", "surrogateescape")
        files: list[str] = []
        for entry in filter(None, listed.split("\0")):
            attributes, _, name = entry.partition("\t")
            if attributes.startswith(("100644 ", "100755 ")):
                files.append(name)
        return files

    def locate(self, name: str, tracked: set[str], *, may_be_new: bool = False) -> str:
        """The tracked file a task names, relative to the top level.

        Args:
            name: relative to the directory the task named, or to the top level; an absolute path inside is accepted.
            tracked: what `tracked` gave.
            may_be_new: accept a file that is not there yet; its directories need not be there either.

        Raises:
            RepositoryError: outside of the repository, missing, not committed, a directory or a symbolic link.
        """
        given = name
        if os.path.isabs(name):  # noqa: PTH117 - a string from outside, not yet a path
            with contextlib.suppress(ValueError):
                name = str(Path(name).resolve().relative_to(self.top.resolve()))
            if os.path.isabs(name):  # noqa: PTH117
                raise RepositoryError(f"{given} is outside of {self.top}")
            candidates = [name]
        else:
            candidates = [os.path.normpath(f"{self.prefix}/{name}" if self.prefix else name), os.path.normpath(name)]
        for candidate in candidates:
            if candidate in tracked:
                return candidate
        if PurePosixPath(candidates[0]).parts[:1] == ("..",):
            raise RepositoryError(f"{given} is outside of {self.top}")
        place = self.top / candidates[0]
        if place.is_symlink():
            raise RepositoryError(f"{given} is a symbolic link: name the file it points to")
        if place.is_dir():
            raise RepositoryError(f"{given} is a directory: name the files")
        if place.exists():
            raise RepositoryError(f"{given} is not committed: git add it and commit, then try again")
        if may_be_new:
            return self._new_place(given, candidates[0])
        raise RepositoryError(f"{given}: no such file in {self.top}")

    def _new_place(self, given: str, name: str) -> str:
        """A file that is not there yet, if it may be written: inside, not through links, nothing of git's."""
        if any(part.lower() == ".git" for part in PurePosixPath(name).parts):
            raise RepositoryError(f"{given} belongs to git: name another file")
        for folder in (self.top / name).parents:
            if folder == self.top:
                return name
            if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
                raise RepositoryError(f"{given}: {folder.relative_to(self.top)} is not a directory of this repository")
        raise RepositoryError(f"{given} is outside of {self.top}")


class Worktree:
    """A detached worktree of one commit in a directory of its own. Use as a context manager; it removes itself.

    Killed at any point, it leaves at most a directory in the temporary folder, which the next task removes, and an
    entry that `git worktree prune` forgets. A branch exists only once it is complete.
    """

    def __init__(self, repository: Repository) -> None:
        self.repository = repository
        self._home = Path()
        self.path = Path()

    def __enter__(self) -> Worktree:
        git = Git(self.repository.top)
        _sweep(git)
        # the process id in the name tells the next task whether anybody still works here
        self._home = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-")).resolve()
        self.path = self._home / "worktree"
        try:
            git.run("worktree", "add", "--quiet", "--detach", str(self.path), self.repository.head)
        except BaseException:  # Ctrl-C, too, must leave nothing behind; it is raised again
            remove_tree(self._home)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        remove_tree(self._home)
        with contextlib.suppress(GitFailed):  # the repository itself may be gone by now
            Git(self.repository.top).run("worktree", "prune")

    @property
    def workshop(self) -> Path:
        """A directory beside the worktree that is removed with it."""
        return self._home

    def read(self, name: str) -> bytes:
        """A file as it is at the commit, or as it was last written here."""
        return (self.path / name).read_bytes()

    def commit(self, contents: Mapping[str, bytes], branch: str, message: str) -> Change:
        """Write files, commit them on top of the repository's commit, and only then make the branch.

        Returns:
            What changed, and the branch's name (with a number behind it when the name was taken).

        Raises:
            RepositoryError: the file would be written through a link, or git refuses.
        """
        git = Git(self.path)
        git.run("reset", "--quiet", "--hard", self.repository.head)
        git.run("clean", "--quiet", "-d", "--force", "-x")  # new files of a commit made before
        for name in contents:
            target = self.path / name
            if target.is_symlink() or target.resolve() != self.path.resolve() / name or ".git" in Path(name).parts:
                raise RepositoryError(f"{name} leads out of the worktree; nothing was written")
        for name, content in contents.items():
            (self.path / name).parent.mkdir(parents=True, exist_ok=True)
            (self.path / name).write_bytes(content)
            git.run("add", "--force", "--", f":(literal){name}")
        git.run("commit", "--quiet", "--no-verify", "-m", message)
        commit = git.text("rev-parse", "HEAD")
        base, number = branch, 1
        while not git.succeeds("update-ref", f"refs/heads/{branch}", commit, "0" * 40):
            if self._is_same(git, branch, commit):
                break  # of this task, killed after the commit and done again
            number += 1
            if number > 99:
                raise RepositoryError(f"branch {base} exists, and so do 98 others like it: delete some")
            branch = f"{base}-{number}"
        patch, files = self._difference(git, self.repository.head, commit)
        return Change(branch, patch, files)

    @staticmethod
    def _is_same(git: Git, branch: str, commit: str) -> bool:
        """Whether a branch has the same files on top of the same commit."""
        try:
            ours, theirs = (
                [git.text("rev-parse", "--verify", f"{name}{what}") for what in ("^{tree}", "^")]
                for name in (commit, f"refs/heads/{branch}")
            )
        except GitFailed:
            return False  # no such branch (its name is in the way of another), or one without a parent
        return ours == theirs

    @staticmethod
    def _difference(git: Git, before: str, after: str) -> tuple[str, tuple[FileChange, ...]]:
        patch = git.run("diff", "--no-color", "--no-ext-diff", "--no-textconv", before, after).decode(
            "utf-8", "replace"
        )
        counted = git.run(
            "diff", "--numstat", "-z", "--no-ext-diff", "--no-textconv", "--no-renames", before, after
        ).decode("utf-8", "surrogateescape")
        files: list[FileChange] = []
        for entry in filter(None, counted.split("\0")):
            added, removed, path = entry.split("\t", 2)
            files.append(FileChange(path, int(added) if added != "-" else 0, int(removed) if removed != "-" else 0))
        return patch, tuple(files)


@dataclass(frozen=True, slots=True)
class Change:
    """A committed result."""

    branch: str
    patch: str
    files: tuple[FileChange, ...]


def remove_tree(path: Path) -> None:
    """Remove a directory, also where what ran in it took away its own permissions. Never follows links.

    What cannot be removed even so is left to the system, which empties its temporary folder by itself.
    """
    shutil.rmtree(path, ignore_errors=True)
    if path.is_dir() and not path.is_symlink():
        with contextlib.suppress(OSError):
            path.chmod(stat.S_IRWXU)
        for here, folders, _ in os.walk(path):
            for place in (Path(here) / name for name in folders):
                if not place.is_symlink():
                    with contextlib.suppress(OSError):
                        place.chmod(stat.S_IRWXU)  # before the walk enters it
        shutil.rmtree(path, ignore_errors=True)


def _sweep(git: Git) -> None:
    """Remove what a killed garzone left behind: of this repository, and of others in the temporary folder."""
    listed = [line for line in git.text("worktree", "list", "--porcelain").splitlines() if line.startswith("worktree ")]
    homes = [Path(line.removeprefix("worktree ")).parent for line in listed]
    for home in dict.fromkeys([*homes, *Path(tempfile.gettempdir()).glob(f"{PREFIX}*-*")]):
        owner = home.name.removeprefix(PREFIX).partition("-")[0]
        if home.name.startswith(PREFIX) and owner.isdigit() and not _alive(int(owner)) and _is_ours(home):
            remove_tree(home)
    git.run("worktree", "prune")


def _is_ours(home: Path) -> bool:
    try:
        return home.lstat().st_uid == os.geteuid() and not home.is_symlink()
    except OSError:
        return False  # another garzone was quicker


def _alive(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
