"""Gemma 3 and Qwen 3 on the C kernels: tiny models beside `transformers`, and rows that do not depend on the batch."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from garzone.core.errors import GGUFError, UnsupportedModel
from garzone.engine.model_runner import ModelRunner
from garzone.engine.row import Row
from garzone.kernels.registry import default_registry
from garzone.testing import write_gguf
from tests.engine.tiny_transformers import TOKENS, VARIANTS, Variant, converted, write_converted
from tests.numbers import record_number

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "tiny_transformers.npz")
NEW = [variant for variant in VARIANTS if variant.architecture in ("gemma3", "qwen3")]
SEQUENCES = [[int(token) for token in np.random.default_rng(seed).integers(0, 260, 240)] for seed in range(3)]


def load(path: Path, **given: Any) -> ModelRunner:
    return ModelRunner.load(path, device="CPU", registry=default_registry(), **{"num_ctx": 256, **given})


@pytest.fixture(scope="module", params=NEW, ids=lambda variant: variant.name)
def variant(request: pytest.FixtureRequest) -> Variant:
    return request.param


@pytest.fixture(scope="module")
def runner(variant: Variant, tmp_path_factory: pytest.TempPathFactory) -> ModelRunner:
    return load(write_converted(variant, tmp_path_factory.mktemp("tiny") / "tiny.gguf"), num_slots=3)


def test_the_c_kernels_agree_with_transformers(runner: ModelRunner, variant: Variant) -> None:
    assert runner.is_batched
    worst = 0.0
    for index, tokens in enumerate(TOKENS):
        worst = max(worst, float(np.abs(runner.prefill(tokens, 0) - GOLDEN[f"{variant.name}/{index}"]).max()))
    # keys and values are rounded to halves
    record_number(f"{variant.name}, C kernels: largest logit difference from transformers", worst, "< 1e-2")
    assert worst < 1e-2


def test_decoding_chunks_and_batches_give_the_same_to_the_last_bit(runner: ModelRunner) -> None:
    alone = [np.stack([runner.decode(token, at, slot=0) for at, token in enumerate(tokens)]) for tokens in SEQUENCES]
    for slot, tokens in enumerate(SEQUENCES):
        for first in range(0, 240, 80):
            rows = [Row(slot, first + i, token, True) for i, token in enumerate(tokens[first : first + 80])]
            assert np.array_equal(runner.step(rows), alone[slot][first : first + 80])
    mixed = [Row(slot, at, SEQUENCES[slot][at], True) for slot, at in ((2, 239), (0, 97), (0, 98), (0, 99), (1, 60))]
    for got, row in zip(runner.step(mixed), mixed, strict=True):
        assert np.array_equal(got, alone[row.slot][row.position]), row


def test_rows_read_copied_and_written_back_serve_as_well(runner: ModelRunner) -> None:
    tokens = SEQUENCES[0]
    runner.prefill(tokens[:100], 0)
    expected = runner.decode(tokens[100], 100)
    data = runner.read_rows(0, 0, 100)
    assert len(data) == 100 * runner.row_bytes
    runner.copy_rows(0, 1, 100)
    runner.write_rows(2, 0, 100, data)
    for slot in (1, 2):
        assert np.array_equal(runner.decode(tokens[100], 100, slot=slot), expected)


def test_what_lies_outside_every_window_does_not_matter_to_gemma(tmp_path: Path) -> None:
    """A model of local layers only, each of which widens what a row sees by its window."""
    local = Variant("local", "gemma3", num_layers=2, window=8, global_every=1000, tied=True)
    runner = load(write_converted(local, tmp_path / "local.gguf"))
    seen = 2 * (8 - 1) + 1
    one, other = SEQUENCES[0][:100], [*SEQUENCES[1][: 100 - seen], *SEQUENCES[0][100 - seen : 100]]
    assert np.array_equal(runner.prefill(one, 0), runner.prefill(other, 0))
    other[100 - seen] += 1 if other[100 - seen] < 259 else -1
    assert not np.array_equal(runner.prefill(one, 0), runner.prefill(other, 0))


def test_the_window_does_not_limit_the_context(tmp_path: Path) -> None:
    runner = load(write_converted(NEW[-1], tmp_path / "tiny.gguf"))
    assert runner.config.num_ctx == 256


@pytest.mark.parametrize(
    ("key", "value", "error"),
    [
        ("attention.sliding_window_pattern", np.array([True, False]), GGUFError),
        ("attention.sliding_window_pattern", 0, GGUFError),
        ("final_logit_softcapping", 30.0, UnsupportedModel),
    ],
)
def test_what_gemma_cannot_be_run_with_is_refused_by_name(
    key: str, value: Any, error: type[Exception], tmp_path: Path
) -> None:
    tensors, metadata = converted(NEW[-1])
    path = write_gguf(tmp_path / "odd.gguf", metadata | {f"gemma3.{key}": value}, tensors)
    with pytest.raises(error, match=key):
        load(path)


def test_layers_that_a_list_marks_are_the_local_ones(tmp_path: Path) -> None:
    tensors, metadata = converted(next(v for v in NEW if v.name == "gemma3"))
    marks = {"gemma3.attention.sliding_window_pattern": np.array([True, True, False, True])}
    listed = load(write_gguf(tmp_path / "listed.gguf", metadata | marks, tensors))
    assert np.abs(listed.prefill(TOKENS[0], 0) - GOLDEN["gemma3/0"]).max() < 1e-2
