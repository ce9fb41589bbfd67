"""Prefill products with matrix instructions on the device under test against float64."""

import numpy as np
import pytest
from tinygrad.dtype import dtypes

from garzone.kernels.gpu.finish import Destination
from garzone.kernels.gpu.gemm import gemm
from garzone.kernels.gpu.intrinsics import AMD
from garzone.kernels.gpu.matvec import QUANTS
from garzone.kernels.gpu.quants import block_elements, units
from garzone.kernels.layouts import BLOCK, GGMLType
from tests.kernels.gpu.gfx1100 import listing
from tests.kernels.gpu.oracle import MATRIX_PRODUCTS, dequantise, in_device_order, intrinsics, random_weights, run

NUMPY = {1: np.uint8, 2: np.uint16, 4: np.uint32}


def halves(x: np.ndarray) -> np.ndarray:
    """As ``quantise(output="half")`` writes them."""
    ordered = x.astype(np.float16).reshape(len(x), -1, 4)[..., [0, 2, 1, 3]]
    return np.ascontiguousarray(ordered).reshape(len(x), -1).view(np.uint32)


def error(ggml_type: GGMLType, shape: tuple[int, int, int], destination: Destination) -> float:
    """Largest error over the tolerance; the shape is outputs, inputs, tokens."""
    outputs, inputs, tokens = shape
    quant = QUANTS[ggml_type]
    rng = np.random.default_rng(outputs)
    weights = random_weights(ggml_type, outputs, inputs)
    if ggml_type is GGMLType.MXFP4:
        weights.reshape(-1, 17)[:, 0] %= 130 - 116
        weights.reshape(-1, 17)[:, 0] += 116  # powers of two that f16 holds
    x = rng.standard_normal((tokens, inputs)).astype(np.float16)
    added = [
        rng.standard_normal((tokens if whole else 1, destination.width)).astype(np.float32)
        for whole in destination.addends
    ]
    out = np.full((tokens, destination.width), np.nan, np.float32)
    kernel = gemm(quant, shape, intrinsics(), destination)
    got = run(kernel, out, in_device_order(weights, ggml_type).view(NUMPY[quant.dtype.itemsize]), halves(x), *added)
    matrix, x = dequantise(weights, ggml_type), x.astype(np.float64)
    own = slice(destination.offset, destination.offset + outputs)
    want = x @ matrix.T + sum(a[:, own] for a in added)
    # Scale, minimum and weight are each rounded to f16, relative to the largest weight of a block before the minimum is
    # subtracted; errors of many weights add up like a random walk.
    tolerance = 3 * 2**-10 * np.sqrt((x**2) @ (np.abs(matrix) + np.abs(matrix).max()).T ** 2) + 1e-3
    return float((np.abs(got[:, own] - want) / tolerance).max())


# Seconds each: every type is checked before a release, some of every kind always.
OFTEN = {GGMLType.Q4_K, GGMLType.Q5_0, GGMLType.F16}
TYPES = [pytest.param(t, id=t.name, marks=() if t in OFTEN else pytest.mark.slow) for t in QUANTS]


@MATRIX_PRODUCTS
@pytest.mark.parametrize("ggml_type", TYPES)
def test_a_prefill_product_equals_the_reference_for_every_quant(ggml_type):
    # Neither a multiple of a tile's outputs nor of its tokens.
    assert error(ggml_type, (18, max(64, BLOCK[ggml_type].elements), 5), Destination(18)) < 1


@MATRIX_PRODUCTS
@pytest.mark.slow
def test_prefill_results_go_into_a_part_of_a_wider_row_with_bias_and_residual_added():
    assert error(GGMLType.Q8_0, (34, 64, 70), Destination(40, 3, (False, True))) < 1


@pytest.mark.parametrize("ggml_type", TYPES)
def test_prefill_products_compile_for_gfx1100_to_matrix_instructions_without_spills(ggml_type):
    quant = QUANTS[ggml_type]
    code = listing(
        gemm(quant, (3584, 3584, 128), AMD),
        (dtypes.float, 3584 * 128),
        (quant.dtype, 3584 * 3584 // block_elements(quant) * units(quant)),
        (dtypes.uint32, 128 * 3584 // 2),
    )
    assert code.spills == 0
    loop = code.steady_loop
    products = loop.count("v_wmma_f32_16x16x16_f16")
    assert products == 8 * block_elements(quant) // quant.lanes // 16
    # A matrix product takes 32 slots; everything else a wave does between them should not come near that.
    assert loop.valu_slots - products <= 16 * products
