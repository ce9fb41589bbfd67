"""Kernels are built once in a process, and compiled once for all processes."""

import logging
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from tinygrad.device import Device
from tinygrad.dtype import dtypes
from tinygrad.helpers import diskcache_put
from tinygrad.renderer import Renderer
from tinygrad.tensor import Tensor
from tinygrad.uop import Ops
from tinygrad.uop.ops import UOp

from garzone.kernels.gpu import programs
from garzone.kernels.gpu.activations import quantise
from garzone.kernels.gpu.programs import program, remembered
from tests.kernels.gpu.oracle import DEVICE, intrinsics


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The names of the kernels that are compiled."""
    names: list[str] = []
    compile_ = programs.to_program

    def noted(sink: UOp, renderer: Renderer) -> UOp:
        names.append(sink.arg.name)
        return compile_(sink, renderer)

    monkeypatch.setattr(programs, "to_program", noted)
    programs._program.cache_clear()  # pyright: ignore[reportPrivateUsage]
    yield names
    programs._program.cache_clear()  # pyright: ignore[reportPrivateUsage]


def sink(columns: int) -> UOp:
    out, x = (UOp.placeholder((columns,), dtypes.float, slot) for slot in range(2))
    return quantise(1, columns, intrinsics(), output="float")(out, x)


def test_equal_sizes_are_one_kernel_and_its_ops_are_built_once() -> None:
    built: list[int] = []

    @remembered
    def copies(count: int) -> Callable[..., UOp]:
        def kernel(out: UOp, x: UOp) -> UOp:
            built.append(count)
            return out.store(x.load()).sink()

        return kernel

    buffers = [UOp.placeholder((4,), dtypes.float, slot) for slot in range(2)]
    assert copies(4)(*buffers) is copies(4)(*buffers)
    assert copies(8) is not copies(4)
    assert built == [4]


def test_a_kernel_is_compiled_once_for_all_processes(compiled: list[str]) -> None:
    diskcache_put(programs._TABLE, programs._key(sink(64), Device[DEVICE].renderer), None)  # pyright: ignore[reportPrivateUsage]
    first = program(sink(64), DEVICE)
    assert len(compiled) == 1
    compiled.clear()
    programs._program.cache_clear()  # pyright: ignore[reportPrivateUsage]  # as another process begins
    again = program(sink(64), DEVICE)
    assert compiled == []
    assert again is first
    assert again.src[-1].op is Ops.BINARY


def test_a_kept_kernel_that_cannot_be_read_is_compiled_again(
    compiled: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    key = programs._key(sink(96), Device[DEVICE].renderer)  # pyright: ignore[reportPrivateUsage]
    diskcache_put(programs._TABLE, key, b"cut off", prepickled=True)  # pyright: ignore[reportPrivateUsage]
    with caplog.at_level(logging.WARNING):
        made = program(sink(96), DEVICE)
    assert len(compiled) == 1
    assert "compiled again" in caplog.text
    x = np.arange(96, dtype=np.float32)
    tensors = [Tensor(array).to(DEVICE).realize() for array in (np.zeros_like(x), x)]
    out = tensors[0].custom_kernel(tensors[1], fxn=lambda *_: made)[0]
    np.testing.assert_array_equal(out.numpy(), x)
