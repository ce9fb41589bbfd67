"""The same kernels as CUDA C and Metal text: instructions and widths of loads. Nothing here is compiled or run."""

import contextlib
import re

import pytest
from tinygrad.codegen import to_program
from tinygrad.device import Compiler
from tinygrad.dtype import dtypes
from tinygrad.helpers import Target
from tinygrad.renderer.cstyle import CStyleLanguage, CUDARenderer, MetalRenderer
from tinygrad.uop.ops import UOp

from garzone.kernels.gpu.intrinsics import CUDA, METAL
from garzone.kernels.gpu.matvec import QUANTS, Plan, activation_words, is_float, matvec
from garzone.kernels.gpu.quants import block_elements, units
from garzone.kernels.layouts import GGMLType


class NoCompiler(Compiler):
    """Takes the text as it is: neither NVRTC nor Apple's compiler is here."""

    def compile(self, src: str) -> bytes:
        return src.encode()


def renderer(kind: type[CStyleLanguage], target: Target) -> CStyleLanguage:
    made = kind.__new__(kind)
    with contextlib.suppress(AttributeError, OSError):  # the compiler's library is loaded last
        made.__init__(target)
    made.compiler = NoCompiler(None)
    return made


RENDERERS = {
    "cuda": (renderer(CUDARenderer, Target("CUDA", "", "sm_89")), CUDA),
    "metal": (renderer(MetalRenderer, Target("METAL", "", "Apple7")), METAL),
}


def text(name: str, ggml_type: GGMLType, rows: int = 2) -> str:
    printed, intrinsics = RENDERERS[name]
    quant = QUANTS[ggml_type]
    sizes = (
        (dtypes.float, 64),
        (quant.dtype, 64 * 4096 // block_elements(quant) * units(quant)),
        (dtypes.uint32, activation_words(quant, 4096)),
    )
    arguments = [UOp.placeholder((size,), dtype, slot) for slot, (dtype, size) in enumerate(sizes)]
    return to_program(matvec(quant, 64, 4096, intrinsics, cut=Plan(rows, 1))(*arguments), printed).src[2].arg


# One always, every type before a release.
OFTEN = {GGMLType.Q4_K}
TYPES = [pytest.param(t, id=t.name, marks=() if t in OFTEN else pytest.mark.slow) for t in QUANTS]


@pytest.mark.parametrize("ggml_type", TYPES)
def test_cuda_multiplies_four_bytes_at_once_and_exchanges_registers(ggml_type: GGMLType) -> None:
    source = text("cuda", ggml_type)
    assert ("__dp4a" in source) == (not is_float(QUANTS[ggml_type]))
    assert "__shfl_xor_sync" in source
    assert "__shared__" not in source


@pytest.mark.parametrize("ggml_type", TYPES)
def test_metal_exchanges_registers(ggml_type: GGMLType) -> None:
    source = text("metal", ggml_type)
    assert "simd_shuffle_xor" in source
    assert "threadgroup " not in source


@pytest.mark.parametrize("name", RENDERERS)
def test_headers_alone_are_read_sixteen_bytes_at_a_time(name: str) -> None:
    # It does not see through shifts: quants and int8 activations are read four bytes at a time (docs/engine-log.md).
    assert len(re.findall(r"uint4 val\d+ = ", text(name, GGMLType.Q4_K))) == 2
    assert len(re.findall(r"uint val\d+ = ", text(name, GGMLType.Q4_K))) == 2 * 8 + 16
