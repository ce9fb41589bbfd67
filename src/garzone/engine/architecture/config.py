"""What a model is made of, read from GGUF metadata; refuses whatever would be computed wrongly.

Does not look at tensors.

Keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md#llm and `llama-arch.cpp` of llama.cpp.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from garzone.core.errors import GGUFError, UnsupportedModel
from garzone.kernels.registry import Gate, RopePairs


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary positions: pairs rotated together, how many elements of a head, base, and linear scaling."""

    pairs: RopePairs
    dims: int
    base: float
    linear_factor: float

    def table(self, num_ctx: int, factors: np.ndarray | None = None) -> np.ndarray:
        """(num_ctx, dims / 2, 2) float32: cosine and sine of position / linear_factor * base ** (-2 i / dims).

        `factors` (dims / 2,) divide the frequencies: Llama 3.1's `rope_freqs.weight`.
        """
        frequency = self.base ** (-np.arange(0, self.dims, 2, dtype=np.float64) / self.dims) / self.linear_factor
        if factors is not None:
            frequency = frequency / factors.astype(np.float64)
        angle = np.arange(num_ctx, dtype=np.float64)[:, None] * frequency
        return np.stack([np.cos(angle), np.sin(angle)], axis=-1).astype(np.float32)


@dataclass(frozen=True, slots=True)
class LocalAttention:
    """Layers that see only the latest `window` positions, and rotate them their own way. `layers`: which ones."""

    window: int
    rope: Rope
    layers: frozenset[int]


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """What a dense decoder is made of.

    `context_length` is what it was trained for, `num_ctx` what it is loaded with. With `qk_norm` each head of queries
    and keys is normalised, with `post_norms` also what attention and feed-forward add to the states.
    """

    architecture: str
    vocab_size: int
    num_layers: int
    hidden: int
    feed_forward: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm_eps: float
    rope: Rope
    context_length: int
    num_ctx: int
    attention_bias: bool
    qk_norm: bool = False
    post_norms: bool = False
    gate: Gate = Gate.SILU
    embedding_scale: float = 1.0
    attention_scale: float | None = None
    local: LocalAttention | None = None


# Keys that change the arithmetic in ways that are not implemented; the value in the middle is the harmless one.
_UNSUPPORTED = (
    ("expert_count", 0, "mixture of experts"),
    ("attention.scale", 0.0, "its own attention scale"),
    ("attention.clamp_kqv", 0.0, "clamped q, k, v"),
    ("attention.max_alibi_bias", 0.0, "ALiBi"),
    ("attn_logit_softcapping", 0.0, "logit soft-capping"),
    ("final_logit_softcapping", 0.0, "logit soft-capping"),
    ("logit_scale", 0.0, "scaled logits"),
    ("residual_scale", 0.0, "scaled residuals"),
    ("embedding_scale", 0.0, "scaled embeddings"),
    ("use_parallel_residual", False, "parallel residuals"),
)


class Keys:
    """The keys of one architecture, with typed access that names what is missing or wrong."""

    def __init__(self, metadata: Mapping[str, Any], architecture: str) -> None:
        self._metadata = metadata
        self._architecture = architecture

    def name(self, key: str) -> str:
        """The full key."""
        return f"{self._architecture}.{key}"

    def get(self, key: str, default: Any = None) -> Any:
        """The value as the file has it."""
        return self._metadata.get(self.name(key), default)

    def whole(self, key: str, default: int | None = None) -> int:
        """A positive whole number. A list of equal ones (per layer) counts as that one.

        Raises:
            GGUFError: missing, or not a positive whole number.
            UnsupportedModel: it differs from layer to layer.
        """
        value = self.get(key, default)
        if isinstance(value, np.ndarray | list):
            if len(set(map(int, value))) != 1:
                raise UnsupportedModel(f"{self.name(key)} differs from layer to layer, which is not supported")
            value = int(value[0])
        if value is None:
            raise GGUFError(f"metadata key {self.name(key)!r} is missing")
        if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
            raise GGUFError(f"metadata key {self.name(key)!r} is {value!r}; it must be a positive whole number")
        return value

    def real(self, key: str, default: float | None = None) -> float:
        """A positive finite number.

        Raises:
            GGUFError: missing, or not a positive number.
        """
        value = self.get(key, default)
        if value is None:
            raise GGUFError(f"metadata key {self.name(key)!r} is missing")
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise GGUFError(f"metadata key {self.name(key)!r} is {value!r}; it must be a positive number")
        return float(value)


def read_config(
    metadata: Mapping[str, Any],
    architecture: str,
    *,
    rope_pairs: RopePairs,
    attention_bias: bool,
    vocab_size: int,
    num_ctx: int,
    local_layers: bool = False,
) -> ModelConfig:
    """The configuration of a dense decoder of the Llama kind.

    Args:
        metadata: of the file.
        architecture: prefix of its keys.
        rope_pairs: how this family pairs the elements it rotates.
        attention_bias: whether q, k and v must have biases.
        vocab_size: rows of the embedding.
        num_ctx: tokens asked for; capped at what the model was trained for.
        local_layers: whether the family says which layers a sliding window is for, rather than all.

    Raises:
        GGUFError: a key is missing or has an impossible value.
        UnsupportedModel: a key asks for something that is not implemented.
    """
    keys = Keys(metadata, architecture)
    for key, harmless, what in _UNSUPPORTED:
        value = keys.get(key, harmless)
        if value not in (harmless, 1.0 if key.endswith("_scale") else harmless):
            raise UnsupportedModel(f"the model uses {what} ({keys.name(key)} = {value}), which is not supported")
    hidden, num_heads = keys.whole("embedding_length"), keys.whole("attention.head_count")
    num_kv_heads = keys.whole("attention.head_count_kv", num_heads)
    if num_heads % num_kv_heads:
        raise GGUFError(f"{num_heads} attention heads cannot share {num_kv_heads} key and value heads")
    if keys.get("attention.key_length") is None and hidden % num_heads:
        raise GGUFError(f"{keys.name('embedding_length')} {hidden} is not a multiple of {num_heads} heads")
    head_dim = keys.whole("attention.key_length", max(hidden // num_heads, 1))
    if keys.whole("attention.value_length", head_dim) != head_dim:
        raise UnsupportedModel("keys and values of different lengths are not supported")
    context_length = keys.whole("context_length")
    # Without layers of its own the window is not computed: a context within it is the same thing.
    window = (not local_layers and keys.get("attention.sliding_window")) or context_length
    return ModelConfig(
        architecture=architecture,
        vocab_size=vocab_size,
        num_layers=keys.whole("block_count"),
        hidden=hidden,
        feed_forward=keys.whole("feed_forward_length"),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        norm_eps=keys.real("attention.layer_norm_rms_epsilon"),
        rope=_rope(keys, rope_pairs, head_dim),
        context_length=context_length,
        num_ctx=max(1, min(num_ctx, context_length, int(window))),
        attention_bias=attention_bias,
    )


def _rope(keys: Keys, pairs: RopePairs, head_dim: int) -> Rope:
    dims = keys.whole("rope.dimension_count", head_dim)
    if dims > head_dim or dims % 2:
        raise GGUFError(f"{keys.name('rope.dimension_count')} is {dims}; it must be even and at most {head_dim}")
    kind = keys.get("rope.scaling.type", "linear" if keys.get("rope.scale_linear") else "none")
    if kind not in ("none", "linear"):
        raise UnsupportedModel(f"RoPE scaling of type {kind!r} is not supported; only linear scaling is")
    if keys.get("rope.scaling.attn_factor", 1.0) not in (0.0, 1.0):
        raise UnsupportedModel("RoPE scaling with its own attention factor is not supported")
    factor = keys.get("rope.scaling.factor", keys.get("rope.scale_linear", 1.0)) if kind == "linear" else 1.0
    if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0 < factor < float("inf"):
        raise GGUFError(f"{keys.name('rope.scaling.factor')} is {factor!r}; it must be a positive number")
    return Rope(pairs=pairs, dims=dims, base=keys.real("rope.freq_base", 10000.0), linear_factor=float(factor))
