"""The same kernels as CUDA C and Metal text: instructions and widths of loads. Nothing here is compiled or run."""

import contextlib
import functools
import math
import re
from collections import Counter
from collections.abc import Callable

import pytest
from tinygrad.codegen import to_program
from tinygrad.device import Compiler
from tinygrad.dtype import dtypes
from tinygrad.helpers import Target
from tinygrad.renderer.cstyle import CStyleLanguage, CUDARenderer, MetalRenderer
from tinygrad.uop.ops import UOp

from garzone.kernels.gpu.attention import Heads, attend, part_floats
from garzone.kernels.gpu.intrinsics import CUDA, METAL
from garzone.kernels.gpu.matvec import QUANTS, Plan, activation_words, is_float, matvec
from garzone.kernels.gpu.prompt_attention import attend_prompt, cut
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


@functools.cache
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


def loads(source: str, argument: int) -> Counter[str]:
    """Loads from an argument of a kernel, or from its local memory (``buf``), by the type that is loaded."""
    return Counter(re.findall(rf"^\s+(\w+(?: \w+)?) val\d+ = \(\*\(.*\bdata{argument}_", source, re.MULTILINE))


BYTES = {"uint4": 16, "float4": 16, "uint2": 8, "uint": 4, "unsigned short": 2, "unsigned char": 1}


@pytest.mark.parametrize("ggml_type", TYPES)
@pytest.mark.parametrize("name", RENDERERS)
def test_everything_is_read_as_wide_as_its_blocks_are_aligned(name: str, ggml_type: GGMLType) -> None:
    source, quant = text(name, ggml_type), QUANTS[ggml_type]
    block = units(quant) * quant.dtype.itemsize
    aligned = 1 if ggml_type is GGMLType.Q3_K else math.gcd(block, 16)  # its lanes' records are of 11 bytes
    weights = {BYTES[kind]: count for kind, count in loads(source, 1).items()}
    if aligned >= 4:
        # What the whole lane needs of a block: a single element where that is all that is needed of a place.
        assert max(weights) == aligned
        assert sum(count for size, count in weights.items() if size < aligned) <= 4
    else:  # the buffer's elements: CUDA and Metal fault on, or take apart, anything wider
        assert set(weights) == {quant.dtype.itemsize}
    activations = {BYTES[kind]: count for kind, count in loads(source, 2).items()}
    assert activations[16] * 16 >= {1: 32, 4: 64}[quant.lanes]
    assert activations.get(4, 0) <= max(1, quant.lanes // 2)  # the scales alone, where the sums are not needed


HEADS = Heads(28, 4, 128, 4096, 128, adjacent=False)
SMALL = Heads(14, 2, 64, 4096, 64, adjacent=False)  # as many waves, half the text


def attention_text(name: str, heads: Heads, kernel: Callable[..., UOp], rows: int, splits: int) -> str:
    cache, printed = (dtypes.uint32, heads.cache_words), RENDERERS[name][0]
    sizes = (
        (dtypes.float, part_floats(heads, rows, splits)),
        (dtypes.uint32, rows * heads.queries * heads.words),
        *(cache, cache, (dtypes.int, 2 * rows)),
    )
    arguments = [UOp.placeholder((size,), dtype, slot) for slot, (dtype, size) in enumerate(sizes)]
    return to_program(kernel(*arguments), printed).src[2].arg


LOCAL = {"cuda": ("__shared__", "__syncthreads();"), "metal": ("threadgroup __", "threadgroup_barrier(")}


@pytest.mark.parametrize("name", RENDERERS)
def test_a_prompts_attention_reads_sixteen_bytes_at_a_time_everywhere(name: str) -> None:
    source = attention_text(name, SMALL, attend_prompt(SMALL, 64, RENDERERS[name][1]), 64, cut(SMALL, 64).splits)
    for argument in (1, 2, 3):  # queries, keys, values
        assert set(loads(source, argument)) == {"uint4"}
    # 32 positions of keys by seven waves: 256 units of 16 bytes, by 224 threads.
    assert loads(source, 2)["uint4"] == 2
    local = Counter(re.findall(r"^\s+(\w+) val\d+ = \(\*\(.*\bbuf[456]\b", source, re.MULTILINE))
    assert set(local) == {"uint4"}
    declared, barrier = LOCAL[name]
    assert len(re.findall(rf"^\s+{re.escape(declared)}.* uint buf[456]\[", source, re.MULTILINE)) == 3
    assert source.count(barrier) == 3
    assert len(re.findall("__shfl_xor_sync|simd_shuffle_xor", source)) == 2  # a row's maximum and its sum


@pytest.mark.parametrize("name", RENDERERS)
def test_decodes_attention_reads_whole_keys_and_merges_in_the_workgroup(name: str) -> None:
    source = attention_text(name, HEADS, attend(HEADS, 1, RENDERERS[name][1]), 1, 0)
    assert set(loads(source, 1)) == set(loads(source, 2)) == {"uint4"}
    assert set(loads(source, 3)) == {"uint2"}  # a lane's four elements of a value
    declared, barrier = LOCAL[name]
    assert len(re.findall(rf"^\s+{re.escape(declared)}.* float buf\d\[", source, re.MULTILINE)) == 2
    assert source.count(barrier) == 2  # the weights, the parts
