"""The bar that decode products must clear on gfx1100, and how a kernel's machine code is held against it.

Every number follows from the card: 800 GB/s and 84 compute units at 2 GHz leave 60 vector slots for a 144-byte block;
the bar asks for a fifth of that (docs/engine-log.md, "Static cost"). It compiles nothing that the caller did not ask
for, and knows nothing of prefill.
"""

from __future__ import annotations

import functools
from dataclasses import asdict, dataclass
from typing import Any

from tinygrad.codegen import to_program
from tinygrad.dtype import dtypes
from tinygrad.helpers import Target
from tinygrad.uop.ops import UOp

from garzone.kernels.amd.compiler import LlvmliteCompiler
from garzone.kernels.amd.listing import LANES, Listing, parse
from garzone.kernels.amd.renderer import AMDGarzoneRenderer
from garzone.kernels.gpu.intrinsics import AMD
from garzone.kernels.gpu.matvec import QUANTS, Plan, activation_words, is_float, matvec, plan
from garzone.kernels.gpu.quants import Quant, block_elements, units
from garzone.kernels.layouts import BLOCK, GGMLType

ARCH = "gfx1100"
SIZE = 8192  # rows and columns: large enough that every type has whole steps

_Q4_K_BYTES, _Q4_K_SLOTS, _Q6_K_SLOTS = 144, 12.0, 16.0
_Q4_K_MEMORY, _Q6_K_MEMORY = 1.0, 1.25
_ACTIVATION_BYTES = 80.0  # a 256 weights, for launches of 8,192 rows and more
_BEFORE_WAIT, _IN_FLIGHT = 1 << 10, 8 << 10
_MOST_VGPRS = 128
_MIN_WAVES = 1000
# Bytes of a lane's piece that hold numbers, as opposed to scales: what must be read sixteen bytes at a time, as far as
# sixteen go into them.
_NUMBER_BYTES = {
    **dict.fromkeys((GGMLType.Q4_0, GGMLType.Q4_1, GGMLType.Q5_0, GGMLType.Q5_1, GGMLType.IQ4_NL, GGMLType.MXFP4), 16),
    **dict.fromkeys((GGMLType.Q8_0, GGMLType.Q4_K, GGMLType.IQ4_XS, GGMLType.F16, GGMLType.BF16), 32),
    GGMLType.Q2_K: 16,
    GGMLType.Q3_K: 24,
    GGMLType.Q5_K: 64,
    GGMLType.Q6_K: 48,
    GGMLType.F32: 64,
}


@functools.lru_cache(maxsize=64)
def compiled(ggml_type: GGMLType, cut: Plan | None = None, outputs: int = SIZE, inputs: int = SIZE) -> Listing:
    """The machine code of one decode product."""
    quant = QUANTS[ggml_type]
    sizes = (
        (dtypes.float, outputs),
        (quant.dtype, outputs * inputs // block_elements(quant) * units(quant)),
        (dtypes.uint32, activation_words(quant, inputs)),
    )
    arguments = [UOp.placeholder((size,), dtype, slot) for slot, (dtype, size) in enumerate(sizes)]
    renderer = AMDGarzoneRenderer(Target("AMD", "GARZONE", ARCH))
    program = to_program(matvec(quant, outputs, inputs, AMD, cut=cut)(*arguments), renderer)
    return parse(LlvmliteCompiler(ARCH).assembly(program.src[2].arg))


@dataclass(frozen=True)
class Cost:
    """What a product of one type costs; "a block" is what the file has as one, or 16 weights of a float type.

    Attributes:
        type: of the weights.
        rows: that a wave computes at once.
        block_bytes: of the file.
        slots: vector ALU slots a block in the steady-state loop; ``slots_bar`` is what is allowed.
        memory: vector memory instructions a block; ``memory_bar`` is what is allowed.
        wide_loads: loads of 16 bytes in the loop; ``wide_loads_bar`` is how many the numbers of all rows fill.
        load_widths: loads in the loop by bytes.
        activation_bytes: that a wave reads for 256 weights of a row.
        quarter_rate: instructions at a quarter of the rate in the loop.
        divergent: branches in the loop that depend on the lane.
        dot4: integer dot products in the loop; ``dot4_bar`` is how many the weights need at least.
        vgprs: vector registers.
        waves_per_simd: that they leave room for.
        bytes_before_wait: of loads that a wave issues before it first waits.
        spills: registers in memory.
        waves: of a launch of 3,584 outputs, the smallest of a 7B model's attention.
    """

    type: str
    rows: int
    block_bytes: int
    slots: float
    slots_bar: float
    memory: float
    memory_bar: float
    wide_loads: int
    wide_loads_bar: int
    load_widths: dict[int, int]
    activation_bytes: float
    quarter_rate: int
    divergent: int
    dot4: int
    dot4_bar: int
    vgprs: int
    waves_per_simd: int
    bytes_before_wait: int
    spills: int
    waves: int

    @property
    def bytes_in_flight(self) -> int:
        """Of a SIMD, when all waves that fit have issued what they issue before they wait."""
        return self.bytes_before_wait * self.waves_per_simd

    @property
    def misses(self) -> list[str]:
        """The points of the bar that are not met."""
        points = {
            f"slots {self.slots:.2f} > {self.slots_bar:.2f}": self.slots <= self.slots_bar,
            f"memory {self.memory:.2f} > {self.memory_bar:.2f}": self.memory <= self.memory_bar,
            f"wide loads {self.wide_loads} < {self.wide_loads_bar}": self.wide_loads >= self.wide_loads_bar,
            f"activation bytes {self.activation_bytes:.0f}": self.activation_bytes <= self._activation_bar,
            f"quarter rate {self.quarter_rate}": not self.quarter_rate,
            f"divergent branches {self.divergent}": not self.divergent,
            f"dot4 {self.dot4} < {self.dot4_bar}": self.dot4 >= self.dot4_bar,
            f"vgprs {self.vgprs}": self.vgprs <= _MOST_VGPRS,
            f"bytes before the first wait {self.bytes_before_wait}": self.bytes_before_wait >= _BEFORE_WAIT,
            f"bytes in flight {self.bytes_in_flight}": self.bytes_in_flight >= _IN_FLIGHT,
            f"spills {self.spills}": not self.spills,
            f"waves {self.waves}": self.waves >= _MIN_WAVES,
        }
        return [point for point, is_met in points.items() if not is_met]

    @property
    def _activation_bar(self) -> float:
        # Two rows a wave are for smaller launches, where twice as much is allowed; floats are four bytes, not 1.25.
        return _ACTIVATION_BYTES * (4 / self.rows) * (3.2 if self.dot4_bar == 0 else 1.0)

    def as_json(self) -> dict[str, Any]:
        """All of it."""
        return {**asdict(self), "bytes_in_flight": self.bytes_in_flight, "misses": self.misses}


def slots_bar(ggml_type: GGMLType) -> float:
    """Vector slots allowed a block: 12 for Q4_K, 16 for Q6_K, the others in proportion to Q4_K's bytes."""
    return _Q6_K_SLOTS if ggml_type is GGMLType.Q6_K else _block_bytes(QUANTS[ggml_type]) / _Q4_K_BYTES * _Q4_K_SLOTS


def _memory_bar(ggml_type: GGMLType) -> float:
    if ggml_type is GGMLType.Q6_K:
        return _Q6_K_MEMORY
    return _block_bytes(QUANTS[ggml_type]) / _Q4_K_BYTES * _Q4_K_MEMORY


def _block_bytes(quant: Quant) -> int:
    return units(quant) * quant.dtype.itemsize


def cost(ggml_type: GGMLType, rows: int) -> Cost:
    """Compiles a product of ``rows`` rows a wave and counts."""
    quant = QUANTS[ggml_type]
    code = compiled(ggml_type, Plan(rows, 1))
    loop, blocks = code.steady_loop, rows * LANES // quant.lanes
    words = activation_words(quant, 256)
    return Cost(
        type=ggml_type.name,
        rows=rows,
        block_bytes=_block_bytes(quant),
        slots=loop.valu_slots / blocks,
        slots_bar=slots_bar(ggml_type),
        memory=loop.vector_memory / blocks,
        memory_bar=_memory_bar(ggml_type),
        wide_loads=loop.load_widths.get(16, 0),
        wide_loads_bar=rows * (_NUMBER_BYTES[ggml_type] // 16),
        load_widths=dict(sorted(loop.load_widths.items())),
        activation_bytes=words * 4 / rows,
        quarter_rate=loop.quarter_rate,
        divergent=loop.divergent_branches,
        dot4=loop.count("v_dot4_i32_iu8"),
        dot4_bar=0 if is_float(quant) else blocks * BLOCK[ggml_type].elements // 4 // LANES,
        vgprs=code.vgprs,
        waves_per_simd=code.waves_per_simd,
        bytes_before_wait=code.bytes_before_first_wait,
        spills=code.spills + loop.scratch,
        waves=plan(quant, 3584, 3584).num_waves(3584),
    )
