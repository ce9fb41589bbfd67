"""What the decode products cost on a Radeon RX 7900, read from the machine code; the bar is in kernels/amd/bar.py."""

import json

import pytest
from tinygrad.dtype import dtypes

from garzone.kernels.amd.bar import compiled, cost, slots_bar
from garzone.kernels.amd.count import main
from garzone.kernels.gpu.activations import num_words
from garzone.kernels.gpu.attention import Heads
from garzone.kernels.gpu.finish import GatedBytes, Rotated
from garzone.kernels.gpu.intrinsics import AMD
from garzone.kernels.gpu.matvec import QUANTS, Plan, activation_words, matvec, plan
from garzone.kernels.gpu.quants import block_elements, units
from garzone.kernels.layouts import GGMLType
from tests.kernels.gpu.gfx1100 import listing

# What misses the slots: a codebook of sixteen values takes two permutations, two selectors and a combination for every
# four weights, which is more than half a byte a weight allows (docs/engine-log.md). Held to what it takes now.
SLOTS_ABOVE_THE_BAR = {GGMLType.IQ4_XS: 15.6, GGMLType.IQ4_NL: 1.8}


def weights_of(ggml_type: GGMLType, outputs: int, inputs: int):
    quant = QUANTS[ggml_type]
    return quant.dtype, outputs * inputs // block_elements(quant) * units(quant)


@pytest.mark.parametrize("ggml_type", QUANTS, ids=lambda t: t.name)
def test_a_product_clears_every_point_of_the_bar(ggml_type):
    found = cost(ggml_type, 4)
    allowed = SLOTS_ABOVE_THE_BAR.get(ggml_type)
    misses = [miss for miss in found.misses if allowed is None or not miss.startswith("slots")]
    assert not misses
    assert found.slots <= (allowed or slots_bar(ggml_type))


# Those that come closest, and a 7B file's; every type takes part before a release.
NARROW = {GGMLType.Q2_K, GGMLType.Q3_K, GGMLType.Q4_K, GGMLType.Q6_K}
TWO_ROWS = [pytest.param(t, id=t.name, marks=() if t in NARROW else pytest.mark.slow) for t in QUANTS]


@pytest.mark.parametrize("ggml_type", TWO_ROWS)
def test_two_rows_a_wave_clear_it_too(ggml_type):
    misses = cost(ggml_type, 2).misses
    assert [miss for miss in misses if ggml_type not in SLOTS_ABOVE_THE_BAR or not miss.startswith("slots")] == []


def test_the_table_says_what_is_missed_and_json_holds_all_of_it(capsys):
    assert main(["--rows", "4", "--", "Q4_K"]) == 0
    assert capsys.readouterr().out.splitlines()[1].endswith(" -")
    assert main(["--json", "--rows", "4", "--", "Q4_K", "IQ4_NL"]) == 1
    first, second = json.loads(capsys.readouterr().out)
    assert first["misses"] == []
    assert first["bytes_in_flight"] == first["bytes_before_wait"] * first["waves_per_simd"]
    assert second["misses"][0].startswith("slots")
    with pytest.raises(SystemExit, match="2"):
        main(["Q9_K"])


@pytest.mark.slow
@pytest.mark.parametrize("ggml_type", QUANTS, ids=lambda t: t.name)
@pytest.mark.parametrize(("outputs", "inputs"), [(4608, 3584), (3584, 18944), (512, 3584)])
def test_the_plan_for_a_7b_shape_compiles_without_spills(ggml_type, outputs, inputs):
    code = compiled(ggml_type, None, outputs, inputs)
    assert code.spills == 0
    assert code.vgprs <= 128


@pytest.mark.parametrize("num_columns", [2, 4])
def test_a_few_columns_compile_without_spills(num_columns):
    quant = QUANTS[GGMLType.Q4_K]
    code = listing(
        matvec(quant, 4096, 4096, AMD, cut=Plan(2, 1), num_tokens=num_columns),
        (dtypes.float, 4096 * num_columns),
        weights_of(GGMLType.Q4_K, 4096, 4096),
        (dtypes.uint32, activation_words(quant, 4096) * num_columns),
    )
    assert code.spills == 0
    assert code.steady_loop.count("v_dot4_i32_iu8") == 32 * num_columns


# The types of a 7B Q4_K_M file; every type takes part before a release.
FUSED = [pytest.param(t, id=t.name, marks=() if t is GGMLType.Q4_K else pytest.mark.slow) for t in QUANTS]


@pytest.mark.parametrize("ggml_type", FUSED)
def test_what_a_product_does_with_its_sums_leaves_its_loop_as_it_is(ggml_type):
    quant, plain = QUANTS[ggml_type], cost(ggml_type, 4)
    heads = Heads(28, 4, 128, 4096, 128, adjacent=False, slots=2)
    cache = (dtypes.uint32, heads.cache_words)
    inputs = (dtypes.uint32, activation_words(quant, 8192))
    rotated = listing(
        matvec(quant, 4608, 8192, AMD, cut=Plan(4, 1), finish=Rotated(heads, 0, 36, has_bias=True)),
        *((dtypes.uint32, 28 * 64), cache, cache, weights_of(ggml_type, 4608, 8192), inputs),
        *((dtypes.int, 2), (dtypes.float, 4096 * 128), (dtypes.float, 4608)),
    )
    gated = listing(
        matvec(quant, 2 * 18944, 8192, AMD, cut=Plan(4, 1), finish=GatedBytes(18944, 32)),
        *((dtypes.uint32, num_words(18944)), weights_of(ggml_type, 2 * 18944, 8192), inputs),
    )
    for code in (rotated, gated):
        assert code.spills == 0
        assert code.vgprs <= 128
        assert code.steady_loop.valu_slots / (4 * 32 // quant.lanes) <= plain.slots * 1.05
        assert code.bytes_before_first_wait * code.waves_per_simd >= 8192


def test_large_launches_take_four_rows_a_wave():
    assert plan(QUANTS[GGMLType.Q4_K], 8192, 4096) == Plan(4, 1)
    assert plan(QUANTS[GGMLType.Q4_K], 3584, 3584) == Plan(4, 2)
