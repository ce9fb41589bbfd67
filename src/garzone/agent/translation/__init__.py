"""Other languages that Python is translated to: what a translation must look like, and how it is run beside the source.

One file a toolchain. What is asked of a model, and what a run of a translation proves, is in `kinds/translate.py`.
"""

from __future__ import annotations

import json
import shlex
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, cast

from garzone.agent.changes import FileEdit
from garzone.agent.examples import facts_of
from garzone.agent.stage import Run, Stage
from garzone.agent.translation.types import Type
from garzone.core.task import Check

NOT_COMPILED = 97  # the exit code of a build that failed, in commands that build and run
RUN = "ulimit -t 20; exec"  # what a build is run with: seconds of computing
KILLED = (-24, 128 + 24, 128 + 9, -9)  # by SIGXCPU, or by SIGKILL a second later
BUILD_S = 150.0  # compiles the driver as well, and what of the language's library is not there compiled

Case = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Function:
    """A function of the source: its name, its parameters and result, and what it does with some inputs.

    `obstacle` says why it cannot be compared in a language with types; `parameters` and `result` mean nothing then.
    """

    name: str
    cases: tuple[Case, ...] = ()
    parameters: tuple[tuple[str, Type], ...] = ()
    result: Type | None = None
    obstacle: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a translation: `results` by name in the order of the cases, or `complaint`, why there are none.

    `doubts` are what stands against a proof, whatever the results are.
    """

    checks: tuple[Check, ...] = ()
    results: dict[str, list[Case]] | None = None
    complaint: str = ""
    run: Run | None = None
    doubts: tuple[str, ...] = ()


class Toolchain(ABC):
    """A language and what runs it. `name` is as a fence spells it, `title` as people do."""

    name: str
    title: str
    suffix: str
    typed = True

    @abstractmethod
    def missing(self) -> str | None:
        """What to install before anything can be run; None where it is there."""

    def place(self, source: str) -> str:
        """Where the translation of a source file goes."""
        return str(PurePosixPath(source).with_suffix(self.suffix))

    @abstractmethod
    def spelled(self, name: str) -> tuple[str, ...]:
        """How a function may be called there; the first is how it is asked for."""

    def signature(self, function: Function, place: str) -> str:
        """The line that a model is told to begin the function with."""
        return ""

    def rules(self, place: str) -> str:
        """What else a translation must keep to, as sentences."""
        return ""

    def powers(self, edit: FileEdit) -> list[str]:
        """What the text can do besides computing, as phrases."""
        return []

    def complaint(self, place: str, text: str) -> str | None:
        """Why a text cannot be what was asked for, as a sentence to the model."""
        return None

    @abstractmethod
    async def drive(self, stage: Stage, edit: FileEdit, functions: Sequence[Function], label: str) -> Outcome:
        """Compile and run a translation on the inputs of the source.

        Args:
            stage: where.
            edit: the translation.
            functions: those of the source that can be compared.
            label: what the run is called in a report.
        """


async def build_and_run(
    stage: Stage, edit: FileEdit, *, command: str, files: dict[str, bytes], compiler: str, label: str
) -> Outcome:
    """Run a command that copies, builds and drives; for languages whose driver is generated source.

    `$GARZONE_SOURCE` is the translation's path in the command. Exit code NOT_COMPILED says that the build failed.
    """
    environment = {"GARZONE_SOURCE": local(stage, edit.path)}
    run = await stage.run(
        command, {edit.path: edit.content}, wall_s=BUILD_S, harness=files, probed=False, environment=environment
    )
    checks = (run.as_check(compiler), run.as_check(label))
    if run.result.exit_code == NOT_COMPILED:
        return Outcome(checks[:1], complaint=f"It does not compile: {_of_translation(run.result.output, edit.path)}")
    if run.result.timed_out or run.result.exit_code in KILLED:
        return Outcome(checks, complaint="It did not end.", run=run)
    results = facts_of(run).get("results")
    if not run.passed or not isinstance(results, dict):
        return Outcome(checks, complaint=told(run.result.output), run=run)
    return Outcome(checks, cast("dict[str, list[Case]]", results), run=run)


def local(stage: Stage, path: str) -> str:
    """A path as commands see it."""
    prefix = stage.repository.prefix
    return path.removeprefix(f"{prefix}/") if prefix else path


def quoted(stage: Stage, path: str) -> str:
    """A path as a shell word."""
    return shlex.quote(local(stage, path))


def told(output: str) -> str:
    """What a failed run says, without where the interpreter keeps itself."""
    lines = [line for line in output.splitlines() if line.strip() and "node:internal" not in line]
    return "It cannot be run: " + "\n".join(lines[:8])[:800]


def _of_translation(output: str, path: str) -> str:
    """A compiler's words, those about the translation first."""
    name = PurePosixPath(path).name
    lines = [line for line in output.splitlines() if line.strip()]
    first = next((number for number, line in enumerate(lines) if name in line or "translated" in line), 0)
    return "\n".join(lines[first : first + 14])[:1200]


def escaped(text: str, *, wide: str) -> str:
    """Text as a string literal of a C-like language; `wide` formats a character beyond ASCII, {0} being its code."""
    plain = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
    pieces = [plain.get(c) or (c if " " <= c <= "~" else wide.format(ord(c))) for c in text]
    return '"' + "".join(pieces) + '"'


def words(text: str) -> frozenset[str]:
    """The words of a text."""
    return frozenset(text.split())


def as_json(value: Any) -> str:
    """A value as the reports show it."""
    return json.dumps(value, ensure_ascii=False)
