"""Rows of several sequences in one step, on real weights: each gives what it gives alone, slots keep to themselves."""

from pathlib import Path

import numpy as np
import pytest

from garzone.bench import synthetic
from garzone.engine.gguf import GGUFFile
from garzone.engine.model_runner import ModelRunner
from garzone.engine.row import Row
from garzone.kernels import portable
from garzone.kernels.dequantise import dequantise_array
from garzone.kernels.registry import Registry, default_registry

NUM_SLOTS, NUM_CTX = 3, 400


@pytest.fixture(scope="module")
def runner(smollm2_path: Path) -> ModelRunner:
    return ModelRunner.load(
        smollm2_path, num_ctx=NUM_CTX, device="CPU", num_slots=NUM_SLOTS, registry=default_registry()
    )


@pytest.fixture(scope="module")
def alone(runner: ModelRunner) -> list[np.ndarray]:
    """Logits [position, vocabulary] of three sequences, each fed token by token."""
    return [np.stack([runner.decode(token, at) for at, token in enumerate(tokens)]) for tokens in SEQUENCES]


SEQUENCES = [
    [int(token) for token in np.random.default_rng(seed).integers(0, 49_000, count)]
    for seed, count in enumerate((290, 140, 40))
]


def rows_of(slot: int, first: int, count: int, every: int = 1) -> list[Row]:
    """Rows of the slot's sequence; every so manieth wants logits."""
    tokens = SEQUENCES[slot][first : first + count]
    return [Row(slot, first + i, token, i % every == 0) for i, token in enumerate(tokens)]


def check(logits: np.ndarray, rows: list[Row], alone: list[np.ndarray]) -> None:
    wanted = [row for row in rows if row.wants_logits]
    assert len(logits) == len(wanted)
    for got, row in zip(logits, wanted, strict=True):
        assert np.array_equal(got, alone[row.slot][row.position]), f"slot {row.slot}, position {row.position}"


def fill(runner: ModelRunner, slot: int, count: int) -> None:
    for first in range(0, count, runner.chunk_tokens):
        runner.prefill(SEQUENCES[slot][first : min(first + runner.chunk_tokens, count)], first, slot)


def test_a_prompts_chunk_gives_every_row_what_decoding_gives(runner: ModelRunner, alone: list[np.ndarray]) -> None:
    for first, count, every in ((0, 128, 1), (128, 100, 7), (228, 62, 3)):
        rows = rows_of(0, first, count, every)
        check(runner.step(rows), rows, alone)


def test_decodes_and_a_prompt_share_a_step_and_give_what_each_gives_alone(
    runner: ModelRunner, alone: list[np.ndarray]
) -> None:
    fill(runner, 0, 270)
    fill(runner, 1, 139)
    for at in range(5):
        rows = [*rows_of(2, 8 * at, 8, every=7), *rows_of(0, 270 + 4 * at, 4), *rows_of(1, 135 + at, 1)]
        check(runner.step(rows), rows, alone)
    assert [runner.valid_rows(slot) for slot in range(NUM_SLOTS)] == [290, 140, 40]


def test_rows_of_slots_may_be_interleaved(runner: ModelRunner, alone: list[np.ndarray]) -> None:
    fill(runner, 0, 200)
    fill(runner, 1, 100)
    rows = [row for pair in zip(rows_of(0, 200, 6), rows_of(1, 100, 6), strict=True) for row in pair]
    check(runner.step(rows), rows, alone)


def test_copied_rows_are_as_good_as_computed_ones(runner: ModelRunner, alone: list[np.ndarray]) -> None:
    fill(runner, 0, 281)
    fill(runner, 2, 40)
    for num_rows in (277, 160, 3):
        runner.copy_rows(0, 1, num_rows)
        assert runner.valid_rows(1) == num_rows
        assert np.array_equal(runner.decode(SEQUENCES[0][num_rows], num_rows, slot=1), alone[0][num_rows])
    assert np.array_equal(runner.decode(SEQUENCES[2][39], 39, slot=2), alone[2][39]), "another slot was touched"


def test_rows_survive_a_round_trip_through_bytes(runner: ModelRunner, alone: list[np.ndarray]) -> None:
    fill(runner, 0, 250)
    data = [runner.read_rows(0, first, count) for first, count in ((0, 37), (37, 64), (101, 130))]
    assert len(data[0]) == 37 * 30 * 2 * 3 * 64 * 2  # rows, layers, keys and values, heads, elements, bytes
    fill(runner, 0, 3)  # others' numbers, so that nothing is left over
    runner.write_rows(1, 0, 37, data[0])
    runner.write_rows(1, 37, 64, data[1])
    runner.write_rows(1, 101, 130, data[2])
    assert np.array_equal(runner.decode(SEQUENCES[0][231], 231, slot=1), alone[0][231])
    with pytest.raises(ValueError, match="are not 36 rows"):
        runner.write_rows(1, 0, 36, data[0])


def test_hidden_states_do_not_depend_on_the_batch_and_give_the_logits(
    runner: ModelRunner, alone: list[np.ndarray], smollm2_path: Path
) -> None:
    rows = rows_of(1, 0, 60)
    together = runner.hidden(rows)
    assert together.shape == (60, runner.config.hidden)
    single = np.concatenate([runner.hidden([row]) for row in rows])
    assert np.array_equal(single, together)
    assert runner.valid_rows(1) == 60
    with GGUFFile.open(smollm2_path) as file:  # the output is the embedding's table
        name = "token_embd.weight"
        info = file.tensors[name]
        table = dequantise_array(file.data(name), info.ggml_type).reshape(info.shape)[:500]
    logits, expected = together @ table.T, alone[1][:60, :500]
    # the output rounds its activations to eight bits
    assert np.sqrt(((logits - expected) ** 2).mean()) < 0.02 * expected.std()


def test_nothing_wanted_gives_nothing_and_still_writes_the_rows(runner: ModelRunner, alone: list[np.ndarray]) -> None:
    rows = [Row(0, at, token) for at, token in enumerate(SEQUENCES[0][:20])]
    assert runner.step(rows).shape == (0, runner.config.vocab_size)
    assert np.array_equal(runner.decode(SEQUENCES[0][20], 20), alone[0][20])


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        ([], "0 rows given"),
        ([Row(0, at, 1) for at in range(129)], "129 rows given"),
        ([Row(3, 0, 1)], "no slot 3"),
        ([Row(-1, 0, 1)], "no slot -1"),
        ([Row(0, 0, 49_152)], "token ids must be"),
        ([Row(0, 0, -1)], "token ids must be"),
        ([Row(0, 0, 1), Row(0, 2, 1)], "does not follow"),
        ([Row(0, 0, 1), Row(1, 0, 1), Row(0, 0, 1)], "does not follow"),
        ([Row(0, 30, 1)], "only rows before"),
        ([Row(0, NUM_CTX, 1)], "do not lie"),
    ],
)
def test_rows_that_cannot_be_run_are_refused_and_change_nothing(
    runner: ModelRunner, rows: list[Row], complaint: str
) -> None:
    fill(runner, 0, 20)
    with pytest.raises(ValueError, match=complaint):
        runner.step(rows)
    assert runner.valid_rows(0) == 20
    with pytest.raises(ValueError, match="cannot be read"):
        runner.read_rows(0, 10, 11)


def test_without_a_batched_path_the_same_calls_work_slot_by_slot(tmp_path: Path) -> None:
    path = synthetic.fetch("synthetic:tiny", tmp_path)
    slow, fast = (
        ModelRunner.load(path, num_ctx=64, device="CPU", num_slots=2, prefill_chunk=16, registry=registry)
        for registry in (Registry(portable.OFFERS), default_registry())
    )
    tokens = np.random.default_rng(3).integers(0, fast.config.vocab_size, (2, 7)).tolist()
    rows = [Row(slot, at, token, at % 3 == 0) for slot in (0, 1) for at, token in enumerate(tokens[slot])]
    logits, close = slow.step(rows), fast.step(rows)
    assert logits.shape == close.shape == (6, fast.config.vocab_size)
    # the C kernels round activations to eight bits
    assert np.sqrt(((logits - close) ** 2).mean()) < 0.05 * logits.std()
    assert np.allclose(slow.hidden(rows), fast.hidden(rows), atol=0.2)
    again = slow.decode(tokens[1][6], 6, slot=1)
    slow.copy_rows(1, 0, 6)
    assert np.allclose(slow.decode(tokens[1][6], 6, slot=0), again, atol=1e-3)
    data = slow.read_rows(1, 2, 4)
    slow.write_rows(0, 2, 4, data)
    assert np.allclose(slow.decode(tokens[1][6], 6, slot=0), again, atol=1e-3)
