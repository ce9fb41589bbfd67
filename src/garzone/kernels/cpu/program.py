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
from garzone.kernels.cpu.traffic import Traffic, count_traffic
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
    """A recorded step of a model with a cache of several slots. One caller at a time."""

    def __init__(self, recording: Recording, states: Values, logits: Values) -> None:
        """Take over a recording.

        Args:
            recording: all calls; the last one makes the logits.
            states: what the last call reads.
            logits: what it writes.
        """
        self._calls = (library.Call * len(recording.calls))(*recording.calls)
        self._run = operation_library().run_program
        rows = recording.rows
        self._tokens, self._slots, self._positions, self._wanted = np.zeros((4, rows), np.int32)
        self._batch = library.Batch(
            tokens=self._tokens.ctypes.data,
            slots=self._slots.ctypes.data,
            positions=self._positions.ctypes.data,
            wanted=self._wanted.ctypes.data,
        )
        self._states = _array(states, rows)
        self._logits = _array(logits, rows)
        self._model = recording.model
        # memory, and the structs that calls point to
        self._keep = (recording, states, logits)

    @property
    def num_calls(self) -> int:
        """Calls of one step."""
        return len(self._calls)

    def traffic(self, position: int) -> Traffic:
        """What one token at that position, alone in its step, moves through memory."""
        return count_traffic(self._calls, self._model.sizes, position, self._model.cached_number_bytes)

    def read_weights_seconds(self) -> float:
        """How long a plain read of the model's weights takes, on as many threads: no token can come sooner."""
        return self._model.read_weights_seconds()

    def run(
        self, token_ids: Sequence[int], slots: Sequence[int], positions: Sequence[int], wanted: Sequence[int]
    ) -> np.ndarray:
        """Run one row for each token, which goes to a position of a slot; rows of one slot in ascending order.

        Python's lock is not held meanwhile.

        Returns:
            float32 [len(wanted), vocabulary]: logits of those rows. Valid until the next call.
        """
        self._launch(len(self._calls), token_ids, slots, positions, wanted)
        return self._logits[: len(wanted)]

    def run_to_states(
        self, token_ids: Sequence[int], slots: Sequence[int], positions: Sequence[int], wanted: Sequence[int]
    ) -> np.ndarray:
        """As `run`, but float32 [len(wanted), hidden]: what the output would have been computed from."""
        self._launch(len(self._calls) - 1, token_ids, slots, positions, wanted)
        return self._states[list(wanted)]

    def _launch(self, num_calls: int, *columns: Sequence[int]) -> None:
        for array, values in zip((self._tokens, self._slots, self._positions, self._wanted), columns, strict=True):
            array[: len(values)] = values
        self._batch.count, self._batch.num_wanted = len(columns[0]), len(columns[-1])
        self._run(self._calls, num_calls, self._batch)


def _array(values: Values, rows: int) -> np.ndarray:
    array = np.ctypeslib.as_array((ctypes.c_float * (rows * values.columns)).from_address(values.address))
    return array.reshape(rows, values.columns)
