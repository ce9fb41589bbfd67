"""Fetches bytes over HTTP: small documents whole, large files resumably, with retries and back-off.

Does not know what is fetched, and believes nothing about it: digests are checked by whoever asked.
"""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Final
from urllib.parse import urlsplit, urlunsplit

import httpx2

from garzone import __version__
from garzone.core.errors import DownloadFailed
from garzone.store.blobs import Partial
from garzone.store.ranges import RangedDownload, RangeFailed, RangesRefused, Source, behind_proxy

USER_AGENT: Final = f"garzone/{__version__}"
MAX_ATTEMPTS: Final = 6  # in a row without a byte arriving; Ollama's number
MAX_BACKOFF_S: Final = 30.0
_RETRIED: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
_RELOCATED: Final = frozenset({401, 403, 404, 410})  # what a signed address answers when its time is up
_KEPT: Final = ("authorization", "cookie")
PARALLEL_BYTES: Final = 48 << 20  # below, one connection is as fast
_TIMEOUT: Final = httpx2.Timeout(30.0, connect=10.0, read=60.0)
_CONTENT_RANGE: Final = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")

BytesProgress = Callable[[int, int], None]
"""Called as (bytes done, bytes in all; 0 when unknown). What it raises ends the transfer; what arrived is kept."""


class Transfer:
    """An HTTP client for models. Close it, or use it as a context manager."""

    def __init__(self, *, backoff_s: float = 0.5, auth: httpx2.Auth | None = None) -> None:
        self._client = httpx2.Client(
            timeout=_TIMEOUT,
            follow_redirects=True,
            headers={"User-Agent": USER_AGENT, "Accept-Encoding": "identity"},
            auth=auth,
        )
        self._backoff_s = backoff_s

    def __enter__(self) -> Transfer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._client.close()

    def get(self, url: str, *, accept: str, limit: int) -> tuple[bytes, str, str]:
        """A small document: its bytes, content type and the URL it came from in the end.

        Raises:
            DownloadFailed: it could not be had, or has more than `limit` bytes. `status` says what the server said.
        """
        failures = 0
        while True:
            try:
                with self._open(url, {"Accept": accept}) as response:
                    _check_status(response, url)
                    body = bytearray()
                    for chunk in response.iter_bytes():
                        body += chunk
                        if len(body) > limit:
                            raise HTTPFailed(f"{shown(url)}: more than {limit} bytes, too long for what it should be")
                    return bytes(body), response.headers.get("content-type", ""), str(response.url)
            except (httpx2.TransportError, _TryAgain) as error:
                failures += 1
                self._wait(url, failures, error)

    def get_range(self, url: str, start: int, num_bytes: int) -> bytes:
        """Some bytes of a file; fewer where it ends before.

        Raises:
            DownloadFailed: they could not be had, or the server gives out only whole files and `start` is not 0.
        """
        failures = 0
        while True:
            try:
                with self._open(url, {"Range": f"bytes={start}-{start + num_bytes - 1}"}) as response:
                    _check_status(response, url)
                    if start and response.status_code != 206:
                        raise HTTPFailed(f"{shown(url)}: the server gives out only the whole file")
                    body = bytearray()
                    for chunk in response.iter_raw():
                        body += chunk
                        if len(body) >= num_bytes:  # of a server that does not know ranges no more than asked for
                            break
                    return bytes(body[:num_bytes])
            except (httpx2.TransportError, _TryAgain) as error:
                failures += 1
                self._wait(url, failures, error)

    def download(
        self, url: str, partial: Partial, *, size: int = 0, progress: BytesProgress | None = None, fresh: bool = False
    ) -> None:
        """Complete a partial file, going on where it ends.

        Args:
            url: where from.
            partial: what is there is kept and continued.
            size: bytes in all, 0 if not known beforehand; more than these are refused.
            progress: see BytesProgress.
            fresh: begin again instead.

        Raises:
            DownloadFailed: it could not be had; what arrived is in the partial file.
        """
        report = progress or _no_report
        if fresh:
            partial.restart()
        else:
            partial.reuse(lambda done: report(done, size))
        if size and partial.size > size:
            partial.restart()
        failures = 0
        while not size or partial.size < size:
            before = partial.size
            try:
                self._continue(url, partial, size, report)
            except (httpx2.TransportError, _TryAgain) as error:
                failures = 1 if partial.size > before else failures + 1
                self._wait(url, failures, error)
            else:
                if not size:
                    return

    def download_whole(
        self, url: str, partial: Partial, *, size: int, progress: BytesProgress | None = None, fresh: bool = False
    ) -> None:
        """As `download`, of a file whose size is known: over several connections where it is large enough.

        Raises:
            DownloadFailed: it could not be had; what arrived is in the partial file.
        """
        if size < PARALLEL_BYTES or behind_proxy(url):
            self.download(url, partial, size=size, progress=progress, fresh=fresh)
            return
        if fresh:
            partial.restart()
        try:
            # Made here: whoever calls may have changed what certificates are trusted.
            context = httpx2.create_ssl_context() if url.startswith("https:") else None
            ranged = RangedDownload(
                partial, size, lambda: self._locate(url, size), functools.partial(self._give_up, url), context=context
            )
            ranged.run(progress or _no_report)
        except RangesRefused:
            self.download(url, partial, size=size, progress=progress)

    def _locate(self, url: str, size: int) -> Source:
        """Where the file lies in the end, and with which token it is given out."""
        failures = 0
        while True:
            try:
                with self._open(url, {"Range": "bytes=0-0"}) as response:
                    _check_status(response, url)
                    match = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
                    if response.status_code != 206 or match is None or behind_proxy(str(response.url)):
                        raise RangesRefused("the server ignores ranges, or is behind a proxy")
                    if match[3] != str(size):
                        raise HTTPFailed(f"{shown(url)}: has {match[3]} bytes, not the {size} it should have")
                    kept = [
                        (name, response.request.headers[name]) for name in _KEPT if name in response.request.headers
                    ]
                    return Source(str(response.url), (("User-Agent", USER_AGENT), *kept))
            except (httpx2.TransportError, _TryAgain) as error:
                failures += 1
                self._wait(url, failures, error)

    def _give_up(self, url: str, failures: int, error: RangeFailed, pause: Callable[[float], object]) -> None:
        if error.status and error.status not in _RETRIED | _RELOCATED:
            raise HTTPFailed(f"{shown(url)}: HTTP {error.status}", error.status)
        self._wait(url, failures, _TryAgain(str(error), error.retry_after_s, error.status), pause)

    def _continue(self, url: str, partial: Partial, size: int, report: BytesProgress) -> None:
        headers = {"Range": f"bytes={partial.size}-"} if partial.size else {}
        with self._open(url, headers) as response:
            if response.status_code == 416:
                if not size and response.headers.get("content-range", "") == f"bytes */{partial.size}":
                    return  # nothing is missing
                partial.restart()
                raise _TryAgain("the server has fewer bytes than had arrived before; starting over")
            _check_status(response, url)
            total = size
            if response.status_code == 206:
                match = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
                if match is None or int(match[1]) != partial.size:
                    partial.restart()
                    raise _TryAgain("the server answered with another range than asked for; starting over")
                total = total or (0 if match[3] == "*" else int(match[3]))
            elif partial.size:
                partial.restart()  # it does not know ranges
            total = total or partial.size + int(response.headers.get("content-length", 0))
            for chunk in response.iter_raw():  # as they come: collecting them would lose some when the line breaks
                if size and partial.size + len(chunk) > size:
                    partial.discard()
                    raise HTTPFailed(f"{shown(url)}: sends more than the {size} bytes it should have")
                partial.write(chunk)
                report(partial.size, total)
        if size and partial.size < size:
            raise _TryAgain(f"the connection ended after {partial.size} of {size} bytes")

    @contextmanager
    def _open(self, url: str, headers: Mapping[str, str]) -> Generator[httpx2.Response]:
        if urlsplit(url).scheme not in ("http", "https"):
            raise HTTPFailed(f"{shown(url)}: only http and https can be fetched from")
        try:
            with self._client.stream("GET", url, headers=dict(headers)) as response:
                yield response
        except (httpx2.InvalidURL, httpx2.UnsupportedProtocol, httpx2.TooManyRedirects) as error:
            raise HTTPFailed(f"{shown(url)}: {error}") from error

    def _wait(self, url: str, failures: int, error: Exception, pause: Callable[[float], object] = time.sleep) -> None:
        if failures >= MAX_ATTEMPTS:
            status = error.status if isinstance(error, _TryAgain) else 0
            raise HTTPFailed(
                f"{shown(url)}: {_reason(error)}; given up after {failures} attempts. "
                "What arrived is kept: run the same command again to go on",
                status,
            ) from error
        asked = error.retry_after_s if isinstance(error, _TryAgain) else 0.0
        pause(min(MAX_BACKOFF_S, max(asked, self._backoff_s * 2 ** (failures - 1))))


class HTTPFailed(DownloadFailed):
    """A DownloadFailed that knows the HTTP status, 0 where there was none."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class _TryAgain(Exception):
    """The server answered with something that may pass."""

    def __init__(self, message: str, retry_after_s: float = 0.0, status: int = 0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.status = status


def _no_report(done: int, total: int) -> None:
    """Nobody wants to know."""


def shown(url: str) -> str:
    """A URL fit for a message: no password, no signed query."""
    try:
        parts = urlsplit(url)
        return urlunsplit((parts.scheme, parts.netloc.rsplit("@", 1)[-1], parts.path, "", ""))
    except ValueError:
        return "the given URL"


def _check_status(response: httpx2.Response, url: str) -> None:
    status = response.status_code
    if status in (200, 206):
        return
    if status in _RETRIED:
        after = response.headers.get("retry-after", "")
        raise _TryAgain(f"HTTP {status}", float(after) if after.isdigit() else 0.0, status)
    what = {401: "it wants credentials", 403: "access is refused", 404: "there is no such file"}.get(status, "")
    raise HTTPFailed(f"{shown(url)}: HTTP {status}" + (f", {what}" if what else ""), status)


def _reason(error: Exception) -> str:
    if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout):
        return f"cannot connect ({error})"
    if isinstance(error, httpx2.TimeoutException):
        return "no answer in time"
    return str(error) or type(error).__name__
