"""One request's progress: its tokens, how many of their rows are computed, and when it has to end. Pure.

Does not know text, samplers or slots' contents.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field
from typing import Protocol


class Drafter(Protocol):
    """Guesses what comes next."""

    def propose(self, max_tokens: int) -> tuple[SequenceOf[int], float]:
        """At most so many tokens after the last one, and the probability that any one of them is right."""
        ...

    def extend(self, tokens: SequenceOf[int]) -> None:
        """These tokens came."""
        ...


@dataclass(eq=False)
class Sequence:
    """A prompt and what was generated after it.

    Attributes:
        number: names it; numbers only ever grow, and nothing else does so.
        tokens: the prompt and the tokens generated so far.
        max_rows: the most tokens it may have, the ones still to be generated included.
        drafter: guesses ahead for it, if anything does.
        slot: where its rows are; None while it waits.
        num_computed: rows of `tokens` that are computed.
        num_cached: rows that were there when it started.
        leader: number of the sequence that is computing a beginning that both share, and how long that is.
    """

    number: int
    tokens: list[int]
    max_rows: int
    drafter: Drafter | None = None
    slot: int | None = None
    num_computed: int = 0
    num_cached: int = 0
    leader: tuple[int, int] | None = None
    num_prompt: int = field(init=False)

    def __post_init__(self) -> None:
        if not 0 < len(self.tokens) <= self.max_rows:
            raise ValueError(f"a prompt of {len(self.tokens)} tokens cannot be continued to {self.max_rows}")
        self.num_prompt = len(self.tokens)

    @property
    def num_pending(self) -> int:
        """Tokens whose rows are to be computed before the next can be chosen; 1 while it is being decoded."""
        return len(self.tokens) - self.num_computed

    @property
    def is_decoding(self) -> bool:
        """Whether its next row yields its next token."""
        return self.num_pending == 1 and len(self.tokens) > self.num_prompt

    def forget(self, num_keep: int) -> None:
        """Make room in a full context: the first `num_keep` tokens stay, and the later half of the rest.

        The rows behind `num_keep` are computed again, at their new positions: exact, unlike turning old rows.
        """
        num_keep = min(num_keep, len(self.tokens) - 2)
        first = num_keep + (len(self.tokens) - num_keep + 1) // 2
        self.tokens = self.tokens[:num_keep] + self.tokens[first:]
        self.num_computed = min(self.num_computed, num_keep)
        self.num_prompt = min(self.num_prompt, len(self.tokens))
