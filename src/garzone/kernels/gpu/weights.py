"""Packed weights on the device, as the file has them, checked before anything is allocated.

It does not unpack them: the kernels do, in registers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tinygrad.device import Device, LRUAllocator
from tinygrad.dtype import DType, dtypes
from tinygrad.tensor import Tensor

from garzone.core.errors import GGUFError
from garzone.kernels.gpu.arranged_quants import ARRANGED, arranged
from garzone.kernels.gpu.matvec import QUANTS
from garzone.kernels.gpu.quants import Quant
from garzone.kernels.layouts import BLOCK, GGMLType
from garzone.kernels.registry import Matrix, Place

_NUMPY: dict[DType, type[np.unsignedinteger]] = {
    dtypes.uint8: np.uint8,
    dtypes.uint16: np.uint16,
    dtypes.uint32: np.uint32,
}

# Byte offsets of the f16 factors in a block (ggml-common.h): the only places where a quantised weight can hold NaN.
_FACTORS = {
    **dict.fromkeys((GGMLType.Q4_0, GGMLType.Q5_0, GGMLType.Q8_0, GGMLType.IQ4_NL, GGMLType.IQ4_XS), (0,)),
    **dict.fromkeys((GGMLType.Q4_1, GGMLType.Q5_1, GGMLType.Q4_K, GGMLType.Q5_K), (0, 2)),
    GGMLType.Q2_K: (80, 82),
    GGMLType.Q3_K: (108,),
    GGMLType.Q6_K: (208,),
}


_LARGE = 16 << 20


def _let_go(device: str) -> None:
    """Give back what the driver copied from: CUDA's keeps a copy of all of it until somebody waits, and longer."""
    Device[device].synchronize()
    allocator = Device[device].allocator
    if isinstance(allocator, LRUAllocator):
        allocator.free_cache()


def read(matrix: Matrix) -> np.ndarray:
    """The packed bytes of a matrix, checked.

    Raises:
        GGUFError: a factor is not finite; names the tensor.
    """
    raw = np.ascontiguousarray(matrix.read()).reshape(-1).view(np.uint8)
    if matrix.ggml_type in (GGMLType.F16, GGMLType.F32):
        checked = [raw.view(np.float16 if matrix.ggml_type is GGMLType.F16 else np.float32)]
    elif matrix.ggml_type is GGMLType.BF16:
        checked = [(raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)]
    else:
        blocks = raw.reshape(-1, BLOCK[matrix.ggml_type].bytes)
        offsets = _FACTORS.get(matrix.ggml_type, ())
        checked = [np.ascontiguousarray(blocks[:, at : at + 2]).view(np.float16) for at in offsets]
    if matrix.ggml_type is GGMLType.MXFP4:
        checked = [np.where(raw[:: BLOCK[GGMLType.MXFP4].bytes] == 255, np.nan, 0.0)]  # E8M0's only NaN
    if not all(np.isfinite(values).all() for values in checked):
        raise GGUFError(
            f"tensor {matrix.name!r}: holds weights that are not finite; the file is damaged, fetch it again"
        )
    return raw


@dataclass(frozen=True)
class Weights:
    """Matrices of one type, one below the other in one buffer."""

    quant: Quant
    rows: int
    columns: int
    tensor: Tensor


def upload(matrices: tuple[Matrix, ...], place: Place, *, in_order_of_file: bool = False) -> Weights:
    """The packed matrices on the device, made once: a tied embedding serves as output too.

    Types that products read in another order (``arranged_quants``) are put in it, unless asked otherwise.
    """
    arranges = matrices[0].ggml_type in ARRANGED and not in_order_of_file
    key = ("gpu weights", arranges, tuple(matrix.name for matrix in matrices))
    if key not in place.shared:
        quant = QUANTS[matrices[0].ggml_type]
        packed = [read(matrix) for matrix in matrices]
        if arranges:
            packed = [arranged(matrix.ggml_type, raw) for matrix, raw in zip(matrices, packed, strict=True)]
        raw = packed[0] if len(packed) == 1 else np.concatenate(packed)
        tensor = place.upload(raw.view(_NUMPY[quant.dtype]))
        if raw.nbytes >= _LARGE:
            _let_go(place.device)
        rows = sum(matrix.rows for matrix in matrices)
        place.shared[key] = Weights(quant, rows, matrices[0].columns, tensor)
    return place.shared[key]
