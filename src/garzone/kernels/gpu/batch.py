"""What one step of a model on a GPU is about: rows of any slots, and how its kernels are launched.

The rows are named by small tensors on the device rather than by variables, so that one captured step serves any mix of
sequences. It holds no kernels of its own.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from tinygrad.device import Device
from tinygrad.dtype import DType, dtypes
from tinygrad.tensor import Tensor

from garzone.kernels.gpu.activations import GROUP, Kernel, num_words
from garzone.kernels.gpu.intrinsics import PLAIN, Intrinsics, intrinsics_for
from garzone.kernels.gpu.programs import program
from garzone.kernels.launch import launch
from garzone.kernels.registry import Place, Step

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Batch(Step):
    """A step of rows that belong anywhere.

    Attributes:
        places: int32 [rows, 2]: slot and position of every row, -1 for one that only fills the batch up.
        wanted: int32 [num_wanted]: rows whose logits are asked for.
        num_wanted: how many; further ones may repeat.
    """

    places: Tensor = field(kw_only=True)
    wanted: Tensor = field(kw_only=True)
    num_wanted: int = field(kw_only=True)


@dataclass(frozen=True)
class Form:
    """A form of ``activations.quantise``: ``int8``, ``half`` or ``float``; in int8, ``span`` elements share a scale."""

    output: str
    span: int = GROUP

    @property
    def dtype(self) -> DType:
        """Of the buffer."""
        return dtypes.float if self.output == "float" else dtypes.uint32

    def words(self, columns: int) -> int:
        """Buffer elements of one row."""
        return {"int8": num_words(columns), "half": columns // 2, "float": columns}[self.output]


class Pending:
    """A result that is computed when its reader says in which form: the kernel that makes it can then store it so.

    Takes the place of a tensor between the operations of a ``Batch``.
    """

    def __init__(self, make: Callable[[Form], Tensor]) -> None:
        self._make = make
        self._made: dict[Form, Tensor] = {}

    def as_form(self, form: Form) -> Tensor:
        """The result, computed once for each form."""
        if form not in self._made:
            self._made[form] = self._make(form)
        return self._made[form]


def intrinsics_of(place: Place) -> Intrinsics:
    """The intrinsics of the place's device; on AMD cards this chooses our renderer first."""
    if place.device.startswith("AMD"):
        from garzone.kernels.amd.renderer import install  # noqa: PLC0415  # needs llvmlite, an extra

        install(place.device)
    renderer = Device[place.device].renderer
    found = intrinsics_for(renderer)
    if found is PLAIN and "gpu plain" not in place.shared:
        place.shared["gpu plain"] = True
        _log.warning(
            "no instructions are known for %s (%s): its kernels are plain arithmetic, correct but slow",
            place.device,
            type(renderer).__name__,
        )
    return found


def run(kernel: Kernel, step: Step, *tensors: Tensor) -> list[Tensor]:
    """Launches on the tensors as flat buffers, which comes back flat.

    A kernel must not see more dimensions: tinygrad 0.14.0 takes a flat index apart for them and, doing so, drops the
    condition of a conditional store.
    """
    device = tensors[0].device
    assert isinstance(device, str)
    return launch(lambda *buffers: program(kernel(*buffers), device), step, *(tensor.flatten() for tensor in tensors))


def empty(place: Place, dtype: DType, *shape: int) -> Tensor:
    """A buffer for a kernel to write."""
    return Tensor.empty(*shape, dtype=dtype, device=place.device)
