"""Guesses the next tokens by looking up where the last ones occurred before: in the prompt, the answer, a prediction.

Pure; does not decide how many guesses are worth checking, but says how probable it is that one is right.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

_KEY: Final = 2  # tokens that have to agree at least
_MOST_CANDIDATES: Final = 16  # occurrences looked at, the latest ones
_LONGEST_MATCH: Final = 32  # agreement beyond this says nothing more
_BOUNDARY: Final = -1  # between the texts; no token
_DECAY: Final = 0.97  # a token: the last thirty or so decide

# By tokens that agreed: fewer than 4, fewer than 8, more. Measured on whole-file edits and on free text of SmolLM2;
# only where an answer begins, since what is observed soon outweighs it.
_PRIORS: Final = (0.4, 0.65, 0.85)
_PRIOR_WEIGHT: Final = 2.0


class PromptLookup:
    """Guesses for one sequence.

    Every guess is compared with what really came, also where it was not used: when the text becomes predictable, it is
    noticed without paying for a try.
    """

    def __init__(self, prompt: Sequence[int], prediction: Sequence[int] = ()) -> None:
        """Start behind a prompt.

        Args:
            prompt: the tokens so far.
            prediction: text that the answer will largely repeat.
        """
        self._text: list[int] = []
        self._ends: dict[tuple[int, ...], list[int]] = {}  # of each pair of tokens: where what follows it begins
        self._append(prediction)
        if prediction:
            self._append((_BOUNDARY,))
        self._append(prompt)
        self._cursor: int | None = 0 if prediction else None  # where the text that is being repeated goes on
        self._guess: list[int] = []
        self._guessed_from = 0
        self._bucket = 0
        self._right = [prior * _PRIOR_WEIGHT for prior in _PRIORS]
        self._tried = [_PRIOR_WEIGHT] * len(_PRIORS)
        self._at_start = bool(prediction)

    def propose(self, max_tokens: int) -> tuple[Sequence[int], float]:
        """At most so many tokens, and the probability of each to be right if those before it are."""
        self._guess = []
        found = self._find()
        if found is None:
            return (), 0.0
        start, length = found
        guess = self._text[start : start + max(max_tokens, _LONGEST_MATCH)]
        if _BOUNDARY in guess:
            del guess[guess.index(_BOUNDARY) :]
        self._guess, self._guessed_from = guess, start
        self._bucket = (length >= 4) + (length >= 8)
        return guess[:max_tokens], self._right[self._bucket] / self._tried[self._bucket]

    def extend(self, tokens: Sequence[int]) -> None:
        """These tokens came next."""
        if self._guess:
            self._learn(tokens)
        self._append(tokens)
        self._guess = []
        self._at_start = False

    def _learn(self, tokens: Sequence[int]) -> None:
        compared = min(len(tokens), len(self._guess))
        right = next((i for i in range(compared) if tokens[i] != self._guess[i]), compared)
        bucket = self._bucket
        for index in range(min(right + 1, compared)):
            self._right[bucket] = self._right[bucket] * _DECAY + (index < right)
            self._tried[bucket] = self._tried[bucket] * _DECAY + 1.0
        # after a wrong guess, one token most often took the place of another
        self._cursor = self._guessed_from + len(tokens)

    def _append(self, tokens: Sequence[int]) -> None:
        text, ends = self._text, self._ends
        for token in tokens:
            text.append(token)
            if len(text) >= _KEY:
                ends.setdefault(tuple(text[-_KEY:]), []).append(len(text))

    def _find(self) -> tuple[int, int] | None:
        """Where the text that the guess is read from begins, and how many tokens before it agree."""
        text, end = self._text, len(self._text)
        if self._at_start and self._cursor == 0:
            return 0, _LONGEST_MATCH  # the answer is expected to begin as the prediction does
        candidates = self._ends.get(tuple(text[-_KEY:]), [])
        best: tuple[int, int] | None = None
        looked_at = [start for start in candidates[-_MOST_CANDIDATES - 1 :] if start < end]
        if self._cursor is not None:
            later = [start for start in candidates if self._cursor - _LONGEST_MATCH <= start < end]
            looked_at += later[:_MOST_CANDIDATES]
        for start in looked_at:
            length = self._agreement(start)
            if best is None or (length, self._nearness(start)) > (best[1], self._nearness(best[0])):
                best = start, length
        return best

    def _nearness(self, start: int) -> float:
        """Of two places that agree as well, the one where the text was being read goes first, then the later one."""
        if self._cursor is None:
            return start
        return -abs(start - self._cursor)

    def _agreement(self, start: int) -> int:
        text, end = self._text, len(self._text)
        length = 0
        while length < _LONGEST_MATCH and length < start and text[start - 1 - length] == text[end - 1 - length]:
            length += 1
        return length
