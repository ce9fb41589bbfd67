"""Attention of a prompt's rows on the device under test against float64, in both forms; its code for gfx1100."""

from dataclasses import replace

import numpy as np
import pytest
from tinygrad.dtype import dtypes

from garzone.kernels.gpu.attention import Heads, gather_parts, part_floats
from garzone.kernels.gpu.intrinsics import AMD
from garzone.kernels.gpu.prompt_attention import attend_prompt, cache_bytes, cut
from tests.kernels.gpu.gfx1100 import listing
from tests.kernels.gpu.oracle import MATRIX_PRODUCTS, intrinsics, run

Places = list[tuple[int, int]]


def attended(heads: Heads, places: Places, *, with_matrix_products: bool) -> tuple[np.ndarray, np.ndarray]:
    """What the kernel makes of random rows at these places (slot, position; -1 for padding), and what it should."""
    rows, rng = len(places), np.random.default_rng(len(places))
    shape = (heads.slots, heads.keys, heads.positions, heads.size)
    keys, values = (rng.standard_normal(shape).astype(np.float16) for _ in range(2))
    queries = (rng.standard_normal((rows, heads.queries, heads.size)) * heads.query_scale).astype(np.float16)
    where, known = np.array(places, np.int32), replace(intrinsics(), has_wmma=with_matrix_products)
    splits = cut(heads, rows).splits
    words = (array.view(np.uint32) for array in (queries, keys, values))
    before = np.full(part_floats(heads, rows, splits), np.nan, np.float32)
    parts = run(attend_prompt(heads, rows, known), before, *words, where)
    gather = gather_parts(heads, rows, known, splits=splits)
    out = run(gather, np.zeros((rows, heads.queries, heads.size), np.float32), parts)
    real = [row for row, (_, position) in enumerate(places) if position >= 0]
    want = np.zeros((len(real), heads.queries, heads.size))
    for index, row in enumerate(real):
        slot, position = places[row]
        for head in range(heads.queries):
            own = slot, head // (heads.queries // heads.keys), slice(position + 1)
            # Queries are scaled so that scores are exponents of two.
            scores = keys[own].astype(np.float64) @ queries[row, head].astype(np.float64)
            weights = np.exp2(scores - scores.max())
            want[index, head] = weights / weights.sum() @ values[own].astype(np.float64)
    return out[real], want


def positions(slot: int, first: int, count: int) -> Places:
    return [(slot, first + i) for i in range(count)]


MIXED = [*positions(2, 60, 10), (0, 40), (-1, -1), (1, 127), *positions(0, 3, 6)]


@pytest.mark.parametrize(
    "with_matrix_products",
    [pytest.param(False, id="plain"), pytest.param(True, id="matrix products", marks=MATRIX_PRODUCTS)],
)
@pytest.mark.parametrize(
    ("heads", "places"),
    [
        (Heads(1, 1, 32, 32, 32, adjacent=False, slots=2), [*positions(1, 18, 9), (0, 3), (-1, -1)]),
        pytest.param(Heads(1, 1, 32, 64, 32, adjacent=False), positions(0, 20, 17), marks=pytest.mark.slow),
        pytest.param(Heads(4, 2, 32, 128, 32, adjacent=False, slots=3), MIXED, marks=pytest.mark.slow),
        pytest.param(Heads(3, 1, 160, 64, 160, adjacent=False), positions(0, 30, 9), marks=pytest.mark.slow),
    ],
    ids=["two slots", "more rows than a tile", "splits, slots and grouped heads", "queries beyond the registers"],
)
def test_attention_of_a_prompt_equals_the_reference(heads, places, with_matrix_products):
    got, want = attended(heads, places, with_matrix_products=with_matrix_products)
    # Weights, which are at most 1, are rounded to f16: 2**-12 of values of order one.
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("queries", "keys", "size", "rows", "slots"),
    [
        (28, 4, 128, 64, 4),
        pytest.param(28, 4, 128, 512, 4, marks=pytest.mark.slow),
        pytest.param(9, 3, 64, 64, 1, marks=pytest.mark.slow),
        pytest.param(12, 12, 64, 512, 4, marks=pytest.mark.slow),
        pytest.param(8, 1, 256, 64, 4, marks=pytest.mark.slow),
    ],
)
def test_attention_of_a_prompt_compiles_for_gfx1100_to_matrix_products_without_spills(queries, keys, size, rows, slots):
    heads = Heads(queries, keys, size, 4096, size, adjacent=False, slots=slots)
    cache = (dtypes.uint32, heads.cache_words)
    code = listing(
        attend_prompt(heads, rows, AMD),
        (dtypes.float, part_floats(heads, rows, cut(heads, rows).splits)),
        (dtypes.uint32, rows * queries * heads.words),
        cache,
        cache,
        (dtypes.int, rows * 2),
    )
    loop = code.steady_loop
    assert code.spills + loop.scratch == 0
    products = loop.count("v_wmma_f32_16x16x16_f16")
    # Two tiles of positions for all of a head, once for scores and once for values; a long head's scores are a loop.
    assert products == 4 * size // 16 if size <= 128 else products >= 2 * size // 16
    # A matrix product takes 32 slots; everything else a wave does between them should not come near that.
    assert loop.valu_slots - products <= (32 if size < 128 else 18) * products
    assert set(loop.load_widths) == {16}
    assert loop.divergent_branches == 0


def test_a_chunk_reads_the_cache_once_for_sixteen_rows():
    heads = Heads(28, 4, 128, 4096, 128, adjacent=False)
    places = positions(0, 4096 - 512, 512)
    # Decode's attention reads, for every row, the keys and values of all positions up to its own.
    alone = sum(-(-(position + 1) // 32) * 32 for _, position in places) * 4 * 128 * 2 * 2
    assert alone / cache_bytes(heads, places) == pytest.approx(16, rel=0.01)
    assert cut(heads, 512).rows == 16
    # Fewer heads to a kv head leave room for more rows.
    assert cut(Heads(12, 12, 64, 4096, 64, adjacent=False), 512).rows == 128


def test_a_short_prompt_is_split_over_a_thousand_waves_where_the_context_is_long():
    for rows in (64, 512):
        heads = Heads(28, 4, 128, 4096, 128, adjacent=False)
        one = cut(heads, rows)
        assert one.splits * -(-rows // one.rows) * one.tiles * heads.queries >= 1000
