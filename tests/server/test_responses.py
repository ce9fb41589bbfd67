"""OpenAI's responses: what codex and the SDKs send, and the events they get back."""

import json
from typing import Any

import httpx2
import pytest

from garzone.core.chat import Message, Role, TextPart, ToolCall
from garzone.core.errors import ContextOverflow, GenerationFailed, InvalidRequest
from garzone.core.generation import (
    ChosenToken,
    Delta,
    FinishReason,
    GenerateRequest,
    SamplingParams,
    TokenLogprob,
    Usage,
)
from garzone.server.dialects.openai_responses_stream import ResponseExchange
from tests.server.conftest import Scripted, app_of, running, scripted
from tests.server.test_anthropic import events

TOOLS = [
    {"type": "function", "name": "read", "description": "reads", "parameters": {"type": "object"}, "strict": False},
    {"type": "namespace", "name": "agents", "tools": [{"type": "function", "name": "spawn", "parameters": {}}]},
    {"type": "custom", "name": "apply_patch", "format": {"type": "grammar", "syntax": "lark", "definition": "x"}},
    {"type": "web_search"},
]
END = Delta(finish_reason=FinishReason.STOP, usage=Usage(prompt_tokens=7, cached_tokens=5, completion_tokens=2))


def parsed(**fields: Any) -> GenerateRequest:
    return ResponseExchange({"model": "m", "input": "hi", **fields}).to_request(SamplingParams())


def test_the_events_of_thoughts_words_and_calls() -> None:
    exchange = ResponseExchange({"model": "m", "input": "hi", "tools": TOOLS})
    raw = exchange.begin() + exchange.piece(Delta(thinking="Hm")) + exchange.piece(Delta(text="a"))
    raw += exchange.piece(Delta(text="b"))
    calls = (
        ToolCall("read", {"path": "a"}, "c1"),
        ToolCall("spawn", {}, "c2"),
        ToolCall("apply_patch", {"input": "P"}, "c3"),
    )
    raw += exchange.heartbeat() + exchange.piece(Delta(tool_calls=calls)) + exchange.piece(END)
    named = events(raw)
    assert [name for name, _ in named] == [
        "response.created", "response.in_progress",
        "response.output_item.added", "response.reasoning_summary_part.added", "response.reasoning_summary_text.delta",
        "response.reasoning_summary_text.done", "response.reasoning_summary_part.done", "response.output_item.done",
        "response.output_item.added", "response.content_part.added", "response.output_text.delta",
        "response.output_text.delta", "response.in_progress", "response.output_text.done",
        "response.content_part.done", "response.output_item.done",
        "response.output_item.added", "response.function_call_arguments.delta",
        "response.function_call_arguments.done", "response.output_item.done",
        "response.output_item.added", "response.function_call_arguments.delta",
        "response.function_call_arguments.done", "response.output_item.done",
        "response.output_item.added", "response.custom_tool_call_input.delta",
        "response.custom_tool_call_input.done", "response.output_item.done",
        "response.completed",
    ]  # fmt: skip
    assert [document["sequence_number"] for _, document in named] == list(range(len(named)))
    response = named[-1][1]["response"]
    assert response["status"] == "completed"
    assert response["usage"]["total_tokens"] == 9
    assert response["usage"]["input_tokens_details"] == {"cached_tokens": 5}
    reasoning, message, read, spawn, patch = response["output"]
    assert reasoning["summary"] == [{"type": "summary_text", "text": "Hm"}]
    assert message["content"] == [{"type": "output_text", "text": "ab", "annotations": [], "logprobs": []}]
    assert (read["call_id"], read["arguments"], "namespace" in read) == ("c1", '{"path": "a"}', False)
    assert (spawn["name"], spawn["namespace"]) == ("spawn", "agents")
    assert (patch["type"], patch["name"], patch["input"]) == ("custom_tool_call", "apply_patch", "P")
    done = [document["item"] for name, document in named if name == "response.output_item.done"]
    assert done == response["output"]
    whole = ResponseExchange({"model": "m", "input": "hi", "tools": TOOLS}).whole([Delta(text="a"), END])
    assert whole["output"][0]["content"][0]["text"] == "a"
    assert whole["tools"] == TOOLS


def test_an_answer_that_was_cut_is_incomplete() -> None:
    exchange = ResponseExchange({"model": "m", "input": "hi"})
    (*_, (name, document)) = events(exchange.piece(Delta(finish_reason=FinishReason.LENGTH, usage=Usage())))
    assert name == "response.incomplete"
    assert document["response"]["incomplete_details"] == {"reason": "max_output_tokens"}


def test_what_breaks_off_has_failed() -> None:
    exchange = ResponseExchange({"model": "m", "input": "hi"})
    exchange.piece(Delta(text="half"))
    (*_, (name, document)) = events(exchange.broken(GenerationFailed("lost")))
    assert name == "response.failed"
    assert document["response"]["error"] == {"code": "server_error", "message": "lost"}
    assert document["response"]["output"][0]["content"][0]["text"] == "half"
    (*_, (_, document)) = events(ResponseExchange({"model": "m", "input": "x"}).broken(ContextOverflow(9, 8)))
    assert document["response"]["error"]["code"] == "context_length_exceeded"


def test_a_conversation_as_codex_sends_it() -> None:
    def said(role: str, text: str, kind: str = "input_text") -> dict[str, Any]:
        return {"type": "message", "role": role, "content": [{"type": kind, "text": text}]}

    request = parsed(
        instructions="I",
        input=[
            said("developer", "D"),
            said("user", "U"),
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm"}], "encrypted_content": None},
            said("assistant", "A", "output_text"),
            {"type": "function_call", "name": "read", "arguments": '{"path": "a"}', "call_id": "c1"},
            {"type": "custom_tool_call", "name": "apply_patch", "input": "P", "call_id": "c2"},
            {"type": "function_call_output", "call_id": "c1", "output": "text of a"},
            {"type": "custom_tool_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "ok"}]},
            {"type": "web_search_call", "status": "completed"},
            {"type": "local_shell_call", "call_id": "c3", "action": {"command": ["ls"]}},
        ],
        tools=TOOLS,
        reasoning={"effort": "high", "summary": "auto"},
        store=False,
        include=["reasoning.encrypted_content"],
        prompt_cache_key="k",
    )
    assert request.messages == (
        Message.of(Role.SYSTEM, "I"),
        Message.of(Role.SYSTEM, "D"),
        Message.of(Role.USER, "U"),
        Message(
            Role.ASSISTANT,
            (TextPart("A"),),
            thinking="Hm",
            tool_calls=(ToolCall("read", {"path": "a"}, "c1"), ToolCall("apply_patch", {"input": "P"}, "c2")),
        ),
        Message(Role.TOOL, (TextPart("text of a"),), tool_call_id="c1", tool_name="read"),
        Message(Role.TOOL, (TextPart("ok"),), tool_call_id="c2", tool_name="apply_patch"),
        Message(Role.ASSISTANT, tool_calls=(ToolCall("local_shell", {"command": ["ls"]}, "c3"),)),
    )
    assert [tool.name for tool in request.tools] == ["read", "spawn", "apply_patch"]
    assert request.tools[2].parameters["required"] == ["input"]
    assert (request.think, request.truncate, request.logprobs) == ("high", False, None)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"truncation": "auto"}, {"truncate": True}),
        ({"text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "array"}}}},
         {"output_schema": {"type": "array"}}),
        ({"text": {"format": {"type": "json_object"}, "verbosity": "low"}}, {"output_schema": {}}),
        ({"top_logprobs": 3}, {"logprobs": 3}),
        ({"include": ["message.output_text.logprobs"]}, {"logprobs": 0}),
        ({"tool_choice": "none", "tools": TOOLS}, {"tools": ()}),
        ({"reasoning": {"effort": None}}, {"think": None}),
        ({"reasoning": {"effort": "none"}}, {"think": False}),
    ],
)  # fmt: skip
def test_what_fields_mean(fields: dict[str, Any], expected: dict[str, Any]) -> None:
    request = parsed(**fields)
    assert {name: getattr(request, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"previous_response_id": "resp_1"}, "not stored"),
        ({"background": True}, "background"),
        ({"input": []}, "input"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "item_reference"),
        ({"input": [{"role": "pope", "content": "x"}]}, "pope"),
        ({"text": {"format": {"type": "json_schema"}}}, "json_schema"),
        ({"input": [{"type": "function_call", "name": "f", "arguments": "[1]", "call_id": "c"}]}, "object"),
    ],
)
def test_what_cannot_be_done_is_said(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        parsed(**fields)


def test_logprobs_are_in_the_message() -> None:
    token = ChosenToken(TokenLogprob("a", 1, -0.5, b"a"), (TokenLogprob("b", 2, -1.5, b"b"),))
    exchange = ResponseExchange({"model": "m", "input": "x", "top_logprobs": 1})
    whole = exchange.whole([Delta(text="a"), Delta(logprobs=(token,)), END])
    (listed,) = whole["output"][0]["content"][0]["logprobs"]
    assert (listed["token"], listed["bytes"], listed["top_logprobs"][0]["logprob"]) == ("a", [97], -1.5)


def test_an_overflow_is_400_with_the_code_that_clients_know() -> None:
    with running(app_of(scripted(ContextOverflow(9000, 8191)))) as url:
        body = {"model": "scripted", "input": "x", "stream": True}
        response = httpx2.post(f"{url}/v1/responses", json=body, timeout=30)
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "context_length_exceeded"
    assert response.json()["error"]["message"] == "prompt is too long: 9000 tokens > 8191 maximum context length"
    assert response.headers["x-request-id"].startswith("req_")


def test_a_wish_to_think_is_dropped_where_the_model_cannot(url: str, generator: Scripted) -> None:
    body = {"model": "scripted", "input": "x", "reasoning": {"effort": "medium"}}
    response = httpx2.post(f"{url}/v1/responses", content=json.dumps(body), timeout=30)
    assert response.status_code == 200
    assert generator.requests[0].think is None
