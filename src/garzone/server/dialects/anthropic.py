"""Anthropic's `/v1/messages` and `/v1/messages/count_tokens`: what is asked. The answer is `anthropic_stream.py`'s.

Fields as in https://docs.anthropic.com/en/api/messages and as Claude Code sends them (WIRE.md). Translates and decides
nothing. Blocks that nobody here knows are read past: the next beta must not break a session.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, Literal, cast

from pydantic import Field

from garzone.core.chat import ContentPart, Message, Role, TextPart, ToolCall, ToolSpec
from garzone.core.errors import InvalidRequest
from garzone.core.generation import GenerateRequest, SamplingParams
from garzone.server.dialects.wire import (
    Json,
    OneAnswer,
    Strings,
    Wire,
    image_of_base64,
    image_of_url,
    strip_empty,
    think_of,
    validate,
)

BILLING_HEADER: Final = "x-anthropic-billing-header:"
"""Begins a system block of Claude Code's with a hash that differs from session to session: read, it would stand at the
first token of the prompt and make every cached prefix useless (WIRE.md, pitfalls)."""


class _Source(Wire):
    type: str = ""
    media_type: str = ""
    data: str = ""
    url: str = ""
    content: str | list[_Block] = ""


class _Block(Wire):
    type: str = "text"
    text: str = ""
    thinking: str = ""
    id: str = ""
    name: str = ""
    input: Any = None
    tool_use_id: str = ""
    content: Any = ""
    source: Any = None
    title: Any = ""


class _Message(Wire):
    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[_Block] = ""


class _Tool(Wire):
    type: str = "custom"
    name: str
    description: str = ""
    input_schema: dict[str, Any] | None = None


class _ToolChoice(Wire):
    type: str = "auto"
    name: str = ""


class _Thinking(Wire):
    type: str = ""


class _Format(Wire):
    type: str = ""
    json_schema: dict[str, Any] | None = Field(None, alias="schema")


class _OutputConfig(Wire):
    effort: str = ""
    format: _Format | None = None


class _Asked(Wire):
    model: str = Field(min_length=1, max_length=1024)
    messages: list[_Message] = []
    system: str | list[_Block] = ""
    max_tokens: int | None = Field(None, ge=0)
    stream: bool = False
    stop_sequences: Strings = []
    temperature: float | None = Field(None, ge=0)
    top_p: float | None = Field(None, ge=0)
    top_k: int | None = None
    tools: list[_Tool] = []
    tool_choice: _ToolChoice = _ToolChoice()
    thinking: _Thinking = _Thinking()
    output_config: _OutputConfig = _OutputConfig()
    output_format: _Format | None = None  # where a beta had it before


class Asked(OneAnswer):
    """A request for messages, or for their number of tokens."""

    def __init__(self, body: Mapping[str, Any]) -> None:
        self._asked = validate(_Asked, body)
        if not self._asked.messages:
            raise InvalidRequest("messages: at least one message is required")
        self.model = self._asked.model
        self.stream = self._asked.stream
        self.stop_sequences = strip_empty(self._asked.stop_sequences)

    def to_request(self, defaults: SamplingParams) -> GenerateRequest:
        """The conversation. It is never cut: what does not fit is an error that Claude Code compacts on."""
        asked = self._asked
        return GenerateRequest(
            model=asked.model,
            messages=(*_system(asked.system), *_messages(asked.messages)),
            tools=_tools(asked.tools, asked.tool_choice),
            must_call=bool(asked.tools) and asked.tool_choice.type in ("any", "tool"),
            sampling=_sampling(asked, defaults, self.stop_sequences),
            think=_think(asked),
            truncate=False,
            output_schema=_schema(asked),
        )


def text_of(request: GenerateRequest) -> str:
    """All that a request says, for counts of tokens where nothing knows the model's template."""
    said = [f"{message.role.value}\n{message.thinking}{message.text}" for message in request.messages]
    called = [f"{call.name}{json.dumps(dict(call.arguments))}" for one in request.messages for call in one.tool_calls]
    offered = [f"{tool.name}{tool.description}{json.dumps(dict(tool.parameters))}" for tool in request.tools]
    return "\n".join((*said, *called, *offered))


def _system(system: str | Sequence[_Block]) -> list[Message]:
    """The system prompt in one message: many templates take no second one."""
    blocks = [system] if isinstance(system, str) else [block.text for block in system]
    text = "\n\n".join(block for block in blocks if block.strip() and not block.startswith(BILLING_HEADER))
    return [Message.of(Role.SYSTEM, text)] if text else []


def _messages(messages: Sequence[_Message]) -> Iterator[Message]:
    names: dict[str, str] = {}  # of tools, by the id of the call: results do not repeat them
    for message in messages:
        blocks = [_Block(text=message.content)] if isinstance(message.content, str) else message.content
        if message.role == "assistant":
            names |= {block.id: block.name for block in blocks if _is_call(block)}
            yield _assistant(blocks)
        elif message.role in ("system", "developer"):
            yield Message.of(Role.SYSTEM, "\n\n".join(block.text for block in blocks if block.text))
        else:
            yield from _user(blocks, names)


def _assistant(blocks: Sequence[_Block]) -> Message:
    return Message(
        Role.ASSISTANT,
        content=tuple(TextPart(block.text) for block in blocks if block.type == "text" and block.text),
        thinking="".join(block.thinking for block in blocks if block.type == "thinking"),
        tool_calls=tuple(ToolCall(block.name, _object(block.input), block.id) for block in blocks if _is_call(block)),
    )


def _is_call(block: _Block) -> bool:
    return block.type.endswith("tool_use") and bool(block.name)


def _user(blocks: Sequence[_Block], names: Mapping[str, str]) -> Iterator[Message]:
    """What a user says, and results of tools, in the order in which they stand."""
    parts: list[ContentPart] = []
    for block in blocks:
        if block.type.endswith("tool_result"):
            if parts:
                yield Message(Role.USER, tuple(parts))
                parts = []
            content = tuple(_parts(_blocks(block.content)))
            name = names.get(block.tool_use_id, "")
            yield Message(Role.TOOL, content, tool_call_id=block.tool_use_id, tool_name=name)
        else:
            parts += _parts([block])
    if parts:
        yield Message(Role.USER, tuple(parts))


def _blocks(content: Any) -> list[_Block]:
    """The blocks of a result or document, which may also be text, or something new."""
    if isinstance(content, str):
        return [_Block(text=content)] if content else []
    items = cast("list[Any]", content) if isinstance(content, list) else [content]
    return [validate(_Block, block) if (block := _object(item)) else _Block(text=str(item)) for item in items]


def _object(value: object) -> Json:
    return cast(Json, value) if isinstance(value, dict) else {}


def _parts(blocks: Sequence[_Block]) -> Iterator[ContentPart]:
    """What a model can read of them; what it cannot is named in its place."""
    for block in blocks:
        if block.type == "image":
            source = validate(_Source, _object(block.source))
            if source.type == "base64":
                yield image_of_base64(source.data, source.media_type, "messages.content.source.data")
            else:
                yield image_of_url(source.url, "messages.content.source.url")
        elif block.type in ("document", "search_result"):
            yield from _document(block)
        elif block.text:
            yield TextPart(block.text)


def _document(block: _Block) -> Iterator[ContentPart]:
    title = block.title if isinstance(block.title, str) and block.title else block.type
    yield TextPart(f"<document title={json.dumps(title)}>\n")
    if not _object(block.source):
        yield from _parts(_blocks(block.content))
    else:
        source = validate(_Source, _object(block.source))
        if source.type == "text":
            yield TextPart(source.data)
        elif source.type == "content":
            yield from _parts(_blocks(source.content))
        else:
            yield TextPart(f"[not readable here: {source.media_type or source.type}]")
    yield TextPart("\n</document>\n")


def _tools(tools: Sequence[_Tool], choice: _ToolChoice) -> tuple[ToolSpec, ...]:
    """Tools with a schema. Those without one run on Anthropic's servers (web search, code execution), not here."""
    specs = tuple(
        ToolSpec(tool.name, tool.description, tool.input_schema) for tool in tools if tool.input_schema is not None
    )
    if choice.type == "none":
        return ()
    return tuple(spec for spec in specs if choice.type == "tool" and spec.name == choice.name) or specs


def _sampling(asked: _Asked, defaults: SamplingParams, stops: Sequence[str]) -> SamplingParams:
    changed: dict[str, Any] = {}
    if asked.temperature is not None:
        changed["temperature"] = asked.temperature
    if asked.top_p is not None:
        changed["top_p"] = min(1.0, asked.top_p)
    if asked.top_k is not None:
        changed["top_k"] = max(0, asked.top_k)
    if asked.max_tokens is not None:
        changed["max_tokens"] = max(1, asked.max_tokens)  # 0 warms a cache with Anthropic
    if stops:
        changed["stop"] = (*defaults.stop, *stops)
    return replace(defaults, **changed)


def _think(asked: _Asked) -> bool | str | None:
    """`enabled` thinks, `disabled` does not, `adaptive` leaves it to the effort, and without that to the model."""
    if asked.thinking.type == "disabled":
        return False
    effort = think_of(asked.output_config.effort, "output_config.effort")
    return True if effort is None and asked.thinking.type == "enabled" else effort


def _schema(asked: _Asked) -> Mapping[str, Any] | None:
    wanted = asked.output_config.format or asked.output_format
    if wanted is None or wanted.type != "json_schema":
        return None
    return wanted.json_schema or {}
