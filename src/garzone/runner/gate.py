"""Lets a grammar begin where the answer does: behind the model's reasoning. Knows no tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from garzone.runner.model import Matcher, Tokenizer
from garzone.scheduler.sequence import Drafter

_LONGEST_MARK: Final = 64  # bytes of text kept to find the mark in


class GatedMatcher:
    """A grammar for the part of an answer that follows `begins_after`.

    With `opened`, the answer starts before that mark. Without, a model that may think either starts to, or its first
    token is the grammar's: one that answers at once is held to it all the same.
    """

    def __init__(
        self,
        matcher: Matcher,
        tokenizer: Tokenizer,
        *,
        thinking_mark: str = "",
        begins_after: str = "",
        opened: bool = False,
    ) -> None:
        self._matcher = matcher
        self._tokenizer = tokenizer
        self._mark = begins_after.encode()
        self._tail = b""
        self._closed = bool(begins_after) and opened
        undecided = bool(begins_after and thinking_mark) and not opened
        self._opening = tokenizer.encode(thinking_mark, add_special=False) if undecided else []  # what is to come of it
        self._undecided = undecided

    @property
    def constrains(self) -> bool:
        """Whether the next token is masked."""
        return not self._closed

    def num_allowed(self, tokens: Sequence[int]) -> int:
        """How many of these tokens could come next, one after the other; none while that is undecided."""
        if self._closed:
            return len(tokens)
        return 0 if self._opening else self._matcher.num_allowed(tokens)

    def masks(self, draft: Sequence[int]) -> list[NDArray[np.bool_]] | None:
        """The masks before the first token of a draft and after each; None where nothing is masked."""
        if self._closed:
            return None
        if self._undecided:
            mask = self._matcher.mask().copy()
            mask[self._opening[0]] = True
            return [mask]
        if self._opening:  # it began to open its reasoning, and has to go through with it
            mask = np.zeros_like(self._matcher.mask())
            mask[self._opening[0]] = True
            return [mask]
        return self._matcher.masks(draft)

    def accept(self, token_id: int) -> bool:
        """That token came. True when a grammar begins with the next: what was guessed beyond has no masks."""
        if self._opening and token_id == self._opening[0]:
            self._undecided = False
            del self._opening[0]
            self._closed = not self._opening
            return False
        if self._undecided:
            self._undecided = False
            self._opening = []
        if not self._closed:
            self._matcher.accept(token_id)
            return False
        self._tail = (self._tail + self._tokenizer.token_bytes(token_id))[-_LONGEST_MARK:]
        if self._mark in self._tail:
            self._closed = False
            return True
        return False


class AllowedDrafts:
    """Guesses of a drafter that a grammar lets through."""

    def __init__(self, matcher: GatedMatcher, drafter: Drafter) -> None:
        self._matcher = matcher
        self._drafter = drafter

    def propose(self, max_tokens: int) -> tuple[Sequence[int], float]:
        """As the drafter's, cut off where the grammar would."""
        guess, acceptance = self._drafter.propose(max_tokens)
        return guess[: self._matcher.num_allowed(guess)], acceptance

    def extend(self, tokens: Sequence[int]) -> None:
        """These tokens came."""
        self._drafter.extend(tokens)
