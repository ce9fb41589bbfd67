"""The `qwen2` family: Qwen 1.5, 2 and 2.5, Qwen2.5-Coder.

Rotates the two halves of a head against each other; q, k and v have biases; small ones tie the output to the embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from garzone.engine.architecture.config import ModelConfig, read_config
from garzone.kernels.registry import RopePairs


def configure(metadata: Mapping[str, Any], vocab_size: int, num_ctx: int) -> ModelConfig:
    """The configuration; raises as `read_config`."""
    return read_config(
        metadata,
        "qwen2",
        rope_pairs=RopePairs.HALVES,
        attention_bias=True,
        vocab_size=vocab_size,
        num_ctx=num_ctx,
    )
