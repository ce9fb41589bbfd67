"""The compiled C, as Python sees it: thread pool, matrix libraries (one for each weight type), operations.

Knows pointers and structs; tensors and tinygrad are `offers.py`'s business.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Set
from concurrent.futures import ThreadPoolExecutor
from enum import IntEnum
from functools import cache
from pathlib import Path
from typing import ClassVar, Literal

from garzone.core.errors import DeviceUnavailable
from garzone.core.generation import KVCacheType
from garzone.kernels.cpu.compiler import Unit, compile_library
from garzone.kernels.cpu.instruction_sets import PORTABLE, InstructionSet, supported
from garzone.kernels.layouts import GGMLType

POOL = Unit("pool", ("pool.c",))
OPERATIONS = Unit("operations", ("program.c", "operations.c", "activation.c", "products.c"))
CEILING = Unit("ceiling", ("ceiling.c",))
QUANTISED = frozenset(
    {
        GGMLType.Q4_0,
        GGMLType.Q4_1,
        GGMLType.Q5_0,
        GGMLType.Q5_1,
        GGMLType.Q8_0,
        GGMLType.Q2_K,
        GGMLType.Q3_K,
        GGMLType.Q4_K,
        GGMLType.Q5_K,
        GGMLType.Q6_K,
        GGMLType.IQ4_NL,
        GGMLType.IQ4_XS,
        GGMLType.MXFP4,
    }
)
FLOATS = frozenset({GGMLType.F32, GGMLType.F16, GGMLType.BF16})
MATRIX_TYPES = QUANTISED | FLOATS

MOST_MATRICES = 3  # operations.h
MOST_HEAD_SIZE = 256  # attention.h
SPAN = 128  # attention.h: positions whose rows lie together

_pointer, _long, _float = ctypes.c_void_p, ctypes.c_long, ctypes.c_float


def _fields(kind: type, names: str) -> list[tuple[str, type]]:
    return [(name, kind) for name in names.split()]


class Pool(ctypes.Structure):
    """The public part of `struct Pool` (csrc/pool.h)."""

    _fields_: ClassVar = [("run", _pointer), ("threads", ctypes.c_uint)]


class Product(ctypes.Structure):
    """`Product` (csrc/linear.h)."""

    _fields_: ClassVar = [
        *_fields(_pointer, "weights activation out bias residual"),
        *_fields(_long, "rows columns tokens out_stride"),
    ]


class Normalise(ctypes.Structure):
    """`Normalise` (csrc/activation.h)."""

    _fields_: ClassVar = [
        *_fields(_pointer, "x rows norm"),
        ("epsilon", _float),
        *_fields(_long, "tokens columns stride"),
    ]


class Workspace(ctypes.Structure):
    """`Workspace` (csrc/operations.h)."""

    _fields_: ClassVar = _fields(_pointer, "pool quantised normalised wide queries slots positions scratch")


class Matrix(ctypes.Structure):
    """`Matrix` (csrc/operations.h)."""

    _fields_: ClassVar = [
        *_fields(_pointer, "multiply unpack_row weights bias"),
        *_fields(_long, "rows columns is_float"),
    ]


class Embed(ctypes.Structure):
    """`Embed` (csrc/operations.h)."""

    _fields_: ClassVar = [("workspace", _pointer), ("table", Matrix), ("scale", _float)]


class Linear(ctypes.Structure):
    """`Linear` (csrc/operations.h)."""

    _fields_: ClassVar = [
        ("workspace", _pointer),
        ("matrices", Matrix * MOST_MATRICES),
        ("num_matrices", _long),
        *_fields(_pointer, "norm post_norm"),
        ("epsilon", _float),
        *_fields(_long, "columns out_columns gate last_row"),
    ]


class KVCache(ctypes.Structure):
    """`KVCache` (csrc/attention.h)."""

    _fields_: ClassVar = [
        ("rows", _pointer),
        *_fields(_long, "slot_bytes span_bytes kv_heads head_size positions"),
    ]


class SelfAttention(ctypes.Structure):
    """`SelfAttention` (csrc/operations.h)."""

    _fields_: ClassVar = [
        *_fields(_pointer, "workspace attend store_kv"),
        ("cache", KVCache),
        ("heads", _long),
        *_fields(_pointer, "rope q_norm k_norm"),
        *_fields(_float, "epsilon query_scale"),
        *_fields(_long, "rotated adjacent window"),
    ]


class Attention(ctypes.Structure):
    """`Attention` (csrc/attention.h)."""

    _fields_: ClassVar = [
        ("cache", KVCache),
        *_fields(_pointer, "queries out slots positions"),
        *_fields(_long, "tokens heads query_stride window"),
        ("scratch", _pointer),
    ]


class GateKind(IntEnum):
    """`Gate` (csrc/operations.h)."""

    NONE = 0
    SILU = 1
    GELU = 2


class CallKind(IntEnum):
    """`CallKind` (csrc/program.h)."""

    EMBED = 0
    LINEAR = 1
    ATTENTION = 2


class Call(ctypes.Structure):
    """`Call` (csrc/program.h)."""

    _fields_: ClassVar = [("kind", _long), *_fields(_pointer, "operation out x residual cache")]


class Batch(ctypes.Structure):
    """`Batch` (csrc/operations.h)."""

    _fields_: ClassVar = [*_fields(_pointer, "tokens slots positions wanted"), *_fields(_long, "count num_wanted")]


def address_of(function: object) -> int:
    """Where a C function lies."""
    return ctypes.cast(function, _pointer).value or 0  # pyright: ignore[reportArgumentType]


def matrix_unit(ggml_type: GGMLType) -> Unit:
    """What has to be compiled to multiply with weights of that type."""
    name = ggml_type.name.lower()
    if ggml_type in FLOATS:
        return Unit(f"linear_{name}", ("linear_float.c",), (f"WEIGHT_{ggml_type.name}",))
    return Unit(f"linear_{name}", ("linear.c",), (f'QUANT="quants/{name}.h"',))


def attention_unit(kv_cache: KVCacheType) -> Unit:
    """What has to be compiled for attention over rows of that type."""
    return Unit(f"attention_{kv_cache.value}", ("attention.c",), (f'ROWS="rows/{kv_cache.value}.h"',))


def num_processors() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Threads:
    """A thread pool. Python's own lock is not held while it works.

    `address` is for kernels; `num_threads` counts those that work, the caller included.
    """

    def __init__(self, num_threads: int, *, cache_dir: Path | None = None) -> None:
        self._library = ctypes.CDLL(str(compile_library(POOL, PORTABLE, cache_dir=cache_dir)))
        self._library.pool_start.restype = ctypes.POINTER(Pool)
        self._library.pool_start.argtypes = [ctypes.c_uint]
        self._library.pool_stop.argtypes = [_pointer]
        self._library.pool_stop.restype = None
        pool = self._library.pool_start(max(1, num_threads))
        if not pool:
            raise DeviceUnavailable("not enough memory to start a thread pool")
        self.address = ctypes.addressof(pool.contents)
        self.num_threads = int(pool.contents.threads)
        self._stopped = False

    def stop(self) -> None:
        """End the threads. Nothing may be running on them, nor be run after; a second call does nothing."""
        if not self._stopped:
            self._library.pool_stop(self.address)
            self._stopped = True


class MatrixLibrary:
    """The matrix kernels of one weight type and instruction set; its functions are those of csrc/linear.h."""

    def __init__(
        self, ggml_type: GGMLType, instruction_set: InstructionSet | None = None, *, cache_dir: Path | None = None
    ) -> None:
        self.ggml_type = ggml_type
        self.instruction_set = instruction_set or supported()[0]
        self.is_float = ggml_type in FLOATS
        library = ctypes.CDLL(str(compile_library(matrix_unit(ggml_type), self.instruction_set, cache_dir=cache_dir)))
        self.packed_bytes = library.packed_bytes
        self.packed_bytes.argtypes, self.packed_bytes.restype = [_long, _long], _long
        self.pack = library.pack
        self.pack.argtypes, self.pack.restype = [_pointer, _pointer, _pointer, _long, _long], _long
        self.unpack_row = library.unpack_row
        self.unpack_row.argtypes, self.unpack_row.restype = [_pointer, _pointer, _long, _long], None
        self.multiply_groups = library.multiply_groups


class OperationLibrary:
    """Everything but matrix kernels and attention, for one instruction set.

    Its functions are those of csrc/operations.h, activation.h and products.h.
    """

    def __init__(self, instruction_set: InstructionSet | None = None, *, cache_dir: Path | None = None) -> None:
        self.instruction_set = instruction_set or supported()[0]
        library = ctypes.CDLL(str(compile_library(OPERATIONS, self.instruction_set, cache_dir=cache_dir)))
        self.activation_bytes = library.activation_bytes
        self.activation_bytes.argtypes, self.activation_bytes.restype = [_long, _long], _long
        self.quantise = library.quantise
        self.quantise.argtypes, self.quantise.restype = [_pointer, ctypes.POINTER(Normalise), _pointer], None
        self.normalise = library.normalise
        self.normalise.argtypes, self.normalise.restype = [_pointer, ctypes.POINTER(Normalise), _pointer], None
        self.multiply_together = library.multiply_together
        self.multiply_together.argtypes = [_pointer, ctypes.POINTER(Product), ctypes.POINTER(_pointer), ctypes.c_int]
        self.multiply_together.restype = None
        self.run_program = library.run_program
        self.run_program.argtypes, self.run_program.restype = [_pointer, _long, ctypes.POINTER(Batch)], None
        self.run_embed = address_of(library.run_embed)
        self.run_linear = address_of(library.run_linear)
        self.run_linear_residual = address_of(library.run_linear_residual)
        self.run_attention = address_of(library.run_attention)


class AttentionLibrary:
    """Attention over one type of rows, for one instruction set; its functions are those of csrc/attention.h."""

    def __init__(
        self,
        kv_cache: KVCacheType = KVCacheType.F16,
        instruction_set: InstructionSet | None = None,
        *,
        cache_dir: Path | None = None,
    ) -> None:
        self.instruction_set = instruction_set or supported()[0]
        library = ctypes.CDLL(str(compile_library(attention_unit(kv_cache), self.instruction_set, cache_dir=cache_dir)))
        self.scratch_bytes = library.attention_scratch_bytes
        self.scratch_bytes.argtypes, self.scratch_bytes.restype = [_long] * 5, _long
        self.attend = library.attend
        self.attend.argtypes, self.attend.restype = [_pointer, ctypes.POINTER(Attention)], None
        self.store_kv = library.store_kv
        self.head_span_bytes = library.head_span_bytes
        self.head_span_bytes.argtypes, self.head_span_bytes.restype = [_long], _long
        self.row_bytes = library.row_bytes
        self.row_bytes.argtypes, self.row_bytes.restype = [_long], _long
        cache = ctypes.POINTER(KVCache)
        for name in ("read_rows", "write_rows"):
            function = getattr(library, name)
            function.argtypes, function.restype = [cache, _long, _long, _long, _pointer], None
        self.read_rows, self.write_rows = library.read_rows, library.write_rows
        self.copy_rows = library.copy_rows
        self.copy_rows.argtypes, self.copy_rows.restype = [cache, _long, _long, _long], None


class Ceiling:
    """What the machine can do at most, measured by the functions of csrc/ceiling.c on the process's own threads."""

    def __init__(self) -> None:
        library = ctypes.CDLL(str(compile_library(CEILING, supported()[0])))
        self._read_once = library.read_once
        self._read_once.argtypes, self._read_once.restype = [_pointer, _pointer, _long], _long
        self._loops = {"integers": library.dot_rounds, "floats": library.float_rounds}
        for loop in self._loops.values():
            loop.argtypes, loop.restype = [_pointer, _long], _long

    def read_seconds(self, address: int, num_bytes: int) -> float:
        """How long it takes to read that memory once."""
        started = time.perf_counter()
        self._read_once(shared_threads().address, address, num_bytes)
        return time.perf_counter() - started

    def operations_per_second(self, kind: Literal["integers", "floats"], rounds: int = 20_000) -> float:
        """Additions and multiplications a second, of eight-bit integers or of float32, in one short run."""
        started = time.perf_counter()
        operations = self._loops[kind](shared_threads().address, rounds)
        return operations / (time.perf_counter() - started)


@cache
def shared_threads() -> Threads:
    """This process's pool: one thread for each processor it may use."""
    return Threads(num_processors())


@cache
def matrix_library(ggml_type: GGMLType) -> MatrixLibrary:
    """The kernels of that weight type for this processor. Raises DeviceUnavailable without a compiler."""
    return MatrixLibrary(ggml_type)


@cache
def operation_library() -> OperationLibrary:
    """The operations for this processor. Raises DeviceUnavailable without a compiler."""
    return OperationLibrary()


@cache
def attention_library(kv_cache: KVCacheType) -> AttentionLibrary:
    """Attention over that type of rows for this processor. Raises DeviceUnavailable without a compiler."""
    return AttentionLibrary(kv_cache)


def compile_ahead(types: Set[GGMLType], kv_cache: KVCacheType) -> None:
    """Compile at once, as many at a time as there are processors, what a model with those weight types will need.

    Raises:
        DeviceUnavailable: there is no C compiler, or it fails.
    """
    best = supported()[0]
    units = [OPERATIONS, attention_unit(kv_cache), *map(matrix_unit, sorted(types & MATRIX_TYPES))]
    jobs = [(POOL, PORTABLE), *((unit, best) for unit in units)]
    with ThreadPoolExecutor(num_processors()) as executor:
        for done in [executor.submit(compile_library, unit, instruction_set) for unit, instruction_set in jobs]:
            done.result()
