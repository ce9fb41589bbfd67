"""The loop: check, ask, apply, prove, repair, report.

Knows no kind of task by name but the table of kinds, and no backend at all. Candidates are asked for one after the
other and tried at once; the first proof ends the task (a later one could only be smaller).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass, field, replace

from garzone.agent.answers import Asked, Budget, Writer
from garzone.agent.context import CodeBase, Target, choose_targets, definitions_used, failing_tests, trimmed_output
from garzone.agent.edit import EditMiss, fingerprint, same_program
from garzone.agent.events import CandidateJudged, CandidateStarted, CheckFinished, Event, Listener
from garzone.agent.kinds import Attempt, Kind, Material, Style
from garzone.agent.kinds.fix import Fix
from garzone.agent.proof import Prover, Run, Trial
from garzone.agent.target import is_protected
from garzone.agent.worktree import Change, Repository, Worktree
from garzone.core.errors import UsageError
from garzone.core.ports import Sandbox, TextGenerator
from garzone.core.task import POST_MORTEM_CHARS, SUMMARY_CHARS, Check, Report, Task, TaskKind, Verdict

KINDS: dict[TaskKind, type[Kind]] = {TaskKind.FIX: Fix}
REPAIR_OUTPUT_CHARS = 1500
# Greedy first: for most models their best single answer. Then wider, because equal answers are wasted; not far beyond
# 0.7, where SmolLM2-135M repaired 4 of 12 after 18 of 24 below it.
TEMPERATURES = (0.0, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass(slots=True)
class _Failed:
    """A candidate that was not good enough, and what is needed to repair it."""

    target: Target
    attempt: Attempt
    num_failing: int
    text: str = ""
    doubts: tuple[str, ...] = ()


@dataclass(slots=True)
class _Course:
    """How a task has gone so far."""

    before: Run
    targets: list[Target]
    num_candidates: int = 0
    num_rounds: int = 0
    failed: list[_Failed] = field(default_factory=list[_Failed])
    doubtful: tuple[Target, str, Trial] | None = None
    proved: tuple[Target, str, Trial] | None = None
    seen: set[str] = field(default_factory=set[str])
    out_of_time: bool = False
    outcomes: list[str] = field(default_factory=list[str])


async def run_task(
    task: Task, generator: TextGenerator, sandbox: Sandbox, *, on_event: Listener | None = None
) -> Report:
    """Do one task and report.

    The user's working tree is only read. A result is committed on a new branch; whatever happens, also when the
    coroutine is cancelled, worktree and processes are gone afterwards.

    Raises:
        UsageError: the kind cannot be done yet, or no check was given.
        RepositoryError: not git, no commit, uncommitted changes, a named file that is missing or outside.
        CheckNotFound: the check cannot be started, or runs nothing.
        ContextTooSmall: not even the smallest prompt fits the model.
        ModelNotFound, BackendUnavailable, GenerationFailed, Overloaded: from the generator.
        SandboxUnavailable: from the sandbox.
    """
    return await _Worker(task, generator, sandbox, on_event or (lambda _: None)).work()


class _Worker:
    def __init__(self, task: Task, generator: TextGenerator, sandbox: Sandbox, tell: Listener) -> None:
        self._task = task
        self._generator = generator
        self._sandbox = sandbox
        self._tell_listener = tell
        self._started = time.monotonic()
        self._notes: list[str] = []

    def _tell(self, event: Event) -> None:
        self._tell_listener(event)

    async def work(self) -> Report:
        task = self._task
        if task.kind not in KINDS:
            known = ", ".join(kind.value for kind in KINDS)
            raise UsageError(f"garzone cannot do {task.kind.value} tasks yet; it can do: {known}")
        if not (task.check and task.check.strip()):
            raise UsageError(
                f"{task.kind.value} needs a check that fails now and passes when done: --check 'pytest -q'"
            )
        repository = await asyncio.to_thread(Repository.open, task.repo)
        self._notes += repository.notes
        tracked = await asyncio.to_thread(repository.tracked)
        named = [repository.locate(name, set(tracked)) for name in task.files]
        self._notes += [
            f"{name} was named, so it may be changed although it decides what the check means"
            for name in named
            if is_protected(name)
        ]
        details = await self._generator.details(task.model)
        with Worktree(repository) as worktree:
            prover = Prover(worktree, self._sandbox, task.check, task.check_timeout_s, tracked)
            before = await prover.before()
            self._tell(CheckFinished("before", task.check, before.result.exit_code, before.result.duration_ms))
            if before.passed:
                return await self._nothing_to_do(before)
            code = CodeBase(tracked, worktree.read, repository.prefix)
            failing = before.result.output
            targets = choose_targets(
                code, named, before.evidence, failing, instruction=task.instruction, check=task.check
            )
            writer = Writer(self._generator, KINDS[task.kind](), Budget.of(task, details), self._tell)
            material = self._material(code, before)
            materials = [replace(material, definitions=definitions_used(code, target)) for target in targets]
            course = _Course(before, await writer.prepare(task, targets, materials))
            self._notes += writer.notes
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(asyncio.get_running_loop().time() + self._remaining_s()):
                    await self._search(course, writer, prover)
            course.out_of_time = course.proved is None and self._remaining_s() <= 0
            return await self._conclude(course, writer, worktree)

    def _material(self, code: CodeBase, before: Run) -> Material:
        tests = failing_tests(code, before.evidence, before.result.output, self._task.check or "")
        output = trimmed_output(before.result.output, before.evidence, 4 * REPAIR_OUTPUT_CHARS)
        if before.result.timed_out:
            output += f"\n(killed after {self._task.check_timeout_s:.0f} s: it did not end)"
        return Material(tests, output, [])

    def _remaining_s(self) -> float:
        return self._task.timeout_s - (time.monotonic() - self._started)

    async def _search(self, course: _Course, writer: Writer, prover: Prover) -> None:
        for round_number in range(1, max(self._task.max_rounds, 1) + 1):
            course.num_rounds = round_number
            for index in range(max(self._task.num_candidates, 1)):
                asked = self._plan(course, writer, round_number, index)
                course.num_candidates += 1
                number = course.num_candidates
                self._tell(CandidateStarted(number, round_number, asked.target.label, asked.temperature))
                answer = await writer.write(number, asked)
                outcome, reason = await self._judge(course, writer, prover, asked.target, answer)
                course.outcomes.append(outcome)
                self._tell(CandidateJudged(number, outcome, reason))
                if course.proved:
                    return

    def _plan(self, course: _Course, writer: Writer, round_number: int, index: int) -> Asked:
        """What to ask for next.

        In the first round every fourth candidate goes to the other targets in turn, the rest to the likeliest. Later
        rounds repair the best failures; every other candidate starts anew, for small models often repeat what they see.
        """
        style = writer.styles[index % len(writer.styles)]
        temperature = TEMPERATURES[min(index, len(TEMPERATURES) - 1)]
        first, *others = course.targets
        if round_number == 1:
            turn = index // 4
            if others and index % 4 == 3:
                return Asked(
                    others[turn % len(others)], TEMPERATURES[min(turn, len(TEMPERATURES) - 1)], writer.styles[0]
                )
            # the first time a style is used, its best guess is wanted
            greedy = style not in writer.styles[:index]
            return Asked(first, 0.0 if greedy else temperature, style)
        if course.failed and index % 2 == 0:
            best = sorted(course.failed, key=lambda failed: failed.num_failing)
            chosen = best[(index // 2) % len(best)]
            return Asked(chosen.target, temperature, Style.FULL, chosen.attempt)
        turn = index // 2
        target = course.targets[turn % len(course.targets)]
        return Asked(target, max(temperature, 0.5), writer.styles[turn % len(writer.styles)])

    async def _judge(
        self, course: _Course, writer: Writer, prover: Prover, target: Target, answer: str
    ) -> tuple[str, str]:
        edited = writer.kind.read(target, answer)
        if isinstance(edited, EditMiss):
            course.failed.append(_Failed(target, Attempt(answer, reason=edited.reason), num_failing=1 << 20))
            return "unusable", edited.reason
        old_text = target.source.text
        if same_program(target.path, old_text, edited.text):
            reason = "Your code is the same as the code with the bug. Change it."
            course.failed.append(_Failed(target, Attempt(answer, reason=reason), num_failing=1 << 21))
            return "unchanged", "the same program as before"
        key = f"{target.path}\0{fingerprint(target.path, edited.text)}"
        if key in course.seen:
            return "duplicate", "tried before"
        course.seen.add(key)
        try:
            content = target.source.encode(edited.text)
        except UnicodeEncodeError as error:
            return "unusable", f"a character that {target.source.encoding} does not have: {error.object[error.start]!r}"
        trial = await prover.attempt(target.path, (target.content, old_text), (content, edited.text), course.before)
        result = trial.run.result
        self._tell(CheckFinished("candidate", self._task.check or "", result.exit_code, result.duration_ms))
        if trial.proved:
            course.proved = (target, edited.text, trial)
            return "proved", ""
        if trial.run.passed:
            course.doubtful = course.doubtful or (target, edited.text, trial)
            return "unproved", "; ".join(trial.doubts)
        output = trimmed_output(result.output, trial.run.evidence, REPAIR_OUTPUT_CHARS)
        if result.timed_out:
            output += f"\n(killed after {self._task.check_timeout_s:.0f} s: it did not end)"
        num_failing = len(trial.run.evidence.failed) + (10 if result.timed_out else 0) - len(trial.run.evidence.passed)
        course.failed.append(_Failed(target, Attempt(answer, output=output), num_failing, edited.text, trial.doubts))
        return "failed", _first_line(output)

    async def _conclude(self, course: _Course, writer: Writer, worktree: Worktree) -> Report:
        task = self._task
        best = course.proved or course.doubtful
        verdict = Verdict.PROVED if course.proved else Verdict.UNPROVED if best else Verdict.FAILED
        change: Change | None = None
        checks: tuple[Check, ...] = (self._check_of(course.before, None),)
        if best:
            target, text, trial = best
            change = await self._commit(worktree, target, text, verdict)
            checks = (self._check_of(trial.run, course.before.result.exit_code),)
            verified = _what_passed(trial.run)
            place = f"Rewrote {target.label}" if target.span else f"Rewrote {target.path}"
            if course.proved:
                summary = f"{place}: `{task.check}` failed before and passes now{verified}. Branch {change.branch}."
            else:
                doubts = _cut("; ".join(trial.doubts), 200)
                summary = f"{place}: `{task.check}` passes, but unproved: {doubts}. Read branch {change.branch}."
        else:
            tried = [failed for failed in course.failed if failed.text]
            if tried:
                closest = min(tried, key=lambda failed: failed.num_failing)
                change = await self._commit(worktree, closest.target, closest.text, verdict)
            summary = f"No candidate of {course.num_candidates} made `{task.check}` pass" + (
                " in time." if course.out_of_time else "."
            )
        return replace(
            self._report(verdict, summary),
            files=change.files if change else (),
            branch=change.branch if change else None,
            patch=change.patch if change else "",
            checks=checks,
            num_candidates=course.num_candidates,
            num_rounds=course.num_rounds,
            tokens=writer.tokens,
            served_by=await self._generator.served_by(task.model),
            post_mortem=None if course.proved else _post_mortem(course, change),
        )

    async def _commit(self, worktree: Worktree, target: Target, text: str, verdict: Verdict) -> Change:
        task = self._task
        subject = " ".join(task.instruction.split())[:60] or f"repair {target.label}"
        message = f"{task.kind.value}: {subject}\n\nWritten by garzone, {verdict.value}. Check: {task.check}\n"
        branch = f"garzone/{task.kind.value}-{task.id}"
        return await asyncio.to_thread(worktree.commit, target.path, target.source.encode(text), branch, message)

    async def _nothing_to_do(self, before: Run) -> Report:
        summary = f"The check already passes: `{self._task.check}` gives exit code 0 on the code as it is. No change."
        report = self._report(Verdict.FAILED, summary)
        return replace(
            report,
            checks=(self._check_of(before, None),),
            post_mortem="A fix needs a check that fails now. Name one that shows the fault.",
            served_by=await self._generator.served_by(self._task.model),
        )

    def _check_of(self, run: Run, before_exit_code: int | None) -> Check:
        return Check(self._task.check or "", run.result.exit_code, run.result.duration_ms, before_exit_code)

    def _report(self, verdict: Verdict, summary: str) -> Report:
        return Report(
            task_id=self._task.id,
            kind=self._task.kind,
            verdict=verdict,
            summary=_cut(summary, SUMMARY_CHARS),
            duration_ms=(time.monotonic() - self._started) * 1000,
            sandboxed=self._sandbox.isolated,
            notes=tuple(dict.fromkeys(self._notes)),
        )


def _what_passed(run: Run) -> str:
    num_passed = len(run.evidence.passed)
    return f" ({num_passed} test{'s' if num_passed != 1 else ''} seen passing)" if num_passed else ""


def _post_mortem(course: _Course, change: Change | None) -> str:
    """What was tried, what still fails and how, where the best candidate is."""
    counts = {what: course.outcomes.count(what) for what in dict.fromkeys(course.outcomes)}
    tried = ", ".join(f"{number} {what}" for what, number in counts.items()) or "nothing"
    targets = ", ".join(dict.fromkeys(failed.target.label for failed in course.failed)) or course.targets[0].label
    parts = [f"Tried {targets}: {tried}."]
    if course.out_of_time:
        parts.append("Out of time.")
    if course.doubtful:
        parts.append(f"Doubt: {'; '.join(course.doubtful[2].doubts)}.")
    ran = [failed for failed in course.failed if failed.attempt.output]
    if ran and not course.doubtful:
        closest = min(ran, key=lambda failed: failed.num_failing)
        parts.append(f"Still fails: {_first_line(closest.attempt.output)}.")
    elif course.failed and not course.doubtful:
        parts.append(f"Last: {course.failed[-1].attempt.reason}")
    where = f" Best candidate: {change.branch}." if change else ""
    return _cut(" ".join(parts), POST_MORTEM_CHARS - len(where)) + where


def _first_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return _cut(lines[0] if lines else "no output", 160)


def _cut(text: str, max_chars: int) -> str:
    return text if len(text) <= max_chars else text[: max_chars - 1] + "…"
