"""The keys and values of one slot: allocated once, written in place by the captured steps.

Does not decide who owns a slot or which prefix is reused; knows only how many rows are valid.
"""

from __future__ import annotations

from collections.abc import Callable

from garzone.kernels.registry import Cache


class KVCache:
    """One slot: a cache per layer, and the number of rows written so far.

    Rows before `num_valid` may be reused by whoever knows that they hold the same tokens. Rows behind it hold old
    numbers that nobody reads: attention never looks past its own position.
    """

    def __init__(self, num_ctx: int, allocate: Callable[[], list[Cache]]) -> None:
        self.num_ctx = num_ctx
        self.layers = allocate()
        self.num_valid = 0

    def check(self, start: int, count: int) -> None:
        """Whether rows [start, start + count) can be written now.

        Raises:
            ValueError: they would lie outside the cache, or leave a hole before them. A bug of the caller's.
        """
        if count < 1 or start < 0 or start + count > self.num_ctx:
            raise ValueError(f"rows {start} to {start + count} do not lie in a cache of {self.num_ctx}")
        if start > self.num_valid:
            raise ValueError(f"row {start} cannot be written: only rows before {self.num_valid} hold anything")

    def wrote(self, start: int, count: int) -> None:
        """Note that rows [start, start + count) were written, which makes the ones behind them stale."""
        self.num_valid = start + count

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values."""
        return sum(int(tensor.nbytes()) for layer in self.layers for tensor in layer)
