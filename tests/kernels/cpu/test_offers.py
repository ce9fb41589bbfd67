"""The C kernels behind the registry: launched by tinygrad, captured by its JIT, and recorded as one program."""

import logging
from collections.abc import Callable

import numpy as np
import pytest
from tinygrad.dtype import dtypes
from tinygrad.engine.jit import TinyJit
from tinygrad.tensor import Tensor
from tinygrad.uop.ops import UOp

from garzone.core.errors import DeviceUnavailable, GGUFError
from garzone.kernels import portable
from garzone.kernels.cpu import library
from garzone.kernels.cpu import offers as cpu
from garzone.kernels.cpu.trampoline import launch, machine_code
from garzone.kernels.launch import variables
from garzone.kernels.layouts import GGMLType
from garzone.kernels.registry import (
    AttentionSpec,
    Cache,
    EmbedSpec,
    LinearSpec,
    Matrix,
    Place,
    Registry,
    RopePairs,
    Step,
)
from tests.kernels.cpu.matrices import dequantised, random_matrix
from tests.kernels.cpu.test_attention import Sizes, reference

HIDDEN, FFN, VOCABULARY, CHUNK, NUM_CTX = 256, 512, 70, 6, 40
SIZES = Sizes(heads=4, kv_heads=2, head_size=64, num_ctx=NUM_CTX, adjacent=False)


def _place() -> Place:
    return Place(device="CPU", num_ctx=NUM_CTX, chunk_tokens=CHUNK, dense_bytes=1 << 24)


class Weights:
    """Random matrices by name, as specs and as float64."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.values: dict[str, np.ndarray] = {}

    def matrix(self, name: str, ggml_type: GGMLType, rows: int, columns: int) -> Matrix:
        raw = random_matrix(ggml_type, rows, columns, self.rng)
        self.values[name] = dequantised(ggml_type, raw).astype(np.float64)
        return Matrix(name, ggml_type, rows, columns, lambda: raw.reshape(-1))

    def vector(self, name: str, size: int, scale: float = 1) -> np.ndarray:
        vector = (scale * self.rng.uniform(0.5, 1.5, size)).astype(np.float32)
        self.values[name] = vector.astype(np.float64)
        return vector


class Mini:
    """A decoder of one layer with every operation and option, and the same in float64."""

    def __init__(self, registry: Registry, place: Place) -> None:
        self.w = w = Weights(1)
        table = w.matrix("table", GGMLType.Q8_0, VOCABULARY, HIDDEN)
        bias = 0.3 * w.rng.standard_normal(512).astype(np.float32)
        w.values["bias"] = bias.astype(np.float64)
        qkv = (
            w.matrix("q", GGMLType.Q4_K, 256, HIDDEN),
            w.matrix("k", GGMLType.Q6_K, 128, HIDDEN),
            w.matrix("v", GGMLType.F16, 128, HIDDEN),
        )
        gate_up = (w.matrix("gate", GGMLType.Q4_1, FFN, HIDDEN), w.matrix("up", GGMLType.Q4_1, FFN, HIDDEN))
        attention = AttentionSpec(4, 2, 64, SIZES.rope(), RopePairs.HALVES)
        # with weights as large as random bits make them, one score would take all: a model that magnifies every error
        small = w.vector("norm1", HIDDEN, 0.005)
        self.embed = registry.build(EmbedSpec(table), place)
        self.qkv = registry.build(LinearSpec(qkv, small, 1e-5, bias), place)
        self.attention = registry.build(attention, place)
        self.o = registry.build(LinearSpec((w.matrix("o", GGMLType.Q5_K, HIDDEN, 256),), residual=True), place)
        self.gate_up = registry.build(LinearSpec(gate_up, w.vector("norm2", HIDDEN), 1e-5, gated=True), place)
        self.down = registry.build(LinearSpec((w.matrix("down", GGMLType.Q4_0, HIDDEN, FFN),), residual=True), place)
        self.head = registry.build(LinearSpec((table,), w.vector("norm3", HIDDEN), 1e-5, last_row=True), place)

    def __call__(self, step: Step, caches: list[Cache]) -> Tensor:
        return self.head(self.states(step, caches), step)

    def states(self, step: Step, caches: list[Cache]) -> Tensor:
        x = self.embed(step)
        attended, _ = self.attention(self.qkv(x, step), caches[0], step)
        x = self.o(attended, step, x)
        return self.down(self.gate_up(x, step), step, x)

    def expected(self, tokens: list[int]) -> np.ndarray:
        w = self.w.values

        def norm(x: np.ndarray, name: str) -> np.ndarray:
            return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * w[name]

        x = w["table"][tokens]
        qkv = norm(x, "norm1") @ np.concatenate([w["q"], w["k"], w["v"]]).T + w["bias"]
        x = x + reference(SIZES, qkv) @ w["o"].T
        gate, up = (norm(x, "norm2") @ w[name].T for name in ("gate", "up"))
        x = x + (gate / (1 + np.exp(-gate)) * up) @ w["down"].T
        return norm(x, "norm3") @ w["table"].T


TOKENS = [int(token) for token in np.random.default_rng(2).integers(0, VOCABULARY, 24)]
CHUNKS = (6, 1, 4, 1, 1, 6, 5)


def _relative_rms(out: np.ndarray, expected: np.ndarray) -> float:
    return float(np.sqrt(((out - expected) ** 2).mean()) / expected.std())


def _check(run: Callable[[list[int], int], np.ndarray], model: Mini) -> None:
    expected, at = model.expected(TOKENS), 0
    for count in CHUNKS:
        logits = run(TOKENS[at : at + count], at)
        at += count
        # five matrices, each with activations rounded to eight bits
        assert _relative_rms(logits, expected[at - 1]) < 0.03, f"after {at} tokens"


def test_a_recorded_program_computes_the_model() -> None:
    place = _place()
    registry = Registry(cpu.OFFERS)
    model = Mini(registry, place)
    assert cpu.can_record(registry.chosen)
    program = cpu.record(place, model.states, model.head, [model.attention.new_cache()])
    assert program.num_calls == 7

    def run(tokens: list[int], start: int) -> np.ndarray:
        count = len(tokens)
        return program.run(tokens, [0] * count, range(start, start + count), [count - 1])[0]

    _check(run, model)


def test_a_jit_captures_the_same_operations() -> None:
    place = _place()
    model = Mini(Registry(cpu.OFFERS), place)
    caches = [model.attention.new_cache()]
    ids = Tensor.zeros(CHUNK, dtype=dtypes.int32, device="CPU").contiguous().realize()
    start, count = variables(NUM_CTX, CHUNK)

    def decode_step(start: UOp) -> Tensor:
        return model(Step(1, ids, start, 1), caches).realize()

    def prefill_step(start: UOp, count: UOp) -> Tensor:
        return model(Step(CHUNK, ids, start, count), caches).realize()

    decode, prefill = TinyJit(decode_step), TinyJit(prefill_step)

    def run(tokens: list[int], at: int) -> np.ndarray:
        ids.assign(Tensor(tokens + [0] * (CHUNK - len(tokens)), dtype=dtypes.int32, device="CPU")).realize()
        if len(tokens) == 1:
            return decode(start.bind(at)).numpy().reshape(-1)
        return prefill(start.bind(at), count.bind(len(tokens))).numpy().reshape(-1)

    _check(run, model)


def test_jit_and_program_agree_to_the_last_bit() -> None:
    logits: list[np.ndarray] = []
    for recorded in (True, False):
        place = _place()
        model = Mini(Registry(cpu.OFFERS), place)
        caches = [model.attention.new_cache()]
        if recorded:
            logits.append(cpu.record(place, model.states, model.head, caches).run([5], [0], [0], [0])[0].copy())
        else:
            start, _ = variables(NUM_CTX, CHUNK)
            ids = Tensor([5] + [0] * (CHUNK - 1), dtype=dtypes.int32, device="CPU")
            logits.append(model(Step(1, ids, start.bind(0), 1), caches).numpy().reshape(-1))
    assert np.array_equal(logits[0], logits[1])


def test_a_model_with_an_operation_that_is_not_ours_cannot_be_recorded() -> None:
    place = _place()
    model = Mini(Registry(cpu.OFFERS), place)
    portable_head = LinearSpec((model.w.matrix("head", GGMLType.F32, 32, HIDDEN),), last_row=True)
    model.head = Registry(portable.OFFERS).build(portable_head, place)
    with pytest.raises((TypeError, AttributeError)):
        cpu.record(place, model.states, model.head, [model.attention.new_cache()])


def test_a_tied_matrix_is_packed_once() -> None:
    place = _place()
    Mini(Registry(cpu.OFFERS), place)
    with_tied = place.memory_bytes
    registry = Registry(cpu.OFFERS)
    w = Weights(1)
    other = Matrix("other", GGMLType.Q8_0, VOCABULARY, HIDDEN, w.matrix("t", GGMLType.Q8_0, VOCABULARY, HIDDEN).read)
    registry.build(EmbedSpec(other), place)
    assert place.memory_bytes - with_tied == library.matrix_library(GGMLType.Q8_0).packed_bytes(VOCABULARY, HIDDEN)


@pytest.mark.parametrize("ggml_type", [GGMLType.Q4_K, GGMLType.Q8_0, GGMLType.F16, GGMLType.F32], ids=lambda t: t.name)
def test_weights_that_are_not_numbers_are_refused_by_name(ggml_type: GGMLType) -> None:
    raw = random_matrix(ggml_type, 20, 256, np.random.default_rng(3)).copy()
    if ggml_type == GGMLType.F32:
        raw.view(np.float32)[19, 255] = np.nan
    else:
        raw[19, :2] = np.array([np.inf], np.float16).view(np.uint8)
    spec = LinearSpec((Matrix("blk.0.bad.weight", ggml_type, 20, 256, lambda: raw),))
    with pytest.raises(GGUFError, match=r"blk\.0\.bad\.weight.*not finite"):
        Registry(cpu.OFFERS).build(spec, _place())


def test_types_without_a_kernel_are_left_to_the_portable_ones() -> None:
    registry = Registry(portable.OFFERS + cpu.OFFERS)
    spec = LinearSpec((Matrix("x", GGMLType.IQ2_XXS, 16, 256, lambda: np.zeros(66 * 16, np.uint8)),))
    assert [offer.name for offer in registry.offers_for(spec, "CPU")] == ["portable linear"]
    assert all("C " not in offer.name for offer in registry.offers_for(LinearSpec(()), "CUDA"))


def test_without_a_compiler_there_is_one_warning_and_the_portable_kernels_are_taken(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_compiler() -> None:
        raise DeviceUnavailable("no C compiler on PATH")

    monkeypatch.setattr(cpu, "operation_library", no_compiler)
    cpu._available.cache_clear()  # pyright: ignore[reportPrivateUsage]
    registry = Registry(portable.OFFERS + cpu.OFFERS)
    with caplog.at_level(logging.WARNING):
        Mini(registry, _place())
    cpu._available.cache_clear()  # pyright: ignore[reportPrivateUsage]
    assert len(caplog.records) == 1
    assert not cpu.can_record(registry.chosen)
    assert all(name.startswith("portable") for name in registry.chosen)


def test_more_arguments_than_registers_are_refused() -> None:
    tensors = [Tensor.empty(1) for _ in range(5)]
    with pytest.raises(ValueError, match="travel in registers"):
        launch("f", 0, 0, tensors, [1])


def test_trampolines_jump_where_they_are_told() -> None:
    assert machine_code(0x1122334455667788, 0x99AABBCCDDEEFF00, {2: 1}, "x86_64").hex() == (
        "ba01000000" + "49b9" + "00ffeeddccbbaa99" + "48b8" + "8877665544332211" + "ffe0"
    )
    arm = machine_code(0x1122334455667788, 0x99AABBCCDDEEFF00, {2: 1}, "arm64")
    assert arm[4:].hex() == "65000058" + "90000058" + "00021fd6" + "00ffeeddccbbaa99" + "8877665544332211"
    assert arm[:4].hex() == "220080d2"  # movz x2, #1
    with pytest.raises(DeviceUnavailable, match="riscv64"):
        machine_code(0, 0, {}, "riscv64")


def test_a_matrix_is_packed_piece_by_piece_and_its_file_pages_are_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(6)
    raw = random_matrix(GGMLType.Q4_K, 100, 512, rng)
    pieces: list[int] = []
    x = np.zeros((CHUNK, 512), np.float32)
    x[0] = rng.standard_normal(512)
    outs: list[np.ndarray] = []
    for at_once in (1 << 20, 3 * 16 * raw.strides[0]):
        monkeypatch.setattr(cpu, "_PACKED_AT_ONCE", at_once)
        matrix = Matrix("m", GGMLType.Q4_K, 100, 512, lambda: raw.reshape(-1), lambda: pieces.append(1))
        linear = Registry(cpu.OFFERS).build(LinearSpec((matrix,)), _place())
        start, count = variables(NUM_CTX, CHUNK)
        tokens = Tensor.zeros(CHUNK, dtype=dtypes.int32, device="CPU").contiguous().realize()
        step = Step(CHUNK, tokens, start.bind(0), count.bind(1))
        outs.append(linear(Tensor(x, device="CPU").realize(), step).numpy()[0])
    assert len(pieces) == 1 + 3
    assert np.array_equal(outs[0], outs[1])
