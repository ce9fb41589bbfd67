"""`garzone bench quality`: suites of third-party tasks through the worker, graded by the suites' own tests.

Runs and records; drawing and adding up are in `quality_tables.py`. A run can be stopped at any point: every finished
task is one line of a JSON-lines file, and the next run with the same settings goes on behind it.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

from garzone.agent.edit import code_blocks
from garzone.agent.events import AskedAgain, CandidateJudged, CheckFinished, Event
from garzone.agent.worker import run_task
from garzone.bench.quality_answers import Timed, ask_once, fenced, language, oracle, replay
from garzone.bench.quality_grading import Grade, Grader, write_files
from garzone.bench.quality_sabotage import Hostile, hostile_answers, hostile_files
from garzone.bench.quality_suites import BenchTask, Commission, Reference, commission
from garzone.core.errors import GarzoneError, UnavailableError, UsageError
from garzone.core.generation import Usage
from garzone.core.ports import Sandbox, TextGenerator
from garzone.core.task import Report, Task, Verdict

MODES = ("worker", "alone", "oracle", "saboteur")
ALONE_CONTEXT, ALONE_TOKENS = 4096, 768


@dataclass(frozen=True, slots=True)
class Settings:
    """What a run is done with. All of it is written at the head of the record, and a resumed run must agree."""

    suite: str
    mode: str
    model: str
    num_candidates: int = 8
    max_rounds: int = 2
    timeout_s: float = 600.0
    hostile_per_task: int = 8
    parallel: int = 4

    @property
    def file_name(self) -> str:
        """Where the record of such a run lies below --out."""
        who = (
            "".join(char if char.isalnum() else "-" for char in self.model) if self.mode in ("worker", "alone") else ""
        )
        return "-".join(filter(None, (self.suite, self.mode, who))) + ".jsonl"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one task.

    `passed` is the suite's grading of the answer, `verdict` the worker's. A false proof is a verdict `proved` on an
    answer that the grading refuses, or that is known to be hostile (`false_proofs` names those). Times are in
    milliseconds; `overhead_ms` is what is left of the task's time without inference and checks.
    """

    id: str
    verdict: str
    passed: bool
    score: float = 0.0
    detail: str = ""
    num_candidates: int = 0
    num_rounds: int = 0
    outcomes: tuple[str, ...] = ()
    false_proofs: tuple[str, ...] = ()
    served_by: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    duration_ms: float = 0.0
    generation_ms: float = 0.0
    check_ms: float = 0.0
    post_mortem: str = ""
    error: str = ""

    @property
    def overhead_ms(self) -> float:
        """Of the whole task."""
        return max(self.duration_ms - self.generation_ms - self.check_ms, 0.0)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Outcome:
        """A line of a record."""
        lists = {key: tuple(cast("list[str]", fields[key])) for key in ("outcomes", "false_proofs")}
        return cls(**{**fields, **cast("dict[str, Any]", lists)})


@dataclass(slots=True)
class _Clock:
    """Adds up what the worker tells while it works."""

    check_ms: float = 0.0
    outcomes: list[str] = field(default_factory=list[str])

    def __call__(self, event: Event) -> None:
        if isinstance(event, CheckFinished):
            self.check_ms += event.duration_ms
        elif isinstance(event, CandidateJudged | AskedAgain):
            self.outcomes.append(event.outcome)


class Record:
    """The JSON-lines file of a run: a head with the settings, then one outcome a line."""

    def __init__(self, path: Path | None, settings: Settings) -> None:
        self.path = path
        self.outcomes: dict[str, Outcome] = {}
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        head = {"garzone bench quality": 1, **asdict(settings)}
        if path.exists() and path.stat().st_size:
            lines = path.read_text(encoding="utf-8").splitlines()
            if json.loads(lines[0]) != head:
                raise UsageError(f"{path} was made with other settings ({lines[0]}): name another --out, or remove it")
            for line in lines[1:]:
                try:
                    outcome = Outcome.from_json(json.loads(line))
                except (ValueError, TypeError, KeyError):
                    continue  # the line that was being written when the run was killed
                self.outcomes[outcome.id] = outcome
            kept = [json.dumps(head), *(json.dumps(asdict(each)) for each in self.outcomes.values())]
            path.write_text("\n".join(kept) + "\n", encoding="utf-8")
        else:
            path.write_text(json.dumps(head) + "\n", encoding="utf-8")

    def add(self, outcome: Outcome) -> None:
        """Keep an outcome, on disk at once."""
        self.outcomes[outcome.id] = outcome
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(outcome)) + "\n")


class Bench:
    """Runs tasks of one suite in one mode."""

    def __init__(
        self,
        settings: Settings,
        references: Mapping[str, Reference],
        sandbox: Sandbox,
        generator: TextGenerator | None,
        *,
        node_path: Path | None = None,
    ) -> None:
        self._settings = settings
        self._references = references
        self._sandbox = sandbox
        self._generator = generator
        self._python = sys.executable
        self._node_path = node_path
        self._grader = Grader(sandbox, self._python, references, node_path)

    async def run(
        self, tasks: Sequence[BenchTask], record: Record, *, jobs: int = 1, tell: Callable[[Outcome], None]
    ) -> list[Outcome]:
        """Do every task that the record does not have yet, `jobs` at a time.

        Returns:
            The outcomes of these tasks, in their order.

        Raises:
            UnavailableError: something is missing here that no task can do without.
        """
        todo = [task for task in tasks if task.id not in record.outcomes]
        async for outcome in _in_parallel(todo, self._outcome_of, jobs):
            record.add(outcome)
            tell(outcome)
        return [record.outcomes[task.id] for task in tasks]

    async def _outcome_of(self, task: BenchTask) -> Outcome:
        try:
            if self._settings.mode == "alone":
                return await self._alone(task)
            if self._settings.mode == "saboteur":
                return await self._sabotaged(task)
            return await self._delegated(task)
        except UnavailableError:
            raise
        except GarzoneError as error:
            return Outcome(task.id, "error", passed=False, error=f"{type(error).__name__}: {error}")

    async def _delegated(self, task: BenchTask) -> Outcome:
        inner = oracle(task, self._references[task.id]) if self._settings.mode == "oracle" else self._generator
        assert inner is not None
        work = commission(task, self._python)
        report, answer, clock, generator = await self._work(task, work, inner, self._settings.num_candidates)
        graded = await self._grader.grade(task, answer)
        false = ("proved and refused",) if report.verdict is Verdict.PROVED and not graded.passed else ()
        return _outcome(report, graded, clock, generator, id=task.id, false_proofs=false)

    async def _sabotaged(self, task: BenchTask) -> Outcome:
        """All of a task's hostile answers. Those that are to be read as a whole file get a broken one to repair."""
        started = time.monotonic()
        answers = await asyncio.to_thread(
            hostile_answers,
            task,
            self._references[task.id],
            self._settings.hostile_per_task,
            node_path=self._node_path,
        )
        false: list[str] = []
        judged: list[str] = []
        clock = _Clock()
        for whole in (False, True):
            pending = [each for each in answers if each.whole_file is whole]
            while pending:
                work = hostile_files(commission(task, self._python), task, whole_file=whole)
                texts = replay([each.text for each in pending], "saboteur")
                _, answer, clock_now, _ = await self._work(task, work, texts, len(pending))
                clock.check_ms += clock_now.check_ms
                outcomes = clock_now.outcomes[: len(pending)]
                judged += [f"{each.name}: {outcome}" for each, outcome in zip(pending, outcomes, strict=False)]
                if "proved" not in outcomes:
                    break
                number = outcomes.index("proved")
                false += await self._if_false(task, pending[number], answer)
                pending = pending[number + 1 :]  # a mutant that is none, or a false proof: the rest is judged anew
        duration_ms = (time.monotonic() - started) * 1000
        return Outcome(
            task.id, "refused" if not false else "fooled", passed=not false, outcomes=tuple(judged),
            false_proofs=tuple(false), num_candidates=len(judged), duration_ms=duration_ms, check_ms=clock.check_ms,
        )  # fmt: skip

    async def _if_false(self, task: BenchTask, hostile: Hostile, answer: Mapping[str, str]) -> list[str]:
        graded = await self._grader.grade(task, answer)
        if graded.passed and not hostile.tampers:
            return []  # a wrong answer that turned out to be right
        return [f"{hostile.name}: {graded.detail or 'the grading was fooled as well'}"]

    async def _work(
        self, task: BenchTask, work: Commission, inner: TextGenerator, num_candidates: int
    ) -> tuple[Report, dict[str, str], _Clock, Timed]:
        settings = self._settings
        clock, generator = _Clock(), Timed(inner)
        rounds = 1 if settings.mode in ("oracle", "saboteur") else settings.max_rounds
        with tempfile.TemporaryDirectory(prefix="garzone-bench-", ignore_cleanup_errors=True) as name:
            repo = Path(name) / "repo"
            await asyncio.to_thread(make_repository, repo, work.files)
            delegated = Task(
                id=task.slug[-24:],
                kind=work.kind,
                instruction=work.instruction,
                repo=repo,
                files=work.named,
                check=work.check,
                model=settings.model if settings.mode == "worker" else "",
                num_candidates=num_candidates,
                max_rounds=rounds,
                timeout_s=settings.timeout_s,
                check_timeout_s=task.timeout_s,
                # hostile answers are told apart by their order
                parallel=1 if settings.mode == "saboteur" else settings.parallel,
            )
            report = await run_task(delegated, generator, self._sandbox, on_event=clock)
            answer = await asyncio.to_thread(answer_of, repo, report.branch, work.result_paths)
        return report, answer, clock, generator

    async def _alone(self, task: BenchTask) -> Outcome:
        assert self._generator is not None
        generator = Timed(self._generator)
        started = time.monotonic()
        details = await generator.details(self._settings.model)
        num_ctx = min(details.context_tokens or ALONE_CONTEXT, ALONE_CONTEXT)
        text = await ask_once(
            generator, details, plain_prompt(task), num_ctx=num_ctx, max_tokens=ALONE_TOKENS, language=language(task)
        )
        answer = {task.solution_path: plain_answer(task, text)}
        graded = await self._grader.grade(task, answer)
        served = await self._generator.served_by(self._settings.model)
        usage = generator.usage or Usage()
        return Outcome(
            task.id, "unproved", passed=graded.passed, score=graded.score, detail=graded.detail, num_candidates=1,
            served_by=f"{served.model} {served.digest[:19]} {served.backend}".strip(),
            prompt_tokens=usage.prompt_tokens, completion_tokens=usage.completion_tokens,
            duration_ms=(time.monotonic() - started) * 1000, generation_ms=generator.generation_ms,
        )  # fmt: skip


def plain_prompt(task: BenchTask) -> str:
    """What somebody without a worker would paste into a chat: the request and the code."""
    work = commission(task, "python3")
    shown = [fenced(work.files[path], "python") for path in work.named if path in work.files]
    wanted = f"Write the whole of {task.solution_path} in one Markdown code block."
    return "\n\n".join([work.instruction, *shown, wanted])


def plain_answer(task: BenchTask, text: str) -> str:
    """The longest code block of an answer, below the imports the file had: the same favour benchmarks do to models."""
    blocks = [block.code for block in code_blocks(text) if block.code.strip()]
    code = max(blocks, key=len) if blocks else text
    had = task.files.get(task.solution_path, "")
    imports = [line for line in had.splitlines() if line.startswith(("import ", "from "))]
    return "\n".join([*imports, code]) + "\n"


def make_repository(path: Path, files: Mapping[str, str]) -> None:
    """A git repository with one commit of these files."""
    write_files(path, files)
    who = ["-c", "user.name=garzone bench", "-c", "user.email=bench@localhost", "-c", "commit.gpgSign=false"]
    for arguments in (["init", "-q", "-b", "main"], ["add", "-A"], ["commit", "-q", "--allow-empty", "-m", "start"]):
        subprocess.run(["git", *who, *arguments], cwd=path, check=True, capture_output=True)  # noqa: S603, S607 - ours


def answer_of(repo: Path, branch: str | None, paths: Sequence[str]) -> dict[str, str]:
    """The files of a branch that are the answer; without a branch, as the repository has them."""
    found: dict[str, str] = {}
    for path in paths:
        shown = subprocess.run(  # noqa: S603 - our own arguments
            ["git", "show", f"{branch or 'HEAD'}:{path}"],  # noqa: S607
            cwd=repo, capture_output=True, check=False,
        )  # fmt: skip
        if shown.returncode == 0:
            found[path] = shown.stdout.decode("utf-8", "surrogateescape")
    return found


def _outcome(report: Report, graded: Grade, clock: _Clock, generator: Timed, **given: Any) -> Outcome:
    served = report.served_by
    return Outcome(
        verdict=report.verdict.value,
        passed=graded.passed,
        score=graded.score,
        detail=graded.detail,
        num_candidates=report.num_candidates,
        num_rounds=report.num_rounds,
        outcomes=tuple(clock.outcomes),
        served_by=f"{served.model} {served.digest[:19]} {served.backend}".strip() if served else "",
        prompt_tokens=report.tokens.prompt,
        completion_tokens=report.tokens.completion,
        duration_ms=report.duration_ms,
        generation_ms=generator.generation_ms,
        check_ms=clock.check_ms,
        post_mortem=report.post_mortem or "",
        **given,
    )


async def _in_parallel(
    tasks: Sequence[BenchTask], work: Callable[[BenchTask], Awaitable[Outcome]], jobs: int
) -> AsyncGenerator[Outcome]:
    """Results as they come, `jobs` at a time; the first exception ends them all."""
    pending: set[asyncio.Task[Outcome]] = set()
    rest = iter(tasks)
    try:
        while True:
            while len(pending) < jobs and (task := next(rest, None)) is not None:
                pending.add(asyncio.ensure_future(work(task)))
            if not pending:
                return
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for finished in done:
                yield finished.result()
    finally:
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
