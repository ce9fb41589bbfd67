"""The server's end of one runner process: start it, talk to it, notice when it dies or hangs, end it.

Knows one process and one model; which models are in memory, and for how long, is the pool's business.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import time
from collections import deque
from dataclasses import replace

from garzone.core.errors import BackendUnavailable, GarzoneError, GenerationFailed, InvalidRequest, RunnerCrashed
from garzone.runner.protocol import (
    PROTOCOL_VERSION,
    Accepted,
    Cancel,
    Embed,
    Embedded,
    Failed,
    Finished,
    FrameDecoder,
    Generate,
    Hello,
    Load,
    Loaded,
    LoadFailed,
    Message,
    Piece,
    Ping,
    Pong,
    Progress,
    ProtocolError,
    SaveRows,
    Shutdown,
    encode,
    parse,
)

LOG_LINES = 200  # of the process's stderr, kept for error messages
SHOWN_LOG_LINES = 5
READ_BYTES = 1 << 18
LEAVE_S = 5.0  # between asking a process to leave and killing it
PING_INTERVAL_S = 10.0
MISSED_PINGS = 6  # unanswered in a row, after which a process counts as frozen
_log = logging.getLogger(__name__)


class RunnerProcess:
    """A runner process. Made by `start`, good for one `load`, then for any number of answers at once."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        *,
        stall_timeout_s: float,
        ping_interval_s: float = PING_INTERVAL_S,
    ) -> None:
        self._process = process
        self._stall_timeout_s = stall_timeout_s
        self._ping_interval_s = ping_interval_s
        self._num_missed = 0
        self._beats = 0
        self._pinger: asyncio.TimerHandle | None = None
        self._last_heard = time.monotonic()
        self._stderr: deque[str] = deque(maxlen=LOG_LINES)
        self._next_id = 0
        self._answers: dict[int, asyncio.Queue[Message | GarzoneError]] = {}
        loop = asyncio.get_running_loop()
        self._loading: asyncio.Future[Message] = loop.create_future()
        self._failed: GarzoneError | None = None
        self._watchdog: asyncio.TimerHandle | None = None
        self._tasks = [
            loop.create_task(self._read_stderr(), name=f"runner {process.pid} stderr"),
            loop.create_task(self._read(), name=f"runner {process.pid} frames"),
        ]

    @classmethod
    async def start(
        cls, engine: str, *, stall_timeout_s: float, ping_interval_s: float = PING_INTERVAL_S
    ) -> RunnerProcess:
        """Start the process, in a session of its own: Ctrl-C in the terminal is for the server to act on.

        `engine` is the `module:function` inside the process that loads a model.
        """
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",  # not the current directory: a json.py lying there would be imported
            "-m",
            "garzone.runner.main",
            "--engine",
            engine,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        return cls(process, stall_timeout_s=stall_timeout_s, ping_interval_s=ping_interval_s)

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    @property
    def usable(self) -> bool:
        """False once it has died, or said that it will."""
        return self._failed is None

    async def load(self, load: Load, timeout_s: float) -> Loaded:
        """Bring the model into memory.

        Raises:
            ModelFileError, DeviceUnavailable: as the process reports.
            RunnerCrashed: it died.
            GenerationFailed: it took longer than `timeout_s` (0: it may take for ever).
        """
        self._send(load)
        try:
            message = await asyncio.wait_for(asyncio.shield(self._loading), timeout_s or None)
        except TimeoutError as error:
            raise GenerationFailed(
                f"loading {load.path} took longer than {timeout_s:g} s and was given up; "
                f"load_timeout_s in config.toml allows more.{self._log_tail()}"
            ) from error
        if isinstance(message, LoadFailed):
            raise message.failure.to_exception()
        assert isinstance(message, Loaded)
        self._ping()
        return message

    def begin(self, message: Generate | Embed) -> Answer:
        """Start to answer a request, whose `id` is set here.

        Raises:
            RunnerCrashed: the process cannot.
            InvalidRequest: it has a number in it that JSON does not have.
        """
        if self._failed is not None:
            raise self._failed
        number = self._next_id
        self._next_id += 1
        try:
            frame = encode(replace(message, id=number))
        except ValueError as error:
            raise InvalidRequest(f"a number in the request is not finite: {error}") from error
        if not self._answers:
            self._last_heard = time.monotonic()
            self._watch()
        self._answers[number] = asyncio.Queue()
        self._write(frame)
        return Answer(self, number, self._answers[number])

    def save_rows(self) -> None:
        """Have it keep on disk what it computed of prompts."""
        self._send(SaveRows())

    def end(self, number: int, failed: GarzoneError | None = None) -> None:
        """Request `number` is over; with `failed`, so is the process."""
        self._answers.pop(number, None)
        self._failed = self._failed or failed
        if self._watchdog is not None and not self._answers:
            self._watchdog.cancel()

    def cancel(self, number: int) -> None:
        """Tell the process that request `number` is no longer wanted."""
        self._send(Cancel(number))

    async def close(self) -> None:
        """Ask the process to leave, and kill it and all it started if it does not."""
        self._fail(RunnerCrashed("the model was taken out of memory"))
        self._send(Shutdown())
        with contextlib.suppress(OSError):
            assert self._process.stdin is not None
            self._process.stdin.close()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._process.wait(), LEAVE_S)
        self.kill()
        await self._process.wait()
        await asyncio.gather(*self._tasks)

    def kill(self) -> None:
        """End it now, with whatever it started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if hasattr(os, "killpg"):
                os.killpg(self._process.pid, signal.SIGKILL)  # it leads a group of its own
            else:
                self._process.kill()

    def _send(self, message: Message) -> None:
        self._write(encode(message))

    def _write(self, frame: bytes) -> None:
        assert self._process.stdin is not None
        if not self._process.stdin.is_closing():
            self._process.stdin.write(frame)

    def _fail(self, error: GarzoneError) -> None:
        """Everybody who waits for this process learns that it is of no more use."""
        self._failed = self._failed or error
        if self._pinger is not None:
            self._pinger.cancel()
        for queue in self._answers.values():
            queue.put_nowait(error)
        if not self._loading.done():
            self._loading.set_exception(error)
            self._loading.exception()  # retrieved: there may be nobody waiting

    async def _read(self) -> None:
        assert self._process.stdout is not None
        decoder = FrameDecoder()
        reason = ""
        try:
            while data := await self._process.stdout.read(READ_BYTES):
                for message in map(parse, decoder.push(data)):
                    self._deliver(message)
        except ProtocolError as error:
            reason = f"; it wrote nonsense: {error}"
            self.kill()
        code = await self._process.wait()
        self.kill()  # compilers it started, if any
        await asyncio.wait(self._tasks[:1], timeout=1)  # the log's last lines; a grandchild may keep it open
        self._fail(RunnerCrashed(f"the model's process {_ending(code)}{reason}.{self._log_tail()}"))

    def _deliver(self, message: Message) -> None:
        if isinstance(message, Pong):
            self._num_missed = 0
            if message.beats != self._beats:
                self._beats, self._last_heard = message.beats, time.monotonic()
            return
        self._last_heard = time.monotonic()
        if isinstance(message, Accepted | Progress | Piece | Finished | Embedded | Failed):
            queue = self._answers.get(message.id)
            if queue is not None and not isinstance(message, Progress):
                queue.put_nowait(message)
        elif isinstance(message, Loaded | LoadFailed):
            if not self._loading.done():
                self._loading.set_result(message)
        elif isinstance(message, Hello):
            if message.version != PROTOCOL_VERSION:
                self.kill()
                self._fail(
                    BackendUnavailable("garzone was updated while this server ran; restart it to go on (garzone serve)")
                )
        else:
            raise ProtocolError(f"a {type(message).__name__} is not for the server")

    async def _read_stderr(self) -> None:
        assert self._process.stderr is not None
        partial = ""
        while data := await self._process.stderr.read(READ_BYTES):
            *lines, partial = (partial + data.decode(errors="replace")).split("\n")
            partial = partial[-4096:]
            for line in lines:
                _log.debug("runner %d: %s", self._process.pid, line)
                self._stderr.append(line)
        if partial:
            self._stderr.append(partial)

    def _watch(self) -> None:
        """Kill the process when it says nothing for too long while it should be answering."""
        left = self._last_heard + self._stall_timeout_s - time.monotonic()
        if left > 0:
            self._watchdog = asyncio.get_running_loop().call_later(left, self._watch)
            return
        limit = f"{self._stall_timeout_s:g} s"
        self._fail(RunnerCrashed(f"the model's process made no progress for {limit} and was killed.{self._log_tail()}"))
        self.kill()

    def _ping(self) -> None:
        """Ask whether the process is there, and kill it when it has not answered several times.

        Counted, not timed: while this machine sleeps, or this process is stopped, nobody asks.
        """
        if self._failed is not None:
            return
        if self._num_missed >= MISSED_PINGS:
            silent = f"{self._num_missed * self._ping_interval_s:g} s"
            self._fail(RunnerCrashed(f"the model's process is frozen: no answer for {silent}; it was killed."))
            self.kill()
            return
        self._num_missed += 1
        self._send(Ping())
        self._pinger = asyncio.get_running_loop().call_later(self._ping_interval_s, self._ping)

    def _log_tail(self) -> str:
        lines = [line for line in self._stderr if line.strip()][-SHOWN_LOG_LINES:]
        return " Its last words: " + " | ".join(lines) if lines else ""


class Answer:
    """One request as its process answers it. Losing interest in the middle of `next` loses no message."""

    def __init__(self, process: RunnerProcess, number: int, queue: asyncio.Queue[Message | GarzoneError]) -> None:
        self._process, self._number, self._queue = process, number, queue
        self.ended = False

    async def next(self) -> Accepted | Piece | Finished | Embedded:
        """The next message; Finished or Embedded is the last.

        Raises:
            GarzoneError: as the process reports; RunnerCrashed when it dies or hangs. Nothing comes after that.
        """
        message = await self._queue.get()
        if isinstance(message, Accepted | Piece):
            return message
        self.ended = True
        if isinstance(message, Finished | Embedded):
            self._process.end(self._number)
            return message
        if isinstance(message, GarzoneError):
            self._process.end(self._number)
            raise message
        assert isinstance(message, Failed)
        error = message.failure.to_exception()
        self._process.end(self._number, error if message.fatal else None)
        raise error

    async def cancel(self) -> None:
        """Stop it, and wait until the process has."""
        self._process.cancel(self._number)
        with contextlib.suppress(GarzoneError):  # nobody is left to be told
            while not self.ended:
                await self.next()


def _ending(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = "unknown"
    hint = "; was the memory full?" if name == "SIGKILL" else ""
    return f"was killed by signal {-code} ({name}){hint}"
