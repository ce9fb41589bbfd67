"""The KV cache in Q8_0 on real weights: how far logits are from those over halves, and that nothing else changes."""

from pathlib import Path

import numpy as np
import pytest

from garzone.core.errors import Unsupported
from garzone.core.generation import KVCacheType
from garzone.engine.model_runner import ModelRunner
from garzone.engine.row import Row
from garzone.kernels import portable
from garzone.kernels.registry import Registry, default_registry
from garzone.testing import write_gguf
from garzone.text.tokenizer import Tokenizer
from tests.engine import golden_logits
from tests.engine.tiny_transformers import VARIANTS, converted
from tests.numbers import record_number

TEXT = (Path(__file__).parents[2] / "src" / "garzone" / "scheduler" / "cost.py").read_text(encoding="utf-8")
GOLDEN = Path(__file__).parents[1] / "golden" / "smollm2.npz"
NUM_CTX = 400


def load(path: Path, kv_cache: KVCacheType, **given: object) -> ModelRunner:
    settings = {"num_ctx": NUM_CTX, "device": "CPU", "registry": default_registry(), **given}
    return ModelRunner.load(path, kv_cache=kv_cache, **settings)  # pyright: ignore[reportArgumentType]


@pytest.fixture(scope="module")
def tokens(smollm2_path: Path) -> list[int]:
    from garzone.engine.gguf import read_metadata

    return Tokenizer.from_gguf(read_metadata(smollm2_path)).encode(TEXT)[:300]


@pytest.fixture(scope="module")
def runner(smollm2_path: Path) -> ModelRunner:
    return load(smollm2_path, KVCacheType.Q8_0, num_slots=3)


@pytest.fixture(scope="module")
def halves(smollm2_path: Path) -> ModelRunner:
    return load(smollm2_path, KVCacheType.F16, num_slots=3)


def logits_of(runner: ModelRunner, tokens: list[int], slot: int = 0, chunk: int = 128) -> np.ndarray:
    """Of every position, a chunk at a time."""
    found = [
        runner.step([Row(slot, first + i, token, True) for i, token in enumerate(tokens[first : first + chunk])])
        for first in range(0, len(tokens), chunk)
    ]
    return np.concatenate(found)


def test_logits_are_near_those_over_halves(runner: ModelRunner, halves: ModelRunner, tokens: list[int]) -> None:
    assert runner.row_bytes * 32 == halves.row_bytes * 17  # 34 bytes in place of 64
    got, expected = logits_of(runner, tokens), logits_of(halves, tokens)
    error = float(np.sqrt(((got - expected) ** 2).mean()) / expected.std())
    shifted = [x - x.max(-1, keepdims=True) for x in (got, expected)]
    logs = [x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in shifted]
    divergence = float((np.exp(logs[1]) * (logs[1] - logs[0])).sum(-1).mean())
    same = float((got.argmax(-1) == expected.argmax(-1)).mean())
    record_number("Q8_0 cache against F16, 300 tokens of Python: relative RMS of logits", error, "< 0.05")
    record_number("Q8_0 cache against F16: mean KL divergence, nats", divergence, "< 0.01")
    record_number("Q8_0 cache against F16: same likeliest token", same, "> 0.85")
    # Activations are rounded to eight bits as well: by 0.04 with either cache, and anew where anything differs.
    assert error < 0.05
    assert divergence < 0.01
    assert same > 0.85


@pytest.mark.slow
def test_logits_are_little_further_from_the_float64_reference_than_those_over_halves(smollm2_path: Path) -> None:
    errors: dict[KVCacheType, float] = {}
    for kv_cache in KVCacheType:
        one = load(smollm2_path, kv_cache, num_ctx=2048)
        squares: list[float] = []
        for prompt, selected, golden in golden_logits.prompts(GOLDEN):
            logits = logits_of(one, prompt)[-1][selected]
            squares.append(float(((logits.astype(np.float64) - golden["reference"]) ** 2).mean()))
        errors[kv_cache] = float(np.sqrt(np.mean(squares)))
        record_number(f"{kv_cache.value} cache: RMS error of logits against float64", errors[kv_cache])
    assert errors[KVCacheType.Q8_0] < 1.5 * errors[KVCacheType.F16]


def test_decoding_chunks_and_batches_give_the_same_to_the_last_bit(runner: ModelRunner, tokens: list[int]) -> None:
    whole = logits_of(runner, tokens[:280])
    assert np.array_equal(logits_of(runner, tokens[:280], slot=1, chunk=13), whole)
    runner.prefill(tokens[:120], 0, slot=2)
    for at in range(120, 140):
        assert np.array_equal(runner.decode(tokens[at], at, slot=2), whole[at])
    mixed = [Row(2, 140, tokens[140], True), *(Row(0, at, tokens[at], True) for at in range(250, 257))]
    mixed += [Row(1, 128, tokens[128], True)]
    for got, row in zip(runner.step(mixed), mixed, strict=True):
        assert np.array_equal(got, whole[row.position]), row


def test_rows_read_copied_and_written_back_serve_as_well(runner: ModelRunner, tokens: list[int]) -> None:
    runner.prefill(tokens[:128], 0)
    runner.prefill(tokens[128:200], 128)
    expected = runner.decode(tokens[200], 200)
    data = [runner.read_rows(0, 0, 37), runner.read_rows(0, 37, 163)]
    assert len(data[0]) == 37 * runner.row_bytes
    runner.copy_rows(0, 1, 200)
    runner.write_rows(2, 0, 37, data[0])
    runner.write_rows(2, 37, 163, data[1])
    for slot in (1, 2):
        assert np.array_equal(runner.decode(tokens[200], 200, slot=slot), expected)
    with pytest.raises(ValueError, match="are not 36 rows"):
        runner.write_rows(1, 0, 36, data[0])


def test_a_cache_takes_seventeen_thirty_seconds_of_the_memory(runner: ModelRunner, halves: ModelRunner) -> None:
    numbers = 3 * 512 * 30 * 2 * 3 * 64  # slots, positions in whole spans, layers, keys and values, heads, elements
    assert halves.memory_bytes - runner.memory_bytes == numbers * (64 - 34) // 32
    traffic = runner.traffic(300)
    assert traffic is not None
    assert traffic.moved_bytes < 1.1 * traffic.least_bytes


@pytest.mark.slow
def test_the_portable_kernels_keep_the_same_rows(runner: ModelRunner, smollm2_path: Path, tokens: list[int]) -> None:
    slow = load(smollm2_path, KVCacheType.Q8_0, prefill_chunk=32, registry=Registry(portable.OFFERS))
    assert slow.row_bytes == runner.row_bytes
    slow.prefill(tokens[:32], 0)
    data = slow.read_rows(0, 0, 32)
    runner.write_rows(0, 0, 32, data)
    assert runner.read_rows(0, 0, 32) == data
    ours, theirs = runner.decode(tokens[32], 32), slow.decode(tokens[32], 32)
    assert np.sqrt(((ours - theirs) ** 2).mean()) < 0.1 * theirs.std()  # the C kernels round activations to eight bits
    slow.write_rows(0, 0, 20, slow.read_rows(0, 0, 20))
    slow.prefill(tokens[20:32], 20)
    assert np.allclose(slow.decode(tokens[32], 32), theirs, atol=1e-3)


def test_heads_that_blocks_do_not_fit_are_refused_with_what_to_do(tmp_path: Path) -> None:
    tiny = next(variant for variant in VARIANTS if variant.architecture == "llama")
    tensors, metadata = converted(tiny)
    path = write_gguf(tmp_path / "tiny.gguf", metadata, tensors)
    with pytest.raises(Unsupported, match=r"q8_0: its heads have 16 elements, not a multiple of 32; use f16 \(--kv"):
        load(path, KVCacheType.Q8_0, num_ctx=64)
