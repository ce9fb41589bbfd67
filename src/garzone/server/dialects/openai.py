"""OpenAI's dialect: `/v1/chat/completions` and `/v1/models`.

Translates and decides nothing: whether a model can do what is asked is for the generator to say. Fields as in
https://platform.openai.com/docs/api-reference/chat; what Ollama accepts and ignores is accepted and ignored here too.
"""

from __future__ import annotations

import base64
import binascii
import json
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Final, Literal, cast

from pydantic import BaseModel, BeforeValidator, Field, ValidationError, model_validator

from garzone.core.chat import ContentPart, ImagePart, Message, Role, TextPart, ToolCall, ToolSpec
from garzone.core.errors import ContextOverflow, GarzoneError, InvalidRequest, ModelNotFound, UsageError
from garzone.core.generation import Delta, FinishReason, GenerateRequest, ModelDetails, SamplingParams, Usage

FINISH_REASONS: Final = {
    FinishReason.STOP: "stop",
    FinishReason.LENGTH: "length",
    FinishReason.TOOL_CALLS: "tool_calls",
    FinishReason.ABORTED: "stop",
}
# What reasoning_effort means to a model that thinks, as Ollama maps it
_EFFORTS: Final[dict[str, bool | str]] = {
    "none": False,
    "minimal": "low",
    "low": "low",
    "medium": "medium",
    "high": "high",
    "max": "max",
    "xhigh": "max",
    "ultra": "max",
}
DONE: Final = b"data: [DONE]\n\n"


class _Wire(BaseModel, extra="ignore", allow_inf_nan=False):
    """Unknown fields are ignored; null means not given."""

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value  # pyright: ignore[reportUnknownVariableType]
        return {key: item for key, item in value.items() if item is not None}  # pyright: ignore[reportUnknownVariableType]


class _Url(_Wire):
    url: str


def _url_of(value: Any) -> Any:
    return {"url": value} if isinstance(value, str) else value


class _Part(_Wire):
    type: str
    text: str = ""
    refusal: str = ""
    image_url: Annotated[_Url | None, BeforeValidator(_url_of)] = None

    def to_core(self) -> ContentPart:
        if self.type in ("text", "refusal"):
            return TextPart(self.text or self.refusal)
        if self.type == "image_url" and self.image_url is not None:
            return _image(self.image_url.url)
        raise InvalidRequest(f"messages.content: parts of type '{self.type}' are not supported")


class _CalledFunction(_Wire):
    name: str
    arguments: str | dict[str, Any] = "{}"


class _Call(_Wire):
    id: str = ""
    function: _CalledFunction

    def to_core(self) -> ToolCall:
        arguments = self.function.arguments
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments or "{}")
            except json.JSONDecodeError as error:
                raise InvalidRequest(f"messages.tool_calls.function.arguments: not JSON: {error}") from error
        if not isinstance(arguments, dict):
            raise InvalidRequest("messages.tool_calls.function.arguments: must be a JSON object")
        return ToolCall(self.function.name, cast("dict[str, Any]", arguments), self.id)


class _Message(_Wire):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[_Part] = ""
    name: str = ""
    reasoning: str = ""
    tool_calls: list[_Call] = []
    tool_call_id: str = ""

    def to_core(self) -> Message:
        text = self.content
        parts = [part.to_core() for part in text] if isinstance(text, list) else [TextPart(text)] if text else []
        return Message(
            role=Role.SYSTEM if self.role == "developer" else Role(self.role),
            content=tuple(parts),
            thinking=self.reasoning,
            tool_calls=tuple(call.to_core() for call in self.tool_calls),
            tool_call_id=self.tool_call_id,
            tool_name=self.name if self.role == "tool" else "",
        )


class _Function(_Wire):
    name: str
    description: str = ""
    parameters: dict[str, Any] = {}


class _Tool(_Wire):
    type: Literal["function"] = "function"
    function: _Function


class _JsonSchema(_Wire):
    json_schema: dict[str, Any] = Field({}, alias="schema")


class _ResponseFormat(_Wire):
    type: Literal["text", "json_object", "json_schema"] = "text"
    json_schema: _JsonSchema | None = None


class _StreamOptions(_Wire):
    include_usage: bool = False


class _Reasoning(_Wire):
    effort: str = ""


def _one_or_more(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class _Asked(_Wire):
    model: str = Field(min_length=1, max_length=1024)
    messages: list[_Message] = Field(min_length=1)
    stream: bool = False
    stream_options: _StreamOptions = _StreamOptions()
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0)
    top_p: float | None = Field(None, ge=0)
    stop: Annotated[list[str], BeforeValidator(_one_or_more)] | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    tools: list[_Tool] = []
    tool_choice: str | dict[str, Any] = "auto"
    response_format: _ResponseFormat = _ResponseFormat()
    reasoning_effort: str = ""
    reasoning: _Reasoning = _Reasoning()
    n: int = 1
    logprobs: bool = False


class ChatExchange:
    """`/v1/chat/completions`."""

    media_type = "text/event-stream"

    def __init__(self, body: Mapping[str, Any]) -> None:
        try:
            self._asked = _Asked.model_validate(body)
        except ValidationError as error:
            raise InvalidRequest(_explain(error)) from error
        self.model = self._asked.model
        self.stream = self._asked.stream
        self._includes_usage = self._asked.stream_options.include_usage
        self._id = f"chatcmpl-{uuid.uuid4().hex[:24]}"
        self._created = int(time.time())
        self._num_calls = 0
        head = {
            "id": self._id,
            "object": "chat.completion.chunk",
            "created": self._created,
            "model": self.model,
            "system_fingerprint": "fp_garzone",
        }
        self._head = "data: " + json.dumps(head)[:-1]
        tail = {"finish_reason": None}
        self._tail = ", " + json.dumps(tail)[1:] + "]" + (', "usage": null' if self._includes_usage else "") + "}\n\n"

    def to_request(self, defaults: SamplingParams) -> GenerateRequest:
        """The conversation. Temperature and top_p are 1 unless given, whatever the model says (as Ollama does)."""
        asked = self._asked
        if asked.n != 1:
            raise InvalidRequest("n: only one choice is supported")
        if asked.logprobs:
            raise InvalidRequest("logprobs: not supported; leave it out")
        return GenerateRequest(
            model=asked.model,
            messages=tuple(message.to_core() for message in asked.messages),
            tools=() if asked.tool_choice == "none" else _tools(asked.tools),
            sampling=self._sampling(defaults),
            think=self._think(),
            output_schema=self._output_schema(),
        )

    def begin(self) -> bytes:
        """The chunk with the role."""
        return self._chunk('{"role": "assistant", "content": ""}')

    def piece(self, delta: Delta) -> bytes:
        """One event; with the finish reason also usage, if asked for, and the end."""
        events = b""
        if delta.text or delta.thinking or delta.tool_calls:
            fields: dict[str, Any] = {}
            if delta.text:
                fields["content"] = delta.text
            if delta.thinking:
                fields["reasoning"] = delta.thinking
            if delta.tool_calls:
                fields["tool_calls"] = self._calls(delta.tool_calls)
            events = self._chunk(json.dumps(fields))
        if delta.finish_reason is None:
            return events
        ending = json.dumps({"finish_reason": self._finish_reason(delta)})[1:]
        usage_field = ', "usage": null' if self._includes_usage else ""
        events += f'{self._head}, "choices": [{{"index": 0, "delta": {{}}, {ending}]{usage_field}}}\n\n'.encode()
        if self._includes_usage:
            usage = json.dumps(_usage(delta.usage))
            events += f'{self._head}, "choices": [], "usage": {usage}}}\n\n'.encode()
        return events + DONE

    def heartbeat(self) -> bytes:
        """A comment, which every reader of server-sent events skips."""
        return b": working\n\n"

    def broken(self, error: GarzoneError) -> bytes:
        """An event with the error; the `openai` package raises it."""
        return b"data: " + json.dumps(self.error_document(error)).encode() + b"\n\n"

    def whole(self, deltas: Sequence[Delta]) -> Mapping[str, Any]:
        """The completion in one document."""
        message: dict[str, Any] = {"role": "assistant", "content": "".join(delta.text for delta in deltas)}
        if thinking := "".join(delta.thinking for delta in deltas):
            message["reasoning"] = thinking
        if calls := [call for delta in deltas for call in delta.tool_calls]:
            message["tool_calls"] = self._calls(calls)
        return {
            "id": self._id,
            "object": "chat.completion",
            "created": self._created,
            "model": self.model,
            "system_fingerprint": "fp_garzone",
            "choices": [{"index": 0, "message": message, "finish_reason": self._finish_reason(deltas[-1])}],
            "usage": _usage(deltas[-1].usage),
        }

    @staticmethod
    def error_document(error: GarzoneError) -> Mapping[str, Any]:
        """`{"error": {message, type, param, code}}`."""
        return error_document(error)

    def _chunk(self, delta: str) -> bytes:
        return f'{self._head}, "choices": [{{"index": 0, "delta": {delta}{self._tail}'.encode()

    def _calls(self, calls: Sequence[ToolCall]) -> list[dict[str, Any]]:
        first = self._num_calls
        self._num_calls += len(calls)
        return [
            {
                "index": first + index,
                "id": call.id or f"call_{uuid.uuid4().hex[:8]}",
                "type": "function",
                "function": {"name": call.name, "arguments": json.dumps(dict(call.arguments))},
            }
            for index, call in enumerate(calls)
        ]

    def _finish_reason(self, last: Delta) -> str:
        assert last.finish_reason is not None
        if self._num_calls and last.finish_reason is FinishReason.STOP:
            return FINISH_REASONS[FinishReason.TOOL_CALLS]
        return FINISH_REASONS[last.finish_reason]

    def _sampling(self, defaults: SamplingParams) -> SamplingParams:
        asked = self._asked
        changed: dict[str, Any] = {
            "temperature": 1.0 if asked.temperature is None else asked.temperature,
            "top_p": 1.0 if asked.top_p is None else min(1.0, asked.top_p),
        }
        if asked.seed is not None:
            changed["seed"] = asked.seed if asked.seed >= 0 else None
        if asked.stop is not None:
            changed["stop"] = tuple(stop for stop in asked.stop if stop)
        for name in ("presence_penalty", "frequency_penalty"):
            if (value := getattr(asked, name)) is not None:
                changed[name] = value
        limits = [limit for limit in (asked.max_tokens, asked.max_completion_tokens) if limit is not None]
        if limits:
            changed["max_tokens"] = min(limits)
        return replace(defaults, **changed)

    def _think(self) -> bool | str | None:
        effort = self._asked.reasoning_effort or self._asked.reasoning.effort
        if not effort:
            return None
        if effort not in _EFFORTS:
            raise InvalidRequest(f"reasoning_effort: '{effort}' is none of {', '.join(_EFFORTS)}")
        return _EFFORTS[effort]

    def _output_schema(self) -> Mapping[str, Any] | None:
        asked = self._asked.response_format
        if asked.type == "text":
            return None
        if asked.type == "json_object":
            return {}
        if asked.json_schema is None:
            raise InvalidRequest("response_format.json_schema: required with type json_schema")
        return asked.json_schema.json_schema


def _tools(tools: Sequence[_Tool]) -> tuple[ToolSpec, ...]:
    return tuple(ToolSpec(tool.function.name, tool.function.description, tool.function.parameters) for tool in tools)


def _image(url: str) -> ImagePart:
    """A `data:` URL; anything else would make the server fetch what a stranger names."""
    head, comma, body = url.partition(",")
    if not (head.startswith("data:") and head.endswith(";base64") and comma):
        raise InvalidRequest("messages.content.image_url: only data:...;base64 URLs are supported")
    try:
        return ImagePart(base64.b64decode(body, validate=True), head[len("data:") : -len(";base64")])
    except (binascii.Error, ValueError) as error:
        raise InvalidRequest(f"messages.content.image_url: not base64: {error}") from error


def _usage(usage: Usage | None) -> dict[str, Any]:
    spent = usage or Usage()
    return {
        "prompt_tokens": spent.prompt_tokens,
        "completion_tokens": spent.completion_tokens,
        "total_tokens": spent.prompt_tokens + spent.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": spent.cached_tokens},
    }


def _explain(error: ValidationError) -> str:
    """The first thing that is wrong, as `field.path: what`; the names of a union's alternatives are left out."""
    first = error.errors(include_url=False, include_context=False)[0]
    alternatives = ("list[", "dict[", "function-", "str", "_Part")
    path = ".".join(str(part) for part in first["loc"] if part == "stream" or not str(part).startswith(alternatives))
    return f"{path}: {first['msg']}" if path else str(first["msg"])


def error_document(error: GarzoneError) -> dict[str, Any]:
    """How every route of this dialect says what went wrong."""
    kind, code = "api_error", None
    if isinstance(error, UsageError):
        kind = "invalid_request_error"
    if isinstance(error, ContextOverflow):
        code = "context_length_exceeded"
    if isinstance(error, ModelNotFound):
        kind, code = "not_found_error", "model_not_found"
    return {"error": {"message": str(error), "type": kind, "param": None, "code": code}}


def models_document(models: Sequence[ModelDetails]) -> dict[str, Any]:
    """`/v1/models`."""
    return {"object": "list", "data": [model_document(model) for model in models]}


def model_document(model: ModelDetails) -> dict[str, Any]:
    """`/v1/models/NAME`."""
    return {"id": model.name, "object": "model", "created": int(model.modified_at), "owned_by": "library"}
