"""Receives what the probe says while a command runs, so that what was said cannot be taken back.

The record is a named pipe: what runs in the sandbox can add to it and nothing else, since it is read here, outside, as
it comes. (A file could be emptied and written again by the code that is judged.) Does not know what the lines mean.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path

from garzone.agent.evidence import MAX_EVIDENCE_BYTES

_PIECE = 1 << 16


class Recorder:
    """Reads a named pipe at `path` from entering to leaving; use as an asynchronous context manager.

    `raw` is what was received, at most MAX_EVIDENCE_BYTES; more is read, so that no writer waits, and thrown away.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.raw = bytearray()
        self._descriptor = -1

    async def __aenter__(self) -> Recorder:
        self.path.unlink(missing_ok=True)
        os.mkfifo(self.path)
        self.path.chmod(0o622)  # everybody may write; only we read
        # for reading and writing, so that the pipe never ends while no test has it open (fifo(7), Linux and macOS)
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_NONBLOCK)
        asyncio.get_running_loop().add_reader(self._descriptor, self._read)
        return self

    async def __aexit__(self, *_: object) -> None:
        asyncio.get_running_loop().remove_reader(self._descriptor)
        self._read()
        os.close(self._descriptor)

    def _read(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while piece := os.read(self._descriptor, _PIECE):
                self.raw += piece[: MAX_EVIDENCE_BYTES - len(self.raw)]
