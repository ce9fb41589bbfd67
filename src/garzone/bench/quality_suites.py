"""The suites `garzone bench quality` measures with: third-party tasks read from a directory, and what each asks of us.

Holds no task itself: the directory is given. What a task may show (fix suites their tests, mbpp its first assert) and
what stays hidden until grading is decided here and nowhere else.
"""

from __future__ import annotations

import ast
import json
import random
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from garzone.core.errors import UsageError
from garzone.core.task import TaskKind

SHOWN_TEST = "test_shown.py"
HOLE = "# <fill>"  # how the worker is told of a hole; at the start of the line, for its depth is part of the answer


@dataclass(frozen=True, slots=True)
class BenchTask:
    """One task of a suite, as its file has it (the directory's README describes the fields)."""

    suite: str
    id: str
    prompt: str
    files: Mapping[str, str]
    solution_path: str
    test_files: Mapping[str, str]
    test_cmd: tuple[str, ...]
    timeout_s: float
    meta: Mapping[str, Any]

    @property
    def slug(self) -> str:
        """The id as a file name."""
        return "".join(char if char.isalnum() else "-" for char in self.id)

    @property
    def entry_point(self) -> str:
        """The function the tests call; "" where the suite does not say."""
        return str(self.meta.get("entry_point") or "")


@dataclass(frozen=True, slots=True)
class Reference:
    """The right answer of a task. `mutants` are wrong versions of the code under test (test generation only)."""

    files: Mapping[str, str]
    mutants: tuple[Mapping[str, str], ...] = ()
    tests: str = ""
    middle: str = ""


@dataclass(frozen=True, slots=True)
class Commission:
    """A task as it is delegated: the repository's files, and what the worker is told.

    `result_paths` are the files whose content is the answer. `trusted_check` says that the check is the suite's own,
    so that a right answer has to be `proved`.
    """

    kind: TaskKind
    instruction: str
    files: Mapping[str, str]
    named: tuple[str, ...]
    check: str | None
    result_paths: tuple[str, ...]
    trusted_check: bool = False


JAVASCRIPT = "humaneval_js_fix"  # made from humaneval_ts (`quality_javascript.py`)
FIX_SUITES = ("humanevalfix_python", "quixbugs_python", JAVASCRIPT)
SUITES = (*FIX_SUITES, "mbpp_sanitized", "humaneval", "humaneval_infill_single", "testgen_humaneval", "humaneval_ts")


def load_tasks(
    directory: Path, suite: str, *, limit: int | None = None, seed: int | None = None, skip: int = 0
) -> list[BenchTask]:
    """The tasks of a suite, in the file's order; with a limit, a sample that the seed decides (see `sample`).

    Raises:
        UsageError: no such suite here, its file is not what it should be, or nothing of it is left.
    """
    if suite not in SUITES:
        raise UsageError(f"unknown suite {suite!r}; known: {', '.join(SUITES)}")
    tasks = [_task(suite, fields) for fields in _records(directory / f"{suite}.jsonl")]
    return sample(tasks, limit=limit, seed=seed, skip=skip)


def sample(tasks: list[BenchTask], *, limit: int | None, seed: int | None, skip: int = 0) -> list[BenchTask]:
    """Some of the tasks, in their order.

    Args:
        tasks: all of a suite.
        limit: how many; the first ones, or those that the seed decides.
        seed: decides.
        skip: how many of these are left out again, from the first on: those that were looked at while something was
            chosen by what came out.

    Raises:
        UsageError: nothing is left.
    """
    chosen = tasks
    if limit is not None and limit < len(tasks):
        numbers = range(len(tasks))
        drawn = numbers[:limit] if seed is None else random.Random(seed).sample(numbers, limit)  # noqa: S311 - no secret
        chosen = [tasks[number] for number in sorted(drawn)]
    if skip >= len(chosen):
        raise UsageError(f"--skip {skip} leaves none of the {len(chosen)} tasks")
    return chosen[skip:]


def load_references(directory: Path, suite: str) -> dict[str, Reference]:
    """Right answers by task id, for the oracle, the saboteurs and the grading of tests. Never shown to a model.

    Raises:
        UsageError: they are not there.
    """
    found: dict[str, Reference] = {}
    for fields in _records(directory / "canonical" / f"{suite}.jsonl"):
        mutants = tuple(mutant["files"] for mutant in fields.get("mutants", ()))
        found[fields["id"]] = Reference(
            fields["files"], mutants, fields.get("reference_tests", ""), fields.get("middle", "")
        )
    return found


def commission(task: BenchTask, python: str) -> Commission:
    """What is delegated.

    Args:
        task: of any suite.
        python: the interpreter checks run with; one that has pytest.
    """
    check = command(task, python)
    if task.suite in FIX_SUITES:
        return Commission(
            TaskKind.FIX,
            task.prompt,
            {**task.files, **task.test_files},
            (task.solution_path,),
            check,
            (task.solution_path,),
            trusted_check=True,
        )
    if task.suite == "mbpp_sanitized":
        shown = task.meta["test_list"][0]
        lines = [*task.meta["test_imports"], "from solution import *", "", shown, "print('OK')"]
        return Commission(
            TaskKind.IMPLEMENT,
            f"{task.meta['raw_prompt']}\nFor example:\n{shown}",
            {SHOWN_TEST: "\n".join(lines) + "\n"},
            (task.solution_path,),
            shlex.join([python, SHOWN_TEST]),
            (task.solution_path,),
        )
    if task.suite == "humaneval":
        return Commission(
            TaskKind.COMPLETE,
            f"Write the body of {task.entry_point}.",
            {task.solution_path: _stub(task.files[task.solution_path])},
            (task.solution_path,),
            None,
            (task.solution_path,),
        )
    if task.suite == "humaneval_infill_single":
        prefix, suffix = str(task.meta["prefix"]), str(task.meta["suffix"])
        return Commission(
            TaskKind.COMPLETE,
            f"Fill in the missing code of {task.entry_point}.",
            {task.solution_path: f"{prefix}{HOLE}\n{suffix}"},
            (task.solution_path,),
            None,
            (task.solution_path,),
        )
    if task.suite == "testgen_humaneval":
        return Commission(
            TaskKind.TESTS,
            task.prompt,
            dict(task.files),
            ("solution.py", task.solution_path),
            None,
            (task.solution_path,),
        )
    return Commission(
        TaskKind.TRANSLATE,
        _without_source(task.prompt),
        dict(task.files),
        ("source.py", task.solution_path),
        None,
        (task.solution_path,),
    )


def command(task: BenchTask, python: str) -> str:
    """The suite's own test command as a shell command, with `python` for python3."""
    return shlex.join([python if word == "python3" else word for word in task.test_cmd])


def _records(path: Path) -> list[dict[str, Any]]:
    try:
        with path.open(encoding="utf-8") as file:
            return [json.loads(line) for line in file if line.strip()]
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read ({error.strerror}): --data names the directory of the suites"
        ) from error
    except ValueError as error:
        raise UsageError(f"{path} is not JSON lines: {error}") from error


def _task(suite: str, fields: Mapping[str, Any]) -> BenchTask:
    try:
        return BenchTask(
            suite=suite,
            id=fields["id"],
            prompt=fields["prompt"],
            files=_safe(fields["files"]),
            solution_path=fields["solution_path"],
            test_files=_safe(fields["test_files"]),
            test_cmd=tuple(fields["test_cmd"]),
            timeout_s=float(fields["timeout_s"]),
            meta=fields["meta"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{suite}: a task without or with a wrong {error}") from error


def _safe(files: Mapping[str, str]) -> dict[str, str]:
    for name in files:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            raise UsageError(f"{name!r} leads out of the task's directory")
    return dict(files)


def _stub(text: str) -> str:
    """A module whose last function has a docstring and no body, made complete with a `pass`.

    Dataset prompts end after the docstring, which is valid Python already; those that end with a signature are not.
    """
    try:
        ast.parse(text)
    except SyntaxError:
        return text.rstrip("\n") + "\n    pass\n"
    return text


def _without_source(prompt: str) -> str:
    """The instruction without the source code, which lies in the repository."""
    return prompt.partition("\nPython source:")[0].strip()
