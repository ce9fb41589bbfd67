"""The GPU kernels as implementations of the registry's operations, for AMD, NVIDIA and Apple cards.

Builds: uploads packed weights as the file has them and decides which kernels a step launches. It computes nothing
itself and chooses no device. Nothing of this has run on a card yet: see docs/engine-log.md for what ran where.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from itertools import groupby
from typing import Any

import numpy as np
from tinygrad.device import Device
from tinygrad.dtype import DType, dtypes
from tinygrad.tensor import Tensor
from tinygrad.uop.ops import KernelInfo, UOp

from garzone.core.errors import GGUFError
from garzone.kernels.dequantise import can_dequantise, dequantise
from garzone.kernels.gpu.activations import Kernel, num_words, quantise
from garzone.kernels.gpu.attention import Heads, attend, gather_parts, part_floats, rotate_and_store
from garzone.kernels.gpu.gemm import gemm
from garzone.kernels.gpu.intrinsics import LANES, Intrinsics, intrinsics_for
from garzone.kernels.gpu.matvec import QUANTS, Destination, is_float, matvec
from garzone.kernels.gpu.quants import Quant, block_elements
from garzone.kernels.launch import count, launch, start
from garzone.kernels.layouts import BLOCK, GGMLType
from garzone.kernels.registry import (
    AttentionSpec,
    Cache,
    EmbedSpec,
    LinearSpec,
    Matrix,
    Offer,
    Operation,
    Place,
    RopePairs,
    Step,
)

RANK = 100  # above anything portable
DEVICES = ("AMD", "CUDA", "NV", "METAL")
_MOST_HEAD = 256
_NUMPY: dict[DType, type[np.unsignedinteger]] = {
    dtypes.uint8: np.uint8,
    dtypes.uint16: np.uint16,
    dtypes.uint32: np.uint32,
}

# Byte offsets of the f16 factors in a block (ggml-common.h): the only places where a quantised weight can hold NaN.
_FACTORS = {
    **dict.fromkeys((GGMLType.Q4_0, GGMLType.Q5_0, GGMLType.Q8_0, GGMLType.IQ4_NL, GGMLType.IQ4_XS), (0,)),
    **dict.fromkeys((GGMLType.Q4_1, GGMLType.Q5_1, GGMLType.Q4_K, GGMLType.Q5_K), (0, 2)),
    GGMLType.Q2_K: (80, 82),
    GGMLType.Q3_K: (108,),
    GGMLType.Q6_K: (208,),
}


def _read(matrix: Matrix) -> np.ndarray:
    """The packed bytes of a matrix, checked.

    Raises:
        GGUFError: a factor is not finite; names the tensor.
    """
    raw = np.ascontiguousarray(matrix.read()).reshape(-1).view(np.uint8)
    if matrix.ggml_type in (GGMLType.F16, GGMLType.F32):
        checked = [raw.view(np.float16 if matrix.ggml_type is GGMLType.F16 else np.float32)]
    elif matrix.ggml_type is GGMLType.BF16:
        checked = [(raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)]
    else:
        blocks = raw.reshape(-1, BLOCK[matrix.ggml_type].bytes)
        offsets = _FACTORS.get(matrix.ggml_type, ())
        checked = [np.ascontiguousarray(blocks[:, at : at + 2]).view(np.float16) for at in offsets]
    if not all(np.isfinite(values).all() for values in checked):
        raise GGUFError(
            f"tensor {matrix.name!r}: holds weights that are not finite; the file is damaged, fetch it again"
        )
    return raw


@dataclass(frozen=True)
class Weights:
    """Matrices of one type, one below the other in one buffer."""

    quant: Quant
    rows: int
    columns: int
    tensor: Tensor


def _upload(matrices: tuple[Matrix, ...], place: Place) -> Weights:
    """The packed matrices on the device, made once: a tied embedding serves as output too."""
    key = ("gpu weights", tuple(matrix.name for matrix in matrices))
    if key not in place.shared:
        quant = QUANTS[matrices[0].ggml_type]
        packed = [_read(matrix) for matrix in matrices]
        raw = packed[0] if len(packed) == 1 else np.concatenate(packed)
        tensor = place.upload(raw.view(_NUMPY[quant.dtype]))
        rows = sum(matrix.rows for matrix in matrices)
        place.shared[key] = Weights(quant, rows, matrices[0].columns, tensor)
    return place.shared[key]


def _intrinsics(place: Place) -> Intrinsics:
    if place.device.startswith("AMD"):
        from garzone.kernels.amd.renderer import install  # noqa: PLC0415  # needs llvmlite, an extra

        install(place.device)
    return intrinsics_for(Device[place.device].renderer)


def _run(kernel: Kernel, step: Step, *tensors: Tensor) -> list[Tensor]:
    """Launches on the tensors as flat buffers, which comes back flat.

    A kernel must not see more dimensions: tinygrad 0.14.0 takes a flat index apart for them and, doing so, drops the
    condition of a conditional store.
    """
    return launch(kernel, step, *(tensor.flatten() for tensor in tensors))


def _empty(place: Place, dtype: DType, *shape: int) -> Tensor:
    return Tensor.empty(*shape, dtype=dtype, device=place.device)


class _Linear:
    """One place of a model where activations meet weights."""

    def __init__(self, spec: LinearSpec, place: Place):
        self._spec, self._place, self._intrinsics = spec, place, _intrinsics(place)
        runs = groupby(spec.matrices, key=lambda matrix: matrix.ggml_type)
        self._weights = [_upload(tuple(run), place) for _, run in runs]
        self._norm = None if spec.norm is None else place.upload(spec.norm.astype(np.float32))
        self._bias = None if spec.bias is None else place.upload(spec.bias.astype(np.float32))

    def __call__(self, x: Tensor, step: Step, residual: Tensor | None = None) -> Tensor:
        """See LinearFunction."""
        spec = self._spec
        rows = 1 if spec.last_row else step.rows
        prepared: dict[str, Tensor] = {}
        # A gate and what it lets through, of one type, are one launch in decode.
        fused = spec.gated and len(self._weights) == 1 and not self._uses_gemm(self._weights[0], rows)
        width = spec.out_columns * (2 if spec.gated and not fused else 1)
        out = _empty(self._place, dtypes.float, rows, width)
        whole = () if fused or not spec.gated else (spec.gated,)
        addends = (
            []
            if whole
            else [(True, residual)] * (residual is not None) + [(False, self._bias)] * (self._bias is not None)
        )
        offset = 0
        for weights in self._weights:
            destination = Destination(width, offset, tuple(is_whole for is_whole, _ in addends))
            form = self._form(weights, rows)
            if form not in prepared:
                prepared[form] = self._prepare(x, step, rows, form)
            kernel = self._product(weights, rows, destination, fused=fused)
            added = [tensor for _, tensor in addends if tensor is not None]
            out = _run(kernel, step, out, weights.tensor, prepared[form], *added)[0]
            offset += weights.rows
        if not spec.gated or fused:
            return out.reshape(rows, width)
        result = _empty(self._place, dtypes.float, rows, spec.out_columns)
        kernel = quantise(rows, spec.out_columns, self._intrinsics, source="swiglu", output="float")
        return _run(kernel, step, result, out)[0].reshape(rows, spec.out_columns)

    def _uses_gemm(self, weights: Weights, rows: int) -> bool:
        # Models in float32 are multiplied in float32, at any price.
        return rows > 1 and self._intrinsics.has_wmma and weights.quant.ggml_type is not GGMLType.F32

    def _form(self, weights: Weights, rows: int) -> str:
        if self._uses_gemm(weights, rows):
            return "half"
        return "float" if is_float(weights.quant) else "int8"

    def _prepare(self, x: Tensor, step: Step, rows: int, form: str) -> Tensor:
        """The activations in the form that the product reads."""
        spec, columns = self._spec, self._spec.columns
        first_row = count(step) - 1 if spec.last_row and step.rows > 1 else 0
        if form == "float" and self._norm is None and isinstance(first_row, int):
            return x
        words = {"int8": num_words(columns), "half": columns // 2, "float": columns}[form]
        out = _empty(self._place, dtypes.float if form == "float" else dtypes.uint32, rows, words)
        source = "plain" if self._norm is None else "norm"
        kernel = quantise(
            rows, columns, self._intrinsics, source=source, epsilon=spec.norm_eps, output=form, first_row=first_row
        )
        return _run(kernel, step, out, x, *([] if self._norm is None else [self._norm]))[0]

    def _product(self, weights: Weights, rows: int, destination: Destination, *, fused: bool) -> Kernel:
        if self._uses_gemm(weights, rows):
            return gemm(weights.quant, (weights.rows, weights.columns, rows), self._intrinsics, destination)
        return matvec(
            weights.quant,
            weights.rows,
            weights.columns,
            self._intrinsics,
            num_tokens=rows,
            gated=fused,
            destination=destination,
        )


def _build_linear(spec: LinearSpec, place: Place) -> _Linear | None:
    quants = [QUANTS[matrix.ggml_type] for matrix in spec.matrices]
    if any(matrix.columns % block_elements(quant) for matrix, quant in zip(spec.matrices, quants, strict=True)):
        return None
    # Activations are prepared by groups of 32; a gated place has no room for a bias or a residual.
    if spec.columns % 32 or (spec.gated and (spec.out_columns % 32 or spec.bias is not None or spec.residual)):
        return None
    return _Linear(spec, place)


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
        return store.sink(arg=KernelInfo(name=f"gather_rows_{rows}_{units}", opts_to_apply=()))

    return kernel


def _build_embed(spec: EmbedSpec, place: Place) -> Callable[[Step], Tensor] | None:
    table = spec.table
    if table.columns % block_elements(QUANTS[table.ggml_type]) or not can_dequantise(table.ggml_type):
        return None
    weights = _upload((table,), place)
    units = weights.tensor.numel() // weights.rows

    def embed(step: Step) -> Tensor:
        out = _empty(place, weights.quant.dtype, step.rows, int(units))
        packed = _run(_gather_kernel(step.rows, int(units)), step, out, weights.tensor, step.tokens)[0]
        values = dequantise(packed.bitcast(dtypes.uint8), table.ggml_type)
        return values.reshape(step.rows, table.columns).contiguous()

    return embed


class _Attention:
    """Attention of every layer with the same sizes."""

    def __init__(self, spec: AttentionSpec, place: Place):
        self._place, self._intrinsics = place, _intrinsics(place)
        # A chunk's rows that are not real are computed too, and must find positions to read.
        positions = -(-(place.num_ctx + place.chunk_tokens) // LANES) * LANES
        self._heads = Heads(
            queries=spec.num_heads,
            keys=spec.num_kv_heads,
            size=spec.head_dim,
            positions=positions,
            rotated=spec.rope_dims,
            adjacent=spec.rope_pairs is RopePairs.ADJACENT,
        )
        key = ("gpu rope", spec.rope.tobytes())
        if key not in place.shared:
            place.shared[key] = place.upload(spec.rope.astype(np.float32))
        self._rope: Tensor = place.shared[key]

    def new_cache(self) -> Cache:
        """Zeroed keys and values of one layer."""
        zeros = np.zeros(self._heads.cache_words, np.uint32)
        return self._place.upload(zeros), self._place.upload(zeros)

    def __call__(self, qkv: Tensor, cache: Cache, step: Step) -> tuple[Tensor, Cache]:
        """See AttentionFunction."""
        heads, rows, first = self._heads, step.rows, start(step)
        queries = _empty(self._place, dtypes.uint32, rows, heads.queries, heads.words)
        rotate = rotate_and_store(heads, rows, first, count(step))
        queries, keys, values, *_ = _run(rotate, step, queries, *cache, qkv, self._rope)
        parts = _empty(self._place, dtypes.float, part_floats(heads, rows))
        parts = _run(attend(heads, rows, self._intrinsics, first), step, parts, queries, keys, values)[0]
        out = _empty(self._place, dtypes.float, rows, heads.queries * heads.size)
        out = _run(gather_parts(heads, rows), step, out, parts)[0]
        return out.reshape(rows, heads.queries * heads.size), (keys, values)


def _build_attention(spec: AttentionSpec, place: Place) -> _Attention | None:
    # Sizes that do not fit the kernels' lanes, and caches in float32, are left to the portable implementation.
    fits = spec.head_dim % LANES == 0 and spec.head_dim <= _MOST_HEAD and not spec.exact_cache
    return _Attention(spec, place) if fits else None


def offers(devices: tuple[str, ...] = DEVICES) -> tuple[Offer, ...]:
    """What GPUs make possible, for the devices named."""
    types = frozenset(QUANTS)
    parts: list[tuple[str, Operation, Any, frozenset[GGMLType]]] = [
        ("embed", Operation.EMBED, _build_embed, types),
        ("linear", Operation.LINEAR, _build_linear, types),
        ("attention", Operation.ATTENTION, _build_attention, frozenset()),
    ]
    made = [
        tuple(
            Offer(f"{device} {name}", operation, build, device, ggml_types, RANK, decodes_apart=True)
            for name, operation, build, ggml_types in parts
        )
        for device in devices
    ]
    return reduce(lambda a, b: a + b, made, ())
