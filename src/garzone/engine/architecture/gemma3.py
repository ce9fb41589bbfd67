"""The `gemma3` family, its text models: Gemma 3 270M to 27B.

Most layers see a window of the latest positions and rotate them with a base of their own; every sixth sees everything.
Queries, keys, and what each block adds to the states are normalised; the weights of all norms are stored as 1 + w.

Arithmetic: arXiv 2503.19786; keys and defaults: `gemma3` in llama.cpp's llama-model.cpp.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import numpy as np

from garzone.core.errors import GGUFError
from garzone.engine.architecture.config import Keys, LocalAttention, ModelConfig, Rope, read_config
from garzone.kernels.registry import Gate, RopePairs

_GLOBAL_EVERY: Final = 6  # layers, where the file does not say
_LOCAL_BASE: Final = 10000.0  # likewise
_LAYERS_OF_27B: Final = 62  # the one size whose scores are not scaled by the size of a head; no key says so


def configure(metadata: Mapping[str, Any], vocab_size: int, num_ctx: int) -> ModelConfig:
    """The configuration; raises as `read_config`."""
    config = read_config(
        metadata,
        "gemma3",
        rope_pairs=RopePairs.HALVES,
        attention_bias=False,
        vocab_size=vocab_size,
        num_ctx=num_ctx,
        local_layers=True,
    )
    keys = Keys(metadata, "gemma3")
    return replace(
        config,
        qk_norm=True,
        post_norms=True,
        gate=Gate.GELU,
        embedding_scale=config.hidden**0.5,
        attention_scale=(config.hidden / config.num_heads) ** -0.5 if config.num_layers == _LAYERS_OF_27B else None,
        local=_local(keys, config) if keys.get("attention.sliding_window") else None,
    )


def _local(keys: Keys, config: ModelConfig) -> LocalAttention:
    base = keys.real("rope.freq_base_swa", _LOCAL_BASE)
    return LocalAttention(
        window=keys.whole("attention.sliding_window"),
        rope=Rope(pairs=RopePairs.HALVES, dims=config.rope.dims, base=base, linear_factor=1.0),
        layers=frozenset(_local_layers(keys, config.num_layers)),
    )


def _local_layers(keys: Keys, num_layers: int) -> list[int]:
    """All but every so manieth; or those that a list marks."""
    pattern = keys.get("attention.sliding_window_pattern")
    if isinstance(pattern, np.ndarray | list):
        if len(pattern) < num_layers:
            raise GGUFError(
                f"{keys.name('attention.sliding_window_pattern')} marks {len(pattern)} of {num_layers} layers"
            )
        return [index for index in range(num_layers) if pattern[index]]
    every = keys.whole("attention.sliding_window_pattern", _GLOBAL_EVERY)
    return [index for index in range(num_layers) if index % every < every - 1]
