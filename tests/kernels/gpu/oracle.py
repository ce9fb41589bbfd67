"""What GPU kernels must compute, in plain numpy, and how a test runs one.

Kernels run on tinygrad's interpreter (``PYTHON``), lane by lane, unless GARZONE_TEST_DEVICE names another device:
``AMD`` under ``DEV=MOCK+AMD:GARZONE`` is tinygrad's RDNA3 emulator (in its git repository, see docs/engine-log.md),
``DEV=AMD`` a card.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import gguf
import numpy as np
import pytest
from tinygrad.device import Device
from tinygrad.tensor import Tensor
from tinygrad.uop.ops import UOp

from garzone.engine.device import open_device
from garzone.kernels.amd.renderer import install
from garzone.kernels.gpu.arranged_quants import ARRANGED, arranged
from garzone.kernels.gpu.intrinsics import Intrinsics, intrinsics_for
from garzone.kernels.layouts import BLOCK, GGMLType

DEVICE = os.environ.get("GARZONE_TEST_DEVICE", "PYTHON")
open_device("CPU")  # whatever compiler there is: what is computed on is made and looked at there
if DEVICE == "AMD":
    install("AMD")

# Byte offsets of the f16 factors inside a block (ggml-common.h).
_FACTORS = {
    GGMLType.Q4_0: (0,),
    GGMLType.Q4_1: (0, 2),
    GGMLType.Q5_0: (0,),
    GGMLType.Q5_1: (0, 2),
    GGMLType.Q8_0: (0,),
    GGMLType.IQ4_NL: (0,),
    GGMLType.IQ4_XS: (0,),
    GGMLType.Q2_K: (80, 82),
    GGMLType.Q3_K: (108,),
    GGMLType.Q4_K: (0, 2),
    GGMLType.Q5_K: (0, 2),
    GGMLType.Q6_K: (208,),
}


def intrinsics() -> Intrinsics:
    """Those of the device under test."""
    return intrinsics_for(Device[DEVICE].renderer)


# The interpreter and AMD's cards compute 16x16x16 products; on others nothing asks for them.
MATRIX_PRODUCTS = pytest.mark.skipif(DEVICE not in ("PYTHON", "AMD"), reason=f"{DEVICE} has no products as RDNA3's")


def random_weights(ggml_type: GGMLType, rows: int, columns: int, seed: int = 0) -> np.ndarray:
    """Random blocks with sane factors, uint8 [rows, bytes of a row]: every other bit pattern is a legal weight."""
    rng = np.random.default_rng(seed)
    elements, size = BLOCK[ggml_type]
    if ggml_type in {GGMLType.F32, GGMLType.F16, GGMLType.BF16}:
        values = rng.standard_normal((rows, columns)).astype(np.float32)
        if ggml_type is GGMLType.F16:
            values = values.astype(np.float16)
        elif ggml_type is GGMLType.BF16:
            values = (values.view(np.uint32) >> 16).astype(np.uint16)
        return np.ascontiguousarray(values).view(np.uint8).reshape(rows, -1)
    blocks = rng.integers(0, 256, (rows * columns // elements, size), dtype=np.uint8)
    for offset in _FACTORS.get(ggml_type, ()):
        factor = (rng.uniform(-1, 1, len(blocks)) * 0.05).astype(np.float16)
        blocks[:, offset : offset + 2] = factor.view(np.uint8).reshape(-1, 2)
    if ggml_type is GGMLType.MXFP4:
        blocks[:, 0] = rng.integers(0, 130, len(blocks))
    return blocks.reshape(rows, -1)


def in_device_order(weights: np.ndarray, ggml_type: GGMLType) -> np.ndarray:
    """The bytes as the kernels read them."""
    return arranged(ggml_type, weights.reshape(-1)) if ggml_type in ARRANGED else weights.reshape(-1)


def dequantise(weights: np.ndarray, ggml_type: GGMLType) -> np.ndarray:
    """Float64 matrix by the gguf package."""
    return gguf.quants.dequantize(weights, gguf.GGMLQuantizationType(int(ggml_type))).astype(np.float64)


def quantise_rows(x: np.ndarray, span: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """The format of ``activations``: uint32 [rows, words], and the float64 values it stands for."""
    rows, count = x.shape
    groups = x.astype(np.float32).reshape(rows, -1, 32)
    largest = np.abs(x.astype(np.float32)).reshape(rows, -1, span).max(-1).repeat(span // 32, -1)[..., None]
    scale = (largest / np.float32(127)).astype(np.float32)
    inverse = np.where(largest > 0, np.float32(127) / np.where(largest > 0, largest, np.float32(1)), 0).astype(
        np.float32
    )
    scaled = groups * inverse
    numbers = np.trunc(scaled + np.where(scaled < 0, np.float32(-0.5), np.float32(0.5))).astype(np.int8)
    sums = numbers.reshape(rows, -1, 2, 16).sum(-1, dtype=np.int16)
    aux = np.concatenate([scale.view(np.uint32), np.ascontiguousarray(sums).view(np.uint32)], -1).reshape(rows, -1)
    words = np.ascontiguousarray(numbers).view(np.uint32).reshape(rows, -1)
    return np.concatenate([words, aux], 1), (numbers.astype(np.float64) * scale).reshape(rows, count)


def run(kernel: Callable[..., UOp], out: np.ndarray, *inputs: np.ndarray) -> np.ndarray:
    """Runs a kernel once; ``out`` gives shape, dtype and what is there before."""
    tensors = [Tensor(a.reshape(-1), device="CPU").to(DEVICE).realize() for a in (out, *inputs)]
    result = tensors[0].custom_kernel(*tensors[1:], fxn=kernel)[0].realize()
    return result.to("CPU").numpy().reshape(out.shape)
