"""Who may use the server: an API key, where one is set. Compares, and decides nothing else.

Meant for servers that listen on more than loopback. The key comes as `Authorization: Bearer`, as `x-api-key`, or as the
password of HTTP's Basic authentication, which is what a browser asks a person for.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
from typing import Final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

OPEN_PATHS: Final = frozenset({"/", "/health"})


def keys_in(headers: Headers) -> list[str]:
    """All keys that a request carries."""
    found = [headers[name] for name in ("x-api-key", "api-key") if name in headers]
    scheme, _, credentials = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        found.append(credentials.strip())
    elif scheme.lower() == "basic":
        try:
            decoded = base64.b64decode(credentials.strip(), validate=True).decode("utf-8", "replace")
        except (binascii.Error, ValueError):
            decoded = ""
        found.append(decoded.partition(":")[2])
    return found


class KeyRequired:
    """ASGI middleware that lets nobody pass without the key, except to say hello and to preflight."""

    def __init__(self, app: ASGIApp, *, api_key: str) -> None:
        self._app = app
        self._digest = _digest(api_key)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the request through, or refuse it."""
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS:
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        preflight = scope["method"] == "OPTIONS" and "access-control-request-method" in headers
        # Digests, so that neither time nor length says anything about the key; every candidate is compared.
        right = [hmac.compare_digest(_digest(key), self._digest) for key in keys_in(headers)]
        if preflight or any(right):
            await self._app(scope, receive, send)
            return
        await _refuse(scope, send)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


async def _refuse(scope: Scope, send: Send) -> None:
    said = "this server wants an API key: Authorization: Bearer ..., or x-api-key"
    if scope["path"].startswith("/v1/messages"):
        document: object = {"type": "error", "error": {"type": "authentication_error", "message": said}}
    elif scope["path"].startswith("/v1/"):
        document = {
            "error": {"message": said, "type": "invalid_request_error", "param": None, "code": "invalid_api_key"}
        }
    else:
        document = {"error": said}
    body = json.dumps(document).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        # a browser asks its person for it, and sends it along with what the page asks for
        (b"www-authenticate", b'Basic realm="garzone", charset="UTF-8"' if scope["path"] == "/ui" else b"Bearer"),
    ]
    await send({"type": "http.response.start", "status": 401, "headers": headers})
    await send({"type": "http.response.body", "body": body})
