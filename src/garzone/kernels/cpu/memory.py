"""Memory for weights and caches: anonymous, in huge pages where the system has them, never moved.

Does not use tinygrad's buffers, whose shared mappings get no huge pages; on one thread those are worth a fifth of the
bandwidth (docs/engine-log.md).
"""

from __future__ import annotations

import ctypes
import mmap
import sys

HUGE_PAGE = 2 << 20
PIECE = 64 << 20  # asked of the system at once; untouched pages cost nothing
ALIGNMENT = 64
_MADV_HUGEPAGE = 14  # linux/mman.h; the mmap module knows it only where Python was built on such a system


class Arena:
    """Hands out memory that lives as long as the arena."""

    def __init__(self) -> None:
        self._pieces: list[mmap.mmap] = []
        self._next = 0
        self._end = 0
        self.num_bytes = 0

    def take(self, num_bytes: int) -> int:
        """The address of that much zeroed memory, at a cache line."""
        size = -(-num_bytes // ALIGNMENT) * ALIGNMENT
        if self._next + size > self._end:
            self._grow(size)
        address, self._next = self._next, self._next + size
        self.num_bytes += size
        return address

    def _grow(self, size: int) -> None:
        piece = mmap.mmap(-1, max(size, PIECE) + HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._pieces.append(piece)
        start = ctypes.addressof(ctypes.c_char.from_buffer(piece))
        self._next = -(-start // HUGE_PAGE) * HUGE_PAGE
        self._end = start + len(piece)
        if sys.platform == "linux":
            # advice: where it is not taken, small pages work too
            ctypes.CDLL(None).madvise(
                ctypes.c_void_p(self._next), ctypes.c_size_t(self._end - self._next), _MADV_HUGEPAGE
            )
