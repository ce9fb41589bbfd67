"""What the decode products cost on a Radeon RX 7900, read from the machine code (the bar is in docs/engine-log.md)."""

import math

import pytest
from tinygrad.dtype import dtypes

from garzone.kernels.amd.listing import Listing
from garzone.kernels.gpu.intrinsics import AMD, LANES
from garzone.kernels.gpu.matvec import QUANTS, Plan, activation_words, is_float, matvec, plan
from garzone.kernels.gpu.quants import block_elements, units
from garzone.kernels.layouts import BLOCK, GGMLType
from tests.kernels.gpu.gfx1100 import listing


def block_bytes(ggml_type: GGMLType) -> int:
    return units(QUANTS[ggml_type]) * QUANTS[ggml_type].dtype.itemsize


# Vector ALU slots a block: 12 for the 144 bytes of Q4_K and 16 for Q6_K, the others in proportion to their bytes.
SLOTS = {t: block_bytes(t) / 12 for t in QUANTS} | {GGMLType.Q6_K: 16.0}
# What misses that: a codebook of sixteen values takes two permutations, two selectors and a combination for every four
# weights, which is more than half a byte a weight allows (docs/engine-log.md). Held to what it takes now.
ABOVE_THE_BAR = {GGMLType.IQ4_XS: 15.6, GGMLType.IQ4_NL: 1.8}


def compiled(ggml_type: GGMLType, outputs: int, inputs: int, cut: Plan | None = None, num_columns: int = 1) -> Listing:
    quant = QUANTS[ggml_type]
    return listing(
        matvec(quant, outputs, inputs, AMD, cut=cut, num_tokens=num_columns),
        (dtypes.float, outputs * num_columns),
        (quant.dtype, outputs * inputs // block_elements(quant) * units(quant)),
        (dtypes.uint32, activation_words(quant, inputs) * num_columns),
    )


@pytest.mark.parametrize("ggml_type", QUANTS, ids=lambda t: t.name)
def test_the_steady_state_of_a_product_fits_its_budget(ggml_type):
    quant = QUANTS[ggml_type]
    cut = Plan(quant.max_rows, 1)
    code = compiled(ggml_type, 8192, 8192, cut)
    loop = code.steady_loop
    blocks = cut.rows * LANES // quant.lanes
    assert code.spills == loop.scratch == 0
    assert loop.divergent_branches == loop.quarter_rate == 0
    if not is_float(quant):
        assert loop.count("v_dot4_i32_iu8") == blocks * BLOCK[ggml_type].elements // 4 // LANES
    assert loop.valu_slots / blocks <= ABOVE_THE_BAR.get(ggml_type, SLOTS[ggml_type])
    assert code.vgprs <= 128
    # Bytes in flight: 1 KB a wave before it waits for the first time, 8 KB a SIMD.
    assert code.bytes_before_first_wait >= 1024
    assert code.bytes_before_first_wait * code.waves_per_simd >= 8192
    # Activations: 256 + 64 bytes for 256 weights, shared by the rows of a wave.
    assert 320 / cut.rows <= (80 if ggml_type is not GGMLType.Q3_K else 160)


@pytest.mark.parametrize(("ggml_type", "memory"), [(GGMLType.Q4_K, 1.0), (GGMLType.Q6_K, 1.25)], ids=str)
@pytest.mark.parametrize("rows", [2, 4])
def test_quants_are_read_sixteen_bytes_at_a_time(ggml_type, memory, rows):
    loop = compiled(ggml_type, 8192, 8192, Plan(rows, 1)).steady_loop
    assert loop.vector_memory / (rows * LANES // QUANTS[ggml_type].lanes) <= memory
    quant_loads = math.ceil(BLOCK[ggml_type].bytes // 16 / 4) * rows
    assert loop.load_widths[16] >= quant_loads
    assert set(loop.load_widths) <= ({16} if ggml_type is GGMLType.Q4_K else {16, 8, 2})


@pytest.mark.slow
@pytest.mark.parametrize("ggml_type", QUANTS, ids=lambda t: t.name)
@pytest.mark.parametrize(("outputs", "inputs"), [(4608, 3584), (3584, 18944), (512, 3584)])
def test_the_plan_for_a_7b_shape_compiles_without_spills(ggml_type, outputs, inputs):
    code = compiled(ggml_type, outputs, inputs)
    assert code.spills == 0
    assert code.vgprs <= 128


@pytest.mark.parametrize("num_columns", [2, 4])
def test_a_few_columns_compile_without_spills(num_columns):
    code = compiled(GGMLType.Q4_K, 4096, 4096, Plan(2, 1), num_columns)
    assert code.spills == 0
    assert code.steady_loop.count("v_dot4_i32_iu8") == 32 * num_columns


def test_large_launches_take_four_rows_a_wave():
    assert plan(QUANTS[GGMLType.Q4_K], 8192, 4096) == Plan(4, 1)
