"""Anthropic's dialect: what Claude Code and the SDKs send, and the exact events they get back."""

import json
import re
from dataclasses import replace
from typing import Any

import httpx2
import pytest

from garzone.core.chat import ImagePart, Message, Role, TextPart, ToolCall
from garzone.core.errors import ContextOverflow, GarzoneError, GenerationFailed, InvalidRequest, Overloaded, Unsupported
from garzone.core.generation import Delta, FinishReason, GenerateRequest, SamplingParams, Usage
from garzone.server.dialects import anthropic
from garzone.server.dialects.anthropic_stream import MessagesExchange
from tests.server.conftest import Scripted, app_of, running, scripted

HI = [{"role": "user", "content": "hi"}]
END = Delta(finish_reason=FinishReason.STOP, usage=Usage(prompt_tokens=7, cached_tokens=5, completion_tokens=2))
CALL = Delta(tool_calls=(ToolCall("read", {"path": "a.py"}, "call_1"),))


def parsed(**fields: Any) -> GenerateRequest:
    body = {"model": "m", "max_tokens": 100, "messages": HI, **fields}
    return MessagesExchange(body).to_request(SamplingParams())


def events(raw: bytes) -> list[tuple[str, dict[str, Any]]]:
    """Name and document of each event; they must say the same type."""
    found: list[tuple[str, dict[str, Any]]] = []
    for block in raw.decode().split("\n\n")[:-1]:
        name, document = block.removeprefix("event: ").split("\ndata: ")
        found.append((name, json.loads(document)))
        assert found[-1][1]["type"] == name
    return found


# --- the answer


def test_the_events_of_thoughts_words_and_a_call() -> None:
    exchange = MessagesExchange({"model": "m", "messages": HI})
    raw = exchange.begin() + exchange.piece(Delta(thinking="Hm")) + exchange.piece(Delta(text='a "b"\n'))
    raw += exchange.piece(Delta(text="c")) + exchange.piece(CALL) + exchange.piece(END)
    (first, start), *rest = events(raw)
    assert (first, start["message"]["role"], start["message"]["content"]) == ("message_start", "assistant", [])
    assert re.fullmatch(r"msg_[0-9a-f]{24}", start["message"]["id"])
    assert rest == [
        ("content_block_start", {"type": "content_block_start", "index": 0,
                                 "content_block": {"type": "thinking", "thinking": "", "signature": ""}}),
        ("content_block_delta", {"type": "content_block_delta", "index": 0,
                                 "delta": {"type": "thinking_delta", "thinking": "Hm"}}),
        ("content_block_delta", {"type": "content_block_delta", "index": 0,
                                 "delta": {"type": "signature_delta", "signature": "garzone"}}),
        ("content_block_stop", {"type": "content_block_stop", "index": 0}),
        ("content_block_start", {"type": "content_block_start", "index": 1,
                                 "content_block": {"type": "text", "text": ""}}),
        ("content_block_delta", {"type": "content_block_delta", "index": 1,
                                 "delta": {"type": "text_delta", "text": "a \"b\"\n"}}),
        ("content_block_delta", {"type": "content_block_delta", "index": 1,
                                 "delta": {"type": "text_delta", "text": "c"}}),
        ("content_block_stop", {"type": "content_block_stop", "index": 1}),
        ("content_block_start", {"type": "content_block_start", "index": 2,
                                 "content_block": {"type": "tool_use", "id": "call_1", "name": "read", "input": {}}}),
        ("content_block_delta", {"type": "content_block_delta", "index": 2,
                                 "delta": {"type": "input_json_delta", "partial_json": '{"path": "a.py"}'}}),
        ("content_block_stop", {"type": "content_block_stop", "index": 2}),
        ("message_delta", {"type": "message_delta", "delta": {"stop_reason": "tool_use", "stop_sequence": None},
                           "usage": {"input_tokens": 2, "cache_creation_input_tokens": 0,
                                     "cache_read_input_tokens": 5, "output_tokens": 2}}),
        ("message_stop", {"type": "message_stop"}),
    ]  # fmt: skip


def test_a_heartbeat_is_an_empty_delta_of_the_open_block() -> None:
    exchange = MessagesExchange({"model": "m", "messages": HI})
    exchange.begin()
    opened = events(exchange.heartbeat())
    assert [name for name, _ in opened] == ["content_block_start", "content_block_delta"]
    assert opened[1][1]["delta"] == {"type": "text_delta", "text": ""}
    assert events(exchange.heartbeat())[0][1] == opened[1][1]
    exchange.piece(Delta(thinking="x"))
    assert events(exchange.heartbeat())[0][1]["delta"] == {"type": "thinking_delta", "thinking": ""}
    exchange.piece(CALL)
    assert events(exchange.heartbeat())[0][1]["content_block"] == {"type": "text", "text": ""}


@pytest.mark.parametrize(
    ("reason", "word"),
    [(FinishReason.STOP, "end_turn"), (FinishReason.LENGTH, "max_tokens"), (FinishReason.TOOL_CALLS, "tool_use")],
)
def test_why_it_stopped(reason: FinishReason, word: str) -> None:
    whole = MessagesExchange({"model": "m", "messages": HI}).whole([Delta(text="x"), Delta(finish_reason=reason)])
    assert whole["stop_reason"] == word
    assert whole["content"] == [{"type": "text", "text": "x"}]


@pytest.mark.parametrize(("stop", "named"), [("END", "END"), ("<|im_end|>", None), (None, None)])
def test_the_stop_sequence_that_ended_an_answer_is_named_if_the_request_gave_it(
    stop: str | None, named: str | None
) -> None:
    last = replace(END, stop=stop)
    body = {"model": "m", "messages": HI, "stop_sequences": ["", "END"]}
    whole = MessagesExchange(body).whole([Delta(text="a"), last])
    reason = "stop_sequence" if named else "end_turn"
    assert (whole["stop_reason"], whole["stop_sequence"]) == (reason, named)
    streamed = dict(events(MessagesExchange(body).piece(last)))["message_delta"]
    assert streamed["delta"] == {"stop_reason": reason, "stop_sequence": named}


# --- what is asked


def test_a_conversation_as_claude_code_sends_it() -> None:
    cached = {"cache_control": {"type": "ephemeral"}}
    request = parsed(
        system=[
            {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1; cch=1a2b;"},
            {"type": "text", "text": "You are helpful.", **cached},
            {"type": "text", "text": "Be brief."},
        ],
        messages=[
            {"role": "user", "content": [{"type": "text", "text": "reminder"}, {"type": "text", "text": "read it"}]},
            {"role": "system", "content": "Available agents: none"},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "I must read.", "signature": "s"},
                    {"type": "redacted_thinking", "data": "x"},
                    {"type": "text", "text": "Reading."},
                    {"type": "tool_use", "id": "t1", "name": "Read", "input": {"path": "a"}},
                    {"type": "server_tool_use", "id": "t2", "name": "web_search", "input": {"query": "b"}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "A"}], **cached},
                    {"type": "tool_result", "tool_use_id": "t2", "content": "B", "is_error": True},
                    {"type": "text", "text": "go on"},
                    {"type": "hologram", "data": {"new": 1}},
                ],
            },
        ],
        tools=[
            {"name": "Read", "description": "reads", "input_schema": {"type": "object"}, **cached},
            {"type": "web_search_20250305", "name": "web_search", "max_uses": 5},
        ],
        thinking={"type": "adaptive"},
        context_management={"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        metadata={"user_id": "u"},
    )
    assert request.messages == (
        Message.of(Role.SYSTEM, "You are helpful.\n\nBe brief."),
        Message(Role.USER, (TextPart("reminder"), TextPart("read it"))),
        Message.of(Role.SYSTEM, "Available agents: none"),
        Message(
            Role.ASSISTANT,
            (TextPart("Reading."),),
            thinking="I must read.",
            tool_calls=(ToolCall("Read", {"path": "a"}, "t1"), ToolCall("web_search", {"query": "b"}, "t2")),
        ),
        Message(Role.TOOL, (TextPart("A"),), tool_call_id="t1", tool_name="Read"),
        Message(Role.TOOL, (TextPart("B"),), tool_call_id="t2", tool_name="web_search"),
        Message(Role.USER, (TextPart("go on"),)),
    )
    assert [tool.name for tool in request.tools] == ["Read"]
    assert (request.think, request.truncate, request.sampling.max_tokens) == (None, False, 100)


def test_a_moving_cache_marker_and_another_billing_hash_change_nothing() -> None:
    def asked(number: int) -> GenerateRequest:
        system = [{"type": "text", "text": f"x-anthropic-billing-header: cch={number};"}, {"type": "text", "text": "S"}]
        blocks: list[dict[str, Any]] = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
        blocks[number]["cache_control"] = {"type": "ephemeral"}
        return parsed(system=system, messages=[{"role": "user", "content": blocks}])

    assert asked(0) == asked(1)


@pytest.mark.parametrize(
    ("fields", "think"),
    [
        ({}, None),
        ({"thinking": {"type": "adaptive"}}, None),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, True),
        ({"thinking": {"type": "disabled"}, "output_config": {"effort": "high"}}, False),
        ({"thinking": {"type": "adaptive"}, "output_config": {"effort": "high"}}, "high"),
        ({"thinking": {"type": "adaptive"}, "output_config": {"effort": "xhigh"}}, "max"),
    ],
)
def test_thinking(fields: dict[str, Any], think: object) -> None:
    assert parsed(**fields).think == think


def test_structured_output_in_its_new_and_its_old_place() -> None:
    form = {"type": "json_schema", "schema": {"type": "array"}}
    assert parsed(output_config={"format": form}).output_schema == {"type": "array"}
    assert parsed(output_format=form).output_schema == {"type": "array"}
    assert parsed().output_schema is None


@pytest.mark.parametrize(
    ("choice", "names"),
    [({"type": "auto"}, ["a", "b"]), ({"type": "none"}, []), ({"type": "tool", "name": "b"}, ["b"]),
     ({"type": "any"}, ["a", "b"])],
)  # fmt: skip
def test_tool_choice(choice: dict[str, Any], names: list[str]) -> None:
    tools = [{"name": name, "input_schema": {"type": "object"}} for name in "ab"]
    assert [tool.name for tool in parsed(tools=tools, tool_choice=choice).tools] == names


def test_images_and_documents() -> None:
    blocks = [
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "eA=="}},
        {"type": "document", "title": "T", "source": {"type": "text", "media_type": "text/plain", "data": "words"}},
        {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "eA=="}},
    ]
    (message,) = parsed(messages=[{"role": "user", "content": blocks}]).messages
    assert message.content[0] == ImagePart(b"x", "image/png")
    assert message.text == (
        '<document title="T">\nwords\n</document>\n'
        '<document title="document">\n[not readable here: application/pdf]\n</document>\n'
    )
    remote = {"type": "image", "source": {"type": "url", "url": "https://example.test/x.png"}}
    with pytest.raises(InvalidRequest, match="only data:"):
        parsed(messages=[{"role": "user", "content": [remote]}])


def test_sampling() -> None:
    sampling = parsed(temperature=0.5, top_p=2, top_k=-1, stop_sequences=["X", ""], max_tokens=0).sampling
    assert sampling == SamplingParams(temperature=0.5, top_p=1.0, top_k=0, stop=("X",), max_tokens=1)


# --- by HTTP


def post(url: str, body: dict[str, Any], path: str = "/v1/messages?beta=true") -> httpx2.Response:
    return httpx2.post(url + path, json={"max_tokens": 10, "messages": HI, **body}, timeout=30)


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (ContextOverflow(9000, 8191), 400, "invalid_request_error"),
        (Unsupported("not yet"), 501, "invalid_request_error"),
        (Overloaded("full"), 503, "overloaded_error"),
        (GenerationFailed("lost"), 500, "api_error"),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
def test_errors_before_the_first_word(error: GarzoneError, status: int, kind: str, stream: bool) -> None:
    with running(app_of(scripted(error))) as url:
        response = post(url, {"model": "scripted", "stream": stream})
    assert response.status_code == status
    document = response.json()
    assert document["error"] == {"type": kind, "message": str(error)}
    assert document["type"] == "error"
    assert document["request_id"] == response.headers["request-id"]
    assert response.headers.get("x-should-retry") == ("false" if status == 501 else None)
    assert response.headers.get("retry-after") == ("1" if status == 503 else None)


class Breaking(Scripted):
    async def generate(self, request: GenerateRequest):  # pyright: ignore
        yield Delta(text="half")
        raise GenerationFailed("the device was lost")


def test_an_error_in_the_middle_is_an_event() -> None:
    with running(app_of(Breaking(["x"], model="scripted"))) as url:
        response = post(url, {"model": "scripted", "stream": True})
    assert response.status_code == 200
    name, document = events(response.content)[-1]
    assert (name, document["error"]["message"]) == ("error", "the device was lost")
    assert document["request_id"] == response.headers["request-id"]


def test_claude_names_stand_for_the_default_model(url: str, generator: Scripted) -> None:
    with running(app_of(generator, default_model="scripted")) as address:
        for name in ("claude-opus-4-7", "Claude-Haiku-4-5-20251001", "claude-sonnet-4-6[1m]"):
            answer = post(address, {"model": name}).json()
            assert answer["model"] == name
            assert answer["content"][0]["text"]
        assert httpx2.get(f"{address}/v1/models/claude-opus-4-7").json()["id"] == "scripted:latest"
    assert {request.model for request in generator.requests} == {"scripted"}
    generator.model = "scripted:latest"
    assert post(url, {"model": "claude-opus-4-7"}).status_code == 200, "the only model there is"
    unknown = post(url, {"model": "gpt-9"})
    assert (unknown.status_code, unknown.json()["error"]["type"]) == (404, "not_found_error")


def test_a_wish_to_think_is_dropped_where_the_model_cannot(url: str, generator: Scripted) -> None:
    assert post(url, {"model": "scripted", "thinking": {"type": "enabled", "budget_tokens": 1024}}).status_code == 200
    assert generator.requests[0].think is None


def test_tokens_are_counted_by_whoever_can(url: str) -> None:
    body = {"model": "scripted", "system": "S" * 40, "tools": [{"name": "f", "input_schema": {"a": "b" * 40}}]}
    estimated = post(url, body, "/v1/messages/count_tokens").json()
    assert estimated["input_tokens"] > 20

    class Counter:
        async def count_prompt(self, request: GenerateRequest) -> int:
            assert request.tools[0].name == "f"
            return 1234

    with running(app_of(scripted("x"), counter=Counter())) as address:
        assert post(address, body, "/v1/messages/count_tokens").json() == {"input_tokens": 1234}
    assert post(url, {"model": "nope"}, "/v1/messages/count_tokens").status_code == 404


def test_models_in_this_dialect(url: str) -> None:
    headers = {"anthropic-version": "2023-06-01"}
    listed = httpx2.get(f"{url}/v1/models", headers=headers).json()
    assert (listed["first_id"], listed["has_more"]) == ("scripted:latest", False)
    one = httpx2.get(f"{url}/v1/models/scripted", headers=headers).json()
    assert (one["type"], one["id"], one["created_at"]) == ("model", "scripted:latest", "2023-11-14T22:13:20Z")
    missing = httpx2.get(f"{url}/v1/models/nope", headers=headers)
    assert (missing.status_code, missing.json()["type"]) == (404, "error")


def test_all_that_is_said_is_counted() -> None:
    request = parsed(system="S", tools=[{"name": "f", "description": "d", "input_schema": {}}])
    assert anthropic.text_of(request) == "system\nS\nuser\nhi\nfd{}"
