"""The GPU kernels as implementations of the registry's operations, for AMD, NVIDIA and Apple cards.

Says what is on offer for which device and builds the embedding; ``linear`` and ``heads`` build the rest, and
``program`` runs a model that is made of nothing else. What ran where is in docs/gpu.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from tinygrad.dtype import dtypes
from tinygrad.tensor import Tensor
from tinygrad.uop.ops import UOp

from garzone.kernels.dequantise import can_dequantise, dequantise
from garzone.kernels.gpu.activations import Kernel
from garzone.kernels.gpu.batch import empty, run
from garzone.kernels.gpu.heads import build_attention
from garzone.kernels.gpu.intrinsics import described
from garzone.kernels.gpu.linear import build_linear
from garzone.kernels.gpu.matvec import QUANTS
from garzone.kernels.gpu.programs import remembered
from garzone.kernels.gpu.quants import block_elements
from garzone.kernels.gpu.weights import upload
from garzone.kernels.layouts import GGMLType
from garzone.kernels.registry import EmbedSpec, Offer, Operation, Place, Step

RANK = 100  # above anything portable
DEVICES = ("AMD", "CUDA", "NV", "METAL")


@remembered
def _gather_kernel(rows: int, units: int) -> Kernel:
    """Copies the rows of a table that tokens name: (out, table, tokens); ``units`` buffer elements a row."""

    def kernel(out: UOp, table: UOp, tokens: UOp) -> UOp:
        part, row, thread = (
            UOp.special(-(-units // 256), "gidx0"),
            UOp.special(rows, "gidx1"),
            UOp.special(256, "lidx0"),
        )
        index = part * 256 + thread
        inside = index < units
        safe = inside.where(index, 0)
        value = table.flatten()[tokens[row].load() * units + safe].load()
        store = out.flatten()[(row * units + safe).valid(inside)].store(value)
        return store.sink(arg=described(f"gather_rows_{rows}_{units}"), tag=1)

    return kernel


def _build_embed(spec: EmbedSpec, place: Place) -> Callable[[Step], Tensor] | None:
    table = spec.table
    if table.columns % block_elements(QUANTS[table.ggml_type]) or not can_dequantise(table.ggml_type):
        return None
    if spec.scale != 1:
        place.warn_once("the GPU kernels do not compute scaled embeddings: the portable ones do, slowly")
        return None
    weights = upload((table,), place, in_order_of_file=True)
    units = weights.tensor.numel() // weights.rows

    def embed(step: Step) -> Tensor:
        out = empty(place, weights.quant.dtype, step.rows, int(units))
        packed = run(_gather_kernel(step.rows, int(units)), step, out, weights.tensor, step.tokens)[0]
        values = dequantise(packed.bitcast(dtypes.uint8), table.ggml_type)
        return values.reshape(step.rows, table.columns).contiguous()

    return embed


_TYPES = frozenset(QUANTS)
_PARTS: tuple[tuple[str, Operation, Any, frozenset[GGMLType]], ...] = (
    ("gpu embed", Operation.EMBED, _build_embed, _TYPES),
    ("gpu linear", Operation.LINEAR, build_linear, _TYPES),
    ("gpu attention", Operation.ATTENTION, build_attention, frozenset()),
)


def offers(devices: tuple[str, ...] = DEVICES) -> tuple[Offer, ...]:
    """What GPUs make possible, for the devices named."""
    return tuple(
        Offer(f"{device} {name}", operation, build, device, ggml_types, RANK, decodes_apart=True)
        for device in devices
        for name, operation, build, ggml_types in _PARTS
    )


def can_batch(chosen: Iterable[str]) -> bool:
    """Whether a model built from the offers of these names can be run as ``program.Program``."""
    names = {name for name, *_ in _PARTS}
    return all(name.partition(" ")[2] in names for name in chosen)
