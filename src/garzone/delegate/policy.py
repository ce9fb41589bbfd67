"""Decides who should do a task, from what is known of it and how such tasks ended before. Pure: opens and runs nothing.

Starts from the table people wrote by hand (what is mechanical and checkable stays here; what needs judgement goes back)
and moves towards what this repository, kind, model and size have shown.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from garzone.core.task import Route, TaskKind
from garzone.delegate import pricing
from garzone.delegate.instruction import Obstacle, read_instruction

# What delegating costs the coordinator whatever comes of it, in fresh tokens: the call it writes, the result it reads
# (a text of about 400 characters), and one more turn, which reads the whole context again from the cache.
CALL_TOKENS = 100
RESULT_TOKENS = 150
TURN_TOKENS = pricing.TURN_OUTPUT_TOKENS
CACHE_READ_TOKENS = pricing.CONTEXT_TOKENS // 10  # what a turn's cache read is worth in fresh tokens: a tenth
# What a failure costs on top: reading the post-mortem and planning again.
FAILURE_TOKENS = 200
PATCH_TOKENS = 150  # a bounded task's patch, before it is known

# The hand-written table: share of tasks of a kind that a 7B coding model gets proved. fix: Aider's published runs, 58 %
# in two tries; others: accepted behind deterministic gates (claude-code#88916), 50 to 83 %. Worth PRIOR_TASKS tasks.
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
PRIOR_TASKS = 2.0
# How many tasks of its own a finer cell needs to weigh as much as what is known around it. Of 6, 10 and 16, the one
# with the smallest regret and the best calibration in all four simulated streams (garzone bench delegation).
LEVEL_TASKS = 16.0
UNCHECKED = 0.15  # without a check nothing can be proved, whatever the model
SIZES = ((4_000, "small"), (16_000, "medium"))  # bytes; beyond: large. 16 kB is half of an 8k context in code
CURIOSITY = 0.3  # standard deviations of doubt in a cell's favour, so that a bad start is not the end


@dataclass(frozen=True, slots=True)
class FileFacts:
    """A file the task is about."""

    path: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class TaskFacts:
    """What is known of a task before anything is run.

    `baseline_tokens` is what the coordinator would spend on it alone, in fresh tokens; None estimates it from the
    files. `alone_turns` is in how many turns, each of which reads the context again. `available` is False for a kind
    this garzone does not do.
    """

    kind: TaskKind
    instruction: str
    repo: str = ""
    model: str = ""
    files: tuple[FileFacts, ...] = ()
    has_check: bool = True
    device: str = ""
    available: bool = True
    baseline_tokens: int | None = None
    alone_turns: int = pricing.ALONE_TURNS

    @property
    def size(self) -> str:
        """`small`, `medium` or `large`."""
        return size_class(sum(file.size_bytes for file in self.files))


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
class RouteDecision:
    """Who should do it, what delegating is worth in coordinator tokens (negative: a loss), and why, in one line.

    `suggestion` says what to do instead, for instance how to split the task.
    """

    route: Route
    expected_value_tokens: int
    reason: str
    suggestion: tuple[str, ...] = ()
    success_probability: float = 0.0
    break_even_probability: float = 0.0
    num_observed: int = 0


@dataclass(slots=True)
class History:
    """How many tasks of each cell ended proved, and how many not. Filled from the ledger, once per decision."""

    _counts: dict[tuple[str, ...], tuple[int, int]] = field(default_factory=dict[tuple[str, ...], tuple[int, int]])

    @classmethod
    def of(cls, observations: Iterable[Observation]) -> History:
        """The history of these tasks."""
        history = cls()
        for seen in observations:
            history.record(seen)
        return history

    def record(self, seen: Observation) -> None:
        """One more task has ended."""
        size = size_class(seen.size_bytes)
        factors = ((f"{name}:{value}", seen.kind) for name, value in _factors(seen.model, size, seen.repo))
        for cell in (*_cells(seen.repo, seen.kind, seen.model, size), *factors):
            proved, not_proved = self._counts.get(cell, (0, 0))
            self._counts[cell] = (proved + seen.proved, not_proved + (not seen.proved))

    def counts(self, cell: tuple[str, ...]) -> tuple[int, int]:
        """(proved, not proved) in a cell."""
        return self._counts.get(cell, (0, 0))


def size_class(size_bytes: int) -> str:
    """How big the files of a task are, in three classes."""
    return next((name for limit, name in SIZES if size_bytes <= limit), "large")


def believe(facts: TaskFacts, history: History) -> Belief:
    """How likely this task is to end proved.

    Each cell (kind; with the model; with the size; with the repository) is a Beta posterior worth LEVEL_TASKS tasks
    before its own. Its prior is the mean of the cell around it, moved by what the new model, size or repository did to
    tasks of all kinds: a model that is strong at fixes is likely to be at refactoring, and a new repository starts from
    what the model did elsewhere.
    """
    table = {kind.value: PRIOR[kind] if facts.has_check else UNCHECKED for kind in PRIOR}
    means = {kind: _posterior(history, (kind,), mean, PRIOR_TASKS).mean for kind, mean in table.items()}
    cells = _cells(facts.repo, facts.kind.value, facts.model, facts.size)
    belief = _posterior(history, cells[0], table[facts.kind.value], PRIOR_TASKS)
    for cell, (name, value) in zip(cells[1:], _factors(facts.model, facts.size, facts.repo), strict=True):
        shift = _log_odds_shift(history, f"{name}:{value}", means)
        belief = _posterior(history, cell, _moved(belief.mean, shift), LEVEL_TASKS)
    return belief


def _posterior(history: History, cell: tuple[str, ...], mean: float, weight: float) -> Belief:
    proved, not_proved = history.counts(cell)
    return Belief(mean * weight + proved, (1 - mean) * weight + not_proved, proved + not_proved)


def _log_odds_shift(history: History, factor: str, means: dict[str, float]) -> float:
    """How much better than their kinds the tasks of a model, size or repository ended, over all kinds."""
    proved = total = expected = 0.0
    for kind, mean in means.items():
        good, bad = history.counts((factor, kind))
        proved, total, expected = proved + good, total + good + bad, expected + (good + bad) * mean
    if not total:
        return 0.0
    usual = expected / total
    return _log_odds((proved + usual * LEVEL_TASKS) / (total + LEVEL_TASKS)) - _log_odds(usual)


def _log_odds(probability: float) -> float:
    return math.log(probability / (1 - probability))


def _moved(probability: float, shift: float) -> float:
    return 1 / (1 + math.exp(-_log_odds(probability) - shift))


def stakes(facts: TaskFacts) -> tuple[float, float]:
    """What a success gains (negative for a task too small) and what a failure loses, in coordinator tokens.

    Cache reads are in it, at what they cost in fresh tokens.
    """
    spent = CALL_TOKENS + RESULT_TOKENS + TURN_TOKENS + CACHE_READ_TOKENS
    alone = facts.baseline_tokens
    if alone is None:
        nothing = pricing.Spent(0, 0)
        read = -(-sum(file.size_bytes for file in facts.files) // pricing.CHARS_PER_TOKEN)
        alone = pricing.baselines(read, PATCH_TOKENS, nothing)[0].tokens
    return alone + facts.alone_turns * CACHE_READ_TOKENS - spent, spent + FAILURE_TOKENS


def route(facts: TaskFacts, history: History) -> RouteDecision:
    """Local, if it pays; the coordinator otherwise.

    A cell that has shown little gets the benefit of the doubt (CURIOSITY deviations; they shrink with each task): what
    is never tried is never learnt. `expected_value_tokens` is always at the mean.
    """
    belief = believe(facts, history)
    gain, loss = stakes(facts)
    value = belief.mean * gain - (1 - belief.mean) * loss
    break_even = loss / (gain + loss) if gain + loss > 0 else 1.0

    def decide(to: Route, reason: str, suggestion: tuple[str, ...] = ()) -> RouteDecision:
        return RouteDecision(
            to, round(value), reason, suggestion, belief.mean, min(1.0, break_even), belief.num_observed
        )

    if not facts.available:
        return decide(Route.COORDINATOR, f"garzone does not do {facts.kind.value} yet")
    reading = read_instruction(facts.instruction)
    if reading.obstacle is not Obstacle.NONE:
        return decide(Route.COORDINATOR, reading.reason, reading.suggestion)
    seen = f"{belief.num_observed} such tasks seen" if belief.num_observed else "no such task seen yet"
    odds = f"{belief.mean:.0%} likely to be proved ({seen}), break-even at {min(1.0, break_even):.0%}"
    if gain <= 0:
        return decide(Route.COORDINATOR, f"too small: doing it costs about what delegating does; {odds}")
    if value > 0:
        return decide(Route.LOCAL, f"worth about {value:.0f} coordinator tokens: {odds}")
    hopeful = min(1.0, belief.mean + CURIOSITY * belief.deviation)
    if hopeful > break_even:
        return decide(Route.LOCAL, f"worth a try, though {-value:.0f} tokens may be lost: {odds}")
    advice = () if facts.has_check else ("give a check that fails now and passes when it is done (--check)",)
    return decide(Route.COORDINATOR, f"would lose about {-value:.0f} tokens: {odds}", advice)


def _cells(repo: str, kind: str, model: str, size: str) -> tuple[tuple[str, ...], ...]:
    """From the coarsest to the finest."""
    return ((kind,), (kind, model), (kind, model, size), (kind, model, size, repo))


def _factors(model: str, size: str, repo: str) -> tuple[tuple[str, str], ...]:
    """What each cell has that the one around it does not, in the order of `_cells`."""
    return (("model", model), ("size", size), ("repo", repo))
