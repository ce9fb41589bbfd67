"""Decode products on the device under test against float64 over the gguf package's dequantisation."""

import numpy as np
import pytest

from garzone.kernels.gpu.matvec import QUANTS, Plan, matvec, plan
from garzone.kernels.layouts import BLOCK, GGMLType
from tests.kernels.gpu.oracle import dequantise, intrinsics, quantise_rows, random_weights, run

NUMPY = {1: np.uint8, 2: np.uint16, 4: np.uint32}


def product(ggml_type: GGMLType, rows: int, columns: int, cut: Plan, *, num_columns: int = 1, addend: bool = False):
    quant = QUANTS[ggml_type]
    rng = np.random.default_rng(rows + columns)
    weights = random_weights(ggml_type, rows, columns)
    x = rng.standard_normal((num_columns, columns)).astype(np.float32)
    x[0, :32] = 0  # a group without a scale
    packed, values = quantise_rows(x)
    extra = [rng.standard_normal((num_columns, rows)).astype(np.float32)] if addend else []
    kernel = matvec(quant, rows, columns, intrinsics(), cut=cut, num_columns=num_columns, has_addend=addend)
    out = np.full((num_columns, rows), np.nan, np.float32)
    got = run(kernel, out, weights.reshape(-1).view(NUMPY[quant.dtype.itemsize]), packed, *extra)
    matrix = dequantise(weights, ggml_type)
    want = values @ matrix.T + (extra[0] if addend else 0)
    # The integers are exact: what is left is the rounding of float32 sums, relative to what was summed.
    tolerance = 2e-6 * (np.abs(values) @ np.abs(matrix).T + 1)
    return np.abs(got - want) / tolerance


@pytest.mark.parametrize("ggml_type", QUANTS, ids=lambda t: t.name)
def test_a_product_equals_the_reference_for_every_quant(ggml_type):
    # Not a multiple of a step's blocks, so that some lanes lie beyond the row; not a multiple of the rows of a wave.
    columns = BLOCK[ggml_type].elements * (40 if BLOCK[ggml_type].elements == 32 else 11)
    assert product(ggml_type, 5, columns, Plan(2, 1)).max() < 1


@pytest.mark.parametrize("cut", [Plan(4, 1), Plan(1, 2), Plan(4, 2), Plan(2, 4)], ids=str)
def test_every_cut_gives_the_same_product(cut):
    assert product(GGMLType.Q4_K, 7, 256 * 27, cut).max() < 1


def test_columns_share_one_pass_over_the_weights():
    assert product(GGMLType.Q6_K, 4, 512, Plan(2, 1), num_columns=3).max() < 1


def test_an_addend_of_the_outputs_shape_is_added():
    assert product(GGMLType.Q4_1, 6, 576, Plan(2, 2), num_columns=2, addend=True).max() < 1


def test_a_row_that_is_no_multiple_of_the_block_is_refused():
    with pytest.raises(ValueError, match="Q4_K's block of 256"):
        matvec(QUANTS[GGMLType.Q4_K], 16, 288, intrinsics())


@pytest.mark.parametrize(
    ("outputs", "inputs"), [(3584, 3584), (18944, 3584), (3584, 18944), (4608, 3584), (37888, 3584), (152064, 3584)]
)
def test_launches_of_a_7b_model_have_a_thousand_waves_and_reuse_activations(outputs, inputs):
    cut = plan(QUANTS[GGMLType.Q4_K], outputs, inputs)
    assert cut.num_waves(outputs) >= 1000
    assert cut.rows >= (4 if outputs >= 8192 else 2)
