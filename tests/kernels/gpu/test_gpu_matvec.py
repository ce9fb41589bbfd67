"""Decode products on the device under test against float64 over the gguf package's dequantisation."""

import numpy as np
import pytest

from garzone.kernels.gpu.finish import Destination, Floats
from garzone.kernels.gpu.matvec import QUANTS, Plan, is_float, matvec, plan
from garzone.kernels.layouts import BLOCK, GGMLType
from tests.kernels.gpu.oracle import dequantise, in_device_order, intrinsics, quantise_rows, random_weights, run

NUMPY = {1: np.uint8, 2: np.uint16, 4: np.uint32}


def product(ggml_type: GGMLType, rows: int, columns: int, cut: Plan, *, tokens: int = 1, wide: bool = False):
    """By how many times the tolerance a product is off."""
    quant = QUANTS[ggml_type]
    rng = np.random.default_rng(rows + columns)
    weights = random_weights(ggml_type, rows, columns)
    x = rng.standard_normal((tokens, columns)).astype(np.float32)
    x[0, :32] = 0  # a group without a scale
    packed, values = (
        (x.view(np.uint32), x.astype(np.float64)) if is_float(quant) else quantise_rows(x, getattr(quant, "span", 32))
    )
    destination = Destination(rows + 3, 2, (True, False)) if wide else Destination(rows)
    added = [rng.standard_normal((n, destination.width)).astype(np.float32) for n in (tokens, 1)] if wide else []
    finish = Floats(rows, destination)
    kernel = matvec(quant, rows, columns, intrinsics(), cut=cut, num_tokens=tokens, together=3, finish=finish)
    out = np.full((tokens, destination.width), np.nan, np.float32)
    got = run(kernel, out, in_device_order(weights, ggml_type).view(NUMPY[quant.dtype.itemsize]), packed, *added)
    own = slice(destination.offset, destination.offset + rows)
    assert np.isnan(np.delete(got, np.arange(own.start, own.stop), axis=1)).all()
    matrix = dequantise(weights, ggml_type)
    want = values @ matrix.T + sum(a[:, own] for a in added)
    # The integers are exact: what is left is the rounding of float32 sums, relative to what was summed.
    tolerance = 2e-6 * (np.abs(values) @ np.abs(matrix).T + 1)
    return np.abs(got[:, own] - want) / tolerance


@pytest.mark.parametrize("ggml_type", QUANTS, ids=lambda t: t.name)
def test_a_product_equals_the_reference_for_every_quant(ggml_type):
    # Not a multiple of a step's blocks, so that some lanes lie beyond the row; not a multiple of the rows of a wave.
    columns = {1: 16 * 33, 32: 32 * 34, 256: 256 * 9}[BLOCK[ggml_type].elements]
    assert product(ggml_type, 3, columns, Plan(2, 1)).max() < 1


@pytest.mark.parametrize("cut", [Plan(4, 1), Plan(1, 2), Plan(4, 2), Plan(2, 4)], ids=str)
def test_every_cut_gives_the_same_product(cut):
    assert product(GGMLType.Q4_K, 5, 256 * 19, cut).max() < 1


@pytest.mark.parametrize("tokens", [3, 4])
def test_tokens_share_a_pass_over_the_weights(tokens):
    assert product(GGMLType.Q6_K, 4, 512, Plan(2, 1), tokens=tokens).max() < 1


def test_a_gate_and_what_it_lets_through_are_one_launch():
    rng = np.random.default_rng(1)
    weights = random_weights(GGMLType.Q8_0, 14, 96)
    packed, values = quantise_rows(rng.standard_normal((2, 96)).astype(np.float32))
    quant = QUANTS[GGMLType.Q8_0]
    kernel = matvec(
        quant, 14, 96, intrinsics(), cut=Plan(4, 1), num_tokens=2, finish=Floats(7, Destination(7), gated=True)
    )
    got = run(kernel, np.zeros((2, 7), np.float32), weights.reshape(-1).view(np.uint16), packed)
    gate, up = np.split(values @ dequantise(weights, GGMLType.Q8_0).T, 2, axis=1)
    np.testing.assert_allclose(got, gate / (1 + np.exp(-gate)) * up, rtol=1e-4, atol=1e-4)


def test_results_go_into_a_part_of_a_wider_row_with_bias_and_residual_added():
    assert product(GGMLType.Q4_1, 6, 576, Plan(2, 2), tokens=2, wide=True).max() < 1


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
