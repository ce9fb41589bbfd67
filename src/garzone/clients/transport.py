"""One HTTP server that generates text: requests, streamed lines, retries, and its failures as garzone's exceptions.

Knows no protocol: what a body means is the clients' business. Retries only while nothing of an answer has arrived;
after that a failure is final, since what was generated so far may have been used.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final, cast
from urllib.parse import urlsplit, urlunsplit

import httpx2

from garzone import __version__
from garzone.core.errors import (
    BackendUnavailable,
    ContextOverflow,
    GarzoneError,
    GenerationFailed,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
)

CONNECT_TIMEOUT_S: Final = 5.0
MAX_ATTEMPTS: Final = 5
FIRST_ATTEMPTS: Final = 3  # while nothing has answered at this address: most likely nothing is there
MAX_WAIT_S: Final = 20.0  # between two attempts, whatever the server asks for
MAX_BODY_BYTES: Final = 64 << 20
MAX_LINE_BYTES: Final = 16 << 20
CHARS_PER_TOKEN: Final = 3.0  # code has 3 to 4 characters a token (EVIDENCE.md): rather too many tokens than too few

_THIS_MACHINE: Final = frozenset({"localhost", "127.0.0.1", "::1"})
_OVERFLOW: Final = re.compile(
    r"prompt is too long|context[ _](length|size|window)|exceeds? .{0,40}context|maximum context|n_ctx|too many tokens",
    re.IGNORECASE,
)
_NUMBERS: Final = re.compile(r"\d{2,9}")


class Unreachable(BackendUnavailable):
    """Nobody is there, or nobody who lets us in: asking for something else is of no use."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request was about, for messages: the model, and how many tokens were sent to how large a context."""

    model: str = ""
    prompt_tokens: int = 0
    context_tokens: int = 0


class Transport:
    """Requests to one server. `base_url` is as given, without a trailing slash and without credentials."""

    def __init__(
        self, base_url: str, *, timeout_s: float, headers: Mapping[str, str] | None = None, backoff_s: float = 0.25
    ) -> None:
        """Prepare; nothing is sent yet.

        Args:
            base_url: where the server is.
            timeout_s: how long it may be silent: loading a model and reading a long prompt take minutes.
            headers: sent with every request.
            backoff_s: wait before the second attempt; doubled for each further one.

        Raises:
            InvalidRequest: not an http or https URL.
        """
        try:
            parts = urlsplit(base_url)
            usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
        except ValueError as error:
            raise InvalidRequest(f"{base_url!r} is not the address of a server: {error}") from error
        if not usable:
            raise InvalidRequest(f"{base_url!r} is not the address of a server: expected http://host:port")
        self._url = base_url.rstrip("/")
        self.base_url = self._url.replace(parts.netloc, parts.netloc.rpartition("@")[2], 1)  # for messages: no password
        self._timeout_s = timeout_s
        self._backoff_s = backoff_s
        self._reached = False  # a server was there once: if it is not now, it may be restarting
        self._client = httpx2.AsyncClient(
            timeout=httpx2.Timeout(timeout_s, connect=CONNECT_TIMEOUT_S),
            limits=httpx2.Limits(max_connections=None),
            headers={"User-Agent": f"garzone/{__version__}", **(headers or {})},
            # Reading the system's certificates takes 0.3 s. Without TLS they are of no use; redirects are not followed.
            verify=parts.scheme == "https",
            trust_env=parts.hostname not in _THIS_MACHINE,  # no proxy leads back to this machine
        )

    async def aclose(self) -> None:
        """Close all connections."""
        await self._client.aclose()

    async def get_json(self, path: str, *, timeout_s: float | None = None) -> dict[str, Any]:
        """A JSON object by GET. Raises as `lines`."""
        return await self._json("GET", path, None, Asked(), timeout_s)

    async def post_json(
        self, path: str, body: Mapping[str, Any], asked: Asked, *, timeout_s: float | None = None
    ) -> dict[str, Any]:
        """A JSON object by POST. Raises as `lines`."""
        return await self._json("POST", path, body, asked, timeout_s)

    async def lines(self, path: str, body: Mapping[str, Any], asked: Asked) -> AsyncGenerator[bytes]:
        """Post `body` and stream the lines of the answer, without their ends; empty ones are left out.

        Closing the generator closes the connection.

        Raises:
            ModelNotFound, InvalidRequest, ContextOverflow, Overloaded, BackendUnavailable, GenerationFailed.
        """
        async with self._open("POST", path, body, asked, None) as response:
            rest = b""
            try:
                async for chunk in response.aiter_bytes():
                    *whole, rest = (rest + chunk).split(b"\n")
                    for line in whole:
                        if line.strip():
                            yield line.strip()
                    if len(rest) > MAX_LINE_BYTES:
                        raise self.nonsense(f"a line of more than {MAX_LINE_BYTES} bytes")
            except httpx2.TimeoutException as error:
                raise GenerationFailed(f"{self.base_url}: silent for {self._timeout_s:.0f} s amid an answer") from error
            except (httpx2.TransportError, httpx2.DecodingError) as error:
                raise GenerationFailed(f"{self.base_url}: the connection broke amid an answer: {error}") from error
            if rest.strip():
                yield rest.strip()

    def nonsense(self, what: str) -> BackendUnavailable:
        """The error for an answer that cannot be understood."""
        return BackendUnavailable(f"{self.base_url}: answers nonsense ({what}): is this the right address?")

    def parse(self, raw: bytes) -> dict[str, Any]:
        """A JSON object.

        Raises:
            BackendUnavailable: it is not one.
        """
        try:
            document: object = json.loads(raw)
        except (ValueError, RecursionError) as error:
            raise self.nonsense(f"not JSON: {raw[:80]!r}") from error
        if not isinstance(document, dict):
            raise self.nonsense(f"not a JSON object: {raw[:80]!r}")
        return cast("dict[str, Any]", document)

    async def _json(
        self, method: str, path: str, body: Mapping[str, Any] | None, asked: Asked, timeout_s: float | None
    ) -> dict[str, Any]:
        async with self._open(method, path, body, asked, timeout_s) as response:
            return self.parse(await self._read(response))

    @contextlib.asynccontextmanager
    async def _open(
        self, method: str, path: str, body: Mapping[str, Any] | None, asked: Asked, timeout_s: float | None
    ) -> AsyncGenerator[httpx2.Response]:
        response = await self._first_bytes(method, path, body, asked, timeout_s)
        try:
            yield response
        finally:
            await response.aclose()

    async def _first_bytes(
        self, method: str, path: str, body: Mapping[str, Any] | None, asked: Asked, timeout_s: float | None
    ) -> httpx2.Response:
        """A response of status 200 whose body has not been read."""
        timeout = httpx2.Timeout(timeout_s or self._timeout_s, connect=min(CONNECT_TIMEOUT_S, timeout_s or 1e9))
        attempt = 0
        while True:
            attempt += 1
            wait_s = min(MAX_WAIT_S, self._backoff_s * 2 ** (attempt - 1))
            request = self._client.build_request(method, self._url + path, json=body, timeout=timeout)
            try:
                response = await self._client.send(request, stream=True)
            except httpx2.ConnectError as error:
                if attempt >= (MAX_ATTEMPTS if self._reached else FIRST_ATTEMPTS):
                    raise Unreachable(f"cannot reach {self.base_url}: is it running?") from error
            except httpx2.TimeoutException as error:
                if isinstance(error, httpx2.ConnectTimeout):
                    raise Unreachable(f"cannot reach {self.base_url}: no answer; is it running?") from error
                waited = timeout_s or self._timeout_s
                raise BackendUnavailable(f"{self.base_url}: no answer within {waited:.0f} s") from error
            except httpx2.TransportError as error:
                raise BackendUnavailable(f"{self.base_url}: hung up without an answer: {error}") from error
            else:
                self._reached = True
                if response.status_code == 200:
                    return response
                try:
                    failure = self._failure(response, await self._read(response), asked)
                finally:
                    await response.aclose()
                if not isinstance(failure, Overloaded) or attempt >= MAX_ATTEMPTS:
                    raise failure
                wait_s = min(MAX_WAIT_S, max(wait_s, _retry_after_s(response.headers.get("retry-after", ""))))
            await asyncio.sleep(wait_s)

    async def _read(self, response: httpx2.Response) -> bytes:
        body = bytearray()
        try:
            async for chunk in response.aiter_bytes():
                body += chunk
                if len(body) > MAX_BODY_BYTES:
                    raise self.nonsense(f"more than {MAX_BODY_BYTES} bytes")
        except (httpx2.TransportError, httpx2.DecodingError) as error:
            raise BackendUnavailable(f"{self.base_url}: the connection broke amid an answer: {error}") from error
        return bytes(body)

    def _failure(self, response: httpx2.Response, body: bytes, asked: Asked) -> GarzoneError:
        """What a status other than 200 means."""
        status = response.status_code
        message, fields = error_message(body)
        if status in (429, 503, 529):  # 529: Anthropic's own for overloaded
            return Overloaded(f"{self.base_url}: too busy (HTTP {status}: {message}); try again later")
        if status in (400, 413, 422, 500) and (overflow := _overflow(message, fields, asked)):
            return overflow
        if status == 404:
            if asked.model and fields and "model" in message.lower():
                return ModelNotFound(asked.model, f"says {self.base_url}")
            return self.nonsense(f"HTTP 404 for {response.request.url.path}")
        if status in (401, 403):
            return Unreachable(f"{self.base_url}: access refused (HTTP {status}: {message}); check the API key")
        if status in (400, 413, 422):
            return InvalidRequest(f"{self.base_url}: refuses the request: {message}")
        if status == 500:
            return GenerationFailed(f"{self.base_url}: failed: {message}")
        return BackendUnavailable(f"{self.base_url}: HTTP {status}: {message}")


def _retry_after_s(value: str) -> float:
    """What a Retry-After header asks for, in seconds: a number, or a date (RFC 9110, 10.2.3); 0 for anything else."""
    try:
        return max(float(value), 0.0)
    except ValueError:
        pass
    try:
        at = parsedate_to_datetime(value)
    except ValueError:
        return 0.0
    return max((at - datetime.now(tz=at.tzinfo or UTC)).total_seconds(), 0.0)


def error_message(body: bytes) -> tuple[str, dict[str, Any]]:
    """What an error body says, and the fields it says it in; no fields if it is not JSON.

    Understands `{"error": "..."}`, `{"error": {"message": ...}}`, and `{"message": ...}`.
    """
    try:
        document: object = json.loads(body)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        return (body[:200].decode("utf-8", "replace").strip() or "no explanation"), {}
    fields = cast("dict[str, Any]", document)
    inner = fields.get("error")
    if isinstance(inner, dict):
        fields = cast("dict[str, Any]", inner)
    said = inner if isinstance(inner, str) else fields.get("message") or fields.get("detail")
    return (str(said)[:500] if said else json.dumps(fields)[:200]), fields


def without_v1(url: str) -> str:
    """A server's address with a trailing `/v1` taken off.

    Raises:
        InvalidRequest: not a URL.
    """
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise InvalidRequest(f"{url!r} is not the address of a server: {error}") from error
    return urlunsplit((parts.scheme, parts.netloc, parts.path.rstrip("/").removesuffix("/v1"), "", ""))


def estimate_tokens(text: str) -> int:
    """A cautious guess at the number of tokens where the backend does not tell."""
    return -int(-len(text.encode()) // CHARS_PER_TOKEN)


def _overflow(message: str, fields: Mapping[str, Any], asked: Asked) -> ContextOverflow | None:
    if not _OVERFLOW.search(message) and fields.get("code") != "context_length_exceeded":
        return None
    # Whatever the wording, the smaller number is the context and the larger one what was sent.
    given = [fields[key] for key in ("n_prompt_tokens", "n_ctx") if isinstance(fields.get(key), int)]
    numbers = sorted(cast("list[int]", given) or [int(number) for number in _NUMBERS.findall(message)])
    if len(numbers) >= 2:
        return ContextOverflow(numbers[-1], numbers[0])
    context = numbers[0] if numbers else asked.context_tokens
    return ContextOverflow(max(asked.prompt_tokens, context + 1), context)
