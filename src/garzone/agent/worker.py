"""The loop: look, ask, apply, filter, prove, repair, report.

Knows no kind of task by name but the table of kinds, and no backend at all. Candidates are written and tried at
the same time, as many as the task says; the first proof ends the asking, and those that are being tried may still
prove a smaller change.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass, field, replace
from typing import Any

from garzone.agent.answers import Asked, Budget, Writer
from garzone.agent.changes import Draft
from garzone.agent.checks import find_check
from garzone.agent.context import CodeBase, Target
from garzone.agent.course import Course, Failed, Passed
from garzone.agent.edit import EditMiss
from garzone.agent.events import AskedAgain, CandidateJudged, CandidateStarted, CheckFinished, Event, Listener
from garzone.agent.filters import first_complaint
from garzone.agent.kinds import Attempt, Job, Kind, Setting, Settled, Style
from garzone.agent.kinds.complete import open_complete
from garzone.agent.kinds.docs import open_docs
from garzone.agent.kinds.fix import open_fix
from garzone.agent.kinds.implement import open_implement
from garzone.agent.kinds.refactor import open_refactor
from garzone.agent.kinds.review import open_review
from garzone.agent.kinds.translate import open_translate
from garzone.agent.kinds.write_tests import open_tests
from garzone.agent.postmortem import cut, first_line, post_mortem
from garzone.agent.proof import HOPELESS
from garzone.agent.stage import Stage
from garzone.agent.target import is_protected
from garzone.agent.worktree import Change, Repository, Worktree
from garzone.core.ports import Sandbox, TextGenerator
from garzone.core.task import SUMMARY_CHARS, Report, Task, TaskKind, Verdict

KINDS: dict[TaskKind, Kind] = {
    TaskKind.FIX: open_fix,
    TaskKind.IMPLEMENT: open_implement,
    TaskKind.COMPLETE: open_complete,
    TaskKind.TESTS: open_tests,
    TaskKind.DOCS: open_docs,
    TaskKind.REFACTOR: open_refactor,
    TaskKind.TRANSLATE: open_translate,
    TaskKind.REVIEW: open_review,
}
# Kinds that may write files which are not there yet.
WRITES_NEW_FILES = frozenset({TaskKind.IMPLEMENT, TaskKind.TESTS, TaskKind.TRANSLATE, TaskKind.DOCS})
# Every how many candidates of a later round repair an earlier one; the others start anew. Small models repeat what they
# see: of 160 repairs by SmolLM2-135M 120 were duplicates.
REPAIR_EVERY, REPAIR_EVERY_SMALL = 2, 4
AS_GOOD = "passed before"  # of a duplicate: that the model agrees with itself is no waste
LEAST_REPAIR = 0.5  # temperature from which on a small model says something else than before
# An answer in which there is nothing to try is followed by another one, sampled wider from COLDEST_AGAIN on; at most
# MOST_AGAIN for a candidate, and as many in a round as it has candidates. Of 60 own stubs SmolLM2-135M completes 18.7
# without this and 20.0 with it; with no limit for a candidate, 20.2.
MOST_AGAIN = 2
COLDEST_AGAIN, WIDER_AGAIN = 0.2, 0.1


async def run_task(
    task: Task, generator: TextGenerator, sandbox: Sandbox, *, on_event: Listener | None = None
) -> Report:
    """Do one task and report.

    The user's working tree is only read. A result is committed on a new branch; whatever happens, also when the
    coroutine is cancelled, worktree and processes are gone afterwards.

    Raises:
        UsageError: something the kind needs is missing, with what to do.
        RepositoryError: not git, no commit, uncommitted changes, a named file that is missing or outside.
        CheckNotFound: the check cannot be started, or runs nothing.
        ContextTooSmall: not even the smallest prompt fits the model.
        ModelNotFound, BackendUnavailable, GenerationFailed, Overloaded: from the generator.
        SandboxUnavailable: from the sandbox.
    """
    return await _Worker(task, generator, sandbox, on_event or (lambda _: None)).work()


@dataclass(slots=True)
class _Round:
    """A round that goes on. `spare` answers may still be asked for in place of some that hold nothing to try."""

    number: int
    spare: int
    writing: set[asyncio.Task[Any]] = field(default_factory=set[asyncio.Task[Any]])
    trying: set[asyncio.Task[Any]] = field(default_factory=set[asyncio.Task[Any]])


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
        repository = await asyncio.to_thread(Repository.open, task.repo)
        self._notes += repository.notes
        tracked = await asyncio.to_thread(repository.tracked)
        named, new = self._located(repository, tracked)
        details = await self._generator.details(task.model)
        budget = Budget.of(task, details)
        writer = Writer(self._generator, budget, self._tell)
        with Worktree(repository) as worktree:
            width = max(task.parallel, 1)
            stage = Stage(worktree, self._sandbox, tracked, wall_s=task.check_timeout_s, width=width)
            code = CodeBase(tracked, worktree.read, repository.prefix)
            setting = Setting(
                task=task,
                code=code,
                stage=stage,
                named=named,
                new=new,
                check=self._check(code, repository),
                tell=self._tell,
                ask=writer.answer,
                capabilities=details.capabilities,
                takes_grammar=details.takes_grammar,
                context_tokens=budget.context_tokens,
                notes=self._notes,
            )
            deadline = asyncio.get_running_loop().time() + self._remaining_s()
            try:
                async with asyncio.timeout_at(deadline):
                    job = await KINDS[task.kind](setting)
            except TimeoutError:
                return await self._settled(
                    Settled(
                        Verdict.FAILED,
                        f"No candidate was asked for in time: looking at the code took all {task.timeout_s:.0f} s.",
                        "Out of time before the first candidate. Name a narrower check, or give more --timeout.",
                    )
                )
            if isinstance(job, Settled):
                return await self._settled(job)
            course = Course(job, await writer.prepare(job))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(deadline):
                    await self._search(course, writer)
            self._notes += writer.notes
            if not course.proved and self._remaining_s() <= 0:
                course.ended_by = "time"
            await self._prefer(course)
            return await self._conclude(course, writer, worktree)

    def _located(self, repository: Repository, tracked: list[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The files a task names: those that are there, and those that are not yet."""
        known = set(tracked)
        may_be_new = self._task.kind in WRITES_NEW_FILES
        located = [repository.locate(name, known, may_be_new=may_be_new) for name in self._task.files]
        named = tuple(name for name in located if name in known)
        if self._task.kind is not TaskKind.TESTS:
            self._notes += [
                f"{name} was named, so it may be changed although it decides what the check means"
                for name in located
                if is_protected(name)
            ]
        return named, tuple(name for name in located if name not in known)

    def _check(self, code: CodeBase, repository: Repository) -> str | None:
        """The command the task names, else the one that the project's own files tell."""
        if self._task.check and self._task.check.strip():
            return self._task.check
        found = find_check(code.tracked, code.content, repository.top, repository.prefix)
        if found is not None:
            self._notes.append(f"the check was found, not given: `{found.command}` ({found.reason})")
        return found.command if found else None

    def _remaining_s(self) -> float:
        return self._task.timeout_s - (time.monotonic() - self._started)

    async def _search(self, course: Course, writer: Writer) -> None:
        for round_number in range(1, max(self._task.max_rounds, 1) + 1):
            course.num_rounds = round_number
            await self._round(course, writer, round_number)
            if course.proved or course.ended_by:
                return

    async def _round(self, course: Course, writer: Writer, number: int) -> None:
        """Ask for this round's candidates, several at a time; stop asking at the first proof."""
        num_candidates = max(self._task.num_candidates, 1)
        coming, going = iter(range(num_candidates)), _Round(number, spare=num_candidates)

        async def work_off() -> None:
            for index in coming:
                if course.proved or self._out_of_tokens(course, writer):
                    return
                await self._candidate(course, writer, going, index)

        workers = [asyncio.create_task(work_off()) for _ in range(max(self._task.parallel, 1))]
        try:
            pending: set[asyncio.Task[None]] = set(workers)
            while pending:
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                for worker in done:
                    worker.result()  # an exception of the generator or the sandbox ends the task
                if course.proved:
                    for worker in pending & going.writing:
                        worker.cancel()
                    pending &= going.trying
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)

    async def _candidate(self, course: Course, writer: Writer, going: _Round, index: int) -> None:
        """Ask for one candidate, again while answers hold nothing to try, and judge it."""
        me = asyncio.current_task()
        assert me is not None
        course.num_candidates += 1
        number, wasted = course.num_candidates, list[Attempt]()
        while True:
            asked = _again(self._plan(course, writer, going.number, index), wasted, small=writer.small)
            self._tell(CandidateStarted(number, going.number, asked.target.label, asked.temperature))
            going.writing.add(me)
            answer = await writer.write(number, asked, num_before=len(wasted))
            going.writing.discard(me)
            going.trying.add(me)
            outcome, reason = await self._judge(course, asked.target, answer)
            going.trying.discard(me)
            course.outcomes.append(outcome)
            useless = outcome in ("unusable", "duplicate") and reason != AS_GOOD
            may_ask = len(wasted) < MOST_AGAIN and going.spare > 0
            if not useless or not may_ask or course.proved or self._out_of_tokens(course, writer):
                self._tell(CandidateJudged(number, outcome, reason))
                return
            going.spare -= 1
            course.num_asked_again += 1
            wasted.append(Attempt(answer, reason=reason if outcome == "unusable" else ""))
            self._tell(AskedAgain(number, outcome, reason))

    async def _prefer(self, course: Course) -> None:
        """Let the kind say which of those that passed is taken, where nothing was proved and several are as good."""
        equal = course.least_doubtful
        if course.proved or len(equal) < 2 or self._remaining_s() <= 0:
            return
        drafts = [passed.draft for passed in equal]
        number, why = await course.job.prefer(drafts, [course.seen[draft.key] for draft in drafts])
        course.preferred = equal[number]
        self._notes += [why] if why else []

    def _out_of_tokens(self, course: Course, writer: Writer) -> bool:
        limit = self._task.max_tokens
        if limit is not None and writer.tokens.completion >= limit:
            course.ended_by = "tokens"
            return True
        return False

    def _plan(self, course: Course, writer: Writer, round_number: int, index: int) -> Asked:
        """What to ask for next.

        In the first round every fourth candidate goes to the other targets in turn, the rest to the likeliest. Later
        rounds repair the best failures and start anew in turn.
        """
        ladder = course.job.temperatures(writer.small)
        temperature = ladder[min(index, len(ladder) - 1)]
        first, *others = course.targets
        styles = writer.styles(first)
        style = styles[index % len(styles)]
        if round_number == 1:
            turn = index // 4
            if others and index % 4 == 3:
                other = others[turn % len(others)]
                return Asked(other, ladder[min(turn, len(ladder) - 1)], writer.styles(other)[0])
            # the first time a style is used, its best guess is wanted
            greedy = style not in styles[:index]
            return Asked(first, 0.0 if greedy else temperature, style)
        every = REPAIR_EVERY_SMALL if writer.small else REPAIR_EVERY
        if course.failed and index % every == 0:
            best = sorted(course.failed, key=lambda failed: failed.num_failing)
            chosen = best[(index // every) % len(best)]
            styles = writer.styles(chosen.target)
            full = Style.FULL if Style.FULL in styles else styles[0]
            least = LEAST_REPAIR if writer.small else 0.0
            return Asked(chosen.target, max(temperature, least), full, chosen.attempt)
        turn = max(index - index // every - 1, 0)
        target = course.targets[turn % len(course.targets)]
        styles = writer.styles(target)
        warm = ladder[len(ladder) // 2 - 1]  # what is said below is known
        return Asked(target, max(temperature, warm), styles[turn % len(styles)])

    async def _judge(self, course: Course, target: Target, answer: str) -> tuple[str, str]:
        job = course.job
        draft = job.read(target, answer)
        if isinstance(draft, EditMiss):
            course.num_malformed += 1
            course.failed.append(Failed(target, Attempt(answer, reason=draft.reason), HOPELESS))
            return "unusable", draft.reason
        if complaint := job.unchanged(draft):
            course.failed.append(Failed(target, Attempt(answer, reason=complaint), 2 * HOPELESS))
            return "unchanged", "the same program as before"
        course.seen[draft.key] += 1
        if course.seen[draft.key] > 1:
            return "duplicate", AS_GOOD if course.has_passed(draft) else "tried before"
        if complaint := await first_complaint(job.setting.stage, job.setting.code, draft):
            course.failed.append(Failed(target, Attempt(answer, reason=complaint), HOPELESS // 2, draft))
            return "filtered", first_line(complaint)
        trial = await job.prove(target, draft)
        for check in trial.checks:
            self._tell(CheckFinished("candidate", check.command, check.exit_code, check.duration_ms))
        draft = trial.draft or draft
        if trial.proved:
            course.proved.append(Passed(target, draft, trial))
            return "proved", ""
        if trial.passed:
            course.doubtful.append(Passed(target, draft, trial))
            if trial.output:  # what may be better yet is said to the model
                course.failed.append(Failed(target, Attempt(answer, output=trial.output), trial.num_failing, draft))
            return "unproved", "; ".join(trial.doubts)
        course.failed.append(Failed(target, Attempt(answer, output=trial.output), trial.num_failing, draft))
        return "failed", first_line(trial.output)

    async def _conclude(self, course: Course, writer: Writer, worktree: Worktree) -> Report:
        task, job, best = self._task, course.job, course.best
        verdict = Verdict.PROVED if course.proved else Verdict.UNPROVED if best else Verdict.FAILED
        change: Change | None = None
        checks = (job.before.as_check(job.check),) if job.before else ()
        if best:
            if best.draft.edits:
                change = await self._commit(worktree, job, best.target, best.draft, verdict)
            checks = best.trial.checks or checks
            summary = job.summary(best.target, best.draft, best.trial, change.branch if change else "")
        else:
            if closest := course.closest:
                assert closest.draft is not None
                if closest.draft.edits:
                    change = await self._commit(worktree, job, closest.target, closest.draft, verdict)
            ended = {"time": " in time.", "tokens": " within its tokens."}.get(course.ended_by, ".")
            summary = job.failed_summary(course.num_candidates) + ended
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
            post_mortem=None if course.proved else post_mortem(course, change),
            num_malformed=course.num_malformed,
            num_asked_again=course.num_asked_again,
            proof={**job.facts(), **(best.trial.facts if best else {})},
            findings=best.trial.findings if best else (),
            written_tests=job.written_tests,
        )

    async def _commit(self, worktree: Worktree, job: Job, target: Target, draft: Draft, verdict: Verdict) -> Change:
        task = self._task
        subject = " ".join(task.instruction.split())[:60] or job.subject(target)
        check = f" Check: {job.check}" if job.check else ""
        message = f"{task.kind.value}: {subject}\n\nWritten by garzone, {verdict.value}.{check}\n"
        branch = f"garzone/{task.kind.value}-{task.id}"
        return await asyncio.to_thread(worktree.commit, draft.contents, branch, message)

    async def _settled(self, settled: Settled) -> Report:
        return replace(
            self._report(settled.verdict, settled.summary),
            checks=settled.checks,
            post_mortem=settled.post_mortem,
            findings=settled.findings,
            served_by=await self._generator.served_by(self._task.model),
        )

    def _report(self, verdict: Verdict, summary: str) -> Report:
        return Report(
            task_id=self._task.id,
            kind=self._task.kind,
            verdict=verdict,
            summary=cut(summary, SUMMARY_CHARS),
            duration_ms=(time.monotonic() - self._started) * 1000,
            sandboxed=self._sandbox.isolated,
            notes=tuple(dict.fromkeys(self._notes)),
        )


def _again(asked: Asked, wasted: list[Attempt], *, small: bool) -> Asked:
    """What to ask for after answers that came to nothing: the same, sampled wider.

    What could not be read is told to a model that makes use of that, and asked for as it was going to be.
    """
    if not wasted:
        return asked
    if wasted[-1].reason and not small:
        return replace(asked, attempt=wasted[-1])
    warmer = max(asked.temperature, COLDEST_AGAIN) + WIDER_AGAIN * len(wasted)
    return replace(asked, temperature=round(min(warmer, max(asked.temperature, 1.0)), 2))
