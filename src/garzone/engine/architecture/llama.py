"""The `llama` family: Llama 1 to 3, SmolLM2, TinyLlama, Mistral 7B, and what converts to it.

Rotates adjacent elements, because llama.cpp's converter permutes q and k for that. Biases are optional.
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
        "llama",
        rope_pairs=RopePairs.ADJACENT,
        attention_bias=False,
        vocab_size=vocab_size,
        num_ctx=num_ctx,
    )
