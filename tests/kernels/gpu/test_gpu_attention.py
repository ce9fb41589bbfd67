"""Attention on the device under test against float64: rotation, cache, grouped heads, split positions."""

import numpy as np
import pytest
from tinygrad.dtype import dtypes
from tinygrad.tensor import Tensor

from garzone.kernels.gpu.attention import Heads, attend, gather_parts, part_floats, rotate_and_store
from garzone.kernels.gpu.intrinsics import AMD
from tests.kernels.gpu.gfx1100 import listing
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


def attended(heads: Heads, places: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
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
    parts = run(
        attend(heads, rows, intrinsics()),
        np.full(part_floats(heads, rows), np.nan, np.float32),
        *(t.to("CPU").numpy() for t in (q, k, v)),
        where,
    )
    gather = gather_parts(heads, rows, intrinsics())
    out = run(gather, np.zeros((rows, heads.queries, heads.size), np.float32), parts, where)

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
    ("heads", "places"),
    [
        (Heads(3, 1, 32, 192, 32, adjacent=True), [(0, 150)]),
        (Heads(2, 1, 32, 64, 16, adjacent=False, slots=2), [(1, 30), (0, 5), (0, -1), (1, 31)]),
        pytest.param(Heads(3, 1, 64, 96, 64, adjacent=True), [(0, 0)], marks=pytest.mark.slow),
        pytest.param(Heads(1, 1, 128, 64, 128, adjacent=False), [(0, 37)], marks=pytest.mark.slow),
        pytest.param(Heads(11, 1, 32, 64, 32, adjacent=True), [(0, 20)], marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_attention_equals_the_reference(heads, places):
    got, want = attended(heads, places)
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
    assert any("dot2" in i.name for i in code.instructions)
    qkv = (dtypes.float, rows * (queries + 2 * keys) * size)
    rotate = listing(rotate_and_store(heads, rows), q, cache, cache, qkv, where, (dtypes.float, 4096 * size))
    assert rotate.spills == 0
    out, parts = (dtypes.float, rows * queries * size), (dtypes.float, part_floats(heads, rows))
    gather = listing(gather_parts(heads, rows, AMD), out, parts, where)
    assert gather.spills == 0


@pytest.mark.parametrize(("positions", "waves"), [(4096, 256), (16384, 1000), (32768, 1000)])
def test_a_long_context_is_split_over_enough_waves(positions, waves):
    # The 7B model's heads: four kv heads, seven queries each. A wave's step is 16 KB of the cache: at 4,096 positions
    # there are 512 steps in all, and more waves would write and read more parts than cache.
    heads = Heads(28, 4, 128, positions, 128, adjacent=False)
    assert heads.splits(1) * heads.queries // heads.together >= waves
