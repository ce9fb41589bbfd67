"""Measures how long a process, or one it started, stood in line for a processor.

A time limit is meant for the code, not for the machine: what waits behind other work has not used its time. Linux says
for each thread how long it was runnable and not running (`/proc/PID/task/TID/schedstat`); elsewhere, and where that is
hidden, nothing is known and nothing is allowed for. Does not kill and does not decide how much is allowed.
"""

from __future__ import annotations

import os
from pathlib import Path

_MAX_PROCESSES = 512


class Queueing:
    """Measures the waiting of a process tree, sample by sample: in each the thread that waited longest counts.

    What ended between two samples is missed. Waiting for the tree's own processes is none: no more is counted than the
    part of the machine that others had.

    Args:
        pid: of the process everything else descends from.
        root: where the process file system is mounted.
    """

    def __init__(self, pid: int, root: Path = Path("/proc")) -> None:
        self._pid = pid
        self._root = root
        self._known: dict[str, tuple[int, int]] = {}

    def sample(self, passed_s: float) -> float:
        """Look again.

        Args:
            passed_s: since the last look.

        Returns:
            Seconds of waiting since then; those of a thread that is new count from its beginning.
        """
        now = dict(self._times())
        gained = [
            (ran - self._known.get(name, (0, 0))[0], waited - self._known.get(name, (0, 0))[1])
            for name, (ran, waited) in now.items()
        ]
        self._known = now
        longest_s = max((waited for _, waited in gained), default=0) / 1e9
        own_share = sum(ran for ran, _ in gained) / 1e9 / (os.cpu_count() or 1)
        return max(min(longest_s, passed_s - own_share), 0.0)

    def _times(self) -> list[tuple[str, tuple[int, int]]]:
        """How long each thread ran, and waited, in nanoseconds."""
        found: list[tuple[str, tuple[int, int]]] = []
        pending, seen = [str(self._pid)], 0
        while pending and seen < _MAX_PROCESSES:
            seen += 1
            try:
                threads = list((self._root / pending.pop() / "task").iterdir())
            except OSError:
                continue  # it has ended
            for thread in threads:
                try:
                    ran, waited, *_ = map(int, (thread / "schedstat").read_text().split())
                    found.append((thread.name, (ran, waited)))
                    pending += (thread / "children").read_text().split()
                except (OSError, ValueError):
                    continue
        return found
