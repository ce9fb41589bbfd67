"""How much memory a model takes, from its metadata alone. Pure: opens nothing.

An estimate before loading; afterwards the engine says what it really took.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Final, cast

from garzone.core.errors import Unsupported
from garzone.core.generation import KVCacheType

KV_BYTES_PER_NUMBER: Final[Mapping[KVCacheType, Fraction]] = {
    KVCacheType.F16: Fraction(2),
    KVCacheType.Q8_0: Fraction(34, 32),  # thirty-two bytes and a factor of two
}
_Q8_0_BLOCK: Final = 32
# Activations, attention scores of a chunk, logits, and what a driver keeps to itself. Measured on the CPU for models of
# 0.1 to 1 GB: 60 to 190 MB beside weights and cache.
OVERHEAD_BYTES: Final = 256 << 20


@dataclass(frozen=True, slots=True)
class Footprint:
    """What a model takes. `kv_bytes` of a context is `kv_bytes_per_token` times its tokens.

    `active_share` is the part of the weights that one token reads: less than 1 for mixtures of experts.
    """

    weights_bytes: int
    kv_bytes_per_token: int
    context_length: int
    active_share: float = 1.0

    def total_bytes(self, num_ctx: int) -> int:
        """Weights, cache and overhead with that many tokens of context."""
        return self.weights_bytes + self.kv_bytes_per_token * num_ctx + OVERHEAD_BYTES

    def largest_context(self, memory_bytes: int) -> int:
        """The most tokens of context that fit beside the weights, at most what it was trained for; 0 for none."""
        left = memory_bytes - self.weights_bytes - OVERHEAD_BYTES
        if left <= 0:
            return 0
        fitting = left // self.kv_bytes_per_token if self.kv_bytes_per_token else self.context_length
        return min(fitting, self.context_length) if self.context_length else fitting

    def read_bytes_per_token(self, num_ctx: int = 0) -> float:
        """Bytes read from memory for one token of one sequence, with so many tokens before it."""
        return self.weights_bytes * self.active_share + self.kv_bytes_per_token * num_ctx


def footprint(metadata: Mapping[str, Any], weights_bytes: int, kv_cache: KVCacheType = KVCacheType.F16) -> Footprint:
    """What a model takes.

    Args:
        metadata: GGUF metadata, or only its scalars: what is missing is estimated from above.
        weights_bytes: packed bytes of all tensors.
        kv_cache: how keys and values are kept.
    """
    keys = _Keys.of(metadata)
    layers = keys.whole("block_count")
    heads = keys.whole("attention.head_count")
    per_layer = keys.per_layer("attention.head_count_kv", layers)
    kv_heads = sum(per_layer) if per_layer else layers * heads
    width = sum(keys.head_sizes())
    experts, used = keys.whole("expert_count"), keys.whole("expert_used_count")
    # Everything but the experts is read for each token: attention and embeddings are some tenth of such a model.
    share = 0.1 + 0.9 * used / experts if experts and 0 < used <= experts else 1.0
    return Footprint(
        weights_bytes=weights_bytes,
        kv_bytes_per_token=int(kv_heads * width * KV_BYTES_PER_NUMBER[kv_cache]),
        context_length=keys.whole("context_length"),
        active_share=share,
    )


def check_kv_cache(metadata: Mapping[str, Any], kv_cache: KVCacheType) -> None:
    """Whether a model's keys and values can be kept that way.

    Raises:
        Unsupported: they cannot; says why, and what can be done.
    """
    if kv_cache is not KVCacheType.Q8_0:
        return
    for size in _Keys.of(metadata).head_sizes():
        if size % _Q8_0_BLOCK:
            raise Unsupported(
                f"the KV cache of this model cannot be kept in {kv_cache.value}: its heads have {size} elements, not a "
                f"multiple of {_Q8_0_BLOCK}; use f16 (--kv-cache f16, OLLAMA_KV_CACHE_TYPE=f16)"
            )


class _Keys:
    """Whole numbers of one architecture; whatever is not one counts as missing."""

    @classmethod
    def of(cls, metadata: Mapping[str, Any]) -> _Keys:
        architecture = metadata.get("general.architecture")
        return cls(metadata, architecture if isinstance(architecture, str) else "")

    def __init__(self, metadata: Mapping[str, Any], architecture: str) -> None:
        self._metadata, self._prefix = metadata, architecture + "."

    def whole(self, key: str, default: int = 0) -> int:
        value = self._metadata.get(self._prefix + key)
        if hasattr(value, "tolist"):
            value = max(cast("Any", value).tolist(), default=0)
        return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else default

    def head_sizes(self) -> tuple[int, int]:
        """Elements of a head's key and value; 0 where nobody says."""
        heads = self.whole("attention.head_count")
        size = self.whole("embedding_length") // heads if heads else 0
        return self.whole("attention.key_length", size), self.whole("attention.value_length", size)

    def per_layer(self, key: str, layers: int) -> list[int]:
        """One number a layer, whether the file has one for all or a list; empty if it has none."""
        value = self._metadata.get(self._prefix + key)
        if hasattr(value, "tolist"):
            value = cast("Any", value).tolist()
        if isinstance(value, Sequence) and not isinstance(value, str | bytes):
            return [int(each) for each in cast("Sequence[Any]", value)][:layers]
        return [value] * layers if isinstance(value, int) and not isinstance(value, bool) else []
