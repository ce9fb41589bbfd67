"""Clients that hang up, servers that shut down, and many of both at once."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import httpx2
import ollama
import pytest

from garzone.core.generation import Delta, FinishReason, GenerateRequest, Usage
from tests.server.conftest import Scripted, app_of, running, scripted

CHAT = {"model": "scripted", "messages": [{"role": "user", "content": "hi"}]}


class Endless(Scripted):
    """Never ends by itself; knows whether it still runs. Silent until `speaks`."""

    def __init__(self, *, speaks: bool = True) -> None:
        super().__init__(["x"], model="scripted")
        self.speaks = speaks
        self.running = 0
        self.closed = False

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Delta]:
        self.running += 1
        try:
            while True:
                await asyncio.sleep(0.01)
                if self.speaks:
                    yield Delta(text="more ")
        finally:
            self.running -= 1

    async def aclose(self) -> None:
        self.closed = True


def eventually(condition: Callable[[], bool], timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.01)


def send(url: str, path: str, body: object) -> socket.socket:
    parts = urlsplit(url)
    connection = socket.create_connection((parts.hostname or "", parts.port or 0))
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Length: {len(content)}\r\n\r\n"
    connection.sendall(head.encode() + content)
    return connection


@pytest.mark.parametrize("path", ["/api/chat", "/v1/chat/completions"])
@pytest.mark.parametrize("stream", [True, False], ids=["streaming", "whole"])
@pytest.mark.parametrize("speaks", [True, False], ids=["in the middle", "before the first word"])
def test_hanging_up_stops_the_generation(path: str, stream: bool, speaks: bool) -> None:
    generator = Endless(speaks=speaks)
    with running(app_of(generator)) as url:
        connection = send(url, path, {**CHAT, "stream": stream})
        eventually(lambda: generator.running == 1)
        if stream and speaks:
            assert connection.recv(100)
        connection.close()
        eventually(lambda: generator.running == 0, timeout_s=5)


def test_the_ollama_client_that_breaks_off_stops_the_generation() -> None:
    generator = Endless()
    with running(app_of(generator)) as url:
        client = ollama.Client(host=url)
        for _ in client.chat("scripted", CHAT["messages"], stream=True):  # pyright: ignore
            break
        client._client.close()  # pyright: ignore
        eventually(lambda: generator.running == 0, timeout_s=5)


def test_shutting_down_ends_answers_in_flight_and_closes_the_generator() -> None:
    generator, received = Endless(), list[bytes]()
    with running(app_of(generator)) as url:
        connection = send(url, "/api/chat", {**CHAT, "stream": True})

        def read() -> None:
            while data := connection.recv(65536):
                received.append(data)

        reader = threading.Thread(target=read)
        reader.start()
        eventually(lambda: bool(received))
    reader.join(5)
    assert not reader.is_alive()
    assert b"the server is shutting down" in b"".join(received)
    assert generator.running == 0
    assert generator.closed
    connection.close()


def test_a_preloaded_model_is_asked_for_at_the_start() -> None:
    generator = scripted("")
    with running(app_of(generator, preload="scripted")):
        eventually(lambda: len(generator.requests) == 1)
    assert generator.requests[0].load_only


def test_twenty_clients_at_once_get_their_own_answers() -> None:
    def echo(request: GenerateRequest) -> str:
        return f"you said {request.messages[-1].text}. " * 20

    with running(app_of(scripted(echo))) as url:

        def ask(index: int) -> str:
            messages = [{"role": "user", "content": f"number {index}"}]
            parts = ollama.Client(host=url).chat("scripted", messages, stream=True)
            return "".join(part.message.content or "" for part in parts)

        with ThreadPoolExecutor(20) as threads:
            answers = list(threads.map(ask, range(20)))
    assert answers == [f"you said number {index}. " * 20 for index in range(20)]


def test_tags_and_show_do_not_wait_for_an_answer_in_flight() -> None:
    with running(app_of(Endless())) as url:
        connection = send(url, "/api/chat", {**CHAT, "stream": True})
        connection.recv(100)
        started = time.monotonic()
        assert httpx2.get(f"{url}/api/tags").status_code == 200
        assert httpx2.post(f"{url}/api/show", json={"model": "scripted"}).status_code == 200
        assert time.monotonic() - started < 1
        connection.close()


class Truncated(Scripted):
    """A generator with a bug: it stops without a finish reason."""

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Delta]:
        yield Delta(text="half an ans")


class Buggy(Scripted):
    """A generator with another bug."""

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Delta]:
        if request.messages:
            raise KeyError("oops")
        yield Delta(finish_reason=FinishReason.STOP, usage=Usage())


def test_a_bug_in_the_generator_is_an_error_and_not_a_half_answer(caplog: pytest.LogCaptureFixture) -> None:
    with running(app_of(Truncated(["x"], model="scripted"))) as url:
        lines = httpx2.post(f"{url}/api/chat", json=CHAT).text.splitlines()
        assert json.loads(lines[-1]) == {"error": "the answer ended without saying why"}
    with running(app_of(Buggy(["x"], model="scripted"))) as url:
        response = httpx2.post(f"{url}/api/chat", json=CHAT)
        assert response.status_code == 500
        assert "KeyError" in response.json()["error"]
    assert "oops" in caplog.text
