"""Attention as UOps: rotary positions, a KV cache written in place, softmax in float32.

Portable like `portable.py`; cost grows with the position, not with the size of the cache.

Keys are kept in panels of 16 positions, (kv heads, positions / 16, head_dim, 16), so that scores are dot products of 16
positions at once, the way weights are multiplied; values as (kv heads, positions, head_dim), so that their weighted sum
runs along whole rows. They are halves, floats in models of float32, or bytes: with Q8_0 two more tensors hold the
factors, (kv heads, positions, head_dim / 32).
"""

from __future__ import annotations

from typing import Final

import numpy as np
from tinygrad.dtype import dtypes
from tinygrad.tensor import Tensor
from tinygrad.uop import Ops
from tinygrad.uop.ops import AxisType, UOp

from garzone.core.generation import KVCacheType
from garzone.kernels.launch import F32, PANEL, Kernel, count, empty, info, launch, split, start, sum_over
from garzone.kernels.registry import AttentionSpec, Cache, Place, RopePairs, Step, write

_MASKED: Final = -1e30  # exp() of it is 0, and unlike -inf it survives a subtraction of itself
_LOG2_E: Final = 1.4426950408889634
_GROUP: Final = 32  # elements that share a factor in Q8_0
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
        self.is_q8_0 = spec.kv_cache is KVCacheType.Q8_0
        self.groups = spec.head_dim // _GROUP
        self.row = (spec.num_heads + 2 * spec.num_kv_heads) * spec.head_dim

    def new_cache(self) -> Cache:
        """Zeroed keys and values of one layer, and factors where it has them."""
        size = self.spec.num_kv_heads * self.positions * self.spec.head_dim
        if self.is_q8_0:
            arrays = [np.zeros(size, np.int8)] * 2 + [np.zeros(size // _GROUP, np.float16)] * 2
        else:
            arrays = [np.zeros(size, np.float32 if self.spec.exact_cache else np.float16)] * 2
        return tuple(self.place.upload(array) for array in arrays)

    def read_rows(self, cache: Cache, slot: int, start: int, count: int) -> np.ndarray:
        """See AttentionFunction. Takes the whole cache from the device: for what happens once a conversation."""
        keys, values, *factors = self._arrays(cache)
        seen = slice(start, start + count)
        rows = np.stack([keys.transpose(0, 1, 3, 2).reshape(values.shape)[:, seen], values[:, seen]])
        if factors:
            blocks = np.zeros((*rows.shape[:-1], self.groups, 2 + _GROUP), np.uint8)
            blocks[..., :2] = np.stack([each[:, seen] for each in factors])[..., None].view(np.uint8)
            blocks[..., 2:] = rows.reshape(*rows.shape[:-1], self.groups, _GROUP).view(np.uint8)
            rows = blocks.reshape(*rows.shape[:-1], -1)
        return rows.transpose(2, 0, 1, 3)

    def copy_rows(self, cache: Cache, from_slot: int, to_slot: int, num_rows: int) -> None:
        """See AttentionFunction: a cache here has one slot."""

    def write_rows(self, cache: Cache, slot: int, start: int, rows: np.ndarray) -> None:
        """See AttentionFunction."""
        keys, values, *factors = arrays = self._arrays(cache)
        at = np.arange(start, start + len(rows))
        if factors:
            blocks = np.ascontiguousarray(rows).reshape(*rows.shape[:-1], self.groups, 2 + _GROUP)
            given = np.ascontiguousarray(blocks[..., :2]).view(np.float16)[..., 0]
            for which, each in enumerate(factors):
                each[:, at] = given[:, which].transpose(1, 0, 2)
            rows = blocks[..., 2:].reshape(*rows.shape[:-1], -1).view(np.int8)
        keys[:, at // PANEL, :, at % PANEL] = rows[:, 0].astype(keys.dtype)
        values[:, at] = rows[:, 1].transpose(1, 0, 2).astype(values.dtype)
        for tensor, array in zip(cache, arrays, strict=True):
            write(tensor, array)

    def _arrays(self, cache: Cache) -> list[np.ndarray]:
        """What the cache's tensors hold, copied from the device.

        Keys (kv heads, panels, head_dim, 16), values (kv heads, positions, head_dim), and factors of both (kv heads,
        positions, head_dim / 32) where there are any.
        """
        keys, values, *factors = (tensor.numpy().copy() for tensor in cache)
        heads, head_dim = self.spec.num_kv_heads, self.spec.head_dim
        parts = [keys.reshape(heads, -1, head_dim, PANEL), values.reshape(heads, -1, head_dim)]
        return parts + [each.reshape(heads, -1, self.groups) for each in factors]

    def __call__(self, qkv: Tensor, cache: Cache, step: Step) -> tuple[Tensor, Cache]:
        """See AttentionFunction."""
        spec = self.spec
        width = spec.num_heads * spec.head_dim
        if spec.q_norm is not None or spec.k_norm is not None:
            qkv = launch(self._normalise(step), step, empty(step, step.rows, self.row), qkv, self.norms)[0]
        fresh = step.rows * spec.num_kv_heads * spec.head_dim
        targets = [empty(step, fresh), empty(step, fresh)] if self.is_q8_0 else cache
        query, *stored = launch(
            self._rotate_and_store(step), step, empty(step, step.rows, width), *targets, qkv, self.rope
        )[:3]
        if self.is_q8_0:
            factors = launch(self._store_factors(step), step, *cache[2:], *stored)[:2]
            stored = launch(self._store_bytes(step), step, *cache[:2], *factors, *stored)[:4]
        size = step.rows * spec.num_heads * self.positions
        # keys and their factors, values and theirs
        scores = launch(self._scores(step), step, empty(step, size), query, *stored[0::2])[0]
        weights = launch(self._softmax(step), step, empty(step, size), scores)[0]
        out = launch(self._weighted_sum(step), step, empty(step, step.rows, width), weights, *stored[1::2])[0]
        return out, tuple(stored)

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

            def fresh_at(t: UOp, head: UOp, d: UOp) -> UOp:
                return (t * spec.num_kv_heads + head) * head_dim + d

            def key_at(t: UOp, head: UOp, d: UOp) -> UOp:
                if self.is_q8_0:
                    return keys[fresh_at(t, head, d)]
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
            at = fresh_at(t, head, d) if self.is_q8_0 else (head * positions + start(step) + t) * head_dim + d
            place = values[at]
            stores.append(place.store(value.cast(place.dtype)).end(t, head, d))
            return UOp.sink(*stores, arg=info(f"rotate_store_{head_dim}"))

        return kernel

    def _store_factors(self, step: Step) -> Kernel:
        """The factors of the step's keys and values, into the cache."""
        head_dim, heads = self.spec.head_dim, self.spec.num_kv_heads

        def kernel(key_factors: UOp, value_factors: UOp, *fresh: UOp) -> UOp:
            stores: list[UOp] = []
            for which, factors in enumerate((key_factors, value_factors)):
                given, first = fresh[which].flatten(), 4 * which
                t, head = UOp.range(count(step), first), UOp.range(heads, first + 1)
                group, each = UOp.range(self.groups, first + 2), UOp.range(_GROUP, first + 3, AxisType.REDUCE)
                value = given[(t * heads + head) * head_dim + group * _GROUP + each]
                factor = value.maximum(-value).reduce(each, arg=Ops.MAX) * (1 / 127)
                place = factors.flatten()[(head * self.positions + start(step) + t) * self.groups + group]
                stores.append(place.store(factor.cast(place.dtype)).end(t, head, group))
            return UOp.sink(*stores, arg=info(f"factors_{head_dim}"))

        return kernel

    def _store_bytes(self, step: Step) -> Kernel:
        """The step's keys and values over their factors, rounded, into the cache.

        Factors are read back as halves, which is what later steps will multiply by: within one kernel that rounding
        would be optimised away.
        """
        head_dim, heads = self.spec.head_dim, self.spec.num_kv_heads

        def kernel(keys: UOp, values: UOp, key_factors: UOp, value_factors: UOp, *fresh: UOp) -> UOp:
            stores: list[UOp] = []
            for which, factors in enumerate((key_factors, value_factors)):
                t, head = UOp.range(count(step), 3 * which), UOp.range(heads, 3 * which + 1)
                d, p = UOp.range(head_dim, 3 * which + 2), start(step) + t
                factor = self._factor(factors, head, p, d)
                inverse = (factor > 0).where(factor.reciprocal(), 0.0)
                value = fresh[which].flatten()[(t * heads + head) * head_dim + d] * inverse
                value = value.maximum(-127.0).minimum(127.0)
                rounded = (value + (value < 0).where(-0.5, 0.5)).cast(
                    dtypes.int8
                )  # a cast drops what follows the point
                place = values.flatten()[(head * self.positions + p) * head_dim + d]
                if which == 0:
                    panel = head * (self.positions // PANEL) + p // PANEL
                    place = keys.flatten()[(panel * head_dim + d) * PANEL + p % PANEL]
                stores.append(place.store(rounded).end(t, head, d))
            return UOp.sink(*stores, arg=info(f"bytes_{head_dim}"))

        return kernel

    def _factor(self, factors: UOp, head: UOp, position: UOp, d: UOp) -> UOp:
        """What a cached byte is multiplied by."""
        return factors.flatten()[(head * self.positions + position) * self.groups + d // _GROUP].cast(F32)

    def _panels_in_use(self, step: Step) -> UOp:
        return (start(step) + count(step) + (PANEL - 1)) // PANEL

    def _scores(self, step: Step) -> Kernel:
        spec, head_dim = self.spec, self.spec.head_dim
        group = spec.num_heads // spec.num_kv_heads

        def kernel(scores: UOp, query: UOp, keys: UOp, *factors: UOp) -> UOp:
            query, keys = query.flatten(), keys.flatten()
            kv, panel = UOp.range(spec.num_kv_heads, 0), UOp.range(self._panels_in_use(step), 1)
            t, member = UOp.range(count(step), 2), UOp.range(group, 3)
            lane, d = UOp.range(PANEL, 4, AxisType.UPCAST), UOp.range(head_dim, 5, AxisType.REDUCE)
            head = kv * group + member
            key = keys[((kv * (self.positions // PANEL) + panel) * head_dim + d) * PANEL + lane].cast(F32)
            if factors:
                key = key * self._factor(factors[0], kv, panel * PANEL + lane, d)
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

        def kernel(out: UOp, weights: UOp, values: UOp, *factors: UOp) -> UOp:
            t, head, block = UOp.range(count(step), 0), UOp.range(spec.num_heads, 1), UOp.range(head_dim // lanes, 2)
            lane, p = UOp.range(lanes, 3, AxisType.UPCAST), UOp.range(start(step) + count(step), 4, AxisType.REDUCE)
            weight = weights[(t * spec.num_heads + head) * self.positions + p]
            d = block * lanes + lane
            value = values[((head // group) * self.positions + p) * head_dim + d].cast(F32)
            if factors:
                value = value * self._factor(factors[0], head // group, p, d)
            total = sum_over(weight * value, p) / sum_over(weight, p)
            at = (t * spec.num_heads + head) * head_dim + d
            return out.flatten()[at].store(total).end(t, head, block, lane).sink(arg=info(f"weighted_sum_{head_dim}"))

        return kernel


def build_attention(spec: AttentionSpec, place: Place) -> _Attention:
    """Attention for one place. All layers of a model may share it: the caches are the caller's."""
    return _Attention(spec, place)
