"""Grades an answer the way the suites say: a fresh directory, their tests laid over last, no network, their command.

Knows nothing of workers and verdicts. Pass means exit code 0 and, where the command is no test runner's, `OK` as the
last line of stdout. A test file passes when it holds on the code as it is and fails on at least MIN_KILLED of the
mutants.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from garzone.bench.quality_suites import BenchTask, Reference, command
from garzone.core.ports import Sandbox, SandboxLimits, SandboxView

MIN_KILLED = 0.6  # from here on a `tests` task counts as proved (issue 5, kinds and their proofs)


@dataclass(frozen=True, slots=True)
class Grade:
    """`passed` by the suite's rules. `score` is the share of mutants killed for tests, else 1 or 0."""

    passed: bool
    score: float
    detail: str = ""


class Grader:
    """Runs the tasks' own tests on answers.

    `python` is the interpreter for `python3`; `node_path` is where node finds `typescript`.
    """

    def __init__(
        self, sandbox: Sandbox, python: str, references: Mapping[str, Reference], node_path: Path | None = None
    ) -> None:
        self._sandbox = sandbox
        self._python = python
        self._references = references
        environment = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        if node_path is not None:
            environment["NODE_PATH"] = str(node_path)
        self._view = SandboxView(environment=environment, read_only=(node_path,) if node_path else ())

    async def grade(self, task: BenchTask, answer: Mapping[str, str]) -> Grade:
        """Run a task's own tests on `answer`: the files that are the answer, by path."""
        if task.suite == "testgen_humaneval":
            return await self._grade_tests(task, answer)
        passed, detail = await self._run(task, {**task.files, **answer, **task.test_files})
        return Grade(passed, float(passed), detail)

    async def _grade_tests(self, task: BenchTask, answer: Mapping[str, str]) -> Grade:
        own = {path: text for path, text in answer.items() if path not in task.files}  # tests may not change the code
        if task.solution_path not in own:
            return Grade(False, 0.0, "no test file")
        passed, detail = await self._run(task, {**own, **task.files})
        if not passed:
            return Grade(False, 0.0, f"fails on the code as it is: {detail}")
        mutants = self._references[task.id].mutants
        killed = 0
        for mutant in mutants:
            survived, _ = await self._run(task, {**own, **task.files, **mutant})
            killed += not survived
        score = killed / len(mutants) if mutants else 0.0
        return Grade(score >= MIN_KILLED, score, f"{killed} of {len(mutants)} mutants killed")

    async def _run(self, task: BenchTask, files: Mapping[str, str]) -> tuple[bool, str]:
        with tempfile.TemporaryDirectory(prefix="garzone-grade-", ignore_cleanup_errors=True) as name:
            directory = Path(name)
            await asyncio.to_thread(write_files, directory, files)
            line = command(task, self._python)
            has_runner = "pytest" in task.test_cmd or "--test" in task.test_cmd
            # what the tests print on stderr is not their last word
            shell = line if has_runner else f"{line} 2>/dev/null"
            limits = SandboxLimits(wall_s=task.timeout_s, cpu_s=max(int(task.timeout_s * 2), 1))
            result = await self._sandbox.run(shell, directory, limits, self._view)
        if result.timed_out:
            return False, f"killed after {task.timeout_s:.0f} s"
        lines = [text for text in result.output.splitlines() if text.strip()]
        last = lines[-1].strip() if lines else ""
        if result.exit_code != 0:
            return False, f"exit code {result.exit_code}: {last[:200]}"
        if not has_runner and last != "OK":
            return False, f"exit code 0, but the last line is {last[:80]!r}, not OK"
        return True, ""


def write_files(directory: Path, files: Mapping[str, str]) -> None:
    """Files of a task as they are, to the byte, in a directory that every user may enter."""
    directory.mkdir(parents=True, exist_ok=True)
    directory.chmod(0o755)
    for path, text in files.items():
        place = directory / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text, encoding="utf-8", errors="surrogateescape", newline="")
