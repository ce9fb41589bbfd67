"""Attention of a model on a GPU: its caches, and which kernels a step launches.

It writes no device code (``attention`` does) and does not know which sequence is in which slot.
"""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import numpy as np
from tinygrad.dtype import dtypes
from tinygrad.tensor import Tensor
from tinygrad.uop.ops import UOp

from garzone.core.generation import KVCacheType
from garzone.kernels.gpu.activations import Kernel
from garzone.kernels.gpu.attention import Heads, attend, gather_parts, gathers_all, part_floats, rotate_and_store
from garzone.kernels.gpu.batch import Batch, Form, Pending, empty, intrinsics_of, run
from garzone.kernels.gpu.intrinsics import LANES, described
from garzone.kernels.gpu.linear import MOST_COLUMNS, Unrotated
from garzone.kernels.gpu.programs import remembered
from garzone.kernels.gpu.prompt_attention import attend_prompt, cut
from garzone.kernels.launch import count, launch, start
from garzone.kernels.registry import AttentionSpec, Cache, Place, RopePairs, Step, read, write

_MOST_SIZE = 256
_THREADS = 256


class Attention:
    """Attention of every layer with the same sizes."""

    def __init__(self, spec: AttentionSpec, place: Place):
        self._place, self._intrinsics = place, intrinsics_of(place)
        self._heads = Heads(
            queries=spec.num_heads,
            keys=spec.num_kv_heads,
            size=spec.head_dim,
            positions=-(-place.num_ctx // LANES) * LANES,
            rotated=spec.rope_dims,
            adjacent=spec.rope_pairs is RopePairs.ADJACENT,
        )
        key = ("gpu rope", spec.rope.tobytes())
        if key not in place.shared:
            # Positions that the cache has beyond the context are never used, but must be readable.
            table = np.zeros((self._heads.positions, *spec.rope.shape[1:]), np.float32)
            table[: len(spec.rope)] = spec.rope
            place.shared[key] = place.upload(table)
        self._rope: Tensor = place.shared[key]
        norms = [norm for norm in (spec.q_norm, spec.k_norm) if norm is not None]
        self._norms = [place.upload(norm.astype(np.float32)) for norm in norms]
        self._epsilon = spec.norm_eps if norms else None

    def new_cache(self) -> Cache:
        """Zeroed keys and values of one layer."""
        zeros = np.zeros(self._heads.cache_words, np.uint32)
        return self._place.upload(zeros), self._place.upload(zeros)

    def new_caches(self, num_layers: int, num_slots: int) -> list[Cache]:
        """The caches of all layers, each for that many slots. From then on steps are about these."""
        self._heads = replace(self._heads, slots=num_slots)
        return [self.new_cache() for _ in range(num_layers)]

    def read_rows(self, cache: Cache, slot: int, start: int, count: int) -> np.ndarray:
        """See AttentionFunction."""
        rows = np.empty((2, self._heads.keys, count, self._heads.size), np.float16)
        for tensor, one in zip(cache, rows, strict=True):
            for head, values in enumerate(one):
                read(tensor, values, self._byte(slot, head, start))
        return rows.transpose(2, 0, 1, 3)

    def write_rows(self, cache: Cache, slot: int, start: int, rows: np.ndarray) -> None:
        """See AttentionFunction."""
        for which, tensor in enumerate(cache):
            for head in range(self._heads.keys):
                write(tensor, rows[:, which, head].astype(np.float16), self._byte(slot, head, start))

    def _byte(self, slot: int, head: int, position: int) -> int:
        """Where a row of a head begins in keys or values, which are float16 (slots, kv heads, positions, size)."""
        heads = self._heads
        return ((slot * heads.keys + head) * heads.positions + position) * heads.size * 2

    def copy_rows(self, cache: Cache, from_slot: int, to_slot: int, num_rows: int) -> None:
        """See AttentionFunction. Nothing leaves the device."""
        which = self._place.upload(np.array([from_slot, to_slot, num_rows], np.int32))
        Tensor.realize(*self.copied(cache, which))

    def copied(self, cache: Cache, which: Tensor) -> list[Tensor]:
        """The cache once rows are copied within it; ``which`` is int32 [from slot, to slot, rows]."""
        step = Step(1, which, 0, 1)
        return [run(_copy_kernel(self._heads), step, tensor, which)[0] for tensor in cache]

    def __call__(self, qkv: Tensor, cache: Cache, step: Step) -> tuple[Tensor, Cache]:
        """See AttentionFunction. In a ``Batch`` the result is ``Pending``."""
        heads, rows = self._heads, step.rows
        places = step.places if isinstance(step, Batch) else self._places(step)
        given = [empty(self._place, dtypes.uint32, rows, heads.queries, heads.words), *cache]
        product = cast("Tensor | Unrotated", qkv)
        turned = None
        if isinstance(product, Unrotated) and not self._norms:
            turned = product.into_heads(heads, given, self._rope)
        if turned is None:
            floats = product.as_form(Form("float")) if isinstance(product, Unrotated) else product
            kernel = rotate_and_store(heads, rows, self._intrinsics, self._epsilon)
            turned = run(kernel, step, *given, floats, places, self._rope, *self._norms)
        queries, keys, values = turned[:3]
        is_prompt = rows > MOST_COLUMNS
        splits = cut(heads, rows).splits if is_prompt else 0
        kernel = (attend_prompt if is_prompt else attend)(heads, rows, self._intrinsics)
        parts = empty(self._place, dtypes.float, part_floats(heads, rows, splits))
        parts = run(kernel, step, parts, queries, keys, values, places)[0]

        def gathered(form: Form) -> Tensor:
            columns = heads.queries * heads.size
            out = empty(self._place, form.dtype, rows, form.words(columns))
            kernel = gather_parts(heads, rows, self._intrinsics, splits=splits, output=form.output, span=form.span)
            which = () if gathers_all(heads, rows, splits) else (places,)
            return run(kernel, step, out, parts, *which)[0].reshape(rows, -1)

        result = Pending(gathered) if isinstance(step, Batch) else gathered(Form("float"))
        return cast(Tensor, result), (keys, values)

    def _places(self, step: Step) -> Tensor:
        """The places of a step that says where it begins: position start + row, -1 from ``count`` on."""
        out = empty(self._place, dtypes.int, step.rows * 2)
        return launch(_places_kernel(step), step, out)[0]


def _places_kernel(step: Step) -> Kernel:
    def kernel(out: UOp) -> UOp:
        row = UOp.special(step.rows, "gidx0")
        position = (row < count(step)).where(row + start(step), -1)
        stores = (out[row * 2].store(UOp.const(0, dtypes.int)), out[row * 2 + 1].store(position))
        return UOp.group(*stores).sink(arg=described(f"places_{step.rows}"), tag=1)

    return kernel


@remembered
def _copy_kernel(heads: Heads) -> Kernel:
    """Copies the first positions of a slot to another: (cache, which), which int32 [from slot, to slot, positions]."""
    words = heads.positions * heads.words

    def kernel(cache: UOp, which: UOp) -> UOp:
        index = UOp.special(-(-words // _THREADS), "gidx0") * _THREADS + UOp.special(_THREADS, "lidx0")
        head = UOp.special(heads.keys, "gidx1")
        inside = (index < words) & (index // heads.words < which[2].load())
        source, target = [
            (which[i].load().maximum(0).minimum(heads.slots - 1) * heads.keys + head) * words + inside.where(index, 0)
            for i in range(2)
        ]
        store = cache.flatten()[target.valid(inside)].store(cache.flatten()[source].load())
        return store.sink(arg=described(f"copy_rows_{heads.slots}_{heads.keys}_{words}"), tag=1)

    return kernel


def _not_computed(spec: AttentionSpec) -> str:
    """What the attention asks for that the kernels would leave out; "" for nothing."""
    norms = [norm for norm in (spec.q_norm, spec.k_norm) if norm is not None]
    if len(norms) == 1 or (norms and spec.head_dim % (2 * LANES)):
        return f"attention with norms of queries and keys in heads of {spec.head_dim}"
    if spec.kv_cache is not KVCacheType.F16:
        return f"attention over a KV cache in {spec.kv_cache.value}"
    if spec.window:
        return "attention within a window"
    return "" if spec.scale in (None, spec.head_dim**-0.5) else "attention with its own scale"


def build_attention(spec: AttentionSpec, place: Place) -> Attention | None:
    """Attention, or None where sizes do not fit the kernels' lanes, the cache must be float32, or it wants more."""
    if missing := _not_computed(spec):
        place.warn_once(f"the GPU kernels do not compute {missing}: the portable ones do, slowly")
        return None
    fits = spec.head_dim % LANES == 0 and spec.head_dim <= _MOST_SIZE and not spec.exact_cache
    return Attention(spec, place) if fits else None
