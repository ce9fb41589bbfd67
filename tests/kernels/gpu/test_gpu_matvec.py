"""Decode products on the device under test against float64 over the gguf package's dequantisation."""

from dataclasses import dataclass

import numpy as np
import pytest
from tinygrad.dtype import dtypes
from tinygrad.uop.ops import UOp

from garzone.kernels.gpu.finish import Destination, Floats
from garzone.kernels.gpu.intrinsics import Intrinsics
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


@dataclass(frozen=True, eq=False)
class Beyond(Intrinsics):
    """Plain expressions, but permutations that go beyond their tables as RDNA3's v_perm_b32 does."""

    permutes_beyond: bool = True

    def permute_bytes(self, high: UOp, low: UOp, selector: UOp) -> UOp:
        result = super().permute_bytes(high, low, selector)
        for i in range(4):
            chosen = (selector >> (8 * i)) & 255
            beyond = (chosen > 12).where(UOp.const(255, dtypes.uint32), UOp.const(0, dtypes.uint32))
            for sign, (word, bit) in enumerate(((low, 15), (low, 31), (high, 15), (high, 31))):
                beyond = chosen.eq(8 + sign).where(((word >> bit) & 1) * 255, beyond)
            result = (chosen < 8).where(result, (result & (0xFFFFFFFF ^ (255 << (8 * i)))) | (beyond << (8 * i)))
        return result


@pytest.mark.parametrize("ggml_type", [GGMLType.IQ4_NL, GGMLType.MXFP4], ids=lambda t: t.name)
def test_codebooks_are_looked_up_with_permutations_that_go_beyond_their_tables(ggml_type):
    weights = random_weights(ggml_type, 2, 64)
    packed, values = quantise_rows(np.random.default_rng(7).standard_normal((1, 64)).astype(np.float32))
    quant = QUANTS[ggml_type]
    kernel = matvec(quant, 2, 64, Beyond("beyond"), cut=Plan(2, 1))
    buffer = in_device_order(weights, ggml_type).view(NUMPY[quant.dtype.itemsize])
    got = run(kernel, np.zeros((1, 2), np.float32), buffer, packed)
    matrix = dequantise(weights, ggml_type)
    assert (np.abs(got - values @ matrix.T) / (2e-6 * (np.abs(values) @ np.abs(matrix).T + 1))).max() < 1
