"""A task from its first row to its last, with a real repository, sandbox, worker and ledger; the model is scripted."""

import asyncio
import contextlib
import signal
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from garzone.agent.events import CandidateJudged, Event
from garzone.agent.sandbox import open_sandbox
from garzone.core.errors import GenerationFailed, LedgerError, RepositoryError, UsageError
from garzone.core.generation import GenerateRequest
from garzone.core.ports import Sandbox
from garzone.core.task import Route, Task, Verdict
from garzone.delegate.ledger import Ledger
from garzone.delegate.pricing import estimate_tokens
from garzone.delegate.run import decide, result_text, run
from garzone.testing import ScriptedGenerator
from tests.agent.repositories import FIXED_PAGINATE, PAGER, block, fix_task, git, make_repository

RIGHT = block(FIXED_PAGINATE)
WRONG = block(FIXED_PAGINATE.replace("page - 1", "page - 3"))


@pytest.fixture(scope="module")
def sandbox() -> Sandbox:
    return open_sandbox()


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    return make_repository(tmp_path / "repo")


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "home" / "ledger.db")


def the_task(repo: Path, **given: object) -> Task:
    return replace(fix_task(repo, num_candidates=1), files=("pager.py",), model="scripted", **given)  # type: ignore[arg-type]


def rows(ledger: Ledger, columns: str, table: str = "tasks") -> list[tuple[object, ...]]:
    with contextlib.closing(sqlite3.connect(ledger.path)) as connection:
        return connection.execute(f"SELECT {columns} FROM {table}").fetchall()


async def test_a_proved_task_is_booked_with_what_it_saved(repo: Path, ledger: Ledger, sandbox: Sandbox) -> None:
    events: list[Event] = []
    call = "garzone delegate fix 'paginate skips the first page'"
    report = await run(
        the_task(repo),
        ScriptedGenerator([RIGHT]),
        sandbox,
        ledger,
        on_event=events.append,
        caller="cli",
        call_text=call,
    )
    assert report.verdict is Verdict.PROVED
    assert report.savings
    spent = estimate_tokens(call) + estimate_tokens(result_text(report))
    assert report.savings.coordinator_tokens_spent == spent
    assert report.savings.baseline_tokens["alone"] > spent
    assert rows(ledger, "outcome, caller, branch, served_backend, coordinator_tokens_spent, applied") == [
        ("proved", "cli", report.branch, "scripted", spent, 0)
    ]
    assert rows(ledger, "outcome", "candidates") == [("proved",)]
    assert rows(ledger, "before_exit_code, exit_code", "checks") == [(1, 0)] * 2  # and once more, watched
    assert len(rows(ledger, "*", "baselines")) == 2
    assert any(isinstance(event, CandidateJudged) for event in events)
    assert (repo / "pager.py").read_text() == PAGER


async def test_a_failed_task_is_booked_as_a_loss(repo: Path, ledger: Ledger, sandbox: Sandbox) -> None:
    report = await run(the_task(repo), ScriptedGenerator([WRONG]), sandbox, ledger)
    assert report.verdict is Verdict.FAILED
    (entry,) = ledger.entries()
    assert entry.outcome == "failed"
    assert entry.coordinator_tokens_spent > 0
    assert ledger.observations()[0].proved is False
    assert [outcome for (outcome,) in rows(ledger, "outcome", "candidates")] == ["failed"]


async def test_an_error_is_booked_and_passed_on(
    repo: Path, ledger: Ledger, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("garzone.agent.answers.RETRY_DELAYS_S", (0.01,))
    with pytest.raises(GenerationFailed):
        await run(the_task(repo), ScriptedGenerator([GenerationFailed("the engine broke off")]), sandbox, ledger)
    assert rows(ledger, "outcome, error") == [("error", "the engine broke off")]


async def test_a_repository_that_cannot_be_worked_on_is_booked_too(
    tmp_path: Path, ledger: Ledger, sandbox: Sandbox
) -> None:
    with pytest.raises(RepositoryError):
        await run(the_task(tmp_path), ScriptedGenerator([RIGHT]), sandbox, ledger)
    assert rows(ledger, "outcome") == [("error",)]


async def test_a_cancelled_task_is_booked_and_leaves_no_worktree(repo: Path, ledger: Ledger, sandbox: Sandbox) -> None:
    started = asyncio.Event()

    def listen(event: Event) -> None:
        started.set()

    slow = replace(the_task(repo), check=f"sleep 0.2; {fix_task(repo).check}", num_candidates=50)
    work = asyncio.create_task(run(slow, ScriptedGenerator([WRONG]), sandbox, ledger, on_event=listen))
    await asyncio.wait_for(started.wait(), 30)
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert rows(ledger, "outcome") == [("cancelled",)]
    assert git(repo, "worktree", "list").count("\n") == 0
    assert git(repo, "branch", "--list", "garzone/*") == ""


KILLED = """
import asyncio, os, signal, sys
from pathlib import Path
from garzone.agent.sandbox import open_sandbox
from garzone.delegate.ledger import Ledger
from garzone.delegate.run import run
from garzone.testing import ScriptedGenerator
from tests.delegate.test_run import the_task

def die(request):
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(run(the_task(Path(sys.argv[1])), ScriptedGenerator([die]), open_sandbox(), Ledger(Path(sys.argv[2]))))
"""


def test_kill_9_leaves_an_interrupted_row_and_the_users_tree_as_it_was(repo: Path, ledger: Ledger) -> None:
    command = [sys.executable, "-c", KILLED, str(repo), str(ledger.path)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    (entry,) = ledger.entries()
    assert entry.outcome == "interrupted"
    assert entry.coordinator_tokens_spent > 0
    assert git(repo, "status", "--porcelain") == ""


async def test_without_a_check_nothing_is_begun(tmp_path: Path, ledger: Ledger, sandbox: Sandbox) -> None:
    repo = make_repository(tmp_path / "untested", {"pager.py": PAGER})
    with pytest.raises(UsageError, match="--check"):
        await run(replace(the_task(repo), check=None), ScriptedGenerator([RIGHT]), sandbox, ledger)
    assert not ledger.path.exists()


async def test_a_ledger_that_cannot_be_used_stops_the_task_before_any_work(
    repo: Path, ledger: Ledger, sandbox: Sandbox
) -> None:
    ledger.path.parent.mkdir()
    ledger.path.write_text("no database at all, but long enough to be taken for one" * 20)
    generator = ScriptedGenerator([RIGHT])
    with pytest.raises(LedgerError):
        await run(the_task(repo), generator, sandbox, ledger)
    assert generator.requests == []


async def test_a_ledger_that_breaks_during_the_work_does_not_cost_the_result(
    repo: Path, ledger: Ledger, sandbox: Sandbox
) -> None:
    def breaking(request: GenerateRequest) -> str:
        for path in ledger.path.parent.iterdir():
            path.unlink()
        ledger.path.write_text("overwritten by somebody" * 100)
        return RIGHT

    report = await run(the_task(repo), ScriptedGenerator([breaking]), sandbox, ledger)
    assert report.verdict is Verdict.PROVED
    assert any(note.startswith("not booked") for note in report.notes)
    assert git(repo, "branch", "--list", "garzone/*")


async def test_apply_puts_a_proved_result_into_the_tree_and_nothing_else(
    repo: Path, ledger: Ledger, sandbox: Sandbox
) -> None:
    report = await run(the_task(repo, apply=True), ScriptedGenerator([RIGHT]), sandbox, ledger)
    assert report.applied
    assert "(page - 1)" in (repo / "pager.py").read_text()
    assert git(repo, "status", "--porcelain") == "M pager.py"
    assert git(repo, "log", "--oneline").count("\n") == 0
    assert rows(ledger, "applied") == [(1,)]


async def test_apply_leaves_a_tree_alone_that_changed_meanwhile(repo: Path, ledger: Ledger, sandbox: Sandbox) -> None:
    mine = PAGER.replace("start = page * size", "start = page * size  # my own idea")

    def edit_meanwhile(request: GenerateRequest) -> str:
        (repo / "pager.py").write_text(mine)
        return RIGHT

    report = await run(the_task(repo, apply=True), ScriptedGenerator([edit_meanwhile]), sandbox, ledger)
    assert report.verdict is Verdict.PROVED
    assert not report.applied
    assert any("does not apply cleanly" in note for note in report.notes)
    assert (repo / "pager.py").read_text() == mine


async def test_apply_never_applies_what_is_not_proved(repo: Path, ledger: Ledger, sandbox: Sandbox) -> None:
    report = await run(the_task(repo, apply=True), ScriptedGenerator([WRONG]), sandbox, ledger)
    assert not report.applied
    assert (repo / "pager.py").read_text() == PAGER
    assert any("only a proved result" in note for note in report.notes)


async def test_the_projects_own_check_counts_as_one(repo: Path, tmp_path: Path, ledger: Ledger) -> None:
    assert decide(replace(the_task(repo), check=None), ledger).route is Route.LOCAL
    bare = make_repository(tmp_path / "bare", {"notes.txt": "no code, no tests\n"})
    decision = decide(replace(the_task(bare), check=None, files=()), ledger)
    assert decision.route is Route.COORDINATOR
    assert "--check" in decision.suggestion[0]


async def test_a_task_the_policy_would_decline_says_so_in_its_report(
    repo: Path, ledger: Ledger, sandbox: Sandbox
) -> None:
    task = replace(the_task(repo), instruction="should we use pages at all?")
    assert "design decision" in decide(task, ledger).reason
    report = await run(task, ScriptedGenerator([RIGHT]), sandbox, ledger)
    assert any("would rather not have been delegated" in note for note in report.notes)
