"""Compiles a kernel for a Radeon RX 7900 (gfx1100) without one, and reads the machine code."""

from __future__ import annotations

from collections.abc import Callable

from tinygrad.codegen import to_program
from tinygrad.dtype import DType
from tinygrad.helpers import Target
from tinygrad.uop.ops import UOp

from garzone.kernels.amd.compiler import LlvmliteCompiler
from garzone.kernels.amd.listing import Listing, parse
from garzone.kernels.amd.renderer import AMDGarzoneRenderer

RENDERER = AMDGarzoneRenderer(Target("AMD", "GARZONE", "gfx1100"))


def assembly(kernel: Callable[..., UOp], *buffers: tuple[DType, int]) -> str:
    """Machine code of a kernel whose arguments have these dtypes and lengths, as text."""
    arguments = [UOp.placeholder((size,), dtype, slot) for slot, (dtype, size) in enumerate(buffers)]
    program = to_program(kernel(*arguments), RENDERER)
    assert program.src[3].arg.startswith(b"\x7fELF")
    return LlvmliteCompiler("gfx1100").assembly(program.src[2].arg)


def listing(kernel: Callable[..., UOp], *buffers: tuple[DType, int]) -> Listing:
    """The counts of ``assembly``."""
    return parse(assembly(kernel, *buffers))
