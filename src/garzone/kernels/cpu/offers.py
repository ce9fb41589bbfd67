"""The C kernels as implementations of the registry's operations.

Builds: weights are packed into memory of our own, and the struct that the C code reads is filled. Launching is
`trampoline.py`'s business, computing is C's.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
from collections.abc import Callable, Iterable, Sequence, Set
from functools import cache
from typing import Final, cast

import numpy as np
from tinygrad.dtype import dtypes
from tinygrad.tensor import Tensor

from garzone.core.errors import DeviceUnavailable, GGUFError
from garzone.core.generation import KVCacheType
from garzone.kernels.cpu import library
from garzone.kernels.cpu.library import (
    MATRIX_TYPES,
    MOST_HEAD_SIZE,
    SPAN,
    CallKind,
    GateKind,
    attention_library,
    matrix_library,
    operation_library,
    shared_threads,
)
from garzone.kernels.cpu.memory import Arena
from garzone.kernels.cpu.program import Program, Recording, Values
from garzone.kernels.cpu.traffic import MatrixSize
from garzone.kernels.cpu.trampoline import launch
from garzone.kernels.launch import variables
from garzone.kernels.layouts import GGMLType
from garzone.kernels.registry import (
    AttentionFunction,
    AttentionSpec,
    Builder,
    Cache,
    EmbedSpec,
    LinearSpec,
    Matrix,
    Offer,
    Operation,
    Place,
    RopePairs,
    Step,
)

_log = logging.getLogger(__name__)

RANK: Final = 100  # above anything portable
_PACKED_AT_ONCE: Final = 64 << 20  # bytes of a matrix, so that a large one is not in memory twice
LANES: Final = 16  # positions, rows and head elements come in sixteens (csrc/lanes.h)


class Model:
    """What the operations of one model share: memory for weights, and the workspace they take turns in."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.arena = Arena()
        self.operations = operation_library()
        self.threads = shared_threads()
        self.workspace = library.Workspace(pool=self.threads.address)
        self._sizes: dict[str, int] = {}
        self._matrices: dict[str, library.Matrix] = {}
        self.sizes: dict[int, MatrixSize] = {}  # by where the weights lie
        self.cached_number_bytes = 0.0  # what a number takes in the cache

    @property
    def workspace_address(self) -> int:
        """Where the C code finds the workspace; its fields may still grow until the first launch."""
        return ctypes.addressof(self.workspace)

    def need(self, **num_bytes: int) -> None:
        """Make the named fields of the workspace at least that large."""
        for name, size in num_bytes.items():
            if size > self._sizes.get(name, 0):
                setattr(self.workspace, name, self.take(size))
                self._sizes[name] = size

    def need_activations(self, columns: int) -> None:
        """Make room for a chunk of that many columns, as floats and quantised."""
        rows = self.place.chunk_tokens
        wide = -(-columns // 32) * 32
        quantised = max(self.operations.activation_bytes(count, wide) for count in (1, rows))
        self.need(quantised=quantised, normalised=4 * rows * columns)

    def take(self, num_bytes: int) -> int:
        """Memory for weights, caches or working space."""
        self.place.memory_bytes += num_bytes
        return self.arena.take(num_bytes)

    def floats(self, values: np.ndarray) -> int:
        """The address of a copy of those numbers, as float32."""
        array = np.ascontiguousarray(values, np.float32)
        address = self.take(array.nbytes)
        ctypes.memmove(address, array.ctypes.data, array.nbytes)
        return address

    def read_weights_seconds(self) -> float:
        """How long this machine takes to read every weight once and do nothing with it."""
        ceiling = library.Ceiling()
        return sum(ceiling.read_seconds(address, size.kept) for address, size in self.sizes.items())

    def matrix(self, matrix: Matrix) -> library.Matrix:
        """The packed matrix, made once: a tied embedding serves as output too.

        Raises:
            GGUFError: a weight is not a finite number; names the tensor.
        """
        if matrix.name not in self._matrices:
            self._matrices[matrix.name] = self._pack(matrix)
        return self._matrices[matrix.name]

    def _pack(self, matrix: Matrix) -> library.Matrix:
        kernels = matrix_library(matrix.ggml_type)
        raw = np.ascontiguousarray(matrix.read().reshape(matrix.rows, -1)).view(np.uint8)
        pointers = raw.ctypes.data + np.arange(matrix.rows, dtype=np.uint64) * np.uint64(raw.strides[0])
        packed = self.take(kernels.packed_bytes(matrix.rows, matrix.columns))
        at_once = max(_PACKED_AT_ONCE // raw.strides[0] // LANES, 1) * LANES
        damaged = 0
        for first in range(0, matrix.rows, at_once):
            count = min(at_once, matrix.rows - first)
            to = packed + kernels.packed_bytes(first, matrix.columns)
            damaged += kernels.pack(self.threads.address, to, pointers[first:].ctypes.data, count, matrix.columns)
            matrix.let_go()
        if damaged:
            raise GGUFError(
                f"tensor {matrix.name!r}: holds weights that are not finite; the file is damaged, fetch it again"
            )
        self.sizes[packed] = MatrixSize(kernels.packed_bytes(matrix.rows, matrix.columns), int(raw.nbytes))
        return library.Matrix(
            multiply=library.address_of(kernels.multiply_groups),
            unpack_row=library.address_of(kernels.unpack_row),
            weights=packed,
            rows=matrix.rows,
            columns=matrix.columns,
            is_float=kernels.is_float,
        )


def model_of(place: Place) -> Model:
    """What the operations built at that place share."""
    if "cpu kernels" not in place.shared:
        place.shared["cpu kernels"] = Model(place)
    return place.shared["cpu kernels"]


def _build_embed(spec: EmbedSpec, place: Place) -> Callable[[Step], Tensor]:
    model = model_of(place)
    operation = library.Embed(workspace=model.workspace_address, table=model.matrix(spec.table), scale=spec.scale)
    address, columns = ctypes.addressof(operation), spec.table.columns

    def embed(step: Step) -> Tensor:
        if isinstance(step, Recording):
            return cast(Tensor, step.add(CallKind.EMBED, operation, step.rows, columns))
        out = Tensor.empty(step.rows, columns, dtype=dtypes.float32, device=place.device)
        run = model.operations.run_embed
        return launch(f"embed_{columns}", run, address, [out, step.tokens], [step.count])[0]

    return embed


def _build_linear(spec: LinearSpec, place: Place) -> Callable[..., Tensor] | None:
    if len(spec.matrices) > library.MOST_MATRICES or (spec.gated and spec.post_norm is not None):
        return None
    model, rows = model_of(place), place.chunk_tokens
    model.need_activations(spec.columns)
    if spec.gated:
        model.need(wide=4 * rows * 2 * spec.out_columns)
    elif spec.post_norm is not None:
        model.need(wide=4 * rows * spec.out_columns)
    matrices = (library.Matrix * library.MOST_MATRICES)()
    first_row = 0
    for index, matrix in enumerate(spec.matrices):
        matrices[index] = model.matrix(matrix)
        if spec.bias is not None:
            matrices[index].bias = model.floats(spec.bias[first_row : first_row + matrix.rows])
        first_row += matrix.rows
    operation = library.Linear(
        workspace=model.workspace_address,
        matrices=matrices,
        num_matrices=len(spec.matrices),
        norm=None if spec.norm is None else model.floats(spec.norm),
        post_norm=None if spec.post_norm is None else model.floats(spec.post_norm),
        epsilon=spec.norm_eps,
        columns=spec.columns,
        out_columns=spec.out_columns,
        gate=GateKind[spec.gate.name] if spec.gated else GateKind.NONE,
        last_row=spec.last_row,
    )
    address, name = ctypes.addressof(operation), f"linear_{first_row}_{spec.columns}"

    def linear(x: Tensor, step: Step, residual: Tensor | None = None) -> Tensor:
        if isinstance(step, Recording):
            addresses = {"x": _address(x), "residual": None if residual is None else _address(residual)}
            return cast(Tensor, step.add(CallKind.LINEAR, operation, step.rows, spec.out_columns, **addresses))
        out_rows = 1 if spec.last_row else step.rows
        out = Tensor.empty(out_rows, spec.out_columns, dtype=dtypes.float32, device=place.device)
        if residual is None:
            return launch(name, model.operations.run_linear, address, [out, x], [step.count])[0]
        run = model.operations.run_linear_residual
        return launch(name + "_add", run, address, [out, x, residual], [step.count])[0]

    return linear


class _Rows:
    """One layer's cache, whose layout is the C library's business."""

    def __init__(self, kernels: library.AttentionLibrary, cache: library.KVCache, kv_cache: KVCacheType) -> None:
        self._kernels, self._cache = kernels, cache
        self._dtype = np.dtype(np.float16 if kv_cache is KVCacheType.F16 else np.uint8)
        self._width = kernels.row_bytes(cache.head_size) // self._dtype.itemsize

    @property
    def address(self) -> int:
        """Where it begins."""
        return self._cache.rows or 0

    def copy(self, from_slot: int, to_slot: int, num_rows: int) -> None:
        """See AttentionFunction."""
        self._kernels.copy_rows(self._cache, from_slot, to_slot, num_rows)

    def read(self, slot: int, start: int, count: int) -> np.ndarray:
        """See AttentionFunction."""
        rows = np.empty((count, 2, self._cache.kv_heads, self._width), self._dtype)
        self._kernels.read_rows(self._cache, slot, start, count, rows.ctypes.data)
        return rows

    def write(self, slot: int, start: int, rows: np.ndarray) -> None:
        """See AttentionFunction."""
        rows = np.ascontiguousarray(rows, self._dtype)
        self._kernels.write_rows(self._cache, slot, start, len(rows), rows.ctypes.data)


class _Attention:
    """Attention of every layer with the same sizes."""

    def __init__(self, spec: AttentionSpec, place: Place) -> None:
        self._spec, self.place, self._model = spec, place, model_of(place)
        self._kernels = attention_library(spec.kv_cache)
        self._model.cached_number_bytes = self._kernels.row_bytes(spec.head_dim) / spec.head_dim
        self._num_spans = -(-place.num_ctx // SPAN)
        self.span_bytes = spec.num_kv_heads * self._kernels.head_span_bytes(spec.head_dim)
        rows, threads = place.chunk_tokens, self._model.threads.num_threads
        scratch = max(
            self._kernels.scratch_bytes(count, spec.num_heads, spec.num_kv_heads, threads, self._num_spans * SPAN)
            for count in (1, rows)
        )
        self._model.need(
            queries=4 * rows * spec.num_heads * spec.head_dim, slots=4 * rows, positions=4 * rows, scratch=scratch
        )
        self._caches: dict[Tensor, _Rows] = {}
        self._operation = library.SelfAttention(
            workspace=self._model.workspace_address,
            attend=library.address_of(self._kernels.attend),
            store_kv=library.address_of(self._kernels.store_kv),
            cache=library.KVCache(
                slot_bytes=self._num_spans * self.span_bytes,
                span_bytes=self.span_bytes,
                kv_heads=spec.num_kv_heads,
                head_size=spec.head_dim,
                positions=self._num_spans * SPAN,
            ),
            heads=spec.num_heads,
            rope=place.made_of(spec.rope, "cpu rope", lambda: self._model.floats(spec.rope)),
            q_norm=None if spec.q_norm is None else self._model.floats(spec.q_norm),
            k_norm=None if spec.k_norm is None else self._model.floats(spec.k_norm),
            epsilon=spec.norm_eps,
            query_scale=spec.score_scale,
            rotated=spec.rope_dims,
            adjacent=spec.rope_pairs is RopePairs.ADJACENT,
            window=spec.window,
        )

    def new_cache(self) -> Cache:
        """Zeroed keys and values of one layer and slot, in one tensor."""
        return self._cache_at(self._model.take(self._num_spans * self.span_bytes), 1)

    def _cache_at(self, address: int, num_slots: int) -> Cache:
        """The cache of a layer that begins there. The tensor has its size, whatever lies between its spans."""
        size = num_slots * self._num_spans * self.span_bytes
        cache = Tensor.from_blob(address, (size,), dtype=dtypes.uint8, device=self.place.device)
        layout = library.KVCache.from_buffer_copy(self._operation.cache)
        layout.rows = address
        self._caches[cache] = _Rows(self._kernels, layout, self._spec.kv_cache)
        return (cache,)

    def place_cache(self, address: int, num_slots: int, span_bytes: int) -> Cache:
        """The cache of a layer whose spans lie that far apart, others' between them; steps are about such from now on.

        The caches of one model lie in one piece, span by span, so that the system's large pages fill up with rows that
        were computed: of what a slot has not used yet, nothing is touched.
        """
        self._operation.cache.span_bytes = span_bytes
        self._operation.cache.slot_bytes = self._num_spans * span_bytes
        return self._cache_at(address, num_slots)

    def num_bytes(self, num_slots: int, span_bytes: int) -> int:
        """What caches of slots take whose spans are that large."""
        return num_slots * self._num_spans * span_bytes

    def copy_rows(self, cache: Cache, from_slot: int, to_slot: int, num_rows: int) -> None:
        """See AttentionFunction."""
        self._caches[cache[0]].copy(from_slot, to_slot, num_rows)

    def read_rows(self, cache: Cache, slot: int, start: int, count: int) -> np.ndarray:
        """See AttentionFunction."""
        return self._caches[cache[0]].read(slot, start, count)

    def write_rows(self, cache: Cache, slot: int, start: int, rows: np.ndarray) -> None:
        """See AttentionFunction."""
        self._caches[cache[0]].write(slot, start, rows)

    def __call__(self, qkv: Tensor, cache: Cache, step: Step) -> tuple[Tensor, Cache]:
        """See AttentionFunction."""
        width = self._spec.num_heads * self._spec.head_dim
        if isinstance(step, Recording):
            addresses = {"x": _address(qkv), "cache": self._caches[cache[0]].address}
            return cast(Tensor, step.add(CallKind.ATTENTION, self._operation, step.rows, width, **addresses)), cache
        out = Tensor.empty(step.rows, width, dtype=dtypes.float32, device=self.place.device)
        run, address = self._model.operations.run_attention, ctypes.addressof(self._operation)
        name = f"attention_{self._spec.head_dim}"
        numbers = [step.start, step.count]
        out, keys_and_values, _ = launch(name, run, address, [out, *cache, qkv], numbers, written=(0, 1))
        return out, (keys_and_values,)


def _address(values: object) -> int:
    """What a value is while recording."""
    if not isinstance(values, Values):
        raise TypeError(f"an operation that was not recorded gave {type(values).__name__}")
    return values.address


def new_caches(attentions: Sequence[AttentionFunction], num_slots: int) -> list[Cache]:
    """A cache of several slots for each layer of a model that will be recorded.

    Raises:
        TypeError: an attention is not one of ours.
    """
    ours: list[_Attention] = []
    for attention in attentions:
        if not isinstance(attention, _Attention):
            raise TypeError(f"{type(attention).__name__} has no slots")
        ours.append(attention)
    if not ours:
        return []
    span_bytes = sum(attention.span_bytes for attention in ours)
    address = model_of(ours[0].place).take(ours[0].num_bytes(num_slots, span_bytes))
    caches: list[Cache] = []
    for attention in ours:
        caches.append(attention.place_cache(address, num_slots, span_bytes))
        address += attention.span_bytes
    return caches


def record(
    place: Place,
    states: Callable[[Step, list[Cache]], Tensor],
    output: Callable[[Tensor, Step], Tensor],
    caches: list[Cache],
) -> Program:
    """Record a model's step as one program.

    Args:
        place: where the model's operations were built, all of them by the C kernels.
        states: the model up to its last operation, as a TinyJit would run it.
        output: the last operation, one call: makes logits of states.
        caches: one for each layer, which the program will read and write.

    Raises:
        TypeError: an operation of the model is not one of ours.
    """
    tokens = Tensor.empty(place.chunk_tokens, dtype=dtypes.int32, device=place.device)
    start, count = variables(place.num_ctx, place.chunk_tokens)
    recording = Recording(place.chunk_tokens, tokens, start, count, model=model_of(place))
    x = states(recording, caches)
    logits = output(x, recording)
    if not isinstance(logits, Values) or not isinstance(x, Values):
        raise TypeError(f"an operation that was not recorded gave {type(x).__name__}, {type(logits).__name__}")
    return Program(recording, x, logits)


def _build_attention(spec: AttentionSpec, place: Place) -> _Attention | None:
    return _Attention(spec, place) if spec.head_dim <= MOST_HEAD_SIZE else None


@cache
def _available() -> bool:
    """Whether there is a C compiler that works; says once what is missing if not."""
    try:
        operation_library()
        shared_threads()
    except DeviceUnavailable as error:
        _log.warning("no C kernels, computing will be slow: %s", error)
        return False
    return True


def _where_available(build: Builder) -> Builder:
    """Declines where nothing can be compiled. Nothing is compiled before the first model on a CPU is built."""
    return lambda spec, place: build(spec, place) if _available() else None


OFFERS: Final = (
    Offer("C embed", Operation.EMBED, _where_available(_build_embed), "CPU", MATRIX_TYPES, RANK),
    Offer("C linear", Operation.LINEAR, _where_available(_build_linear), "CPU", MATRIX_TYPES, RANK),
    Offer("C attention", Operation.ATTENTION, _where_available(_build_attention), "CPU", rank=RANK),
)


def compile_ahead(types: Set[GGMLType], kv_cache: KVCacheType) -> None:
    """Compile at once what a model will need, where anything can be compiled; what is not found later is said then."""
    with contextlib.suppress(DeviceUnavailable):
        library.compile_ahead(types, kv_cache)


def can_record(chosen: Iterable[str]) -> bool:
    """Whether a model built from the offers of these names can be recorded."""
    return set(chosen) <= {offer.name for offer in OFFERS}
