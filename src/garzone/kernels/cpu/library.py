"""The compiled C, as Python sees it: the thread pool, and one matrix library for each weight type.

Knows pointers and structs; tensors and tinygrad are `provider.py`'s business.
"""

from __future__ import annotations

import ctypes
import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import ClassVar

from garzone.core.errors import DeviceUnavailable
from garzone.kernels.cpu.compiler import Unit, compile_library
from garzone.kernels.cpu.instruction_sets import InstructionSet, supported
from garzone.kernels.layouts import GGMLType

POOL = Unit("pool", "pool.c")
ACTIVATION = Unit("activation", "activation.c")
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


class Pool(ctypes.Structure):
    """The public part of `struct Pool` (csrc/pool.h)."""

    _fields_: ClassVar = [("run", ctypes.c_void_p), ("threads", ctypes.c_uint)]


class Product(ctypes.Structure):
    """`struct Product` (csrc/linear.h)."""

    _fields_: ClassVar = [
        ("weights", ctypes.c_void_p),
        ("activation", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("residual", ctypes.c_void_p),
        ("rows", ctypes.c_long),
        ("columns", ctypes.c_long),
        ("tokens", ctypes.c_long),
        ("out_stride", ctypes.c_long),
        ("finish", ctypes.c_void_p),
        ("finish_arg", ctypes.c_void_p),
    ]


class Quantise(ctypes.Structure):
    """`Quantise` (csrc/activation.c)."""

    _fields_: ClassVar = [
        ("x", ctypes.c_void_p),
        ("norm", ctypes.c_void_p),
        ("epsilon", ctypes.c_float),
        ("tokens", ctypes.c_long),
        ("columns", ctypes.c_long),
        ("to", ctypes.c_void_p),
    ]


def matrix_unit(ggml_type: GGMLType) -> Unit:
    """What has to be compiled to multiply with weights of that type."""
    name = ggml_type.name.lower()
    if ggml_type in FLOATS:
        return Unit(f"linear_{name}", "linear_float.c", (f"WEIGHT_{ggml_type.name}",))
    return Unit(f"linear_{name}", "linear.c", (f'QUANT="quants/{name}.h"',))


def num_processors() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Threads:
    """A thread pool. Python's own lock is not held while it works.

    `address` is for kernels; `num_threads` counts those that work, the caller included.
    """

    def __init__(self, num_threads: int, *, cache_dir: Path | None = None) -> None:
        self._library = ctypes.CDLL(str(compile_library(POOL, supported()[-1], cache_dir=cache_dir)))
        self._library.pool_start.restype = ctypes.POINTER(Pool)
        self._library.pool_start.argtypes = [ctypes.c_uint]
        self._library.pool_stop.argtypes = [ctypes.c_void_p]
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
    """The matrix kernels of one weight type and instruction set (csrc/linear.h).

    Attributes are the C functions; `multiply` also gives its address to those who build programs of calls.
    """

    def __init__(
        self, ggml_type: GGMLType, instruction_set: InstructionSet | None = None, *, cache_dir: Path | None = None
    ) -> None:
        self.ggml_type = ggml_type
        self.instruction_set = instruction_set or supported()[0]
        self.quantised_activation = ggml_type in QUANTISED
        library = compile_library(matrix_unit(ggml_type), self.instruction_set, cache_dir=cache_dir)
        self._library = ctypes.CDLL(str(library))
        self.packed_bytes = self._library.packed_bytes
        self.packed_bytes.argtypes, self.packed_bytes.restype = [ctypes.c_long, ctypes.c_long], ctypes.c_long
        self.pack = self._library.pack
        pointers = ctypes.c_void_p
        self.pack.argtypes, self.pack.restype = [pointers, pointers, pointers, ctypes.c_long, ctypes.c_long], None
        self.unpack_row = self._library.unpack_row
        self.unpack_row.argtypes, self.unpack_row.restype = [pointers, pointers, ctypes.c_long, ctypes.c_long], None
        self.multiply = self._library.multiply
        self.multiply.argtypes, self.multiply.restype = [pointers, ctypes.POINTER(Product)], None


class ActivationLibrary:
    """Quantisation of activations, with or without RMSNorm (csrc/activation.c)."""

    def __init__(self, instruction_set: InstructionSet | None = None, *, cache_dir: Path | None = None) -> None:
        self.instruction_set = instruction_set or supported()[0]
        self._library = ctypes.CDLL(str(compile_library(ACTIVATION, self.instruction_set, cache_dir=cache_dir)))
        self.num_bytes = self._library.activation_bytes
        self.num_bytes.argtypes, self.num_bytes.restype = [ctypes.c_long, ctypes.c_long], ctypes.c_long
        self.quantise = self._library.quantise
        self.quantise.argtypes, self.quantise.restype = [ctypes.c_void_p, ctypes.POINTER(Quantise)], None


@cache
def shared_threads() -> Threads:
    """This process's pool: one thread for each processor it may use."""
    return Threads(num_processors())


@cache
def matrix_library(ggml_type: GGMLType) -> MatrixLibrary:
    """The kernels of that weight type for this processor. Raises DeviceUnavailable without a compiler."""
    return MatrixLibrary(ggml_type)


@cache
def activation_library() -> ActivationLibrary:
    """The quantisation kernels for this processor. Raises DeviceUnavailable without a compiler."""
    return ActivationLibrary()


def compile_ahead(types: frozenset[GGMLType]) -> None:
    """Compile at once, as many at a time as there are processors, what a model with those weight types will need."""
    best = supported()[0]
    jobs = [
        (POOL, supported()[-1]),
        (ACTIVATION, best),
        *((matrix_unit(t), best) for t in sorted(types & MATRIX_TYPES)),
    ]
    with ThreadPoolExecutor(num_processors()) as executor:
        for done in [executor.submit(compile_library, unit, isa) for unit, isa in jobs]:
            done.result()
