"""The gateway before a scripted upstream: what is forwarded arrives to the byte, what is kept never leaves."""

import gzip
import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import anthropic
import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from garzone.core.errors import UsageError
from garzone.server.gateway import Gateway, GatewayRules, Place
from tests.server.conftest import Scripted, app_of, running, scripted

KEY = "sk-ant-api03-this-must-never-be-seen"
EVENTS = (
    b'event: message_start\ndata: {"type":"message_start","message":{"id":"msg_1","usage":{"input_tokens":9}}}\n\n',
    b'event: content_block_delta\ndata: {"type":"content_block_delta","delta":{"text":"h\xc3\xa9"}}\n\n',
    b'event: message_stop\ndata: {"type":"message_stop"}\n\n',
)


@dataclass
class Upstream:
    """A server made of sockets: it keeps exactly what came in and sends exactly what it was told."""

    answer: bytes = b""
    pieces: tuple[bytes, ...] = ()
    received: list[bytes] = field(default_factory=list[bytes])
    closed_early: threading.Event = field(default_factory=threading.Event)
    url: str = ""

    def serve(self, connection: socket.socket) -> None:
        with connection:
            raw = b""
            while b"\r\n\r\n" not in raw:
                raw += connection.recv(65536)
            head, _, body = raw.partition(b"\r\n\r\n")
            length = int(
                next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")).split(b":")[1]
            )
            while len(body) < length:
                body += connection.recv(65536)
            self.received.append(head + b"\r\n\r\n" + body)
            connection.sendall(self.answer)
            try:
                for piece in self.pieces:
                    connection.sendall(b"%x\r\n%s\r\n" % (len(piece), piece))
                    time.sleep(0.02)
                if self.pieces:
                    connection.sendall(b"0\r\n\r\n")
            except OSError:
                self.closed_early.set()

    @property
    def body(self) -> bytes:
        return self.received[-1].partition(b"\r\n\r\n")[2]

    @property
    def headers(self) -> list[tuple[str, str]]:
        lines = self.received[-1].partition(b"\r\n\r\n")[0].split(b"\r\n")[1:]
        return [tuple(part.strip() for part in line.decode().split(":", 1)) for line in lines]  # type: ignore[misc]


def reply(status: str, headers: dict[str, str], body: bytes = b"") -> bytes:
    lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


@contextmanager
def listening(upstream: Upstream) -> Iterator[Upstream]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        upstream.url = f"http://127.0.0.1:{server.getsockname()[1]}"

        def accept() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                threading.Thread(target=upstream.serve, args=(connection,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield upstream
        server.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with listening(Upstream()) as server:
        yield server


@contextmanager
def gateway(upstream: Upstream, generator: Scripted | None = None, **rules: Any) -> Iterator[str]:
    given = GatewayRules("scripted", upstream=upstream.url, **rules)
    with running(app_of(generator or scripted("Here."), gateway=given)) as url:
        yield url


BODY = (
    b'{"model":"claude-opus-5-5", "max_tokens" : 10,\n "stream":true,"system":[{"type":"text","text":"You are Claude.",'
    b'"cache_control":{"type":"ephemeral","ttl":"1h"}}],"messages":[{"role":"user","content":'
    b'"h\\u00e9 \xf0\x9f\x8c\x8d"}],'
    b'"unknown_field":[1.0,1e3],"tools":[{"name":"x"}]}'
)
SENT = {
    "x-api-key": KEY,
    "authorization": f"Bearer {KEY}",
    "anthropic-version": "2023-06-01",
    "anthropic-beta": "prompt-caching-2024-07-31,context-1m-2025-08-07",
    "content-type": "application/json",
    "user-agent": "claude-cli/2.1.332 (external, cli)",
    "x-app": "cli",
    "x-claude-code-session-id": "s1",
    "accept-encoding": "gzip, br, zstd",
    "accept": "application/json",
}


def test_request_headers_and_body_arrive_to_the_byte_and_nothing_is_added(upstream: Upstream) -> None:
    upstream.answer = reply("200 OK", {"content-type": "application/json", "content-length": "2"}, b"{}")
    with gateway(upstream) as url:
        httpx2.post(f"{url}/v1/messages?beta=true&x=%2F", content=BODY, headers=SENT, trust_env=False)
    assert upstream.body == BODY
    assert upstream.received[0].startswith(b"POST /v1/messages?beta=true&x=%2F HTTP/1.1\r\n")
    arrived = dict(upstream.headers)
    assert {name: value for name, value in arrived.items() if name not in ("host", "content-length")} == SENT
    assert arrived["host"] == upstream.url.removeprefix("http://")
    assert len(upstream.headers) == len(arrived)


def test_a_stream_comes_back_to_the_byte_piece_by_piece(upstream: Upstream) -> None:
    headers = {"content-type": "text/event-stream", "transfer-encoding": "chunked", "request-id": "req_1",
               "anthropic-ratelimit-unified-status": "allowed"}  # fmt: skip
    upstream.answer, upstream.pieces = reply("200 OK", headers), EVENTS
    with gateway(upstream) as url, httpx2.stream("POST", f"{url}/v1/messages", content=BODY, headers=SENT) as response:
        pieces = list(response.iter_raw())
    assert b"".join(pieces) == b"".join(EVENTS)
    assert len(pieces) >= 2  # not collected first
    assert response.headers["request-id"] == "req_1"
    assert response.headers["anthropic-ratelimit-unified-status"] == "allowed"
    assert response.headers["content-type"] == "text/event-stream"


def test_a_compressed_answer_stays_compressed(upstream: Upstream) -> None:
    packed = gzip.compress(b'{"id":"msg_1"}')
    headers = {"content-encoding": "gzip", "content-type": "application/json", "content-length": str(len(packed))}
    upstream.answer = reply("200 OK", headers, packed)
    with gateway(upstream) as url, httpx2.stream("POST", f"{url}/v1/messages", content=BODY, headers=SENT) as response:
        assert b"".join(response.iter_raw()) == packed
    assert response.headers["content-encoding"] == "gzip"


@pytest.mark.parametrize("status", ["400 Bad Request", "401 Unauthorized", "429 Too Many Requests", "529 Overloaded"])
def test_errors_come_back_unchanged(status: str, upstream: Upstream) -> None:
    error = b'{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"},"request_id":"req_2"}'
    headers = {"content-type": "application/json", "retry-after": "7", "content-length": str(len(error))}
    upstream.answer = reply(status, headers, error)
    with gateway(upstream) as url:
        response = httpx2.post(f"{url}/v1/messages", content=BODY, headers=SENT, trust_env=False)
    assert response.status_code == int(status[:3])
    assert response.content == error
    assert response.headers["retry-after"] == "7"


def test_the_real_client_works_through_it(upstream: Upstream) -> None:
    message = {
        "id": "msg_1", "type": "message", "role": "assistant", "model": "claude-opus-5-5", "stop_sequence": None,
        "content": [{"type": "text", "text": "Hello"}], "stop_reason": "end_turn",
        "usage": {"input_tokens": 3, "output_tokens": 1},
    }  # fmt: skip
    body = json.dumps(message).encode()
    upstream.answer = reply("200 OK", {"content-type": "application/json", "content-length": str(len(body))}, body)
    with gateway(upstream) as url:
        client = anthropic.Anthropic(base_url=url, api_key=KEY)
        answer = client.messages.create(
            model="claude-opus-5-5", max_tokens=5, messages=[{"role": "user", "content": "Hi"}]
        )
    assert answer.to_dict()["id"] == "msg_1"
    assert any(KEY in value for _, value in upstream.headers)


def test_a_client_that_hangs_up_ends_the_request_upstream(upstream: Upstream) -> None:
    headers = {"content-type": "text/event-stream", "transfer-encoding": "chunked"}
    upstream.answer, upstream.pieces = reply("200 OK", headers), EVENTS * 400
    with gateway(upstream) as url:
        with httpx2.stream("POST", f"{url}/v1/messages", content=BODY, headers=SENT) as response:
            next(response.iter_raw())
        assert upstream.closed_early.wait(10)


def test_nobody_upstream_is_a_502_in_anthropics_words_without_the_key(caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with gateway(Upstream(url=f"http://127.0.0.1:{port}")) as url:
        response = httpx2.post(f"{url}/v1/messages", content=BODY, headers=SENT, trust_env=False)
    assert response.status_code == 502
    assert response.json()["error"]["type"] == "api_error"
    assert "cannot be reached" in response.json()["error"]["message"]
    assert KEY not in caplog.text


def test_keys_are_never_logged_even_at_the_most_talkative_level(
    upstream: Upstream, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    upstream.answer = reply("401 Unauthorized", {"content-length": "2"}, b"{}")
    with gateway(upstream) as url:
        httpx2.post(f"{url}/v1/messages", content=BODY, headers=SENT, trust_env=False)
    assert KEY not in caplog.text
    assert "You are Claude" not in caplog.text


# --- what stays here


def messages(model: str, system: str = "", **more: Any) -> dict[str, Any]:
    question = [{"role": "user", "content": "How do I sort a list?"}]
    return {"model": model, "max_tokens": 20, "system": system, "messages": question, **more}


def test_small_background_calls_are_answered_here_and_nothing_leaves(upstream: Upstream) -> None:
    generator = scripted("Sorting lists")
    with gateway(upstream, generator) as url:
        body = messages("claude-opus-5-5", "Generate a concise, sentence-case title for this session.")
        response = httpx2.post(f"{url}/v1/messages", json=body, headers=SENT, trust_env=False)
    assert response.status_code == 200, response.text
    assert response.json()["content"][0]["text"] == "Sorting lists"
    assert upstream.received == []
    assert "How do I sort a list?" in generator.requests[0].messages[-1].text


def test_haiku_stays_here_only_where_that_is_configured(upstream: Upstream) -> None:
    upstream.answer = reply("200 OK", {"content-length": "2"}, b"{}")
    body = messages("claude-haiku-4-5-20251001")
    with gateway(upstream) as url:
        httpx2.post(f"{url}/v1/messages", json=body, headers=SENT, trust_env=False)
    assert len(upstream.received) == 1
    with gateway(upstream, local=("claude-haiku-*",)) as url:
        response = httpx2.post(f"{url}/v1/messages", json=body, headers=SENT, trust_env=False)
        streamed = httpx2.post(f"{url}/v1/messages", json=body | {"stream": True}, headers=SENT, trust_env=False)
    assert response.json()["content"][0]["text"] == "Here."
    assert "event: message_stop" in streamed.text
    assert len(upstream.received) == 1


def test_local_models_and_other_paths_are_the_servers_own(upstream: Upstream) -> None:
    with gateway(upstream) as url:
        answer = httpx2.post(f"{url}/v1/messages", json=messages("scripted"), trust_env=False)
        assert answer.json()["content"][0]["text"] == "Here."
        assert httpx2.get(f"{url}/api/tags", trust_env=False).status_code == 200
        broken = httpx2.post(f"{url}/v1/messages", content=b"{", headers=SENT, trust_env=False)
    assert broken.status_code == 400
    assert upstream.received == []


def test_without_the_flag_nothing_is_ever_forwarded(upstream: Upstream) -> None:
    with running(app_of(scripted("Here."))) as url:
        httpx2.post(f"{url}/v1/messages", content=BODY, headers=SENT, trust_env=False)
    assert upstream.received == []


def test_pages_of_other_origins_are_refused_before_anything_is_forwarded(upstream: Upstream) -> None:
    with gateway(upstream) as url:
        headers = SENT | {"origin": "https://evil.example"}
        assert httpx2.post(f"{url}/v1/messages", content=BODY, headers=headers, trust_env=False).status_code == 403
    assert upstream.received == []


@pytest.mark.parametrize(
    ("document", "place"),
    [
        (messages("claude-opus-5-5"), Place.UPSTREAM),
        (messages("Claude-Opus-5-5", "Summarize this coding conversation in under 50 characters"), Place.HERE),
        (messages("claude-opus-5-5", "Write a title", tools=[{"name": "x"}]), Place.UPSTREAM),
        (messages("claude-opus-5-5", "Write a title " + "x" * 30_000), Place.UPSTREAM),
        (messages("qwen2.5-coder:7b"), Place.UNCHANGED),
        ({"model": 7}, Place.UNCHANGED),
        ({}, Place.UNCHANGED),
    ],
)
def test_where_a_request_goes(document: dict[str, Any], place: Place) -> None:
    assert GatewayRules("m").place(document, len(json.dumps(document))) is place


@settings(deadline=None)
@given(
    st.dictionaries(st.text(max_size=8), st.none() | st.integers() | st.text() | st.lists(st.integers()), max_size=5)
)
def test_any_document_has_a_place(document: dict[str, Any]) -> None:
    assert GatewayRules("m").place(document, 10) in set(Place)
    assert GatewayRules("m").place({**document, "model": "claude-x"}, 10) in (Place.UPSTREAM, Place.HERE)


@pytest.mark.parametrize("url", ["http://api.example.com", "ftp://x", "", "http://10.0.0.1:80", "https://"])
def test_an_upstream_to_which_keys_would_go_in_clear_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match="https"):
        GatewayRules("m", upstream=url)
    assert isinstance(Gateway(app_of(scripted("x")), GatewayRules("m", upstream="http://127.0.0.1:9")), Gateway)
