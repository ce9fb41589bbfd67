"""The highest logits come from the device without the rest, and are those that looking at all of them would give."""

from collections.abc import Iterator

import numpy as np
import pytest

from garzone.core.generation import SamplingParams
from garzone.engine.sampler import Sampler
from garzone.engine.scores import HostScores
from garzone.kernels.gpu.highest import PICKED, DeviceScores, Highest, StepScores
from garzone.kernels.highest import GROUP
from garzone.kernels.registry import Place, Step
from tests.kernels.gpu.oracle import DEVICE

WIDTH = 96  # logits a row has in the buffer, those beyond the vocabulary included


def scores_of(logits: np.ndarray, vocab_size: int) -> StepScores:
    """As after a step that computed these."""
    num_rows = len(logits)
    place = Place(DEVICE, num_ctx=16, chunk_tokens=4, dense_bytes=0)
    highest = Highest(place, num_rows, vocab_size)
    on_device = place.upload(logits.astype(np.float32).reshape(-1))
    maxima = highest.maxima(on_device, Step(num_rows, on_device, 0, num_rows)).realize()
    return StepScores(on_device, maxima, highest)


@pytest.fixture(scope="module")
def rows() -> Iterator[np.ndarray]:
    random = np.random.default_rng(4)
    yield np.concatenate([random.normal(size=(1, WIDTH)), random.integers(0, 3, (1, WIDTH))])


@pytest.mark.parametrize("vocab_size", [12, 64, 90])
def test_they_are_those_of_the_whole_row(rows: np.ndarray, vocab_size: int) -> None:
    beyond = rows.copy()
    beyond[:, vocab_size:] = 1e9  # what fills the buffer up is nobody's
    step = scores_of(beyond, vocab_size)
    for index, row in enumerate(rows[:, :vocab_size].astype(np.float32)):
        scores = DeviceScores(step, index)
        assert scores.largest == row.max()
        np.testing.assert_array_equal(scores.all(), row)
        for count in (1, 2, 7, vocab_size, vocab_size + 9):
            ids, values = scores.highest(count)
            expected = np.sort(np.argsort(-row, kind="stable")[:count])
            assert list(ids) == list(expected)
            np.testing.assert_array_equal(values, row[expected])


def test_a_token_is_chosen_as_from_the_whole_row() -> None:
    logits = np.random.default_rng(5).normal(size=(1, 80)) * 3
    scores = DeviceScores(scores_of(logits, 80), 0)
    whole = HostScores(logits[0].astype(np.float32))
    for params in (
        SamplingParams(temperature=0),
        SamplingParams(seed=3),
        SamplingParams(seed=3, top_k=5, min_p=0.1),
        SamplingParams(seed=3, top_k=0, top_p=0.8),
        SamplingParams(seed=3, repeat_penalty=1.4),
    ):
        here, there = Sampler(params, [1, 2]), Sampler(params, [1, 2])
        for _ in range(20):
            token = here.choose(scores)
            assert token == there.choose(whole)
            here.accept(token)
            there.accept(token)


def test_greedy_and_top_k_choices_do_not_fetch_a_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    step = scores_of(np.random.default_rng(6).normal(size=(1, 6000)), 6000)
    monkeypatch.setattr(StepScores, "logits", property(lambda _: pytest.fail("a whole vocabulary was fetched")))
    for params in (SamplingParams(temperature=0), SamplingParams(seed=1, top_k=40)):
        assert 0 <= Sampler(params).choose(DeviceScores(step, 0)) < 6000


def test_logits_that_are_no_numbers_are_noticed() -> None:
    logits = np.zeros((2, 80))
    logits[1, 33] = np.nan
    step = scores_of(logits, 80)
    assert DeviceScores(step, 0).largest == 0
    assert not np.isfinite(DeviceScores(step, 1).largest)


def test_of_more_alike_than_are_fetched_the_first_are_the_highest() -> None:
    num_alike = PICKED + 6  # groups with the same maximum
    step = scores_of(np.zeros((1, num_alike * GROUP)), num_alike * GROUP)
    assert list(DeviceScores(step, 0).highest(3)[0]) == [0, 1, 2]
