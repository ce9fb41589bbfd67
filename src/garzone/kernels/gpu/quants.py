"""How one lane reads its share of a quantised weight block and multiplies it with activations: what all types share.

A quant type is cut into pieces: ``lanes`` neighbouring lanes own one block, each a fixed part of it. ``Step`` is a
lane's place in one step of a row. Loops, rows and the sum across lanes are ``matvec``'s business; the types live in
``legacy_quants`` (blocks of 32) and ``k_quants`` (blocks of 256). Bit layouts follow ggml-quants.c.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from tinygrad.dtype import DType, dtypes
from tinygrad.uop.ops import UOp

from garzone.kernels.gpu.activations import Row
from garzone.kernels.gpu.intrinsics import Intrinsics
from garzone.kernels.layouts import BLOCK, GGMLType

LOW_NIBBLES = 0x0F0F0F0F


@dataclass(frozen=True)
class Step:
    """A lane's place: which block of the row, which piece of the block, which activations.

    Attributes:
        intrinsics: of the renderer.
        row: the activations.
        block: number of the block in the row; always one that exists.
        piece: which part of the block this lane owns, below the type's ``lanes``.
        keep: makes a float zero in lanes whose block lies beyond the row's end.
    """

    intrinsics: Intrinsics
    row: Row
    block: UOp
    piece: UOp
    keep: Callable[[UOp], UOp]


class Run(NamedTuple):
    """Sixteen neighbouring weights as unsigned bytes: a weight is (byte - offset) * scale - minimum.

    Attributes:
        element: number of the first one in its block.
        words: four words, bytes in order.
        offset: a constant up to 128.
        scale: float32.
        minimum: float32, where the type has one.
        numbers: for weights that are floats in the file: the sixteen as f16, of each four first 0 and 2, then 1 and 3;
            the other fields but the first mean nothing then.
    """

    element: UOp
    words: list[UOp]
    offset: int
    scale: UOp
    minimum: UOp | None = None
    numbers: list[UOp] | None = None


class Quant(Protocol):
    """One quantised type, as a lane sees it."""

    @property
    def ggml_type(self) -> GGMLType:
        """The type in the file."""
        ...

    @property
    def lanes(self) -> int:
        """How many lanes own one block."""
        ...

    @property
    def dtype(self) -> DType:
        """What the weights' buffer is made of: the widest unsigned integer that divides a block."""
        ...

    @property
    def max_rows(self) -> int:
        """How many rows of weights fit the 128 registers of a lane at once."""
        ...

    @property
    def span(self) -> int:
        """How many neighbouring activations must have one scale."""
        ...

    def prepare(self, step: Step) -> Any:
        """Loads and unpacks the activations of a step; shared by all rows of weights."""
        ...

    def load(self, step: Step, weights: UOp, base: UOp) -> Any:
        """Loads the lane's piece of the block that begins at element ``base`` of ``weights``."""
        ...

    def dot(self, step: Step, loaded: Any, prepared: Any) -> list[UOp]:
        """The piece's share of the row's product: float32 terms, added one after the other (fused multiply-adds)."""
        ...

    def runs(self, step: Step, loaded: Any) -> list[Run]:
        """The piece's weights, for products with more columns than one; needs no activations."""
        ...


# Types without blocks are cut into pieces of this many elements.
FLOAT_ELEMENTS = 16


def block_elements(quant: Quant) -> int:
    """Weights of one block."""
    elements = BLOCK[quant.ggml_type].elements
    return FLOAT_ELEMENTS if elements == 1 else elements


def units(quant: Quant) -> int:
    """Buffer elements of one block."""
    size = BLOCK[quant.ggml_type]
    return size.bytes * (block_elements(quant) // size.elements) // quant.dtype.itemsize


def words_at(step: Step, weights: UOp, base: UOp, byte: int | UOp, count: int) -> list[UOp]:
    """``count`` words of a block from byte offset ``byte``, a multiple of the buffer's element size."""
    size = weights.dtype.itemsize
    start = base + byte // size
    return [step.intrinsics.load_word(weights, start + i * (4 // size)) for i in range(count)]


def element_at(weights: UOp, base: UOp, byte: int) -> UOp:
    """One buffer element of a block, widened to uint32."""
    value = weights[base + byte // weights.dtype.itemsize].load()
    return value if value.dtype == dtypes.uint32 else value.cast(dtypes.uint32)


def zero() -> UOp:
    """An int32 to start a dot product from."""
    return UOp.const(0, dtypes.int)


def word(value: int) -> UOp:
    """A uint32 constant."""
    return UOp.const(value, dtypes.uint32)


def to_float(value: UOp) -> UOp:
    """An integer as float32."""
    return value.cast(dtypes.float)


def dot_words(step: Step, a: Sequence[UOp], b: Sequence[UOp], start: UOp, *, signed: bool = False) -> UOp:
    """``start`` plus the int8 products of equally long runs of words."""
    for left, right in zip(a, b, strict=True):
        start = step.intrinsics.dot4(left, right, start, signed=signed)
    return start


def unsigned(packed: Sequence[UOp]) -> list[UOp]:
    """Signed bytes plus 128."""
    return [w ^ 0x80808080 for w in packed]


def low_nibbles(packed: Sequence[UOp]) -> list[UOp]:
    """The lower four bits of every byte."""
    return [w & LOW_NIBBLES for w in packed]


def high_nibbles(packed: Sequence[UOp]) -> list[UOp]:
    """The upper four bits of every byte."""
    return [(w >> 4) & LOW_NIBBLES for w in packed]


@dataclass(frozen=True)
class Codebook:
    """Sixteen signed bytes that nibbles stand for, looked up with byte permutations, four at a time."""

    values: tuple[int, ...]

    def look_up(self, step: Step, nibbles: UOp) -> UOp:
        """Replaces each byte of ``nibbles`` (0 to 15) by the value it stands for."""
        permute = step.intrinsics.permute_bytes
        if step.intrinsics.permutes_beyond:
            # Each permutation finds half of the values, and for the others gives a byte of ones or zeros that the
            # other half's table makes good: the exclusive or of the two is the value.
            low, high = self._halves()
            return permute(low[1], low[0], nibbles) ^ permute(high[1], high[0], nibbles ^ 0x08080808)
        tables = _table_words(self.values)
        index = nibbles & 0x07070707
        lower, upper = permute(tables[1], tables[0], index), permute(tables[3], tables[2], index)
        # Byte i of the result comes from ``upper`` (bytes 4 to 7 of the pair) where bit 3 of the nibble is set.
        return permute(upper, lower, ((nibbles >> 1) & 0x04040404) | 0x03020100)

    def _halves(self) -> tuple[list[UOp], list[UOp]]:
        """The tables of values 0 to 7 and 8 to 15 for permutations that go beyond.

        What the other permutation gives for entry i (selector 8 + i) is the sign of its table's byte 2i + 1 for i up to
        3, 0 for 4, 255 for 5 to 7. Entries 5 to 7 are known outright, they decide about 3 and 2, those about 1 and 0.
        """
        halves = [[value & 255 for value in self.values[start : start + 8]] for start in (0, 8)]
        tables = [[*half[:5], *(value ^ 255 for value in half[5:])] for half in halves]
        for entry in (3, 2, 1, 0):
            signs = [table[2 * entry + 1] >> 7 for table in tables]
            for table, half, sign in zip(tables, halves, reversed(signs), strict=True):
                table[entry] = half[entry] ^ (255 * sign)
        return _table_words(tables[0]), _table_words(tables[1])


def _table_words(values: Sequence[int]) -> list[UOp]:
    return [word(sum((values[at + i] & 255) << (8 * i) for i in range(4))) for at in range(0, len(values), 4)]


# kvalues_iq4nl of ggml-common.h.
IQ4_VALUES = Codebook((-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113))
