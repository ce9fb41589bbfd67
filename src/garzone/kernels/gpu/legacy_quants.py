"""Lane programs of the types with 32 elements a block that are read as the file has them: Q4_0 to Q5_1, Q8_0, IQ4_NL.

One lane owns a whole block, 32 blocks a step. What lanes and steps are is said in ``quants``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from tinygrad.dtype import DType, dtypes
from tinygrad.uop.ops import UOp

from garzone.kernels.gpu.activations import GROUP, group_sum
from garzone.kernels.gpu.intrinsics import half_to_float
from garzone.kernels.gpu.quants import (
    IQ4_VALUES,
    LOW_NIBBLES,
    Codebook,
    Run,
    Step,
    dot_words,
    element_at,
    high_nibbles,
    low_nibbles,
    to_float,
    unsigned,
    words_at,
    zero,
)
from garzone.kernels.layouts import GGMLType


class Group32(NamedTuple):
    """Activations of one group: eight words, the scale, what the dot product starts from, scale times sum."""

    words: list[UOp]
    scale: UOp
    start: UOp
    scaled_sum: UOp


class Block32(NamedTuple):
    """What a lane loaded of a block: scale (and minimum), high bits, words of nibbles or bytes."""

    header: UOp
    high_bits: UOp | None
    words: list[UOp]


def prepare_group(step: Step, offset: int, factor: float = 1.0) -> Group32:
    """The activations of a block, for numbers from which ``offset`` is subtracted; their scale ``factor`` times."""
    scale, packed = step.row.groups(step.block, 1)[0]
    scale = step.keep(scale) * factor if factor != 1.0 else step.keep(scale)
    total = group_sum(packed)
    return Group32(
        step.row.words(step.block * 8, 8),
        scale,
        total * -offset if offset else zero(),
        scale * to_float(total),
    )


def _fifth_bits(high_bits: UOp, word_index: int) -> UOp:
    """Bits 4i to 4i+3 of ``high_bits`` as bit 4 of the four bytes of a word; other bits of the result are noise.

    With the four bits at positions 3 to 6, multiplying by 2 (1 + 2^7 + 2^14 + 2^21) puts bit 3 + k at position 8k + 4.
    Three lower bits may come along: seven bits never overlap their own shift by seven, so nothing carries. One field
    extraction and one full-rate 24-bit multiply do it.
    """
    field = (high_bits << 3) & 0x7F if word_index == 0 else (high_bits >> (4 * word_index - 3)) & 0x7F
    return field * 0x408102


def _numbers(loaded: Block32) -> list[UOp]:
    """A block's nibbles, with their fifth bits, one to a byte."""
    numbers = low_nibbles(loaded.words) + high_nibbles(loaded.words)
    if loaded.high_bits is None:
        return numbers
    return [n | (_fifth_bits(loaded.high_bits, i) & 0x10101010) for i, n in enumerate(numbers)]


def two_runs(numbers: list[UOp], offset: int, scale: UOp, minimum: UOp | None = None) -> list[Run]:
    """A block's two runs of 16."""
    return [Run(UOp.const(16 * i, dtypes.int), numbers[4 * i : 4 * i + 4], offset, scale, minimum) for i in range(2)]


@dataclass(frozen=True)
class Nibbles:
    """Q4_0, Q4_1, Q5_0, Q5_1: nibbles with an offset or a minimum, and a fifth bit where there is one."""

    ggml_type: GGMLType
    dtype: DType
    offset: int = 0  # what is subtracted from the stored number
    header_bytes: int = 2
    has_fifth_bit: bool = False
    lanes: int = 1
    max_rows: int = 4
    span: int = GROUP

    def prepare(self, step: Step) -> Group32:
        """See ``Quant``."""
        return prepare_group(step, self.offset)

    def load(self, step: Step, weights: UOp, base: UOp) -> Block32:
        """See ``Quant``."""
        header = element_at(weights, base, 0)
        at = self.header_bytes
        high = None
        if self.has_fifth_bit:
            high = words_at(step, weights, base, at, 1)[0]
            at += 4
        return Block32(header, high, words_at(step, weights, base, at, 4))

    def dot(self, step: Step, loaded: Block32, prepared: Group32) -> list[UOp]:
        """See ``Quant``."""
        total = to_float(dot_words(step, _numbers(loaded), prepared.words, prepared.start)) * prepared.scale
        product = half_to_float(loaded.header) * total
        return [product] if self.offset else [product, half_to_float(loaded.header, 1) * prepared.scaled_sum]

    def runs(self, step: Step, loaded: Block32) -> list[Run]:
        """See ``Quant``."""
        minimum = None if self.offset else half_to_float(loaded.header, 1) * -1.0
        return two_runs(_numbers(loaded), self.offset, half_to_float(loaded.header), minimum)


@dataclass(frozen=True)
class Bytes:
    """Q8_0: 32 signed bytes and a scale."""

    ggml_type: GGMLType = GGMLType.Q8_0
    dtype: DType = dtypes.uint16
    lanes: int = 1
    max_rows: int = 4
    span: int = GROUP

    def prepare(self, step: Step) -> Group32:
        """See ``Quant``."""
        return prepare_group(step, 0)

    def load(self, step: Step, weights: UOp, base: UOp) -> Block32:
        """See ``Quant``."""
        return Block32(element_at(weights, base, 0), None, words_at(step, weights, base, 2, 8))

    def dot(self, step: Step, loaded: Block32, prepared: Group32) -> list[UOp]:
        """See ``Quant``."""
        total = dot_words(step, loaded.words, prepared.words, zero(), signed=True)
        return [half_to_float(loaded.header) * (to_float(total) * prepared.scale)]

    def runs(self, step: Step, loaded: Block32) -> list[Run]:
        """See ``Quant``."""
        return two_runs(unsigned(loaded.words), 128, half_to_float(loaded.header))


@dataclass(frozen=True)
class Codes:
    """IQ4_NL: nibbles that stand for the values of a codebook."""

    ggml_type: GGMLType
    dtype: DType
    codebook: Codebook
    lanes: int = 1
    max_rows: int = 4
    span: int = GROUP

    def prepare(self, step: Step) -> Group32:
        """See ``Quant``."""
        return prepare_group(step, 0)

    def load(self, step: Step, weights: UOp, base: UOp) -> Block32:
        """See ``Quant``."""
        return Block32(element_at(weights, base, 0), None, words_at(step, weights, base, weights.dtype.itemsize, 4))

    def dot(self, step: Step, loaded: Block32, prepared: Group32) -> list[UOp]:
        """See ``Quant``."""
        total = dot_words(step, self._codes(step, loaded), prepared.words, zero(), signed=True)
        return [half_to_float(loaded.header) * (to_float(total) * prepared.scale)]

    def runs(self, step: Step, loaded: Block32) -> list[Run]:
        """See ``Quant``."""
        return two_runs(unsigned(self._codes(step, loaded)), 128, half_to_float(loaded.header))

    def _codes(self, step: Step, loaded: Block32) -> list[UOp]:
        return [self.codebook.look_up(step, (w >> shift) & LOW_NIBBLES) for shift in (0, 4) for w in loaded.words]


Q4_0 = Nibbles(GGMLType.Q4_0, dtypes.uint16, offset=8)
Q4_1 = Nibbles(GGMLType.Q4_1, dtypes.uint32, header_bytes=4)
Q5_0 = Nibbles(GGMLType.Q5_0, dtypes.uint16, offset=16, has_fifth_bit=True)
Q5_1 = Nibbles(GGMLType.Q5_1, dtypes.uint32, header_bytes=4, has_fifth_bit=True)
Q8_0 = Bytes()
IQ4_NL = Codes(GGMLType.IQ4_NL, dtypes.uint16, IQ4_VALUES)
