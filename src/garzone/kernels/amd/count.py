"""Prints what every decode product costs on gfx1100: `python -m garzone.kernels.amd.count`. Needs no card.

It compiles and counts; what the counts should be is in docs/engine-log.md and held by the tests.
"""

from __future__ import annotations

from tinygrad.codegen import to_program
from tinygrad.dtype import dtypes
from tinygrad.helpers import Target
from tinygrad.uop.ops import UOp

from garzone.kernels.amd.compiler import LlvmliteCompiler
from garzone.kernels.amd.listing import LANES, Listing, parse
from garzone.kernels.amd.renderer import AMDGarzoneRenderer
from garzone.kernels.gpu.intrinsics import AMD
from garzone.kernels.gpu.matvec import QUANTS, Plan, activation_words, matvec
from garzone.kernels.gpu.quants import Quant, block_elements, units

ARCH = "gfx1100"
_SIZE = 8192  # rows and columns: large enough that every type has whole steps


def compiled(quant: Quant, cut: Plan, outputs: int = _SIZE, inputs: int = _SIZE) -> Listing:
    """The machine code of one decode product."""
    sizes = (
        (dtypes.float, outputs),
        (quant.dtype, outputs * inputs // block_elements(quant) * units(quant)),
        (dtypes.uint32, activation_words(quant, inputs)),
    )
    arguments = [UOp.placeholder((size,), dtype, slot) for slot, (dtype, size) in enumerate(sizes)]
    renderer = AMDGarzoneRenderer(Target("AMD", "GARZONE", ARCH))
    program = to_program(matvec(quant, outputs, inputs, AMD, cut=cut)(*arguments), renderer)
    return parse(LlvmliteCompiler(ARCH).assembly(program.src[2].arg))


def main() -> None:
    """Prints one line a type and number of rows."""
    print("type rows block-bytes slots/block vmem/block load-widths vgprs waves/simd bytes-before-wait spills")
    for ggml_type, quant in QUANTS.items():
        for rows in (4, 2):
            code = compiled(quant, Plan(rows, 1))
            loop, blocks = code.steady_loop, rows * LANES // quant.lanes
            widths = "+".join(f"{count}x{width}" for width, count in sorted(loop.load_widths.items(), reverse=True))
            print(
                ggml_type.name,
                rows,
                units(quant) * quant.dtype.itemsize,
                f"{loop.valu_slots / blocks:.2f}",
                f"{loop.vector_memory / blocks:.2f}",
                widths,
                code.vgprs,
                code.waves_per_simd,
                code.bytes_before_first_wait,
                code.spills,
            )


if __name__ == "__main__":
    main()
