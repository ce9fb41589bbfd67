"""Lane programs of the types with 256 elements a block: Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_XS.

Four lanes own a block, 64 elements each, eight blocks a step. Two cuts exist. Q4_K, Q5_K and IQ4_XS keep 64
neighbouring elements together: lane j owns sub-blocks 2j and 2j+1 of 32. Q2_K, Q3_K and Q6_K spread a byte over
elements that lie 32 apart: lane j = 2h + f owns, in half h of the block, elements 32k + 16f to 32k + 16f + 15 for k = 0
to 3, that is four sub-blocks of 16. What lanes and steps are is said in ``quants``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from tinygrad.dtype import DType, dtypes
from tinygrad.uop.ops import UOp

from garzone.kernels.gpu.activations import group_sum
from garzone.kernels.gpu.intrinsics import half_to_float, signed_byte, unsigned_byte
from garzone.kernels.gpu.quants import (
    IQ4_VALUES,
    LOW_NIBBLES,
    Step,
    dot_words,
    element_at,
    high_nibbles,
    low_nibbles,
    to_float,
    word,
    words_at,
    zero,
)
from garzone.kernels.layouts import GGMLType


class Pair(NamedTuple):
    """Activations of 64 neighbouring elements: 16 words, two scales, two scaled sums, and the lane's selectors."""

    words: list[UOp]
    scales: list[UOp]
    scaled_sums: list[UOp]
    selectors: tuple[UOp, ...]


class Quad(NamedTuple):
    """Activations of four runs of 16 elements: four words each, scales, sums, and the lane's selectors."""

    words: list[list[UOp]]
    scales: list[UOp]
    sums: list[UOp]
    selectors: tuple[UOp, ...]


def _pair(step: Step, *selectors: UOp) -> Pair:
    groups = step.row.groups(step.block * 8 + step.piece * 2, 2)
    scales = [step.keep(scale) for scale, _ in groups]
    sums = [scale * to_float(group_sum(packed)) for scale, (_, packed) in zip(scales, groups, strict=True)]
    return Pair(step.row.words(step.block * 256 + step.piece * 64, 16), scales, sums, selectors)


def _quad(step: Step, *selectors: UOp) -> Quad:
    half, side = step.piece // 2, step.piece % 2
    words = [step.row.words(step.block * 256 + half * 128 + side * 16 + 32 * k, 4) for k in range(4)]
    groups = step.row.groups(step.block * 8 + half * 4, 4)
    shift = 16 - side * 16
    sums = [(packed.cast(dtypes.int) << shift) >> 16 for _, packed in groups]
    return Quad(words, [step.keep(scale) for scale, _ in groups], sums, selectors)


def _every_byte(value: UOp) -> UOp:
    """A small number in all four bytes of a uint32."""
    return value.cast(dtypes.uint32) * 0x01010101


def _weighted(terms: list[tuple[UOp, UOp]]) -> UOp:
    total = terms[0][0] * terms[0][1]
    for a, b in terms[1:]:
        total = total + a * b
    return total


@dataclass(frozen=True)
class Nibbles:
    """Q4_K and Q5_K: nibbles (and a fifth bit), eight 6-bit scales and minima, two f16 factors."""

    ggml_type: GGMLType
    has_fifth_bit: bool
    dtype: DType = dtypes.uint32
    lanes: int = 4
    max_rows: int = 4

    def prepare(self, step: Step) -> Pair:
        """See ``Quant``; the selectors make picking the lane's scales free of branches.

        Scales 0 to 3 are the low six bits of bytes 0 to 3, minima of bytes 4 to 7; of scales 4 to 7 the low four bits
        are the lower nibbles of bytes 8 to 11 (of the minima the upper nibbles) and the high two bits are the top bits
        of bytes 0 to 3 (4 to 7).
        """
        first = (step.piece * 2) % 4
        upper = step.piece > 1
        select = _every_byte(first) + 0x05040100
        selectors = (
            select,
            upper.where(word(2), word(0)),
            upper.where(word(0x30303030), word(0x3F3F3F3F)),
            upper.where(word(LOW_NIBBLES), word(0)),
        )
        if self.has_fifth_bit:  # how far to rotate so that bit 2j comes to lie at bit 4
            selectors += ((step.piece * 2 + 28) % 32,)
        return _pair(step, *selectors)

    def load(self, step: Step, weights: UOp, base: UOp) -> tuple[list[UOp], list[UOp], list[UOp]]:
        """See ``Quant``: header, fifth bits, nibbles."""
        header = [weights[base].load(), *words_at(step, weights, base, 4, 3)]
        fifth = words_at(step, weights, base, 16, 8) if self.has_fifth_bit else []
        first = 48 if self.has_fifth_bit else 16
        return header, fifth, words_at(step, weights, base, step.piece * 32 + first, 8)

    def dot(self, step: Step, loaded: tuple[list[UOp], list[UOp], list[UOp]], prepared: Pair) -> UOp:
        """See ``Quant``."""
        header, fifth, packed = loaded
        select, shift, direct, split = prepared.selectors[:4]
        low, high = low_nibbles(packed), high_nibbles(packed)
        if self.has_fifth_bit:
            turn = prepared.selectors[4].cast(dtypes.uint32)
            turned = [_rotate_right(w, turn) for w in fifth]
            low = [n | (t & 0x10101010) for n, t in zip(low, turned, strict=True)]
            high = [n | ((t >> 1) & 0x10101010) for n, t in zip(high, turned, strict=True)]
        dots = [
            to_float(dot_words(step, low, prepared.words[:8], zero())),
            to_float(dot_words(step, high, prepared.words[8:], zero())),
        ]
        permute = step.intrinsics.permute_bytes
        from_start = (permute(header[2], header[1], select) >> shift) & direct
        from_end = permute(header[3] >> 4, header[3], select) & split
        numbers = from_start | from_end  # bytes: two scales, two minima
        scale, scale2, minimum, minimum2 = (to_float(unsigned_byte(numbers, i)) for i in range(4))
        total = _weighted([(scale * prepared.scales[0], dots[0]), (scale2 * prepared.scales[1], dots[1])])
        below = _weighted([(minimum, prepared.scaled_sums[0]), (minimum2, prepared.scaled_sums[1])])
        return half_to_float(header[0]) * total - half_to_float(header[0], 1) * below


def _rotate_right(value: UOp, count: UOp) -> UOp:
    return (value >> count) | (value << ((32 - count) & 31))


@dataclass(frozen=True)
class SixBits:
    """Q6_K: four low bits, two high bits, minus 32; sixteen signed scales, one f16 factor."""

    ggml_type: GGMLType = GGMLType.Q6_K
    dtype: DType = dtypes.uint16
    lanes: int = 4
    max_rows: int = 4

    def prepare(self, step: Step) -> Quad:
        """See ``Quant``."""
        return _quad(step, _every_byte(step.piece % 2) + 0x06040200)

    def load(self, step: Step, weights: UOp, base: UOp) -> tuple[list[UOp], list[UOp], list[UOp], list[UOp], UOp]:
        """See ``Quant``."""
        half, side = step.piece // 2, step.piece % 2
        low = half * 64 + side * 16
        return (
            words_at(step, weights, base, low, 4),
            words_at(step, weights, base, low + 32, 4),
            words_at(step, weights, base, half * 32 + side * 16 + 128, 4),
            words_at(step, weights, base, half * 8 + 192, 2),
            element_at(weights, base, 208),
        )

    def dot(self, step: Step, loaded: tuple[list[UOp], list[UOp], list[UOp], list[UOp], UOp], prepared: Quad) -> UOp:
        """See ``Quant``."""
        even, odd, high, scales, factor = loaded
        # Starting from -32 times the activations' sum is what subtracting 32 from every weight comes to.
        dots = [total * -32 for total in prepared.sums]
        for i in range(4):
            numbers = (
                (even[i] & LOW_NIBBLES) | ((high[i] << 4) & 0x30303030),
                (odd[i] & LOW_NIBBLES) | ((high[i] << 2) & 0x30303030),
                ((even[i] >> 4) & LOW_NIBBLES) | (high[i] & 0x30303030),
                ((odd[i] >> 4) & LOW_NIBBLES) | ((high[i] >> 2) & 0x30303030),
            )
            dots = [step.intrinsics.dot4(numbers[k], prepared.words[k][i], dots[k]) for k in range(4)]
        chosen = step.intrinsics.permute_bytes(scales[1], scales[0], prepared.selectors[0])
        products = [step.intrinsics.multiply24(signed_byte(chosen, k), dots[k]) for k in range(4)]
        total = _weighted([(prepared.scales[k], to_float(products[k])) for k in range(4)])
        return half_to_float(factor) * total


@dataclass(frozen=True)
class TwoBits:
    """Q2_K: two bits, sixteen 4-bit scales and minima, two f16 factors."""

    ggml_type: GGMLType = GGMLType.Q2_K
    dtype: DType = dtypes.uint32
    lanes: int = 4
    max_rows: int = 4

    def prepare(self, step: Step) -> Quad:
        """See ``Quant``."""
        return _quad(step, _every_byte(step.piece % 2) + 0x06040200)

    def load(self, step: Step, weights: UOp, base: UOp) -> tuple[list[UOp], list[UOp], UOp]:
        """See ``Quant``."""
        half, side = step.piece // 2, step.piece % 2
        return (
            words_at(step, weights, base, half * 8, 2),
            words_at(step, weights, base, half * 32 + side * 16 + 16, 4),
            element_at(weights, base, 80),
        )

    def dot(self, step: Step, loaded: tuple[list[UOp], list[UOp], UOp], prepared: Quad) -> UOp:
        """See ``Quant``."""
        scales, packed, factors = loaded
        chosen = step.intrinsics.permute_bytes(scales[1], scales[0], prepared.selectors[0])
        wide, narrow = chosen & LOW_NIBBLES, (chosen >> 4) & LOW_NIBBLES
        products: list[tuple[UOp, UOp]] = []
        minima: list[tuple[UOp, UOp]] = []
        for k in range(4):
            # The first three are taken where they stand, four and sixteen times too large, which the scale makes good.
            factor = (1.0, 0.25, 0.0625, 1.0)[k]
            numbers = [(w >> 6) & 0x03030303 if k == 3 else w & (0x03030303 << (2 * k)) for w in packed]
            total = to_float(dot_words(step, numbers, prepared.words[k], zero()))
            products.append((to_float(unsigned_byte(wide, k)) * (prepared.scales[k] * factor), total))
            minima.append((to_float(unsigned_byte(narrow, k)), prepared.scales[k] * to_float(prepared.sums[k])))
        return half_to_float(factors) * _weighted(products) - half_to_float(factors, 1) * _weighted(minima)


@dataclass(frozen=True)
class ThreeBits:
    """Q3_K: two bits and a mask of third bits, minus 4; sixteen 6-bit scales minus 32, one f16 factor."""

    ggml_type: GGMLType = GGMLType.Q3_K
    dtype: DType = dtypes.uint16
    lanes: int = 4
    max_rows: int = 2

    def prepare(self, step: Step) -> Quad:
        """See ``Quant``; the selectors are byte picks and how far this half's bits must be shifted."""
        half, side = step.piece // 2, step.piece % 2
        select = _every_byte(side)
        half = half.cast(dtypes.uint32)
        return _quad(step, select + 0x06040200, select + 0x02000200, half * 4, 2 - half * 2, half * 2)

    def load(self, step: Step, weights: UOp, base: UOp) -> tuple[list[UOp], list[UOp], list[UOp], UOp]:
        """See ``Quant``: third bits, two bits, scales, factor."""
        half, side = step.piece // 2, step.piece % 2
        return (
            words_at(step, weights, base, side * 16, 4),
            words_at(step, weights, base, half * 32 + side * 16 + 32, 4),
            words_at(step, weights, base, 96, 3),
            element_at(weights, base, 108),
        )

    def dot(self, step: Step, loaded: tuple[list[UOp], list[UOp], list[UOp], UOp], prepared: Quad) -> UOp:
        """See ``Quant``."""
        third, packed, scales, factor = loaded
        select, select_high, shift, left, right = prepared.selectors
        permute = step.intrinsics.permute_bytes
        # Sub-block 8h + 2k + f: its low four bits are nibble h of byte 2k + f; its high two are bits 4h + 2 (k // 2) of
        # byte 8 + (2k + f) % 4.
        low = (permute(scales[1], scales[0], select) >> shift) & LOW_NIBBLES
        high = permute(scales[2], scales[2], select_high) >> shift
        numbers = low | ((high << 4) & 0x00003030) | ((high << 2) & 0x30300000)
        dots = [total * -4 for total in prepared.sums]
        for i in range(4):
            bits = (third[i] << left) >> right  # bit 4h + k at bit 2 + k
            for k in range(4):
                number = ((packed[i] >> (2 * k)) & 0x03030303) | ((bits >> k) & 0x04040404)
                dots[k] = step.intrinsics.dot4(number, prepared.words[k][i], dots[k])
        terms = [
            (prepared.scales[k] * (to_float(unsigned_byte(numbers, k)) - 32.0), to_float(dots[k])) for k in range(4)
        ]
        return half_to_float(factor) * _weighted(terms)


@dataclass(frozen=True)
class Codes:
    """IQ4_XS: nibbles that stand for a codebook's values, eight 6-bit scales minus 32, one f16 factor."""

    ggml_type: GGMLType = GGMLType.IQ4_XS
    dtype: DType = dtypes.uint32
    lanes: int = 4
    max_rows: int = 4

    def prepare(self, step: Step) -> Pair:
        """See ``Quant``; the selectors are how far to shift the low and the high bits of the lane's scales."""
        piece = step.piece.cast(dtypes.uint32)
        return _pair(step, piece * 8, piece * 4 + 16)

    def load(self, step: Step, weights: UOp, base: UOp) -> tuple[UOp, UOp, list[UOp]]:
        """See ``Quant``: factor and high bits, low bits, nibbles."""
        return (
            element_at(weights, base, 0),
            words_at(step, weights, base, 4, 1)[0],
            words_at(step, weights, base, step.piece * 32 + 8, 8),
        )

    def dot(self, step: Step, loaded: tuple[UOp, UOp, list[UOp]], prepared: Pair) -> UOp:
        """See ``Quant``."""
        header, scales, packed = loaded
        low = scales >> prepared.selectors[0]
        high = header >> prepared.selectors[1]
        numbers = (
            (low & 15) | ((high & 3) << 4),
            ((low >> 4) & 15) | ((high & 12) << 2),
        )
        terms: list[tuple[UOp, UOp]] = []
        for sub in range(2):  # 16 bytes each: first the lower nibbles, then the upper ones
            part = packed[4 * sub : 4 * sub + 4]
            codes = [IQ4_VALUES.look_up(step, (w >> s) & LOW_NIBBLES) for s in (0, 4) for w in part]
            total = dot_words(step, codes, prepared.words[8 * sub : 8 * sub + 8], zero(), signed=True)
            terms.append((prepared.scales[sub] * (to_float(numbers[sub]) - 32.0), to_float(total)))
        return half_to_float(header) * _weighted(terms)


Q2_K = TwoBits()
Q3_K = ThreeBits()
Q4_K = Nibbles(GGMLType.Q4_K, has_fifth_bit=False)
Q5_K = Nibbles(GGMLType.Q5_K, has_fifth_bit=True)
Q6_K = SixBits()
IQ4_XS = Codes()
