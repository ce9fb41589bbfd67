"""Lane programs of the types whose bits are put in another order while loading: Q2_K, Q3_K, MXFP4.

As the file has them, unpacking would cost more than the few bytes of a weight are worth (docs/engine-log.md has the
counts). The arranged block has exactly as many bytes; ``arrange`` makes it, on the host. What lanes and steps are is
said in ``quants``.

Q2_K and Q3_K: lane j owns the 64 neighbouring elements from 64j on, sub-blocks s = 0 to 3 of 16; word i of a sub-block
is its elements 4i to 4i + 3, one to a byte.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import reduce
from typing import NamedTuple

import numpy as np
from tinygrad.dtype import DType, dtypes
from tinygrad.uop.ops import UOp

from garzone.kernels.gpu.activations import GROUP, half_sums
from garzone.kernels.gpu.intrinsics import half_to_float
from garzone.kernels.gpu.k_quants import weighted
from garzone.kernels.gpu.legacy_quants import Group32, prepare_group, two_runs
from garzone.kernels.gpu.quants import (
    LOW_NIBBLES,
    Codebook,
    Run,
    Step,
    dot_words,
    element_at,
    to_float,
    unsigned,
    word,
    words_at,
    zero,
)
from garzone.kernels.layouts import BLOCK, GGMLType

_CHUNK = 1 << 14  # blocks arranged at once: what that takes stays in a cache


def arranged(ggml_type: GGMLType, raw: np.ndarray) -> np.ndarray:
    """The packed bytes of a matrix in the order that this module's kernels read; the same size."""
    blocks = raw.reshape(-1, BLOCK[ggml_type].bytes)
    out = np.empty_like(blocks)

    def arrange(at: int) -> None:
        _ARRANGE[ggml_type](blocks[at : at + _CHUNK], out[at : at + _CHUNK])

    # numpy lets go of the interpreter's lock while it computes: a thread for each core keeps all of them busy.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(arrange, range(0, len(blocks), _CHUNK)))
    return out.reshape(-1)


def _sub_block(j: int, s: int) -> tuple[int, int, int]:
    """Where the file has sub-block s of lane j: half of the block, which two bits of a byte, which 16 bytes."""
    return j // 2, 2 * (j % 2) + s // 2, s % 2


# While arranging, eight bytes of each block are one number, and one array has those of all blocks: numpy is some four
# times as fast as with rows of 16 bytes.
_LOWER_HALF = np.uint64(0xFFFFFFFF)


def _columns(part: np.ndarray) -> list[np.ndarray]:
    """A part of all blocks, eight bytes by eight."""
    return list(np.ascontiguousarray(np.ascontiguousarray(part).view("<u8").T))


def _bytes(columns: list[np.ndarray]) -> np.ndarray:
    """The bytes of such columns, block after block."""
    return np.ascontiguousarray(np.array(columns, "<u8").T).view(np.uint8)


def _every_byte(value: int) -> np.uint64:
    return np.uint64(value * 0x0101010101010101)


def _moved(words: np.ndarray, bits: int) -> np.ndarray:
    """Shifted up, or down where negative; what crosses into other bytes is the caller's to mask."""
    return words << np.uint64(bits) if bits >= 0 else words >> np.uint64(-bits)


class _Piece(NamedTuple):
    """Activations of 64 elements: four runs of four words, and two groups of 32 as ``Row.groups`` gives them."""

    words: list[list[UOp]]
    scales: list[UOp]
    sums: list[UOp]


def _piece(step: Step) -> _Piece:
    words = step.row.words(step.block * 64 + step.piece * 16, 16)
    groups = step.row.groups(step.block * 8 + step.piece * 2, 2)
    return _Piece(
        [words[4 * s : 4 * s + 4] for s in range(4)], [step.keep(scale) for scale, _ in groups], [w for _, w in groups]
    )


def _four_runs(
    step: Step, numbers: list[list[UOp]], offset: int, scales: list[UOp], minima: list[UOp] | None
) -> list[Run]:
    first = step.piece * 64
    return [Run(first + 16 * s, numbers[s], offset, scales[s], minima[s] if minima else None) for s in range(4)]


# ---- Q2_K


def _arrange_two_bits(blocks: np.ndarray, out: np.ndarray) -> None:
    """20 bytes a lane: 16 whose bits 2s, 2s + 1 are sub-block s, four of its scales and minima."""
    packed = _columns(blocks[:, 16:80])
    for j in range(4):
        halves = [np.zeros(len(blocks), np.uint64) for _ in range(2)]
        for s in range(4):
            half, plane, side = _sub_block(j, s)
            for i in range(2):
                halves[i] |= _moved(packed[4 * half + 2 * side + i], 2 * s - 2 * plane) & _every_byte(3 << (2 * s))
            out[:, 20 * j + 16 + s] = blocks[:, 8 * half + 2 * plane + side]
        out[:, 20 * j : 20 * j + 16] = _bytes(halves)
    out[:, 80:] = blocks[:, 80:]


class _WithSums(NamedTuple):
    """Activations of 64 elements; the four sums' low bytes, and their high ones; the scale / 64 and / -16."""

    piece: _Piece
    low: UOp
    high: UOp
    scale: UOp
    minus_scale: UOp


class _TwoBitBlock(NamedTuple):
    """What a lane loaded of a block: numbers, scales and minima, the word behind them, the two factors."""

    numbers: list[UOp]
    header: UOp
    behind: UOp
    factors: UOp


@dataclass(frozen=True)
class TwoBits:
    """Q2_K: two bits, a 4-bit scale and a 4-bit minimum for every sub-block, two f16 factors.

    The activations of a lane's 64 elements have one scale. The four planes of two bits are multiplied where they stand,
    4**s times too large, and their scales are taken out of the block shifted up to match: no plane is ever shifted.
    """

    ggml_type: GGMLType = GGMLType.Q2_K
    dtype: DType = dtypes.uint32
    lanes: int = 4
    max_rows: int = 4
    span: int = 64

    def prepare(self, step: Step) -> _WithSums:
        """See ``Quant``."""
        piece = _piece(step)
        permute = step.intrinsics.permute_bytes
        low, high = (permute(piece.sums[1], piece.sums[0], word(which)) for which in (0x06040200, 0x07050301))
        # Both scales are the same; reading both lets the group be one load of 16 bytes.
        scales = [step.intrinsics.as_it_is(piece.scales[i] * factor) for i, factor in enumerate((1 / 64, -1 / 16))]
        return _WithSums(piece, low, high, *scales)

    def load(self, step: Step, weights: UOp, base: UOp) -> _TwoBitBlock:
        """See ``Quant``."""
        own = base + step.piece * 5
        return _TwoBitBlock(
            words_at(step, weights, own, 0, 4),
            element_at(weights, own, 16),
            words_at(step, weights, own, 20, 1)[0],
            element_at(weights, base, 80),
        )

    def dot(self, step: Step, loaded: _TwoBitBlock, prepared: _WithSums) -> list[UOp]:
        """See ``Quant``."""
        packed, header = loaded[:2]
        # The last lane of a block has the factors behind its own header: no load of their own.
        factors = step.intrinsics.last_of_four(loaded.behind)
        factors = loaded.factors if factors is None else factors
        piece, low, high = prepared[:3]
        intrinsics = step.intrinsics
        masked = intrinsics.as_it_is(header & LOW_NIBBLES)
        # Scale s times 4**(3 - s): above each there are four bits that are zero.
        scales = [(masked << 6) & 0x3C0, (masked >> 4) & 0xFF, (masked >> 14) & 0x3F, masked >> 24]
        total = None
        for s in range(4):
            dot = dot_words(step, _plane(intrinsics.mixed_signs, packed, s), piece.words[s], zero())
            if s == 3 and not intrinsics.mixed_signs:
                dot = dot << 6
            scale = scales[s].cast(dtypes.int)
            total = intrinsics.multiply24(scale, dot) if total is None else intrinsics.multiply_add24(scale, dot, total)
        assert total is not None
        if intrinsics.mixed_signs:  # minima where they stand, 16 times too large
            minima = header & 0xF0F0F0F0
            upper = intrinsics.dot4(minima, high, zero())
            below = intrinsics.dot4_unsigned(minima, low, upper << 8)
        else:
            sums = [half for packed_sums in piece.sums for half in half_sums(packed_sums)]
            products = [((header >> (8 * s + 4)) & 15).cast(dtypes.int) * (sums[s] * 16) for s in range(4)]
            below = reduce(lambda a, b: a + b, products)
        return [
            half_to_float(factors) * (to_float(total) * prepared.scale),
            half_to_float(factors, 1) * (to_float(below) * prepared.minus_scale),
        ]

    def runs(self, step: Step, loaded: _TwoBitBlock) -> list[Run]:
        """See ``Quant``."""
        packed, header, _, factors = loaded
        scales = [half_to_float(factors) * to_float((header >> (8 * s)) & 15) for s in range(4)]
        minima = [half_to_float(factors, 1) * to_float((header >> (8 * s + 4)) & 15) for s in range(4)]
        numbers = [[(w >> (2 * s)) & 0x03030303 for w in packed] for s in range(4)]
        return _four_runs(step, numbers, 0, scales, minima)


def _plane(mixed_signs: bool, packed: list[UOp], s: int) -> list[UOp]:
    """Two bits of every byte where they stand; the uppermost shifted down where bytes must not be above 127."""
    if s == 3 and not mixed_signs:
        return [(w >> 6) & 0x03030303 for w in packed]
    return [w & (0x03030303 << (2 * s)) for w in packed]


# ---- Q3_K


def _arrange_three_bits(blocks: np.ndarray, out: np.ndarray) -> None:
    """Three bits of two weights in a byte, and in its two upper bits a share of a third weight.

    Words 0 to 3 of a lane lie at byte 16j, words 4 and 5 at 64 + 11j. Bits 0 to 2 of words 0 to 3 are sub-block 0, bits
    3 to 5 sub-block 1. Words 4 and 5 have there words 0, 1 and 2, 3 of sub-block 2. Word i of sub-block 3 has its upper
    two bits in word i, and its lowest in bit 6 + i % 2 of word 4 + i // 2. Behind word 5 lie three bytes: four 6-bit
    scales, 32 subtracted.
    """
    low, high = _columns(blocks[:, 32:96]), _columns(blocks[:, :32])
    scales = _three_bit_scales(blocks)
    for j in range(4):
        numbers: list[list[np.ndarray]] = []  # of each sub-block, eight to a word
        for s in range(4):
            half, plane, side = _sub_block(j, s)
            numbers.append(
                [
                    (_moved(low[4 * half + 2 * side + i], -2 * plane) & _every_byte(3))
                    | (_moved(high[2 * side + i], 2 - 4 * half - plane) & _every_byte(4))
                    for i in range(2)
                ]
            )
        first, second, third, fourth = numbers
        out[:, 16 * j : 16 * j + 16] = _bytes(
            [a | _moved(b, 3) | _moved(c & _every_byte(6), 5) for a, b, c in zip(first, second, fourth, strict=True)]
        )
        lower, upper = (c & _every_byte(1) for c in fourth)
        even, odd = (lower & _LOWER_HALF) | _moved(upper, 32), _moved(lower, -32) | (upper & ~_LOWER_HALF)
        rest = third[0] | _moved(third[1], 3) | _moved(even, 6) | _moved(odd, 7)
        out[:, 64 + 11 * j : 72 + 11 * j] = _bytes([rest])
        out[:, 72 + 11 * j : 75 + 11 * j] = scales[:, j, :3]
    out[:, 108:] = blocks[:, 108:]


def _three_bit_scales(blocks: np.ndarray) -> np.ndarray:
    """Of each lane four signed scales of six bits, side by side in four bytes: [blocks, lanes, 4]."""
    packed = np.ascontiguousarray(blocks[:, 96:108])
    lower = np.hstack([packed[:, :8] & 15, packed[:, :8] >> 4])
    upper = (packed[:, None, 8:] >> np.array([0, 2, 4, 6], np.uint8)[:, None]) & 3
    scales = ((lower | (upper.reshape(-1, 16) << 4)) - 32) & 63
    order = [
        8 * half + 2 * plane + side for j in range(4) for half, plane, side in (_sub_block(j, s) for s in range(4))
    ]
    own = scales[:, order].reshape(-1, 4, 4).astype("<u4") << np.array([0, 6, 12, 18], np.uint32)
    return np.ascontiguousarray(own.sum(2, dtype="<u4")).view(np.uint8).reshape(-1, 4, 4)


@dataclass(frozen=True)
class ThreeBits:
    """Q3_K: three bits minus 4, a signed 6-bit scale for every sub-block, one f16 factor.

    Most numbers come out with one mask, where they stand: sub-block 1 eight times too large, sub-block 3 32 times.
    """

    ggml_type: GGMLType = GGMLType.Q3_K
    dtype: DType = dtypes.uint8
    lanes: int = 4
    max_rows: int = 4
    span: int = GROUP

    def prepare(self, step: Step) -> tuple[_Piece, list[UOp], list[UOp]]:
        """See ``Quant``: also what the dot products start from, and the activations' scales that make them good."""
        piece = _piece(step)
        factors = _three_bit_factors(step.intrinsics.mixed_signs)
        sums = [half for packed in piece.sums for half in half_sums(packed)]
        starts = [total * (-4 * factor) for total, factor in zip(sums, factors, strict=True)]
        return piece, starts, [piece.scales[s // 2] * (1 / factors[s]) for s in range(4)]

    def load(self, step: Step, weights: UOp, base: UOp) -> tuple[list[UOp], UOp, UOp]:
        """See ``Quant``: six words, scales, factor."""
        *upper, scales = words_at(step, weights, base, step.piece * 11 + 64, 3)
        words = words_at(step, weights, base, step.piece * 16, 4) + upper
        # Ordinary loads, for the order of kernels (``Intrinsics.load_word``).
        return words, scales, element_at(weights, base, 108) | (element_at(weights, base, 109) << 8)

    def dot(
        self, step: Step, loaded: tuple[list[UOp], UOp, UOp], prepared: tuple[_Piece, list[UOp], list[UOp]]
    ) -> list[UOp]:
        """See ``Quant``."""
        (piece, starts, factors), scales = prepared, self._scales(loaded[1])
        numbers = self._numbers(loaded[0], _three_bit_factors(step.intrinsics.mixed_signs))
        dots = [dot_words(step, numbers[s], piece.words[s], starts[s]) for s in range(4)]
        products = [to_float(step.intrinsics.multiply24(scales[s], dots[s])) for s in range(4)]
        return [half_to_float(loaded[2]) * weighted(list(zip(factors, products, strict=True)))]

    def runs(self, step: Step, loaded: tuple[list[UOp], UOp, UOp]) -> list[Run]:
        """See ``Quant``."""
        scales = [half_to_float(loaded[2]) * to_float(scale) for scale in self._scales(loaded[1])]
        return _four_runs(step, self._numbers(loaded[0], (1, 1, 1, 1)), 4, scales, None)

    def _scales(self, packed: UOp) -> list[UOp]:
        """Four scales, still without the block's factor."""
        return [(packed.cast(dtypes.int) << (26 - 6 * s)) >> 26 for s in range(4)]

    def _numbers(self, words: list[UOp], factors: tuple[int, ...]) -> list[list[UOp]]:
        """The four sub-blocks, one weight to a byte, each ``factors`` times too large."""
        second = [w & 0x38383838 if factors[1] == 8 else (w >> 3) & 0x07070707 for w in words[:4]]
        third = [w & 0x07070707 for w in words[4:]] + [(w >> 3) & 0x07070707 for w in words[4:]]
        fourth: list[UOp] = []
        for i, upper in enumerate(words[:4]):
            lowest = words[4 + i // 2]
            if factors[3] == 32:
                fourth.append((upper & 0xC0C0C0C0) | ((lowest >> (1 + i % 2)) & 0x20202020))
            else:
                fourth.append(((upper >> 5) & 0x06060606) | ((lowest >> (6 + i % 2)) & 0x01010101))
        return [[w & 0x07070707 for w in words[:4]], second, third, fourth]


def _three_bit_factors(mixed_signs: bool) -> tuple[int, int, int, int]:
    """How much too large the sub-blocks come out; unsigned bytes above 127 need a dot product of mixed signs."""
    return (1, 8, 1, 32) if mixed_signs else (1, 8, 1, 1)


# ---- MXFP4

# The values that codes of the arranged block stand for, twice the true ones. Codes 8 to 15 are in arithmetic
# progression but for a step of 1 between 12 and 13, where a permutation beyond its tables (``permutes_beyond``) has
# its step from 0 to -1: one permutation and two dot products, one of them with the codes themselves, do what two
# lookups do.
_MXFP4_VALUES = (-12, 3, -8, 4, -6, 6, 8, 12, -4, -3, -2, -1, 0, 0, 1, 2)
_MXFP4_SHIFT = 12  # a value is table[code] + code - 12
_MXFP4_CODES = Codebook(_MXFP4_VALUES)
_MXFP4_TABLE = tuple(value - code + _MXFP4_SHIFT for code, value in enumerate(_MXFP4_VALUES[:8]))
# kvalues_mxfp4 of ggml-common.h
_MXFP4_OF_FILE = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)
_MXFP4_CODE_OF = np.array([_MXFP4_VALUES.index(value) for value in _MXFP4_OF_FILE], np.uint8)
_MXFP4_BYTES = (_MXFP4_CODE_OF[np.arange(256) & 15] | (_MXFP4_CODE_OF[np.arange(256) >> 4] << 4)).astype(np.uint8)


def _arrange_mxfp4(blocks: np.ndarray, out: np.ndarray) -> None:
    out[:, 0] = blocks[:, 0]
    out[:, 1:] = _MXFP4_BYTES[blocks[:, 1:]]


@dataclass(frozen=True)
class Microscaled:
    """MXFP4: nibbles that stand for sixteen values, and a power of two for 32 of them."""

    ggml_type: GGMLType = GGMLType.MXFP4
    dtype: DType = dtypes.uint8
    lanes: int = 1
    max_rows: int = 4
    span: int = GROUP

    def prepare(self, step: Step) -> Group32:
        """See ``Quant``."""
        return prepare_group(step, _MXFP4_SHIFT if step.intrinsics.permutes_beyond else 0, factor=0.5)

    def load(self, step: Step, weights: UOp, base: UOp) -> tuple[UOp, list[UOp]]:
        """See ``Quant``: exponent, codes."""
        return element_at(weights, base, 0), words_at(step, weights, base, 1, 4)

    def dot(self, step: Step, loaded: tuple[UOp, list[UOp]], prepared: Group32) -> list[UOp]:
        """See ``Quant``."""
        codes = _nibbles(loaded[1])
        if step.intrinsics.permutes_beyond:
            low, high = (word(sum(_MXFP4_TABLE[at + i] << (8 * i) for i in range(4))) for at in (0, 4))
            found = [step.intrinsics.permute_bytes(high, low, code) for code in codes]
            total = dot_words(step, found, prepared.words, prepared.start, signed=True)
            total = dot_words(step, codes, prepared.words, total)
        else:
            found = [_MXFP4_CODES.look_up(step, code) for code in codes]
            total = dot_words(step, found, prepared.words, prepared.start, signed=True)
        return [self._scale(loaded[0]) * (to_float(total) * prepared.scale)]

    def runs(self, step: Step, loaded: tuple[UOp, list[UOp]]) -> list[Run]:
        """See ``Quant``."""
        found = [_MXFP4_CODES.look_up(step, code) for code in _nibbles(loaded[1])]
        return two_runs(unsigned(found), 128, self._scale(loaded[0]) * 0.5)

    def _scale(self, exponent: UOp) -> UOp:
        """2**(e - 127); 0 for e = 0, whose weights would be below 1e-37."""
        return (exponent << 23).bitcast(dtypes.float)


def _nibbles(packed: list[UOp]) -> list[UOp]:
    return [(w >> shift) & LOW_NIBBLES for shift in (0, 4) for w in packed]


_ARRANGE: dict[GGMLType, Callable[[np.ndarray, np.ndarray], None]] = {
    GGMLType.Q2_K: _arrange_two_bits,
    GGMLType.Q3_K: _arrange_three_bits,
    GGMLType.MXFP4: _arrange_mxfp4,
}
ARRANGED = frozenset(_ARRANGE)
Q2_K, Q3_K, MXFP4 = TwoBits(), ThreeBits(), Microscaled()
