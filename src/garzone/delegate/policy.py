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
# (a text of about 400 characters), and one more turn.
CALL_TOKENS = 100
RESULT_TOKENS = 150
TURN_TOKENS = pricing.TURN_OUTPUT_TOKENS
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
LEVEL_TASKS = 10.0  # how many tasks of its own a finer cell needs to weigh as much as the coarser one it lies in
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

    `baseline_tokens` is what the coordinator would spend on it alone; None estimates it from the files. `available` is
    False for a kind this garzone does not do.
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
        for cell in _cells(seen.repo, seen.kind, seen.model, size_class(seen.size_bytes)):
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

    Each cell (kind; with the model; with the size; with the repository) is a Beta posterior whose prior is the mean of
    the cell around it, worth LEVEL_TASKS tasks: a new repository starts from what the model did elsewhere.
    """
    mean = PRIOR[facts.kind] if facts.has_check else UNCHECKED
    weight, alpha, beta, num_observed = PRIOR_TASKS, 0.0, 0.0, 0
    for cell in _cells(facts.repo, facts.kind.value, facts.model, facts.size):
        proved, not_proved = history.counts(cell)
        alpha, beta = mean * weight + proved, (1 - mean) * weight + not_proved
        mean, weight, num_observed = alpha / (alpha + beta), LEVEL_TASKS, proved + not_proved
    return Belief(alpha, beta, num_observed)


def stakes(facts: TaskFacts) -> tuple[float, float]:
    """What a success gains (negative for a task too small) and what a failure loses, in coordinator tokens."""
    spent = CALL_TOKENS + RESULT_TOKENS + TURN_TOKENS
    alone = facts.baseline_tokens
    if alone is None:
        nothing = pricing.Spent(0, 0)
        read = -(-sum(file.size_bytes for file in facts.files) // pricing.CHARS_PER_TOKEN)
        alone = pricing.baselines(read, PATCH_TOKENS, nothing)[0].tokens
    return alone - spent, spent + FAILURE_TOKENS


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
