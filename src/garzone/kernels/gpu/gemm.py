"""Prefill products on RDNA3's matrix instructions: packed weights times many rows of f16 activations.

A wave computes 64 tokens by 32 outputs with 16x16x16 f16 matrix products and float32 sums. Weights are unpacked in
registers, by the lane that multiplies them, and used for all the wave's tokens. Types are ``quants``' business,
activations ``activations``'. Other GPUs take ``matvec`` with several columns.

Register layout of a 16x16x16 product (https://gpuopen.com/learn/wmma_on_rdna3/): lane l holds 16 elements of row l % 16
of the first operand and of column l % 16 of the second; of the result, element i of lane l is row 2i + l / 16, column l
% 16.
"""

from __future__ import annotations

from tinygrad.dtype import AddrSpace, dtypes
from tinygrad.uop.ops import AxisType, UOp

from garzone.kernels.gpu.activations import Kernel, Row
from garzone.kernels.gpu.finish import Destination, clamped
from garzone.kernels.gpu.intrinsics import LANES, Intrinsics, described, halves_of
from garzone.kernels.gpu.programs import remembered
from garzone.kernels.gpu.quants import Quant, Run, Step, block_elements, units

TILE = 16
_TOKEN_TILES = 4
_OUTPUT_TILES = 2
_ELEMENTS = 8  # of a result tile in one lane
# Small weights would have scales that f16 only holds as subnormals: they are multiplied by this on their way into
# f16, and the sums divided. Weights up to 1,000 stay in range.
_LIFT = 64.0


@remembered
def gemm(
    quant: Quant, shape: tuple[int, int, int], intrinsics: Intrinsics, destination: Destination | None = None
) -> Kernel:
    """A kernel for ``custom_kernel``: (out, weights, activations, *addends).

    Args:
        quant: the weights' type.
        shape: rows of the weight matrix; its columns, a multiple of the block; tokens, rows of the activations.
        intrinsics: of a renderer with ``has_wmma``.
        destination: where in a wider output the results go, and what is added to them.

    Buffers: out float32 [tokens, destination.width]; weights in ``quant.dtype``; activations uint32 [tokens, columns /
    2] as ``quantise(output="half")`` writes them.
    """
    num_outputs, num_inputs, num_tokens = shape
    destination = destination or Destination(num_outputs)
    elements = block_elements(quant)
    num_blocks = num_inputs // elements

    def kernel(out: UOp, weights: UOp, activations: UOp, *rest: UOp) -> UOp:
        output_tile = UOp.special(-(-num_outputs // (TILE * _OUTPUT_TILES)), "gidx0")
        token_tile = UOp.special(-(-num_tokens // (TILE * _TOKEN_TILES)), "gidx1")
        lane = UOp.special(LANES, "lidx0")
        out, weights, activations = out.flatten(), weights.flatten(), activations.flatten()
        column = lane % TILE
        rows = [
            clamped(output_tile * (TILE * _OUTPUT_TILES) + o * TILE + column, num_outputs) for o in range(_OUTPUT_TILES)
        ]
        first_token = token_tile * (TILE * _TOKEN_TILES)
        tokens = [clamped(first_token + t * TILE + column, num_tokens) for t in range(_TOKEN_TILES)]
        tiles = _TOKEN_TILES * _OUTPUT_TILES
        sums = UOp.placeholder((tiles * _ELEMENTS,), dtypes.float, 0, addrspace=AddrSpace.REG)
        sums = sums.after(sums.store(sums.const_like(0.0)))
        trip = UOp.range(num_blocks * quant.lanes, 0, AxisType.REDUCE)
        block, piece = trip // quant.lanes, trip % quant.lanes
        step = Step(intrinsics, Row(activations, 0, num_inputs), block, piece, lambda value: value)
        before = sums.after(trip)
        state = [[before[t * _ELEMENTS + i].load() for i in range(_ELEMENTS)] for t in range(tiles)]
        loaded = [quant.load(step, weights, (row * num_blocks + block) * units(quant)) for row in rows]
        runs = [quant.runs(step, one) for one in loaded]
        for r in range(len(runs[0])):
            second = [_halves(intrinsics, one[r]) for one in runs]
            start = (block * elements + runs[0][r].element) // 2
            for t, token in enumerate(tokens):
                at = token * (num_inputs // 2) + start
                first = halves_of([activations[at + i].load() for i in range(TILE // 2)])
                for o in range(_OUTPUT_TILES):
                    tile = t * _OUTPUT_TILES + o
                    product = UOp.wmma(
                        UOp.stack(*first),
                        UOp.stack(*second[o]),
                        UOp.stack(*state[tile]),
                        (TILE, TILE, TILE),
                        "AMD",
                        LANES,
                    )
                    state[tile] = [product.index(UOp.const(i)) for i in range(_ELEMENTS)]
        stores = [sums[t * _ELEMENTS + i].store(state[t][i]) for t in range(tiles) for i in range(_ELEMENTS)]
        sums = sums.after(UOp.group(*stores).end(trip))
        results: list[UOp] = []
        first_output = output_tile * (TILE * _OUTPUT_TILES) + column
        for t in range(_TOKEN_TILES):
            for o, row in enumerate(rows):
                for i in range(_ELEMENTS):
                    token = first_token + t * TILE + 2 * i + lane // TILE
                    inside = (token < num_tokens) & (first_output + o * TILE < num_outputs)
                    token = clamped(token, num_tokens)
                    total = sums[(t * _OUTPUT_TILES + o) * _ELEMENTS + i].load() * (1.0 / _LIFT)
                    place = destination.place(token, row).valid(inside)
                    results.append(out[place].store(destination.add(token, row, total, rest)))
        name = f"gemm_{quant.ggml_type.name}_{num_outputs}_{num_inputs}_{num_tokens}{destination.suffix}"
        return UOp.group(*results).sink(arg=described(name), tag=1)

    return kernel


def _halves(intrinsics: Intrinsics, run: Run) -> list[UOp]:
    """A run's weights as f16, of each four first 0 and 2, then 1 and 3, multiplied by ``_LIFT``."""
    if run.numbers is not None:
        return [(number.cast(dtypes.float) * _LIFT).cast(dtypes.half) for number in run.numbers]
    scale, minimum = run.scale * _LIFT, None if run.minimum is None else run.minimum * _LIFT
    return [half for word in run.words for half in intrinsics.weights_from_bytes(word, run.offset, scale, minimum)]
