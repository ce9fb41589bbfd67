"""The bench's numbers stand on the recorded transcripts and move the way they must."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from garzone.bench import delegation
from garzone.bench.delegation_cost import Transcript, Turn, measure, recorded, recorded_lines, replay
from garzone.delegate.pricing import estimate_tokens
from tests.numbers import record_number

ALONE, DELEGATING = recorded()


def test_the_recorded_transcripts_are_of_one_task_done_both_ways() -> None:
    assert len(ALONE.extra) == 4  # check, read, edit, check
    assert len(DELEGATING.extra) == 1
    assert ALONE.context_tokens == pytest.approx(DELEGATING.context_tokens, rel=0.05)
    assert any("proved: " in line for line in recorded_lines("delegating"))


def test_a_delegation_costs_a_coordinator_less_than_300_tokens() -> None:
    report = delegation.measure(estimate_tokens, "4 characters a token", num_streams=1)
    missed = [number.name for number in report.numbers if number.ok is False]
    assert missed == []


def test_a_batch_costs_at_most_040_of_doing_it_alone_failures_included() -> None:
    batch = replay(ALONE, DELEGATING, num_tasks=10, success_rate=0.7, file_tokens=2000)
    record_number("cost of 10 delegated tasks about 8 kB against alone, 70 % proved", batch.ratio, "at most 0.40")
    assert batch.ratio <= 0.40


def test_a_single_small_task_hardly_pays_and_that_is_shown() -> None:
    one = next(batch for batch in measure() if batch.num_tasks == 1)
    assert 0.5 < one.ratio < 1
    assert one.whole_ratio > 0.8


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 8), st.floats(0, 0.9), st.integers(160, 8000))
def test_more_success_never_costs_more_and_none_costs_more_than_alone(
    tasks: int, success_rate: float, file_tokens: int
) -> None:
    lower = replay(ALONE, DELEGATING, num_tasks=tasks, success_rate=success_rate, file_tokens=file_tokens)
    higher = replay(ALONE, DELEGATING, num_tasks=tasks, success_rate=success_rate + 0.1, file_tokens=file_tokens)
    assert higher.delegated_usd <= lower.delegated_usd
    never = replay(ALONE, DELEGATING, num_tasks=tasks, success_rate=0.0, file_tokens=file_tokens)
    assert never.ratio > 1  # a worker that never succeeds is a loss, and is shown as one


def test_a_transcript_without_an_answer_is_refused() -> None:
    with pytest.raises(ValueError, match="two turns"):
        Transcript.read(recorded_lines("delegating")[:2])
    assert Transcript.read(recorded_lines("delegating")).extra == (Turn(0, 31),)
