"""Simulated streams of tasks with known success probabilities, and what the policy makes of them.

Measures regret against an oracle that knows every probability, next to always and never delegating, and calibration.
Draws nothing, runs no task.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from statistics import median
from typing import Any

from garzone.core.task import Route, TaskKind
from garzone.delegate.belief import History, Observation
from garzone.delegate.policy import COLD_CACHE_TOKENS, DeviceFacts, FileFacts, TaskFacts, route, stakes
from garzone.delegate.pricing import CACHE_LIFE_S
from garzone.delegate.speed import TASK_TOKENS, Expected, Pace, Timing

NUM_TASKS = 2_000
CALIBRATED_AFTER = 500  # tasks
NUM_BINS = 10
TRUE_SPREAD = 0.7  # of the logarithm of a task's time around its device's pace
SLOW, FAST = 0.4, 25.0  # tokens a second over whole tasks: a large model on two cores, on a graphics card


@dataclass(frozen=True, slots=True)
class Drawn:
    """A task, how likely the worker can do it, and how long it takes in the median."""

    facts: TaskFacts
    probability: float
    seconds: float = TASK_TOKENS / FAST


Stream = Iterator[Drawn]


@dataclass(frozen=True, slots=True)
class Outcome:
    """One stream. Regrets are in coordinator tokens, against the oracle; `optimum` is what that gained."""

    policy: float
    always: float
    never: float
    optimum: float
    calibration_error: float
    delegated: int

    @property
    def regret_ratio(self) -> float:
        """The policy's regret as a share of that of always or never delegating, whichever is smaller."""
        return self.policy / min(self.always, self.never)

    @property
    def missed(self) -> float:
        """The policy's regret as a share of what the oracle gained."""
        return self.policy / self.optimum


@dataclass(frozen=True, slots=True)
class Summary:
    """Several streams of one kind: medians, and the worst."""

    name: str
    num_streams: int
    regret_ratio: float
    worst_regret_ratio: float
    calibration_error: float
    worst_calibration_error: float
    missed: float
    delegated: float

    def to_json(self) -> dict[str, Any]:
        """A document for `--json`."""
        return asdict(self)


def personal_stream(rng: random.Random) -> Stream:
    """One person, one model, two repositories: what is mechanical mostly works, what is not mostly does not."""
    easy = {TaskKind.COMPLETE: 0.9, TaskKind.FIX: 0.75, TaskKind.DOCS: 0.85, TaskKind.TESTS: 0.7}
    hard = {TaskKind.REFACTOR: 0.15, TaskKind.TRANSLATE: 0.08, TaskKind.REVIEW: 0.05, TaskKind.IMPLEMENT: 0.04}
    rates = easy | hard
    for _ in range(NUM_TASKS):
        kind = rng.choice(list(rates))
        size = rng.choice([1500, 8000])
        facts = TaskFacts(
            kind,
            "do it",
            repo=rng.choice(["/a", "/b"]),
            model="m",
            files=(FileFacts("a.py", size),),
            baseline_tokens=round(rng.lognormvariate(math.log(1500 + size / 8), 0.4)),
        )
        yield Drawn(facts, rates[kind] + (0.05 if size < 4000 else -0.03))


def mixed_stream(rng: random.Random, *, average: float) -> Stream:
    """Three repositories, two models, and a probability of its own for each of 144 cells: harder than life.

    Args:
        rng: the source of all that is random in it.
        average: of the kinds' log-odds of success.
    """
    kinds = list(TaskKind)
    by_kind = {kind: rng.gauss(average, 2.0) for kind in kinds}
    by_model = {model: rng.gauss(0, 0.7) for model in ("m1", "m2")}
    by_repo = {repo: rng.gauss(0, 0.5) for repo in ("/a", "/b", "/c")}
    by_size = {1500: 0.5, 8000: 0.0, 40000: -1.0}
    cells: dict[tuple[object, ...], float] = {}
    for _ in range(NUM_TASKS):
        kind, model = rng.choice(kinds), rng.choice(list(by_model))
        repo, size = rng.choice(list(by_repo)), rng.choice(list(by_size))
        common = by_kind[kind] + by_model[model] + by_repo[repo] + by_size[size]
        probability = cells.setdefault((kind, model, repo, size), _logistic(common + rng.gauss(0, 0.6)))
        tokens = round(rng.lognormvariate(math.log(1200 + size / 8), 0.5))
        files = (FileFacts("a.py", size),)
        facts = TaskFacts(kind, "do it", repo=repo, model=model, files=files, baseline_tokens=tokens)
        yield Drawn(facts, probability)


def two_devices_stream(rng: random.Random) -> Stream:
    """The personal stream on two machines, of which one is too slow for most tasks. Nobody says what either reads."""
    for drawn in personal_stream(rng):
        name, pace = rng.choice([("slow", SLOW), ("fast", FAST)])
        facts = replace(drawn.facts, device=DeviceFacts(name))
        yield Drawn(facts, drawn.probability, TASK_TOKENS / pace)


def simulate(stream: Stream, rng: random.Random, *, knows_devices: bool = True) -> Outcome:
    """Let the policy decide every task of a stream, learning from those that it delegates.

    Args:
        stream: the tasks.
        rng: of the worker's luck.
        knows_devices: False hides from the policy where tasks are done and how long they took.
    """
    history, pace = History(), Pace()
    policy = always = never = optimum = 0.0
    delegated = 0
    bins: dict[int, list[tuple[float, bool]]] = {}
    for number, drawn in enumerate(stream):
        facts = drawn.facts if knows_devices else replace(drawn.facts, device=DeviceFacts())
        value = _worth(drawn)
        best = max(value, 0.0)
        optimum += best
        always += best - value
        never += best
        decision = route(facts, history, pace)
        proved = rng.random() < drawn.probability  # drawn for every task, so that policies see the same luck
        seconds = drawn.seconds * math.exp(rng.gauss(0, TRUE_SPREAD))
        if decision.route is Route.COORDINATOR:
            policy += best
            continue
        delegated += 1
        policy += best - value
        in_time = seconds <= facts.timeout_s
        proved = proved and in_time
        if number >= CALIBRATED_AFTER:
            said = decision.success_probability
            bins.setdefault(min(int(said * NUM_BINS), NUM_BINS - 1), []).append((said, proved))
        if in_time or not knows_devices:
            history.record(Observation(facts.repo, facts.kind.value, facts.model, facts.size_bytes, proved))
        if knows_devices:
            took = min(seconds, facts.timeout_s)
            written = max(1, round(TASK_TOKENS * took / seconds))  # one that is cut off has written less
            pace.record(Timing(facts.model, facts.device.name, facts.size_bytes, written, took))
    num = sum(map(len, bins.values()))
    error = sum(abs(sum(p for p, _ in members) - sum(proved for _, proved in members)) for members in bins.values())
    return Outcome(policy, always, never, optimum, error / max(num, 1), delegated)


def _worth(drawn: Drawn) -> float:
    """What delegating a task gains, for who knows every probability."""
    gain, loss = stakes(drawn.facts)
    time = Expected(drawn.seconds, TRUE_SPREAD)
    late, cold = time.probability_after(drawn.facts.timeout_s), time.probability_after(CACHE_LIFE_S)
    probability = drawn.probability * (1 - late)
    return probability * gain - (1 - probability) * loss - cold * COLD_CACHE_TOKENS


def summarise(name: str, outcomes: list[Outcome]) -> Summary:
    """Medians and the worst of several streams."""
    ratios = sorted(outcome.regret_ratio for outcome in outcomes)
    errors = sorted(outcome.calibration_error for outcome in outcomes)
    return Summary(
        name,
        len(outcomes),
        median(ratios),
        ratios[-1],
        median(errors),
        errors[-1],
        median(outcome.missed for outcome in outcomes),
        median(outcome.delegated for outcome in outcomes) / NUM_TASKS,
    )


def measure(num_streams: int = 10) -> list[Summary]:
    """All kinds of streams, so many of each, with seeds 0, 1, 2, ..."""
    kinds: list[tuple[str, Callable[[random.Random], Stream]]] = [
        ("personal", personal_stream),
        ("personal, two devices", two_devices_stream),
        ("mixed, a weak model", partial(mixed_stream, average=-1.0)),
        ("mixed", partial(mixed_stream, average=0.0)),
        ("mixed, a strong model", partial(mixed_stream, average=1.0)),
    ]
    return [
        summarise(
            name,
            [simulate(make(random.Random(seed)), random.Random(seed + 1000)) for seed in range(num_streams)],  # noqa: S311
        )
        for name, make in kinds
    ]


def _logistic(value: float) -> float:
    return 1 / (1 + math.exp(-value))
