"""OpenAI's `/v1/chat/completions`.

Translates and decides nothing: whether a model can do what is asked is for the generator to say. Fields as in
https://platform.openai.com/docs/api-reference/chat; what Ollama accepts and ignores is accepted and ignored here too.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

from pydantic import Field

from garzone.core.chat import Message, Role, ToolCall
from garzone.core.errors import GarzoneError
from garzone.core.generation import Delta, FinishReason, GenerateRequest, SamplingParams
from garzone.server.dialects.openai_common import (
    FINGERPRINT,
    FINISH_REASONS,
    MAX_CHOICES,
    Call,
    Part,
    ResponseFormat,
    Sampled,
    Tool,
    chosen_token,
    error_document,
    must_call,
    parts_of,
    several,
    tools_of,
    usage_of,
)
from garzone.server.dialects.wire import EVENT_STREAM, Wire, clamped_top_logprobs, event, think_of, validate

DONE: Final = b"data: [DONE]\n\n"


class _Message(Wire):
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[Part] = ""
    name: str = ""
    reasoning: str = ""
    reasoning_content: str = ""
    tool_calls: list[Call] = []
    tool_call_id: str = ""

    def to_core(self, names: Mapping[str, str]) -> Message:
        role = {"developer": Role.SYSTEM, "function": Role.TOOL}.get(self.role) or Role(self.role)
        return Message(
            role=role,
            content=parts_of(self.content),
            thinking=self.reasoning or self.reasoning_content,
            tool_calls=tuple(call.to_core() for call in self.tool_calls),
            tool_call_id=self.tool_call_id,
            tool_name=self.name or names.get(self.tool_call_id, "") if role is Role.TOOL else "",
        )


class _Reasoning(Wire):
    effort: str = ""


class _Prediction(Wire):
    content: str | list[Part] = ""


class _Asked(Sampled):
    messages: list[_Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    tools: list[Tool] = []
    tool_choice: str | dict[str, Any] = "auto"
    response_format: ResponseFormat = ResponseFormat()  # pyright: ignore[reportCallIssue]
    reasoning_effort: str = ""
    reasoning: _Reasoning = _Reasoning()
    prediction: _Prediction = _Prediction()
    n: int = Field(1, ge=1, le=MAX_CHOICES)
    logprobs: bool = False
    top_logprobs: int | None = None


class ChatExchange:
    """`/v1/chat/completions`."""

    media_type = EVENT_STREAM
    drops_thinking = False

    def __init__(self, body: Mapping[str, Any]) -> None:
        self._asked = validate(_Asked, body)
        self.model = self._asked.model
        self.stream = self._asked.stream
        self._includes_usage = self._asked.stream_options.include_usage
        self._id = f"chatcmpl-{uuid.uuid4().hex[:24]}"
        self._created = int(time.time())
        self._num_calls = [0] * self._asked.n  # by choice
        self._num_open = self._asked.n
        head = {
            "id": self._id,
            "object": "chat.completion.chunk",
            "created": self._created,
            "model": self.model,
            "system_fingerprint": FINGERPRINT,
        }
        self._head = "data: " + json.dumps(head)[:-1]
        tail = {"finish_reason": None}
        self._usage_null = ', "usage": null' if self._includes_usage else ""
        self._tail = ", " + json.dumps(tail)[1:] + "]" + self._usage_null + "}\n\n"

    def to_request(self, defaults: SamplingParams) -> GenerateRequest:
        """The conversation. It is never cut: what does not fit is an error that clients compact on."""
        asked = self._asked
        limits = [limit for limit in (asked.max_tokens, asked.max_completion_tokens) if limit is not None]
        names = {call.id: call.function.name for message in asked.messages for call in message.tool_calls if call.id}
        predicted = Message(Role.USER, parts_of(asked.prediction.content)).text
        return GenerateRequest(
            model=asked.model,
            messages=tuple(message.to_core(names) for message in asked.messages),
            tools=tools_of(asked.tools, asked.tool_choice),
            must_call=bool(asked.tools) and must_call(asked.tool_choice),
            sampling=asked.sampling(defaults, min(limits) if limits else None),
            think=think_of(asked.reasoning_effort or asked.reasoning.effort, "reasoning_effort"),
            truncate=False,
            output_schema=asked.response_format.schema_of(),
            prediction=predicted or None,
            logprobs=clamped_top_logprobs(asked.top_logprobs) if asked.logprobs else None,
        )

    def choices(self, request: GenerateRequest) -> Sequence[GenerateRequest]:
        """As many as are wanted."""
        return several(request, self._asked.n)

    def begin(self) -> bytes:
        """The chunk with the role, of each choice."""
        role = '{"role": "assistant", "content": ""}'
        return b"".join(self._chunk(role, choice) for choice in range(self._asked.n))

    def piece(self, delta: Delta) -> bytes:
        """One event; with the last finish reason also usage, if asked for, and the end."""
        events = b""
        if delta.logprobs:
            events = self._logprobs_chunk(delta)
        elif delta.text or delta.thinking or delta.tool_calls:
            events = self._chunk(json.dumps(self._fields(delta)), delta.choice)
        if delta.finish_reason is None:
            return events
        ending = json.dumps({"index": delta.choice, "delta": {}, "finish_reason": self._finish_reason(delta)})
        events += f'{self._head}, "choices": [{ending}]{self._usage_null}}}\n\n'.encode()
        self._num_open -= 1
        if self._num_open:
            return events
        if self._includes_usage:
            usage = json.dumps(usage_of(delta.usage))
            events += f'{self._head}, "choices": [], "usage": {usage}}}\n\n'.encode()
        return events + DONE

    def heartbeat(self) -> bytes:
        """A comment, which every reader of server-sent events skips."""
        return b": working\n\n"

    def broken(self, error: GarzoneError) -> bytes:
        """An event with the error; the `openai` package raises it."""
        return event(self.error_document(error))

    def whole(self, deltas: Sequence[Delta]) -> Mapping[str, Any]:
        """The completion in one document."""
        return {
            "id": self._id,
            "object": "chat.completion",
            "created": self._created,
            "model": self.model,
            "system_fingerprint": FINGERPRINT,
            "choices": [self._choice(number, deltas) for number in range(self._asked.n)],
            "usage": usage_of(deltas[-1].usage),
        }

    @staticmethod
    def error_document(error: GarzoneError) -> Mapping[str, Any]:
        """`{"error": {message, type, param, code}}`."""
        return error_document(error)

    def _choice(self, number: int, deltas: Sequence[Delta]) -> dict[str, Any]:
        own = [delta for delta in deltas if delta.choice == number]
        message: dict[str, Any] = {"role": "assistant", "content": "".join(delta.text for delta in own)}
        if thinking := "".join(delta.thinking for delta in own):
            message["reasoning"] = thinking
        if calls := [call for delta in own for call in delta.tool_calls]:
            message["tool_calls"] = self._calls(calls, number)
        choice: dict[str, Any] = {"index": number, "message": message, "finish_reason": self._finish_reason(own[-1])}
        if tokens := [token for delta in own for token in delta.logprobs]:
            choice["logprobs"] = {"content": [chosen_token(token) for token in tokens], "refusal": None}
        return choice

    def _fields(self, delta: Delta) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        if delta.text:
            fields["content"] = delta.text
        if delta.thinking:
            fields["reasoning"] = delta.thinking
        if delta.tool_calls:
            fields["tool_calls"] = self._calls(delta.tool_calls, delta.choice)
        return fields

    def _chunk(self, delta: str, choice: int) -> bytes:
        return f'{self._head}, "choices": [{{"index": {choice}, "delta": {delta}{self._tail}'.encode()

    def _logprobs_chunk(self, delta: Delta) -> bytes:
        logprobs = {"content": [chosen_token(token) for token in delta.logprobs], "refusal": None}
        fields = self._fields(delta)
        choice = {"index": delta.choice, "delta": fields, "logprobs": logprobs, "finish_reason": None}
        return f'{self._head}, "choices": [{json.dumps(choice)}]{self._usage_null}}}\n\n'.encode()

    def _calls(self, calls: Sequence[ToolCall], choice: int) -> list[dict[str, Any]]:
        first = self._num_calls[choice]
        self._num_calls[choice] += len(calls)
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
        if self._num_calls[last.choice] and last.finish_reason is FinishReason.STOP:
            return FINISH_REASONS[FinishReason.TOOL_CALLS]
        return FINISH_REASONS[last.finish_reason]
