"""How long a task will take on a device, learnt from how long tasks took there, and what waiting for it costs. Pure.

Whether a model can do a task is `belief`'s; the same model on a slower device is as able, but may not be done in time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from garzone.delegate.belief import size_class

# Before anything was seen. `garzone delegate fix` on the three samples of `make demo` (smollm2:135m, two busy cores)
# wrote 85 to 707 tokens in 14 to 18 s, which are 264 tokens and 16 tokens a second in the geometric mean.
TASK_TOKENS = 300.0  # of all attempts at a task together
UNKNOWN_PACE = 15.0  # tokens a second over a whole task, prompts and checks included, on a device nobody knows
FIXED_S = 10.0  # loading the model, a worktree, the checks; whatever the device
SHARE_OF_ROOF = 0.5  # reached of what a device could write token by token: its bandwidth over the model's bytes
SPREAD = 0.8  # of the logarithm of a task's time around what is expected of it
# As how many tasks weighs what is expected before any was seen: a guess may be wrong by a factor of three to four, a
# roof by two, the length of answers by less.
GUESS_TASKS, ROOF_TASKS, LENGTH_TASKS = 0.5, 1.5, 4.0


@dataclass(frozen=True, slots=True)
class Timing:
    """What one task took. `tokens` are those of all answers; `device` is a name that stays the same (`AMD`, a URL)."""

    model: str
    device: str
    size_bytes: int
    tokens: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Expected:
    """When a task will be done: its logarithm is normal around that of `seconds`. `num_observed` tasks stand behind."""

    seconds: float
    spread: float
    num_observed: int = 0

    def probability_after(self, limit_s: float) -> float:
        """How likely it takes longer."""
        return 0.5 * math.erfc(math.log(limit_s / self.seconds) / (self.spread * math.sqrt(2)))


@dataclass(slots=True)
class _Mean:
    """The mean of logarithms."""

    total: float = 0.0
    count: int = 0

    def add(self, value: float) -> None:
        self.total += math.log(value)
        self.count += 1

    def toward(self, prior: float, weight: float) -> float:
        """With a prior that weighs so much."""
        return math.exp((self.total + weight * math.log(prior)) / (self.count + weight))


@dataclass(slots=True)
class Pace:
    """How many tokens tasks need by size, and how fast they come by model and device."""

    _tokens: dict[str, _Mean] = field(default_factory=dict[str, _Mean])
    _speeds: dict[tuple[str, str], _Mean] = field(default_factory=dict[tuple[str, str], _Mean])

    @classmethod
    def of(cls, timings: Iterable[Timing]) -> Pace:
        """What these tasks tell."""
        pace = cls()
        for timing in timings:
            pace.record(timing)
        return pace

    def record(self, timing: Timing) -> None:
        """One more task has ended; one that wrote nothing tells nothing."""
        if timing.tokens <= 0 or timing.seconds <= 0:
            return
        size = size_class(timing.size_bytes)
        self._tokens.setdefault(size, _Mean()).add(timing.tokens)
        self._speeds.setdefault((timing.model, timing.device), _Mean()).add(timing.tokens / timing.seconds)

    def expect(self, model: str, device: str, size_bytes: int, roof_tokens_per_s: float | None = None) -> Expected:
        """How long the next task takes.

        Args:
            model: who does it.
            device: where.
            size_bytes: of the files it is about.
            roof_tokens_per_s: what the device could write at best with this model; None where that is not known.
        """
        seen = self._speeds.get((model, device), _Mean())
        tokens = self._tokens.get(size_class(size_bytes), _Mean()).toward(TASK_TOKENS, LENGTH_TASKS)
        prior, weight = UNKNOWN_PACE, GUESS_TASKS
        if roof_tokens_per_s is not None:
            prior, weight = TASK_TOKENS / (FIXED_S + TASK_TOKENS / (SHARE_OF_ROOF * roof_tokens_per_s)), ROOF_TASKS
        spread = SPREAD * math.sqrt(1 + 1 / (seen.count + weight))  # of a task, and of what is not known of the mean
        return Expected(tokens / seen.toward(prior, weight), spread, seen.count)
