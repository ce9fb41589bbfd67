"""Ollama's native dialect: `/api/generate` and `/api/chat`.

Translates and decides nothing: whether a model can do what is asked is for the generator to say. Field by field as
listed in Ollama's api/types.go (https://github.com/ollama/ollama/blob/main/api/types.go).
"""

from __future__ import annotations

import base64
import binascii
import json
import logging
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, Field, ValidationError, model_validator

from garzone.core.chat import ContentPart, ImagePart, Message, Role, TextPart, ToolCall, ToolSpec
from garzone.core.errors import GarzoneError, InvalidRequest
from garzone.core.generation import (
    Delta,
    FinishReason,
    GenerateRequest,
    SamplingParams,
    Usage,
)

_log = logging.getLogger(__name__)

DONE_REASONS: Final = {
    FinishReason.STOP: "stop",
    FinishReason.LENGTH: "length",
    FinishReason.TOOL_CALLS: "stop",
    FinishReason.ABORTED: "stop",
}
_DURATION = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h)")
_UNIT_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def parse_keep_alive(value: float | str) -> float:
    """Seconds: a number is that, text is a Go duration (`5m`, `1h30m`, `-1s`) or a number. Raises ValueError."""
    if isinstance(value, int | float):
        return float(value)
    text = value.strip()
    sign, body = (-1.0, text[1:]) if text.startswith("-") else (1.0, text.removeprefix("+"))
    if re.fullmatch(r"[0-9]+(\.[0-9]*)?", body):
        return sign * float(body)
    parts = _DURATION.findall(body)
    if not parts or "".join(number + unit for number, unit in parts) != body:
        raise ValueError(f"{value!r} is not a duration: give seconds, or for example 5m, 1h30m, 0, -1")
    return sign * sum(float(number) * _UNIT_S[unit] for number, unit in parts)


def _without_nulls(value: Any) -> Any:
    return {key: item for key, item in value.items() if item is not None} if isinstance(value, dict) else value  # pyright: ignore[reportUnknownVariableType]


class _Wire(BaseModel, extra="ignore", strict=False, allow_inf_nan=False):
    """Unknown fields are ignored; null means not given."""

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, value: Any) -> Any:
        return _without_nulls(value)


def _one_or_more(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Stops = Annotated[list[str], BeforeValidator(_one_or_more)]


class Options(_Wire):
    """`options`, or a Modelfile's PARAMETER lines; None where nothing is said."""

    temperature: float | None = Field(None, ge=0)
    top_k: int | None = None
    top_p: float | None = Field(None, ge=0)
    min_p: float | None = Field(None, ge=0)
    repeat_last_n: int | None = Field(None, ge=-1)
    repeat_penalty: float | None = Field(None, gt=0)
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    num_predict: int | None = None
    num_ctx: int | None = None
    stop: Stops | None = None

    def over(self, defaults: SamplingParams) -> SamplingParams:
        """`defaults` with what is said here in their place."""
        same = ("temperature", "min_p", "repeat_last_n", "repeat_penalty", "presence_penalty", "frequency_penalty")
        changed: dict[str, Any] = {name: getattr(self, name) for name in same if getattr(self, name) is not None}
        if self.top_k is not None:
            changed["top_k"] = max(0, self.top_k)
        if self.top_p is not None:
            changed["top_p"] = min(1.0, self.top_p)
        if self.seed is not None:
            changed["seed"] = self.seed if self.seed >= 0 else None
        if self.num_predict is not None:
            changed["max_tokens"] = self.num_predict if self.num_predict > 0 else None
        if self.stop is not None:
            changed["stop"] = tuple(stop for stop in self.stop if stop)
        return replace(defaults, **changed)


class _Function(_Wire):
    name: str
    description: str = ""
    parameters: dict[str, Any] = {}


class _Tool(_Wire):
    type: str = "function"
    function: _Function


class _CalledFunction(_Wire):
    name: str
    arguments: dict[str, Any] = {}


class _Call(_Wire):
    id: str = ""
    function: _CalledFunction


class _Message(_Wire):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str = ""
    thinking: str = ""
    images: list[str] = []
    tool_calls: list[_Call] = []
    tool_name: str = ""
    tool_call_id: str = ""

    def to_core(self) -> Message:
        content: list[ContentPart] = [TextPart(self.content)] if self.content else []
        content += _images(self.images)
        return Message(
            role=Role.SYSTEM if self.role == "developer" else Role(self.role),
            content=tuple(content),
            thinking=self.thinking,
            tool_calls=tuple(
                ToolCall(call.function.name, call.function.arguments, call.id) for call in self.tool_calls
            ),
            tool_call_id=self.tool_call_id,
            tool_name=self.tool_name,
        )


class _Asked(_Wire):
    model: str = Field("", max_length=1024)
    name: str = Field("", max_length=1024)
    stream: bool = True
    format: Literal["", "json"] | dict[str, Any] = ""
    keep_alive: float | str | None = None
    options: Options = Options()  # pyright: ignore[reportCallIssue]
    think: bool | Literal["", "low", "medium", "high", "max"] | None = None
    truncate: bool = True
    shift: bool = True
    logprobs: bool = False

    def common(self, defaults: SamplingParams) -> GenerateRequest:
        if self.logprobs:
            raise InvalidRequest("logprobs: not supported; leave it out")
        try:
            keep_alive_s = None if self.keep_alive is None else parse_keep_alive(self.keep_alive)
        except ValueError as error:
            raise InvalidRequest(f"keep_alive: {error}") from error
        num_ctx = self.options.num_ctx
        return GenerateRequest(
            model=self.model or self.name,
            sampling=self.options.over(defaults),
            num_ctx=num_ctx if num_ctx is not None and num_ctx > 0 else None,
            keep_alive_s=keep_alive_s,
            think=None if self.think == "" else self.think,
            truncate=self.truncate and self.shift,
            output_schema=None if self.format == "" else {} if self.format == "json" else self.format,
        )


class _AskedGenerate(_Asked):
    prompt: str = ""
    suffix: str = ""
    system: str | None = None
    template: str = ""
    context: list[int] = []
    raw: bool = False
    images: list[str] = []


class _AskedChat(_Asked):
    messages: list[_Message] = []
    tools: list[_Tool] = []


def _images(images: Sequence[str]) -> list[ImagePart]:
    try:
        return [ImagePart(base64.b64decode(image, validate=True), "application/octet-stream") for image in images]
    except (binascii.Error, ValueError) as error:
        raise InvalidRequest(f"images: not base64: {error}") from error


_AnyAsked = TypeVar("_AnyAsked", bound=_Asked)


def _validate(kind: type[_AnyAsked], body: Mapping[str, Any]) -> _AnyAsked:
    try:
        asked = kind.model_validate(body)
    except ValidationError as error:
        raise InvalidRequest(_explain(error)) from error
    if not (asked.model or asked.name):
        raise InvalidRequest("model is required")
    for name in body.get("options") or ():
        if name not in Options.model_fields:
            _log.warning("option %r is not known here and has no effect", name)
    return asked


def _explain(error: ValidationError) -> str:
    """The first thing that is wrong, as `field.path: what`; the names of a union's alternatives are left out."""
    first = error.errors(include_url=False, include_context=False)[0]
    alternatives = ("literal[", "dict[", "function-", "float", "str", "bool")
    path = ".".join(str(part) for part in first["loc"] if not str(part).startswith(alternatives))
    return f"{path}: {first['msg']}" if path else str(first["msg"])


class _Exchange:
    """What generate and chat have in common: NDJSON, metrics on the last line, errors as `{"error": ...}`."""

    media_type = "application/x-ndjson"

    def __init__(self, asked: _Asked) -> None:
        self._started = time.perf_counter_ns()
        self.model = asked.model or asked.name
        self._model_json = json.dumps(self.model)
        self.loads_only = False
        self._unloads = False
        self.stream = asked.stream

    def _accept(self, request: GenerateRequest) -> GenerateRequest:
        self.loads_only, self._unloads = request.load_only, request.keep_alive_s == 0
        return request

    def begin(self) -> bytes:
        """Nothing comes before the first line."""
        return b""

    def broken(self, error: GarzoneError) -> bytes:
        """The last line says what happened; the status stays 200."""
        return json.dumps(self.error_document(error)).encode() + b"\n"

    @staticmethod
    def error_document(error: GarzoneError) -> Mapping[str, Any]:
        """`{"error": "..."}`."""
        return error_document(str(error))

    def _end(self, delta: Delta) -> dict[str, Any]:
        """The fields of the last line."""
        assert delta.finish_reason is not None
        reason = DONE_REASONS[delta.finish_reason]
        if self.loads_only:
            return {"done": True, "done_reason": "unload" if self._unloads else "load"}
        usage = delta.usage or Usage()
        metrics = {
            "total_duration": time.perf_counter_ns() - self._started,
            "load_duration": _ns(usage.load_ms),
            "prompt_eval_count": usage.prompt_tokens,
            "prompt_eval_duration": _ns(usage.prefill_ms),
            "eval_count": usage.completion_tokens,
            "eval_duration": _ns(usage.decode_ms),
        }
        return {"done": True, "done_reason": reason, **{name: value for name, value in metrics.items() if value}}


class ChatExchange(_Exchange):
    """`/api/chat`."""

    def __init__(self, body: Mapping[str, Any]) -> None:
        self._asked = _validate(_AskedChat, body)
        super().__init__(self._asked)

    def to_request(self, defaults: SamplingParams) -> GenerateRequest:
        """The conversation; none at all only loads the model."""
        asked = self._asked
        return self._accept(
            replace(
                asked.common(defaults),
                messages=tuple(message.to_core() for message in asked.messages),
                tools=_tools(asked.tools),
            )
        )

    def piece(self, delta: Delta) -> bytes:
        """One line."""
        if delta.finish_reason is None and not delta.tool_calls and not delta.thinking:
            if not delta.text:
                return b""
            return self._text_line(delta.text)
        line = {"model": self.model, "created_at": _now(), "message": _message(delta)}
        line |= {"done": False} if delta.finish_reason is None else self._end(delta)
        return json.dumps(line).encode() + b"\n"

    def heartbeat(self) -> bytes:
        """A line without text."""
        return self._text_line("")

    def whole(self, deltas: Sequence[Delta]) -> Mapping[str, Any]:
        """All in one."""
        return {"model": self.model, "created_at": _now(), "message": _message(*deltas), **self._end(deltas[-1])}

    def _text_line(self, text: str) -> bytes:
        return (
            f'{{"model":{self._model_json},"created_at":"{_now()}",'
            f'"message":{{"role":"assistant","content":{json.dumps(text)}}},"done":false}}\n'
        ).encode()


class GenerateExchange(_Exchange):
    """`/api/generate`."""

    def __init__(self, body: Mapping[str, Any]) -> None:
        self._asked = _validate(_AskedGenerate, body)
        super().__init__(self._asked)

    def to_request(self, defaults: SamplingParams) -> GenerateRequest:
        """The prompt; an empty one only loads the model."""
        asked = self._asked
        request = asked.common(defaults)
        images = _images(asked.images)
        if not asked.prompt and not images:
            return self._accept(request)
        if images:  # only messages carry images
            turns = [Message.of(Role.SYSTEM, asked.system)] if asked.system else []
            turns.append(Message(Role.USER, (TextPart(asked.prompt), *images)))
            return self._accept(replace(request, messages=tuple(turns)))
        return self._accept(
            replace(
                request,
                prompt=asked.prompt,
                suffix=asked.suffix or None,
                system=asked.system,
                template=asked.template or None,
                raw=asked.raw,
                context=tuple(asked.context),
            )
        )

    def piece(self, delta: Delta) -> bytes:
        """One line."""
        if delta.finish_reason is None and not delta.thinking:
            if not delta.text:
                return b""
            return self._text_line(delta.text)
        line: dict[str, Any] = {"model": self.model, "created_at": _now(), **_response(delta)}
        line |= {"done": False} if delta.finish_reason is None else self._end(delta)
        return json.dumps(line).encode() + b"\n"

    def heartbeat(self) -> bytes:
        """A line without text."""
        return self._text_line("")

    def whole(self, deltas: Sequence[Delta]) -> Mapping[str, Any]:
        """All in one."""
        return {"model": self.model, "created_at": _now(), **_response(*deltas), **self._end(deltas[-1])}

    def _end(self, delta: Delta) -> dict[str, Any]:
        fields = super()._end(delta)
        if delta.usage is not None and delta.usage.context:
            fields["context"] = list(delta.usage.context)
        return fields

    def _text_line(self, text: str) -> bytes:
        return (
            f'{{"model":{self._model_json},"created_at":"{_now()}","response":{json.dumps(text)},"done":false}}\n'
        ).encode()


def _tools(tools: Sequence[_Tool]) -> tuple[ToolSpec, ...]:
    return tuple(ToolSpec(tool.function.name, tool.function.description, tool.function.parameters) for tool in tools)


def _message(*deltas: Delta) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": "".join(delta.text for delta in deltas)}
    if thinking := "".join(delta.thinking for delta in deltas):
        message["thinking"] = thinking
    if calls := [call for delta in deltas for call in delta.tool_calls]:
        message["tool_calls"] = [
            {"id": call.id, "function": {"index": index, "name": call.name, "arguments": dict(call.arguments)}}
            for index, call in enumerate(calls)
        ]
    return message


def _response(*deltas: Delta) -> dict[str, Any]:
    response = {"response": "".join(delta.text for delta in deltas)}
    if thinking := "".join(delta.thinking for delta in deltas):
        response["thinking"] = thinking
    return response


def _now() -> str:
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


def _ns(milliseconds: float) -> int:
    return round(milliseconds * 1e6)


def error_document(message: str) -> dict[str, Any]:
    """How every native route says what went wrong."""
    return {"error": message}
