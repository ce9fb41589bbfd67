"""Attention on the device under test against float64: rotation, cache, grouped heads, split positions."""

import numpy as np
import pytest
from tinygrad.dtype import dtypes
from tinygrad.tensor import Tensor
from tinygrad.uop.ops import UOp

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


def attended(heads: Heads, rows: int, start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(start)
    shape = (heads.keys, heads.positions, heads.size)
    keys, values = (rng.standard_normal(shape).astype(np.float16) for _ in range(2))
    qkv = rng.standard_normal((rows, heads.queries + 2 * heads.keys, heads.size)).astype(np.float32)
    table, angles = rope_table(heads)
    queries = np.zeros((rows, heads.queries, heads.words), np.uint32)
    arrays = (queries, keys.view(np.uint32), values.view(np.uint32), qkv, table)
    tensors = [Tensor(a.reshape(-1), device="CPU").to(DEVICE).realize() for a in arrays]
    first = UOp.const(start, dtypes.int)
    q, k, v, *_ = tensors[0].custom_kernel(*tensors[1:], fxn=rotate_and_store(heads, rows, first, count))
    Tensor.realize(q, k, v)
    new_keys, new_values = (t.to("CPU").numpy().view(np.float16).reshape(shape) for t in (k, v))
    parts = run(
        attend(heads, rows, intrinsics(), first),
        np.full(part_floats(heads, rows), np.nan, np.float32),
        *(t.to("CPU").numpy() for t in (q, k, v)),
    )
    out = run(gather_parts(heads, rows), np.zeros((rows, heads.queries, heads.size), np.float32), parts)

    exact = qkv.astype(np.float64)
    turned = rotated(heads, exact, angles[start : start + rows])
    want_keys, want_values = keys.astype(np.float64), values.astype(np.float64)
    want_keys[:, start : start + count] = turned[:count, heads.queries : heads.queries + heads.keys].swapaxes(0, 1)
    want_values[:, start : start + count] = exact[:count, heads.queries + heads.keys :].swapaxes(0, 1)
    np.testing.assert_allclose(new_keys, want_keys, rtol=1e-3, atol=2e-3)
    np.testing.assert_allclose(new_values, want_values, rtol=1e-3, atol=2e-3)
    want = np.zeros((count, heads.queries, heads.size))
    for row in range(count):
        for head in range(heads.queries):
            own = head // (heads.queries // heads.keys)
            scores = new_keys[own, : start + row + 1].astype(np.float64) @ turned[row, head] / heads.size**0.5
            weights = np.exp(scores - scores.max())
            want[row, head] = weights / weights.sum() @ new_values[own, : start + row + 1].astype(np.float64)
    return out[:count], want


@pytest.mark.parametrize(
    ("heads", "rows", "start", "count"),
    [
        (Heads(3, 1, 64, 96, 64, adjacent=True), 1, 0, 1),
        (Heads(3, 1, 32, 96, 32, adjacent=True), 1, 70, 1),
        (Heads(2, 1, 32, 64, 16, adjacent=False), 3, 30, 2),
        pytest.param(Heads(1, 1, 128, 64, 128, adjacent=False), 1, 37, 1, marks=pytest.mark.slow),
        pytest.param(Heads(11, 1, 32, 64, 32, adjacent=True), 1, 20, 1, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_attention_equals_the_reference(heads, rows, start, count):
    got, want = attended(heads, rows, start, count)
    # Queries, keys and values are rounded to f16: 2**-11 each, relative to values of order one.
    np.testing.assert_allclose(got, want, rtol=0, atol=5e-3)


@pytest.mark.parametrize(("queries", "keys", "size"), [(28, 4, 128), (9, 3, 64), (8, 1, 256), (12, 12, 64)])
@pytest.mark.parametrize("rows", [1, pytest.param(64, marks=pytest.mark.slow)])
def test_attention_compiles_for_gfx1100_without_spills(queries, keys, size, rows):
    heads = Heads(queries, keys, size, 4096, size, adjacent=False)
    start = UOp.variable("start", 0, 4095, dtype=dtypes.int, param=True)
    cache, q = (dtypes.uint32, heads.cache_words), (dtypes.uint32, rows * queries * heads.words)
    code = listing(attend(heads, rows, AMD, start), (dtypes.float, part_floats(heads, rows)), q, cache, cache)
    assert code.spills == 0
    assert any("dot2" in i.name for i in code.instructions)
    qkv = (dtypes.float, rows * (queries + 2 * keys) * size)
    rotate = listing(rotate_and_store(heads, rows, start, 1), q, cache, cache, qkv, (dtypes.float, 4096 * size))
    assert rotate.spills == 0
    gather = listing(
        gather_parts(heads, rows), (dtypes.float, rows * queries * size), (dtypes.float, part_floats(heads, rows))
    )
    assert gather.spills == 0


def test_a_long_context_is_split_over_enough_waves():
    heads = Heads(28, 4, 128, 4096, 128, adjacent=False)
    assert heads.splits(1) * heads.queries // heads.together >= 256
