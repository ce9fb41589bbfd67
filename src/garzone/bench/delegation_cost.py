"""Replays recorded transcripts of one task, done alone and delegated, as a batch in one session, and prices both.

A session's context grows with all that was read and written in it, and every turn reads it again: that is most of what
doing tasks alone costs. Failures are delegated in vain and then done alone. Runs nothing.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from typing import Any, Final, cast

from garzone.delegate.pricing import CHARS_PER_TOKEN, COORDINATOR, Price

RECORDED_FILE_TOKENS: Final = 160  # of inventory.py, which the recorded coordinator read
NUM_BATCHES: Final = 400  # averaged; each with its own luck


@dataclass(frozen=True, slots=True)
class Turn:
    """One request and its answer: tokens that were new in it, and those that were written."""

    new_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Transcript:
    """A session about one task: what stood in the context before it, its turns, and the last one, which answers.

    `extra` turns are those beyond the answer, which either way has to be written.
    """

    context_tokens: int
    extra: tuple[Turn, ...]
    answer: Turn

    @classmethod
    def read(cls, lines: Iterable[str]) -> Transcript:
        """From Claude Code's lines.

        Raises:
            ValueError: there is no turn, or only one, in it.
        """
        usages: dict[str, dict[str, int]] = {}
        for line in lines:
            message = cast("dict[str, Any]", json.loads(line).get("message") or {})
            if message.get("role") == "assistant" and message.get("usage"):
                usages[str(message["id"])] = message["usage"]
        if len(usages) < 2:
            raise ValueError("a transcript of one task has at least two turns: what it calls, and what it answers")
        new = [u["input_tokens"] + u["cache_creation_input_tokens"] for u in usages.values()]
        output = [u["output_tokens"] for u in usages.values()]
        turns = [Turn(read, written) for read, written in zip([0, *new[1:]], output, strict=True)]
        return cls(new[0], tuple(turns[:-1]), turns[-1])


@dataclass(frozen=True, slots=True)
class Batch:
    """What so many tasks in one session cost, delegated and alone, in USD; means over many batches.

    `together`: the coordinator hands all of them over in one message. `session_usd` is what the session costs before
    any task: its prompt, written to the cache once.
    """

    num_tasks: int
    file_tokens: int
    success_rate: float
    together: bool
    delegated_usd: float
    alone_usd: float
    session_usd: float

    @property
    def ratio(self) -> float:
        """Delegated against alone, for the tasks."""
        return (self.delegated_usd - self.session_usd) / (self.alone_usd - self.session_usd)

    @property
    def whole_ratio(self) -> float:
        """Delegated against alone, with what the session costs anyway."""
        return self.delegated_usd / self.alone_usd

    def to_json(self) -> dict[str, Any]:
        """A document for `--json`."""
        return asdict(self) | {"ratio": self.ratio, "whole_ratio": self.whole_ratio}


class _Session:
    """A conversation whose cache never goes cold: what is read again costs a tenth."""

    def __init__(self, context_tokens: int, price: Price) -> None:
        self._context, self._price = context_tokens, price
        self.usd = price.usd(cache_write_tokens=context_tokens)

    def take(self, turns: Sequence[Turn]) -> None:
        """One turn after the other."""
        for turn in turns:
            self.usd += self._price.usd(
                cache_write_tokens=turn.new_tokens, output_tokens=turn.output_tokens, cached_tokens=self._context
            )
            self._context += turn.new_tokens + turn.output_tokens


def recorded() -> tuple[Transcript, Transcript]:
    """The two transcripts the package has: of the real Claude Code 2.1.332, as `make e2e-coordinators` drives it."""
    alone, delegating = (Transcript.read(recorded_lines(name)) for name in ("alone", "delegating"))
    return alone, delegating


def recorded_lines(name: str) -> list[str]:
    """Lines of the recorded transcript `alone` or `delegating`, cut down to what is read of them."""
    folder = resources.files("garzone.bench").joinpath("transcripts")
    return folder.joinpath(f"claude_code_{name}.jsonl").read_text(encoding="utf-8").splitlines()


def replay(
    alone: Transcript,
    delegating: Transcript,
    *,
    num_tasks: int,
    success_rate: float = 0.7,
    file_tokens: int = RECORDED_FILE_TOKENS,
    together: bool = False,
    price: Price = COORDINATOR,
    seed: int = 0,
) -> Batch:
    """A batch of tasks like the recorded one, about files of another size.

    Args:
        alone: recorded while the coordinator did it.
        delegating: recorded while garzone did.
        num_tasks: one after the other in one session, with one answer at its end.
        success_rate: of the worker. What fails is done alone afterwards, from the start.
        file_tokens: of the files a task is about; the coordinator reads them if it does the task.
        together: whether all are handed over in one message, which is one turn for all.
        price: the coordinator's.
        seed: of the worker's luck.
    """
    at = max(range(len(alone.extra)), key=lambda number: alone.extra[number].new_tokens * (number > 1))
    by_itself = [
        Turn(turn.new_tokens + (file_tokens - RECORDED_FILE_TOKENS) * (number == at), turn.output_tokens)
        for number, turn in enumerate(alone.extra)
    ]
    # the results that the answering turn read belong to the task, not to the answer
    by_itself[-1] = Turn(by_itself[-1].new_tokens + alone.answer.new_tokens, by_itself[-1].output_tokens)
    handed_over = Turn(delegating.answer.new_tokens, delegating.extra[0].output_tokens)
    rng = random.Random(seed)  # noqa: S311 - a simulation
    totals = [0.0, 0.0]
    for _ in range(NUM_BATCHES):
        sessions = _Session(delegating.context_tokens, price), _Session(alone.context_tokens, price)
        if together:
            sessions[0].take([Turn(handed_over.new_tokens * num_tasks, handed_over.output_tokens * num_tasks)])
        for _ in range(num_tasks):
            if not together:
                sessions[0].take([handed_over])
            if rng.random() >= success_rate:
                sessions[0].take(by_itself)
            sessions[1].take(by_itself)
        for number, session in enumerate(sessions):
            session.take([Turn(0, alone.answer.output_tokens)])
            totals[number] += session.usd / NUM_BATCHES
    session_usd = price.usd(cache_write_tokens=alone.context_tokens)
    return Batch(num_tasks, file_tokens, success_rate, together, totals[0], totals[1], session_usd)


def measure(success_rate: float = 0.7) -> list[Batch]:
    """Batches of 1, 5, 10 and 20 tasks about files of 640 to 40,000 bytes, one by one and in one message."""
    alone, delegating = recorded()
    return [
        replay(
            alone,
            delegating,
            num_tasks=tasks,
            success_rate=success_rate,
            file_tokens=size // CHARS_PER_TOKEN,
            together=together,
        )
        for together in (False, True)
        for size in (RECORDED_FILE_TOKENS * CHARS_PER_TOKEN, 8_000, 16_000, 40_000)
        for tasks in (1, 5, 10, 20)
    ]
