"""The keys and values of the slots: allocated once, written in place by the captured steps.

Does not decide who owns a slot or which prefix is reused; knows only how many rows of each are valid.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from garzone.kernels.registry import Cache


class KVCache:
    """A cache per layer, and for each slot the number of rows written so far.

    Rows before `num_valid[slot]` may be reused by whoever knows that they hold the same tokens. Rows behind it hold old
    numbers that nobody reads: attention never looks past its own position.
    """

    def __init__(self, num_ctx: int, num_slots: int, banks: Sequence[list[Cache]]) -> None:
        """Take over what was allocated.

        Args:
            num_ctx: rows of a slot.
            num_slots: how many sequences fit at once.
            banks: the layers' caches. Either one bank whose caches hold all slots, or a bank for each slot.
        """
        self.num_ctx = num_ctx
        self.banks = banks
        self.num_valid = [0] * num_slots

    @property
    def num_slots(self) -> int:
        """How many sequences fit at once."""
        return len(self.num_valid)

    def locate(self, slot: int) -> tuple[list[Cache], int]:
        """The layers' caches that hold a slot, and its index within them."""
        return (self.banks[slot], 0) if len(self.banks) > 1 else (self.banks[0], slot)

    def check(self, slot: int, start: int, count: int) -> None:
        """Whether rows [start, start + count) of a slot can be written now.

        Raises:
            ValueError: no such slot, or they would lie outside it or leave a hole before them. A bug of the caller's.
        """
        if not 0 <= slot < self.num_slots:
            raise ValueError(f"there is no slot {slot}; slots are 0 to {self.num_slots - 1}")
        if count < 1 or start < 0 or start + count > self.num_ctx:
            raise ValueError(f"rows {start} to {start + count} do not lie in a cache of {self.num_ctx}")
        if start > self.num_valid[slot]:
            raise ValueError(
                f"row {start} of slot {slot} cannot be written: only rows before {self.num_valid[slot]} hold anything"
            )

    def check_valid(self, slot: int, start: int, count: int) -> None:
        """Whether rows [start, start + count) of a slot can be read.

        Raises:
            ValueError: no such slot, or not all of them hold something. A bug of the caller's.
        """
        self.check(slot, start, count)
        if start + count > self.num_valid[slot]:
            raise ValueError(
                f"rows {start} to {start + count} of slot {slot} cannot be read: "
                f"only rows before {self.num_valid[slot]} hold anything"
            )

    def wrote(self, slot: int, start: int, count: int) -> None:
        """Note that rows [start, start + count) were written, which makes the ones behind them stale."""
        self.num_valid[slot] = start + count

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values."""
        return sum(int(tensor.nbytes()) for bank in self.banks for layer in bank for tensor in layer)


def to_bytes(layers: Sequence[np.ndarray]) -> bytes:
    """Rows of all layers, as AttentionFunction.read_rows gives them, one layer after the other."""
    return b"".join(np.ascontiguousarray(layer).tobytes() for layer in layers)
