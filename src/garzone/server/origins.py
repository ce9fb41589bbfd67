"""Who may talk to a server on loopback: decides about Host and Origin headers, and answers CORS preflights.

A web page that is open in a browser on this machine can reach every port here. The Host header stops the one that made
its own name point here (DNS rebinding); the Origin header stops all others. Not authentication: whoever can open a
socket can leave both out.
"""

from __future__ import annotations

import fnmatch
import ipaddress
import json
import socket
from collections.abc import Sequence
from typing import Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOCAL_NAMES: Final = ("localhost", "127.0.0.1", "0.0.0.0", "::1")  # noqa: S104  compared, not bound
LOCAL_SUFFIXES: Final = (".localhost", ".local", ".internal")
APP_SCHEMES: Final = ("app", "file", "tauri")
PREFLIGHT_MAX_AGE_S: Final = 43200


def host_allowed(header: str) -> bool:
    """Whether a Host header names this machine: an address, `localhost`, its own name, or a name that stays local."""
    host = (urlsplit(f"//{header}").hostname or "").rstrip(".") if header else ""
    if not host or host in LOCAL_NAMES or host.endswith(LOCAL_SUFFIXES) or host == socket.gethostname().lower():
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address.is_private or address.is_unspecified


def origin_allowed(origin: str, host: str, patterns: Sequence[str]) -> bool:
    """Whether a page of that origin may use the server: local ones, the server's own, desktop apps, and `patterns`."""
    lowered = origin.lower()
    if any(fnmatch.fnmatchcase(lowered, pattern.lower()) for pattern in patterns):
        return True
    parts = urlsplit(lowered)
    if parts.scheme in APP_SCHEMES or parts.scheme.startswith("vscode-"):
        return True
    if parts.scheme not in ("http", "https"):
        return False
    return parts.hostname in LOCAL_NAMES or parts.netloc == host.lower()


class Guard:
    """ASGI middleware that refuses what the two functions above refuse, and adds the headers that browsers want."""

    def __init__(self, app: ASGIApp, *, check_host: bool, origins: Sequence[str] = ()) -> None:
        self._app = app
        self._check_host = check_host
        self._origins = tuple(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the request through, or answer it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        try:
            if self._check_host and not host_allowed(host):
                await _refuse(send, f"host '{host}' is not this machine")
                return
            if origin is None:
                await self._app(scope, receive, send)
                return
            allowed = origin_allowed(origin, host, self._origins)
        except ValueError:  # urlsplit on nonsense
            allowed = False
        if not allowed:
            await _refuse(send, f"origin '{origin}' is not allowed; add it to OLLAMA_ORIGINS if it should be")
            return
        if scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
            await _answer_preflight(send, origin or "", headers.get("access-control-request-headers", "*"))
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                added = MutableHeaders(scope=message)
                added["access-control-allow-origin"] = origin or ""
                added.add_vary_header("origin")
            await send(message)

        await self._app(scope, receive, send_with_headers)


async def _refuse(send: Send, reason: str) -> None:
    body = json.dumps({"error": reason}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 403, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _answer_preflight(send: Send, origin: str, wanted: str) -> None:
    headers = {
        "access-control-allow-origin": origin,
        "access-control-allow-methods": "GET, HEAD, POST, PUT, PATCH, DELETE",
        "access-control-allow-headers": wanted,
        "access-control-max-age": str(PREFLIGHT_MAX_AGE_S),
        "vary": "origin",
    }
    raw = [(name.encode(), value.encode("latin-1", "ignore")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": 204, "headers": raw})
    await send({"type": "http.response.body", "body": b""})
