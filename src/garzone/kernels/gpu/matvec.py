"""Decode products: packed weights times one or a few quantised activation rows, on any GPU.

A wave computes ``rows`` outputs; its lanes walk along the row in steps, each lane on its own piece of a block. What a
piece is worth is the quant type's business (``quants``); how activations are stored is ``activations``'. It does not
decide when to launch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce

from tinygrad.dtype import AddrSpace, dtypes
from tinygrad.uop.ops import AxisType, KernelInfo, UOp

from garzone.kernels.gpu import k_quants, legacy_quants
from garzone.kernels.gpu.activations import Kernel, Row, num_words
from garzone.kernels.gpu.intrinsics import LANES, Group, Intrinsics
from garzone.kernels.gpu.quants import Quant, Step, units
from garzone.kernels.layouts import BLOCK, GGMLType

QUANTS: dict[GGMLType, Quant] = {
    quant.ggml_type: quant
    for quant in (
        legacy_quants.Q4_0,
        legacy_quants.Q4_1,
        legacy_quants.Q5_0,
        legacy_quants.Q5_1,
        legacy_quants.Q8_0,
        legacy_quants.IQ4_NL,
        legacy_quants.MXFP4,
        k_quants.Q2_K,
        k_quants.Q3_K,
        k_quants.Q4_K,
        k_quants.Q5_K,
        k_quants.Q6_K,
        k_quants.IQ4_XS,
    )
}

# Fewer waves than this leave a 7900 XT (168 SIMDs) without enough loads in flight.
_MIN_WAVES = 1000
_MAX_SPLITS = 8
# Wished for: all the waves that a SIMD can hold, 96 registers each. The name carries the number to the compiler, which
# grants what it can without spilling (amd/compiler.py).
_WAVES_PER_SIMD = 16


@dataclass(frozen=True)
class Plan:
    """How a product is cut into waves.

    Attributes:
        rows: outputs a wave computes at once; activations are loaded once for all of them.
        splits: waves that share the row's length; they form one workgroup and add up through local memory.
    """

    rows: int
    splits: int

    def num_waves(self, num_outputs: int) -> int:
        """Waves of a launch."""
        return -(-num_outputs // self.rows) * self.splits


def steps_of(quant: Quant, num_inputs: int) -> int:
    """Steps a wave takes along a row of ``num_inputs`` weights."""
    return -(-num_inputs // (BLOCK[quant.ggml_type].elements * (LANES // quant.lanes)))


def plan(quant: Quant, num_outputs: int, num_inputs: int) -> Plan:
    """Four rows a wave where registers allow it and that leaves enough waves, then two, then one; rows are split last.

    A launch that cannot reach 1,000 waves at all takes what gives most of them.
    """
    steps = steps_of(quant, num_inputs)
    candidates = [Plan(4, 1), Plan(2, 1), Plan(4, 2), Plan(2, 2), Plan(2, 4), Plan(1, 2), Plan(1, 4), Plan(1, 8)]
    possible = [c for c in candidates if c.splits <= min(steps, _MAX_SPLITS) and c.rows <= quant.max_rows]
    enough = [c for c in possible if c.num_waves(num_outputs) >= _MIN_WAVES]
    return enough[0] if enough else max(possible, key=lambda c: c.num_waves(num_outputs))


def matvec(
    quant: Quant,
    num_outputs: int,
    num_inputs: int,
    intrinsics: Intrinsics,
    *,
    cut: Plan | None = None,
    num_columns: int = 1,
    has_addend: bool = False,
) -> Kernel:
    """A kernel for ``custom_kernel``: (out, weights, activations[, addend]).

    Args:
        quant: the weights' type.
        num_outputs: rows of the weight matrix; its blocks lie row after row as in the GGUF file.
        num_inputs: columns of the weight matrix, a multiple of the block.
        intrinsics: of the renderer.
        cut: how to divide the work; by default ``plan``'s choice.
        num_columns: activation rows (tokens) that share one pass over the weights.
        has_addend: whether a float32 of the output's shape (a residual, a bias) is added.

    Shapes: out and addend float32 [num_columns, num_outputs]; weights in ``quant.dtype``; activations uint32
    [num_columns, num_words(num_inputs)].
    """
    cut = cut or plan(quant, num_outputs, num_inputs)
    elements = BLOCK[quant.ggml_type].elements
    if num_inputs % elements:
        raise ValueError(f"a row of {num_inputs} is no multiple of {quant.ggml_type.name}'s block of {elements}")
    num_blocks = num_inputs // elements
    blocks_per_step = LANES // quant.lanes
    steps = -(-steps_of(quant, num_inputs) // cut.splits)
    is_exact = steps * cut.splits * blocks_per_step == num_blocks
    name = f"matvec_{quant.ggml_type.name}_{num_outputs}_{num_inputs}_{num_columns}_r{cut.rows}_s{cut.splits}"

    def kernel(out: UOp, weights: UOp, activations: UOp, *rest: UOp) -> UOp:
        tile, lane = UOp.special(-(-num_outputs // cut.rows), "gidx0"), UOp.special(LANES, "lidx0")
        split = UOp.special(cut.splits, "lidx1") if cut.splits > 1 else UOp.const(0, dtypes.int)
        out, weights, activations = out.flatten(), weights.flatten(), activations.flatten()
        outputs = [_row(tile * cut.rows + r, num_outputs) for r in range(cut.rows)]
        sums = UOp.placeholder((cut.rows * num_columns,), dtypes.float, 0, addrspace=AddrSpace.REG)
        sums = sums.after(sums.store(sums.const_like(0.0)))
        trip = UOp.range(steps, 1, AxisType.REDUCE)
        block = (split * steps + trip) * blocks_per_step + lane // quant.lanes
        keep = _keep_all
        if not is_exact:
            inside = block < num_blocks
            keep = _keep_where(inside)
            block = inside.where(block, num_blocks - 1)
        columns = [
            Step(intrinsics, Row(activations, c * num_words(num_inputs), num_inputs), block, lane % quant.lanes, keep)
            for c in range(num_columns)
        ]
        prepared = [quant.prepare(step) for step in columns]
        loaded = [quant.load(columns[0], weights, (o * num_blocks + block) * units(quant)) for o in outputs]
        stores: list[UOp] = []
        for c, step in enumerate(columns):
            for r, row in enumerate(loaded):
                at = c * cut.rows + r
                total = sums.after(trip)[at].load() + quant.dot(step, row, prepared[c])
                stores.append(sums[at].store(total))
        sums = sums.after(UOp.group(*stores).end(trip))
        group = Group(intrinsics, split * LANES + lane, LANES * cut.splits)
        totals = [group.sum(sums[i].load()) for i in range(cut.rows * num_columns)]
        if cut.splits > 1:
            totals = _across(totals, split, cut.splits)
        results: list[UOp] = []
        for c in range(num_columns):
            for r, output in enumerate(outputs):
                total, place = totals[c * cut.rows + r], output + c * num_outputs
                if has_addend:
                    total = total + rest[0].flatten()[place].load()
                results.append(out[place].store(total))  # by every lane: the same value, cheaper than a branch
        full_name = f"{name}{'_add' if has_addend else ''}_w{_WAVES_PER_SIMD}"
        return UOp.group(*results).sink(arg=KernelInfo(name=full_name, opts_to_apply=()))

    return kernel


def _row(row: UOp, num_outputs: int) -> UOp:
    """The row itself, or the last one where the tile reaches beyond it: that is then computed twice."""
    return (row < num_outputs).where(row, num_outputs - 1) if row.vmax >= num_outputs else row


def _keep_all(value: UOp) -> UOp:
    return value


def _keep_where(inside: UOp) -> Callable[[UOp], UOp]:
    return lambda value: inside.where(value, 0.0)


def _across(totals: list[UOp], split: UOp, splits: int) -> list[UOp]:
    """Adds the totals of the waves that share the rows; every lane gets the results."""
    count = len(totals)
    shared = UOp.placeholder((splits * count,), dtypes.float, 1, addrspace=AddrSpace.LOCAL)
    shared = shared.after(UOp.group(*[shared[split * count + i].store(total) for i, total in enumerate(totals)]))
    return [reduce(lambda a, b: a + b, [shared[s * count + i].load() for s in range(splits)]) for i in range(count)]
