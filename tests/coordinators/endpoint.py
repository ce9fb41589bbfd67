"""A scripted Anthropic endpoint on loopback: answers /v1/messages by a function, and keeps every byte it was sent.

Its `usage` is counted as the real one bills: what a request has in common with the longest earlier one was read from
the cache, the rest was written to it; four bytes a token.
"""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

BYTES_PER_TOKEN = 4
Blocks = list[dict[str, Any]]
Script = Callable[[dict[str, Any]], Blocks]


@dataclass(frozen=True)
class Recorded:
    """One request as it came in, and the bytes of the answer."""

    path: str
    headers: dict[str, str]
    body: bytes
    answer_bytes: int
    fresh_bytes: int

    @property
    def document(self) -> dict[str, Any]:
        return json.loads(self.body)


@dataclass
class Endpoint:
    """What was asked so far. `messages` leaves out what is no turn of the conversation: token counts, probes."""

    script: Script
    requests: list[Recorded] = field(default_factory=list[Recorded])
    url: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def messages(self) -> list[Recorded]:
        return [request for request in self.requests if request.path.split("?")[0].endswith("/v1/messages")]

    def usage(self, body: bytes) -> dict[str, int]:
        """How much of a request is new, from what it shares with the longest earlier one."""
        prompt = prompt_text(body)
        shared = max((_num_shared(prompt, prompt_text(e.body)) for e in self.messages), default=0)
        return {
            "input_tokens": 3,
            "cache_read_input_tokens": shared // BYTES_PER_TOKEN,
            "cache_creation_input_tokens": max(len(prompt) - shared, 0) // BYTES_PER_TOKEN,
        }


def prompt_text(body: bytes) -> str:
    """What the model reads, in the order in which it is cached: tools, system, messages.

    Cache markers are left out, and a plain string is one text block: neither changes what is cached.
    """

    def unmarked(value: Any) -> Any:
        if isinstance(value, dict):
            plain = {key: unmarked(item) for key, item in value.items() if key != "cache_control"}
            if isinstance(content := plain.get("content"), str) and "role" in plain:
                plain["content"] = [{"type": "text", "text": content}]
            return plain
        return [unmarked(item) for item in value] if isinstance(value, list) else value

    document = json.loads(body or b"{}")
    parts = [document.get("tools", []), document.get("system", ""), *document.get("messages", [])]
    return "\n".join(json.dumps(unmarked(part), ensure_ascii=False) for part in parts)


def _num_shared(one: str, other: str) -> int:
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


@contextmanager
def scripted_anthropic(script: Script) -> Iterator[Endpoint]:
    """The endpoint, running in threads of this process."""
    endpoint = Endpoint(script)
    numbers = itertools.count(1)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def do_GET(self) -> None:
            self._send(b'{"data":[]}', "application/json")

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            path = self.path.split("?")[0]
            fresh = 0
            if path.endswith("/v1/messages"):
                document = json.loads(body)
                with endpoint.lock:
                    usage = endpoint.usage(body)
                fresh = usage["cache_creation_input_tokens"] * BYTES_PER_TOKEN
                message = answer(document, endpoint.script(document), usage, next(numbers))
                sent = events(message) if document.get("stream") else json.dumps(message).encode()
                kind = "text/event-stream" if document.get("stream") else "application/json"
            elif path.endswith("count_tokens"):
                sent, kind = json.dumps({"input_tokens": len(body) // BYTES_PER_TOKEN}).encode(), "application/json"
            else:
                sent, kind = b"{}", "application/json"
            with endpoint.lock:
                endpoint.requests.append(Recorded(self.path, dict(self.headers), body, len(sent), fresh))
            self._send(sent, kind)

        def _send(self, body: bytes, kind: str) -> None:
            self.send_response(200)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(body)))
            self.send_header("request-id", "req_scripted")
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    endpoint.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield endpoint
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def answer(document: dict[str, Any], blocks: Blocks, usage: dict[str, int], number: int) -> dict[str, Any]:
    """A whole Message. Tool calls get their ids here."""
    content = [
        {"type": "tool_use", "id": f"toolu_{number:02}_{index}", **block} if "input" in block else block
        for index, block in enumerate(blocks)
    ]
    written = sum(len(json.dumps(block.get("input", block.get("text", "")))) for block in content)
    return {
        "id": f"msg_{number:04}",
        "type": "message",
        "role": "assistant",
        "model": document["model"],
        "content": content,
        "stop_reason": "tool_use" if any(block["type"] == "tool_use" for block in content) else "end_turn",
        "stop_sequence": None,
        "usage": {**usage, "output_tokens": -(-written // BYTES_PER_TOKEN)},
    }


def events(message: dict[str, Any]) -> bytes:
    """The same as a stream of server-sent events."""
    start = {**message, "content": [], "stop_reason": None, "usage": {**message["usage"], "output_tokens": 1}}
    out: list[dict[str, Any]] = [{"type": "message_start", "message": start}]
    for index, block in enumerate(message["content"]):
        if block["type"] == "tool_use":
            empty: dict[str, Any] = {**block, "input": {}}
            delta = {"type": "input_json_delta", "partial_json": json.dumps(block["input"])}
        else:
            empty, delta = {"type": "text", "text": ""}, {"type": "text_delta", "text": block["text"]}
        out += [
            {"type": "content_block_start", "index": index, "content_block": empty},
            {"type": "content_block_delta", "index": index, "delta": delta},
            {"type": "content_block_stop", "index": index},
        ]
    ending = {"stop_reason": message["stop_reason"], "stop_sequence": None}
    out += [
        {"type": "message_delta", "delta": ending, "usage": {"output_tokens": message["usage"]["output_tokens"]}},
        {"type": "message_stop"},
    ]
    return b"".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode() for event in out)


def text(words: str) -> Blocks:
    return [{"type": "text", "text": words}]


def call(name: str, **arguments: Any) -> Blocks:
    return [{"type": "tool_use", "name": name, "input": arguments}]
