"""Renders kernels for AMD GPUs as LLVM IR with intrinsics, and makes tinygrad's devices use that renderer.

It does not compile (``compiler.py`` does) and holds no kernels. Two things are added to tinygrad's ``AMDLLVMRenderer``:
inline IR (``Ops.CUSTOM``, ``Ops.CUSTOMI``), which tinygrad renders only in its C-style languages, and the llvmlite
compiler.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tinygrad.codegen.opt import tc
from tinygrad.device import Device
from tinygrad.dtype import AddrSpace, dtypes
from tinygrad.renderer import Renderer
from tinygrad.renderer.llvmir import AMDLLVMRenderer, ldt, render_wmma_amd
from tinygrad.uop import Ops
from tinygrad.uop.ops import PatternMatcher, UOp, UPat

from garzone.kernels.amd.compiler import LlvmliteCompiler

if TYPE_CHECKING:
    from tinygrad.helpers import Target


def _render_inline(ctx: dict[UOp, str], op: UOp) -> str:
    """Inline IR: ``{0}``, ``{1}``... are the operands, ``{o}`` the result; more lines may name ``{o}_x`` values."""
    return "  " + op.arg.format(*[ctx[source] for source in op.src], o=ctx[op])


# What a global load adds to its address for free: 12 bits, unsigned, so that the sum also works with a scalar base.
_OFFSETS = 4096


def _terms(index: UOp, factor: int = 1) -> list[tuple[UOp, int]]:
    """The sum that an index is, as (value, factor) pairs; constants multiply out."""
    if index.op is Ops.ADD:
        return [term for source in index.src for term in _terms(source, factor)]
    if index.op is Ops.MUL and _is_constant(index.src[1]):
        return _terms(index.src[0], factor * index.src[1].src[0].val)
    if index.op is Ops.SHL and _is_constant(index.src[1]):
        return _terms(index.src[0], factor << index.src[1].src[0].val)
    return [(index, factor)]


def _is_constant(index: UOp) -> bool:
    return index.op is Ops.CAST and index.src[0].op is Ops.CONST


_DIVERGENT = frozenset({Ops.LOAD, Ops.CUSTOM, Ops.CUSTOMI, Ops.WMMA})


def _kind(index: UOp) -> str:
    """``base``: the same in every lane and every trip of a loop; ``trip``: in every lane; ``lane``: not known to be."""
    inside = index.toposort()
    if any((u.op is Ops.SPECIAL and u.arg[0] == "l") or u.op in _DIVERGENT for u in inside):
        return "lane"
    return "trip" if any(u.op is Ops.RANGE for u in inside) else "base"


def _render_address(ctx: dict[UOp, str], op: UOp) -> str | None:
    """A global address as scalar base + 32-bit lane offset + constant, the form ``global_load`` has in hardware.

    tinygrad computes one 32-bit index, which LLVM cannot take apart again: it then spends two vector instructions an
    access on 64-bit addresses (1 of 9 slots a Q4_K block).
    """
    buffer, index = op.src[0], op.src[1]
    if buffer.addrspace != AddrSpace.GLOBAL or index.dtype != dtypes.int or buffer.op not in {Ops.PARAM, Ops.AFTER}:
        return None
    terms = _terms(index)
    constant = sum(term.src[0].val * factor for term, factor in terms if _is_constant(term))
    terms = [(term, factor) for term, factor in terms if not _is_constant(term)]
    size = op.dtype.itemsize
    if constant < 0 or any(term.dtype != dtypes.int or term.vmin < 0 or factor < 0 for term, factor in terms):
        return None
    kinds: dict[str, list[tuple[str, int]]] = {"base": [], "trip": [], "lane": []}
    reach = 0
    for term, factor in terms:
        kind = _kind(term)
        kinds[kind].append((ctx[term], factor))
        reach += 0 if kind == "base" else int(term.vmax) * factor * size
    # What lanes add is also bounded by the buffer: minima and maxima are selections by now, whose bounds are not known.
    if not kinds["lane"] or min(reach, buffer.max_numel() * buffer.dtype.itemsize) >= 2**32:
        return None
    name, base, lines = ctx[op], f"{ctx[buffer]}_global", []
    near = constant * size % _OFFSETS
    if far := constant - near // size:
        kinds["base"].append((str(far), 1))

    def total(kind: str, scale: int) -> str:
        value = ""
        for i, (term, factor) in enumerate(kinds[kind]):
            lines.append(f"{name}_{kind}{i} = mul nsw i32 {term}, {factor * scale}")
            if value:
                lines.append(f"{name}_{kind}s{i} = add nsw i32 {value}, {name}_{kind}{i}")
            value = f"{name}_{kind}s{i}" if value else f"{name}_{kind}{i}"
        return value

    # The empty instructions below keep three optimisations from undoing this form: loop-invariant code motion would
    # add the lane's offset to the base first, strength reduction would fold the trip's part into a quarter-rate
    # multiply-add, and widening would be spread over the terms of the sum.
    if kinds["base"]:
        lines.append(f"{name}_r = getelementptr {ldt(op.dtype)}, ptr addrspace(1) {base}, i32 {total('base', 1)}")
        lines.append(f'{name}_s = call ptr addrspace(1) asm "", "=s,0"(ptr addrspace(1) {name}_r) #1')
        base = f"{name}_s"
    offset = total("lane", size)
    if kinds["trip"]:
        lines.append(f'{name}_o = call i32 asm "", "=s,0"(i32 {total("trip", size)}) #1')
        lines.append(f"{name}_c = add i32 {name}_o, {offset}")
        offset = f"{name}_c"
    lines.append(f'{name}_v = call i32 asm "", "=v,0"(i32 {offset}) #1')
    lines.append(f"{name}_z = zext i32 {name}_v to i64")
    lines.append(f"{name}_p = getelementptr i8, ptr addrspace(1) {base}, i64 {name}_z")
    lines.append(f"{name}_g = getelementptr i8, ptr addrspace(1) {name}_p, i64 {near}")
    lines.append(f"{name} = addrspacecast ptr addrspace(1) {name}_g to ptr")
    return "\n".join("  " + line for line in lines)


class AMDGarzoneRenderer(AMDLLVMRenderer):
    """LLVM IR for RDNA3 with inline intrinsics; chosen with ``DEV=AMD:GARZONE``, or by default after ``install``."""

    def __init__(self, target: Target):
        # AMDLLVMRenderer's own __init__ loads a system libLLVM, which is what this class makes unnecessary.
        Renderer.__init__(self, target)
        if not target.arch.startswith("gfx11"):
            raise RuntimeError(f"{target.arch!r} is no RDNA3 chip (gfx11..): its kernels are tinygrad's own")
        self.compiler = LlvmliteCompiler(target.arch)
        self.tensor_cores, self.is_cdna = tc.get_amd(target.arch), False
        self.string_rewrite = (
            PatternMatcher(
                [
                    (UPat((Ops.CUSTOM, Ops.CUSTOMI), name="op"), _render_inline),
                    (UPat((Ops.INDEX, Ops.SHRINK), name="op"), _render_address),
                ]
            )
            + AMDLLVMRenderer.string_rewrite
            + PatternMatcher([(UPat(Ops.WMMA, name="wmma"), render_wmma_amd)])
        )
        if target.arch in {"gfx1100", "gfx1151"}:
            self.extra_matcher = (AMDLLVMRenderer.extra_matcher or PatternMatcher([])) + tc.pm_validate_wmma_rdna3

    def _render_fn(
        self, name: str, args: list[tuple[str, UOp]], kernel: list[str], prefix: list[str] | None = None
    ) -> str:
        """As tinygrad's, with address spaces said outright: arguments are global memory, registers are private.

        LLVM 20's verifier refuses the generic ``alloca`` that tinygrad writes for AMD.
        """
        parameters: list[str] = []
        casts: list[str] = []
        for value, arg in args:
            if arg.addrspace == AddrSpace.GLOBAL:
                parameters.append(f"ptr addrspace(1) noalias align 32 {value}_global")
                casts.append(f"  {value} = addrspacecast ptr addrspace(1) {value}_global to ptr")
            else:
                parameters.append(f"{ldt(arg.dtype)} {value}")
        body = [_ALLOCA.sub(_private_alloca, line) for line in kernel]
        signature = f"define {self.abi} void @{name}({', '.join(parameters)}) #0"
        return "\n".join([*(prefix or []), signature, "{", *casts, *body, "  ret void\n}"])

    def _render_footer(self, uops: list[UOp]) -> str:
        footer = super()._render_footer(uops)
        names = [u.arg.name for u in uops if u.op is Ops.SINK and u.arg is not None]
        if names and (match := _WAVES.search(names[0])):
            footer = footer.removesuffix(" }") + f' "amdgpu-waves-per-eu"="{match[1]},16" }}'
        return footer + "\nattributes #1 = { nounwind memory(none) }"


# A kernel's name may end in _w and the number of waves that should fit a SIMD at once: 1536 / waves registers each.
_WAVES = re.compile(r"_w(\d+)$")
_ALLOCA = re.compile(r"^  (%reg_\w+) = (alloca .*)$")


def _private_alloca(match: re.Match[str]) -> str:
    name, alloca = match.groups()
    return f"  {name}_private = {alloca}, addrspace(5)\n  {name} = addrspacecast ptr addrspace(5) {name}_private to ptr"


def install(device: str) -> None:
    """Puts the renderer first in a device's list; tinygrad falls back to its own where it cannot start.

    Args:
        device: a tinygrad device name of the AMD or NULL backend, such as ``AMD`` or ``AMD:1``.
    """
    renderers = Device[device].renderers
    if AMDGarzoneRenderer not in renderers:
        renderers.insert(0, AMDGarzoneRenderer)
