"""Bytes as clients send them, and the exact bytes they get back."""

import json
import re
from typing import Any

import httpx2
import pytest

from garzone.core.chat import ToolCall
from garzone.core.generation import Delta, FinishReason, GenerateRequest, SamplingParams, Usage
from garzone.server.dialects import ollama, openai
from tests.server.conftest import Scripted, app_of, running, scripted

HI = [{"role": "user", "content": "hi"}]
CHAT = {"model": "scripted", "messages": HI, "stream": False}
END = Delta(
    finish_reason=FinishReason.LENGTH,
    usage=Usage(
        prompt_tokens=7, cached_tokens=5, completion_tokens=2, prefill_ms=1.5, decode_ms=2.5, context=(1, 2, 3)
    ),
)
CALL = Delta(tool_calls=(ToolCall("read", {"path": "a.py"}, "call_1"),))


def post(url: str, path: str, body: object, **given: Any) -> httpx2.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return httpx2.post(url + path, content=content, timeout=30, **given)


def stamped(line: bytes) -> str:
    """The line without what differs from run to run."""
    text = re.sub(r'"created_at": ?"[^"]+Z"', '"created_at":"T"', line.decode())
    text = re.sub(r'"total_duration": ?\d+', '"total_duration":1', text)
    text = re.sub(r'"id": "chatcmpl-[0-9a-f]{24}"', '"id":"ID"', text)
    return re.sub(r'"created": \d+', '"created":0', text).replace(": ", ":").replace(", ", ",")


# --- the answer, byte for byte


def test_chat_lines() -> None:
    exchange = ollama.ChatExchange(CHAT)
    exchange.to_request(SamplingParams())
    assert exchange.piece(Delta()) == b""
    assert stamped(exchange.piece(Delta(text='a "b"\n'))) == (
        '{"model":"scripted","created_at":"T","message":{"role":"assistant","content":"a \\"b\\"\\n"},"done":false}\n'
    )
    assert stamped(exchange.piece(CALL)) == (
        '{"model":"scripted","created_at":"T","message":{"role":"assistant","content":"","tool_calls":[{"id":"call_1",'
        '"function":{"index":0,"name":"read","arguments":{"path":"a.py"}}}]},"done":false}\n'
    )
    assert stamped(exchange.piece(END)) == (
        '{"model":"scripted","created_at":"T","message":{"role":"assistant","content":""},"done":true,'
        '"done_reason":"length","total_duration":1,"prompt_eval_count":7,"prompt_eval_duration":1500000,'
        '"eval_count":2,"eval_duration":2500000}\n'
    )


def test_generate_lines() -> None:
    exchange = ollama.GenerateExchange({"model": "scripted", "prompt": "hi"})
    exchange.to_request(SamplingParams())
    assert stamped(exchange.piece(Delta(text="é"))) == (
        '{"model":"scripted","created_at":"T","response":"\\u00e9","done":false}\n'
    )
    last = json.loads(exchange.piece(END))
    assert (last["done"], last["response"], last["context"]) == (True, "", [1, 2, 3])


def test_chat_completion_chunks() -> None:
    exchange = openai.ChatExchange({"model": "m", "messages": HI, "stream_options": {"include_usage": True}})
    head = 'data:{"id":"ID","object":"chat.completion.chunk","created":0,"model":"m","system_fingerprint":"fp_garzone",'
    assert stamped(exchange.begin()) == (
        head
        + '"choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}],"usage":null}\n\n'
    )
    assert stamped(exchange.piece(Delta(text="a"))) == (
        head + '"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":null}],"usage":null}\n\n'
    )
    assert stamped(exchange.piece(CALL)) == (
        head + '"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"id":"call_1","type":"function","function":'
        '{"name":"read","arguments":"{\\"path\\":\\"a.py\\"}"}}]},"finish_reason":null}],"usage":null}\n\n'
    )
    assert stamped(exchange.piece(Delta(finish_reason=FinishReason.STOP, usage=END.usage))) == (
        head + '"choices":[{"index":0,"delta":{},"finish_reason":"tool_calls"}],"usage":null}\n\n'
        + head + '"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":2,"total_tokens":9,'
        '"prompt_tokens_details":{"cached_tokens":5}}}\n\ndata:[DONE]\n\n'
    )  # fmt: skip


def test_without_include_usage_there_is_no_usage() -> None:
    exchange = openai.ChatExchange({"model": "m", "messages": HI})
    events = exchange.begin() + exchange.piece(Delta(text="a")) + exchange.piece(END)
    assert b"usage" not in events
    assert events.endswith(b'"finish_reason": "length"}]}\n\ndata: [DONE]\n\n')


# --- what is let in


@pytest.mark.parametrize("content_type", [None, "text/plain", "application/x-www-form-urlencoded"])
def test_the_content_type_does_not_matter(url: str, content_type: str | None) -> None:
    headers = {"content-type": content_type} if content_type else {}
    assert post(url, "/api/chat", CHAT, headers=headers).status_code == 200


def test_what_real_clients_send_along_is_ignored(url: str, generator: Scripted) -> None:
    body = {
        **CHAT,
        "tools": [],
        "format": "",
        "options": {"num_gpu": 99, "temperature": None, "stop": None, "typical_p": 1.0, "num_ctx": 4096.0},
        "keep_alive": None,
        "think": False,
        "new_field": {"a": 1},
        "messages": [{"role": "user", "content": "hi", "images": [], "tool_calls": None, "thinking": None}],
    }
    headers = {"authorization": "Bearer any", "x-api-key": "any"}
    assert post(url, "/api/chat?beta=true", body, headers=headers).status_code == 200
    (request,) = generator.requests
    assert request == GenerateRequest(
        model="scripted", messages=request.messages, sampling=request.sampling, num_ctx=4096, think=False, shift=True
    )


def test_name_stands_for_model(url: str) -> None:
    assert post(url, "/api/show", {"name": "scripted"}).json()["details"]["family"] == "llama"
    assert post(url, "/api/generate", {"name": "scripted", "prompt": "x", "stream": False}).status_code == 200


@pytest.mark.parametrize(
    ("given", "seconds"),
    [(0, 0), (-1, -1), (2.5, 2.5), ("5m", 300), ("1h30m", 5400), ("-1s", -1), ("300ms", 0.3), ("0", 0), ("-1", -1)],
)
def test_keep_alive_in_all_its_forms(url: str, generator: Scripted, given: object, seconds: float) -> None:
    assert post(url, "/api/chat", {**CHAT, "keep_alive": given}).status_code == 200
    assert generator.requests[0].keep_alive_s == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"seed": -1}, {"seed": None}),
        ({"num_predict": -1}, {"max_tokens": None}),
        ({"num_predict": -2}, {"max_tokens": None}),
        ({"top_k": -1}, {"top_k": 0}),
        ({"top_p": 2}, {"top_p": 1.0}),
        ({"stop": "x"}, {"stop": ("x",)}),
        ({"stop": ["", "y"]}, {"stop": ("y",)}),
    ],
)
def test_options_with_a_special_meaning(options: dict[str, Any], expected: dict[str, Any]) -> None:
    request = ollama.ChatExchange({**CHAT, "options": options}).to_request(SamplingParams(seed=3, max_tokens=3))
    assert {name: getattr(request.sampling, name) for name in expected} == expected


@pytest.mark.parametrize(("fields", "truncate"), [({}, True), ({"truncate": False}, False), ({"shift": False}, False)])
def test_truncate_and_shift_are_honoured(fields: dict[str, Any], truncate: bool) -> None:
    assert ollama.ChatExchange({**CHAT, **fields}).to_request(SamplingParams()).truncate is truncate


@pytest.mark.parametrize(
    ("fields", "schema"),
    [
        ({"format": ""}, None),
        ({"format": None}, None),
        ({"format": "json"}, {}),
        ({"format": {"type": "object"}}, {"type": "object"}),
    ],
)
def test_format_is_never_dropped(fields: dict[str, Any], schema: object) -> None:
    assert ollama.ChatExchange({**CHAT, **fields}).to_request(SamplingParams()).output_schema == schema


def test_response_format_is_never_dropped() -> None:
    def schema(response_format: object) -> object:
        body = {"model": "m", "messages": HI, "response_format": response_format}
        return openai.ChatExchange(body).to_request(SamplingParams()).output_schema

    assert schema({"type": "text"}) is None
    assert schema({"type": "json_object"}) == {}
    assert schema({"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "array"}}}) == {
        "type": "array"
    }


def test_tools_and_calls_are_understood_in_both_dialects() -> None:
    function = {"name": "read", "description": "reads", "parameters": {"type": "object"}}
    tools = [{"type": "function", "function": function}]
    call = {"id": "1", "function": {"name": "read", "arguments": {"path": "a"}}}
    result = {"role": "tool", "content": "text", "tool_call_id": "1", "tool_name": "read"}
    native = {"model": "m", "tools": tools, "messages": [*HI, {"role": "assistant", "tool_calls": [call]}, result]}
    as_text = {"id": "1", "type": "function", "function": {"name": "read", "arguments": '{"path": "a"}'}}
    compatible = {
        "model": "m",
        "tools": tools,
        "messages": [
            *HI,
            {"role": "assistant", "content": None, "tool_calls": [as_text]},
            {"role": "tool", "content": "text", "tool_call_id": "1", "name": "read"},
        ],
    }
    one = ollama.ChatExchange(native).to_request(SamplingParams())
    two = openai.ChatExchange(compatible).to_request(SamplingParams())
    assert one.messages == two.messages
    assert one.tools == two.tools
    assert one.messages[1].tool_calls == (ToolCall("read", {"path": "a"}, "1"),)
    assert openai.ChatExchange({**compatible, "tool_choice": "none"}).to_request(SamplingParams()).tools == ()


def test_half_an_emoji_is_mended_and_a_whole_one_kept(url: str, generator: Scripted) -> None:
    body = rb'{"model":"scripted","stream":false,"messages":[{"role":"user","content":"\ud83d\ude00 \ud83d!"}]}'
    assert post(url, "/api/chat", body).status_code == 200
    assert generator.requests[0].messages[0].text == "😀 �!"


# --- what is not


WELL_FORMED = b'{"model":"scripted","messages":[{"role":"user","content":"x"}]'
BAD_BODIES = {
    "nothing": b"",
    "spaces": b"  \n",
    "half": b'{"model": ',
    "list": b"[]",
    "nan": b'{"model":"scripted","messages":[],"options":{"temperature":NaN}}',
    "deep": b"[" * 100_000,
    "latin1": '{"model":"é"}'.encode("latin-1"),
    "no model": b'{"messages":[]}',
    "wrong role": b'{"model":"scripted","messages":[{"role":"pope","content":"x"}]}',
    "messages of text": b'{"model":"scripted","messages":"hello"}',
    "numbers as model": b'{"model":7,"messages":[]}',
    "stop of numbers": WELL_FORMED + b',"stop":[1],"options":{"stop":[1]}}',
    "infinite": WELL_FORMED + b',"temperature":1e999,"options":{"temperature":1e999}}',
    "logprobs": WELL_FORMED + b',"logprobs":true,"top_logprobs":21}',
}


@pytest.mark.parametrize("path", ["/api/chat", "/v1/chat/completions"])
@pytest.mark.parametrize("body", BAD_BODIES.values(), ids=BAD_BODIES)
def test_nonsense_is_400_and_says_why(url: str, generator: Scripted, path: str, body: bytes) -> None:
    response = post(url, path, body)
    assert response.status_code == 400
    error = response.json()["error"]
    message = error if path == "/api/chat" else error["message"]
    assert len(message) > 10
    assert "\n" not in message
    assert not generator.requests


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"keep_alive": "soon"}, "keep_alive"),
        ({"format": "yaml"}, "format"),
        ({"think": "hard"}, "think"),
        ({"options": {"num_ctx": "many"}}, "options.num_ctx"),
        ({"messages": [{"role": "user", "content": "x", "images": ["§"]}]}, "images"),
    ],
)
def test_a_wrong_field_is_named(url: str, fields: dict[str, Any], words: str) -> None:
    response = post(url, "/api/chat", {**CHAT, **fields})
    assert response.status_code == 400
    assert words in response.json()["error"]


def test_a_body_that_is_too_long_is_413() -> None:
    with running(app_of(scripted("x"), max_body_bytes=1000)) as url:
        response = post(url, "/api/chat", b" " * 2000)
        assert response.status_code == 413
        assert "longer than 1000 bytes" in response.json()["error"]


def test_an_empty_request_loads_and_with_keep_alive_zero_unloads(url: str) -> None:
    for path, empty in (("/api/generate", {}), ("/api/chat", {"messages": []})):
        for stream in (True, False):
            loaded = post(url, path, {"model": "scripted", "stream": stream, **empty}).json()
            assert (loaded["done"], loaded["done_reason"]) == (True, "load")
            unloaded = post(url, path, {"model": "scripted", "stream": stream, "keep_alive": 0, **empty}).json()
            assert unloaded["done_reason"] == "unload"
            assert "total_duration" not in loaded


# --- the small routes


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_the_root_says_what_clients_look_for(url: str, method: str) -> None:
    response = httpx2.request(method, url)
    assert response.status_code == 200
    assert response.text == ("Ollama is running" if method == "GET" else "")


def test_the_version_is_one_that_codex_accepts(url: str) -> None:
    version = httpx2.get(f"{url}/api/version").json()["version"]
    numbers = tuple(int(part) for part in version.split("+")[0].split("."))
    assert numbers >= (0, 13, 4)
    assert httpx2.head(f"{url}/api/version").status_code == 200


def test_unknown_routes_and_wrong_methods(url: str) -> None:
    unknown = post(url, "/api/chat/api/show", {})
    assert (unknown.status_code, unknown.text) == (404, "404 page not found")
    wrong = httpx2.get(f"{url}/api/chat")
    assert (wrong.status_code, wrong.text, wrong.headers["allow"]) == (405, "405 method not allowed", "POST")
    assert httpx2.post(f"{url}/api/tags").status_code == 405
    assert httpx2.head(f"{url}/api/tags").status_code == 200


# --- time


class Slow(Scripted):
    """Thinks for a while before the first word and before the last."""

    async def generate(self, request: GenerateRequest):  # pyright: ignore
        import asyncio

        await asyncio.sleep(0.35)
        yield Delta(text="first")
        await asyncio.sleep(0.35)
        yield Delta(finish_reason=FinishReason.STOP, usage=Usage())


@pytest.mark.parametrize(("path", "beat"), [("/v1/chat/completions", b": working\n\n"), ("/api/chat", b'"content":""')])
def test_a_silent_stream_is_kept_alive_in_the_clients_own_dialect(path: str, beat: bytes) -> None:
    with running(app_of(Slow(["x"], model="scripted"), heartbeat_s=0.1)) as url:
        body = post(url, path, {**CHAT, "stream": True}).content
        assert body.index(beat) < body.index(b"first")
        assert beat in body[body.index(b"first") :]
        whole = post(url, path, CHAT)
        assert beat not in whole.content
