"""Compiles LLVM IR for AMD GPUs through ``llvmlite``, so that a card needs nothing but pip.

It does not render IR (``renderer.py`` does) and does not judge the result (``listing.py`` does). tinygrad's own
``AMDLLVMCompiler`` asks for a system ``libLLVM`` and its HIP path for ``comgr``; the LLVM inside llvmlite's wheels
carries the AMDGPU target on Linux and macOS. tinygrad loads the unlinked object.
"""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING, Any

from tinygrad.device import CompileError, Compiler

if TYPE_CHECKING:
    from llvmlite.binding.module import ModuleRef
    from llvmlite.binding.targets import TargetMachine

TRIPLE = "amdgcn-amd-amdhsa"
# One CU instead of a WGP per workgroup: what tinygrad's own AMD compilers ask for, and what its launcher expects.
FEATURES = "+cumode"
_WAVES = re.compile(r'"amdgpu-waves-per-eu"="(\d+),16"')
_FEWER_WAVES = (16, 12, 10, 8)  # 96, 128, 144 and 192 registers a lane
# Keys of the object's metadata (msgpack): a count of 0 is the byte 0 right after the key.
_SPILL_KEYS = (b".vgpr_spill_count", b".sgpr_spill_count", b".private_segment_fixed_size")


def has_spills(code: bytes) -> bool:
    """Whether any kernel of an AMDGPU object keeps registers in memory.

    Raises:
        ValueError: when the object carries no such metadata.
    """
    for key in _SPILL_KEYS:
        at = code.find(key)
        if at < 0:
            raise ValueError(f"no {key.decode()} in the object's metadata: is it an AMDGPU object?")
        if code[at + len(key)] != 0:
            return True
    return False


@functools.cache
def _target_machine(arch: str) -> TargetMachine:
    """The code generator for one architecture, e.g. ``gfx1100``; built once per process."""
    from llvmlite import binding  # noqa: PLC0415  # llvmlite is an extra: only an AMD card needs it

    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    target = binding.Target.from_triple(TRIPLE)
    return target.create_target_machine(cpu=arch, opt=3, reloc="pic", features=FEATURES)


class LlvmliteCompiler(Compiler):
    """tinygrad's ``Compiler`` for ``amdgcn``: LLVM IR text in, relocatable AMDGPU object out."""

    def __init__(self, arch: str):
        from llvmlite import __version__  # noqa: PLC0415

        _target_machine(arch)  # fail here, where tinygrad can still choose another renderer
        self.arch = arch
        super().__init__(f"compile_garzone_llvmlite_{__version__}_{arch}")

    def __reduce__(self) -> tuple[Any, ...]:
        return LlvmliteCompiler, (self.arch,)

    def compile(self, src: str) -> bytes:
        """Compiles a module to an object file.

        Raises:
            CompileError: when LLVM cannot parse or verify the module.
        """
        return _fitting(self.arch, src)[1]

    def assembly(self, src: str) -> str:
        """The assembly listing of what ``compile`` makes, with LLVM's counts of registers and spills at its end."""
        return _target_machine(self.arch).emit_assembly(_fitting(self.arch, src)[0])


@functools.lru_cache(maxsize=8)
def _fitting(arch: str, src: str) -> tuple[ModuleRef, bytes]:
    """The optimised module and its object, with the source's wish for waves a SIMD lowered to what LLVM can grant.

    LLVM takes the wish as an order and would spill registers for it.
    """
    wish = _WAVES.search(src)
    steps = [int(wish[1]), *(waves for waves in _FEWER_WAVES if waves < int(wish[1])), 1] if wish else [0]
    for waves in steps:
        module = _optimised(arch, _WAVES.sub(f'"amdgpu-waves-per-eu"="{waves},16"', src))
        code = _target_machine(arch).emit_object(module)
        if waves == steps[-1] or not has_spills(code):
            return module, code
    raise AssertionError("the last step returns")


def _optimised(arch: str, src: str) -> ModuleRef:
    from llvmlite import binding  # noqa: PLC0415

    context = binding.create_context()
    try:
        module = binding.parse_assembly(src, context)
        module.triple = TRIPLE
        module.data_layout = str(_target_machine(arch).target_data)
        module.verify()
    except RuntimeError as e:
        raise CompileError(f"LLVM refuses the kernel for {arch}: {e}") from e
    machine = _target_machine(arch)
    options = binding.create_pipeline_tuning_options(speed_level=3)
    passes = binding.create_pass_builder(machine, options)
    passes.getModulePassManager().run(module, passes)
    return module
