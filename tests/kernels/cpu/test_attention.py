"""Attention in C against float64 over each type of rows: decoding, chunks of a prompt, several slots at once."""

import ctypes
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from garzone.core.generation import KVCacheType
from garzone.kernels.cpu import library
from garzone.kernels.cpu.instruction_sets import PORTABLE, InstructionSet, supported
from garzone.kernels.cpu.library import SPAN, AttentionLibrary, OperationLibrary, Threads
from tests.kernels.cpu.matrices import aligned, instruction_set_name

each_instruction_set = pytest.mark.parametrize("instruction_set", supported(), ids=instruction_set_name)
each_type = pytest.mark.parametrize("kv_cache", list(KVCacheType), ids=lambda kv_cache: kv_cache.value)
F16, Q8_0 = KVCacheType.F16, KVCacheType.Q8_0

# keys, values and weights are rounded to eleven bits, or what bytes are multiplied by to fifteen, or summed in float32
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


def rounded_to_q8_0(x: np.ndarray) -> np.ndarray:
    """What Q8_0 keeps of float64 [..., head_size]."""
    blocks = x.reshape(*x.shape[:-1], -1, 32)
    factors = (np.abs(blocks).max(-1, keepdims=True) / 127).astype(np.float32).astype(np.float16).astype(np.float64)
    numbers = np.rint(np.divide(blocks, factors, out=np.zeros_like(blocks), where=factors > 0)).clip(-127, 127)
    return (numbers * factors).reshape(x.shape)


def reference(sizes: Sizes, qkv: np.ndarray, kv_cache: KVCacheType = F16) -> np.ndarray:
    """Causal attention of a whole sequence, float64 [tokens, heads * head_size]; rows are not rounded to halves."""
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
    k = rotate(k)
    if kv_cache is Q8_0:
        k, v = rounded_to_q8_0(k), rounded_to_q8_0(v)
    k, v = np.repeat(k, group, axis=1), np.repeat(v, group, axis=1)
    scores = np.einsum("qhd,khd->hqk", rotate(q), k) / np.sqrt(sizes.head_size)
    scores = np.where(np.tril(np.ones((tokens, tokens))) > 0, scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("hqk,khd->qhd", weights, v).reshape(tokens, -1)


class Attention:
    """`run_attention` over one layer's cache of one slot."""

    def __init__(
        self,
        sizes: Sizes,
        most_rows: int,
        threads: Threads,
        instruction_set: InstructionSet | None = None,
        kv_cache: KVCacheType = F16,
    ) -> None:
        self.operations, self.kernels = OperationLibrary(instruction_set), AttentionLibrary(kv_cache, instruction_set)
        spans = -(-sizes.num_ctx // SPAN)
        positions, span_bytes = spans * SPAN, sizes.kv_heads * self.kernels.head_span_bytes(sizes.head_size)
        scratch = max(
            self.kernels.scratch_bytes(rows, sizes.heads, sizes.kv_heads, threads.num_threads, positions)
            for rows in (1, most_rows)
        )
        self.sizes = sizes
        self._rope = sizes.rope()
        self._cache = aligned(spans * span_bytes)
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
            attend=library.address_of(self.kernels.attend),
            store_kv=library.address_of(self.kernels.store_kv),
            cache=library.KVCache(
                slot_bytes=spans * span_bytes,
                span_bytes=span_bytes,
                kv_heads=sizes.kv_heads,
                head_size=sizes.head_size,
                positions=positions,
            ),
            heads=sizes.heads,
            rope=self._rope.ctypes.data,
            query_scale=sizes.head_size**-0.5,
            rotated=sizes.rotated or sizes.head_size,
            adjacent=sizes.adjacent,
        )
        pointer, number = ctypes.c_void_p, ctypes.c_long
        prototype = ctypes.CFUNCTYPE(None, pointer, pointer, pointer, number, number, pointer)
        self._run = prototype(self.operations.run_attention)

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


def _cases() -> Iterator[object]:
    """Every shape, type of rows and instruction set; plain C is slow with bytes: one shape in the default run."""
    for sizes in SHAPES:
        for kv_cache in KVCacheType:
            if kv_cache is Q8_0 and sizes.head_size % 32:
                continue
            for instruction_set in supported():
                is_slow = kv_cache is Q8_0 and instruction_set is PORTABLE and sizes is not SHAPES[0]
                name = f"{sizes.heads}x{sizes.kv_heads}x{sizes.head_size}-{kv_cache.value}-{instruction_set.name}"
                marks = [pytest.mark.slow] if is_slow else []
                yield pytest.param(sizes, kv_cache, instruction_set, id=name, marks=marks)


@pytest.mark.parametrize(("sizes", "kv_cache", "instruction_set"), list(_cases()))
def test_chunks_and_single_tokens_give_what_the_whole_sequence_gives(
    sizes: Sizes, kv_cache: KVCacheType, instruction_set: InstructionSet, threads: Threads
) -> None:
    tokens = 290
    qkv = _random_qkv(sizes, tokens, 1)
    expected = reference(sizes, qkv, kv_cache)
    attention = Attention(sizes, 200, threads, instruction_set, kv_cache)
    at, outs = 0, list[np.ndarray]()
    for count in (1, 1, 17, 1, 130, 3, 1, 136):
        out = attention(qkv[at : at + count], at)
        assert np.abs(out - expected[at : at + count]).max() < TOLERANCE, f"tokens {at} and on"
        outs.append(out)
        at += count
    assert at == tokens
    alone = Attention(sizes, 200, threads, instruction_set, kv_cache)
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


@each_type
def test_rows_behind_the_current_position_are_never_read(kv_cache: KVCacheType, threads: Threads) -> None:
    sizes = SHAPES[0]
    qkv = _random_qkv(sizes, 200, 3)
    attention = Attention(sizes, 200, threads, kv_cache=kv_cache)
    attention(1000 * qkv, 0)  # what an abandoned sequence left behind
    attention(qkv[:20], 0)
    assert np.abs(attention(qkv[20:21], 20) - reference(sizes, qkv[:21], kv_cache)[20]).max() < TOLERANCE


@each_type
def test_large_scores_do_not_overflow(kv_cache: KVCacheType, threads: Threads) -> None:
    sizes = Sizes(heads=2, kv_heads=1, head_size=64, num_ctx=300)
    qkv = 30 * _random_qkv(sizes, 260, 4)
    out = Attention(sizes, 260, threads, kv_cache=kv_cache)(qkv, 0)
    # the largest score takes all the weight: what is left is the rounding of the values to half precision, and of keys
    # that decide between two nearly equal scores
    assert np.isfinite(out).all()
    assert np.median(np.abs(out - reference(sizes, qkv, kv_cache))) < 0.05


def test_numbers_of_any_size_are_rounded_to_the_nearest_byte(threads: Threads) -> None:
    """One position has all the weight, so that attention gives back its value: at most half a step from what it was."""
    sizes = Sizes(heads=1, kv_heads=1, head_size=64, num_ctx=128)
    qkv = _random_qkv(sizes, 1, 7)
    for scale in (0.0, 1e-7, 1e-4, 1.0, 1e4, 2e6):
        value = scale * qkv[:, 128:]
        got = Attention(sizes, 1, threads, kv_cache=Q8_0)(np.concatenate([qkv[:, :128], value], axis=1), 0)
        step = np.abs(value).reshape(-1, 32).max(1) / 127
        factors_step = 2**-24  # of halves next to zero; where a factor vanishes all is lost
        error = np.abs(got - value).reshape(-1, 32).max(1)
        assert (error <= np.maximum(0.502 * step, 127 * factors_step)).all(), scale


@each_type
def test_one_thread_and_many_agree(kv_cache: KVCacheType) -> None:
    sizes = SHAPES[0]
    qkv = _random_qkv(sizes, 280, 5)
    outs: list[np.ndarray] = []
    for num_threads in (1, 2, 6):
        threads = Threads(num_threads)
        attention = Attention(sizes, 280, threads, kv_cache=kv_cache)
        attention(qkv[:279], 0)
        outs.append(attention(qkv[279:], 279))
        threads.stop()
    assert np.array_equal(outs[0], outs[1])
    assert np.array_equal(outs[0], outs[2])


def packed_rows(kv_cache: KVCacheType, keys: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Rows of [positions, kv_heads, head_size] as `write_rows` takes them, which rounds nothing."""
    rows = np.stack([keys, values], axis=1)
    if kv_cache is F16:
        return rows.astype(np.float16).view(np.uint8)
    blocks = rows.astype(np.float64).reshape(*rows.shape[:-1], -1, 32)
    factors = (np.abs(blocks).max(-1, keepdims=True) / 127).astype(np.float16)
    numbers = np.rint(blocks / factors.astype(np.float64)).clip(-127, 127).astype(np.int8)
    return np.concatenate([factors.view(np.uint8), numbers.view(np.uint8)], axis=-1).reshape(*rows.shape[:-1], -1)


class Slots:
    """A cache of several slots, its spans apart as if others' lay between them."""

    def __init__(self, kernels: AttentionLibrary, kv_heads: int, head_size: int, num_slots: int, spans: int) -> None:
        self.kernels = kernels
        layer = kv_heads * kernels.head_span_bytes(head_size)
        span_bytes = layer + 256
        self._memory = aligned(num_slots * spans * span_bytes)
        self.layout = library.KVCache(
            rows=self._memory.ctypes.data,
            slot_bytes=spans * span_bytes,
            span_bytes=span_bytes,
            kv_heads=kv_heads,
            head_size=head_size,
            positions=spans * SPAN,
        )
        self._between = self._memory[: num_slots * spans * span_bytes].reshape(-1, span_bytes)[:, layer:]

    def write(self, slot: int, start: int, rows: np.ndarray) -> None:
        given = np.ascontiguousarray(rows)
        self.kernels.write_rows(self.layout, slot, start, len(given), given.ctypes.data)
        assert not self._between.any(), "other layers were written to"

    def read(self, slot: int, start: int, count: int) -> np.ndarray:
        shape = (count, 2, self.layout.kv_heads, self.kernels.row_bytes(self.layout.head_size))
        rows = np.full(shape, 0xEE, np.uint8)
        self.kernels.read_rows(self.layout, slot, start, count, rows.ctypes.data)
        return rows


@each_type
@each_instruction_set
def test_rows_are_read_as_they_were_written_and_copied(kv_cache: KVCacheType, instruction_set: InstructionSet) -> None:
    slots = Slots(AttentionLibrary(kv_cache, instruction_set), 2, 96, num_slots=3, spans=3)
    keys, values = np.random.default_rng(8).standard_normal((2, 300, 2, 96))
    rows = packed_rows(kv_cache, keys, values)
    slots.write(1, 0, rows[:37])
    slots.write(1, 37, rows[37:])
    assert np.array_equal(slots.read(1, 0, 300), rows)
    assert np.array_equal(slots.read(1, 120, 141), rows[120:261])
    slots.write(2, 0, rows[::-1])
    slots.kernels.copy_rows(slots.layout, 1, 0, 290)
    assert np.array_equal(slots.read(0, 0, 290), rows[:290])
    assert np.array_equal(slots.read(1, 0, 300), rows)
    assert np.array_equal(slots.read(2, 0, 300), rows[::-1])


@each_type
@each_instruction_set
@pytest.mark.parametrize("heads", [4, 20])
def test_tokens_of_several_slots_attend_to_their_own_slot(
    heads: int, instruction_set: InstructionSet, kv_cache: KVCacheType, threads: Threads
) -> None:
    """The batch that continuous batching will make: tokens of three sequences at different positions in one call."""
    size, lengths = 32, (3, 150, 40)
    slots = Slots(AttentionLibrary(kv_cache, instruction_set), 2, size, num_slots=3, spans=2)
    rng = np.random.default_rng(6)
    keys, values = (rng.standard_normal((3, 160, 2, size)).astype(np.float16) for _ in range(2))
    for slot in range(3):
        slots.write(slot, 0, packed_rows(kv_cache, keys[slot], values[slot]))
    keys, values = (x.astype(np.float64) for x in (keys, values))
    if kv_cache is Q8_0:
        keys, values = rounded_to_q8_0(keys), rounded_to_q8_0(values)
    # two tokens of the second slot, one of each other
    token_slots = np.array([0, 1, 1, 2], np.int32)
    positions = np.array([lengths[0] - 1, lengths[1] - 2, lengths[1] - 1, lengths[2] - 1], np.int32)
    queries = rng.standard_normal((4, heads, size), dtype=np.float32)
    out = np.full((4, heads, size), np.nan, np.float32)
    scratch = aligned(slots.kernels.scratch_bytes(4, heads, 2, threads.num_threads, 2 * SPAN))
    call = library.Attention(
        cache=slots.layout,
        queries=queries.ctypes.data,
        out=out.ctypes.data,
        slots=token_slots.ctypes.data,
        positions=positions.ctypes.data,
        tokens=4,
        heads=heads,
        query_stride=heads * size,
        scratch=scratch.ctypes.data,
    )
    slots.kernels.attend(threads.address, ctypes.byref(call))
    for token, (slot, position) in enumerate(zip(token_slots, positions, strict=True)):
        for head in range(heads):
            k, v = (x[slot, : position + 1, head // (heads // 2)] for x in (keys, values))
            scores = k @ queries[token, head]
            weights = np.exp(scores - scores.max())
            expected = weights @ v / weights.sum()
            assert np.abs(out[token, head] - expected).max() < TOLERANCE
