"""OpenAI's `/v1/responses`: what is asked. The answer is `openai_responses_stream.py`'s.

Fields as in https://platform.openai.com/docs/api-reference/responses and as codex sends them (WIRE.md). Nothing is
stored: a request that refers to an earlier response is refused in words. Translates and decides nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Final, cast

from pydantic import Field

from garzone.core.chat import Message, Role, TextPart, ToolCall, ToolSpec
from garzone.core.errors import InvalidRequest
from garzone.core.generation import GenerateRequest, SamplingParams
from garzone.server.dialects.openai_common import Part, ResponseFormat, chosen_tools, must_call, parts_of
from garzone.server.dialects.wire import (
    Json,
    OneAnswer,
    Wire,
    arguments_of,
    clamped_top_logprobs,
    think_of,
    validate,
)

_CALLS: Final = ("function_call", "custom_tool_call", "local_shell_call")
_RESULTS: Final = ("function_call_output", "custom_tool_call_output", "local_shell_call_output")


class _Text(Wire):
    text: str = ""


class _Item(Wire):
    """One item of the input, of whatever type."""

    type: str = "message"
    role: str = "user"
    content: str | list[Part] = ""
    summary: list[_Text] = []
    id: str = ""
    call_id: str = ""
    name: str = ""
    namespace: str = ""
    arguments: str | dict[str, Any] = "{}"
    input: str = ""
    action: dict[str, Any] = {}
    output: Any = ""


class _Tool(Wire):
    type: str = "function"
    name: str = ""
    description: str = ""
    parameters: dict[str, Any] = {}
    tools: list[_Tool] = []  # of a namespace


class _Reasoning(Wire):
    effort: str = ""


class _TextOptions(Wire):
    format: ResponseFormat = ResponseFormat()  # pyright: ignore[reportCallIssue]


class _Asked(Wire):
    model: str = Field(min_length=1, max_length=1024)
    input: str | list[_Item] = ""
    instructions: str = ""
    stream: bool = False
    tools: list[_Tool] = []
    tool_choice: str | dict[str, Any] = "auto"
    max_output_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0)
    top_p: float | None = Field(None, ge=0)
    top_logprobs: int | None = None
    include: list[str] = []
    reasoning: _Reasoning = _Reasoning()
    text: _TextOptions = _TextOptions()
    truncation: str = "disabled"
    parallel_tool_calls: bool = True
    previous_response_id: str = ""
    background: bool = False


class ToolKind(Enum):
    """How a call of a tool is spelled in the answer."""

    FUNCTION = "function_call"
    CUSTOM = "custom_tool_call"  # its input is free text


@dataclass(frozen=True, slots=True)
class OfferedTool:
    """A tool as the model sees it, and what its calls are in this dialect."""

    spec: ToolSpec
    kind: ToolKind = ToolKind.FUNCTION
    namespace: str = ""


_FREE_TEXT: Final = {
    "type": "object",
    "properties": {"input": {"type": "string", "description": "The text the tool is given."}},
    "required": ["input"],
}


class Asked(OneAnswer):
    """A request for a response."""

    def __init__(self, body: Mapping[str, Any]) -> None:
        asked = self._asked = validate(_Asked, body)
        if asked.previous_response_id:
            raise InvalidRequest("previous_response_id: responses are not stored here; send the whole conversation")
        if asked.background:
            raise InvalidRequest("background: not supported; leave it out")
        if not asked.input:
            raise InvalidRequest("input: is required")
        self.model = asked.model
        self.stream = asked.stream
        self.tools = {tool.spec.name: tool for tool in _offered(asked.tools)}
        self.echoed: Json = {
            "instructions": asked.instructions or None,
            "max_output_tokens": asked.max_output_tokens,
            "parallel_tool_calls": asked.parallel_tool_calls,
            "reasoning": {"effort": asked.reasoning.effort or None, "summary": None},
            "temperature": 1.0 if asked.temperature is None else asked.temperature,
            "text": body.get("text") or {"format": {"type": "text"}},
            "tool_choice": asked.tool_choice,
            "tools": body.get("tools") or [],
            "top_p": 1.0 if asked.top_p is None else asked.top_p,
            "truncation": asked.truncation,
            "metadata": body.get("metadata") or {},
        }

    def to_request(self, defaults: SamplingParams) -> GenerateRequest:
        """The conversation; it is only cut with `truncation: "auto"`."""
        asked = self._asked
        wants_logprobs = asked.top_logprobs is not None or "message.output_text.logprobs" in asked.include
        items = [_Item(content=asked.input)] if isinstance(asked.input, str) else asked.input
        instructions = [Message.of(Role.SYSTEM, asked.instructions)] if asked.instructions else []
        return GenerateRequest(
            model=asked.model,
            messages=(*instructions, *_messages(items)),
            tools=chosen_tools([tool.spec for tool in self.tools.values()], asked.tool_choice),
            must_call=bool(self.tools) and must_call(asked.tool_choice),
            sampling=replace(
                defaults,
                temperature=1.0 if asked.temperature is None else asked.temperature,
                top_p=1.0 if asked.top_p is None else min(1.0, asked.top_p),
                max_tokens=asked.max_output_tokens or defaults.max_tokens,
            ),
            think=think_of(asked.reasoning.effort, "reasoning.effort"),
            truncate=asked.truncation == "auto",
            output_schema=asked.text.format.schema_of(),
            logprobs=clamped_top_logprobs(asked.top_logprobs) if wants_logprobs else None,
        )


def _offered(tools: Sequence[_Tool], namespace: str = "") -> Iterator[OfferedTool]:
    """What can be called by who asked. Tools that OpenAI's servers run (web_search, file_search, ...) are left out."""
    for tool in tools:
        if tool.type == "namespace":
            yield from _offered(tool.tools, tool.name)
        elif tool.type == "function" and tool.name:
            yield OfferedTool(ToolSpec(tool.name, tool.description, tool.parameters), namespace=namespace)
        elif tool.type == "custom" and tool.name:
            spec = ToolSpec(tool.name, tool.description, _FREE_TEXT)
            yield OfferedTool(spec, ToolKind.CUSTOM, namespace)


def _messages(items: Sequence[_Item]) -> Iterator[Message]:
    """Items that one turn of the model's consists of (thoughts, words, calls) become one message."""
    names: dict[str, str] = {}
    turn: Message | None = None
    for item in items:
        if item.type == "reasoning":
            turn = turn or Message(Role.ASSISTANT)
            turn = replace(turn, thinking=turn.thinking + _thoughts(item))
        elif item.type in _CALLS:
            call = _call(item)
            names[call.id] = call.name
            turn = turn or Message(Role.ASSISTANT)
            turn = replace(turn, tool_calls=(*turn.tool_calls, call))
        elif item.type == "message" and item.role == "assistant":
            if turn is not None and (turn.content or turn.tool_calls):
                yield turn
                turn = None
            turn = replace(turn or Message(Role.ASSISTANT), content=parts_of(item.content))
        elif item.type == "item_reference":
            raise InvalidRequest("input: an item_reference names what is stored; nothing is here, send the item itself")
        elif item.type in ("message", *_RESULTS):
            if turn is not None:
                yield turn
                turn = None
            yield _result(item, names) if item.type in _RESULTS else _message(item)
        # what is left (web_search_call, compaction and the like) is a record of what OpenAI's servers did
    if turn is not None:
        yield turn


def _thoughts(item: _Item) -> str:
    texts = [part.text for part in item.content] if isinstance(item.content, list) else [item.content]
    return "".join(texts) or "".join(part.text for part in item.summary)


def _call(item: _Item) -> ToolCall:
    if item.type == "custom_tool_call":
        return ToolCall(item.name, {"input": item.input}, item.call_id or item.id)
    if item.type == "local_shell_call":
        return ToolCall("local_shell", item.action, item.call_id or item.id)
    return ToolCall(item.name, arguments_of(item.arguments, "input.arguments"), item.call_id or item.id)


def _message(item: _Item) -> Message:
    roles = {"system": Role.SYSTEM, "developer": Role.SYSTEM, "user": Role.USER}
    if item.role not in roles:
        raise InvalidRequest(f"input.role: '{item.role}' is none of user, assistant, system, developer")
    return Message(roles[item.role], parts_of(item.content))


def _result(item: _Item, names: Mapping[str, str]) -> Message:
    output = item.output
    if isinstance(output, list):
        content = parts_of([validate(Part, cast(Json, part)) for part in cast("list[Any]", output)])
    else:
        content = (TextPart(output if isinstance(output, str) else json.dumps(output)),)
    call_id = item.call_id or item.id
    return Message(Role.TOOL, content, tool_call_id=call_id, tool_name=names.get(call_id, ""))
