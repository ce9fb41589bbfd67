"""Logits of one small model with its weights in each type: the C kernels against weights unpacked to floats.

The C kernels round activations to eight bits, as llama.cpp does: about 0.7 % a product, which the layers add up.
"""

from pathlib import Path

import numpy as np
import pytest

from garzone.bench.synthetic import random_blocks
from garzone.engine.model_runner import ModelRunner
from garzone.kernels import portable
from garzone.kernels.cpu.library import FLOATS, MATRIX_TYPES
from garzone.kernels.layouts import GGMLType
from garzone.kernels.registry import Registry, default_registry
from garzone.testing import tiny_vocabulary, write_gguf
from tests.numbers import record_number

HIDDEN, FEED_FORWARD, LAYERS, VOCABULARY = 256, 512, 2, 260
TOKENS = [int(token) for token in np.random.default_rng(5).integers(0, VOCABULARY, 40)]
# relative RMS error of the logits. Floats: the cache's halves alone.
TOLERANCE, TOLERANCE_OF_FLOATS = 0.03, 0.003
QUICK = {GGMLType.Q4_K, GGMLType.Q8_0, GGMLType.BF16}


def write_model(path: Path, ggml_type: GGMLType) -> Path:
    """A llama of two layers, every matrix of that type."""
    rng = np.random.default_rng(6)

    def matrix(rows: int, columns: int) -> tuple[int, tuple[int, ...], bytes]:
        return int(ggml_type), (rows, columns), random_blocks(ggml_type, rows, columns, rng).tobytes()

    def norm(scale: float = 1) -> np.ndarray:
        return (scale * rng.uniform(0.5, 1.5, HIDDEN)).astype(np.float32)

    tensors = {"token_embd.weight": matrix(VOCABULARY, HIDDEN), "output_norm.weight": norm()}
    for index in range(LAYERS):
        block = f"blk.{index}."
        tensors |= {
            block + "attn_norm.weight": norm(),
            block + "attn_q.weight": matrix(256, HIDDEN),
            block + "attn_k.weight": matrix(128, HIDDEN),
            block + "attn_v.weight": matrix(128, HIDDEN),
            block + "attn_output.weight": matrix(HIDDEN, 256),
            block + "ffn_norm.weight": norm(),
            block + "ffn_gate.weight": matrix(FEED_FORWARD, HIDDEN),
            block + "ffn_up.weight": matrix(FEED_FORWARD, HIDDEN),
            block + "ffn_down.weight": matrix(HIDDEN, FEED_FORWARD),
        }
    metadata = {
        "general.architecture": "llama",
        "llama.block_count": LAYERS,
        "llama.context_length": 256,
        "llama.embedding_length": HIDDEN,
        "llama.feed_forward_length": FEED_FORWARD,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
    }
    return write_gguf(path, metadata | tiny_vocabulary(), tensors)


@pytest.mark.parametrize(
    "ggml_type",
    [
        pytest.param(kind, marks=() if kind in QUICK else pytest.mark.slow, id=kind.name)
        for kind in sorted(MATRIX_TYPES)
    ],
)
def test_logits_are_those_of_unpacked_weights_within_the_tolerance(ggml_type: GGMLType, tmp_path: Path) -> None:
    path = write_model(tmp_path / "tiny.gguf", ggml_type)
    fast = ModelRunner.load(path, num_ctx=64, device="CPU", registry=default_registry())
    assert all(name.startswith("C ") for name in fast.implementations)
    exact = ModelRunner.load(path, num_ctx=64, device="CPU", registry=Registry(portable.OFFERS))
    expected = exact.prefill(TOKENS, 0)
    chunk = fast.prefill(TOKENS, 0)
    decoded = [fast.decode(token, at) for at, token in enumerate(TOKENS)][-1]
    assert np.array_equal(chunk, decoded)
    error = float(np.sqrt(((chunk - expected) ** 2).mean()) / expected.std())
    tolerance = TOLERANCE_OF_FLOATS if ggml_type in FLOATS else TOLERANCE
    record_number(f"logits of a tiny model in {ggml_type.name}: relative RMS error", error, f"<= {tolerance}")
    assert error <= tolerance
