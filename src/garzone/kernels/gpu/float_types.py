"""Lane programs of weights that are floats in the file: F16, BF16, F32.

A lane owns 16 neighbouring weights, 512 a step, and multiplies them with float32 activations. What lanes and steps are
is said in ``quants``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

from tinygrad.dtype import DType, dtypes
from tinygrad.uop.ops import UOp

from garzone.kernels.gpu.activations import GROUP
from garzone.kernels.gpu.intrinsics import bfloat_to_float, half_to_float
from garzone.kernels.gpu.quants import FLOAT_ELEMENTS, Run, Step
from garzone.kernels.layouts import GGMLType


@dataclass(frozen=True)
class Floats:
    """Sixteen numbers, one or two to a word."""

    ggml_type: GGMLType
    dtype: DType = dtypes.uint32
    lanes: int = 1
    max_rows: int = 4
    span: int = GROUP

    def prepare(self, step: Step) -> list[UOp]:
        """See ``Quant``."""
        return [step.keep(x) for x in step.row.floats(step.block * FLOAT_ELEMENTS, FLOAT_ELEMENTS)]

    def load(self, step: Step, weights: UOp, base: UOp) -> list[UOp]:
        """See ``Quant``."""
        count = FLOAT_ELEMENTS if self.ggml_type is GGMLType.F32 else FLOAT_ELEMENTS // 2
        return [weights[base + i].load() for i in range(count)]

    def dot(self, step: Step, loaded: list[UOp], prepared: list[UOp]) -> list[UOp]:
        """See ``Quant``."""
        products = [weight * x for weight, x in zip(self._floats(loaded), prepared, strict=True)]
        return [reduce(lambda a, b: a + b, products)]

    def runs(self, step: Step, loaded: list[UOp]) -> list[Run]:
        """See ``Quant``."""
        numbers = [value.cast(dtypes.half) for value in self._floats(loaded)]
        ordered = [numbers[4 * i + k] for i in range(FLOAT_ELEMENTS // 4) for k in (0, 2, 1, 3)]
        return [Run(UOp.const(0, dtypes.int), [], 0, UOp.const(1.0, dtypes.float), None, ordered)]

    def _floats(self, loaded: list[UOp]) -> list[UOp]:
        if self.ggml_type is GGMLType.F32:
            return [word.bitcast(dtypes.float) for word in loaded]
        unpack = half_to_float if self.ggml_type is GGMLType.F16 else bfloat_to_float
        return [unpack(word, i) for word in loaded for i in range(2)]


F16, BF16, F32 = Floats(GGMLType.F16), Floats(GGMLType.BF16), Floats(GGMLType.F32)
TYPES = frozenset({GGMLType.F16, GGMLType.BF16, GGMLType.F32})
