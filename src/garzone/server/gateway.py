"""The gateway: passes requests for the coordinator's models on to Anthropic untouched, keeps small ones here.

Opt-in (`garzone serve --gateway`). Headers, cache markers, streams and errors are passed on byte for byte. Reads the
model's name and, of requests without tools, the system prompt; keeps, counts and logs nothing of them.
"""

from __future__ import annotations

import asyncio
import fnmatch
import ipaddress
import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, cast
from urllib.parse import urlsplit

import httpx2
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from garzone.core.errors import UsageError

ANTHROPIC: Final = "https://api.anthropic.com"
PATHS: Final = ("/v1/messages", "/v1/messages/count_tokens")
CONNECT_TIMEOUT_S: Final = 15.0
MAX_BODY_BYTES: Final = 256 << 20
MAX_BACKGROUND_CHARS: Final = 24_000  # of a whole request: what is longer is no title and no short summary
# RFC 9110, 7.6.1: of this connection only. `host` and the length of the body are said anew; uvicorn says the date.
HOP_BY_HOP: Final = frozenset(
    b"connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer transfer-encoding "
    b"upgrade".split()
)
_log = logging.getLogger(__name__)


class Place(Enum):
    """Who answers a request."""

    UPSTREAM = "upstream"
    HERE = "here"
    UNCHANGED = "unchanged"


@dataclass(frozen=True, slots=True)
class GatewayRules:
    """What goes where. Patterns have `*` as wildcard and do not mind case.

    `forward` are names of models that go to `upstream`; `local` are those of them that are answered here all the same.
    `background` are patterns for the system prompt of small requests without tools (titles, summaries), also answered
    here. `model` is which local model answers.
    """

    model: str
    upstream: str = ANTHROPIC
    forward: tuple[str, ...] = ("claude-*",)
    local: tuple[str, ...] = ()
    background: tuple[str, ...] = ("*title*", "*summar*")

    def __post_init__(self) -> None:
        """Refuse an upstream to which keys would go in clear.

        Raises:
            UsageError: neither https nor this machine.
        """
        parts = urlsplit(self.upstream)
        if parts.scheme == "https" and parts.hostname:
            return
        if parts.scheme != "http" or not _is_loopback(parts.hostname or ""):
            raise UsageError(
                f"gateway_upstream {self.upstream!r}: give an https URL (http only on this machine): keys go there"
            )

    def place(self, document: Mapping[str, Any], num_chars: int) -> Place:
        """Decide about one request.

        Args:
            document: its body.
            num_chars: how long that is.
        """
        name = document.get("model")
        if not isinstance(name, str) or not _matches(name, self.forward):
            return Place.UNCHANGED
        if _matches(name, self.local):
            return Place.HERE
        small = num_chars <= MAX_BACKGROUND_CHARS and not document.get("tools")
        if small and self.background and _matches(_system_text(document), self.background):
            return Place.HERE
        return Place.UPSTREAM


class Gateway:
    """ASGI middleware before the server's own routes."""

    def __init__(self, app: ASGIApp, rules: GatewayRules, *, max_body_bytes: int = MAX_BODY_BYTES) -> None:
        self._app = app
        self._rules = rules
        self._max_body_bytes = max_body_bytes
        self._transport = httpx2.AsyncHTTPTransport(trust_env=True, retries=0)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward a request, answer it here under the local model's name, or leave it as it is."""
        if scope["type"] != "http" or scope["method"] != "POST" or scope["path"] not in PATHS:
            await self._app(scope, receive, send)
            return
        body = await self._body(receive)
        if body is None:
            return
        document = _document(body)
        place = self._rules.place(document, len(body))
        if place is Place.UPSTREAM:
            await self._forward(scope, body, receive, send)
            return
        if place is Place.HERE:
            body = json.dumps({**document, "model": self._rules.model}, ensure_ascii=False).encode()
            headers = [(k, v) for k, v in scope["headers"] if k != b"content-length"]
            scope = {**scope, "headers": [*headers, (b"content-length", b"%d" % len(body))]}
        await self._app(scope, _replayed(body, receive), send)

    async def _body(self, receive: Receive) -> bytes | None:
        """The whole body; None if the client has gone. One that is too long is cut, and then refused."""
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
            if not message.get("more_body") or len(body) > self._max_body_bytes:
                return bytes(body)

    async def _forward(self, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
        work = asyncio.create_task(self._exchange(scope, body, send))
        gone = asyncio.create_task(_gone(receive))
        try:
            await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (work, gone):
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task

    async def _exchange(self, scope: Scope, body: bytes, send: Send) -> None:
        request = httpx2.Request(
            scope["method"],
            self._url(scope),
            headers=self._headers(scope["headers"], len(body)),
            content=body,
            extensions={"timeout": {"connect": CONNECT_TIMEOUT_S, "read": None, "write": None, "pool": None}},
        )
        try:
            response = await self._transport.handle_async_request(request)
        except httpx2.TransportError as error:
            _log.warning("%s cannot be reached: %s", self._rules.upstream, type(error).__name__)
            await _refuse(send, f"{self._rules.upstream} cannot be reached ({type(error).__name__})")
            return
        try:
            headers = [(k.lower(), v) for k, v in response.headers.raw]
            kept = [(k, v) for k, v in headers if k not in HOP_BY_HOP and k != b"date"]
            await send({"type": "http.response.start", "status": response.status_code, "headers": kept})
            async for chunk in cast(httpx2.AsyncByteStream, response.stream):  # as it came, compressed or not
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            await response.aclose()

    def _url(self, scope: Scope) -> str:
        query = scope.get("query_string", b"").decode("latin-1")
        path = cast(bytes, scope.get("raw_path") or scope["path"].encode()).decode("latin-1")
        return f"{self._rules.upstream.rstrip('/')}{path}{'?' if query else ''}{query}"

    def _headers(self, headers: Sequence[tuple[bytes, bytes]], num_bytes: int) -> list[tuple[bytes, bytes]]:
        named = b",".join(value for name, value in headers if name == b"connection").lower()
        dropped = HOP_BY_HOP | {b"host", b"content-length"} | {name.strip() for name in named.split(b",")}
        kept = [(name, value) for name, value in headers if name not in dropped]
        host = urlsplit(self._rules.upstream).netloc.rpartition("@")[2].encode()
        return [(b"host", host), *kept, (b"content-length", b"%d" % num_bytes)]


def _replayed(body: bytes, receive: Receive) -> Receive:
    """`receive` once more from the start."""
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return pending.pop() if pending else await receive()

    return again


def _document(body: bytes) -> dict[str, Any]:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return {}  # the server's own route says what is wrong with it
    return cast("dict[str, Any]", document) if isinstance(document, dict) else {}


def _system_text(document: Mapping[str, Any]) -> str:
    system = document.get("system")
    if isinstance(system, str):
        return system
    blocks = cast("list[Any]", system) if isinstance(system, list) else []
    return " ".join(str(cast("dict[str, Any]", block).get("text", "")) for block in blocks if isinstance(block, dict))


def _matches(text: str, patterns: Sequence[str]) -> bool:
    lowered = text.lower()
    return any(fnmatch.fnmatchcase(lowered, pattern.lower()) for pattern in patterns)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _refuse(send: Send, message: str) -> None:
    document = {"type": "error", "error": {"type": "api_error", "message": message}}
    body = json.dumps(document).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 502, "headers": headers})
    await send({"type": "http.response.body", "body": body})
