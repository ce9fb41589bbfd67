"""Random matrices of every weight type, and the C kernels called on numpy arrays."""

import ctypes
from dataclasses import dataclass

import numpy as np
from gguf import GGMLQuantizationType, quants

from garzone.kernels.cpu.instruction_sets import InstructionSet
from garzone.kernels.cpu.library import MatrixLibrary, Normalise, OperationLibrary, Product, Threads, address_of
from garzone.kernels.layouts import BLOCK, GGMLType

# where the half-precision factors of a block lie
HALVES = {
    GGMLType.Q4_0: (0,),
    GGMLType.Q4_1: (0, 2),
    GGMLType.Q5_0: (0,),
    GGMLType.Q5_1: (0, 2),
    GGMLType.Q8_0: (0,),
    GGMLType.Q2_K: (80, 82),
    GGMLType.Q3_K: (108,),
    GGMLType.Q4_K: (0, 2),
    GGMLType.Q5_K: (0, 2),
    GGMLType.Q6_K: (208,),
    GGMLType.IQ4_NL: (0,),
    GGMLType.IQ4_XS: (0,),
}


def random_matrix(ggml_type: GGMLType, rows: int, columns: int, rng: np.random.Generator) -> np.ndarray:
    """Bytes as they lie in a file, [rows, bytes of a row]; any bits, factors of either sign between 0.01 and 0.02."""
    block = BLOCK[ggml_type]
    if ggml_type == GGMLType.F32:
        return rng.standard_normal((rows, columns), dtype=np.float32).view(np.uint8)
    if ggml_type == GGMLType.F16:
        return rng.standard_normal((rows, columns)).astype(np.float16).view(np.uint8)
    if ggml_type == GGMLType.BF16:
        upper = rng.standard_normal((rows, columns), dtype=np.float32).view(np.uint32) >> 16
        return upper.astype(np.uint16).view(np.uint8)
    blocks = rng.integers(0, 256, (rows * columns // block.elements, block.bytes), dtype=np.uint8)
    if ggml_type == GGMLType.MXFP4:
        blocks[:, 0] = rng.integers(110, 130, len(blocks))
    for at in HALVES.get(ggml_type, ()):
        factors = rng.uniform(0.01, 0.02, len(blocks)) * rng.choice([-1, 1], len(blocks))
        blocks[:, at : at + 2] = factors.astype(np.float16).view(np.uint8).reshape(-1, 2)
    return blocks.reshape(rows, -1)


def dequantised(ggml_type: GGMLType, matrix: np.ndarray) -> np.ndarray:
    """What the gguf package makes of those bytes, float32 [rows, columns]."""
    return quants.dequantize(matrix, GGMLQuantizationType(ggml_type)).astype(np.float32)


def aligned(num_bytes: int) -> np.ndarray:
    """Zeroed memory that begins at a cache line, with a line after its end that must stay zero."""
    raw = np.zeros(num_bytes + 128, dtype=np.uint8)
    begin = -raw.ctypes.data % 64
    return raw[begin : begin + num_bytes + 64]


@dataclass
class Packed:
    """A matrix as the kernels read it."""

    library: MatrixLibrary
    memory: np.ndarray
    rows: int
    columns: int

    def row(self, row: int) -> np.ndarray:
        out = np.zeros(self.columns, np.float32)
        self.library.unpack_row(out.ctypes.data, self.memory.ctypes.data, row, self.columns)
        return out


def pack(library: MatrixLibrary, matrix: np.ndarray, columns: int, threads: Threads) -> Packed:
    pointers = matrix.ctypes.data + np.arange(len(matrix), dtype=np.uint64) * matrix.strides[0]
    num_bytes = library.packed_bytes(len(matrix), columns)
    memory = aligned(num_bytes)
    damaged = library.pack(threads.address, memory.ctypes.data, pointers.ctypes.data, len(matrix), columns)
    assert damaged == 0
    assert not memory[num_bytes:].any(), "pack wrote past its end"
    return Packed(library, memory, len(matrix), columns)


def quantise(
    library: OperationLibrary,
    x: np.ndarray,
    threads: Threads,
    norm: np.ndarray | None = None,
    epsilon: float = 0.0,
) -> np.ndarray:
    tokens, columns = x.shape
    num_bytes = library.activation_bytes(tokens, columns)
    memory = aligned(num_bytes)
    norm_at = 0 if norm is None else norm.ctypes.data
    call = Normalise(x.ctypes.data, None, norm_at, epsilon, tokens, columns, columns)
    library.quantise(threads.address, ctypes.byref(call), memory.ctypes.data)
    assert not memory[num_bytes:].any(), "quantise wrote past its end"
    return memory


def read_activation(library: OperationLibrary, memory: np.ndarray, tokens: int, columns: int) -> np.ndarray:
    """The values that quantised activations stand for, float64 [tokens, columns]; checks the sums beside them."""
    tile = 1 if tokens == 1 else library.activation_bytes(2, 32) // 48
    layout = np.dtype(
        [("q", np.int8, (8, tile, 4)), ("scale", "f4", tile), ("sum", "f4", tile), ("half", "i4", (2, tile))]
    )
    blocks = memory[: library.activation_bytes(tokens, columns)].view(layout).reshape(-1, columns // 32)
    q = blocks["q"].transpose(0, 3, 1, 2, 4).reshape(-1, columns // 32, 32)  # [token, block, column]
    scale = blocks["scale"].transpose(0, 2, 1).reshape(-1, columns // 32)
    halves = q.reshape(-1, columns // 32, 2, 16).astype(np.int64).sum(-1)
    assert np.array_equal(blocks["half"].transpose(0, 3, 1, 2).reshape(halves.shape), halves)
    sums = blocks["sum"].transpose(0, 2, 1).reshape(scale.shape)
    assert np.allclose(sums, scale * halves.sum(-1), rtol=1e-6)
    return (q * scale[..., None].astype(np.float64)).reshape(-1, columns)[:tokens]


def multiply(
    packed: Packed,
    x: np.ndarray,
    threads: Threads,
    bias: np.ndarray | None = None,
    residual: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The product [tokens, rows], and the activations that went into it after quantisation."""
    tokens = len(x)
    used = x.astype(np.float64)
    memory = x
    operations = OperationLibrary(packed.library.instruction_set)
    if not packed.library.is_float:
        memory = quantise(operations, x, threads)
        used = read_activation(operations, memory, tokens, packed.columns)
    stride = packed.rows + 3
    out = np.full((tokens, stride), np.nan, np.float32)
    if residual is not None:
        out[:, : packed.rows] = residual
    call = Product(
        weights=packed.memory.ctypes.data,
        activation=memory.ctypes.data,
        out=out.ctypes.data,
        bias=0 if bias is None else bias.ctypes.data,
        residual=0 if residual is None else out.ctypes.data,
        rows=packed.rows,
        columns=packed.columns,
        tokens=tokens,
        out_stride=stride,
    )
    function = ctypes.c_void_p(address_of(packed.library.multiply_groups))
    operations.multiply_together(threads.address, ctypes.byref(call), ctypes.byref(function), 1)
    assert np.isnan(out[:, packed.rows :]).all(), "multiply wrote past its rows"
    return out[:, : packed.rows], used


def instruction_set_name(instruction_set: InstructionSet) -> str:
    return instruction_set.name
