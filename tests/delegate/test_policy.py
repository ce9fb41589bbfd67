"""The policy: the hand-written table at first, what was seen later; its regret and its calibration by simulation."""

import math
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from garzone.bench.policy_streams import (
    Outcome,
    mixed_stream,
    personal_stream,
    simulate,
    summarise,
    two_devices_stream,
)
from garzone.core.task import Route, TaskKind
from garzone.delegate.belief import Belief, History, Observation
from garzone.delegate.policy import FileFacts, TaskFacts, believe, route
from tests.numbers import record_number

FACTS = TaskFacts(TaskKind.FIX, "off by one in paginate", repo="/r", model="m", files=(FileFacts("a.py", 2000),))


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
    decision = route(replace(FACTS, baseline_tokens=300, alone_turns=1), History())
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


@settings(deadline=None)
@given(st.lists(st.booleans(), max_size=60))
def test_one_more_success_never_lowers_the_belief_and_one_more_failure_never_raises_it(outcomes: list[bool]) -> None:
    before = believe(FACTS, History.of(seen(FACTS, proved) for proved in outcomes)).mean
    better = believe(FACTS, History.of(seen(FACTS, proved) for proved in [*outcomes, True])).mean
    worse = believe(FACTS, History.of(seen(FACTS, proved) for proved in [*outcomes, False])).mean
    assert worse < before < better
    assert 0 < before < 1


@settings(deadline=None)
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


# --- simulated streams with known success probabilities: see bench.policy_streams


def test_regret_is_at_most_a_tenth_of_the_better_fixed_policys_and_probabilities_are_calibrated() -> None:
    streams = [personal_stream(random.Random(seed)) for seed in range(6)]
    outcomes = [simulate(stream, random.Random(seed + 1000)) for seed, stream in enumerate(streams)]
    summary = summarise("personal", outcomes)
    record_number(
        "policy: regret / better fixed policy's, worst of 6 streams of 2,000", summary.worst_regret_ratio, "<= 0.10"
    )
    record_number("policy: calibration error after 500, worst of 6", summary.worst_calibration_error, "under 0.05")
    assert summary.worst_regret_ratio <= 0.10
    assert summary.worst_calibration_error < 0.05


@pytest.mark.parametrize("average", [-1.0, 0.0, 1.0])
def test_in_harder_streams_little_of_what_could_be_saved_is_missed(average: float) -> None:
    streams = [mixed_stream(random.Random(seed), average=average) for seed in range(3)]
    outcomes = [simulate(stream, random.Random(seed + 1000)) for seed, stream in enumerate(streams)]
    summary = summarise("mixed", outcomes)
    record_number(f"policy: share of the optimum missed in mixed streams ({average:+.0f})", summary.missed, "<= 0.10")
    assert summary.missed <= 0.10
    assert summary.calibration_error < 0.05
    assert all(outcome.policy < outcome.never for outcome in outcomes)


def test_who_knows_the_devices_loses_little_where_one_is_too_slow_and_who_does_not_loses_more_than_by_never() -> None:
    def outcomes(*, knows: bool) -> list[Outcome]:
        streams = [two_devices_stream(random.Random(seed)) for seed in range(3)]
        return [
            simulate(stream, random.Random(seed + 1000), knows_devices=knows) for seed, stream in enumerate(streams)
        ]

    knowing = summarise("two devices", outcomes(knows=True))
    record_number("policy: the same with a second device that is too slow", knowing.worst_regret_ratio, "<= 0.10")
    assert knowing.worst_regret_ratio <= 0.10
    assert summarise("blind", outcomes(knows=False)).regret_ratio > 1


def test_without_a_check_nothing_is_proved_however_well_such_tasks_went() -> None:
    history = History.of([seen(FACTS, True)] * 50)
    assert believe(FACTS, history).mean > 0.9
    assert believe(replace(FACTS, has_check=False), history).mean < 0.2


def test_what_is_believed_does_not_depend_on_the_order_in_which_tasks_ended() -> None:
    tasks = [seen(replace(FACTS, kind=kind), kind is TaskKind.FIX) for kind in TaskKind for _ in range(5)]
    shuffled = random.Random(1).sample(tasks, len(tasks))
    assert believe(FACTS, History.of(tasks)).mean == pytest.approx(believe(FACTS, History.of(shuffled)).mean, abs=1e-3)


def test_what_a_model_shows_in_one_kind_counts_in_another() -> None:
    strong = History.of([seen(replace(FACTS, kind=TaskKind.FIX), True)] * 30)
    other_model = History.of([seen(replace(FACTS, model="other", kind=TaskKind.FIX), False)] * 30)
    both = History.of(
        [seen(replace(FACTS, kind=TaskKind.FIX), True)] * 30
        + [seen(replace(FACTS, model="other", kind=TaskKind.FIX), False)] * 30
    )
    docs = replace(FACTS, kind=TaskKind.DOCS)
    assert believe(docs, both).mean > believe(docs, History()).mean
    assert believe(replace(docs, model="other"), both).mean < believe(docs, History()).mean
    assert believe(docs, strong).num_observed == believe(docs, other_model).num_observed == 0
