"""Lane programs of the types with 256 elements a block that are read as the file has them: Q4_K, Q5_K, Q6_K, IQ4_XS.

Four lanes own a block, 64 elements each, eight blocks a step. Two cuts exist. Q4_K, Q5_K and IQ4_XS keep 64
neighbouring elements together: lane j owns sub-blocks 2j and 2j+1 of 32. Q6_K spreads a byte over elements that lie 32
apart: lane j = 2h + f owns, in half h of the block, elements 32k + 16f to 32k + 16f + 15 for k = 0 to 3, that is four
sub-blocks of 16. What lanes and steps are is said in ``quants``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from tinygrad.dtype import DType, dtypes
from tinygrad.uop.ops import UOp

from garzone.kernels.gpu.activations import GROUP, group_sum
from garzone.kernels.gpu.intrinsics import half_to_float, signed_byte, unsigned_byte
from garzone.kernels.gpu.quants import (
    IQ4_VALUES,
    LOW_NIBBLES,
    Run,
    Step,
    dot_words,
    element_at,
    high_nibbles,
    low_nibbles,
    to_float,
    unsigned,
    word,
    words_at,
    zero,
)
from garzone.kernels.layouts import GGMLType


class Pair(NamedTuple):
    """Activations of 64 neighbouring elements: 16 words, two scales, two scaled sums with the sign turned."""

    words: list[UOp]
    scales: list[UOp]
    scaled_sums: list[UOp]


class Quad(NamedTuple):
    """Activations of four runs of 16 elements: four words each, scales, sums."""

    words: list[list[UOp]]
    scales: list[UOp]
    sums: list[UOp]


def pair_of(step: Step) -> Pair:
    """The activations of the lane's 64 elements."""
    groups = step.row.groups(step.block * 8 + step.piece * 2, 2)
    scales = [step.keep(scale) for scale, _ in groups]
    sums = [scale * to_float(group_sum(packed) * -1) for scale, (_, packed) in zip(scales, groups, strict=True)]
    return Pair(step.row.words(step.block * 64 + step.piece * 16, 16), scales, sums)


def _quad(step: Step) -> Quad:
    half, side = step.piece // 2, step.piece % 2
    words = [step.row.words(step.block * 64 + half * 32 + side * 4 + 8 * k, 4) for k in range(4)]
    groups = step.row.groups(step.block * 8 + half * 4, 4)
    shift = 16 - side * 16
    sums = [(packed.cast(dtypes.int) << shift) >> 16 for _, packed in groups]
    return Quad(words, [step.keep(scale) for scale, _ in groups], sums)


def _four_runs(
    step: Step, numbers: list[list[UOp]], offset: int, scales: list[UOp], minima: list[UOp] | None = None
) -> list[Run]:
    first = step.piece // 2 * 128 + step.piece % 2 * 16
    return [Run(first + 32 * k, numbers[k], offset, scales[k], minima[k] if minima else None) for k in range(4)]


def _own_scales(step: Step) -> UOp:
    """Selects scales f, f + 2, f + 4 and f + 6 of a half's eight."""
    return _every_byte(step.piece % 2) + 0x06040200


def _every_byte(value: UOp) -> UOp:
    """A small number in all four bytes of a uint32."""
    return value.cast(dtypes.uint32) * 0x01010101


def weighted(terms: list[tuple[UOp, UOp]]) -> UOp:
    """The sum of the products."""
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
    span: int = GROUP

    def prepare(self, step: Step) -> Pair:
        """See ``Quant``."""
        return pair_of(step)

    def _selectors(self, step: Step) -> tuple[UOp, ...]:
        """What makes picking the lane's scales free of branches.

        Scales 0 to 3 are the low six bits of bytes 0 to 3, minima of bytes 4 to 7; of scales 4 to 7 the low four bits
        are the lower nibbles of bytes 8 to 11 (of the minima the upper nibbles) and the high two bits are the top bits
        of bytes 0 to 3 (4 to 7).
        """
        first = (step.piece * 2) % 4
        upper = step.piece > 1
        selectors = (
            _every_byte(first) + 0x05040100,
            upper.where(word(2), word(0)),
            upper.where(word(0x30303030), word(0x3F3F3F3F)),
            upper.where(word(LOW_NIBBLES), word(0)),
        )
        if self.has_fifth_bit:  # how far to rotate so that bit 2j comes to lie at bit 4
            selectors += (((step.piece * 2 + 28) % 32).cast(dtypes.uint32),)
        return selectors

    def load(self, step: Step, weights: UOp, base: UOp) -> tuple[list[UOp], list[UOp], list[UOp]]:
        """See ``Quant``: header, fifth bits, nibbles."""
        header = [weights[base].load(), *words_at(step, weights, base, 4, 3)]
        fifth = words_at(step, weights, base, 16, 8) if self.has_fifth_bit else []
        first = 48 if self.has_fifth_bit else 16
        return header, fifth, words_at(step, weights, base, step.piece * 32 + first, 8)

    def dot(self, step: Step, loaded: tuple[list[UOp], list[UOp], list[UOp]], prepared: Pair) -> list[UOp]:
        """See ``Quant``."""
        low, high = self._numbers(step, loaded)
        dots = [
            to_float(dot_words(step, low, prepared.words[:8], zero())),
            to_float(dot_words(step, high, prepared.words[8:], zero())),
        ]
        scales, minima = self._scales(step, loaded[0])
        total = weighted([(s * x, d) for s, x, d in zip(scales, prepared.scales, dots, strict=True)])
        below = weighted(list(zip(minima, prepared.scaled_sums, strict=True)))
        return [half_to_float(loaded[0][0]) * total, half_to_float(loaded[0][0], 1) * below]

    def runs(self, step: Step, loaded: tuple[list[UOp], list[UOp], list[UOp]]) -> list[Run]:
        """See ``Quant``."""
        scales, minima = self._scales(step, loaded[0])
        scales = [half_to_float(loaded[0][0]) * scale for scale in scales]
        minima = [half_to_float(loaded[0][0], 1) * minimum for minimum in minima]
        return [
            Run(step.piece * 64 + 32 * sub + 16 * i, numbers[4 * i : 4 * i + 4], 0, scales[sub], minima[sub])
            for sub, numbers in enumerate(self._numbers(step, loaded))
            for i in range(2)
        ]

    def _numbers(self, step: Step, loaded: tuple[list[UOp], list[UOp], list[UOp]]) -> tuple[list[UOp], list[UOp]]:
        """The two sub-blocks, one weight to a byte."""
        _, fifth, packed = loaded
        low, high = low_nibbles(packed), high_nibbles(packed)
        if self.has_fifth_bit:
            turned = [_rotate_right(w, self._selectors(step)[4]) for w in fifth]
            low = [n | (t & 0x10101010) for n, t in zip(low, turned, strict=True)]
            high = [n | ((t >> 1) & 0x10101010) for n, t in zip(high, turned, strict=True)]
        return low, high

    def _scales(self, step: Step, header: list[UOp]) -> tuple[list[UOp], list[UOp]]:
        """Two scales and two minima, still without the block's factors."""
        select, shift, direct, split = self._selectors(step)[:4]
        permute = step.intrinsics.permute_bytes
        from_start = (permute(header[2], header[1], select) >> shift) & direct
        from_end = permute(header[3] >> 4, header[3], select) & split
        numbers = [to_float(unsigned_byte(from_start | from_end, i)) for i in range(4)]
        return numbers[:2], numbers[2:]


def _rotate_right(value: UOp, count: UOp) -> UOp:
    return (value >> count) | (value << ((32 - count) & 31))


@dataclass(frozen=True)
class SixBits:
    """Q6_K: four low bits, two high bits, minus 32; sixteen signed scales, one f16 factor."""

    ggml_type: GGMLType = GGMLType.Q6_K
    dtype: DType = dtypes.uint16
    lanes: int = 4
    max_rows: int = 4
    span: int = GROUP

    def prepare(self, step: Step) -> Quad:
        """See ``Quant``."""
        return _quad(step)

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

    def dot(
        self, step: Step, loaded: tuple[list[UOp], list[UOp], list[UOp], list[UOp], UOp], prepared: Quad
    ) -> list[UOp]:
        """See ``Quant``."""
        # Starting from -32 times the activations' sum is what subtracting 32 from every weight comes to.
        numbers, scales = self._numbers(loaded), self._scales(step, loaded)
        dots = [dot_words(step, numbers[k], prepared.words[k], prepared.sums[k] * -32) for k in range(4)]
        products = [step.intrinsics.multiply24(scales[k], dots[k]) for k in range(4)]
        total = weighted([(prepared.scales[k], to_float(products[k])) for k in range(4)])
        return [half_to_float(loaded[4]) * total]

    def runs(self, step: Step, loaded: tuple[list[UOp], list[UOp], list[UOp], list[UOp], UOp]) -> list[Run]:
        """See ``Quant``."""
        factor = half_to_float(loaded[4])
        scales = [factor * to_float(scale) for scale in self._scales(step, loaded)]
        return _four_runs(step, self._numbers(loaded), 32, scales)

    def _numbers(self, loaded: tuple[list[UOp], list[UOp], list[UOp], list[UOp], UOp]) -> list[list[UOp]]:
        """The four sub-blocks, one weight to a byte."""
        even, odd, high = loaded[:3]
        return [
            [(e & LOW_NIBBLES) | ((h << 4) & 0x30303030) for e, h in zip(even, high, strict=True)],
            [(o & LOW_NIBBLES) | ((h << 2) & 0x30303030) for o, h in zip(odd, high, strict=True)],
            [((e >> 4) & LOW_NIBBLES) | (h & 0x30303030) for e, h in zip(even, high, strict=True)],
            [((o >> 4) & LOW_NIBBLES) | ((h >> 2) & 0x30303030) for o, h in zip(odd, high, strict=True)],
        ]

    def _scales(self, step: Step, loaded: tuple[list[UOp], list[UOp], list[UOp], list[UOp], UOp]) -> list[UOp]:
        chosen = step.intrinsics.permute_bytes(loaded[3][1], loaded[3][0], _own_scales(step))
        return [signed_byte(chosen, k) for k in range(4)]


@dataclass(frozen=True)
class Codes:
    """IQ4_XS: nibbles that stand for a codebook's values, eight 6-bit scales minus 32, one f16 factor."""

    ggml_type: GGMLType = GGMLType.IQ4_XS
    dtype: DType = dtypes.uint32
    lanes: int = 4
    max_rows: int = 4
    span: int = GROUP

    def prepare(self, step: Step) -> Pair:
        """See ``Quant``."""
        return pair_of(step)

    def load(self, step: Step, weights: UOp, base: UOp) -> tuple[UOp, UOp, list[UOp]]:
        """See ``Quant``: factor and high bits, low bits, nibbles."""
        return (
            element_at(weights, base, 0),
            words_at(step, weights, base, 4, 1)[0],
            words_at(step, weights, base, step.piece * 32 + 8, 8),
        )

    def dot(self, step: Step, loaded: tuple[UOp, UOp, list[UOp]], prepared: Pair) -> list[UOp]:
        """See ``Quant``."""
        terms: list[tuple[UOp, UOp]] = []
        for sub, (codes, scale) in enumerate(zip(self._codes(step, loaded), self._scales(loaded, step), strict=True)):
            total = dot_words(step, codes, prepared.words[8 * sub : 8 * sub + 8], zero(), signed=True)
            terms.append((prepared.scales[sub] * scale, to_float(total)))
        return [half_to_float(loaded[0]) * weighted(terms)]

    def runs(self, step: Step, loaded: tuple[UOp, UOp, list[UOp]]) -> list[Run]:
        """See ``Quant``."""
        factor, scales = half_to_float(loaded[0]), self._scales(loaded, step)
        return [
            Run(step.piece * 64 + 32 * sub + 16 * i, unsigned(codes[4 * i : 4 * i + 4]), 128, factor * scales[sub])
            for sub, codes in enumerate(self._codes(step, loaded))
            for i in range(2)
        ]

    def _codes(self, step: Step, loaded: tuple[UOp, UOp, list[UOp]]) -> list[list[UOp]]:
        """Two sub-blocks of 16 bytes: first the lower nibbles, then the upper ones."""
        parts = loaded[2][:4], loaded[2][4:]
        return [[IQ4_VALUES.look_up(step, (w >> s) & LOW_NIBBLES) for s in (0, 4) for w in part] for part in parts]

    def _scales(self, loaded: tuple[UOp, UOp, list[UOp]], step: Step) -> list[UOp]:
        """Two scales, still without the block's factor."""
        piece = step.piece.cast(dtypes.uint32)
        low, high = loaded[1] >> (piece * 8), loaded[0] >> (piece * 4 + 16)
        numbers = (low & 15) | ((high & 3) << 4), ((low >> 4) & 15) | ((high & 12) << 2)
        return [to_float(number) - 32.0 for number in numbers]


Q4_K = Nibbles(GGMLType.Q4_K, has_fifth_bit=False)
Q5_K = Nibbles(GGMLType.Q5_K, has_fifth_bit=True)
Q6_K = SixBits()
IQ4_XS = Codes()
