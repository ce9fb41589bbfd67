"""A registry on loopback that gives out one large model as fast as the system can: `sendfile`, ranges, keep-alive.

For measuring how fast a pull is next to curl. Knows nothing else of HTTP.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import socket
import threading
from collections.abc import Generator
from pathlib import Path
from typing import Final

import numpy as np

from garzone.testing import tiny_vocabulary, write_gguf

_RANGE: Final = re.compile(rb"\r\nrange: bytes=(\d+)-(\d*)\r\n", re.IGNORECASE)
_INT8: Final = 24  # ggml's type number
_MEBIBYTE: Final = 1 << 20


def write_large_model(path: Path, num_mebibytes: int) -> Path:
    """A GGUF file of that size: a header and one tensor of noise."""
    noise = np.random.default_rng(1).integers(0, 256, _MEBIBYTE, np.uint8).tobytes()
    metadata = {"general.architecture": "llama", "llama.context_length": 64, **tiny_vocabulary()}
    return write_gguf(path, metadata, {"noise.weight": (_INT8, (num_mebibytes, _MEBIBYTE), noise * num_mebibytes)})


class Registry:
    """Serves one file as the model `library/big:1b`, and at `/file`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._size = path.stat().st_size
        with path.open("rb") as file:
            digest = "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()
        config = b'{"model_format":"gguf"}'
        config_digest = "sha256:" + hashlib.sha256(config).hexdigest()
        layer = {"mediaType": "application/vnd.ollama.image.model", "digest": digest, "size": self._size}
        document = {
            "schemaVersion": 2,
            "config": {"mediaType": "x", "digest": config_digest, "size": len(config)},
            "layers": [layer],
        }
        self._small = {
            b"/v2/library/big/manifests/1b": json.dumps(document).encode(),
            b"/v2/library/big/blobs/" + config_digest.encode(): config,
        }
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port: int = self._listener.getsockname()[1]
        self.reference = f"127.0.0.1:{self.port}/library/big:1b"
        self.url = f"http://127.0.0.1:{self.port}/file"

    @contextlib.contextmanager
    def running(self) -> Generator[Registry]:
        """Serve until the block ends."""
        threading.Thread(target=self._accept, daemon=True).start()
        try:
            yield self
        finally:
            self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return  # closed
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection, self._path.open("rb") as file:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            head: bytes = b""
            while chunk := connection.recv(65536):
                head += chunk
                while b"\r\n\r\n" in head:
                    request, _, head = bytes(head).partition(b"\r\n\r\n")
                    self._answer(connection, file.fileno(), request + b"\r\n")

    def _answer(self, connection: socket.socket, descriptor: int, request: bytes) -> None:
        path = request.split(b" ", 2)[1]
        small = self._small.get(path)
        if small is not None:
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(small) + small)
            return
        match = _RANGE.search(request)
        start = int(match[1]) if match else 0
        end = min(int(match[2] or self._size) if match else self._size, self._size - 1)
        status = b"206 Partial Content" if match else b"200 OK"
        headers = b"HTTP/1.1 %s\r\nContent-Length: %d\r\nAccept-Ranges: bytes\r\n" % (status, end + 1 - start)
        if match:
            headers += b"Content-Range: bytes %d-%d/%d\r\n" % (start, end, self._size)
        connection.sendall(headers + b"\r\n")
        while start <= end:
            sent = os.sendfile(connection.fileno(), descriptor, start, end + 1 - start)
            if not sent:
                return
            start += sent
