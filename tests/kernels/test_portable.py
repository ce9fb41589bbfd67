"""The portable kernels against the plain-tensor reference, and the registry's choice."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tinygrad.dtype import dtypes
from tinygrad.helpers import Context
from tinygrad.tensor import Tensor

from garzone.core.errors import GGUFError
from garzone.core.generation import KVCacheType
from garzone.kernels import portable, reference
from garzone.kernels.cpu.offers import OFFERS as C_OFFERS
from garzone.kernels.launch import variables
from garzone.kernels.layouts import BLOCK, GGMLType
from garzone.kernels.registry import (
    AttentionSpec,
    EmbedSpec,
    LinearSpec,
    Matrix,
    Offer,
    Operation,
    Place,
    Registry,
    RopePairs,
    Step,
)

RNG = np.random.default_rng(3)
NUM_CTX, CHUNK = 80, 12


@pytest.fixture(autouse=True)
def compile_here() -> Iterator[None]:
    """No worker processes for a handful of tiny kernels."""
    with Context(PARALLEL=0):
        yield


def place(dense_bytes: int = 1 << 30) -> Place:
    return Place(device="CPU", num_ctx=NUM_CTX, chunk_tokens=CHUNK, dense_bytes=dense_bytes)


def step(start: int, count: int, tokens: list[int] | None = None) -> Step:
    first, rows = variables(NUM_CTX, CHUNK)
    ids = (tokens or []) + [0] * (CHUNK - len(tokens or []))
    return Step(CHUNK, Tensor(ids, dtype=dtypes.int32, device="CPU").realize(), first.bind(start), rows.bind(count))


def decode_step(start: int) -> Step:
    return replace(step(start, 1), rows=1, count=1)


def matrix(rows: int, columns: int, ggml_type: GGMLType = GGMLType.F32, name: str = "w") -> Matrix:
    values = (RNG.standard_normal((rows, columns)) / columns**0.5).astype(np.float32)
    if ggml_type is GGMLType.F32:
        packed = values.view(np.uint8).reshape(-1)
    elif ggml_type is GGMLType.F16:
        packed = values.astype(np.float16).view(np.uint8).reshape(-1)
    else:  # Q8_0: two bytes of scale, 32 of int8
        blocks = RNG.integers(0, 256, (rows * columns // 32, BLOCK[ggml_type].bytes), dtype=np.uint8)
        blocks[:, :2] = np.full(len(blocks), 0.01, np.float16).view(np.uint8).reshape(-1, 2)
        packed = blocks.reshape(-1)
    return Matrix(name, ggml_type, rows, columns, lambda: packed)


def vector(size: int, around: float = 0.0) -> np.ndarray:
    return (around + 0.2 * RNG.standard_normal(size)).astype(np.float32)


def activations(rows: int, columns: int) -> Tensor:
    return Tensor(RNG.standard_normal((rows, columns)).astype(np.float32), device="CPU").realize()


def close(got: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    assert np.abs(got - expected).max() <= tolerance * max(1.0, float(np.abs(expected).max()))


LINEARS: dict[str, LinearSpec] = {
    "plain": LinearSpec((matrix(64, 96),)),
    "stacked with bias after a norm": LinearSpec(
        (matrix(48, 64), matrix(16, 64), matrix(24, 64)), norm=vector(64, 1.0), norm_eps=1e-5, bias=vector(88)
    ),
    "gated": LinearSpec(
        (matrix(96, 64, name="gate"), matrix(96, 64, name="up")), norm=vector(64, 1.0), norm_eps=1e-6, gated=True
    ),
    "added to a residual": LinearSpec((matrix(64, 96),), residual=True),
    "odd sizes": LinearSpec((matrix(30, 45), matrix(7, 45))),
    "half precision": LinearSpec((matrix(64, 64, GGMLType.F16),)),
    "mixed types": LinearSpec((matrix(32, 64, GGMLType.F16), matrix(40, 64, GGMLType.Q8_0))),
}


@pytest.mark.parametrize(
    ("name", "dense"),
    [*((name, True) for name in LINEARS), ("stacked with bias after a norm", False), ("mixed types", False)],
)
def test_linear_equals_the_reference(name: str, dense: bool) -> None:
    spec = LINEARS[name]
    function: Any = Registry(portable.OFFERS).build(spec, place(1 << 30 if dense else 0))
    x = activations(CHUNK, spec.columns)
    residual = activations(CHUNK, spec.out_columns) if spec.residual else None
    expected = reference.linear(spec, x, residual).numpy()
    for count in (CHUNK, 5):
        got = function(x, step(0, count), residual).numpy()[:count]
        close(got, expected[:count], 2e-3 if name in ("half precision", "mixed types") else 1e-5)


def test_the_last_row_alone_is_computed_and_padded_to_whole_panels() -> None:
    spec = LinearSpec((matrix(37, 64),), norm=vector(64, 1.0), norm_eps=1e-5, last_row=True)
    function: Any = Registry(portable.OFFERS).build(spec, place())
    x = activations(CHUNK, 64)
    for count in (1, 7, CHUNK):
        got = function(x, step(0, count)).numpy()
        assert got.shape == (1, 48)
        close(got[0, :37], reference.linear(spec, x[:count]).numpy()[0], 1e-5)


def test_embedding_takes_rows_of_the_table() -> None:
    spec = EmbedSpec(matrix(50, 64, GGMLType.F16))
    function: Any = Registry(portable.OFFERS).build(spec, place())
    tokens = [3, 49, 0, 17, 16, 15]
    got = function(step(0, len(tokens), tokens)).numpy()[: len(tokens)]
    close(got, reference.embed(spec, Tensor(tokens, device="CPU")).numpy(), 0.0)


def attention_spec(
    pairs: RopePairs,
    *,
    heads: int = 6,
    kv_heads: int = 2,
    head_dim: int = 32,
    dims: int = 32,
    kv_cache: KVCacheType = KVCacheType.F16,
) -> AttentionSpec:
    angle = np.arange(NUM_CTX)[:, None] * 100.0 ** (-np.arange(0, dims, 2) / dims)
    rope = np.stack([np.cos(angle), np.sin(angle)], -1).astype(np.float32)
    return AttentionSpec(heads, kv_heads, head_dim, rope, pairs, exact_cache=True, kv_cache=kv_cache)


@pytest.mark.parametrize(
    "spec",
    [
        attention_spec(RopePairs.ADJACENT),
        attention_spec(RopePairs.HALVES),
        attention_spec(RopePairs.ADJACENT, dims=20),  # the last twelve elements of a head are not rotated
        attention_spec(RopePairs.HALVES, heads=2, kv_heads=2, head_dim=24, dims=16),
        attention_spec(RopePairs.HALVES, heads=3, kv_heads=1, head_dim=128, dims=128),
        attention_spec(RopePairs.ADJACENT, kv_cache=KVCacheType.Q8_0),
    ],
    ids=["adjacent", "halves", "adjacent partial", "halves partial", "wide heads", "bytes"],
)
def test_attention_over_the_cache_equals_attention_over_the_sequence(spec: AttentionSpec) -> None:
    function: Any = Registry(portable.OFFERS).build(spec, place())
    columns = (spec.num_heads + 2 * spec.num_kv_heads) * spec.head_dim
    qkv = RNG.standard_normal((22, columns)).astype(np.float32)
    expected = reference.attend(spec, Tensor(qkv, device="CPU")).numpy()
    cache, at = function.new_cache(), 0
    for count in (12, 1, 9):  # chunks that end inside and at the edge of panels
        padded = np.full((CHUNK, columns), np.nan, np.float32)  # rows behind the real ones may hold anything
        padded[:count] = qkv[at : at + count]
        got, _ = function(Tensor(padded, device="CPU").realize(), cache, step(at, count))
        close(got.numpy()[:count], expected[at : at + count], 1e-5)
        at += count
    again, _ = function(Tensor(qkv[20:21], device="CPU").realize(), cache, decode_step(20))
    close(again.numpy(), expected[20:21], 1e-5)


def test_bytes_of_the_cache_are_what_the_c_kernels_keep_and_can_be_put_back() -> None:
    spec = attention_spec(RopePairs.HALVES, head_dim=64, dims=64, kv_cache=KVCacheType.Q8_0)
    columns = (spec.num_heads + 2 * spec.num_kv_heads) * spec.head_dim
    qkv = Tensor(RNG.standard_normal((CHUNK, columns)).astype(np.float32), device="CPU").realize()
    kept: list[np.ndarray] = []
    for offers in (portable.OFFERS, C_OFFERS):
        function: Any = Registry(offers).build(spec, place())
        cache = function.new_cache()
        out, _ = function(qkv, cache, step(0, CHUNK))
        out.realize()
        rows = function.read_rows(cache, 0, 0, CHUNK)
        assert rows.shape == (CHUNK, 2, spec.num_kv_heads, 2 * 34)
        other = function.new_cache()
        function.write_rows(other, 0, 0, rows[:5])
        function.write_rows(other, 0, 5, rows[5:])
        assert np.array_equal(function.read_rows(other, 0, 0, CHUNK), rows)
        kept.append(rows.reshape(-1, 34))
    factors = [blocks[:, :2].copy().view(np.float16).astype(np.float64) for blocks in kept]
    numbers = [blocks[:, 2:].view(np.int8).astype(int) for blocks in kept]
    assert np.allclose(*factors, rtol=1e-3)
    assert np.abs(numbers[0] - numbers[1]).max() <= 1  # where a number lies between two bytes
    assert (numbers[0] != numbers[1]).mean() < 0.01


def test_weights_that_are_not_numbers_are_refused_by_tensor_name() -> None:
    values = np.ones((32, 32), np.float16)
    values[7, 3] = np.nan
    damaged = Matrix("blk.0.ffn_up.weight", GGMLType.F16, 32, 32, lambda: values.view(np.uint8).reshape(-1))
    with pytest.raises(GGUFError, match=r"blk\.0\.ffn_up\.weight"):
        Registry(portable.OFFERS).build(LinearSpec((damaged,)), place())


def test_a_tied_matrix_is_kept_once() -> None:
    table, where = matrix(64, 64, GGMLType.F16), place()
    registry = Registry(portable.OFFERS)
    registry.build(EmbedSpec(table), where)
    after_embedding = where.memory_bytes
    registry.build(LinearSpec((table,), last_row=True), where)
    assert where.memory_bytes == after_embedding == 64 * 64 * 2


def test_the_registry_takes_the_highest_rank_that_fits_and_does_not_decline() -> None:
    asked: list[str] = []

    def builder(name: str, result: object) -> Any:
        def build(spec: object, place: Place) -> object:
            asked.append(name)
            return result

        return build

    registry = Registry(portable.OFFERS)
    f16, q8 = frozenset({GGMLType.F16}), frozenset({GGMLType.Q8_0})
    registry.register(Offer("elsewhere", Operation.LINEAR, builder("elsewhere", 1), device="AMD", rank=9))
    registry.register(Offer("other type", Operation.LINEAR, builder("other type", 2), ggml_types=q8, rank=8))
    registry.register(Offer("declines", Operation.LINEAR, builder("declines", None), device="CPU", rank=7))
    registry.register(Offer("takes", Operation.LINEAR, builder("takes", 3), ggml_types=f16, rank=6, decodes_apart=True))
    assert registry.build(LinearSpec((matrix(16, 16, GGMLType.F16),)), place()) == 3
    assert asked == ["declines", "takes"]
    assert registry.chosen == {"takes": 1}
    assert registry.decode_apart
