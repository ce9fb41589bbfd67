"""Measures how long a process, or one it started, stood in line for a processor.

A time limit is meant for the code, not for the machine: what waits behind other work has not used its time. Linux says
for each thread how long it was runnable and not running (`/proc/PID/task/TID/schedstat`); elsewhere, and where that is
hidden, nothing is known and nothing is allowed for. Does not kill and does not decide how much is allowed.
"""

from __future__ import annotations

from pathlib import Path

_MAX_PROCESSES = 512


class Queueing:
    """Adds up the waiting of a process tree, sample by sample: in each the thread that waited longest counts.

    What ended between two samples is missed, so that too little is counted rather than too much.

    Args:
        pid: of the process everything else descends from.
        root: where the process file system is mounted.
    """

    def __init__(self, pid: int, root: Path = Path("/proc")) -> None:
        self._pid = pid
        self._root = root
        self._known: dict[str, int] = {}
        self.total_s = 0.0

    def sample(self) -> float:
        """Look again.

        Returns:
            Seconds of waiting since the last look; those of a thread that is new count from its beginning.
        """
        now = dict(self._delays())
        longest = max((delay - self._known.get(name, 0) for name, delay in now.items()), default=0)
        self._known = now
        waited_s = max(longest, 0) / 1e9
        self.total_s += waited_s
        return waited_s

    def _delays(self) -> list[tuple[str, int]]:
        found: list[tuple[str, int]] = []
        pending, seen = [str(self._pid)], 0
        while pending and seen < _MAX_PROCESSES:
            seen += 1
            try:
                threads = list((self._root / pending.pop() / "task").iterdir())
            except OSError:
                continue  # it has ended
            for thread in threads:
                try:
                    found.append((thread.name, int((thread / "schedstat").read_text().split()[1])))
                    pending += (thread / "children").read_text().split()
                except (OSError, ValueError, IndexError):
                    continue
        return found
