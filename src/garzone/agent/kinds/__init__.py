"""One file per task kind: what to ask, how to read the answer, what proves it. The loop is in `worker.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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


class Kind(Protocol):
    """A kind of task."""

    def ask(self, task: Task, target: Target, material: Material) -> tuple[Message, ...]:
        """The first prompt. What stays the same over candidates and rounds comes first."""
        ...

    def ask_briefly(self, task: Task, target: Target) -> tuple[Message, ...]:
        """The first prompt with nothing but the instruction and the target: what the smallest models read best."""
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
