"""Attention as UOps: rotary positions, a float16 KV cache written in place, softmax in float32.

Portable like `portable.py`; cost grows with the position, not with the size of the cache.

Keys are kept in panels of 16 positions, (kv heads, positions / 16, head_dim, 16), so that scores are dot products of 16
positions at once, the way weights are multiplied; values as (kv heads, positions, head_dim), so that their weighted sum
runs along whole rows.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from tinygrad.dtype import dtypes
from tinygrad.tensor import Tensor
from tinygrad.uop import Ops
from tinygrad.uop.ops import AxisType, UOp

from garzone.kernels.launch import F32, PANEL, Kernel, count, empty, info, launch, split, start, sum_over
from garzone.kernels.registry import AttentionSpec, Cache, Place, RopePairs, Step, write

_MASKED: Final = -1e30  # exp() of it is 0, and unlike -inf it survives a subtraction of itself
_LOG2_E: Final = 1.4426950408889634
_VALUE_LANES: Final = 64  # elements of a value row summed at once: four AVX512 registers


class _Attention:
    """One model's attention: sizes, the rope table, and the three kernels."""

    def __init__(self, spec: AttentionSpec, place: Place) -> None:
        self.spec = spec
        self.place = place
        self.positions = -(-place.num_ctx // PANEL) * PANEL
        self.rope: Tensor = place.made_of(spec.rope, "rope", lambda: place.upload(spec.rope.astype("float32")))
        norms = [spec.q_norm, spec.k_norm]
        if any(norm is not None for norm in norms):
            ones = np.ones(spec.head_dim, np.float32)
            self.norms = place.upload(np.stack([ones if norm is None else norm for norm in norms]).astype(np.float32))
        self.cache_dtype = dtypes.float32 if spec.exact_cache else dtypes.float16
        self.row = (spec.num_heads + 2 * spec.num_kv_heads) * spec.head_dim

    def new_cache(self) -> Cache:
        """Zeroed keys and values of one layer."""
        zeros = np.zeros(
            self.spec.num_kv_heads * self.positions * self.spec.head_dim,
            np.float32 if self.spec.exact_cache else np.float16,
        )
        return self.place.upload(zeros), self.place.upload(zeros)

    def read_rows(self, cache: Cache, slot: int, start: int, count: int) -> np.ndarray:
        """See AttentionFunction. Takes the whole cache from the device: for what happens once a conversation."""
        keys, values = self._arrays(cache)
        rows = keys.transpose(0, 1, 3, 2).reshape(values.shape)[:, start : start + count]
        return np.stack([rows, values[:, start : start + count]]).transpose(2, 0, 1, 3)

    def copy_rows(self, cache: Cache, from_slot: int, to_slot: int, num_rows: int) -> None:
        """See AttentionFunction: a cache here has one slot."""

    def write_rows(self, cache: Cache, slot: int, start: int, rows: np.ndarray) -> None:
        """See AttentionFunction."""
        keys, values = self._arrays(cache)
        at = np.arange(start, start + len(rows))
        keys[:, at // PANEL, :, at % PANEL] = rows[:, 0].astype(keys.dtype)
        values[:, at] = rows[:, 1].transpose(1, 0, 2).astype(values.dtype)
        for tensor, array in zip(cache, (keys, values), strict=True):
            write(tensor, array)

    def _arrays(self, cache: Cache) -> tuple[np.ndarray, np.ndarray]:
        """Keys (kv heads, panels, head_dim, 16) and values (kv heads, positions, head_dim), copied from the device."""
        keys, values = (tensor.numpy().copy() for tensor in cache)
        heads, head_dim = self.spec.num_kv_heads, self.spec.head_dim
        return keys.reshape(heads, -1, head_dim, PANEL), values.reshape(heads, -1, head_dim)

    def __call__(self, qkv: Tensor, cache: Cache, step: Step) -> tuple[Tensor, Cache]:
        """See AttentionFunction."""
        spec = self.spec
        width = spec.num_heads * spec.head_dim
        if spec.q_norm is not None or spec.k_norm is not None:
            qkv = launch(self._normalise(step), step, empty(step, step.rows, self.row), qkv, self.norms)[0]
        query, keys, values = launch(
            self._rotate_and_store(step), step, empty(step, step.rows, width), *cache, qkv, self.rope
        )[:3]
        size = step.rows * spec.num_heads * self.positions
        scores = launch(self._scores(step), step, empty(step, size), query, keys)[0]
        weights = launch(self._softmax(step), step, empty(step, size), scores)[0]
        out = launch(self._weighted_sum(step), step, empty(step, step.rows, width), weights, values)[0]
        return out, (keys, values)

    def _normalise(self, step: Step) -> Kernel:
        """Each head of queries and keys divided by its root mean square, times the weights; values as they are."""
        spec, head_dim = self.spec, self.spec.head_dim

        def kernel(out: UOp, qkv: UOp, norms: UOp) -> UOp:
            out, qkv, norms = out.flatten(), qkv.flatten(), norms.flatten()
            stores: list[UOp] = []
            next_range = iter(range(100))
            first = 0
            for which, norm in enumerate((spec.q_norm, spec.k_norm, None)):
                heads = spec.num_heads if which == 0 else spec.num_kv_heads
                t, head = UOp.range(count(step), next(next_range)), UOp.range(heads, next(next_range))
                base = t * self.row + (head + first) * head_dim
                d = UOp.range(head_dim, next(next_range))
                value = qkv[base + d]
                if norm is not None:
                    each = UOp.range(head_dim, next(next_range), AxisType.REDUCE)
                    square = qkv[base + each] * qkv[base + each]
                    scale = (sum_over(square, each) * (1.0 / head_dim) + spec.norm_eps).sqrt().reciprocal()
                    value = value * scale * norms[which * head_dim + d]
                stores.append(out[base + d].store(value).end(t, head, d))
                first += heads
            return UOp.sink(*stores, arg=info(f"normalise_heads_{head_dim}"))

        return kernel

    def _rotate_and_store(self, step: Step) -> Kernel:
        spec, half = self.spec, self.spec.rope_dims // 2
        head_dim, positions = spec.head_dim, self.positions
        adjacent = spec.rope_pairs is RopePairs.ADJACENT

        def kernel(query: UOp, keys: UOp, values: UOp, qkv: UOp, rope: UOp) -> UOp:
            query, keys, values, qkv, rope = (x.flatten() for x in (query, keys, values, qkv, rope))
            next_range = iter(range(100))

            def ranged(size: UOp | int, kind: AxisType = AxisType.WEAK) -> UOp:
                return UOp.range(size, next(next_range), kind)

            def query_at(t: UOp, head: UOp, d: UOp) -> UOp:
                return query[(t * spec.num_heads + head) * head_dim + d]

            def key_at(t: UOp, head: UOp, d: UOp) -> UOp:
                p = start(step) + t
                return keys[((head * (positions // PANEL) + p // PANEL) * head_dim + d) * PANEL + p % PANEL]

            stores: list[UOp] = []
            for heads, offset, target in (
                (spec.num_heads, 0, query_at),
                (spec.num_kv_heads, spec.num_heads * head_dim, key_at),
            ):
                t, head, i, second = ranged(count(step)), ranged(heads), ranged(half), ranged(2, AxisType.UPCAST)
                base = t * self.row + offset + head * head_dim
                d, partner = (
                    (i * 2 + second, i * 2 + 1 - second) if adjacent else (i + second * half, i + (1 - second) * half)
                )
                angle = ((start(step) + t) * half + i) * 2
                sign = second.cast(F32) * 2.0 - 1.0  # x' = x cos - y sin, y' = y cos + x sin
                value = qkv[base + d] * rope[angle] + qkv[base + partner] * rope[angle + 1] * sign
                place = target(t, head, d)
                stores.append(place.store(value.cast(place.dtype)).end(t, head, i, second))
                if head_dim > 2 * half:
                    t, head, i = ranged(count(step)), ranged(heads), ranged(head_dim - 2 * half)
                    place = target(t, head, i + 2 * half)
                    value = qkv[t * self.row + offset + head * head_dim + 2 * half + i]
                    stores.append(place.store(value.cast(place.dtype)).end(t, head, i))
            t, head, d = ranged(count(step)), ranged(spec.num_kv_heads), ranged(head_dim)
            value = qkv[t * self.row + ((spec.num_heads + spec.num_kv_heads + head) * head_dim) + d]
            stores.append(
                values[(head * positions + start(step) + t) * head_dim + d]
                .store(value.cast(self.cache_dtype))
                .end(t, head, d)
            )
            return UOp.sink(*stores, arg=info(f"rotate_store_{head_dim}"))

        return kernel

    def _panels_in_use(self, step: Step) -> UOp:
        return (start(step) + count(step) + (PANEL - 1)) // PANEL

    def _scores(self, step: Step) -> Kernel:
        spec, head_dim = self.spec, self.spec.head_dim
        group = spec.num_heads // spec.num_kv_heads

        def kernel(scores: UOp, query: UOp, keys: UOp) -> UOp:
            query, keys = query.flatten(), keys.flatten()
            kv, panel = UOp.range(spec.num_kv_heads, 0), UOp.range(self._panels_in_use(step), 1)
            t, member = UOp.range(count(step), 2), UOp.range(group, 3)
            lane, d = UOp.range(PANEL, 4, AxisType.UPCAST), UOp.range(head_dim, 5, AxisType.REDUCE)
            head = kv * group + member
            key = keys[((kv * (self.positions // PANEL) + panel) * head_dim + d) * PANEL + lane].cast(F32)
            dot = sum_over(key * query[(t * spec.num_heads + head) * head_dim + d], d) * spec.score_scale
            p, own = panel * PANEL + lane, start(step) + t
            is_seen = (p <= own) & (own < p + spec.window) if spec.window else p <= own
            value = is_seen.where(dot, UOp.const(_MASKED, F32))
            at = (t * spec.num_heads + head) * self.positions + p
            return scores[at].store(value).end(kv, panel, t, member, lane).sink(arg=info(f"scores_{head_dim}"))

        return kernel

    def _softmax(self, step: Step) -> Kernel:
        """Numerators only: the sum is taken beside the weighted values."""
        spec = self.spec

        def kernel(weights: UOp, scores: UOp) -> UOp:
            t, head = UOp.range(count(step), 0), UOp.range(spec.num_heads, 1)
            base = (t * spec.num_heads + head) * self.positions
            panel, lane = UOp.range(self._panels_in_use(step), 2, AxisType.REDUCE), UOp.range(PANEL, 3, AxisType.UNROLL)
            highest = scores[base + panel * PANEL + lane].reduce(panel, lane, arg=Ops.MAX)
            panel2, lane2 = UOp.range(self._panels_in_use(step), 4), UOp.range(PANEL, 5, AxisType.UPCAST)
            at = base + panel2 * PANEL + lane2
            value = ((scores[at] - highest) * _LOG2_E).exp2()
            return weights[at].store(value).end(t, head, panel2, lane2).sink(arg=info("softmax"))

        return kernel

    def _weighted_sum(self, step: Step) -> Kernel:
        spec, head_dim = self.spec, self.spec.head_dim
        group = spec.num_heads // spec.num_kv_heads
        lanes = split(head_dim, _VALUE_LANES)

        def kernel(out: UOp, weights: UOp, values: UOp) -> UOp:
            t, head, block = UOp.range(count(step), 0), UOp.range(spec.num_heads, 1), UOp.range(head_dim // lanes, 2)
            lane, p = UOp.range(lanes, 3, AxisType.UPCAST), UOp.range(start(step) + count(step), 4, AxisType.REDUCE)
            weight = weights[(t * spec.num_heads + head) * self.positions + p]
            d = block * lanes + lane
            value = values[((head // group) * self.positions + p) * head_dim + d].cast(F32)
            total = sum_over(weight * value, p) / sum_over(weight, p)
            at = (t * spec.num_heads + head) * head_dim + d
            return out.flatten()[at].store(total).end(t, head, block, lane).sink(arg=info(f"weighted_sum_{head_dim}"))

        return kernel


def build_attention(spec: AttentionSpec, place: Place) -> _Attention:
    """Attention for one place. All layers of a model may share it: the caches are the caller's."""
    return _Attention(spec, place)
