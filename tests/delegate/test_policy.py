"""The policy: the hand-written table at first, what was seen later; its regret and its calibration by simulation."""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from garzone.core.task import Route, TaskKind
from garzone.delegate.policy import Belief, FileFacts, History, Observation, TaskFacts, believe, route, stakes
from tests.numbers import record_number

FACTS = TaskFacts(TaskKind.FIX, "off by one in paginate", repo="/r", model="m", files=(FileFacts("a.py", 2000),))
NUM_TASKS = 2000


def seen(facts: TaskFacts, proved: bool) -> Observation:
    return Observation(facts.repo, facts.kind.value, facts.model, sum(f.size_bytes for f in facts.files), proved)


@pytest.mark.parametrize(
    "kind", [TaskKind.COMPLETE, TaskKind.FIX, TaskKind.REFACTOR, TaskKind.TESTS, TaskKind.DOCS, TaskKind.TRANSLATE]
)
def test_what_the_table_calls_local_starts_local(kind: TaskKind) -> None:
    decision = route(replace(FACTS, kind=kind), History())
    assert decision.route is Route.LOCAL
    assert decision.expected_value_tokens > 0


def test_a_design_question_goes_to_the_coordinator_with_a_suggestion() -> None:
    decision = route(replace(FACTS, instruction="should we split the module?"), History())
    assert decision.route is Route.COORDINATOR
    assert "design decision" in decision.reason
    assert decision.suggestion


def test_several_tasks_in_one_come_back_split() -> None:
    decision = route(replace(FACTS, instruction="fix the pager and add a test"), History())
    assert decision.route is Route.COORDINATOR
    assert decision.suggestion == ("fix the pager", "add a test")


def test_a_kind_that_is_not_there_yet_is_never_local() -> None:
    decision = route(replace(FACTS, available=False), History())
    assert decision.route is Route.COORDINATOR


def test_a_task_without_a_check_is_not_worth_it() -> None:
    decision = route(replace(FACTS, has_check=False), History())
    assert decision.route is Route.COORDINATOR
    assert "--check" in decision.suggestion[0]


def test_a_task_that_costs_less_than_delegating_it_stays_with_the_coordinator() -> None:
    decision = route(replace(FACTS, baseline_tokens=300), History())
    assert decision.route is Route.COORDINATOR
    assert "too small" in decision.reason


def test_failures_turn_a_cell_away_and_only_that_cell() -> None:
    history = History.of([seen(FACTS, False)] * 12)
    assert route(FACTS, history).route is Route.COORDINATOR
    assert route(replace(FACTS, kind=TaskKind.DOCS), history).route is Route.LOCAL


def test_what_was_seen_elsewhere_counts_less_than_what_was_seen_here() -> None:
    elsewhere = replace(FACTS, repo="/other")
    here = History.of([seen(FACTS, True)] * 10)
    there = History.of([seen(elsewhere, True)] * 10)
    assert believe(FACTS, here).mean > believe(FACTS, there).mean > believe(FACTS, History()).mean
    assert believe(FACTS, there).num_observed == 0


@given(st.lists(st.booleans(), max_size=60))
def test_one_more_success_never_lowers_the_belief_and_one_more_failure_never_raises_it(outcomes: list[bool]) -> None:
    before = believe(FACTS, History.of(seen(FACTS, proved) for proved in outcomes)).mean
    better = believe(FACTS, History.of(seen(FACTS, proved) for proved in [*outcomes, True])).mean
    worse = believe(FACTS, History.of(seen(FACTS, proved) for proved in [*outcomes, False])).mean
    assert worse < before < better
    assert 0 < before < 1


@given(st.integers(0, 10**6), st.lists(st.booleans(), max_size=30))
def test_a_decision_is_the_sign_of_its_value_unless_it_says_that_it_is_a_try(size: int, outcomes: list[bool]) -> None:
    facts = replace(FACTS, files=(FileFacts("a.py", size),))
    decision = route(facts, History.of(seen(facts, proved) for proved in outcomes))
    if decision.expected_value_tokens > 0:
        assert decision.route is Route.LOCAL
    elif decision.route is Route.LOCAL:
        assert "worth a try" in decision.reason
    assert "\n" not in decision.reason


def test_the_spread_of_a_belief_is_that_of_a_beta_distribution() -> None:
    assert Belief(1, 1).deviation == pytest.approx(math.sqrt(1 / 12))
    assert Belief(300, 100).deviation < 0.03


# --- simulated streams with known success probabilities


@dataclass(frozen=True)
class Outcome:
    """Regret in tokens, against an oracle that knows every probability."""

    policy: float
    always: float
    never: float
    optimum: float
    calibration_error: float

    @property
    def worst_baseline_beaten(self) -> float:
        """The policy's regret as a share of the better one of the two fixed policies' regrets."""
        return self.policy / min(self.always, self.never)


def personal_stream(rng: random.Random) -> Iterator[tuple[TaskFacts, float]]:
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
        yield facts, rates[kind] + (0.05 if size < 4000 else -0.03)


def mixed_stream(rng: random.Random, *, average: float) -> Iterator[tuple[TaskFacts, float]]:
    """Three repositories, two models, and a probability of its own for every cell: harder than life."""

    def logistic(value: float) -> float:
        return 1 / (1 + math.exp(-value))

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
        probability = cells.setdefault((kind, model, repo, size), logistic(common + rng.gauss(0, 0.6)))
        tokens = round(rng.lognormvariate(math.log(1200 + size / 8), 0.5))
        yield (
            TaskFacts(kind, "do it", repo=repo, model=model, files=(FileFacts("a.py", size),), baseline_tokens=tokens),
            probability,
        )


def simulate(stream: Iterator[tuple[TaskFacts, float]], rng: random.Random) -> Outcome:
    """Let the policy decide every task of a stream, learning from those that it delegates."""
    history = History()
    policy = always = never = optimum = 0.0
    bins: dict[int, list[tuple[float, bool]]] = {}
    for number, (facts, probability) in enumerate(stream):
        gain, loss = stakes(facts)
        value = probability * gain - (1 - probability) * loss
        best = max(value, 0.0)
        optimum += best
        always += best - value
        never += best
        decision = route(facts, history)
        proved = rng.random() < probability
        if decision.route is Route.COORDINATOR:
            policy += best
            continue
        policy += best - value
        if number >= 500:
            bins.setdefault(int(decision.success_probability * 10), []).append((decision.success_probability, proved))
        history.record(seen(facts, proved))
    num = sum(map(len, bins.values()))
    error = sum(abs(sum(p for p, _ in members) - sum(proved for _, proved in members)) for members in bins.values())
    return Outcome(policy, always, never, optimum, error / num)


def test_regret_is_at_most_a_tenth_of_the_better_fixed_policys_and_probabilities_are_calibrated() -> None:
    outcomes = [simulate(personal_stream(random.Random(seed)), random.Random(seed + 1000)) for seed in range(10)]
    regret = sorted(outcome.worst_baseline_beaten for outcome in outcomes)
    error = sorted(outcome.calibration_error for outcome in outcomes)
    record_number("policy: regret / better fixed policy's, worst of 10 streams of 2,000", regret[-1], "at most 0.10")
    record_number("policy: calibration error after 500, worst of 10", error[-1], "under 0.05")
    assert regret[-1] <= 0.10
    assert error[-1] < 0.05


@pytest.mark.parametrize("average", [-1.0, 0.0, 1.0])
def test_in_harder_streams_little_of_what_could_be_saved_is_missed(average: float) -> None:
    outcomes = [
        simulate(mixed_stream(random.Random(seed), average=average), random.Random(seed + 1000)) for seed in range(5)
    ]
    missed = sorted(outcome.policy / outcome.optimum for outcome in outcomes)[2]
    record_number(f"policy: share of the optimum missed in mixed streams ({average:+.0f})", missed, "at most 0.10")
    assert missed <= 0.10
    assert sorted(outcome.calibration_error for outcome in outcomes)[2] < 0.05
    assert all(outcome.policy < outcome.never for outcome in outcomes)
