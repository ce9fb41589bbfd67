"""How likely a task is to end proved, learnt from how tasks of its kind, model, size and repository ended. Pure.

Each cell (kind, model, size, repository) is a Beta posterior. What a cell has not seen itself it borrows: its prior is
the sum, in log-odds, of what is known of its kind, of the model, of the size and of the repository, each fitted to
every task there was, and drawn towards the hand-written table as long as little is known. Decides nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from garzone.core.task import TaskKind

# The hand-written table: share of tasks of a kind that a 7B coding model gets proved. fix: Aider's published runs, 58 %
# in two tries; others: accepted behind deterministic gates (claude-code#88916), 50 to 83 %.
PRIOR = {
    TaskKind.COMPLETE: 0.80,
    TaskKind.FIX: 0.60,
    TaskKind.REFACTOR: 0.60,
    TaskKind.TESTS: 0.60,
    TaskKind.DOCS: 0.75,
    TaskKind.TRANSLATE: 0.70,
    TaskKind.REVIEW: 0.40,
    TaskKind.IMPLEMENT: 0.40,
}
SIZES = ((4_000, "small"), (16_000, "medium"))  # bytes; beyond: large. 16 kB is half of an 8k context in code
# How far apart kinds, models, sizes, repositories and single cells lie, in log-odds (standard deviations): what is
# assumed before anything is seen. See garzone bench delegation, and docs/delegation.md for what else was tried.
SPREAD = {"kind": 2.0, "model": 0.7, "size": 0.7, "repo": 0.5}
CELL_SPREAD = 0.5
_LEAST_WEIGHT, _MOST_WEIGHT = 2.0, 40.0  # tasks that a prior is worth, however unsure or sure it is
_REFIT_GROWTH = 1.02  # refit when so much more has been seen: a hundredth of the tasks moves nothing
_MAX_SWEEPS, _SETTLED = 30, 1e-3


@dataclass(frozen=True, slots=True)
class Observation:
    """How one task ended that was delegated."""

    repo: str
    kind: str
    model: str
    size_bytes: int
    proved: bool


@dataclass(frozen=True, slots=True)
class Belief:
    """Beta(alpha, beta) about a probability of success; `num_observed` tasks of just this cell stand behind it."""

    alpha: float
    beta: float
    num_observed: int = 0

    @property
    def mean(self) -> float:
        """The probability that the next task is proved."""
        return self.alpha / (self.alpha + self.beta)

    @property
    def deviation(self) -> float:
        """Standard deviation of the probability."""
        total = self.alpha + self.beta
        return math.sqrt(self.alpha * self.beta / (total * total * (total + 1)))


@dataclass(frozen=True, slots=True)
class Cell:
    """Tasks that are alike."""

    kind: str
    model: str
    size: str
    repo: str


@dataclass(slots=True)
class _Count:
    """What a cell has seen. `base` is the log-odds of the table for its kind."""

    effects: tuple[str, ...]
    base: float
    proved: int = 0
    total: int = 0


@dataclass(slots=True)
class _Effect:
    """What one kind, model, size or repository does to the log-odds; `precision` is how sure that is."""

    spread: float
    shift: float = 0.0
    precision: float = 0.0
    cells: list[_Count] = field(default_factory=list[_Count])


@dataclass(slots=True)
class History:
    """How many tasks of each cell ended proved, and how many not. Filled from the ledger, once per decision."""

    _cells: dict[Cell, _Count] = field(default_factory=dict[Cell, _Count])
    _effects: dict[str, _Effect] = field(default_factory=dict[str, _Effect])
    _total: int = 0
    _fitted: int = 0

    @classmethod
    def of(cls, observations: Iterable[Observation]) -> History:
        """The history of these tasks."""
        history = cls()
        for seen in observations:
            history.record(seen)
        return history

    def record(self, seen: Observation) -> None:
        """One more task has ended."""
        cell = Cell(seen.kind, seen.model, size_class(seen.size_bytes), seen.repo)
        count = self._cells.get(cell)
        if count is None:
            names = tuple(f"{factor}:{getattr(cell, factor)}" for factor in SPREAD)
            count = self._cells[cell] = _Count(names, _log_odds(_table(cell.kind)))
            for name, spread in zip(names, SPREAD.values(), strict=True):
                self._effects.setdefault(name, _Effect(spread)).cells.append(count)
        count.proved += seen.proved
        count.total += 1
        self._total += 1

    def believe(self, cell: Cell) -> Belief:
        """What is to be expected of the next task of a cell."""
        if self._total > self._fitted * _REFIT_GROWTH:
            self._fit()
        log_odds, variance = _log_odds(_table(cell.kind)), CELL_SPREAD**2
        for factor, spread in SPREAD.items():
            effect = self._effects.get(f"{factor}:{getattr(cell, factor)}")
            if effect is None:
                variance += spread**2
            else:
                log_odds += effect.shift
                variance += 1 / effect.precision
        mean = _logistic(log_odds)
        odds = mean * (1 - mean)
        weight = min(_MOST_WEIGHT, max(_LEAST_WEIGHT, 1 / (variance * odds) - 1))  # the Beta of the same spread
        seen = self._cells.get(cell)
        proved, total = (seen.proved, seen.total) if seen else (0, 0)
        return Belief(mean * weight + proved, (1 - mean) * weight + total - proved, total)

    def _fit(self) -> None:
        """The most probable shifts: one after the other by Newton's method, until none moves."""
        self._fitted = self._total
        for _ in range(_MAX_SWEEPS):
            moved = 0.0
            for effect in self._effects.values():
                gradient, precision = -effect.shift / effect.spread**2, 1 / effect.spread**2
                for cell in effect.cells:
                    expected = _logistic(cell.base + sum(self._effects[name].shift for name in cell.effects))
                    gradient += cell.proved - cell.total * expected
                    precision += cell.total * expected * (1 - expected)
                step = max(-1.0, min(1.0, gradient / precision))
                effect.shift += step
                effect.precision = precision
                moved = max(moved, abs(step))
            if moved < _SETTLED:
                return


def size_class(size_bytes: int) -> str:
    """How big the files of a task are, in three classes."""
    return next((name for limit, name in SIZES if size_bytes <= limit), "large")


def _table(kind: str) -> float:
    return PRIOR[TaskKind(kind)]


def _log_odds(probability: float) -> float:
    return math.log(probability / (1 - probability))


def _logistic(value: float) -> float:
    return 1 / (1 + math.exp(-value))
