"""Operations as tinygrad UOps over unpacked weights: the same few lines run on every device tinygrad compiles for.

Does not quantise activations and does not tune for a device; implementations that do are registered beside it.

Weights are kept as float16 (float32 where the file has that) in panels of 16 rows, (rows / 16, columns, 16), so that 16
dot products advance together and clang turns each line into vector code. On one AVX512 core this reads 17 GB/s, where
plain Tensor code reads 2 (docs/engine-log.md).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

import numpy as np
from tinygrad.dtype import dtypes
from tinygrad.tensor import Tensor
from tinygrad.uop.ops import AxisType, UOp

from garzone.core.errors import GGUFError
from garzone.kernels.attention import build_attention
from garzone.kernels.dequantise import dequantise, dequantise_array
from garzone.kernels.launch import F32, PANEL, Kernel, count, empty, info, launch, split, sum_over
from garzone.kernels.layouts import GGMLType
from garzone.kernels.registry import EmbedSpec, Gate, LinearSpec, Matrix, Offer, Operation, Place, Step

_log = logging.getLogger(__name__)

_READ_ELEMENTS: Final = 1 << 24  # unpacked at once while loading, so that a matrix never exists twice in full


# --- weights


class _Panels:
    """Weights in panels: unpacked once, or, where memory does not allow it, from packed bytes at every use."""

    def __init__(self, matrices: tuple[Matrix, ...], place: Place, *, pad: bool) -> None:
        rows, self.columns = sum(matrix.rows for matrix in matrices), matrices[0].columns
        self.width = PANEL if pad else split(rows, PANEL)
        self.rows = -(-rows // self.width) * self.width
        self.shape = (self.rows // self.width, self.columns, self.width)
        self._packed: list[tuple[Tensor, GGMLType]] = []
        self._wide = wide = any(matrix.ggml_type is GGMLType.F32 for matrix in matrices)
        if self.rows * self.columns * (4 if wide else 2) <= place.dense_bytes:
            self._dense = place.upload(_unpacked(matrices, self.shape, np.float32 if wide else np.float16))
            place.dense_bytes -= int(self._dense.nbytes())
            return
        self._dense = None
        if "said_packed" not in place.shared:
            place.shared["said_packed"] = True
            _log.warning(
                "not enough memory to unpack %s: its weights stay packed and are unpacked for every token, slowly",
                ", ".join(matrix.name for matrix in matrices),
            )
        self._packed = [(place.upload(matrix.read()), matrix.ggml_type) for matrix in matrices]

    def tensor(self) -> Tensor:
        """(rows / width, columns, width), as a buffer."""
        if self._dense is not None:
            return self._dense
        parts = [dequantise(packed, ggml_type).reshape(-1, self.columns) for packed, ggml_type in self._packed]
        stacked = parts[0].cat(*parts[1:], dim=0) if len(parts) > 1 else parts[0]
        stacked = stacked.pad(((0, self.rows - int(stacked.shape[0])), (0, 0)))
        panels = stacked.reshape(self.shape[0], self.width, self.columns).permute(0, 2, 1)
        return panels.cast(dtypes.float32 if self._wide else dtypes.float16).contiguous()


def _unpacked(matrices: tuple[Matrix, ...], shape: tuple[int, int, int], dtype: type[np.floating]) -> np.ndarray:
    """The stacked matrices in panels.

    Raises:
        GGUFError: a weight is not a number, or too large for float16; names the tensor.
    """
    panels = np.zeros(shape, dtype)
    columns, width = shape[1], shape[2]
    done = 0
    for matrix in matrices:
        packed = matrix.read().reshape(matrix.rows, -1)
        # whole panels at a time, except that a matrix may begin in the middle of one
        at = 0
        while at < matrix.rows:
            room = width - (done + at) % width
            many = max(_READ_ELEMENTS // columns // width, 1) * width
            take = min(matrix.rows - at, room if room < width else many)
            values = dequantise_array(packed[at : at + take].reshape(-1), matrix.ggml_type).reshape(take, columns)
            limit = np.finfo(dtype).max
            if not np.abs(values).max(initial=0.0) <= limit:  # also true of NaN
                raise GGUFError(
                    f"tensor {matrix.name!r}: holds weights that are not finite or beyond {limit:g}; "
                    "the file is damaged, fetch it again"
                )
            first, inside = divmod(done + at, width)
            if inside or take < width:
                panels[first, :, inside : inside + take] = values.T
            else:
                whole = take - take % width
                panels[first : first + whole // width] = values[:whole].reshape(-1, width, columns).swapaxes(1, 2)
                take = whole
            at += take
        done += matrix.rows
    return panels


def _panels(matrices: tuple[Matrix, ...], place: Place, *, pad: bool = False) -> _Panels:
    """The panels of these matrices, made once: a tied embedding serves as output too."""
    key = ("panels", tuple(matrix.name for matrix in matrices))
    if key not in place.shared:
        place.shared[key] = _Panels(matrices, place, pad=pad)
    return place.shared[key]


# --- kernels


def _embed_kernel(step: Step, columns: int, width: int, scale: float) -> Kernel:
    def kernel(out: UOp, table: UOp, tokens: UOp) -> UOp:
        t, k = UOp.range(count(step), 0), UOp.range(columns, 1)
        token = tokens[t]
        value = table.flatten()[(token // width) * (columns * width) + k * width + token % width]
        value = value.cast(F32) * scale if scale != 1 else value.cast(F32)
        return out.flatten()[t * columns + k].store(value).end(t, k).sink(arg=info(f"embed_{columns}"))

    return kernel


def _norm_kernel(step: Step, columns: int, eps: float, *, last_row: bool) -> Kernel:
    """RMS norm of each row, or of the last one; added to a fourth buffer where there is one."""

    def kernel(out: UOp, x: UOp, weight: UOp, *residual: UOp) -> UOp:
        rows = count(step)
        t = UOp.range(1 if last_row else rows, 0)
        source = (rows - 1) * columns if last_row else t * columns
        wide = split(columns, PANEL)
        k, lane = UOp.range(columns // wide, 1, AxisType.REDUCE), UOp.range(wide, 2, AxisType.UNROLL)
        value = x.flatten()[source + k * wide + lane]
        scale = (sum_over(value * value, k, lane) * (1.0 / columns) + eps).sqrt().reciprocal()
        k2, lane2 = UOp.range(columns // wide, 3), UOp.range(wide, 4, AxisType.UPCAST)
        at = k2 * wide + lane2
        normed = x.flatten()[source + at] * scale * weight[at]
        if residual:
            normed = normed + residual[0].flatten()[t * columns + at]
        name = f"norm_{columns}" + ("_last" if last_row else "") + ("_add" if residual else "")
        return out.flatten()[t * columns + at].store(normed).end(t, k2, lane2).sink(arg=info(name))

    return kernel


def _gated(gate: Gate, x: UOp) -> UOp:
    """GELU's tanh is written as the sigmoid of twice its argument."""
    inside = x if gate is Gate.SILU else (x + x * x * x * 0.044715) * 1.5957691216057308
    return x * ((inside * -1.4426950408889634).exp2() + 1.0).reciprocal()


def _matmul_kernel(
    step: Step, panels: _Panels, *, rows: UOp | int, gate: Gate | None, bias: bool, residual: bool
) -> Kernel:
    columns, width, num_panels = panels.columns, panels.width, panels.shape[0]
    # Panels side by side hide the latency of the additions: four are best for one row, two for many.
    together = 1 if gate else split(num_panels, 4 if isinstance(rows, int) else 2)

    def kernel(out: UOp, x: UOp, *operands: UOp) -> UOp:
        given = list(operands)
        n, t = UOp.range(num_panels // together, 0), UOp.range(rows, 1)
        panel = UOp.range(together, 2, AxisType.UPCAST)
        lane = UOp.range(width, 3, AxisType.UPCAST)
        k = UOp.range(columns, 4, AxisType.REDUCE)
        row = n * together + panel
        column = row * width + lane

        def dot(weights: UOp) -> UOp:
            weight = weights.flatten()[row * (columns * width) + k * width + lane]
            return sum_over(weight.cast(F32) * x.flatten()[t * columns + k], k)

        value = dot(given.pop(0))
        if bias:
            value = value + given.pop(0)[column]
        if gate:
            value = _gated(gate, value) * dot(given.pop(0))
        at = t * panels.rows + column
        if residual:
            value = value + given.pop(0).flatten()[at]
        name = "_".join(
            [
                f"gated_{gate.value}" if gate else "matmul",
                *(["bias"] if bias else []),
                *(["add"] if residual else []),
                f"{panels.rows}_{columns}",
            ]
        )
        return out.flatten()[at].store(value).end(n, t, panel, lane).sink(arg=info(name))

    return kernel


# --- what is offered


def _build_embed(spec: EmbedSpec, place: Place) -> Callable[[Step], Tensor]:
    panels = _panels(spec.matrices, place, pad=True)

    def embed(step: Step) -> Tensor:
        kernel = _embed_kernel(step, panels.columns, panels.width, spec.scale)
        return launch(kernel, step, empty(step, step.rows, panels.columns), panels.tensor(), step.tokens)[0]

    return embed


def _build_linear(spec: LinearSpec, place: Place) -> Callable[..., Tensor]:
    groups = [(matrix,) for matrix in spec.matrices] if spec.gated else [spec.matrices]
    # Only the output matrix may be padded: nobody downstream of it minds extra columns.
    stored = [_panels(group, place, pad=spec.last_row) for group in groups]
    norm = None if spec.norm is None else place.upload(spec.norm.astype(np.float32))
    bias = None if spec.bias is None else place.upload(spec.bias.astype(np.float32))
    post_norm = None if spec.post_norm is None else place.upload(spec.post_norm.astype(np.float32))
    columns, out_columns = spec.columns, stored[0].rows

    def linear(x: Tensor, step: Step, residual: Tensor | None = None) -> Tensor:
        rows = 1 if spec.last_row else step.rows
        if norm is not None:
            kernel = _norm_kernel(step, columns, spec.norm_eps, last_row=spec.last_row)
            x = launch(kernel, step, empty(step, rows, columns), x, norm)[0]
        operands = [stored[0].tensor(), *([] if bias is None else [bias])]
        operands += [panels.tensor() for panels in stored[1:]]
        operands += [] if residual is None or post_norm is not None else [residual]
        kernel = _matmul_kernel(
            step,
            stored[0],
            rows=1 if spec.last_row else count(step),
            gate=spec.gate if spec.gated else None,
            bias=bias is not None,
            residual=residual is not None and post_norm is None,
        )
        y = launch(kernel, step, empty(step, rows, out_columns), x, *operands)[0]
        if post_norm is None:
            return y
        added = [] if residual is None else [residual]
        kernel = _norm_kernel(step, out_columns, spec.norm_eps, last_row=False)
        return launch(kernel, step, empty(step, rows, out_columns), y, post_norm, *added)[0]

    return linear


OFFERS: Final = (
    Offer("portable embed", Operation.EMBED, _build_embed),
    Offer("portable linear", Operation.LINEAR, _build_linear),
    Offer("portable attention", Operation.ATTENTION, build_attention),
)
