"""Every kernel of a device against the reference, and how much of what the machine can do each one uses.

Runs in a process of its own: `python -m garzone.bench.kernels --device CPU` prints a JSON line for each kernel. What
the lines look like to people is `garzone doctor`'s business.
"""

# pyright: basic

from __future__ import annotations

import argparse
import ctypes
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Final

import numpy as np
from tinygrad.device import Device
from tinygrad.dtype import dtypes
from tinygrad.engine.jit import TinyJit
from tinygrad.helpers import Context
from tinygrad.tensor import Tensor
from tinygrad.uop.ops import UOp

from garzone.bench.synthetic import random_blocks
from garzone.core.errors import DeviceUnavailable
from garzone.core.generation import KVCacheType
from garzone.engine.device import open_device
from garzone.engine.footprint import KV_BYTES_PER_NUMBER
from garzone.kernels import reference
from garzone.kernels.cpu import library as cpu
from garzone.kernels.cpu.memory import Arena
from garzone.kernels.dequantise import dequantise_array
from garzone.kernels.gpu import batch as gpu
from garzone.kernels.gpu.ceiling import THREADS, WORDS, read_all
from garzone.kernels.gpu.offers import DEVICES as GPU_DEVICES
from garzone.kernels.launch import variables
from garzone.kernels.layouts import BLOCK, GGMLType
from garzone.kernels.registry import (
    AttentionSpec,
    EmbedSpec,
    LinearSpec,
    Matrix,
    Place,
    RopePairs,
    Step,
    default_registry,
)

# Largest RMS error against float64, as a share of the result's own RMS. The inputs are numbers that activations of
# eight bits hold exactly, so what is left is float32 sums, and weights kept as float16 where nothing faster is there.
TOLERANCE: Final = 2e-3
# Keys, values and weights of a sum are rounded to float16.
ATTENTION_TOLERANCE: Final = 4e-3

DECODE_BYTES: Final = 96 << 20  # of weights: more than a processor's caches hold
_CARD_DECODE_BYTES: Final = 512 << 20  # more than those of a graphics card, 96 MB at most (RX 7900 XTX)
PREFILL_TOKENS: Final = 128
COLUMNS, PREFILL_ROWS = 4096, 1024
HEADS, KV_HEADS, HEAD_DIM, CONTEXT, CACHES = 32, 8, 128, 4096, 4
# A captured step should take a few milliseconds: long enough that its own cost (0.05 ms) does not count, short enough
# that on a busy machine some of them are not interrupted.
_EMBED_CALLS: Final = 8
_LEAST_S: Final = 0.4  # each kernel is timed at least that long


@dataclass(frozen=True, slots=True)
class Ceiling:
    """What the device can do: bytes read a second, operations on small integers and on floats. None: not measured."""

    read_gb_s: float | None
    integer_gops: float | None
    float_gops: float | None


@dataclass(frozen=True, slots=True)
class KernelResult:
    """One kernel. `rate` is its best; `share` is that of the ceiling it is bound by, None where none was measured."""

    kernel: str
    ggml_type: str
    implementation: str
    error: float
    tolerance: float
    correct: bool
    rate: float
    unit: str
    share: float | None


def measure_ceiling(device: str) -> Ceiling:
    """Plain reads and plain arithmetic with as many threads as the kernels have."""
    if device.partition(":")[0] == "CPU":
        try:
            loops = cpu.Ceiling()
        except DeviceUnavailable:
            return Ceiling(None, None, None)
        arena = Arena()
        memory = arena.take(DECODE_BYTES)
        ctypes.memset(memory, 1, DECODE_BYTES)
        return Ceiling(
            _best_rate(lambda: DECODE_BYTES / loops.read_seconds(memory, DECODE_BYTES)) / 1e9,
            _best_rate(lambda: loops.operations_per_second("integers")) / 1e9,
            _best_rate(lambda: loops.operations_per_second("floats")) / 1e9,
        )
    # A plain read of ours, or tinygrad's own sum or copy, whichever moves most.
    size = decode_bytes(device)
    words = Tensor.ones(size // 4, dtype=dtypes.uint32, device=device).contiguous().realize()
    nothing = variables(2, 2)[0].bind(0)
    summing = _best_seconds(lambda _: [words.sum()], nothing, device)
    copying = _best_seconds(lambda _: [(words + 1).contiguous()], nothing, device)
    rates = [size / summing, 2 * size / copying]
    if device.partition(":")[0] in GPU_DEVICES:
        kernel = read_all(size // 4)
        sums = Tensor.empty(size // 4 // WORDS * THREADS, dtype=dtypes.uint32, device=device).realize()
        step = Step(1, sums, 0, 1)
        rates.append(size / _best_seconds(lambda _: [gpu.run(kernel, step, sums, words)[0]], nothing, device))
    return Ceiling(max(rates) / 1e9, None, None)


def decode_bytes(device: str) -> int:
    """Bytes of weights that the device cannot keep in a cache from one call to the next."""
    return DECODE_BYTES if device.partition(":")[0] == "CPU" else _CARD_DECODE_BYTES


def _best_rate(measured: Callable[[], float]) -> float:
    """The best of as many short runs as a kernel gets twice over: a ceiling that is too low makes kernels look good."""
    best, begun = 0.0, time.perf_counter()
    while time.perf_counter() - begun < 2 * _LEAST_S:
        best = max(best, measured())
    return best


def run(device: str, types: Sequence[GGMLType], *, timed: bool = True) -> Iterator[Ceiling | KernelResult]:
    """The ceiling first, then every kernel. Without `timed` they are only compared; rates are 0."""
    ceiling = measure_ceiling(device) if timed else Ceiling(None, None, None)
    yield ceiling
    for ggml_type in types:
        yield _linear(device, ggml_type, 1, ceiling, timed=timed)
        yield _linear(device, ggml_type, PREFILL_TOKENS, ceiling, timed=timed)
    for kv_cache in KVCacheType if device.partition(":")[0] == "CPU" else (KVCacheType.F16,):
        yield from _attention(device, kv_cache, ceiling, timed=timed)
    yield _norm(device, ceiling, timed=timed)
    yield _embed(device, ceiling, timed=timed)


# ---- the kernels ----


def _linear(device: str, ggml_type: GGMLType, tokens: int, ceiling: Ceiling, *, timed: bool) -> KernelResult:
    rng = np.random.default_rng(int(ggml_type) * 1000 + tokens)
    columns = 2 * max(BLOCK[ggml_type].elements, 32)
    matrix = _matrix(ggml_type, 37, columns, rng)
    few = min(tokens, 11)
    x = exact_activations(few, columns, rng)
    implementation, got = _run_linear(device, LinearSpec((matrix,)), x)
    expected = x.astype(np.float64) @ _unpacked(matrix).T
    name, rate, unit = ("decode", 0.0, "GB/s") if tokens == 1 else ("prefill", 0.0, "GOPS")
    if timed:
        row_bytes = BLOCK[ggml_type].bytes * COLUMNS // BLOCK[ggml_type].elements
        rows = decode_bytes(device) // row_bytes // 64 * 64 if tokens == 1 else PREFILL_ROWS
        seconds = _time_linear(device, LinearSpec((_matrix(ggml_type, rows, COLUMNS, rng),)), tokens)
        work = rows * row_bytes if tokens == 1 else 2.0 * rows * COLUMNS * tokens
        rate = work / seconds / 1e9
    whole = ceiling.float_gops if ggml_type in cpu.FLOATS else ceiling.integer_gops
    limit = ceiling.read_gb_s if tokens == 1 else whole
    return _result(name, ggml_type.name, implementation, (got, expected, TOLERANCE), (rate, unit, limit))


def _attention(device: str, kv_cache: KVCacheType, ceiling: Ceiling, *, timed: bool) -> Iterator[KernelResult]:
    rng = np.random.default_rng(3)
    angles = np.arange(CONTEXT)[:, None] * 10_000.0 ** (-np.arange(0, HEAD_DIM, 2) / HEAD_DIM)
    rope = np.stack([np.cos(angles), np.sin(angles)], axis=-1).astype(np.float32)
    small = AttentionSpec(4, 2, 64, rope[:64, :32].copy(), RopePairs.HALVES, kv_cache=kv_cache)
    tokens = 40
    qkv = rng.standard_normal((tokens, 8 * 64), dtype=np.float32)
    expected = reference.attend(small, Tensor(qkv, device=device)).numpy()
    for name, chunks in (("attention, decode", (39, 1)), ("attention, prefill", (16, 24))):
        place, registry = _place(device, 64, tokens), default_registry()
        attend = registry.build(small, place)
        cache, at, got = attend.new_cache(), 0, np.zeros(0)
        for count in chunks:
            padded = np.zeros((tokens, qkv.shape[1]), np.float32)
            padded[:count] = qkv[at : at + count]
            out, cache = attend(Tensor(padded, device=device).realize(), cache, _step(place, at, count))
            got = out.realize(*cache).numpy()[:count]
            at += count
        rate, unit = (0.0, "GB/s") if "decode" in name else (0.0, "GFLOPS")
        if timed:
            rate = _time_attention(device, rope, kv_cache, decode="decode" in name)
        limit = ceiling.read_gb_s if "decode" in name else ceiling.float_gops
        numbers = (got, expected[at - chunks[-1] : at], ATTENTION_TOLERANCE)
        yield _result(name, kv_cache.name, next(iter(registry.chosen)), numbers, (rate, unit, limit))


def _norm(device: str, ceiling: Ceiling, *, timed: bool) -> KernelResult:
    """A product of few rows, so that what counts is normalising and rounding the activations."""
    rng = np.random.default_rng(4)
    norm = rng.uniform(0.5, 1.5, COLUMNS).astype(np.float32)
    spec = LinearSpec((_matrix(GGMLType.Q8_0, 16, COLUMNS, rng),), norm, 1e-5)
    x = rng.standard_normal((3, COLUMNS), dtype=np.float32)
    implementation, got = _run_linear(device, spec, x)
    wide = x.astype(np.float64)
    expected = wide / np.sqrt((wide * wide).mean(-1, keepdims=True) + 1e-5) * norm @ _unpacked(spec.matrices[0]).T
    seconds = _time_linear(device, spec, PREFILL_TOKENS) if timed else np.inf
    rate = 4 * PREFILL_TOKENS * COLUMNS / seconds / 1e9
    numbers = (got, expected, 0.015)  # normalised activations are rounded to eight bits: under one per cent
    return _result("norm and rounding", "F32", implementation, numbers, (rate, "GB/s", ceiling.read_gb_s))


def _embed(device: str, ceiling: Ceiling, *, timed: bool) -> KernelResult:
    rng = np.random.default_rng(5)
    rows, tokens = (16_384 if timed else 300), PREFILL_TOKENS
    spec = EmbedSpec(_matrix(GGMLType.Q8_0, rows, COLUMNS, rng))
    place, registry = _place(device, 64, tokens), default_registry()
    embed = registry.build(spec, place)
    ids = rng.integers(0, rows, tokens).astype(np.int32)
    step = replace(_step(place, 0, tokens), tokens=Tensor(ids, device=device).realize())
    got = embed(step).numpy()
    expected = dequantise_array(spec.table.read().reshape(rows, -1)[ids].reshape(-1), GGMLType.Q8_0).reshape(
        tokens, COLUMNS
    )
    rate = 0.0
    if timed:

        def compute(start: UOp) -> list[Tensor]:
            return [embed(replace(step, start=start, count=tokens)) for _ in range(_EMBED_CALLS)]

        seconds = _best_seconds(compute, step.start, device) / _EMBED_CALLS
        rate = tokens * (COLUMNS * 4 + COLUMNS * 34 // 32) / seconds / 1e9
    chosen = next(iter(registry.chosen))
    return _result("embed", "Q8_0", chosen, (got, expected, TOLERANCE), (rate, "GB/s", ceiling.read_gb_s))


# ---- how ----


def exact_activations(tokens: int, columns: int, rng: np.random.Generator) -> np.ndarray:
    """Numbers that rounding to eight bits leaves as they are, with a scale for 32 of them or for 64."""
    whole = rng.integers(-127, 128, (tokens, columns // 32, 32))
    whole[..., 0] = 127  # sets the scale
    # Q2_K's activations on a GPU have one scale for 64.
    scales = (2.0 ** rng.integers(-8, -4, (tokens, -(-columns // 64), 1))).repeat(2, axis=1)[:, : columns // 32]
    return (whole * scales).reshape(tokens, columns).astype(np.float32)


def _matrix(ggml_type: GGMLType, rows: int, columns: int, rng: np.random.Generator) -> Matrix:
    distinct = min(rows, 256)  # random bits are slow to make: repeat them
    packed = random_blocks(ggml_type, distinct, columns, rng)
    packed = np.resize(packed, (rows, packed.shape[1]))
    return Matrix(f"random {ggml_type.name}", ggml_type, rows, columns, lambda: packed.reshape(-1))


def _unpacked(matrix: Matrix) -> np.ndarray:
    values = dequantise_array(matrix.read(), matrix.ggml_type)
    return values.reshape(matrix.rows, matrix.columns).astype(np.float64)


def _place(device: str, num_ctx: int, chunk_tokens: int) -> Place:
    return Place(device=device, num_ctx=num_ctx, chunk_tokens=chunk_tokens, dense_bytes=8 << 30)


def _step(place: Place, start: int, count: int) -> Step:
    first, number = variables(place.num_ctx, place.chunk_tokens)
    tokens = Tensor.zeros(place.chunk_tokens, dtype=dtypes.int32, device=place.device).contiguous().realize()
    return Step(place.chunk_tokens, tokens, first.bind(start), number.bind(count))


def _run_linear(device: str, spec: LinearSpec, x: np.ndarray) -> tuple[str, np.ndarray]:
    place, registry = _place(device, 64, max(len(x), 2)), default_registry()
    linear = registry.build(spec, place)
    padded = np.zeros((place.chunk_tokens, x.shape[1]), np.float32)
    padded[: len(x)] = x
    out = linear(Tensor(padded, device=device).realize(), _step(place, 0, len(x))).numpy()
    return next(iter(registry.chosen)), out[: len(x), : spec.out_columns]


def _time_linear(device: str, spec: LinearSpec, tokens: int) -> float:
    place, registry = _place(device, 64, tokens), default_registry()
    linear = registry.build(spec, place)
    x = Tensor(exact_activations(tokens, spec.columns, np.random.default_rng(0)), device=device).realize()
    fixed = _step(place, 0, tokens)

    def compute(start: UOp) -> list[Tensor]:
        return [linear(x, replace(fixed, start=start, count=tokens))]

    return _best_seconds(compute, fixed.start, device)


def _time_attention(device: str, rope: np.ndarray, kv_cache: KVCacheType, *, decode: bool) -> float:
    """GB/s of keys and values for one token at the end of the context; GFLOPS of a chunk in its middle."""
    count, start = (1, CONTEXT - 1) if decode else (PREFILL_TOKENS, CONTEXT // 2)
    spec = AttentionSpec(HEADS, KV_HEADS, HEAD_DIM, rope, RopePairs.HALVES, kv_cache=kv_cache)
    place = _place(device, CONTEXT, count)
    attend = default_registry().build(spec, place)
    # several caches in turn, so that none is still in the processor's
    caches = [attend.new_cache() for _ in range(CACHES if decode else 1)]
    qkv = Tensor(np.ones((count, (HEADS + 2 * KV_HEADS) * HEAD_DIM), np.float32), device=device).realize()
    fixed = _step(place, start, count)

    def compute(start: UOp) -> list[Tensor]:
        return [attend(qkv, cache, replace(fixed, start=start, count=count))[0] for cache in caches]

    seconds = _best_seconds(compute, fixed.start, device) / len(caches)
    if decode:
        return float(KV_BYTES_PER_NUMBER[kv_cache]) * 2 * KV_HEADS * HEAD_DIM * CONTEXT / seconds / 1e9
    return 4 * HEADS * HEAD_DIM * count * (start + count / 2) / seconds / 1e9


def _best_seconds(compute: Callable[[UOp], Sequence[Tensor]], start: UOp | int, device: str) -> float:
    """The shortest time of a captured step among many: what others do on the machine only ever adds to it."""
    assert isinstance(start, UOp)  # a bound variable: what is captured once serves every position

    def captured(start: UOp) -> list[Tensor]:
        outs = list(compute(start))
        Tensor.realize(*outs)
        return outs

    jit = TinyJit(captured)
    best, begun, calls = np.inf, 0.0, 0
    with Context(PARALLEL=0):
        while calls < 6 or time.perf_counter() - begun < _LEAST_S:
            started = time.perf_counter()
            jit(start)
            Device[device].synchronize()
            if calls >= 3:  # the first ones compile and capture
                best = min(best, time.perf_counter() - started)
            else:
                begun = time.perf_counter()
            calls += 1
    return float(best)


def _result(
    kernel: str,
    ggml_type: str,
    implementation: str,
    numbers: tuple[np.ndarray, np.ndarray, float],
    speed: tuple[float, str, float | None],
) -> KernelResult:
    got, expected, tolerance = numbers
    rate, unit, limit = speed
    wrong = np.sqrt(((got.astype(np.float64) - expected) ** 2).mean()) / np.sqrt((expected**2).mean())
    error = float(wrong) if np.isfinite(wrong) else float("inf")
    share = rate / limit if limit and rate else None
    return KernelResult(kernel, ggml_type, implementation, error, tolerance, error <= tolerance, rate, unit, share)


def main() -> None:
    """Print a line for the ceiling and one for each kernel."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="")
    parser.add_argument("--type", dest="types", action="append", default=[])
    parser.add_argument("--untimed", action="store_true")
    arguments = parser.parse_args()
    answers, sys.stdout = sys.stdout, sys.stderr  # whatever a library prints must not end up among the answers
    device = open_device(arguments.device)
    types = [GGMLType[name] for name in arguments.types] or sorted(cpu.MATRIX_TYPES)
    timed = not arguments.untimed and device != "PYTHON"  # an interpreter would take hours, and its speed says nothing
    print(json.dumps({"device": device}), file=answers, flush=True)
    for line in run(device, types, timed=timed):
        print(json.dumps(asdict(line)), file=answers, flush=True)


if __name__ == "__main__":
    main()
