"""The dense `qwen3` family: Qwen3 0.6B to 32B.

As `qwen2`, but each head of queries and keys is normalised before it is rotated, and there are no biases.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from garzone.engine.architecture.config import ModelConfig, read_config
from garzone.kernels.registry import RopePairs


def configure(metadata: Mapping[str, Any], vocab_size: int, num_ctx: int) -> ModelConfig:
    """The configuration; raises as `read_config`."""
    config = read_config(
        metadata,
        "qwen3",
        rope_pairs=RopePairs.HALVES,
        attention_bias=False,
        vocab_size=vocab_size,
        num_ctx=num_ctx,
    )
    return replace(config, qk_norm=True)
