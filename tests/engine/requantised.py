"""Real weights in another type: packs matrices of a GGUF file anew, so that every type can be tested with them.

The gguf package packs the simple types; the others are packed here, by plain rounding: what counts is that weights are
real and that everybody reads the same ones, not that the rounding is the best. Bit layouts follow ggml-common.h.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np

from garzone.kernels.layouts import BLOCK, GGMLType

IQ4_VALUES = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)


def packed(x: np.ndarray, ggml_type: GGMLType) -> np.ndarray:
    """Rows of float32 as bytes of that type, uint8 [rows, bytes of a row]."""
    elements, size = BLOCK[ggml_type]
    if ggml_type not in _PACKERS:
        return gguf.quants.quantize(x, gguf.GGMLQuantizationType(int(ggml_type))).view(np.uint8).reshape(len(x), -1)
    blocks = _PACKERS[ggml_type](x.reshape(-1, elements).astype(np.float32))
    assert blocks.shape[1] == size
    return blocks.reshape(len(x), -1)


def requantise(source: Path, target: Path, ggml_type: GGMLType) -> int:
    """Writes a copy whose matrices are of that type where rows are multiples of its block, otherwise Q8_0.

    Returns:
        How many are of that type.
    """
    reader = gguf.GGUFReader(source)
    architecture = str(reader.fields["general.architecture"].contents())
    writer = gguf.GGUFWriter(target, architecture)
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            writer.add_key_value(name, field.contents(), field.types[0], field.types[-1])
    count = 0
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        if values.ndim < 2:
            writer.add_tensor(tensor.name, values.astype(np.float32))
            continue
        kind = ggml_type if values.shape[1] % BLOCK[ggml_type].elements == 0 else GGMLType.Q8_0
        count += kind is ggml_type
        writer.add_tensor(tensor.name, packed(values, kind), raw_dtype=gguf.GGMLQuantizationType(int(kind)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return count


def _half(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Factors rounded to f16: their bytes and their values."""
    rounded = x.astype(np.float16)
    return rounded.reshape(-1, 1).view(np.uint8), rounded.astype(np.float32)


def _divided(x: np.ndarray, by: np.ndarray) -> np.ndarray:
    return np.divide(x, by, out=np.zeros(np.broadcast_shapes(x.shape, by.shape), np.float32), where=by != 0)


def _with_minima(x: np.ndarray, subs: int, levels: int, steps: int) -> tuple[np.ndarray, ...]:
    """Numbers, scales and minima of sub-blocks, factors (bytes): weight = d * scale * number - dmin * minimum."""
    parts = x.reshape(len(x), subs, -1)
    low = np.minimum(parts.min(-1), 0)
    scale = (parts.max(-1) - low) / levels
    d_bytes, d = _half(scale.max(1) / steps)
    dmin_bytes, dmin = _half(-low.min(1) / steps)
    scales = np.clip(np.rint(_divided(scale, d[:, None])), 0, steps)
    minima = np.clip(np.rint(_divided(-low, dmin[:, None])), 0, steps)
    shifted = parts + (dmin[:, None] * minima)[..., None]
    numbers = np.clip(np.rint(_divided(shifted, (d[:, None] * scales)[..., None])), 0, levels)
    return (
        numbers.reshape(len(x), -1).astype(np.uint8),
        scales.astype(np.uint8),
        minima.astype(np.uint8),
        np.hstack([d_bytes, dmin_bytes]),
    )


def _signed(x: np.ndarray, subs: int, most: int, steps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Numbers from -most to most - 1 plus most, scales of sub-blocks up to ``steps``, factor (bytes)."""
    parts = x.reshape(len(x), subs, -1)
    scale = np.abs(parts).max(-1) / most
    d_bytes, d = _half(scale.max(1) / steps)
    scales = np.clip(np.rint(_divided(scale, d[:, None])), 0, steps)
    numbers = np.clip(np.rint(_divided(parts, (d[:, None] * scales)[..., None])), -most, most - 1) + most
    return numbers.reshape(len(x), -1).astype(np.uint8), scales.astype(np.int8), d_bytes


def _planes(numbers: np.ndarray) -> np.ndarray:
    """Two bits of 256 numbers: four that lie 32 apart in a byte."""
    quarters = (numbers & 3).reshape(-1, 2, 4, 32)
    return (quarters << np.array([0, 2, 4, 6], np.uint8)[:, None]).sum(2, dtype=np.uint8).reshape(-1, 64)


def _q2_k(x: np.ndarray) -> np.ndarray:
    numbers, scales, minima, factors = _with_minima(x, 16, 3, 15)
    return np.hstack([scales | (minima << 4), _planes(numbers), factors])


def _q3_k(x: np.ndarray) -> np.ndarray:
    numbers, scales, factor = _signed(x, 16, 4, 31)
    third = (numbers >> 2).reshape(-1, 8, 32) << np.arange(8, dtype=np.uint8)[:, None]
    stored = (scales + 32).astype(np.uint8)
    low = (stored[:, :8] & 15) | ((stored[:, 8:] & 15) << 4)
    high = ((stored >> 4).reshape(-1, 4, 4) << np.array([0, 2, 4, 6], np.uint8)[:, None]).sum(1, dtype=np.uint8)
    return np.hstack([third.sum(1, dtype=np.uint8), _planes(numbers), low, high, factor])


def _six_bit_pairs(scales: np.ndarray, minima: np.ndarray) -> np.ndarray:
    """Eight scales and eight minima of six bits in twelve bytes."""
    first = scales[:, :4] | ((scales[:, 4:] >> 4) << 6)
    second = minima[:, :4] | ((minima[:, 4:] >> 4) << 6)
    return np.hstack([first, second, (scales[:, 4:] & 15) | ((minima[:, 4:] & 15) << 4)])


def _nibbles(numbers: np.ndarray, run: int) -> np.ndarray:
    """Lower nibbles the first ``run`` of twice as many, upper ones the others."""
    pairs = (numbers & 15).reshape(len(numbers), -1, 2, run)
    return (pairs[:, :, 0] | (pairs[:, :, 1] << 4)).reshape(len(numbers), -1)


def _q4_k(x: np.ndarray) -> np.ndarray:
    numbers, scales, minima, factors = _with_minima(x, 8, 15, 63)
    return np.hstack([factors, _six_bit_pairs(scales, minima), _nibbles(numbers, 32)])


def _q5_k(x: np.ndarray) -> np.ndarray:
    numbers, scales, minima, factors = _with_minima(x, 8, 31, 63)
    fifth = ((numbers >> 4).reshape(-1, 8, 32) << np.arange(8, dtype=np.uint8)[:, None]).sum(1, dtype=np.uint8)
    return np.hstack([factors, _six_bit_pairs(scales, minima), fifth, _nibbles(numbers, 32)])


def _q6_k(x: np.ndarray) -> np.ndarray:
    numbers, scales, factor = _signed(x, 16, 32, 127)
    low = (numbers & 15).reshape(-1, 2, 2, 64)
    high = ((numbers >> 4).reshape(-1, 2, 4, 32) << np.array([0, 2, 4, 6], np.uint8)[:, None]).sum(2, dtype=np.uint8)
    lower = (low[:, :, 0] | (low[:, :, 1] << 4)).reshape(-1, 128)
    return np.hstack([lower, high.reshape(-1, 64), scales.view(np.uint8), factor])


def _codes(x: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """The nearest entries of the IQ4 codebook."""
    between = (IQ4_VALUES[1:] + IQ4_VALUES[:-1]) / 2
    return np.searchsorted(between, _divided(x, factor)).astype(np.uint8)


def _iq4_nl(x: np.ndarray) -> np.ndarray:
    d_bytes, d = _half(np.abs(x).max(1) / 120)
    return np.hstack([d_bytes, _nibbles(_codes(x, d[:, None]), 16)])


def _iq4_xs(x: np.ndarray) -> np.ndarray:
    parts = x.reshape(len(x), 8, 32)
    scale = np.abs(parts).max(-1) / 120
    d_bytes, d = _half(scale.max(1) / 31)
    scales = np.clip(np.rint(_divided(scale, d[:, None])), 0, 31)
    codes = _codes(parts, (d[:, None] * scales)[..., None]).reshape(len(x), -1)
    stored = (scales + 32).astype(np.uint16)
    high = ((stored >> 4) << (2 * np.arange(8, dtype=np.uint16))).sum(1, dtype=np.uint16)
    low = ((stored & 15)[:, ::2] | ((stored & 15)[:, 1::2] << 4)).astype(np.uint8)
    return np.hstack([d_bytes, high[:, None].view(np.uint8), low, _nibbles(codes, 16)])


_PACKERS: dict[GGMLType, Callable[[np.ndarray], np.ndarray]] = {
    GGMLType.Q2_K: _q2_k,
    GGMLType.Q3_K: _q3_k,
    GGMLType.Q4_K: _q4_k,
    GGMLType.Q5_K: _q5_k,
    GGMLType.Q6_K: _q6_k,
    GGMLType.IQ4_NL: _iq4_nl,
    GGMLType.IQ4_XS: _iq4_xs,
}
