"""Whole models made of the GPU kernels: what they compute, how often they launch, that they compile for gfx1100."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tinygrad.helpers import DEV, Target
from tinygrad.runtime import ops_null
from tinygrad.tensor import Tensor

from garzone.engine.model_runner import ModelRunner, Row
from garzone.kernels import portable
from garzone.kernels.amd.compiler import has_spills
from garzone.kernels.amd.renderer import install
from garzone.kernels.gpu.offers import can_batch
from garzone.kernels.gpu.program import Program
from garzone.kernels.launch import Captured
from garzone.kernels.layouts import GGMLType
from garzone.kernels.registry import (
    AttentionSpec,
    EmbedSpec,
    LinearSpec,
    Matrix,
    Registry,
    RopePairs,
    default_registry,
)
from tests.kernels.gpu.models import gpu_runner, write_quantised
from tests.kernels.gpu.oracle import DEVICE

Q4, Q8 = GGMLType.Q4_0, GGMLType.Q8_0
MATRIX = Matrix("w", Q8, 32, 32, lambda: np.zeros(32 * 34, np.uint8))
TOKENS = [5, 9, 2, 7, 11, 3]


@pytest.fixture
def gfx1100(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """tinygrad's device that computes nothing, compiling for a Radeon RX 7900."""
    before = DEV.value
    DEV.value = [Target.parse("NULL:AMDGARZONE:gfx1100")]
    install("NULL")
    monkeypatch.setattr(ops_null, "NULL_ALLOW_COPYOUT", True)
    yield "NULL"
    DEV.value = before


def step(runner: ModelRunner, rows: int) -> Captured[tuple[Tensor, ...]]:
    """What is replayed for that many rows."""
    program = runner._program  # pyright: ignore[reportPrivateUsage]
    assert isinstance(program, Program)
    return program.captured_step(rows)


@pytest.mark.parametrize(
    ("model", "most"),
    [
        pytest.param(("qwen2", {"": Q8}), 8, id="one type"),
        pytest.param(("qwen2", {"attn_v": Q4, "": Q8}), 9, id="values of another type than queries and keys"),
        pytest.param(("qwen3", {"": Q8}), 9, id="heads that are normalised", marks=pytest.mark.slow),
    ],
)
def test_decoding_takes_eight_launches_a_layer_all_of_which_compile_for_gfx1100(
    model: tuple[str, dict[str, GGMLType]],
    most: int,
    tmp_path: Path,
    gfx1100: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    architecture, types = model
    counts: list[int] = []
    for num_layers in (1, 2):
        path = write_quantised(
            tmp_path / "tiny.gguf",
            types,
            architecture=architecture,
            num_layers=num_layers,
            num_heads=8,
            num_kv_heads=2,
            hidden=512,
            feed_forward=1024,
        )
        runner = gpu_runner(path, gfx1100, monkeypatch, num_ctx=4096, num_slots=2)
        runner.decode(1, 0, slot=1)
        launched = step(runner, 1).programs
        counts.append(len(launched))
        assert not any(has_spills(program.src[3].arg) for program in launched)
        # tinygrad's graphs (JIT=1 on cards) hand all arguments of a call to its program, used or not.
        assert not step(runner, 1).ignored_arguments()
    assert counts[1] - counts[0] == most


@pytest.mark.slow
def test_a_prompt_and_a_batch_compile_for_gfx1100(
    tmp_path: Path, gfx1100: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_quantised(tmp_path / "tiny.gguf", {"": Q8}, num_layers=1, num_heads=8, hidden=512, feed_forward=1024)
    runner = gpu_runner(path, gfx1100, monkeypatch, num_ctx=1024, num_slots=4)
    runner.prefill([1] * 100, 0)
    scores = runner.score([Row(slot, 0, 1, True) for slot in range(1, 4)])
    assert len(scores[0].highest(3)[0]) == 3
    program = runner._program  # pyright: ignore[reportPrivateUsage]
    assert isinstance(program, Program)
    captured = program._captured.values()  # pyright: ignore[reportPrivateUsage]
    launched = [launch for one in captured for launch in one.step.programs]
    assert any(launch.arg.name.startswith("attend_prompt") for launch in launched)
    assert not any(one.step.ignored_arguments() for one in captured)
    assert not any(has_spills(launch.src[3].arg) for launch in launched)


def expected(path: Path) -> list[np.ndarray]:
    """Logits after each token, computed by the portable implementation from unrounded activations."""
    runner = ModelRunner.load(path, num_ctx=64, device="CPU", registry=Registry(portable.OFFERS))
    return [runner.decode(token, position) for position, token in enumerate(TOKENS)]


def assert_same(got: np.ndarray, want: np.ndarray) -> None:
    # Activations are rounded to int8 (0.4 % of a group's largest), queries, keys and values to f16.
    assert np.corrcoef(got, want)[0, 1] > 0.999
    assert np.abs(got - want).max() < 0.05 * np.abs(want).max()


def test_a_model_gives_what_the_portable_implementation_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"num_layers": 1, "num_heads": 1, "num_kv_heads": 1, "hidden": 32, "feed_forward": 32, "vocabulary": 12}
    path = write_quantised(tmp_path / "tiny.gguf", {"attn_v": Q4, "": Q8}, architecture="qwen2", **sizes)
    runner = gpu_runner(path, DEVICE, monkeypatch, num_ctx=64, num_slots=2)
    assert can_batch(runner.implementations)
    for position, want in enumerate(expected(path)[:2]):
        assert_same(runner.decode(TOKENS[position], position, slot=1), want)
    kept = runner.read_rows(1, 0, 2)
    runner.write_rows(0, 0, 2, kept)
    assert runner.read_rows(0, 0, 2) == kept
    assert runner.read_rows(0, 1, 1) == kept[runner.row_bytes :]
    runner.copy_rows(0, 1, 1)
    assert runner.read_rows(1, 0, 1) == runner.read_rows(0, 0, 1)


def test_all_sizes_of_step_can_be_captured_ahead_and_change_no_slot(
    tmp_path: Path, gfx1100: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"num_layers": 1, "num_heads": 2, "num_kv_heads": 1, "hidden": 64, "feed_forward": 64}
    path = write_quantised(tmp_path / "tiny.gguf", {"": Q8}, **sizes)
    runner = gpu_runner(path, gfx1100, monkeypatch, num_ctx=8, num_slots=2)
    program = runner._program  # pyright: ignore[reportPrivateUsage]
    assert isinstance(program, Program)
    runner.decode(1, 0)
    while runner.prepare_more():
        pass
    captured = program._captured  # pyright: ignore[reportPrivateUsage]
    assert sorted(captured) == [(1, 1), (2, 2), (4, 4), (8, 8)]
    before = dict(captured)
    for count in (1, 2, 3, 5):
        runner.step([Row(1, at, 1, at == count - 1) for at in range(count)])
    runner.copy_rows(1, 0, 2)
    assert captured == before  # nothing was left to be captured while somebody waits
    assert runner.valid_rows(0) == 2


@pytest.mark.slow
def test_a_model_whose_heads_are_normalised_gives_what_the_portable_implementation_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two layers, whose norms differ.
    sizes = {"num_layers": 2, "num_heads": 1, "num_kv_heads": 1, "hidden": 64, "feed_forward": 32, "vocabulary": 12}
    path = write_quantised(tmp_path / "tiny.gguf", {"": Q8}, architecture="qwen3", **sizes)
    runner = gpu_runner(path, DEVICE, monkeypatch, num_ctx=64, num_slots=2)
    assert can_batch(runner.implementations)
    for position, want in enumerate(expected(path)[:3]):
        assert_same(runner.decode(TOKENS[position], position, slot=1), want)


@pytest.mark.slow
def test_rows_of_several_slots_share_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"num_layers": 2, "num_heads": 2, "num_kv_heads": 1, "hidden": 64, "feed_forward": 64, "vocabulary": 12}
    path = write_quantised(tmp_path / "tiny.gguf", {"": Q8}, **sizes)
    runner, want = gpu_runner(path, DEVICE, monkeypatch, num_ctx=64, num_slots=3), expected(path)
    # A prompt in one slot and the first tokens of another, mixed; two more rows than a batch has.
    rows = [Row(2, position, TOKENS[position], position == 4) for position in range(5)]
    rows[2:2] = [Row(0, 0, TOKENS[0], True)]
    for got, index in zip(runner.step(rows), (0, 4), strict=True):
        assert_same(got, want[index])
    runner.copy_rows(2, 1, 4)
    kept = runner.read_rows(2, 0, 5)
    for got, index in zip(runner.step([Row(0, 1, TOKENS[1], True), Row(1, 4, TOKENS[4], True)]), (1, 4), strict=True):
        assert_same(got, want[index])
    runner.write_rows(0, 0, 5, kept)
    assert_same(runner.decode(TOKENS[5], 5, slot=0), want[5])


@pytest.mark.slow
def test_a_prompt_gives_what_its_tokens_give_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"num_layers": 1, "num_heads": 1, "num_kv_heads": 1, "hidden": 32, "feed_forward": 32, "vocabulary": 12}
    path = write_quantised(tmp_path / "tiny.gguf", {"": Q8}, **sizes)
    monkeypatch.setattr("garzone.kernels.gpu.program._SIZES", (1, 2, 4, 8, 16))  # 64 rows take an interpreter minutes
    runner = gpu_runner(path, DEVICE, monkeypatch, num_ctx=64, num_slots=2)
    many = (TOKENS * 2)[:9]  # more rows than decode's attention takes
    cpu = ModelRunner.load(path, num_ctx=64, device="CPU", registry=Registry(portable.OFFERS))
    want = [cpu.decode(token, position) for position, token in enumerate(many)]
    assert_same(runner.step([Row(1, i, token, i == 8) for i, token in enumerate(many)])[0], want[-1])


def test_the_default_registry_prefers_gpu_kernels_on_gpus_alone() -> None:
    specs = (
        EmbedSpec(MATRIX),
        LinearSpec((MATRIX,)),
        AttentionSpec(1, 1, 32, np.zeros((1, 16, 2), np.float32), RopePairs.HALVES),
    )
    for device in ("AMD", "CUDA", "NV", "METAL"):
        names = [default_registry().offers_for(spec, device)[0].name for spec in specs]
        assert names == [f"{device} gpu embed", f"{device} gpu linear", f"{device} gpu attention"]
    for spec in specs:
        assert not any("gpu" in offer.name for offer in default_registry().offers_for(spec, "CPU"))
