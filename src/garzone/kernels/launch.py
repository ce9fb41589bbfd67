"""What every UOp kernel here needs: launching on tensors inside a JIT, the step's variables, small arithmetic.

Does not define kernels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final, Generic, TypeVar

from tinygrad.dtype import dtypes
from tinygrad.engine.jit import TinyJit
from tinygrad.helpers import Context
from tinygrad.tensor import Tensor
from tinygrad.uop import Ops
from tinygrad.uop.ops import KernelInfo, UOp

from garzone.kernels.registry import Step

PANEL: Final = 16  # rows that advance together: one AVX512 register of float32
F32: Final = dtypes.float32
Kernel = Callable[..., UOp]


def launch(kernel: Kernel, step: Step, *tensors: Tensor) -> list[Tensor]:
    """Run a UOp kernel on tensors; the first ones are written. What comes back is each tensor after the kernel.

    The kernel must use all of them: a graph of tinygrad 0.14.0 hands over arguments that the program does not have.
    """
    uops = [tensor.uop for tensor in tensors]
    placeholders = [UOp.placeholder_like(uop, slot=index) for index, uop in enumerate(uops)]
    # Kernels name the variables themselves (see start, count); the bound ones must be among the call's sources.
    bound = [variable for variable in (step.start, step.count) if isinstance(variable, UOp)]
    call = kernel(*placeholders).call(*uops, *bound)
    return [Tensor(uop.after(call)) for uop in uops]


def empty(step: Step, *shape: int) -> Tensor:
    """A float32 buffer for a kernel to write."""
    return Tensor.empty(*shape, dtype=F32, device=step.tokens.device)


def variables(num_ctx: int, chunk_tokens: int) -> tuple[UOp, UOp]:
    """The variables `start` and `count`, to be bound at every call."""
    first = UOp.variable("start", 0, max(num_ctx - 1, 1), dtype=dtypes.int)
    return first, UOp.variable("count", 1, max(chunk_tokens, 2), dtype=dtypes.int)


def _inside(bound: UOp) -> UOp:
    """The same variable as a kernel sees it: a parameter."""
    variable, _ = bound.unbind()
    return UOp.variable(variable.expr, int(variable.vmin), int(variable.vmax), dtype=dtypes.int, param=True)


def start(step: Step) -> UOp:
    """The position of the step's first row, inside a kernel."""
    return _inside(step.start) if isinstance(step.start, UOp) else UOp.const(step.start, dtypes.int)


def count(step: Step) -> UOp | int:
    """The number of the step's real rows, inside a kernel."""
    return step.count if isinstance(step.count, int) else _inside(step.count)


Result = TypeVar("Result", Tensor, tuple[Tensor, ...])


class Captured(Generic[Result]):
    """A step as a TinyJit that is captured at its first call already.

    TinyJit would run the first call eagerly, which lowers everything once more and tells it nothing.
    """

    def __init__(self, step: Callable[..., Result]) -> None:
        self._jit = TinyJit(step)
        self._jit.cnt = 1

    def __call__(self, *variables: UOp) -> Result:
        """Replays the step; captures it if that has not been done."""
        # No worker processes: they take as long to start as they save, and would outlive a killed runner.
        with Context(PARALLEL=0):
            return self._jit(*variables)

    def ignored_arguments(self) -> dict[str, int]:
        """How many of the arguments it is handed each program ignores, for those that ignore any.

        On cards a launch of them is refused (CUDA) or reads the wrong ones (AMD).
        """
        assert self._jit.captured is not None, "not captured yet"
        found: dict[str, int] = {}
        for call in self._jit.captured.linear.src:
            for program, given in _launches(call):
                if (ignored := given - len(program.arg.globals) - len(program.arg.vars)) > 0:
                    found[program.arg.name] = ignored
        return found

    @property
    def programs(self) -> list[UOp]:
        """The compiled kernels that a call launches, in order."""
        assert self._jit.captured is not None, "not captured yet"
        return [program for call in self._jit.captured.linear.src for program in _programs(call.src[0])]


def _programs(what: UOp) -> list[UOp]:
    """A graph is a list of launches that the driver is given at once."""
    if what.op is Ops.PROGRAM:
        return [what]
    return [program for call in what.src[0].src for program in _programs(call.src[0])]


def _launches(call: UOp) -> list[tuple[UOp, int]]:
    """Programs below a call with the number of arguments they are handed."""
    if call.src[0].op is Ops.PROGRAM:
        return [(call.src[0], len(call.src) - 1)]
    return [launch for one in call.src[0].src[0].src for launch in _launches(one)] if call.src[0].src else []


def sum_over(value: UOp, *ranges: UOp) -> UOp:
    """The sum of `value` over ranges."""
    return value.reduce(*ranges, arg=Ops.ADD)


def info(name: str) -> KernelInfo:
    """A kernel's name. Its ranges say what to unroll, so tinygrad has nothing left to choose."""
    return KernelInfo(name=name, opts_to_apply=())


def split(size: int, most: int) -> int:
    """The largest power of two up to `most` that divides `size`."""
    return math.gcd(size, most)
