"""A web server on loopback that behaves as registries do, and can be told to misbehave as they have been seen to.

Ranges, redirects, tokens; and connections that are cut, that stall or trickle, servers that ignore ranges, are busy, or
whose signed addresses have run out.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit


@dataclass
class Resource:
    """What one path answers. `cut_after` and `statuses` are used up one a request; then it behaves.

    `gate` holds the answer back after `gate_after` bytes until it is set. `slow_s` is slept after each 16 kB.
    """

    body: bytes = b""
    content_type: str = "application/octet-stream"
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict[str, str])
    ranges: bool = True
    cut_after: list[int] = field(default_factory=list[int])
    statuses: list[int] = field(default_factory=list[int])
    token: str = ""
    gate: threading.Event | None = None
    gate_after: int = 0
    slow_s: float = 0.0


class Web:
    """`with Web() as web: web.resources["/x"] = Resource(b"..."); web.url`. `requests` are (path, headers)."""

    def __init__(self) -> None:
        self.resources: dict[str, Resource] = {}
        self.requests: list[tuple[str, Mapping[str, str]]] = []
        handler = type("Handler", (_Handler,), {"web": self})
        self._server = _Server(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Web:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def paths(self) -> list[str]:
        return [path for path, _ in self.requests]

    def ranges_of(self, path: str) -> list[str]:
        return [headers.get("range", "") for each, headers in self.requests if each == path]

    def add_wheel(
        self, project: str, filename: str, wheel: bytes, *, sha256: str | None = None, **extra: Any
    ) -> Resource:
        """A wheel, and the index page that lists it."""
        page = self.resources.setdefault(f"/simple/{project}/", _index_page(project))
        document = json.loads(page.body)
        digest = hashlib.sha256(wheel).hexdigest() if sha256 is None else sha256
        hashes = {"sha256": digest} if digest else {}
        url = f"../../files/{filename}"
        document["files"].append({"filename": filename, "url": url, "hashes": hashes, "size": len(wheel), **extra})
        page.body = json.dumps(document).encode()
        self.resources[f"/files/{filename}"] = Resource(wheel)
        return self.resources[f"/files/{filename}"]

    @property
    def index(self) -> str:
        return f"{self.url}/simple/"


def _index_page(project: str) -> Resource:
    document = {"meta": {"api-version": "1.1"}, "name": project, "files": []}
    return Resource(json.dumps(document).encode(), "application/vnd.pypi.simple.v1+json")


def make_wheel(files: Mapping[str, bytes], *, stored: bool = False) -> bytes:
    buffer = io.BytesIO()
    kind = zipfile.ZIP_STORED if stored else zipfile.ZIP_DEFLATED
    with zipfile.ZipFile(buffer, "w", kind) as archive:
        for name, body in files.items():
            archive.writestr(name, body)
    return buffer.getvalue()


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # clients that leave are what some tests are about
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    web: Web

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        self.web.requests.append((self.path, {key.lower(): value for key, value in self.headers.items()}))
        resource = self.web.resources.get(path)
        if resource is None:
            self._answer(404, b"not found", {})
            return
        if resource.statuses:
            self._answer(resource.statuses.pop(0), b"not now", {"Retry-After": "0"})
            return
        if resource.token and self.headers.get("Authorization") != f"Bearer {resource.token}":
            challenge = f'Bearer realm="{self.web.url}/token",service="test",scope="repository:x:pull"'
            self._answer(401, b"{}", {"WWW-Authenticate": challenge})
            return
        headers = {"Content-Type": resource.content_type, **resource.headers}
        body, status = resource.body, resource.status
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if match and resource.ranges and status == 200:
            start = int(match[1])
            if start >= len(body):
                self._answer(416, b"", {"Content-Range": f"bytes */{len(body)}"})
                return
            end = min(int(match[2] or len(body)), len(body) - 1)
            headers["Content-Range"] = f"bytes {start}-{end}/{len(body)}"
            body, status = body[start : end + 1], 206
        cut = resource.cut_after.pop(0) if resource.cut_after else None
        self._answer(status, body, headers, cut=cut, resource=resource)

    def _answer(
        self,
        status: int,
        body: bytes,
        headers: dict[str, str],
        cut: int | None = None,
        resource: Resource | None = None,
    ) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        try:
            if cut is not None:
                self.wfile.write(body[:cut])
                self.close_connection = True
            elif resource is not None and resource.gate is not None:
                self.wfile.write(body[: resource.gate_after])
                self.wfile.flush()
                resource.gate.wait(30)
                self.wfile.write(body[resource.gate_after :])
            elif resource is not None and resource.slow_s:
                for at in range(0, len(body), 1 << 14):
                    self.wfile.write(body[at : at + (1 << 14)])
                    time.sleep(resource.slow_s)
            else:
                self.wfile.write(body)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the client left, as some tests make it do

    def log_message(self, format: str, *args: object) -> None:
        pass


Progress = Callable[[str, int, int], None]
