"""One file per task kind: what to ask, how to read the answer, what proves it. The loop is in `worker.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from garzone.agent.context import FailingTest, Target
from garzone.agent.edit import Edited, EditMiss
from garzone.core.chat import Message
from garzone.core.task import Task


@dataclass(frozen=True, slots=True)
class Material:
    """What may be shown to the model besides the target. Fields are cut down until the prompt fits."""

    tests: Sequence[FailingTest] = ()
    output: str = ""
    definitions: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Attempt:
    """An earlier answer and what came of it: the failing output, or why it could not be applied."""

    answer: str
    output: str = ""
    reason: str = ""


class Style(Enum):
    """How much a first prompt says: all there is; instruction and code; the code alone.

    Larger models make use of tests and output. The smallest are distracted by them, and repair different bugs from each
    style: SmolLM2-135M 46 of 114 small bugs from the brief one and 25 from the full one; and, of six bugs in six
    samples each, 22 of 36 from the bare one, 16 from the full one.
    """

    FULL = "full"
    BRIEF = "brief"
    BARE = "bare"


class Kind(Protocol):
    """A kind of task."""

    def ask(self, task: Task, target: Target, material: Material, style: Style) -> tuple[Message, ...]:
        """The first prompt. What stays the same over candidates and rounds comes first."""
        ...

    def ask_again(self, first: tuple[Message, ...], target: Target, attempt: Attempt) -> tuple[Message, ...]:
        """The prompt after an answer that was not good: the first one, continued."""
        ...

    def read(self, target: Target, answer: str) -> Edited | EditMiss:
        """The file's new text."""
        ...

    def complete(self, target: Target, answer: str) -> bool:
        """Whether an unfinished answer already holds all that is needed."""
        ...
