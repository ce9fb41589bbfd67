"""The socket a server listens on: opened before anything else starts, so that a port in use is a clear error."""

from __future__ import annotations

import socket
from typing import Final

from garzone.core.errors import UnavailableError

BACKLOG: Final = 2048  # uvicorn's own


def open_listener(host: str, port: int) -> socket.socket:
    """A socket that connections can be made to; they wait until the server accepts them. Port 0 picks a free one.

    Raises:
        UnavailableError: the address cannot be had.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise UnavailableError(f"cannot listen on {host}:{port}: {error.strerror}") from error
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # Inherited by every connection: headers and the first piece are two writes, and Nagle holds the second one back for
    # 40 ms. asyncio does it too, but only where it can tell that the socket is TCP.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise UnavailableError(
            f"cannot listen on {host}:{port}: {error.strerror}; is Ollama or another garzone running there? "
            "Give another --port, or set OLLAMA_HOST"
        ) from error
    return listener
