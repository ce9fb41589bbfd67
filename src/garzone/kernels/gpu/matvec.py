"""Decode products: packed weights times one or a few quantised activation rows, on any GPU.

A wave computes ``rows`` outputs; its lanes walk along the row in steps, each lane on its own piece of a block. What a
piece is worth is the quant type's business (``quants``), what becomes of the sums ``finish``'; how activations are
stored is ``activations``'. It does not decide when to launch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce

from tinygrad.dtype import AddrSpace, dtypes
from tinygrad.uop.ops import AxisType, UOp

from garzone.kernels.gpu import arranged_quants, float_types, k_quants, legacy_quants
from garzone.kernels.gpu.activations import Kernel, Row, num_words
from garzone.kernels.gpu.finish import Destination, Finish, Floats, Sums, clamped
from garzone.kernels.gpu.intrinsics import LANES, Group, Intrinsics, described
from garzone.kernels.gpu.programs import remembered
from garzone.kernels.gpu.quants import Quant, Step, block_elements, units
from garzone.kernels.layouts import GGMLType

QUANTS: dict[GGMLType, Quant] = {
    quant.ggml_type: quant
    for quant in (
        legacy_quants.Q4_0,
        legacy_quants.Q4_1,
        legacy_quants.Q5_0,
        legacy_quants.Q5_1,
        legacy_quants.Q8_0,
        legacy_quants.IQ4_NL,
        arranged_quants.MXFP4,
        arranged_quants.Q2_K,
        arranged_quants.Q3_K,
        k_quants.Q4_K,
        k_quants.Q5_K,
        k_quants.Q6_K,
        k_quants.IQ4_XS,
        float_types.F16,
        float_types.BF16,
        float_types.F32,
    )
}

# Fewer waves than this leave a 7900 XT (168 SIMDs) without enough loads in flight.
MIN_WAVES = 1000
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


def is_float(quant: Quant) -> bool:
    """Whether the weights are floats in the file, and are therefore multiplied by float activations."""
    return quant.ggml_type in float_types.TYPES


def activation_words(quant: Quant, num_inputs: int) -> int:
    """Words of one row of activations for weights of this type."""
    return num_inputs if is_float(quant) else num_words(num_inputs)


def steps_of(quant: Quant, num_inputs: int) -> int:
    """Steps a wave takes along a row of ``num_inputs`` weights."""
    return -(-num_inputs // (block_elements(quant) * (LANES // quant.lanes)))


def plan(quant: Quant, num_outputs: int, num_inputs: int, *, num_rows: int = 0, num_tokens: int = 1) -> Plan:
    """Four rows a wave where registers allow it and that leaves enough waves, if need be two waves to a row's length.

    Then two rows, then one; rows are split further last.

    A launch that cannot reach 1,000 waves at all takes what gives most of them. ``num_rows`` asks for that many rows a
    wave and leaves only the splits to choose. Several tokens take registers, too: then two rows are the most.
    """
    steps = steps_of(quant, num_inputs)
    candidates = [Plan(4, 1), Plan(4, 2), Plan(2, 1), Plan(2, 2), Plan(2, 4), Plan(1, 2), Plan(1, 4), Plan(1, 8)]
    if num_rows:
        candidates = [Plan(num_rows, splits) for splits in (1, 2, 4, 8)]
    most_rows = num_rows or (quant.max_rows if num_tokens == 1 else 2)
    possible = [c for c in candidates if c.splits <= min(steps, _MAX_SPLITS) and c.rows <= most_rows]
    enough = [c for c in possible if c.num_waves(num_outputs) >= MIN_WAVES]
    return enough[0] if enough else max(possible, key=lambda c: c.num_waves(num_outputs))


@remembered
def matvec(
    quant: Quant,
    num_outputs: int,
    num_inputs: int,
    intrinsics: Intrinsics,
    *,
    cut: Plan | None = None,
    num_tokens: int = 1,
    together: int = 4,
    finish: Finish | None = None,
) -> Kernel:
    """A kernel for ``custom_kernel``: (out, weights, activations, *addends), or what ``finish`` asks for.

    Args:
        quant: the weights' type.
        num_outputs: rows of the weight matrix; its blocks lie row after row as in the GGUF file.
        num_inputs: columns of the weight matrix, a multiple of the block.
        intrinsics: of the renderer.
        cut: how to divide the work; by default ``plan``'s choice.
        num_tokens: activation rows.
        together: how many of them share one pass over the weights; the launch makes as many passes as are needed.
        finish: what becomes of the sums; by default they are stored as float32.

    Buffers: out float32 [num_tokens, width of the destination]; weights in ``quant.dtype``; activations uint32
    [num_tokens, activation_words(quant, num_inputs)], as ``quantise`` writes them: float32 for weights that are floats,
    int8 for all others.
    """
    cut = cut or plan(quant, num_outputs, num_inputs)
    if num_inputs % block_elements(quant):
        block = f"{quant.ggml_type.name}'s block of {block_elements(quant)}"
        raise ValueError(f"a row of {num_inputs} is no multiple of {block}")
    done = finish or Floats(num_outputs, Destination(num_outputs))
    waves = done.waves(cut.rows)
    if waves > 1 and cut.splits > 1:
        raise ValueError("waves that share a span of results cannot share rows, too")
    num_columns = min(together, num_tokens)
    name = f"matvec_{quant.ggml_type.name}_{num_outputs}_{num_inputs}_{num_tokens}"
    name += f"_r{cut.rows}_s{cut.splits}{done.suffix}_w{_WAVES_PER_SIMD}"

    def kernel(*buffers: UOp) -> UOp:
        outs, (weights, activations, *rest) = buffers[: done.num_outs], buffers[done.num_outs :]
        own, lane = UOp.special(done.num_tiles(cut.rows) // waves, "gidx0"), UOp.special(LANES, "lidx0")
        batch = UOp.special(-(-num_tokens // num_columns), "gidx1")
        inner = UOp.special(cut.splits * waves, "lidx1") if cut.splits * waves > 1 else UOp.const(0)
        split = inner if waves == 1 else UOp.const(0)
        tile = own if waves == 1 else own * waves + inner
        tokens = [clamped(batch * num_columns + c, num_tokens) for c in range(num_columns)]
        rows = done.rows(tile, cut.rows)
        walk = _Walk(quant, num_inputs, cut.splits, intrinsics)
        sums = walk.sums(weights.flatten(), rows, (activations.flatten(), tokens), split, lane)
        group = Group(intrinsics, inner * LANES + lane, LANES * cut.splits * waves)
        totals = [group.sum(sums[i].load()) for i in range(len(rows) * num_columns)]
        if cut.splits > 1:
            totals = _across(totals, split, cut.splits)
        stores: list[UOp] = []
        for c, token in enumerate(tokens):
            is_token = batch * num_columns + c < num_tokens if num_tokens % num_columns else None
            found = Sums(tile, token, is_token, totals[c * len(rows) : (c + 1) * len(rows)], group)
            stores += done.store(found, tuple(out.flatten() for out in outs), tuple(rest))
        return UOp.group(*stores).sink(arg=described(name), tag=1)

    return kernel


class _Walk:
    """The loop of a wave along rows of weights."""

    def __init__(self, quant: Quant, num_inputs: int, splits: int, intrinsics: Intrinsics):
        self._quant, self._num_inputs, self._intrinsics = quant, num_inputs, intrinsics
        self._num_blocks = num_inputs // block_elements(quant)
        self._blocks_per_step = LANES // quant.lanes
        self._steps = -(-steps_of(quant, num_inputs) // splits)
        self._is_exact = self._steps * splits * self._blocks_per_step == self._num_blocks

    def sums(self, weights: UOp, rows: list[UOp], activations: tuple[UOp, list[UOp]], split: UOp, lane: UOp) -> UOp:
        """Registers with the lane's sum for every token and row, in this order."""
        quant, (buffer, tokens) = self._quant, activations
        sums = UOp.placeholder((len(rows) * len(tokens),), dtypes.float, 0, addrspace=AddrSpace.REG)
        sums = sums.after(sums.store(sums.const_like(0.0)))
        trip = UOp.range(self._steps, 1, AxisType.REDUCE)
        block = (split * self._steps + trip) * self._blocks_per_step + lane // quant.lanes
        keep = _keep_all
        if not self._is_exact:
            inside = block < self._num_blocks
            keep = _keep_where(inside)
            block = inside.where(block, self._num_blocks - 1)
        words = activation_words(quant, self._num_inputs)
        steps = [
            Step(self._intrinsics, Row(buffer, token * words, self._num_inputs), block, lane % quant.lanes, keep)
            for token in tokens
        ]
        prepared = [quant.prepare(step) for step in steps]
        loaded = [quant.load(steps[0], weights, (row * self._num_blocks + block) * units(quant)) for row in rows]
        stores: list[UOp] = []
        for c, step in enumerate(steps):
            for r, row in enumerate(loaded):
                at = c * len(rows) + r
                total = sums.after(trip)[at].load()
                for term in quant.dot(step, row, prepared[c]):
                    total = total + term
                stores.append(sums[at].store(total))
        return sums.after(UOp.group(*stores).end(trip))


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
