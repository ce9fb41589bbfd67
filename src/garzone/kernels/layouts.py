"""GGML block formats as data: every tensor type a GGUF file may name, with elements and bytes per block.

Does not know what the bytes inside a block mean, but for where its factors lie: that is `dequantise.py`'s business.
"""

from __future__ import annotations

from enum import IntEnum
from types import MappingProxyType
from typing import Final, NamedTuple

import numpy as np

_LOOKED_AT: Final = 1 << 20  # elements at a time, so that nothing large is made on the way


class GGMLType(IntEnum):
    """Tensor types by their number in the file.

    Source: `enum ggml_type` in https://github.com/ggml-org/ggml/blob/master/include/ggml.h.
    """

    F32 = 0
    F16 = 1
    Q4_0 = 2
    Q4_1 = 3
    Q5_0 = 6
    Q5_1 = 7
    Q8_0 = 8
    Q8_1 = 9
    Q2_K = 10
    Q3_K = 11
    Q4_K = 12
    Q5_K = 13
    Q6_K = 14
    Q8_K = 15
    IQ2_XXS = 16
    IQ2_XS = 17
    IQ3_XXS = 18
    IQ1_S = 19
    IQ4_NL = 20
    IQ3_S = 21
    IQ2_S = 22
    IQ4_XS = 23
    I8 = 24
    I16 = 25
    I32 = 26
    I64 = 27
    F64 = 28
    IQ1_M = 29
    BF16 = 30
    TQ1_0 = 34
    TQ2_0 = 35
    MXFP4 = 39
    NVFP4 = 40
    Q1_0 = 41


class Block(NamedTuple):
    """How many elements share a block, and how many bytes the block takes."""

    elements: int
    bytes: int


# Sizes follow the block structs of ggml-common.h: super-blocks hold 256 elements, "legacy" blocks 32.
BLOCK: Final = MappingProxyType(
    {
        GGMLType.F32: Block(1, 4),
        GGMLType.F16: Block(1, 2),
        GGMLType.BF16: Block(1, 2),
        GGMLType.F64: Block(1, 8),
        GGMLType.I8: Block(1, 1),
        GGMLType.I16: Block(1, 2),
        GGMLType.I32: Block(1, 4),
        GGMLType.I64: Block(1, 8),
        GGMLType.Q4_0: Block(32, 18),
        GGMLType.Q4_1: Block(32, 20),
        GGMLType.Q5_0: Block(32, 22),
        GGMLType.Q5_1: Block(32, 24),
        GGMLType.Q8_0: Block(32, 34),
        # Two f16 and 32 int8. The gguf package still says 40, from when both factors were f32; the type is used for
        # activations only and never stored.
        GGMLType.Q8_1: Block(32, 36),
        GGMLType.Q2_K: Block(256, 84),
        GGMLType.Q3_K: Block(256, 110),
        GGMLType.Q4_K: Block(256, 144),
        GGMLType.Q5_K: Block(256, 176),
        GGMLType.Q6_K: Block(256, 210),
        GGMLType.Q8_K: Block(256, 292),
        GGMLType.IQ1_S: Block(256, 50),
        GGMLType.IQ1_M: Block(256, 56),
        GGMLType.IQ2_XXS: Block(256, 66),
        GGMLType.IQ2_XS: Block(256, 74),
        GGMLType.IQ2_S: Block(256, 82),
        GGMLType.IQ3_XXS: Block(256, 98),
        GGMLType.IQ3_S: Block(256, 110),
        GGMLType.IQ4_NL: Block(32, 18),
        GGMLType.IQ4_XS: Block(256, 136),
        GGMLType.TQ1_0: Block(256, 54),
        GGMLType.TQ2_0: Block(256, 66),
        GGMLType.MXFP4: Block(32, 17),
        GGMLType.NVFP4: Block(64, 36),
        GGMLType.Q1_0: Block(128, 18),
    }
)

# Where the factors of a block lie that can be infinite or no number: half floats, by their offset in bytes. Types that
# are missing have none (integers; of NVFP4's scales those that are no number count as 0, as in ggml), or keep them
# otherwise (IQ1_M, MXFP4: see `all_finite`); of floats, every element is one.
HALF_FACTORS: Final = MappingProxyType(
    {
        GGMLType.Q4_0: (0,),
        GGMLType.Q4_1: (0, 2),
        GGMLType.Q5_0: (0,),
        GGMLType.Q5_1: (0, 2),
        GGMLType.Q8_0: (0,),
        GGMLType.Q8_1: (0, 2),
        GGMLType.Q2_K: (80, 82),
        GGMLType.Q3_K: (108,),
        GGMLType.Q4_K: (0, 2),
        GGMLType.Q5_K: (0, 2),
        GGMLType.Q6_K: (208,),
        GGMLType.IQ1_S: (0,),
        GGMLType.IQ2_XXS: (0,),
        GGMLType.IQ2_XS: (0,),
        GGMLType.IQ2_S: (0,),
        GGMLType.IQ3_XXS: (0,),
        GGMLType.IQ3_S: (0,),
        GGMLType.IQ4_NL: (0,),
        GGMLType.IQ4_XS: (0,),
        GGMLType.TQ1_0: (52,),
        GGMLType.TQ2_0: (64,),
        GGMLType.Q1_0: (0,),
    }
)

_IQ1_M_SCALES: Final = 48  # bytes before them: 32 of grid indices, 16 of their high bits and signs

# Numbers ggml once gave out and took back: files that use them were written by, and for, old builds.
REMOVED_TYPES: Final = MappingProxyType(
    {
        4: "Q4_2",
        5: "Q4_3",
        31: "Q4_0_4_4",
        32: "Q4_0_4_8",
        33: "Q4_0_8_8",
        36: "IQ4_NL_4_4",
        37: "IQ4_NL_4_8",
        38: "IQ4_NL_8_8",
    }
)


def all_finite(ggml_type: GGMLType, packed: np.ndarray) -> bool:
    """Whether no weight can be infinite or no number: looks at the factors of all blocks, without unpacking anything.

    Args:
        ggml_type: of the weights; True for types whose factors are not known here.
        packed: uint8 (num_bytes,).
    """
    match ggml_type:
        case GGMLType.F32:
            words, exponent = packed.view("<u4"), 0x7F800000
        case GGMLType.F16:
            words, exponent = packed.view("<u2"), 0x7C00
        case GGMLType.BF16:
            words, exponent = packed.view("<u2"), 0x7F80
        case GGMLType.MXFP4:
            return not (packed.reshape(-1, BLOCK[ggml_type].bytes)[:, 0] == 0xFF).any()  # the one NaN of an E8M0
        case GGMLType.IQ1_M:  # the factor's four nibbles are the highest of four words; the last two hold the exponent
            scales = packed.reshape(-1, BLOCK[ggml_type].bytes)[:, _IQ1_M_SCALES:].copy().view("<u2")
            factors = (scales[:, 3] & 0xF000) | (scales[:, 2] >> 4 & 0x0F00)
            return not ((factors & 0x7C00) == 0x7C00).any()
        case _ if ggml_type in HALF_FACTORS:
            halves = packed.reshape(-1, BLOCK[ggml_type].bytes).view("<u2")
            columns = [halves[:, offset // 2] for offset in HALF_FACTORS[ggml_type]]
            return not any(((column & 0x7C00) == 0x7C00).any() for column in columns)
        case _:
            return True
    return not any(
        ((words[at : at + _LOOKED_AT] & exponent) == exponent).any() for at in range(0, len(words), _LOOKED_AT)
    )


def packed_bytes(ggml_type: GGMLType, num_elements: int) -> int:
    """Bytes that `num_elements` of that type take when packed; `num_elements` must fill whole blocks.

    Raises:
        ValueError: the last block would not be full.
    """
    block = BLOCK[ggml_type]
    blocks, rest = divmod(num_elements, block.elements)
    if rest:
        raise ValueError(f"{num_elements} elements do not fill blocks of {block.elements} ({ggml_type.name})")
    return blocks * block.bytes
