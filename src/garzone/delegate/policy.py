"""Decides who should do a task, from what is known of it and how such tasks ended before. Pure: opens and runs nothing.

Starts from the table people wrote by hand (what is mechanical and checkable stays here; what needs judgement goes back)
and moves towards what this repository, kind, model and size have shown.
"""

from __future__ import annotations

from dataclasses import dataclass

from garzone.core.task import Route, TaskKind
from garzone.delegate import pricing
from garzone.delegate.belief import Belief, Cell, History, size_class
from garzone.delegate.instruction import Obstacle, read_instruction
from garzone.delegate.speed import Expected, Pace

# What delegating costs the coordinator whatever comes of it, in fresh tokens: the call it writes, the result it reads
# (a text of about 400 characters), and one more turn, which reads the whole context again from the cache.
CALL_TOKENS = 100
RESULT_TOKENS = 150
TURN_TOKENS = pricing.TURN_OUTPUT_TOKENS
CACHE_READ_TOKENS = pricing.CONTEXT_TOKENS // 10  # what a turn's cache read is worth in fresh tokens: a tenth
# What a failure costs on top: reading the post-mortem and planning again.
FAILURE_TOKENS = 200
PATCH_TOKENS = 150  # a bounded task's patch, before it is known

UNCHECKED, UNCHECKED_TASKS = 0.15, 20.0  # without a check nothing can be proved, whatever was seen
# What it costs on top when the answer comes after the coordinator's prompt cache has gone: its context is written anew.
COLD_CACHE_TOKENS = round(pricing.CONTEXT_TOKENS * pricing.CACHE_WRITE) - CACHE_READ_TOKENS
CURIOSITY = 0.25  # standard deviations of doubt in a cell's favour, so that a bad start is not the end


@dataclass(frozen=True, slots=True)
class FileFacts:
    """A file the task is about."""

    path: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """What a task would be done on: a name that stays the same (`AMD`, `CPU`, a server's URL), "" where unknown.

    `roof_tokens_per_s` is what it could write at best with the task's model; None where nobody can say.
    """

    name: str = ""
    roof_tokens_per_s: float | None = None


@dataclass(frozen=True, slots=True)
class TaskFacts:
    """What is known of a task before anything is run.

    `baseline_tokens` is what the coordinator would spend on it alone, in fresh tokens; None estimates it from the
    files. `alone_turns` is in how many turns, each of which reads the context again. `available` is False for a kind
    this garzone does not do. After `timeout_s` the worker gives up.
    """

    kind: TaskKind
    instruction: str
    repo: str = ""
    model: str = ""
    files: tuple[FileFacts, ...] = ()
    has_check: bool = True
    device: DeviceFacts = DeviceFacts()
    timeout_s: float = 600.0
    available: bool = True
    baseline_tokens: int | None = None
    alone_turns: int = pricing.ALONE_TURNS

    @property
    def size_bytes(self) -> int:
        """Of all files together."""
        return sum(file.size_bytes for file in self.files)

    @property
    def size(self) -> str:
        """`small`, `medium` or `large`."""
        return size_class(self.size_bytes)


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
    expected_seconds: float = 0.0
    device: str = ""


def believe(facts: TaskFacts, history: History) -> Belief:
    """How likely the worker, given the time, gets this task proved."""
    if not facts.has_check:
        return Belief(UNCHECKED * UNCHECKED_TASKS, (1 - UNCHECKED) * UNCHECKED_TASKS)
    return history.believe(Cell(facts.kind.value, facts.model, facts.size, facts.repo))


def expect(facts: TaskFacts, pace: Pace) -> Expected:
    """How long this task takes the worker, on the device it would be done on."""
    return pace.expect(facts.model, facts.device.name, facts.size_bytes, facts.device.roof_tokens_per_s)


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


def route(facts: TaskFacts, history: History, pace: Pace | None = None) -> RouteDecision:
    """Local, if it pays; the coordinator otherwise.

    What the model can do is one thing, what the device does in time another: a task is proved if both hold, and one
    that takes longer than the coordinator's prompt cache lives costs its whole context again, however it ends.

    A cell that has shown little gets the benefit of the doubt (CURIOSITY deviations; they shrink with each task): what
    is never tried is never learnt. `expected_value_tokens` is always at the mean.
    """
    belief, time = believe(facts, history), expect(facts, pace or Pace())
    gain, loss = stakes(facts)
    in_time = 1 - time.probability_after(facts.timeout_s)
    waiting = COLD_CACHE_TOKENS * time.probability_after(pricing.CACHE_LIFE_S)
    probability = belief.mean * in_time
    value = probability * gain - (1 - probability) * loss - waiting
    break_even = min(1.0, (loss + waiting) / (gain + loss)) if gain + loss > 0 else 1.0

    def decide(to: Route, reason: str, suggestion: tuple[str, ...] = ()) -> RouteDecision:
        return RouteDecision(
            to,
            round(value),
            reason,
            suggestion,
            probability,
            break_even,
            belief.num_observed,
            expected_seconds=time.seconds,
            device=facts.device.name,
        )

    if not facts.available:
        return decide(Route.COORDINATOR, f"garzone does not do {facts.kind.value} yet")
    reading = read_instruction(facts.instruction)
    if reading.obstacle is not Obstacle.NONE:
        return decide(Route.COORDINATOR, reading.reason, reading.suggestion)
    seen = f"{belief.num_observed} such tasks seen" if belief.num_observed else "no such task seen yet"
    odds = f"{probability:.0%} likely to be proved ({seen}), break-even at {break_even:.0%}, {_time(facts, time)}"
    if gain <= 0:
        return decide(Route.COORDINATOR, f"too small: doing it costs about what delegating does; {odds}")
    if value > 0:
        return decide(Route.LOCAL, f"worth about {value:.0f} coordinator tokens: {odds}")
    hopeful = min(1.0, belief.mean + CURIOSITY * belief.deviation) * in_time
    if hopeful > break_even:
        return decide(Route.LOCAL, f"worth a try, though {-value:.0f} tokens may be lost: {odds}")
    advice = () if facts.has_check else ("give a check that fails now and passes when it is done (--check)",)
    if facts.has_check and belief.mean > loss / (gain + loss):
        advice = ("a smaller model, or a faster device: it is the time that makes it a loss",)
    return decide(Route.COORDINATOR, f"would lose about {-value:.0f} tokens: {odds}", advice)


def _time(facts: TaskFacts, time: Expected) -> str:
    where = f" on {facts.device.name}" if facts.device.name else ""
    known = "" if time.num_observed or facts.device.roof_tokens_per_s else ", a guess"
    return f"about {time.seconds:.0f} s{where}{known}"
