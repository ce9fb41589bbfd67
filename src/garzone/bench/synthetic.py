"""Writes model files of well-known shapes with random weights: speed does not depend on what the weights are.

For measuring a model's size class where the model itself cannot be fetched. Says nothing about quality.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from garzone.core.errors import InvalidReference
from garzone.kernels.layouts import BLOCK, GGMLType
from garzone.testing import write_gguf

PREFIX: Final = "synthetic:"


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a dense Qwen2 decoder, whose files mix Q4_K and Q6_K the way llama.cpp's Q4_K_M does."""

    num_layers: int
    hidden: int
    feed_forward: int
    num_heads: int
    num_kv_heads: int
    vocab_size: int
    head_dim: int = 128


# Qwen2.5-Coder's own sizes: https://huggingface.co/Qwen/Qwen2.5-Coder-7B-Instruct/blob/main/config.json
SHAPES: Final = MappingProxyType(
    {
        "qwen2.5-coder-7b": Shape(28, 3584, 18944, 28, 4, 152_064),
        # a few layers of it, for measuring and testing in a hurry
        "qwen2.5-coder-7b-4layers": Shape(4, 3584, 18944, 28, 4, 32_000),
        "tiny": Shape(2, 256, 512, 2, 1, 512),
    }
)


def is_synthetic(reference: str) -> bool:
    """Whether a model reference names a shape of ours rather than a model."""
    return reference.startswith(PREFIX)


def fetch(reference: str, cache_dir: Path, progress: Callable[[str], None] = lambda _: None) -> Path:
    """The file of `synthetic:SHAPE`, written on first use. Others of its kind are removed: they are large.

    Raises:
        InvalidReference: no such shape.
    """
    name = reference.removeprefix(PREFIX)
    if name not in SHAPES:
        raise InvalidReference(f"there is no shape {name!r}; there are {', '.join(SHAPES)}")
    directory = cache_dir / "synthetic"
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{name}.gguf"
    if not path.exists():
        progress(f"writing {path}")
        for old in directory.glob("*.gguf"):
            old.unlink()
        partial = path.with_suffix(f".{os.getpid()}.partial")
        try:
            write_model(partial, SHAPES[name])
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    return path


def random_blocks(ggml_type: GGMLType, rows: int, columns: int, rng: np.random.Generator) -> np.ndarray:
    """Packed bytes (rows, bytes of a row): any bits, and factors that make weights of about 0.03 around zero.

    Types: the quantised ones that have fast kernels, and the floats.
    """
    block = BLOCK[ggml_type]
    match ggml_type:
        case GGMLType.F32:
            return (0.03 * rng.standard_normal((rows, columns), dtype=np.float32)).view(np.uint8)
        case GGMLType.F16:
            return (0.03 * rng.standard_normal((rows, columns))).astype(np.float16).view(np.uint8)
        case GGMLType.BF16:
            upper = (0.03 * rng.standard_normal((rows, columns), dtype=np.float32)).view(np.uint32) >> 16
            return upper.astype(np.uint16).view(np.uint8)
        case _:
            pass
    count = rows * columns // block.elements
    blocks = np.frombuffer(rng.bytes(count * block.bytes), np.uint8).reshape(count, block.bytes).copy()
    if ggml_type is GGMLType.MXFP4:
        blocks[:, 0] = rng.integers(118, 122, count)  # an exponent: 2 ** (e - 127), times values up to 12
    for at, size in _FACTORS[ggml_type].items():
        factors = (size * rng.uniform(0.5, 1.5, count)).astype(np.float16)
        blocks[:, at : at + 2] = factors.view(np.uint8).reshape(-1, 2)
    return blocks.reshape(rows, -1)


# Where a block's half-precision factors lie, and a size for each that centres the weights (ggml-common.h).
_FACTORS: Final[dict[GGMLType, dict[int, float]]] = {
    GGMLType.Q4_0: {0: 0.006},
    GGMLType.Q4_1: {0: 0.006, 2: -0.045},
    GGMLType.Q5_0: {0: 0.003},
    GGMLType.Q5_1: {0: 0.003, 2: -0.046},
    GGMLType.Q8_0: {0: 0.0004},
    GGMLType.Q2_K: {80: 0.003, 82: 0.0045},
    GGMLType.Q3_K: {108: 0.0008},
    GGMLType.Q4_K: {0: 2e-4, 2: 1.5e-3},
    GGMLType.Q5_K: {0: 1e-4, 2: 1.5e-3},
    GGMLType.Q6_K: {208: 2e-5},
    GGMLType.IQ4_NL: {0: 0.0004},
    GGMLType.IQ4_XS: {0: 2e-5},
    GGMLType.MXFP4: {},
}


def write_model(path: Path, shape: Shape, seed: int = 0) -> Path:
    """Write the file. Layers of one kind share their bytes in memory, not in the file."""
    rng = np.random.default_rng(seed)
    made: dict[tuple[GGMLType, int, int], tuple[int, tuple[int, ...], bytes]] = {}

    def matrix(rows: int, columns: int, ggml_type: GGMLType) -> tuple[int, tuple[int, ...], bytes]:
        key = (ggml_type, rows, columns)
        if key not in made:
            made[key] = (int(ggml_type), (rows, columns), random_blocks(ggml_type, rows, columns, rng).tobytes())
        return made[key]

    s, key_size = shape, shape.num_kv_heads * shape.head_dim
    tensors: dict[str, Any] = {"token_embd.weight": matrix(s.vocab_size, s.hidden, GGMLType.Q4_K)}
    for index in range(s.num_layers):
        name = f"blk.{index}."
        more = GGMLType.Q6_K if _gets_more_bits(index, s.num_layers) else GGMLType.Q4_K
        tensors[name + "attn_norm.weight"] = np.ones(s.hidden, np.float32)
        tensors[name + "attn_q.weight"] = matrix(s.num_heads * s.head_dim, s.hidden, GGMLType.Q4_K)
        tensors[name + "attn_k.weight"] = matrix(key_size, s.hidden, GGMLType.Q4_K)
        tensors[name + "attn_v.weight"] = matrix(key_size, s.hidden, more)
        for part, size in (("q", s.num_heads * s.head_dim), ("k", key_size), ("v", key_size)):
            tensors[f"{name}attn_{part}.bias"] = np.zeros(size, np.float32)
        tensors[name + "attn_output.weight"] = matrix(s.hidden, s.num_heads * s.head_dim, GGMLType.Q4_K)
        tensors[name + "ffn_norm.weight"] = np.ones(s.hidden, np.float32)
        tensors[name + "ffn_gate.weight"] = matrix(s.feed_forward, s.hidden, GGMLType.Q4_K)
        tensors[name + "ffn_up.weight"] = matrix(s.feed_forward, s.hidden, GGMLType.Q4_K)
        tensors[name + "ffn_down.weight"] = matrix(s.hidden, s.feed_forward, more)
    tensors["output_norm.weight"] = np.ones(s.hidden, np.float32)
    tensors["output.weight"] = matrix(s.vocab_size, s.hidden, GGMLType.Q6_K)
    metadata = {
        "general.architecture": "qwen2",
        "general.name": "random weights",
        "qwen2.context_length": 32_768,
        "qwen2.embedding_length": s.hidden,
        "qwen2.block_count": s.num_layers,
        "qwen2.feed_forward_length": s.feed_forward,
        "qwen2.attention.head_count": s.num_heads,
        "qwen2.attention.head_count_kv": s.num_kv_heads,
        "qwen2.attention.layer_norm_rms_epsilon": 1e-6,
        "qwen2.rope.freq_base": 1e6,
        "qwen2.vocab_size": s.vocab_size,
        "tokenizer.ggml.model": "no_vocab",  # llama.cpp then takes the size above
    }
    return write_gguf(path, metadata, tensors)


def _gets_more_bits(layer: int, num_layers: int) -> bool:
    """`use_more_bits` of llama.cpp's llama-quant.cpp: attn_v and ffn_down of these layers are Q6_K in a Q4_K_M file."""
    eighth = num_layers // 8
    return layer < eighth or layer >= 7 * num_layers // 8 or (layer - eighth) % 3 == 2
