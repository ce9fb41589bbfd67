"""`garzone delegate` and `route` as a person types them: processes, repository, sandbox, HTTP; a scripted model."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from garzone.core.generation import GenerateRequest
from garzone.delegate.ledger import Ledger
from tests.agent.repositories import CHECK, FIXED_PAGINATE, PAGER, block, git, make_repository
from tests.server.conftest import app_of, running, scripted

RIGHT = block(FIXED_PAGINATE)
WRONG = block(FIXED_PAGINATE.replace("page - 1", "page - 3"))
SAID = "paginate skips the first page"


class Shell:
    """Runs `garzone` with a home of its own, one repository and one scripted server."""

    def __init__(self, home: Path, repo: Path) -> None:
        self.home, self.repo = home, repo
        self.environment = {**os.environ, "GARZONE_HOME": str(home), "OLLAMA_MODELS": str(home / "models")}
        for name in ("GARZONE_MODEL", "GARZONE_BACKEND", "OLLAMA_HOST"):
            self.environment.pop(name, None)

    def start(self, *arguments: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "garzone", *map(str, arguments)]
        return subprocess.Popen(
            command,
            env=self.environment,
            cwd=self.home.parent,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __call__(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        process = self.start(*arguments)
        out, err = process.communicate(timeout=120)
        assert "Traceback" not in err, err
        return subprocess.CompletedProcess([], process.returncode, out, err)

    def fix(self, url: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        return self(*self.words(url), *arguments)

    def words(self, url: str) -> tuple[object, ...]:
        return ("delegate", "fix", SAID, "--repo", self.repo, "--check", CHECK, "--model", "scripted", "--backend", url)


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path / "home", make_repository(tmp_path / "repo"))


@pytest.fixture(scope="module")
def right() -> Iterator[str]:
    with running(app_of(scripted(RIGHT))) as url:
        yield url


@pytest.fixture(scope="module")
def wrong() -> Iterator[str]:
    with running(app_of(scripted(WRONG))) as url:
        yield url


def test_a_proved_fix_is_shown_with_what_to_do_next(shell: Shell, right: str) -> None:
    done = shell.fix(right)
    assert done.returncode == 0, done.stderr
    (branch,) = git(shell.repo, "branch", "--list", "garzone/*").split()
    assert "proved" in done.stdout
    assert "pager.py  +1 -1" in done.stdout
    assert "exit 1 before, 0 now" in done.stdout
    assert "coordinator tokens" in done.stdout
    look = next(line.split(maxsplit=1)[1] for line in done.stdout.splitlines() if line.strip().startswith("look"))
    assert "(page - 1)" in subprocess.run(look, shell=True, capture_output=True, text=True, check=True).stdout
    take = next(line.split(maxsplit=2)[2] for line in done.stdout.splitlines() if line.strip().startswith("take over"))
    subprocess.run(take, shell=True, capture_output=True, check=True)
    assert "(page - 1)" in (shell.repo / "pager.py").read_text()
    assert branch in done.stdout
    assert "candidate 1/4" in done.stderr  # progress, in plain lines where it is piped
    assert "\x1b" not in done.stdout + done.stderr


def test_json_is_one_document_and_the_contract_is_kept(shell: Shell, right: str) -> None:
    done = shell.fix(right, "--json", "--file", "pager.py")
    report: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == 0
    assert report["verdict"] == "proved"
    assert report["files"] == [{"path": "pager.py", "added": 1, "removed": 1}]
    assert report["checks"][0]["before_exit_code"] == 1
    assert report["savings"]["estimated"] is True
    assert set(report["savings"]["baseline_tokens"]) == {"alone", "cheap cloud sub-agent"}
    assert report["savings"]["coordinator_tokens_spent"] > len(done.stdout) / 8  # what was printed is what is read
    assert report["served_by"]["backend"] == "ollama"
    assert len(report["summary"]) <= 400
    (entry,) = Ledger(shell.home / "ledger.db").entries()
    assert (entry.outcome, entry.model) == ("proved", "scripted:latest")
    assert (shell.repo / "pager.py").read_text() == PAGER


def test_a_failed_fix_exits_1_and_says_why_not(shell: Shell, wrong: str) -> None:
    done = shell.fix(wrong, "--candidates", 2, "--rounds", 1)
    assert done.returncode == 1
    assert "✘ failed" in done.stdout
    assert "why not" in done.stdout
    assert "take over" not in done.stdout


def test_apply_changes_the_tree(shell: Shell, right: str) -> None:
    done = shell.fix(right, "--apply", "--json")
    assert json.loads(done.stdout)["applied"] is True
    assert git(shell.repo, "status", "--porcelain") == "M pager.py"


@pytest.mark.parametrize(
    ("change", "exit_code", "says"),
    [
        (lambda words: ["delegate", "paint", "x", *words[3:]], 2, "'paint' is not one of"),
        (lambda words: [word if word != CHECK else " " for word in words], 2, "--check"),
        (lambda words: [*words, "--file", "missing.py"], 2, "missing.py"),
        (lambda words: [*words, "--repo", "nowhere"], 2, "no such directory"),
        (lambda words: [*words, "--candidates", "0"], 2, "candidates"),
        (lambda words: [*words, "--model", "other:1b"], 3, "pull it with: ollama pull other:1b"),
        (lambda words: [*words, "--backend", "http://127.0.0.1:9"], 3, "127.0.0.1:9"),
    ],
    ids=["no-kind", "empty-check", "file", "repo", "flag", "model", "backend"],
)  # fmt: skip
def test_what_is_wrong_is_said_with_its_own_exit_code(
    shell: Shell, right: str, change: Callable[[list[object]], list[object]], exit_code: int, says: str
) -> None:
    done = shell(*change(list(shell.words(right))))
    assert done.returncode == exit_code, done.stderr
    assert says in done.stderr
    assert done.stdout == ""


def test_a_model_that_is_not_here_is_said_with_how_to_get_it(shell: Shell) -> None:
    done = shell("delegate", "fix", SAID, "--repo", shell.repo, "--check", CHECK, "--model", "smollm2:135m")
    assert done.returncode == 3
    assert "garzone pull smollm2:135m" in done.stderr


def test_a_damaged_ledger_is_an_error_before_any_work(shell: Shell, right: str) -> None:
    shell.home.mkdir()
    (shell.home / "ledger.db").write_text("not a database, and long enough to be sure " * 10)
    done = shell.fix(right)
    assert done.returncode == 3
    assert "ledger.db" in done.stderr
    assert "Move it away" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_task_leaves_nothing_behind_but_its_row(shell: Shell, number: signal.Signals) -> None:
    asked: list[GenerateRequest] = []

    def slowly(request: GenerateRequest) -> str:
        asked.append(request)
        time.sleep(0.3)
        return WRONG

    with running(app_of(scripted(slowly))) as url:
        process = shell.start(*shell.words(url), "--candidates", 50)
        while not asked:
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert out == ""
    assert "interrupted" in err
    assert "Traceback" not in err
    assert git(shell.repo, "worktree", "list").count("\n") == 0
    assert git(shell.repo, "branch", "--list", "garzone/*") == ""
    assert [entry.outcome for entry in Ledger(shell.home / "ledger.db").entries()] == ["cancelled"]


def test_route_says_local_or_coordinator_and_runs_nothing(shell: Shell) -> None:
    task = ("--repo", shell.repo, "--check", "false", "--file", "pager.py")
    local = shell("route", "fix", SAID, *task)
    assert local.returncode == 0
    assert local.stdout.startswith("local")
    design = json.loads(shell("route", "fix", "should we page at all?", *task, "--json").stdout)
    assert design["route"] == "coordinator"
    assert design["suggestion"]
    several = shell("route", "fix", "fix paginate and add a test", *task)
    assert "1. fix paginate\n  2. add a test" in several.stdout
    assert not shell.home.exists()
