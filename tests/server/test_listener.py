"""A port is had before anything else, or not at all."""

import socket
import time

import httpx2
import pytest

from garzone.core.errors import UnavailableError
from garzone.server.listener import open_listener
from tests.server.conftest import app_of, running, scripted


def test_a_port_in_use_is_named_with_a_way_out() -> None:
    with open_listener("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UnavailableError, match=rf"127\.0\.0\.1:{port}.*--port") as caught:
            open_listener("127.0.0.1", port)
    assert caught.value.exit_code == 3


def test_connections_wait_from_the_moment_the_address_is_said() -> None:
    with open_listener("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname(), timeout=5):
        pass


def test_a_host_that_does_not_exist_is_named() -> None:
    with pytest.raises(UnavailableError, match=r"nowhere\.invalid"):
        open_listener("nowhere.invalid", 0)


def test_no_connection_waits_for_nagle() -> None:
    with open_listener("127.0.0.1", 0) as listener:
        assert listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    body = {"model": "scripted", "prompt": "x"}
    with running(app_of(scripted("hello"))) as url, httpx2.Client() as client:
        times: list[float] = []
        for _ in range(10):
            started = time.perf_counter()
            client.post(f"{url}/api/generate", json=body).read()
            times.append(time.perf_counter() - started)
    assert min(times) < 0.03  # 40 ms and more with Nagle
