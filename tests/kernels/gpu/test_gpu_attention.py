"""Attention on the device under test against float64: rotation, cache, grouped heads, split positions."""

import re

import numpy as np
import pytest
from tinygrad.dtype import dtypes
from tinygrad.tensor import Tensor

from garzone.kernels.gpu.attention import Heads, Share, attend, gather_parts, gathers_all, part_floats, rotate_and_store
from garzone.kernels.gpu.intrinsics import AMD
from tests.kernels.gpu.gfx1100 import assembly, listing
from tests.kernels.gpu.oracle import DEVICE, intrinsics, run


def rotated(heads: Heads, x: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """x [rows, heads, size], angles [rows, rotated / 2]."""
    out = x.copy()
    cosine, sine = np.cos(angles)[:, None], np.sin(angles)[:, None]
    half = heads.rotated // 2
    first = slice(0, heads.rotated, 2) if heads.adjacent else slice(0, half)
    second = slice(1, heads.rotated, 2) if heads.adjacent else slice(half, heads.rotated)
    a, b = x[..., first], x[..., second]
    out[..., first], out[..., second] = a * cosine - b * sine, a * sine + b * cosine
    return out


def rope_table(heads: Heads) -> tuple[np.ndarray, np.ndarray]:
    frequencies = 10000.0 ** (-np.arange(heads.rotated // 2) / (heads.rotated // 2))
    angles = np.arange(heads.positions)[:, None] * frequencies
    return np.stack([np.cos(angles), np.sin(angles)], -1).astype(np.float32), angles


def attended(heads: Heads, places: list[tuple[int, int]], share: Share | None = None) -> tuple[np.ndarray, np.ndarray]:
    """What the kernels make of random rows at these places (slot, position; -1 for padding), and what they should."""
    rows = len(places)
    rng = np.random.default_rng(rows)
    shape = (heads.slots, heads.keys, heads.positions, heads.size)
    keys, values = (rng.standard_normal(shape).astype(np.float16) for _ in range(2))
    qkv = rng.standard_normal((rows, heads.queries + 2 * heads.keys, heads.size)).astype(np.float32)
    table, angles = rope_table(heads)
    queries = np.zeros((rows, heads.queries, heads.words), np.uint32)
    where = np.array(places, np.int32)
    arrays = (queries, keys.view(np.uint32), values.view(np.uint32), qkv, where, table)
    tensors = [Tensor(a.reshape(-1), device="CPU").to(DEVICE).realize() for a in arrays]
    q, k, v, *_ = tensors[0].custom_kernel(*tensors[1:], fxn=rotate_and_store(heads, rows))
    Tensor.realize(q, k, v)
    new_keys, new_values = (t.to("CPU").numpy().view(np.float16).reshape(shape) for t in (k, v))
    splits = share.splits if share else 0
    parts = run(
        attend(heads, rows, intrinsics(), share=share),
        np.full(part_floats(heads, rows, splits), np.nan, np.float32),
        *(t.to("CPU").numpy() for t in (q, k, v)),
        where,
    )
    gather = gather_parts(heads, rows, intrinsics(), splits=splits)
    which = () if gathers_all(heads, rows, splits) else (where,)
    out = run(gather, np.zeros((rows, heads.queries, heads.size), np.float32), parts, *which)

    exact = qkv.astype(np.float64)
    turned = rotated(heads, exact, angles[where[:, 1]])
    want_keys, want_values = keys.astype(np.float64), values.astype(np.float64)
    real = [row for row, (_, position) in enumerate(places) if position >= 0]
    for row in real:
        slot, position = places[row]
        want_keys[slot, :, position] = turned[row, heads.queries : heads.queries + heads.keys]
        want_values[slot, :, position] = exact[row, heads.queries + heads.keys :]
    np.testing.assert_allclose(new_keys, want_keys, rtol=1e-3, atol=2e-3)
    np.testing.assert_allclose(new_values, want_values, rtol=1e-3, atol=2e-3)
    want = np.zeros((len(real), heads.queries, heads.size))
    for index, row in enumerate(real):
        slot, position = places[row]
        for head in range(heads.queries):
            own = slot, head // (heads.queries // heads.keys), slice(position + 1)
            scores = new_keys[own].astype(np.float64) @ turned[row, head] / heads.size**0.5
            weights = np.exp(scores - scores.max())
            want[index, head] = weights / weights.sum() @ new_values[own].astype(np.float64)
    return out[real], want


@pytest.mark.parametrize(
    ("heads", "places", "share"),
    [
        # Two waves with three heads between them, two workgroups that take three and two pieces of the positions.
        (Heads(3, 1, 32, 192, 32, adjacent=True), [(0, 150)], Share(16, 2, 2)),
        (Heads(2, 1, 32, 64, 16, adjacent=False, slots=2), [(1, 30), (0, 5), (0, -1), (1, 31)], Share(32, 1, 2)),
        pytest.param(Heads(3, 1, 64, 96, 64, adjacent=True), [(0, 0)], None, marks=pytest.mark.slow),
        pytest.param(Heads(1, 1, 128, 64, 128, adjacent=False), [(0, 37)], Share(32, 1, 1), marks=pytest.mark.slow),
        pytest.param(Heads(11, 1, 32, 64, 32, adjacent=True), [(0, 20)], None, marks=pytest.mark.slow),
        # More workgroups than pieces: the last ones have nothing to do.
        pytest.param(Heads(2, 1, 64, 192, 64, adjacent=True), [(0, 150)], Share(32, 4, 4), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_attention_equals_the_reference(heads, places, share):
    got, want = attended(heads, places, share)
    # Queries, keys and values are rounded to f16: 2**-11 each, relative to values of order one.
    np.testing.assert_allclose(got, want, rtol=0, atol=5e-3)


@pytest.mark.parametrize(("queries", "keys", "size"), [(28, 4, 128), (9, 3, 64), (8, 1, 256), (12, 12, 64)])
@pytest.mark.parametrize("rows", [1, pytest.param(64, marks=pytest.mark.slow)])
def test_attention_compiles_for_gfx1100_without_spills(queries, keys, size, rows):
    heads = Heads(queries, keys, size, 4096, size, adjacent=False)
    where = (dtypes.int, rows * 2)
    cache, q = (dtypes.uint32, heads.cache_words), (dtypes.uint32, rows * queries * heads.words)
    code = listing(attend(heads, rows, AMD), (dtypes.float, part_floats(heads, rows)), q, cache, cache, where)
    assert code.spills == 0
    assert code.vgprs <= (128 if rows == 1 and size < 256 else 192)
    assert any("dot2" in i.name for i in code.instructions)
    qkv = (dtypes.float, rows * (queries + 2 * keys) * size)
    rotate = listing(rotate_and_store(heads, rows), q, cache, cache, qkv, where, (dtypes.float, 4096 * size))
    assert rotate.spills == 0
    rope, norm = (dtypes.float, 4096 * size), (dtypes.float, size)
    normed = rotate_and_store(heads, rows, AMD, 1e-6)
    assert listing(normed, q, cache, cache, qkv, where, rope, norm, norm).spills == 0
    out, parts = (dtypes.float, rows * queries * size), (dtypes.float, part_floats(heads, rows))
    which = () if gathers_all(heads, rows) else (where,)
    gather = listing(gather_parts(heads, rows, AMD), out, parts, *which)
    assert gather.spills == 0


@pytest.mark.parametrize("capacity", [4096, 16384, 32768])
@pytest.mark.parametrize("rows", [1, 8])
def test_a_thousand_waves_have_something_to_do_at_4096_positions(capacity, rows):
    # The 7B model's heads: four kv heads, seven queries each; from there on to the cache's end none is idle.
    heads = Heads(28, 4, 128, capacity, 128, adjacent=False)
    share = heads.share(rows)
    for position in (4095, capacity - 1):
        busy = min(-(-(position + 1) // share.piece), share.splits) * share.waves
        assert rows * heads.keys * busy >= 1000
    # Parts are written and read once: next to the cache of 4,096 positions they are a tenth.
    cache = 4096 * heads.keys * heads.size * 2 * 2
    assert 2 * 4 * part_floats(heads, 1) <= 0.12 * cache


@pytest.mark.parametrize("capacity", [4096, 32768])
def test_the_machine_code_has_those_waves_in_its_workgroups(capacity):
    heads = Heads(28, 4, 128, capacity, 128, adjacent=False)
    where, q = (dtypes.int, 2), (dtypes.uint32, 28 * heads.words)
    cache = (dtypes.uint32, heads.cache_words)
    text = assembly(attend(heads, 1, AMD), (dtypes.float, part_floats(heads, 1)), q, cache, cache, where)
    share = heads.share(1)
    assert f".max_flat_workgroup_size: {share.waves * 32}" in text
    # Two workgroups of eight waves share a compute unit of 64 KB.
    shared = re.findall(r"\.group_segment_fixed_size: (\d+)", text)
    assert len(shared) == 1
    assert int(shared[0]) <= 32 << 10
    # Four kv heads by the workgroups that share the positions are the grid.
    assert 4 * share.splits * share.waves >= 1000
