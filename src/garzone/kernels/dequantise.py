"""Turns packed GGML blocks into float32: one formula a type, run on numpy arrays at load or on tinygrad tensors.

Does not read files, and does not know what a tensor is for.

The formulas restate the `dequantize_row_*` functions of https://github.com/ggml-org/ggml/blob/master/src/ggml-quants.c;
`d` is a block's scale, `m` its minimum. They are the specification that every faster kernel is tested against.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from types import MappingProxyType
from typing import Any, Final, Protocol

import numpy as np
from tinygrad.dtype import dtypes
from tinygrad.tensor import Tensor

from garzone.core.errors import UnsupportedModel
from garzone.kernels.layouts import BLOCK, GGMLType

# An array of either library: both slice, reshape, and do arithmetic the same way.
Array = Any


class _Library(Protocol):
    """What differs between numpy and tinygrad. `x` is uint8 unless said otherwise."""

    def view(self, x: Array, name: str) -> Array: ...
    def f32(self, x: Array) -> Array: ...
    def i32(self, x: Array) -> Array: ...
    def planes(self, x: Array, width: int) -> Array: ...
    def shifted(self, x: Array, shifts: Sequence[int], mask: int) -> Array: ...
    def cat(self, parts: Sequence[Array]) -> Array: ...
    def lookup(self, table: np.ndarray, index: Array) -> Array: ...
    def fields(self, x: Array, width: int) -> Array: ...


class _Numpy:
    def view(self, x: Array, name: str) -> Array:
        """Last axis of bytes seen as another type."""
        return np.ascontiguousarray(x).view(name)

    def f32(self, x: Array) -> Array:
        return x.astype(np.float32)

    def i32(self, x: Array) -> Array:
        return x.astype(np.int32)

    def planes(self, x: Array, width: int) -> Array:
        """(..., m) bytes to (..., 8 / width, m): first everybody's lowest bits, then the next."""
        shifts = np.arange(0, 8, width, dtype=np.uint8)[:, None]
        return (x[..., None, :] >> shifts) & np.uint8((1 << width) - 1)

    def fields(self, x: Array, width: int) -> Array:
        """(n, m) bytes to (n, m * 8 / width): the fields of the first byte, lowest first, then of the next."""
        return self.planes(x, width).swapaxes(-1, -2).reshape(len(x), -1)

    def shifted(self, x: Array, shifts: Sequence[int], mask: int) -> Array:
        """(n, m) to (n, m, shifts): wide words taken apart."""
        return ((x[..., None] >> np.array(shifts, x.dtype)) & x.dtype.type(mask)).astype(np.int32)

    def cat(self, parts: Sequence[Array]) -> Array:
        return np.concatenate(parts, axis=-1)

    def lookup(self, table: np.ndarray, index: Array) -> Array:
        return table[index]


class _Tinygrad:
    _names: Final = {"<f2": dtypes.float16, "<u2": dtypes.uint16, "<u4": dtypes.uint32, "i1": dtypes.int8}

    def view(self, x: Tensor, name: str) -> Tensor:
        return x.contiguous().bitcast(self._names[name] if name != "<f4" else dtypes.float32)

    def f32(self, x: Tensor) -> Tensor:
        return x.cast(dtypes.float32)

    def i32(self, x: Tensor) -> Tensor:
        return x.cast(dtypes.int32)

    def planes(self, x: Tensor, width: int) -> Tensor:
        shifts = Tensor(list(range(0, 8, width)), dtype=dtypes.uint8, device=x.device).reshape(-1, 1)
        return x.unsqueeze(-2).rshift(shifts).bitwise_and((1 << width) - 1)

    def fields(self, x: Tensor, width: int) -> Tensor:
        return self.planes(x, width).transpose(-1, -2).reshape(x.shape[0], -1)

    def shifted(self, x: Tensor, shifts: Sequence[int], mask: int) -> Tensor:
        amounts = Tensor(list(shifts), dtype=x.dtype, device=x.device)
        return x.unsqueeze(-1).rshift(amounts).bitwise_and(mask).cast(dtypes.int32)

    def cat(self, parts: Sequence[Tensor]) -> Tensor:
        return parts[0].cat(*parts[1:], dim=-1)

    def lookup(self, table: np.ndarray, index: Tensor) -> Tensor:
        return Tensor(table, device=index.device)[index.cast(dtypes.int32)]


_NUMPY, _TINYGRAD = _Numpy(), _Tinygrad()
_Formula = Callable[[_Library, Array, int], Array]  # (library, (n, bytes) blocks, n) -> n * elements values, any shape


def dequantise_array(packed: np.ndarray, ggml_type: GGMLType) -> np.ndarray:
    """Packed bytes to float32, flat.

    Args:
        packed: uint8, whole blocks.
        ggml_type: what they are.

    Raises:
        UnsupportedModel: no formula for that type.
    """
    formula = _formula(ggml_type)
    blocks = packed.reshape(-1, BLOCK[ggml_type].bytes)
    with np.errstate(over="ignore", invalid="ignore"):  # nonsense scales give inf and nan; the caller looks for them
        return np.asarray(formula(_NUMPY, blocks, len(blocks)), np.float32).reshape(-1)


def dequantise(packed: Tensor, ggml_type: GGMLType) -> Tensor:
    """Packed bytes (a uint8 tensor of whole blocks) to a flat float32 tensor, lazily.

    Raises:
        UnsupportedModel: no formula for that type.
    """
    formula = _formula(ggml_type)
    blocks = packed.reshape(-1, BLOCK[ggml_type].bytes)
    return formula(_TINYGRAD, blocks, int(blocks.shape[0])).cast(dtypes.float32).reshape(-1)


def can_dequantise(ggml_type: GGMLType) -> bool:
    """Whether there is a formula for that type."""
    return ggml_type in _FORMULAS


def _formula(ggml_type: GGMLType) -> _Formula:
    formula = _FORMULAS.get(ggml_type)
    if formula is None:
        raise UnsupportedModel(f"weights of type {ggml_type.name} cannot be read; use a file quantised otherwise")
    return formula


def _f16(lib: _Library, x: Array) -> Array:
    return lib.f32(lib.view(x, "<f2"))


# --- plain numbers


def _f32_plain(lib: _Library, b: Array, n: int) -> Array:
    return lib.view(b, "<f4")


def _f16_plain(lib: _Library, b: Array, n: int) -> Array:
    return _f16(lib, b)


def _bf16_plain(lib: _Library, b: Array, n: int) -> Array:
    zeros = b * 0  # bfloat16 is the upper half of a float32
    return lib.view(lib.cat([zeros, b]), "<f4")


# --- blocks of 32


def _q4_0(lib: _Library, b: Array, n: int) -> Array:
    return (lib.f32(lib.planes(b[:, 2:], 4).reshape(n, 32)) - 8) * _f16(lib, b[:, :2])


def _q4_1(lib: _Library, b: Array, n: int) -> Array:
    d, m = _f16(lib, b[:, :2]), _f16(lib, b[:, 2:4])
    return lib.f32(lib.planes(b[:, 4:], 4).reshape(n, 32)) * d + m


def _q5(lib: _Library, high: Array, low: Array, n: int) -> Array:
    return lib.f32(lib.planes(low, 4).reshape(n, 32) + lib.fields(high, 1) * 16)


def _q5_0(lib: _Library, b: Array, n: int) -> Array:
    return (_q5(lib, b[:, 2:6], b[:, 6:], n) - 16) * _f16(lib, b[:, :2])


def _q5_1(lib: _Library, b: Array, n: int) -> Array:
    return _q5(lib, b[:, 4:8], b[:, 8:], n) * _f16(lib, b[:, :2]) + _f16(lib, b[:, 2:4])


def _q8_0(lib: _Library, b: Array, n: int) -> Array:
    return lib.f32(lib.view(b[:, 2:], "i1")) * _f16(lib, b[:, :2])


# --- super-blocks of 256 ("K")


def _q2_k(lib: _Library, b: Array, n: int) -> Array:
    scales, d, dmin = b[:, :16], _f16(lib, b[:, 80:82]), _f16(lib, b[:, 82:84])
    q = lib.f32(lib.planes(b[:, 16:80].reshape(n, 2, 32), 2).reshape(n, 16, 16))
    return q * (d * lib.f32(scales & 15)).reshape(n, 16, 1) - (dmin * lib.f32(scales >> 4)).reshape(n, 16, 1)


def _q3_k(lib: _Library, b: Array, n: int) -> Array:
    d = _f16(lib, b[:, 108:110])
    low, high = lib.planes(b[:, 96:104], 4).reshape(n, 16), lib.planes(b[:, 104:108], 2).reshape(n, 16)
    scales = d * (lib.f32(low + high * 16) - 32)
    q = lib.f32(lib.planes(b[:, 32:96].reshape(n, 2, 32), 2).reshape(n, 16, 16))
    mask = lib.f32(lib.planes(b[:, :32], 1).reshape(n, 16, 16))  # a set bit means that 4 is NOT subtracted
    return (q - 4 + mask * 4) * scales.reshape(n, 16, 1)


def _six_bit_pairs(lib: _Library, s: Array) -> tuple[Array, Array]:
    """The 12 bytes that hold eight 6-bit scales and eight 6-bit minima of Q4_K and Q5_K."""
    scale, minimum, rest = s[:, :4], s[:, 4:8], s[:, 8:12]
    return (
        lib.cat([scale & 63, (rest & 15) + (scale >> 6) * 16]),
        lib.cat([minimum & 63, (rest >> 4) + (minimum >> 6) * 16]),
    )


def _q45_k(lib: _Library, b: Array, q: Array, n: int) -> Array:
    scale, minimum = _six_bit_pairs(lib, b[:, 4:16])
    d, m = _f16(lib, b[:, :2]) * lib.f32(scale), _f16(lib, b[:, 2:4]) * lib.f32(minimum)
    return lib.f32(q) * d.reshape(n, 8, 1) - m.reshape(n, 8, 1)


def _q4_k(lib: _Library, b: Array, n: int) -> Array:
    return _q45_k(lib, b, lib.planes(b[:, 16:].reshape(n, 4, 32), 4).reshape(n, 8, 32), n)


def _q5_k(lib: _Library, b: Array, n: int) -> Array:
    low = lib.planes(b[:, 48:].reshape(n, 4, 32), 4).reshape(n, 8, 32)
    return _q45_k(lib, b, low + lib.planes(b[:, 16:48], 1) * 16, n)


def _q6_k(lib: _Library, b: Array, n: int) -> Array:
    low = lib.planes(b[:, :128].reshape(n, 2, 64), 4).reshape(n, 8, 32)
    high = lib.planes(b[:, 128:192].reshape(n, 2, 32), 2).reshape(n, 8, 32)
    q = lib.f32(low + high * 16).reshape(n, 16, 16) - 32
    scales = _f16(lib, b[:, 208:210]) * lib.f32(lib.view(b[:, 192:208], "i1"))
    return q * scales.reshape(n, 16, 1)


# --- ternary


def _tq1_0(lib: _Library, b: Array, n: int) -> Array:
    """Five ternary digits a byte, as the fraction byte / 256 in base 3."""

    def digits(x: Array, count: int) -> Array:
        digit = [((lib.i32(x) * 3**power & 255) * 3) >> 8 for power in range(count)]
        return lib.cat([d.reshape(n, -1) for d in digit])

    q = lib.cat([digits(b[:, :32], 5), digits(b[:, 32:48], 5), digits(b[:, 48:52], 4)])
    return (lib.f32(q) - 1) * _f16(lib, b[:, 52:54])


def _tq2_0(lib: _Library, b: Array, n: int) -> Array:
    q = lib.planes(b[:, :64].reshape(n, 2, 32), 2).reshape(n, 256)
    return (lib.f32(q) - 1) * _f16(lib, b[:, 64:66])


def _q1_0(lib: _Library, b: Array, n: int) -> Array:
    return (lib.f32(lib.fields(b[:, 2:], 1)) * 2 - 1) * _f16(lib, b[:, :2])


# --- 4-bit floats. Their values are doubled (0, 1, 2, 3, 4, 6, 8, 12 for 0, 0.5, ... 6), so the scales are halved.

_E2M1: Final = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.float32)


@cache
def _half_e8m0() -> np.ndarray:
    """All 256 scales of MXFP4: 2**(e - 127), halved. The two smallest are subnormal."""
    with np.errstate(over="ignore"):
        return np.ldexp(np.float64(0.5), np.arange(256) - 127).astype(np.float32)


@cache
def _half_ue4m3() -> np.ndarray:
    """All scales of NVFP4: unsigned e4m3, halved; the two NaN encodings count as 0, as in ggml."""
    code = np.arange(256)
    exponent, mantissa = (code >> 3) & 15, code & 7
    value = np.where(exponent == 0, mantissa * 2.0**-9, (1 + mantissa / 8) * 2.0 ** (exponent - 7)) / 2
    return np.where(code == 0x7F, 0, value).astype(np.float32)


def _mxfp4(lib: _Library, b: Array, n: int) -> Array:
    return lib.lookup(_E2M1, lib.planes(b[:, 1:], 4).reshape(n, 32)) * lib.lookup(_half_e8m0(), b[:, :1])


def _nvfp4(lib: _Library, b: Array, n: int) -> Array:
    q = lib.lookup(_E2M1, lib.planes(b[:, 4:].reshape(n, 4, 8), 4).reshape(n, 4, 16))
    return q * lib.lookup(_half_ue4m3(), b[:, :4]).reshape(n, 4, 1)


# --- codebooks ("I"). The tables of ggml-common.h come with tinygrad.


@cache
def _grid(name: str) -> np.ndarray:
    """A codebook as (entries, values)."""
    from tinygrad.runtime.autogen import ggml_common  # noqa: PLC0415 - 200 kB of tables, for rare types only

    words = getattr(ggml_common, name)
    if name == "kvalues_iq4nl":
        return np.array(words, np.float32)
    wide = name in ("iq2xxs_grid", "iq2xs_grid", "iq2s_grid", "iq1s_grid")
    values = np.array(words, "<u8" if wide else "<u4").view(np.int8).astype(np.float32)
    return values.reshape(len(words), -1)


@cache
def _signs() -> np.ndarray:
    """(128, 8) of +1 and -1: seven bits given, the eighth makes the number of minus signs even."""
    code = np.arange(128)
    bits = (code[:, None] >> np.arange(8)) & 1
    bits[:, 7] = bits[:, :7].sum(1) & 1
    return (1 - 2 * bits).astype(np.float32)


def _bit_signs(lib: _Library, x: Array) -> Array:
    return 1 - 2 * lib.f32(lib.fields(x, 1))


def _iq2_xxs(lib: _Library, b: Array, n: int) -> Array:
    pairs = b[:, 2:].reshape(n, 8, 8)
    word = lib.view(pairs[:, :, 4:], "<u4").reshape(n, 8)
    scale = _f16(lib, b[:, :2]) * (lib.f32(lib.shifted(word, (28,), 15)).reshape(n, 8) + 0.5) * 0.25
    signs = lib.lookup(_signs(), lib.shifted(word, (0, 7, 14, 21), 127))
    return scale.reshape(n, 8, 1, 1) * lib.lookup(_grid("iq2xxs_grid"), pairs[:, :, :4]) * signs


def _iq2_xs(lib: _Library, b: Array, n: int) -> Array:
    word = lib.view(b[:, 2:66], "<u2")
    scale = _f16(lib, b[:, :2]) * (lib.f32(lib.fields(b[:, 66:74], 4)) + 0.5) * 0.25
    signs = lib.lookup(_signs(), lib.shifted(word, (9,), 127).reshape(n, 32))
    values = lib.lookup(_grid("iq2xs_grid"), lib.shifted(word, (0,), 511).reshape(n, 32)) * signs
    return scale.reshape(n, 16, 1, 1) * values.reshape(n, 16, 2, 8)


def _iq2_s(lib: _Library, b: Array, n: int) -> Array:
    scale = _f16(lib, b[:, :2]) * (lib.f32(lib.fields(b[:, 74:82], 4)) + 0.5) * 0.25
    index = lib.i32(b[:, 2:34]) + lib.i32(lib.fields(b[:, 66:74], 2)) * 256
    signs = _bit_signs(lib, b[:, 34:66]).reshape(n, 32, 8)
    values = lib.lookup(_grid("iq2s_grid"), index) * signs
    return scale.reshape(n, 16, 1, 1) * values.reshape(n, 16, 2, 8)


def _iq3_xxs(lib: _Library, b: Array, n: int) -> Array:
    word = lib.view(b[:, 66:98], "<u4")
    scale = _f16(lib, b[:, :2]) * (lib.f32(lib.shifted(word, (28,), 15)).reshape(n, 8) + 0.5) * 0.5
    signs = lib.lookup(_signs(), lib.shifted(word, (0, 7, 14, 21), 127))
    values = lib.lookup(_grid("iq3xxs_grid"), b[:, 2:66]).reshape(n, 8, 4, 8)
    return scale.reshape(n, 8, 1, 1) * values * signs


def _iq3_s(lib: _Library, b: Array, n: int) -> Array:
    scale = _f16(lib, b[:, :2]) * (lib.f32(lib.fields(b[:, 106:110], 4)) * 2 + 1)
    index = lib.i32(b[:, 2:66]) + lib.i32(lib.fields(b[:, 66:74], 1)) * 256
    values = lib.lookup(_grid("iq3s_grid"), index).reshape(n, 8, 32)
    return scale.reshape(n, 8, 1) * values * _bit_signs(lib, b[:, 74:106]).reshape(n, 8, 32)


_IQ1_DELTA: Final = 0.125


def _iq1_s(lib: _Library, b: Array, n: int) -> Array:
    word = lib.view(b[:, 34:50], "<u2")
    scale = _f16(lib, b[:, :2]) * (lib.f32(lib.shifted(word, (12,), 7)).reshape(n, 8) * 2 + 1)
    delta = _IQ1_DELTA - 2 * _IQ1_DELTA * lib.f32(lib.shifted(word, (15,), 1)).reshape(n, 8, 1, 1)
    index = lib.i32(b[:, 2:34]) + lib.shifted(word, (0, 3, 6, 9), 7).reshape(n, 32) * 256
    return scale.reshape(n, 8, 1, 1) * (lib.lookup(_grid("iq1s_grid"), index).reshape(n, 8, 4, 8) + delta)


def _iq1_m(lib: _Library, b: Array, n: int) -> Array:
    # The block's f16 scale is spread over the top four bits of the four 16-bit words of scales.
    nibbles = [b[:, 48 + 2 * i + 1 : 50 + 2 * i] >> 4 for i in range(4)]
    d = _f16(lib, lib.cat([nibbles[0] + nibbles[1] * 16, nibbles[2] + nibbles[3] * 16]))
    scale = d * (lib.f32(lib.shifted(lib.view(b[:, 48:56], "<u2"), (0, 3, 6, 9), 7)).reshape(n, 16) * 2 + 1)
    high = lib.fields(b[:, 32:48], 4)
    delta = _IQ1_DELTA - 2 * _IQ1_DELTA * lib.f32(high >> 3)
    index = lib.i32(b[:, :32]) + lib.i32(high & 7) * 256
    values = lib.lookup(_grid("iq1s_grid"), index) + delta.reshape(n, 32, 1)
    return scale.reshape(n, 16, 1, 1) * values.reshape(n, 16, 2, 8)


def _iq4_nl(lib: _Library, b: Array, n: int) -> Array:
    return lib.lookup(_grid("kvalues_iq4nl"), lib.planes(b[:, 2:], 4).reshape(n, 32)) * _f16(lib, b[:, :2])


def _iq4_xs(lib: _Library, b: Array, n: int) -> Array:
    scale = lib.f32(lib.fields(b[:, 4:8], 4) + lib.fields(b[:, 2:4], 2) * 16) - 32
    q = lib.lookup(_grid("kvalues_iq4nl"), lib.planes(b[:, 8:].reshape(n, 8, 16), 4).reshape(n, 8, 32))
    return q * (_f16(lib, b[:, :2]) * scale).reshape(n, 8, 1)


_FORMULAS: Final = MappingProxyType[GGMLType, _Formula](
    {
        GGMLType.F32: _f32_plain,
        GGMLType.F16: _f16_plain,
        GGMLType.BF16: _bf16_plain,
        GGMLType.Q4_0: _q4_0,
        GGMLType.Q4_1: _q4_1,
        GGMLType.Q5_0: _q5_0,
        GGMLType.Q5_1: _q5_1,
        GGMLType.Q8_0: _q8_0,
        GGMLType.Q2_K: _q2_k,
        GGMLType.Q3_K: _q3_k,
        GGMLType.Q4_K: _q4_k,
        GGMLType.Q5_K: _q5_k,
        GGMLType.Q6_K: _q6_k,
        GGMLType.TQ1_0: _tq1_0,
        GGMLType.TQ2_0: _tq2_0,
        GGMLType.Q1_0: _q1_0,
        GGMLType.MXFP4: _mxfp4,
        GGMLType.NVFP4: _nvfp4,
        GGMLType.IQ1_S: _iq1_s,
        GGMLType.IQ1_M: _iq1_m,
        GGMLType.IQ2_XXS: _iq2_xxs,
        GGMLType.IQ2_XS: _iq2_xs,
        GGMLType.IQ2_S: _iq2_s,
        GGMLType.IQ3_XXS: _iq3_xxs,
        GGMLType.IQ3_S: _iq3_s,
        GGMLType.IQ4_NL: _iq4_nl,
        GGMLType.IQ4_XS: _iq4_xs,
    }
)
