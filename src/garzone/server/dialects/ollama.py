"""Ollama's native dialect: `/api/generate` and `/api/chat`.

Translates and decides nothing: whether a model can do what is asked is for the generator to say. Field by field as
listed in Ollama's api/types.go (https://github.com/ollama/ollama/blob/main/api/types.go).
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final, Literal, TypeVar

from pydantic import Field

from garzone.core.chat import ContentPart, Message, Role, TextPart, ToolCall, ToolSpec
from garzone.core.errors import GarzoneError, InvalidRequest
from garzone.core.generation import (
    ChosenToken,
    Delta,
    FinishReason,
    GenerateRequest,
    SamplingParams,
    TokenLogprob,
    Usage,
)
from garzone.server.dialects.ollama_options import Options, parse_keep_alive, warn_of_unknown
from garzone.server.dialects.wire import (
    OneAnswer,
    Wire,
    arguments_of,
    clamped_top_logprobs,
    image_of_base64,
    validate,
)

IMAGE: Final = "application/octet-stream"  # clients do not say which format
NUM_KEEP: Final = 4  # Ollama's default: the first tokens hold up attention when a context is shifted
DONE_REASONS: Final = {
    FinishReason.STOP: "stop",
    FinishReason.LENGTH: "length",
    FinishReason.TOOL_CALLS: "stop",
    FinishReason.ABORTED: "stop",
}


class _Function(Wire):
    name: str
    description: str = ""
    parameters: dict[str, Any] = {}


class _Tool(Wire):
    type: str = "function"
    function: _Function


class _CalledFunction(Wire):
    name: str
    arguments: str | dict[str, Any] = {}


class _Call(Wire):
    id: str = ""
    function: _CalledFunction

    def to_core(self) -> ToolCall:
        arguments = arguments_of(self.function.arguments, "messages.tool_calls.function.arguments")
        return ToolCall(self.function.name, arguments, self.id)


class _Message(Wire):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str = ""
    thinking: str = ""
    images: list[str] = []
    tool_calls: list[_Call] = []
    tool_name: str = ""
    tool_call_id: str = ""

    def to_core(self, names: Mapping[str, str]) -> Message:
        content: list[ContentPart] = [TextPart(self.content)] if self.content else []
        content += [image_of_base64(image, IMAGE, "images") for image in self.images]
        return Message(
            role=Role.SYSTEM if self.role == "developer" else Role(self.role),
            content=tuple(content),
            thinking=self.thinking,
            tool_calls=tuple(call.to_core() for call in self.tool_calls),
            tool_call_id=self.tool_call_id,
            tool_name=self.tool_name or names.get(self.tool_call_id, ""),
        )


class _Asked(Wire):
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
    top_logprobs: int | None = None

    def common(self, defaults: SamplingParams) -> GenerateRequest:
        try:
            keep_alive_s = None if self.keep_alive is None else parse_keep_alive(self.keep_alive)
        except ValueError as error:
            raise InvalidRequest(f"keep_alive: {error}") from error
        num_ctx = self.options.num_ctx
        return GenerateRequest(
            model=self.model or self.name,
            sampling=self.options.over(replace(defaults, num_keep=defaults.num_keep or NUM_KEEP)),
            num_ctx=num_ctx if num_ctx is not None and num_ctx > 0 else None,
            keep_alive_s=keep_alive_s,
            think=None if self.think == "" else self.think,
            truncate=self.truncate and self.shift,
            shift=self.shift,
            output_schema=None if self.format == "" else {} if self.format == "json" else self.format,
            logprobs=clamped_top_logprobs(self.top_logprobs) if self.logprobs else None,
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


_AnyAsked = TypeVar("_AnyAsked", bound=_Asked)


def _validated(kind: type[_AnyAsked], body: Mapping[str, Any]) -> _AnyAsked:
    asked = validate(kind, body)
    if not (asked.model or asked.name):
        raise InvalidRequest("model is required")
    warn_of_unknown(body.get("options") or {})
    return asked


class _Exchange(OneAnswer):
    """What generate and chat have in common: NDJSON, metrics on the last line, errors as `{"error": ...}`."""

    media_type = "application/x-ndjson"
    drops_thinking = False

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
        self._asked = _validated(_AskedChat, body)
        self._num_calls = 0  # in the lines so far
        super().__init__(self._asked)

    def to_request(self, defaults: SamplingParams) -> GenerateRequest:
        """The conversation; none at all only loads the model."""
        asked = self._asked
        names = {call.id: call.function.name for message in asked.messages for call in message.tool_calls if call.id}
        return self._accept(
            replace(
                asked.common(defaults),
                messages=tuple(message.to_core(names) for message in asked.messages),
                tools=_tools(asked.tools),
            )
        )

    def piece(self, delta: Delta) -> bytes:
        """One line."""
        if delta.finish_reason is None and not (delta.tool_calls or delta.thinking or delta.logprobs):
            if not delta.text:
                return b""
            return self._text_line(delta.text)
        message = _message(delta, first_call=self._num_calls)
        self._num_calls += len(delta.tool_calls)
        line = {"model": self.model, "created_at": _now(), "message": message, **_logprobs(delta)}
        line |= {"done": False} if delta.finish_reason is None else self._end(delta)
        return json.dumps(line).encode() + b"\n"

    def heartbeat(self) -> bytes:
        """A line without text."""
        return self._text_line("")

    def whole(self, deltas: Sequence[Delta]) -> Mapping[str, Any]:
        """All in one."""
        answer = {"message": _message(*deltas), **_logprobs(*deltas)}
        return {"model": self.model, "created_at": _now(), **answer, **self._end(deltas[-1])}

    def _text_line(self, text: str) -> bytes:
        return (
            f'{{"model":{self._model_json},"created_at":"{_now()}",'
            f'"message":{{"role":"assistant","content":{json.dumps(text)}}},"done":false}}\n'
        ).encode()


class GenerateExchange(_Exchange):
    """`/api/generate`."""

    def __init__(self, body: Mapping[str, Any]) -> None:
        self._asked = _validated(_AskedGenerate, body)
        super().__init__(self._asked)

    def to_request(self, defaults: SamplingParams) -> GenerateRequest:
        """The prompt; an empty one only loads the model."""
        asked = self._asked
        request = asked.common(defaults)
        if asked.raw and (asked.template or asked.system):
            raise InvalidRequest("raw mode does not support template or system")
        images = [image_of_base64(image, IMAGE, "images") for image in asked.images]
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
        if delta.finish_reason is None and not (delta.thinking or delta.logprobs):
            if not delta.text:
                return b""
            return self._text_line(delta.text)
        line: dict[str, Any] = {"model": self.model, "created_at": _now(), **_response(delta), **_logprobs(delta)}
        line |= {"done": False} if delta.finish_reason is None else self._end(delta)
        return json.dumps(line).encode() + b"\n"

    def heartbeat(self) -> bytes:
        """A line without text."""
        return self._text_line("")

    def whole(self, deltas: Sequence[Delta]) -> Mapping[str, Any]:
        """All in one."""
        answer = {**_response(*deltas), **_logprobs(*deltas)}
        return {"model": self.model, "created_at": _now(), **answer, **self._end(deltas[-1])}

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


def _message(*deltas: Delta, first_call: int = 0) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": "".join(delta.text for delta in deltas)}
    if thinking := "".join(delta.thinking for delta in deltas):
        message["thinking"] = thinking
    if calls := [call for delta in deltas for call in delta.tool_calls]:
        message["tool_calls"] = [
            {"id": call.id, "function": {"index": index, "name": call.name, "arguments": dict(call.arguments)}}
            for index, call in enumerate(calls, first_call)
        ]
    return message


def _response(*deltas: Delta) -> dict[str, Any]:
    response = {"response": "".join(delta.text for delta in deltas)}
    if thinking := "".join(delta.thinking for delta in deltas):
        response["thinking"] = thinking
    return response


def _logprobs(*deltas: Delta) -> dict[str, Any]:
    """The field of that name, where there is anything in it."""
    tokens = [token for delta in deltas for token in delta.logprobs]
    return {"logprobs": [_chosen(token) for token in tokens]} if tokens else {}


def _chosen(token: ChosenToken) -> dict[str, Any]:
    fields = _token(token.chosen)
    if token.top:
        fields["top_logprobs"] = [_token(one) for one in token.top]
    return fields


def _token(token: TokenLogprob) -> dict[str, Any]:
    return {"token": token.token, "logprob": token.logprob, "bytes": list(token.bytes_)}


def _now() -> str:
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


def _ns(milliseconds: float) -> int:
    return round(milliseconds * 1e6)


def error_document(message: str) -> dict[str, Any]:
    """How every native route says what went wrong."""
    return {"error": message}
