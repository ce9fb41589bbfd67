"""The registry's operations built from GPU kernels, on the device under test, against the plain-tensor reference."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tinygrad.dtype import dtypes
from tinygrad.tensor import Tensor

from garzone.core.errors import GGUFError
from garzone.core.generation import KVCacheType
from garzone.kernels import portable, reference
from garzone.kernels.gpu import offers
from garzone.kernels.launch import variables
from garzone.kernels.layouts import GGMLType
from garzone.kernels.registry import (
    AttentionSpec,
    EmbedSpec,
    Gate,
    LinearSpec,
    Matrix,
    Place,
    Registry,
    RopePairs,
    Step,
)
from tests.kernels.gpu.oracle import DEVICE, random_weights

RNG = np.random.default_rng(4)
# tinygrad's own kernels for six rows read pairs of bytes at odd addresses, which its emulator gets wrong.
NUM_CTX, CHUNK = 40, 8


def registry() -> Registry:
    return Registry(offers.offers((DEVICE,)))


def place() -> Place:
    return Place(device=DEVICE, num_ctx=NUM_CTX, chunk_tokens=CHUNK, dense_bytes=0)


def step(start: int, count: int, tokens: list[int] | None = None) -> Step:
    first, rows = variables(NUM_CTX, CHUNK)
    ids = Tensor((tokens or []) + [0] * (CHUNK - len(tokens or [])), dtype=dtypes.int32, device="CPU")
    return Step(CHUNK, ids.to(DEVICE).realize(), first.bind(start), rows.bind(count))


def decode_step(start: int, tokens: list[int] | None = None) -> Step:
    return replace(step(start, 1, tokens), rows=1, count=1)


def matrix(rows: int, columns: int, ggml_type: GGMLType, name: str = "w") -> Matrix:
    packed = random_weights(ggml_type, rows, columns, seed=rows)
    return Matrix(name, ggml_type, rows, columns, lambda: packed)


def there(array: np.ndarray) -> Tensor:
    return Tensor(np.ascontiguousarray(array), device="CPU").to(DEVICE).realize()


def back(tensor: Tensor) -> np.ndarray:
    return tensor.realize().to("CPU").numpy()


def floats(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def vector(size: int) -> np.ndarray:
    return (1 + 0.2 * RNG.standard_normal(size)).astype(np.float32)


Q8, Q4K, Q6K = GGMLType.Q8_0, GGMLType.Q4_K, GGMLType.Q6_K
LINEARS: dict[str, LinearSpec] = {
    "stacked, mixed types, norm and bias": LinearSpec(
        (matrix(6, 256, Q4K, "q"), matrix(3, 256, Q4K, "k"), matrix(4, 256, Q6K, "v")),
        norm=vector(256),
        norm_eps=1e-5,
        bias=vector(13),
    ),
    "gated, one type": LinearSpec((matrix(32, 64, Q8, "gate"), matrix(32, 64, Q8, "up")), norm=vector(64), gated=True),
    "gated, mixed types": LinearSpec(
        (matrix(32, 64, Q8, "gate2"), matrix(32, 64, GGMLType.Q4_1, "up2")), norm=vector(64), gated=True
    ),
    "added to a residual": LinearSpec((matrix(5, 96, Q8),), residual=True),
    "half precision": LinearSpec((matrix(5, 64, GGMLType.F16),), norm=vector(64)),
    "single precision": LinearSpec((matrix(5, 64, GGMLType.F32),)),
}


# Waves of 256 threads that exchange through memory: half a minute each in the interpreter, seconds anywhere else.
slow_when_interpreted = pytest.mark.slow if DEVICE == "PYTHON" else ()


@pytest.mark.parametrize("name", [pytest.param(n, marks=slow_when_interpreted if "," in n else ()) for n in LINEARS])
def test_linear_equals_the_reference(name):
    spec = LINEARS[name]
    built = registry()
    function: Any = built.build(spec, place())
    assert built.decode_apart
    x = floats(CHUNK, spec.columns)
    residual = floats(CHUNK, spec.out_columns) if spec.residual else None
    want = reference.linear(
        spec, Tensor(x, device="CPU"), None if residual is None else Tensor(residual, device="CPU")
    ).numpy()
    for now in (step(0, 4), decode_step(0)):
        count = now.count if isinstance(now.count, int) else 4
        added = None if residual is None else there(residual[: now.rows])
        got = back(function(there(x[: now.rows]), now, added))
        assert got.shape == (now.rows, spec.out_columns)
        off = np.sqrt(((got[:count] - want[:count]) ** 2).mean()) / np.sqrt((want**2).mean())
        # Activations as int8 are off by 0.4 % of their group's largest; a gate multiplies two such errors.
        assert off < {"single precision": 1e-6, "half precision": 1e-3}.get(name, 0.02)


def test_the_last_real_row_alone_goes_through_the_output_matrix():
    spec = LinearSpec((matrix(7, 64, Q8),), norm=vector(64), norm_eps=1e-5, last_row=True)
    function: Any = registry().build(spec, place())
    x = floats(CHUNK, 64)
    got = back(function(there(x), step(0, 3)))
    want = reference.linear(spec, Tensor(x[:3], device="CPU")).numpy()
    assert got.shape == (1, 7)
    np.testing.assert_allclose(got, want, atol=0.02 * np.abs(want).max())


@pytest.mark.parametrize("ggml_type", [Q8, Q4K, Q6K, GGMLType.F16], ids=lambda t: t.name)
def test_embedding_takes_rows_of_the_table(ggml_type):
    spec = EmbedSpec(matrix(9, 256, ggml_type))
    function: Any = registry().build(spec, place())
    tokens = [3, 8, 0, 5]
    got = back(function(step(0, len(tokens), tokens)))[: len(tokens)]
    np.testing.assert_allclose(got, reference.embed(spec, Tensor(tokens, device="CPU")).numpy(), rtol=1e-6)


@pytest.mark.parametrize(
    ("pairs", "size", "has_norms"),
    [
        pytest.param(RopePairs.ADJACENT, 32, False, marks=slow_when_interpreted),
        pytest.param(RopePairs.HALVES, 32, False, marks=slow_when_interpreted),
        pytest.param(RopePairs.HALVES, 64, True, marks=slow_when_interpreted),
        pytest.param(RopePairs.HALVES, 128, True, marks=slow_when_interpreted),
    ],
)
def test_attention_over_the_cache_equals_attention_over_the_sequence(pairs, size, has_norms):
    heads, kv_heads, dims = 4, 2, 20
    angle = np.arange(NUM_CTX)[:, None] * 100.0 ** (-np.arange(0, dims, 2) / dims)
    rope = np.stack([np.cos(angle), np.sin(angle)], -1).astype(np.float32)
    norms = {"q_norm": vector(size), "k_norm": vector(size), "norm_eps": 1e-6} if has_norms else {}
    spec = AttentionSpec(heads, kv_heads, size, rope, pairs, **norms)
    function: Any = registry().build(spec, place())
    qkv = floats(12, (heads + 2 * kv_heads) * size)
    want = reference.attend(spec, Tensor(qkv, device="CPU")).numpy()
    cache, at = function.new_cache(), 0
    for count in (5, 6):
        padded = np.full((CHUNK, qkv.shape[1]), 1e3, np.float32)  # rows behind the real ones may hold anything
        padded[:count] = qkv[at : at + count]
        out, cache = function(there(padded), cache, step(at, count))
        np.testing.assert_allclose(back(out)[:count], want[at : at + count], atol=5e-3)
        at += count
    out, cache = function(there(qkv[at : at + 1]), cache, decode_step(at))
    np.testing.assert_allclose(back(out), want[at : at + 1], atol=5e-3)


def test_weights_that_are_not_numbers_are_refused_by_tensor_name_before_anything_is_uploaded():
    packed = random_weights(Q4K, 2, 256).copy()
    packed[1, :2] = np.array([np.nan], np.float16).view(np.uint8)
    damaged = Matrix("blk.0.ffn_up.weight", Q4K, 2, 256, lambda: packed)
    where = place()
    with pytest.raises(GGUFError, match=r"blk\.0\.ffn_up\.weight"):
        registry().build(LinearSpec((damaged,)), where)
    assert where.memory_bytes == 0


def test_a_tied_matrix_is_kept_once():
    table, where, built = matrix(8, 64, Q8), place(), registry()
    built.build(EmbedSpec(table), where)
    built.build(LinearSpec((table,), last_row=True), where)
    assert where.memory_bytes == 8 * 64 // 32 * 34


def test_sizes_that_the_kernels_cannot_cut_are_declined():
    rope = np.zeros((NUM_CTX, 12, 2), np.float32)
    with pytest.raises(LookupError):
        registry().build(AttentionSpec(2, 2, 24, rope, RopePairs.HALVES), place())
    with pytest.raises(LookupError):
        registry().build(LinearSpec((matrix(4, 24, GGMLType.F16),)), place())


ROPE = np.zeros((NUM_CTX, 16, 2), np.float32)
HEADS = AttentionSpec(2, 1, 32, ROPE, RopePairs.HALVES)


@pytest.mark.parametrize(
    ("spec", "missing"),
    [
        (EmbedSpec(matrix(9, 256, Q8), scale=16.0), "scaled embeddings"),
        (replace(LINEARS["gated, one type"], gate=Gate.GELU), "gelu gates"),
        (LinearSpec((matrix(5, 96, Q8),), residual=True, post_norm=vector(5)), "whose result is normalised"),
        (replace(HEADS, q_norm=vector(32), k_norm=vector(32)), "norms of queries and keys in heads of 32"),
        (replace(HEADS, window=8), "within a window"),
        (replace(HEADS, scale=1.0), "its own scale"),
        (replace(HEADS, kv_cache=KVCacheType.Q8_0), "KV cache in q8_0"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_the_kernels_would_leave_out_is_left_to_the_portable_ones_and_said_once(spec, missing, caplog):
    where = place()
    both = Registry((*portable.OFFERS, *offers.offers((DEVICE,))))
    for _ in range(2):
        both.build(spec, where)
    assert all(name.startswith("portable") for name in both.chosen)
    assert sum(missing in record.message for record in caplog.records) == 1
