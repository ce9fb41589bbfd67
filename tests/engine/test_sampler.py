"""Sampling: what each filter lets through, what penalties do, and that draws follow the distribution."""

import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from garzone.core.generation import SamplingParams
from garzone.engine.sampler import Sampler, log_softmax, most_probable
from garzone.kernels.highest import highest_ids
from tests.numbers import record_number

OPEN = SamplingParams(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, seed=1)
LOGITS = np.array([1.0, 3.0, 2.0, -1.0, 0.5, 2.5], np.float32)
logits_strategy = arrays(
    np.float32, st.integers(1, 300), elements=st.floats(-30, 30, width=32, allow_nan=False, allow_infinity=False)
)


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits.astype(np.float64) - logits.max())
    return weights / weights.sum()


def drawn(params: SamplingParams, logits: np.ndarray, times: int = 400) -> set[int]:
    sampler = Sampler(params)
    return {sampler.sample(logits) for _ in range(times)}


def naive_survivors(params: SamplingParams, logits: np.ndarray) -> set[int]:
    """The chain written as slowly as possible."""
    order = sorted(range(len(logits)), key=lambda i: (-logits[i], i))
    if params.top_k > 0:
        order = order[: params.top_k]
    probabilities = softmax(logits[order].astype(np.float64))
    if params.top_p < 1.0:
        total, kept = 0.0, 0
        for probability in probabilities:
            total, kept = total + float(probability), kept + 1
            if total >= params.top_p:
                break
        order, probabilities = order[:kept], probabilities[:kept]
    if params.min_p > 0.0:
        order = [
            i
            for i, p in zip(order, probabilities, strict=True)
            if p >= params.min_p * probabilities[0] or i == order[0]
        ]
    return set(order)


def test_temperature_zero_takes_the_best_token_and_the_first_of_equals() -> None:
    greedy = replace(OPEN, temperature=0.0)
    assert Sampler(greedy).sample(LOGITS) == 1
    assert Sampler(greedy).sample(np.zeros(9, np.float32)) == 0


def test_top_k_one_is_greedy_at_any_temperature() -> None:
    assert drawn(replace(OPEN, temperature=50.0, top_k=1), LOGITS) == {1}


@pytest.mark.parametrize(
    ("changes", "survivors"),
    [
        ({"top_k": 2}, {1, 5}),
        ({"top_p": 0.5}, {1, 5}),  # 0.47 is not enough, 0.47 + 0.28 is
        ({"top_p": 0.01}, {1}),
        ({"min_p": 0.3}, {1, 2, 5}),  # exp(-0.5) = 0.61, exp(-1) = 0.37, exp(-2) = 0.14
        ({"top_k": 4, "min_p": 0.5}, {1, 5}),
        ({}, {0, 1, 2, 3, 4, 5}),
    ],
)
def test_each_filter_lets_through_what_its_definition_says(changes: dict[str, float], survivors: set[int]) -> None:
    params = replace(OPEN, temperature=5.0, **changes)
    assert naive_survivors(params, LOGITS) == survivors
    assert drawn(params, LOGITS) == survivors


@given(
    logits_strategy,
    st.integers(0, 320),
    st.sampled_from([0.0, 0.2, 0.9, 0.999, 1.0]),
    st.sampled_from([0.0, 0.05, 0.5, 1.0]),
    st.floats(0.01, 3.0),
)
@settings(max_examples=200, deadline=None)
def test_no_draw_escapes_the_filters(
    logits: np.ndarray, top_k: int, top_p: float, min_p: float, temperature: float
) -> None:
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=0)
    looser = replace(params, top_p=min(1.0, top_p + 1e-5), min_p=min_p * (1 - 1e-5))  # rounding at the edge
    before = logits.copy()
    sampler = Sampler(params)
    worst = min(logits[token] for token in naive_survivors(looser, logits))  # of equals, any may be the one kept
    for _ in range(5):
        assert logits[sampler.sample(logits)] >= worst
    assert (logits == before).all()


@given(logits_strategy, st.integers(0, 2**63 - 1))
@settings(max_examples=50, deadline=None)
def test_the_same_seed_draws_the_same_tokens(logits: np.ndarray, seed: int) -> None:
    params = SamplingParams(seed=seed)
    first, second = Sampler(params), Sampler(params)
    assert [first.sample(logits) for _ in range(8)] == [second.sample(logits) for _ in range(8)]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_softmax_at_that_temperature(temperature: float) -> None:
    sampler = Sampler(replace(OPEN, temperature=temperature))
    draws = np.bincount([sampler.sample(LOGITS) for _ in range(20_000)], minlength=len(LOGITS)) / 20_000
    # five standard deviations of a binomial with p = 0.5
    assert np.abs(draws - softmax(LOGITS / temperature)).max() < 5 * 0.5 / 20_000**0.5


def test_requests_without_a_seed_differ() -> None:
    flat = np.zeros(10_000, np.float32)
    params = replace(OPEN, seed=None)
    assert [Sampler(params).sample(flat) for _ in range(4)] != [Sampler(params).sample(flat) for _ in range(4)]


def test_repeat_penalty_divides_positive_and_multiplies_negative_logits() -> None:
    greedy = replace(OPEN, temperature=0.0, repeat_penalty=2.0)
    assert Sampler(greedy, [1]).sample(LOGITS) == 5  # 3.0 / 2 = 1.5 < 2.5
    negative = np.array([-1.0, -1.5, -9.0], np.float32)
    assert Sampler(greedy, [0]).sample(negative) == 1  # -1 * 2 = -2 < -1.5


def test_presence_penalty_counts_once_and_frequency_penalty_every_time() -> None:
    logits = np.array([3.0, 2.0, 0.0], np.float32)
    assert Sampler(replace(OPEN, temperature=0.0, presence_penalty=0.6), [0, 0, 0]).sample(logits) == 0
    assert Sampler(replace(OPEN, temperature=0.0, frequency_penalty=0.6), [0, 0, 0]).sample(logits) == 1


def test_penalties_look_back_only_as_far_as_asked() -> None:
    params = replace(OPEN, temperature=0.0, repeat_penalty=10.0, repeat_last_n=2)
    sampler = Sampler(params, [1, 4, 4])
    assert sampler.sample(LOGITS) == 1  # token 1 has left the window of two
    sampler.accept(1)
    assert sampler.sample(LOGITS) == 5
    sampler.accept(0)
    sampler.accept(0)
    assert sampler.sample(LOGITS) == 1
    assert Sampler(replace(params, repeat_last_n=0), [1]).sample(LOGITS) == 1
    assert Sampler(replace(params, repeat_last_n=-1), [1] + [4] * 500).sample(LOGITS) == 5


@given(st.lists(st.integers(0, 5), max_size=30), st.integers(1, 8))
@settings(max_examples=50, deadline=None)
def test_tokens_accepted_one_by_one_count_as_those_given_at_once(tokens: list[int], last: int) -> None:
    params = replace(OPEN, repeat_penalty=1.3, frequency_penalty=0.4, repeat_last_n=last)
    fed = Sampler(params)
    for token in tokens:
        fed.accept(token)
    at_once = Sampler(params, tokens)
    assert [fed.sample(LOGITS) for _ in range(5)] == [at_once.sample(LOGITS) for _ in range(5)]


def test_a_masked_token_is_never_drawn() -> None:
    masked = LOGITS.copy()
    masked[[0, 1, 5]] = -np.inf
    assert drawn(replace(OPEN, temperature=3.0), masked) <= {2, 3, 4}


def test_broken_logits_still_give_a_token_of_the_vocabulary() -> None:
    for logits in (
        np.full(5, -np.inf, np.float32),
        np.array([1, np.nan, 2], np.float32),
        np.full(4, np.inf, np.float32),
    ):
        assert 0 <= Sampler(OPEN).sample(logits) < len(logits)


@pytest.mark.parametrize(
    ("name", "params", "limit_ms"),
    [
        ("greedy", SamplingParams(temperature=0.0), 1.0),
        ("default", SamplingParams(seed=1), 3.0),
        ("all filters", SamplingParams(seed=1, top_k=0, top_p=0.95, min_p=0.05, repeat_penalty=1.1), 3.0),
    ],
)
def test_a_large_vocabulary_is_sampled_in_milliseconds(name: str, params: SamplingParams, limit_ms: float) -> None:
    logits = (np.random.default_rng(0).standard_normal(152_064) * 3).astype(np.float32)
    sampler = Sampler(params, range(64))
    took: list[float] = []
    for _ in range(30):
        started = time.perf_counter()
        sampler.sample(logits)
        took.append((time.perf_counter() - started) * 1000)
    record_number(f"sampling 152,064 tokens, {name}, ms", min(took), f"< {limit_ms}")
    assert min(took) < limit_ms


def naive_typical(logits: np.ndarray, mass: float) -> set[int]:
    """llama.cpp's locally typical sampling, written as slowly as possible."""
    probabilities = softmax(logits)
    entropy = -sum(p * np.log(p) for p in probabilities if p > 0)
    order = sorted(range(len(logits)), key=lambda i: (abs(-np.log(max(probabilities[i], 1e-300)) - entropy), i))
    total, kept = 0.0, set[int]()
    for index in order:
        kept.add(index)
        total += float(probabilities[index])
        if total > mass:
            break
    return kept


@settings(max_examples=60)
@given(arrays(np.float32, st.integers(2, 12), elements=st.floats(-4, 4, width=32)), st.floats(0.1, 0.95))
def test_typical_p_keeps_what_is_about_as_surprising_as_can_be_expected(logits: np.ndarray, mass: float) -> None:
    logits = logits + np.arange(len(logits), dtype=np.float32) * 0.01  # no two alike
    near_the_edge = {*naive_typical(logits, mass - 1e-5), *naive_typical(logits, mass + 1e-5)}
    assert drawn(replace(OPEN, typical_p=mass), logits, 100) <= near_the_edge


def test_only_what_a_mask_lets_through_is_chosen() -> None:
    mask = np.array([True, False, False, True, True, False])
    assert Sampler(replace(OPEN, temperature=0.0)).sample(LOGITS, mask) == 0
    sampler = Sampler(OPEN)
    assert {sampler.sample(LOGITS, mask) for _ in range(300)} == {0, 3, 4}
    mask[1] = True
    assert Sampler(replace(OPEN, temperature=0.0)).sample(LOGITS, mask) == 1


def test_log_probabilities_and_the_best_alternatives() -> None:
    np.testing.assert_allclose(np.exp(log_softmax(LOGITS)), softmax(LOGITS), rtol=1e-12)
    assert list(most_probable(LOGITS, 3)) == [1, 5, 2]
    assert list(most_probable(LOGITS, 99)) == [1, 5, 2, 0, 4, 3]
    assert list(most_probable(LOGITS, 0)) == []


@settings(max_examples=60)
@given(st.integers(0, 2**32), st.integers(1, 5000), st.integers(1, 60), st.sampled_from([3, 1000]))
def test_the_highest_are_those_that_sorting_everything_would_give(
    seed: int, size: int, count: int, num_values: int
) -> None:
    random = np.random.default_rng(seed)
    logits = random.integers(0, num_values, size).astype(np.float32)  # many alike
    logits[random.random(size) < 0.1] = -np.inf
    sorted_ids = np.argsort(-logits, kind="stable")[:count]
    assert list(highest_ids(logits, count)) == sorted(sorted_ids.tolist())
