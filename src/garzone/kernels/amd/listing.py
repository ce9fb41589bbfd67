"""Reads an AMDGPU assembly listing and counts what decides a decode kernel's speed on RDNA3.

It does not compile (``compiler.py`` does) and holds no bar: tests compare the counts with the bar in
docs/engine-log.md. Counting follows one rule: a vector ALU instruction takes one slot of a wave32, a quarter-rate one
four, a dual-issued pair one.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

# RDNA3 runs these at a quarter of the rate of an addition (32-bit and 64-bit integer multiply, double, transcendental).
_QUARTER_RATE = re.compile(
    r"v_(mul_lo_[ui]32|mul_hi_[ui]32|mad_[ui]64_[ui]32|mul_f64|add_f64|fma_f64|exp_f|log_f|rcp_|rsq_|sqrt_|sin_|cos_"
    r"|lshlrev_b64|lshrrev_b64|ashrrev_i64)"
)
_WIDTHS = {"b128": 16, "b96": 12, "b64": 8, "b32": 4, "b16": 2, "u16": 2, "i16": 2, "u8": 1, "i8": 1}
_LABEL = re.compile(r"^(\.LBB\w+):")
_INSTRUCTION = re.compile(r"^\t([a-z]\w+)(?:\s+(.*?))?\s*(?:;.*)?$")
_RESOURCE = re.compile(r"^ +\.(vgpr_count|vgpr_spill_count|sgpr_spill_count|private_segment_fixed_size):\s+(\d+)")


@dataclass(frozen=True)
class Instruction:
    """One machine instruction: its mnemonic and the rest of the line."""

    name: str
    operands: str


@dataclass(frozen=True)
class Loop:
    """Counts over the instructions of one loop, for one trip of one wave (32 lanes).

    Attributes:
        instructions: the body, from the label that is jumped back to up to the jump.
        valu_slots: vector ALU slots, quarter-rate instructions counted four times.
        quarter_rate: how many quarter-rate instructions are among them.
        vector_memory: global loads and stores.
        load_widths: global loads by bytes a lane.
        scratch: accesses to spilled registers.
        divergent_branches: jumps that depend on which lanes are active.
    """

    instructions: tuple[Instruction, ...]
    valu_slots: int
    quarter_rate: int
    vector_memory: int
    load_widths: dict[int, int]
    scratch: int
    divergent_branches: int

    def count(self, prefix: str) -> int:
        """How many instructions begin with ``prefix``."""
        return sum(i.name.startswith(prefix) for i in self.instructions)


@dataclass(frozen=True)
class Listing:
    """One kernel's assembly.

    Attributes:
        instructions: all of them, in order.
        loops: every loop, in order of its first instruction.
        vgprs: vector registers a wave takes.
        spills: registers spilled, vector and scalar, plus bytes of private memory.
    """

    instructions: tuple[Instruction, ...]
    loops: tuple[Loop, ...]
    vgprs: int
    spills: int

    @property
    def steady_loop(self) -> Loop:
        """The loop with the most vector work: where the kernel spends its time."""
        if not self.loops:
            raise ValueError("the kernel has no loop: give it more than one step to count its steady state")
        return max(self.loops, key=lambda loop: loop.valu_slots)

    @property
    def waves_per_simd(self) -> int:
        """Waves that fit one SIMD by registers: 1536 VGPRs in units of 24, at most 16 (RDNA3, wave32)."""
        return min(16, 1536 // (-(-max(self.vgprs, 1) // 24) * 24))

    @property
    def bytes_before_first_wait(self) -> int:
        """Bytes of global loads a wave issues, from the first one on, before it waits for any (32 lanes)."""
        total = 0
        for instruction in self.instructions:
            if instruction.name.startswith("global_load"):
                total += LANES * _width(instruction.name)
            elif total and instruction.name == "s_waitcnt" and "vmcnt" in instruction.operands:
                break
        return total


LANES = 32


def _width(name: str) -> int:
    return next((size for suffix, size in _WIDTHS.items() if name.endswith(suffix)), 4)


def _count(instructions: Sequence[Instruction]) -> Loop:
    vector = [i for i in instructions if i.name.startswith("v_")]
    quarter = sum(bool(_QUARTER_RATE.match(i.name)) for i in vector)
    widths = Counter(_width(i.name) for i in instructions if i.name.startswith("global_load"))
    return Loop(
        instructions=tuple(instructions),
        valu_slots=len(vector) + 3 * quarter,
        quarter_rate=quarter,
        vector_memory=sum(i.name.startswith(("global_", "buffer_", "flat_")) for i in instructions),
        load_widths=dict(widths),
        scratch=sum(i.name.startswith("scratch_") for i in instructions),
        divergent_branches=sum(i.name.startswith("s_cbranch_exec") for i in instructions),
    )


def parse(assembly: str) -> Listing:
    """Parses what ``LlvmliteCompiler.assembly`` printed for a module with one kernel."""
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    resources: Counter[str] = Counter()
    for line in assembly.splitlines():
        if match := _LABEL.match(line):
            labels[match[1]] = len(instructions)
        elif match := _INSTRUCTION.match(line):
            instructions.append(Instruction(match[1], match[2] or ""))
        elif match := _RESOURCE.match(line):
            resources[match[1]] += int(match[2])
    loops: dict[int, int] = {}
    for position, instruction in enumerate(instructions):
        if instruction.name.startswith(("s_cbranch", "s_branch")):
            start = labels.get(instruction.operands.strip())
            if start is not None and start <= position:
                loops[start] = max(position, loops.get(start, 0))
    vgprs = resources.pop("vgpr_count", 0)
    return Listing(
        instructions=tuple(instructions),
        loops=tuple(_count(instructions[start : end + 1]) for start, end in sorted(loops.items())),
        vgprs=vgprs,
        spills=sum(resources.values()),
    )
