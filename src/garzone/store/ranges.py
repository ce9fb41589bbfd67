"""Fetches one large file over several connections at once, each for a range of it, resumably.

The partial file holds the bytes at their places and, behind them, how far each range has come; so whatever moment the
process dies at, the next one fetches only what is missing. The digest is computed while bytes arrive, in the order of
the file. Does not decide what is worth it, and believes nothing about the bytes: digests are checked by whoever asked.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from garzone.store.blobs import Partial

RANGE_BYTES: Final = 32 << 20  # one request; small enough that the digest follows closely
NUM_STREAMS: Final = 3  # as fast as curl on loopback; with 4 and more, threads wait for each other (docs/server.md)
READ_BYTES: Final = 1 << 20
STALL_S: Final = 20.0  # a connection that brings nothing for so long is given up; Ollama's number is 5
_NOTE_BYTES: Final = 4 << 20  # how often the progress of a range is written down
_JOIN_S: Final = 1.0
_MAGIC: Final = b"gzrange1"
_HEAD: Final = struct.Struct("<8sQQ")  # magic, size of the file, size of a range
_COUNT: Final = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class Source:
    """Where ranges come from, after redirects. `headers` carry a token where that server wants one."""

    url: str
    headers: tuple[tuple[str, str], ...] = ()


class RangesRefused(Exception):
    """The server does not answer ranges as it should: the file must be fetched from front to back."""


class RangeFailed(Exception):
    """A range broke off. `status` is what the server said, 0 where it said nothing."""

    def __init__(self, message: str, status: int = 0, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after_s = retry_after_s


Locate = Callable[[], Source]
"""Asks the origin where the file is now. Raises what should end the download."""

GiveUp = Callable[[int, RangeFailed, Callable[[float], object]], None]
"""Called with the number of failures in a row of one range: pauses by the function it is given, or raises what should
end the download."""


def behind_proxy(url: str) -> bool:
    """Whether requests to `url` go through a proxy, which this module does not speak to."""
    parts = urlsplit(url)
    return parts.scheme in getproxies() and not proxy_bypass(parts.hostname or "")


class _Ledger:
    """How much of each range is there: an array of counts behind the file's own bytes."""

    def __init__(self, partial: Partial, size: int, range_bytes: int) -> None:
        self.size, self.range_bytes = size, range_bytes
        self.descriptor = os.dup(partial.fileno())
        count = -(-size // range_bytes)
        length = os.fstat(self.descriptor).st_size
        stored = self._read(count) if length == size + _HEAD.size + count * _COUNT.size else None
        if stored is None:  # a part that was fetched from front to back, of this size at most, or nothing
            front = length if length < size else 0
            stored = [max(0, min(range_bytes, front - index * range_bytes)) for index in range(count)]
            body = b"".join(map(_COUNT.pack, stored))
            os.ftruncate(self.descriptor, front)
            os.pwrite(self.descriptor, _HEAD.pack(_MAGIC, size, range_bytes) + body, size)
        self.counts = stored

    def _read(self, count: int) -> list[int] | None:
        head = os.pread(self.descriptor, _HEAD.size, self.size)
        if head != _HEAD.pack(_MAGIC, self.size, self.range_bytes):
            return None
        raw = os.pread(self.descriptor, count * _COUNT.size, self.size + _HEAD.size)
        counts = [number for (number,) in _COUNT.iter_unpack(raw)]
        whole = all(number <= self.length_of(index) for index, number in enumerate(counts))
        return counts if whole else None

    def length_of(self, index: int) -> int:
        return min(self.range_bytes, self.size - index * self.range_bytes)

    def note(self, index: int) -> None:
        """Write a count down, after the bytes it stands for."""
        os.pwrite(self.descriptor, _COUNT.pack(self.counts[index]), self.size + _HEAD.size + index * _COUNT.size)

    def front(self) -> int:
        """Bytes from the beginning without a hole."""
        for index, number in enumerate(self.counts):
            if number < self.length_of(index):
                return index * self.range_bytes + number
        return self.size

    def close(self) -> None:
        os.close(self.descriptor)


class RangedDownload:
    """One file's download. Made for one call of `run`."""

    def __init__(
        self,
        partial: Partial,
        size: int,
        locate: Locate,
        give_up: GiveUp,
        *,
        context: ssl.SSLContext | None = None,
    ) -> None:
        self._partial, self._size = partial, size
        self._locate, self._give_up = locate, give_up
        self._context = context
        self._source = locate()
        self._locating = threading.Lock()
        self._ledger = _Ledger(partial, size, RANGE_BYTES)
        self._missing = [i for i, n in enumerate(self._ledger.counts) if n < self._ledger.length_of(i)]
        self._next = 0
        self._lock = threading.Lock()
        self._moved = threading.Condition()
        self._stopped = threading.Event()
        self._connections: list[_Connection] = []
        self._error: BaseException | None = None
        self._num_users = 1  # of the file: the one that calls `run`, and the threads

    def run(self, progress: Callable[[int, int], None]) -> None:
        """Fetch what is missing and hash everything; the partial file is then complete, without the notes behind it.

        Raises:
            RangesRefused: and the partial file holds only what lies in front of the first hole.
            Whatever `progress`, `locate` and `give_up` raise; what arrived is kept.
        """
        threads = [
            threading.Thread(target=self._work, name=f"range {number}", daemon=True)
            for number in range(min(NUM_STREAMS, len(self._missing)))
        ]
        self._partial.restart(keep=True)
        self._num_users += len(threads)
        for thread in threads:
            thread.start()
        try:
            self._follow(progress)
            for thread in threads:  # they may still be writing their last notes
                thread.join()
        except BaseException as error:
            self._stopped.set()
            for connection in self._connections:
                connection.abort()
            deadline = time.monotonic() + _JOIN_S
            for thread in threads:  # one that is still connecting ends by itself, and keeps the lock until then
                thread.join(max(0.0, deadline - time.monotonic()))
            if isinstance(error, RangesRefused):
                os.ftruncate(self._partial.fileno(), self._ledger.front())
            raise
        finally:
            self._leave()
        os.ftruncate(self._partial.fileno(), self._size)

    def _follow(self, progress: Callable[[int, int], None]) -> None:
        """Hash behind the front, and say how far it is, until the end."""
        while self._partial.size < self._size:
            with self._moved:
                if self._error is not None:
                    raise self._error
                ready = self._ledger.front() - self._partial.size
                if not ready:
                    self._moved.wait(0.2)
            done = sum(self._ledger.counts)
            progress(done, self._size)
            while ready > 0:
                chunk = os.pread(self._ledger.descriptor, min(ready, READ_BYTES), self._partial.size)
                self._partial.note(chunk)
                ready -= len(chunk)
        progress(self._size, self._size)

    def _work(self) -> None:
        connection = _Connection(self._context)
        self._connections.append(connection)
        buffer = memoryview(bytearray(READ_BYTES))
        try:
            while not self._stopped.is_set():
                with self._lock:
                    if self._next >= len(self._missing):
                        return
                    index = self._missing[self._next]
                    self._next += 1
                self._fetch(index, connection, buffer)
        except BaseException as error:  # noqa: BLE001  told to the thread that waits
            with self._moved:
                self._error = self._error or error
                self._moved.notify_all()
            self._stopped.set()
        finally:
            connection.close()
            self._leave()

    def _leave(self) -> None:
        """The last one out closes the file, and with it gives up the lock on it."""
        with self._moved:
            self._num_users -= 1
            last = not self._num_users
        if last:
            self._ledger.close()

    def _fetch(self, index: int, connection: _Connection, buffer: memoryview) -> None:
        ledger, failures = self._ledger, 0
        while not self._stopped.is_set() and ledger.counts[index] < ledger.length_of(index):
            before, source = ledger.counts[index], self._source
            try:
                self._fetch_once(index, connection, source, buffer)
            except (OSError, http.client.HTTPException, RangeFailed) as error:
                connection.close()
                failed = error if isinstance(error, RangeFailed) else RangeFailed(_reason(error))
                failures = 1 if ledger.counts[index] > before else failures + 1
                self._give_up(failures, failed, self._stopped.wait)
                if failed.status in (401, 403, 404, 410):  # a signed address has run out: ask for a new one
                    self._relocate(source)
            finally:
                if ledger.counts[index] != before:
                    ledger.note(index)

    def _relocate(self, old: Source) -> None:
        with self._locating:
            if self._source is old:
                self._source = self._locate()

    def _fetch_once(self, index: int, connection: _Connection, source: Source, buffer: memoryview) -> None:
        ledger = self._ledger
        start = index * ledger.range_bytes + ledger.counts[index]
        end = index * ledger.range_bytes + ledger.length_of(index)
        response = connection.get(source, start, end)
        if response.status == 200:
            raise RangesRefused("the server ignores ranges")
        if response.status != 206:
            after = response.headers.get("retry-after", "")
            raise RangeFailed(f"HTTP {response.status}", response.status, float(after) if after.isdigit() else 0.0)
        if response.headers.get("content-range", "") != f"bytes {start}-{end - 1}/{self._size}":
            raise RangesRefused("the server answered with another range than asked for")
        noted, at = start, start
        while at < end:
            if self._stopped.is_set():
                connection.close()
                return
            count = response.readinto(buffer[: min(READ_BYTES, end - at)])
            if not count:
                raise RangeFailed(f"the connection ended after {at} of {self._size} bytes")
            written = 0
            while written < count:
                written += os.pwrite(ledger.descriptor, buffer[written:count], at + written)
            at += count
            ledger.counts[index] += count
            if at - noted >= _NOTE_BYTES:
                ledger.note(index)
                noted = at
            with self._moved:
                self._moved.notify_all()


class _Connection:
    """A connection that is kept between requests while the server allows it.

    The standard library's client, because its `readinto` puts a megabyte at a time from the socket to where it belongs:
    httpx2 hands out pieces of 64 kB, and costs more for each than the system does for its bytes (docs/store.md).
    """

    def __init__(self, context: ssl.SSLContext | None) -> None:
        self._context = context
        self._origin = ("", "")
        self._client: http.client.HTTPConnection | None = None

    def get(self, source: Source, start: int, end: int) -> http.client.HTTPResponse:
        """Ask for the bytes [start, end)."""
        parts = urlsplit(source.url)
        if self._client is None or self._origin != (parts.scheme, parts.netloc):
            self.close()
            self._origin = (parts.scheme, parts.netloc)
            host, port = parts.hostname or "", parts.port
            if parts.scheme == "https":
                self._client = http.client.HTTPSConnection(host, port, timeout=STALL_S, context=self._context)
            else:
                self._client = http.client.HTTPConnection(host, port, timeout=STALL_S)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        headers = {**dict(source.headers), "Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
        try:
            self._client.request("GET", target, headers=headers)
            return self._client.getresponse()
        except (http.client.BadStatusLine, BrokenPipeError, ConnectionResetError):
            self.close()  # it had been kept too long; the caller tries again
            raise

    def abort(self) -> None:
        """End what another thread waits for."""
        client = self._client
        sock = client.sock if client is not None else None
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.close()


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return str(error) or type(error).__name__
