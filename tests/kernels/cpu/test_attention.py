"""Attention in C against float64, for decoding, chunks of a prompt, and tokens of several slots at once."""

import ctypes
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from garzone.kernels.cpu import library
from garzone.kernels.cpu.instruction_sets import InstructionSet, supported
from garzone.kernels.cpu.library import OperationLibrary, Threads
from tests.kernels.cpu.matrices import aligned, instruction_set_name

each_instruction_set = pytest.mark.parametrize("instruction_set", supported(), ids=instruction_set_name)

# keys, values and weights are rounded to eleven bits or summed in float32
TOLERANCE = 2e-3


@dataclass(frozen=True)
class Sizes:
    heads: int
    kv_heads: int
    head_size: int
    num_ctx: int
    rotated: int = 0
    adjacent: bool = True

    @property
    def width(self) -> int:
        return (self.heads + 2 * self.kv_heads) * self.head_size

    def rope(self) -> np.ndarray:
        rotated = self.rotated or self.head_size
        frequencies = 10000.0 ** (-np.arange(0, rotated, 2) / rotated)
        angles = np.arange(self.num_ctx)[:, None] * frequencies
        return np.stack([np.cos(angles), np.sin(angles)], axis=-1).astype(np.float32)


def reference(sizes: Sizes, qkv: np.ndarray) -> np.ndarray:
    """Causal attention of a whole sequence, float64 [tokens, heads * head_size]."""
    tokens = len(qkv)
    rope = sizes.rope().astype(np.float64)[:tokens, None]
    split = [sizes.heads * sizes.head_size, (sizes.heads + sizes.kv_heads) * sizes.head_size]
    q, k, v = (part.reshape(tokens, -1, sizes.head_size).astype(np.float64) for part in np.split(qkv, split, axis=1))

    def rotate(x: np.ndarray) -> np.ndarray:
        pairs = rope.shape[2]
        out = x.copy()
        first, second = (slice(0, 2 * pairs, 2), slice(1, 2 * pairs, 2))
        if not sizes.adjacent:
            first, second = slice(0, pairs), slice(pairs, 2 * pairs)
        cosine, sine = rope[..., 0], rope[..., 1]
        out[..., first] = x[..., first] * cosine - x[..., second] * sine
        out[..., second] = x[..., first] * sine + x[..., second] * cosine
        return out

    group = sizes.heads // sizes.kv_heads
    k, v = np.repeat(rotate(k), group, axis=1), np.repeat(v, group, axis=1)
    scores = np.einsum("qhd,khd->hqk", rotate(q), k) / np.sqrt(sizes.head_size)
    scores = np.where(np.tril(np.ones((tokens, tokens))) > 0, scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("hqk,khd->qhd", weights, v).reshape(tokens, -1)


class Attention:
    """`run_attention` over one layer's cache of one slot."""

    def __init__(
        self, sizes: Sizes, most_rows: int, threads: Threads, instruction_set: InstructionSet | None = None
    ) -> None:
        operations = OperationLibrary(instruction_set)
        padded, positions = -(-sizes.head_size // 16) * 16, -(-sizes.num_ctx // 16) * 16
        scratch = max(
            operations.attention_scratch_bytes(rows, sizes.heads, sizes.kv_heads, threads.num_threads, positions)
            for rows in (1, most_rows)
        )
        self.sizes = sizes
        self._rope = sizes.rope()
        self._cache = aligned(2 * 2 * sizes.kv_heads * positions * padded)
        self._queries = aligned(4 * most_rows * sizes.heads * sizes.head_size)
        self._slots, self._positions = aligned(4 * most_rows), aligned(4 * most_rows)
        self._scratch = aligned(scratch)
        self._workspace = library.Workspace(
            pool=threads.address,
            queries=self._queries.ctypes.data,
            slots=self._slots.ctypes.data,
            positions=self._positions.ctypes.data,
            scratch=self._scratch.ctypes.data,
        )
        self._operation = library.SelfAttention(
            workspace=ctypes.addressof(self._workspace),
            heads=sizes.heads,
            kv_heads=sizes.kv_heads,
            head_size=sizes.head_size,
            positions=positions,
            rope=self._rope.ctypes.data,
            query_scale=sizes.head_size**-0.5,
            rotated=sizes.rotated or sizes.head_size,
            adjacent=sizes.adjacent,
        )
        pointer, number = ctypes.c_void_p, ctypes.c_long
        prototype = ctypes.CFUNCTYPE(None, pointer, pointer, pointer, number, number, pointer)
        self._run = prototype(operations.run_attention)

    def __call__(self, qkv: np.ndarray, start: int) -> np.ndarray:
        rows = np.ascontiguousarray(qkv)
        out = np.full((len(rows), self.sizes.heads * self.sizes.head_size), np.nan, np.float32)
        operation = ctypes.addressof(self._operation)
        self._run(out.ctypes.data, self._cache.ctypes.data, rows.ctypes.data, start, len(rows), operation)
        assert not self._cache[-64:].any(), "the cache was written past its end"
        return out


def _random_qkv(sizes: Sizes, tokens: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((tokens, sizes.width), dtype=np.float32)


SHAPES = [
    Sizes(heads=9, kv_heads=3, head_size=64, num_ctx=300),
    Sizes(heads=7, kv_heads=1, head_size=128, num_ctx=300, adjacent=False),
    Sizes(heads=4, kv_heads=4, head_size=80, num_ctx=300),
    Sizes(heads=20, kv_heads=2, head_size=32, num_ctx=301, rotated=16),
    Sizes(heads=2, kv_heads=1, head_size=256, num_ctx=300, adjacent=False, rotated=64),
    Sizes(heads=3, kv_heads=1, head_size=100, num_ctx=300, adjacent=False),
]


@each_instruction_set
@pytest.mark.parametrize("sizes", SHAPES, ids=lambda s: f"{s.heads}x{s.kv_heads}x{s.head_size}")
def test_chunks_and_single_tokens_give_what_the_whole_sequence_gives(
    sizes: Sizes, instruction_set: InstructionSet, threads: Threads
) -> None:
    tokens = 290
    qkv = _random_qkv(sizes, tokens, 1)
    expected = reference(sizes, qkv)
    attention = Attention(sizes, 200, threads, instruction_set)
    at, outs = 0, list[np.ndarray]()
    for count in (1, 1, 17, 1, 130, 3, 1, 136):
        out = attention(qkv[at : at + count], at)
        assert np.abs(out - expected[at : at + count]).max() < TOLERANCE, f"tokens {at} and on"
        outs.append(out)
        at += count
    assert at == tokens
    alone = Attention(sizes, 200, threads, instruction_set)
    one_by_one = [alone(qkv[at : at + 1], at) for at in range(tokens)]
    assert np.array_equal(np.concatenate(outs), np.concatenate(one_by_one)), "a token's numbers depend on its chunk"


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=8), st.integers(0, 1000))
def test_any_chunking_gives_the_same(threads: Threads, counts: list[int], seed: int) -> None:
    sizes = Sizes(heads=6, kv_heads=2, head_size=16, num_ctx=320)
    qkv = _random_qkv(sizes, sum(counts), seed)
    expected = reference(sizes, qkv)
    attention = Attention(sizes, 40, threads)
    at = 0
    for count in counts:
        assert np.abs(attention(qkv[at : at + count], at) - expected[at : at + count]).max() < TOLERANCE
        at += count


def test_rows_behind_the_current_position_are_never_read(threads: Threads) -> None:
    sizes = SHAPES[0]
    qkv = _random_qkv(sizes, 200, 3)
    attention = Attention(sizes, 200, threads)
    attention(1000 * qkv, 0)  # what an abandoned sequence left behind
    attention(qkv[:20], 0)
    assert np.abs(attention(qkv[20:21], 20) - reference(sizes, qkv[:21])[20]).max() < TOLERANCE


def test_large_scores_do_not_overflow(threads: Threads) -> None:
    sizes = Sizes(heads=2, kv_heads=1, head_size=64, num_ctx=300)
    qkv = 30 * _random_qkv(sizes, 260, 4)
    out = Attention(sizes, 260, threads)(qkv, 0)
    # the largest score takes all the weight: what is left is the rounding of the values to half precision, and of keys
    # that decide between two nearly equal scores
    assert np.isfinite(out).all()
    assert np.median(np.abs(out - reference(sizes, qkv))) < 0.05


def test_one_thread_and_many_agree() -> None:
    sizes = SHAPES[0]
    qkv = _random_qkv(sizes, 280, 5)
    outs: list[np.ndarray] = []
    for num_threads in (1, 2, 6):
        threads = Threads(num_threads)
        attention = Attention(sizes, 280, threads)
        attention(qkv[:279], 0)
        outs.append(attention(qkv[279:], 279))
        threads.stop()
    assert np.array_equal(outs[0], outs[1])
    assert np.array_equal(outs[0], outs[2])


@each_instruction_set
@pytest.mark.parametrize("heads", [4, 20])
def test_tokens_of_several_slots_attend_to_their_own_slot(
    heads: int, instruction_set: InstructionSet, threads: Threads
) -> None:
    """The batch that continuous batching will make: tokens of three sequences at different positions in one call."""
    operations = OperationLibrary(instruction_set)
    sizes = Sizes(heads=heads, kv_heads=2, head_size=16, num_ctx=160)
    lengths, slots = (3, 150, 40), 3
    rng = np.random.default_rng(6)
    cache = aligned(2 * 2 * slots * sizes.kv_heads * 160 * 16)
    keys, values = (rng.standard_normal((slots, 2, 160, 16)).astype(np.float16) for _ in range(2))
    panels = keys.reshape(slots, 2, 10, 16, 16).transpose(0, 1, 2, 4, 3)
    cache[: keys.nbytes] = np.ascontiguousarray(panels).view(np.uint8).reshape(-1)
    cache[keys.nbytes : 2 * keys.nbytes] = values.view(np.uint8).reshape(-1)
    # two tokens of the second slot, one of each other
    token_slots = np.array([0, 1, 1, 2], np.int32)
    positions = np.array([lengths[0] - 1, lengths[1] - 2, lengths[1] - 1, lengths[2] - 1], np.int32)
    queries = rng.standard_normal((4, heads, 16), dtype=np.float32)
    out = np.full((4, heads, 16), np.nan, np.float32)
    scratch = aligned(operations.attention_scratch_bytes(4, heads, 2, threads.num_threads, 160))
    call = library.Attention(
        keys=cache.ctypes.data,
        values=cache.ctypes.data + keys.nbytes,
        kv_heads=2,
        head_size=16,
        cache_positions=160,
        queries=queries.ctypes.data,
        out=out.ctypes.data,
        slots=token_slots.ctypes.data,
        positions=positions.ctypes.data,
        tokens=4,
        heads=heads,
        query_stride=heads * 16,
        scratch=scratch.ctypes.data,
    )
    operations.attend(threads.address, ctypes.byref(call))
    for token, (slot, position) in enumerate(zip(token_slots, positions, strict=True)):
        for head in range(heads):
            seen = slice(0, position + 1)
            k, v = (x[slot, head // (heads // 2), seen].astype(np.float64) for x in (keys, values))
            weights = np.exp(k @ queries[token, head])
            expected = weights @ v / weights.sum()
            assert np.abs(out[token, head] - expected).max() < TOLERANCE
