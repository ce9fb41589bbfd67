"""Guesses what a model will say with a smaller one of the same vocabulary, where looking it up finds nothing.

Decides whether a guess is worth what it costs; whether it is right, the step that checks it says. Knows no requests.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final

from garzone.engine.row import Row
from garzone.runner.model import Engine
from garzone.scheduler.cost import StepTimes, draft_length, expected_tokens
from garzone.scheduler.prefix_tree import common_prefix
from garzone.scheduler.sequence import Drafter

LENGTHS: Final = (1, 2, 3, 4, 6, 8, 12, 16)  # of a guess
UNTIMED_LENGTH: Final = 4  # of the first guess: what one costs is not known before
RETRY_TOKENS: Final = 64  # after which a model whose guesses did not pay is tried again
TRIED_LENGTH: Final = 2  # of the guess that tries it
MOST_PADDING: Final = 512  # ids by which vocabularies of one family differ in size: files pad them
_DECAY: Final = 0.97  # a token: the last thirty or so decide
_PRIOR: Final = 0.6
_PRIOR_WEIGHT: Final = 2.0
_NEW_TIME: Final = 0.2  # weight of a new time against what was known


def vocabularies_differ(tokens: Sequence[str], draft_tokens: Sequence[str]) -> str:
    """Why guesses made with one vocabulary mean nothing in the other; "" when they do.

    One may be longer by some tokens that only fill it up.
    """
    shared = min(len(tokens), len(draft_tokens))
    if abs(len(tokens) - len(draft_tokens)) > MOST_PADDING:
        return f"it has {len(draft_tokens)} tokens, the model {len(tokens)}"
    for index in range(shared):
        if tokens[index] != draft_tokens[index]:
            return f"its token {index} is {draft_tokens[index]!r}, the model's {tokens[index]!r}"
    return ""


class DraftModel:
    """The smaller model and the texts it has read. One caller at a time.

    Attributes:
        num_ctx: tokens of a text that it can read.
        memory_bytes: what it takes of the device.
        ms_per_token: what guessing one token takes; None before the first.
    """

    def __init__(self, engine: Engine, num_ctx: int, vocab_size: int, memory_bytes: int = 0) -> None:
        """Start with nothing read.

        Args:
            engine: its own slots and weights.
            num_ctx: tokens of a text that it can read.
            vocab_size: of the model that is guessed for; ids from there on end a guess.
            memory_bytes: what it takes of the device.
        """
        self.num_ctx = num_ctx
        self.memory_bytes = memory_bytes
        self.ms_per_token: float | None = None
        self._engine = engine
        self._vocab_size = vocab_size
        self._held: list[list[int]] = [[] for _ in range(engine.num_slots)]
        self._last_used = [0] * engine.num_slots
        self._clock = 0
        self._right, self._tried = _PRIOR * _PRIOR_WEIGHT, _PRIOR_WEIGHT

    @property
    def acceptance(self) -> float:
        """How probable it is that a guessed token is right if those before it are."""
        return self._right / self._tried

    def learn(self, num_right: int, num_wrong: int) -> None:
        """Guesses were compared with what came."""
        for index in range(num_right + num_wrong):
            self._right = self._right * _DECAY + (index < num_right)
            self._tried = self._tried * _DECAY + 1.0

    def read(self, tokens: Sequence[int]) -> bool:
        """Read on in a text, one step's worth at most; whether all but its last token is read."""
        slot, num_read = self._find(tokens)
        missing = len(tokens) - 1 - num_read
        if missing <= 0:
            return True
        count = min(missing, self._engine.chunk_tokens)
        self._compute(slot, tokens[num_read : num_read + count], num_read, wants_last=False)
        return count == missing

    def guess(self, tokens: Sequence[int], length: int) -> list[int]:
        """The most probable continuation of a text that was read, token by token."""
        slot, num_read = self._find(tokens)
        started = time.perf_counter()
        guessed: list[int] = []
        pending = list(tokens[num_read:])
        while len(guessed) < length:
            token_id = self._compute(slot, pending, num_read, wants_last=True)
            if token_id >= self._vocab_size:
                break
            num_read += len(pending)
            pending = [token_id]
            guessed.append(token_id)
        took = (time.perf_counter() - started) * 1e3 / max(1, len(guessed))
        known = self.ms_per_token
        # a first time holds compiling, and one that was interrupted says little about the next
        self.ms_per_token = took if known is None else known + _NEW_TIME * (min(took, 2 * known) - known)
        return guessed

    def _find(self, tokens: Sequence[int]) -> tuple[int, int]:
        """The slot whose text agrees longest, and for how many tokens; the last token is always left to compute."""
        read = [min(common_prefix(held, tokens), len(tokens) - 1) for held in self._held]
        slot = max(range(len(read)), key=lambda index: (read[index], -self._last_used[index]))
        self._clock += 1
        self._last_used[slot] = self._clock
        return slot, read[slot]

    def _compute(self, slot: int, tokens: Sequence[int], start: int, *, wants_last: bool) -> int:
        last = len(tokens) - 1
        scores = self._engine.score(
            [Row(slot, start + index, token_id, wants_last and index == last) for index, token_id in enumerate(tokens)]
        )
        self._held[slot][start:] = tokens
        return int(scores[0].highest(1)[0][0]) if wants_last else -1


class ModelDrafts:
    """Guesses for one sequence: looked up where that promises more, else the draft model's.

    The draft model is asked while its sequence is alone: with several under way a step is full of rows that are
    certain to be wanted. It reads a prompt a chunk at a time, so that nobody who comes then waits for longer.
    """

    def __init__(
        self,
        lookup: Drafter,
        model: DraftModel,
        prompt: Sequence[int],
        times: StepTimes,
        is_alone: Callable[[], bool],
    ) -> None:
        self._lookup = lookup
        self._model = model
        self._tokens = list(prompt)
        self._times = times
        self._is_alone = is_alone
        self._guess: list[int] = []
        self._rest = 0  # tokens to come before the model is asked again
        self._is_retry = False

    def propose(self, max_tokens: int) -> tuple[Sequence[int], float]:
        """At most so many tokens, and the probability of each to be right if those before it are."""
        self._guess = []
        found, acceptance = self._lookup.propose(max_tokens)
        max_tokens = min(max_tokens, self._model.num_ctx - len(self._tokens))
        if self._rest > 0 or max_tokens < 1 or not self._is_alone():
            return found, acceptance
        length, rate = self._best(max_tokens)
        if not length and not self._is_retry:
            self._rest, self._is_retry = RETRY_TOKENS, True
            return found, acceptance
        self._is_retry = self._is_retry and bool(found)
        length = length or min(TRIED_LENGTH, max_tokens)
        if found and self._rate(draft_length(acceptance, len(found), 1, 0, self._times), acceptance, 0.0) >= rate:
            return found, acceptance
        if not self._model.read(self._tokens):
            return found, acceptance
        self._guess = self._model.guess(self._tokens, length)
        return (self._guess, self._model.acceptance) if self._guess else (found, acceptance)

    def extend(self, tokens: Sequence[int]) -> None:
        """These tokens came next."""
        self._lookup.extend(tokens)
        self._tokens += tokens
        self._rest -= len(tokens)
        if self._guess:
            compared = min(len(tokens), len(self._guess))
            right = next((i for i in range(compared) if tokens[i] != self._guess[i]), compared)
            self._model.learn(right, int(right < compared))
            self._guess = []

    def _best(self, max_tokens: int) -> tuple[int, float]:
        """The length of guess that yields most tokens a millisecond, and how many; 0 where none pays."""
        cost = self._model.ms_per_token
        if cost is None:
            return min(UNTIMED_LENGTH, max_tokens), 0.0
        best, best_rate = 0, self._rate(0, 0.0, 0.0)
        for length in (length for length in LENGTHS if length <= max_tokens):
            rate = self._rate(length, self._model.acceptance, cost)
            if rate > best_rate:
                best, best_rate = length, rate
        return best, best_rate

    def _rate(self, length: int, acceptance: float, cost_ms: float) -> float:
        return expected_tokens(acceptance, length) / (self._times.estimate(1 + length) + length * cost_ms)
