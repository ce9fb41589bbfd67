"""Places of a model where activations meet weights: which kernels a product takes, in which form it reads and writes.

Decode products fuse what surrounds them: a gate with its partner and with the quantisation that the next product needs,
queries and keys with rotation and cache. It does not attend (``heads``) and writes no device code.
"""

from __future__ import annotations

from functools import partial
from itertools import groupby
from typing import cast

import numpy as np
from tinygrad.tensor import Tensor

from garzone.kernels.gpu.activations import quantise
from garzone.kernels.gpu.attention import Heads
from garzone.kernels.gpu.batch import Batch, Form, Pending, empty, intrinsics_of, run
from garzone.kernels.gpu.finish import Destination, Finish, Floats, GatedBytes, Rotated
from garzone.kernels.gpu.gemm import gemm
from garzone.kernels.gpu.matvec import MIN_WAVES, QUANTS, Plan, is_float, matvec, plan
from garzone.kernels.gpu.quants import block_elements
from garzone.kernels.gpu.weights import Weights, upload
from garzone.kernels.launch import count
from garzone.kernels.layouts import GGMLType
from garzone.kernels.registry import Gate, LinearSpec, Place, Step

# Rows that decode products still take; more are multiplied by matrix instructions where there are any.
MOST_COLUMNS = 8
_FLOATS = Form("float")
_MOST_WAVES = 32  # of a workgroup: 1,024 threads


class Linear:
    """One place of a model where activations meet weights."""

    def __init__(self, spec: LinearSpec, place: Place):
        self._spec, self._place, self._intrinsics = spec, place, intrinsics_of(place)
        runs = groupby(spec.matrices, key=lambda matrix: matrix.ggml_type)
        self._weights = [upload(tuple(one), place) for _, one in runs]
        self._norm = None if spec.norm is None else place.upload(spec.norm.astype(np.float32))
        self._bias = None if spec.bias is None else place.upload(spec.bias.astype(np.float32))
        # What is quantised serves all matrices of the place: a coarser scale of one is good for the others, too.
        self._span = max(weights.quant.span for weights in self._weights)

    def __call__(self, x: Tensor, step: Step, residual: Tensor | None = None) -> Tensor:
        """See LinearFunction. In a ``Batch`` what the next operation may fuse comes back as ``Pending``."""
        if isinstance(step, Batch):
            if self._spec.gated:
                return cast(Tensor, Pending(partial(self._gated, x, step)))
            if len(self._spec.matrices) == 3 and not self._spec.last_row:
                return cast(Tensor, Unrotated(self, x, step))
        return self._gated(x, step, _FLOATS) if self._spec.gated else self.floats(x, step, residual)

    def floats(self, x: Tensor, step: Step, residual: Tensor | None = None) -> Tensor:
        """The results of all matrices side by side, as float32 [rows, sum of the matrices' rows]."""
        rows, width = self._num_rows(step), sum(weights.rows for weights in self._weights)
        addends = [] if residual is None else [(True, residual)]
        addends += [] if self._bias is None else [(False, self._bias)]
        out, offset = empty(self._place, _FLOATS.dtype, rows, width), 0
        for weights, words in zip(self._weights, self._prepare_for_all(x, step), strict=True):
            destination = Destination(width, offset, tuple(is_whole for is_whole, _ in addends))
            added = [tensor for _, tensor in addends]
            if self._uses_gemm(weights, rows):
                kernel = gemm(weights.quant, (weights.rows, weights.columns, rows), self._intrinsics, destination)
                out = run(kernel, step, out, weights.tensor, words, *added)[0]
            else:
                out = self._product(weights, step, Floats(weights.rows, destination), [out], [words, *added])[0]
            offset += weights.rows
        return out.reshape(rows, width)

    def into_heads(self, x: Tensor, step: Batch, heads: Heads, outs: list[Tensor], rope: Tensor) -> list[Tensor] | None:
        """Queries, keys and values as ``finish.Rotated`` stores them; None where that is not possible.

        Args:
            x: what the place is given.
            step: the rows.
            heads: sizes; the place's matrices are queries, keys and values.
            outs: (queries, keys, values), which are written.
            rope: the table.
        """
        rows = self._num_rows(step)
        if not Rotated.fits(heads) or any(w.quant.max_rows < 4 or self._uses_gemm(w, rows) for w in self._weights):
            return None
        outs, first = list(outs), 0
        for weights, words in zip(self._weights, self._prepare_for_all(x, step), strict=True):
            finish = Rotated(heads, first, weights.rows // heads.size, self._bias is not None)
            rest = [step.places, *([rope] if finish.turns else []), *([] if self._bias is None else [self._bias])]
            cut = plan(weights.quant, weights.rows, weights.columns, num_rows=4)
            found = self._product(weights, step, finish, [outs[i] for i in finish.written], [words, *rest], cut=cut)
            for i, tensor in zip(finish.written, found, strict=False):
                outs[i] = tensor
            first += weights.rows // heads.size
        return outs

    def _gated(self, x: Tensor, step: Step, form: Form) -> Tensor:
        """silu(gate) * up in a form."""
        spec, rows = self._spec, self._num_rows(step)
        one = len(self._weights) == 1 and not self._uses_gemm(self._weights[0], rows)
        if one:
            weights = self._weights[0]
            words = self._prepare_for_all(x, step)[0]
            num_rows = 4 if spec.out_columns // 2 >= MIN_WAVES and weights.quant.max_rows >= 4 else 2
            fits = form.span * 2 // num_rows <= _MOST_WAVES and spec.out_columns % form.span == 0
            if form.output == "int8" and fits:
                out = empty(self._place, form.dtype, rows, form.words(spec.out_columns))
                finish: Finish = GatedBytes(spec.out_columns, form.span)
                return self._product(weights, step, finish, [out], [words], cut=Plan(num_rows, 1))[0]
            out = empty(self._place, _FLOATS.dtype, rows, spec.out_columns)
            finish = Floats(spec.out_columns, Destination(spec.out_columns), gated=True)
            found = self._product(weights, step, finish, [out], [words])[0]
            source = "plain"
        else:
            found, source = self.floats(x, step), "swiglu"
        if source == "plain" and form == _FLOATS:
            return found.reshape(rows, spec.out_columns)
        out = empty(self._place, form.dtype, rows, form.words(spec.out_columns))
        kernel = quantise(rows, spec.out_columns, self._intrinsics, source=source, output=form.output, span=form.span)
        return run(kernel, step, out, found)[0].reshape(rows, -1)

    def _num_rows(self, step: Step) -> int:
        if not self._spec.last_row:
            return step.rows
        return step.num_wanted if isinstance(step, Batch) else 1

    def _uses_gemm(self, weights: Weights, rows: int) -> bool:
        # Models in float32 are multiplied in float32, at any price.
        return rows > MOST_COLUMNS and self._intrinsics.has_wmma and weights.quant.ggml_type is not GGMLType.F32

    def _prepare_for_all(self, x: Tensor, step: Step) -> list[Tensor]:
        """The activations in the form that each of the weights reads; each form is made once."""
        made: dict[Form, Tensor] = {}
        rows = self._num_rows(step)
        forms: list[Form] = []
        for weights in self._weights:
            if self._uses_gemm(weights, rows):
                form = Form("half")
            else:
                form = _FLOATS if is_float(weights.quant) else Form("int8", self._span)
            forms.append(form)
            if form not in made:
                made[form] = self._prepare(x, step, rows, form)
        return [made[form] for form in forms]

    def _prepare(self, x: Tensor | Pending, step: Step, rows: int, form: Form) -> Tensor:
        """The activations in one form."""
        spec, columns = self._spec, self._spec.columns
        if isinstance(x, Pending):
            return x.as_form(form)
        chosen = spec.last_row and isinstance(step, Batch)
        first_row = count(step) - 1 if spec.last_row and step.rows > 1 and not chosen else 0
        if form == _FLOATS and self._norm is None and isinstance(first_row, int) and not chosen:
            return x
        kernel = quantise(
            rows,
            columns,
            self._intrinsics,
            source="plain" if self._norm is None else "norm",
            epsilon=spec.norm_eps,
            output=form.output,
            first_row=first_row,
            chosen=chosen,
            span=form.span,
        )
        given = [] if self._norm is None else [self._norm]
        if isinstance(step, Batch) and chosen:
            given.append(step.wanted)
        out = empty(self._place, form.dtype, rows, form.words(columns))
        return run(kernel, step, out, x, *given)[0]

    def _product(
        self,
        weights: Weights,
        step: Step,
        finish: Finish,
        outs: list[Tensor],
        given: list[Tensor],
        *,
        cut: Plan | None = None,
    ) -> list[Tensor]:
        """A decode product; ``given`` are the prepared activations and what ``finish`` needs."""
        rows = self._num_rows(step)
        cut = cut or plan(weights.quant, weights.rows, weights.columns, num_tokens=rows)
        kernel = matvec(
            weights.quant,
            weights.rows,
            weights.columns,
            self._intrinsics,
            cut=cut,
            num_tokens=rows,
            together=4 if cut.rows <= 2 else 2,  # more do not fit the registers
            finish=finish,
        )
        return run(kernel, step, *outs, weights.tensor, *given)


class Unrotated(Pending):
    """Queries, keys and values before rotation: attention either lets the product finish them, or takes them so."""

    def __init__(self, linear: Linear, x: Tensor, step: Batch) -> None:
        super().__init__(lambda _: linear.floats(x, step))
        self._linear, self._x, self._step = linear, x, step

    def into_heads(self, heads: Heads, outs: list[Tensor], rope: Tensor) -> list[Tensor] | None:
        """See ``Linear.into_heads``."""
        return self._linear.into_heads(self._x, self._step, heads, outs, rope)


def build_linear(spec: LinearSpec, place: Place) -> Linear | None:
    """The place, or None where the kernels cannot cut it."""
    quants = [QUANTS[matrix.ggml_type] for matrix in spec.matrices]
    if any(matrix.columns % block_elements(quant) for matrix, quant in zip(spec.matrices, quants, strict=True)):
        return None
    # Activations are prepared by groups of 32; a gated place has no room for a bias or a residual.
    if spec.columns % 32 or (spec.gated and (spec.out_columns % 32 or spec.bias is not None or spec.residual)):
        return None
    if spec.post_norm is not None or (spec.gated and spec.gate is not Gate.SILU):
        missing = "products whose result is normalised" if spec.post_norm is not None else f"{spec.gate.value} gates"
        place.warn_once(f"the GPU kernels do not compute {missing}: the portable ones do, slowly")
        return None
    return Linear(spec, place)
