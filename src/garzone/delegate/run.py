"""The walk of a task: ledger row, worker, what it saved, the row completed. Not how the work is done.

A row is begun before the work, so whatever happens is booked: a failure, a cancellation, an exception, a kill.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from garzone.agent.checks import shows_a_check
from garzone.agent.events import CandidateJudged, CandidateStarted, Event, Listener
from garzone.agent.worker import KINDS, run_task
from garzone.core.errors import LedgerError, UsageError
from garzone.core.ports import Sandbox, TextGenerator
from garzone.core.task import Report, Route, Task, TaskKind, Verdict
from garzone.delegate import pricing
from garzone.delegate.apply import apply_branch
from garzone.delegate.belief import History
from garzone.delegate.counting import TokenCounter
from garzone.delegate.energy import EnergyMeter
from garzone.delegate.journal import Journal, Journaled, Journals
from garzone.delegate.ledger import CANCELLED, ERROR, Ledger, Prices
from garzone.delegate.policy import DeviceFacts, FileFacts, RouteDecision, TaskFacts, route
from garzone.delegate.speed import Pace

WORKING_KINDS = tuple(KINDS)
NEED_A_CHECK = {
    TaskKind.FIX: "a command that fails now and passes when it is done",
    TaskKind.REFACTOR: "a command that passes now",
}
BY_CHECK = frozenset(
    {TaskKind.FIX, TaskKind.REFACTOR, TaskKind.IMPLEMENT, TaskKind.COMPLETE}
)  # others prove by themselves
SLASH = "slash"  # the caller of a slash command: a person, so no coordinator pays for call, result and turn
RESULT_CHARS = 400  # what a coordinator reads of a task at most (CONTRACT.md)


def new_task_id() -> str:
    """Eight hex digits; they name the branch."""
    return secrets.token_hex(4)


def require_possible(task: Task) -> None:
    """Refuse what cannot be done, before anything is opened.

    Raises:
        UsageError: a fix or refactoring without a check, where the repository shows none that could be found.
    """
    if task.check is not None and not task.check.strip():
        raise UsageError("--check is empty: name a command, or leave it out so that the project's own is found")
    if task.kind in NEED_A_CHECK and task.check is None and not shows_a_check(task.repo):
        raise UsageError(
            f"{task.kind.value} needs a check: {NEED_A_CHECK[task.kind]}, "
            f"and {task.repo} shows none; for instance --check 'pytest -q tests/test_pager.py'"
        )


async def run(
    task: Task,
    generator: TextGenerator,
    sandbox: Sandbox,
    ledger: Ledger,
    *,
    on_event: Listener | None = None,
    caller: str = "api",
    call_text: str | None = None,
    render: Callable[[Report], str] | None = None,
    counter: TokenCounter | None = None,
    journals: Journals | None = None,
    device: DeviceFacts | None = None,
) -> Report:
    """Do a task and book it.

    Args:
        task: what is asked.
        generator: who writes.
        sandbox: where checks run.
        ledger: gets a row, whatever happens.
        on_event: told of every step.
        caller: `cli`, `api`, `mcp`, SLASH or the name of a plugin, for the ledger.
        call_text: the tool call or command line as the coordinator wrote it; None: its arguments.
        render: the text the coordinator will read of a report; None: `result_text`.
        counter: counts the tokens of both; None: the rule of thumb.
        journals: where answers are kept, so that the task can go on if this process is killed; None: nowhere. A task
            that has a journal there goes on.
        device: what the task will be done on, for what the policy says of it; None: unknown.

    Returns:
        The report, with `savings`; `notes` say what went wrong beside the task itself.

    Raises:
        UsageError: the kind is not implemented or there is no check; no row is written.
        LedgerError: the ledger cannot be used; nothing was done.
        GarzoneError: whatever the worker raises, after it was booked.
    """
    require_possible(task)
    counter = counter or TokenCounter()
    call_tokens = 0 if caller == SLASH else await counter.count(call_text or _call_text(task))
    num_turns = 0 if caller == SLASH else 1
    size_bytes = sum(file.size_bytes for file in file_facts(task))
    decision = decide(task, ledger, device)
    row = ledger.begin(
        task,
        pricing.Spent(call_tokens, 0, num_turns),
        _prices(counter),
        size_bytes=size_bytes,
        caller=caller,
        decision=decision,
    )
    booked = _Candidates(ledger, row, on_event)
    meter = EnergyMeter()
    try:
        with meter, journals.begin(task) if journals else contextlib.nullcontext() as journal:
            report = await _worked(task, generator, sandbox, booked, journal)
        if task.apply:
            report = _applied(task, report)
    except asyncio.CancelledError:
        _end(ledger, row, CANCELLED, None)
        raise
    except BaseException as error:
        _end(ledger, row, ERROR, str(error) or type(error).__name__)
        raise
    if decision.route is Route.COORDINATOR:
        report = replace(report, notes=(*report.notes, f"would rather not have been delegated: {decision.reason}"))
    result_tokens = 0 if caller == SLASH else await counter.count((render or result_text)(report))
    spent = pricing.Spent(call_tokens, result_tokens, num_turns)
    about = {*task.files, *(change.path for change in report.files)}
    alternatives = pricing.baselines(
        await counter.count(*(_text(task.repo / name) for name in about)), await counter.count(report.patch), spent
    )
    report = replace(
        report,
        savings=pricing.savings(spent, alternatives, counter.method),
        notes=(*report.notes, *booked.problems),
    )
    changed_bytes = sum(_size(task.repo / change.path) for change in report.files)
    energy = meter.result if task.backend is None else None  # another machine's energy is not what was read here
    try:
        ledger.finish(row, report, spent, alternatives, size_bytes=max(size_bytes, changed_bytes), energy=energy)
    except LedgerError as error:  # the work is done: handing it over matters more than booking it
        report = replace(report, notes=(*report.notes, f"not booked: {error}"))
    return report


async def _worked(
    task: Task, generator: TextGenerator, sandbox: Sandbox, booked: _Candidates, journal: Journal | None
) -> Report:
    """The worker's report. Its journal is kept only where the task broke off and might go on."""
    if journal is None:
        return await run_task(task, generator, sandbox, on_event=booked)
    num_known = journal.num_answers
    try:
        report = await run_task(task, Journaled(generator, journal), sandbox, on_event=booked)
    except BaseException as error:
        if isinstance(error, UsageError) or not journal.num_answers:  # the task is wrong, or there is nothing to keep
            journal.forget()
        raise
    journal.forget()
    note = f"went on from {num_known} answers of a run that was interrupted; every check ran again"
    return replace(report, notes=(*report.notes, note)) if num_known else report


async def decline(
    task: Task,
    decision: RouteDecision,
    ledger: Ledger,
    counter: TokenCounter,
    *,
    call_text: str,
    caller: str,
) -> str:
    """Send a task back to the coordinator, and book what asking cost.

    Returns:
        What the coordinator reads: why, and what to do instead.
    """
    text = declined_text(decision, task.id)
    spent = pricing.Spent(await counter.count(call_text), await counter.count(text))
    size_bytes = sum(file.size_bytes for file in file_facts(task))
    with contextlib.suppress(LedgerError):  # the answer matters more than booking it
        ledger.decline(task, decision, spent, _prices(counter), size_bytes=size_bytes, caller=caller)
    return text


def decide(task: Task, ledger: Ledger, device: DeviceFacts | None = None) -> RouteDecision:
    """What the policy says of a task, given what the ledger has seen, on this device (None: unknown).

    Reads the ledger, file sizes, and what tells the project's own check; runs nothing.
    """
    facts = TaskFacts(
        task.kind,
        task.instruction,
        repo=str(task.repo.expanduser().resolve()),
        model=task.model,
        files=file_facts(task),
        has_check=task.check is not None or task.kind not in BY_CHECK or shows_a_check(task.repo),
        available=task.kind in WORKING_KINDS,
        device=device or DeviceFacts(),
        timeout_s=task.timeout_s,
    )
    return route(facts, History.of(ledger.observations()), Pace.of(ledger.timings()))


def file_facts(task: Task) -> tuple[FileFacts, ...]:
    """Sizes of the files a task names; 0 for one that is not there."""
    return tuple(FileFacts(name, _size(task.repo / name)) for name in task.files)


def result_text(report: Report) -> str:
    """What a coordinator reads: a verdict, what was done or why not, where it lies, who did it. Under RESULT_CHARS.

    The task's number in it is how `garzone savings --reconcile` finds the call in the coordinator's transcript.
    """
    told = report.summary
    if report.post_mortem and report.verdict is not Verdict.PROVED:
        told = f"{told} {report.post_mortem}"
    tail = f" [garzone {report.task_id}"
    if report.served_by:
        tail += f", {report.served_by.model} on {report.served_by.device or report.served_by.backend}"
    tail += "]"
    if report.applied:
        tail = f" Applied to the working tree.{tail}"
    elif report.branch and report.branch not in told:
        tail = f" Branch {report.branch}.{tail}"
    tail = tail[-RESULT_CHARS // 2 :]
    head = f"{report.verdict.value}: {' '.join(told.split())}"
    if report.branch and report.branch in head[RESULT_CHARS - 1 - len(tail) - len(report.branch) :]:
        tail = f" Branch {report.branch}.{tail}"  # what is cut off must not take the branch with it
    return _cut(head, RESULT_CHARS - 1 - len(tail)) + tail


def declined_text(decision: RouteDecision, task_id: str) -> str:
    """What a coordinator reads of a task that it should do itself, or put differently. Under RESULT_CHARS."""
    tail = f" [garzone {task_id}]"
    text = f"declined, nothing was run: {decision.reason}"
    if decision.suggestion:
        text += ". Instead: " + "; ".join(decision.suggestion)
    return _cut(text, RESULT_CHARS - 1 - len(tail)) + tail


def _cut(text: str, max_chars: int) -> str:
    return text if len(text) <= max_chars else text[: max_chars - 1] + "…"


def _prices(counter: TokenCounter) -> Prices:
    return Prices(
        pricing.COORDINATOR.model,
        pricing.PRICE_DATE,
        pricing.method(counter.method),
        counted_by=counter.method,
    )


class _Candidates:
    """Books candidates as they end and passes every event on."""

    def __init__(self, ledger: Ledger, row: int, listener: Listener | None) -> None:
        self._ledger, self._row, self._listener = ledger, row, listener
        self._rounds: dict[int, int] = {}
        self.problems: tuple[str, ...] = ()

    def __call__(self, event: Event) -> None:
        if isinstance(event, CandidateStarted):
            self._rounds[event.number] = event.round
        elif isinstance(event, CandidateJudged):
            try:
                self._ledger.add_candidate(
                    self._row,
                    number=event.number,
                    round_number=self._rounds.get(event.number, 0),
                    outcome=event.outcome,
                    reason=event.reason,
                )
            except LedgerError as error:  # the work goes on; the report says it
                self.problems = (f"candidates not booked: {error}",)
        if self._listener is not None:
            self._listener(event)


def _call_text(task: Task) -> str:
    return " ".join(filter(None, (task.kind.value, task.instruction, *task.files, task.check, str(task.repo))))


def _applied(task: Task, report: Report) -> Report:
    if report.branch is None or report.verdict is not Verdict.PROVED:
        return replace(
            report, notes=(*report.notes, f"not applied: only a proved result is, this one is {report.verdict.value}")
        )
    problem = apply_branch(task.repo, report.branch)
    if problem:
        return replace(report, notes=(*report.notes, f"not applied: {problem}; the branch {report.branch} has it"))
    return replace(report, applied=True)


def _end(ledger: Ledger, row: int, outcome: str, error: str | None) -> None:
    with contextlib.suppress(LedgerError):  # the row then stays `interrupted`; the error on its way matters more
        ledger.end(row, outcome, error)


def _text(path: Path) -> str:
    try:
        return path.expanduser().read_text(errors="replace")
    except OSError:
        return ""


def _size(path: Path) -> int:
    try:
        return path.expanduser().stat().st_size
    except OSError:
        return 0
