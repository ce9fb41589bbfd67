"""A model's step recorded once as a list of C calls, and run by one call for every token or chunk.

Takes the place of tinygrad's JIT where all of a model's operations are ours: nothing is captured or lowered, so a model
is ready as soon as its weights are packed, and the same program serves one token and many.

Recording runs the model's own code, with `Values` in the place of tensors. The memory of a value is used again as soon
as Python drops it: since calls run in the order they were recorded in, that is when nothing reads it any more.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from garzone.kernels.cpu import library
from garzone.kernels.cpu.library import CallKind, operation_library
from garzone.kernels.registry import Step

if TYPE_CHECKING:
    from garzone.kernels.cpu.offers import Model


class Values:
    """Numbers that a recorded call will have written: float32 [rows, columns]."""

    def __init__(self, address: int, columns: int, give_back: Callable[[int], None]) -> None:
        self.address = address
        self.columns = columns
        self._give_back = give_back

    def __del__(self) -> None:
        self._give_back(self.address)


@dataclass(frozen=True)
class Recording(Step):
    """A step that records calls instead of launching them."""

    model: Model = field(kw_only=True)
    calls: list[library.Call] = field(default_factory=list[library.Call], kw_only=True)
    _free: dict[int, list[int]] = field(default_factory=dict[int, list[int]], kw_only=True)

    def add(  # noqa: D417 - the addresses are those of csrc/program.h
        self, kind: CallKind, operation: ctypes.Structure, rows: int, columns: int, **addresses: int | None
    ) -> Values:
        """Record one call of an operation.

        Args:
            kind: what it is.
            operation: its struct, which must outlive the program.
            rows: that it writes at most.
            columns: that it writes.
        """
        num_bytes = 4 * rows * columns
        free = self._free.setdefault(num_bytes, [])
        address = free.pop() if free else self.model.take(num_bytes)
        call = library.Call(kind=kind, operation=ctypes.addressof(operation), out=address, **addresses)
        self.calls.append(call)
        return Values(address, columns, free.append)


class Program:
    """A recorded step."""

    def __init__(self, recording: Recording, logits: Values) -> None:
        self._calls = (library.Call * len(recording.calls))(*recording.calls)
        self._run = operation_library().run_program
        self._tokens = np.zeros(recording.rows, np.int32)
        self._logits = np.ctypeslib.as_array((ctypes.c_float * logits.columns).from_address(logits.address))
        # memory, and the structs that calls point to
        self._keep = (recording, logits)

    @property
    def num_calls(self) -> int:
        """Calls of one step."""
        return len(self._calls)

    def run(self, token_ids: Sequence[int], start: int) -> np.ndarray:
        """Logits, float32 [vocabulary], after the last of these tokens, the first of which is at position `start`.

        Valid until the next call. Python's lock is not held meanwhile.
        """
        count = len(token_ids)
        self._tokens[:count] = token_ids
        self._run(self._calls, len(self._calls), self._tokens.ctypes.data, start, count)
        return self._logits
