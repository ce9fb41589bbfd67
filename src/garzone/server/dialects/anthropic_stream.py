"""Anthropic's `/v1/messages`: how an answer is spelled, as events or in one piece; and errors and lists of models.

`event:` lines are mandatory in this dialect. A heartbeat is an empty delta of the block that is open: clients cut a
stream in which nothing else comes, and neither `ping` nor comments count (WIRE.md, pitfalls).
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from garzone.core.chat import ToolCall
from garzone.core.errors import GarzoneError, ModelNotFound, Overloaded, UsageError
from garzone.core.generation import Delta, FinishReason, ModelDetails, Usage
from garzone.server.dialects.anthropic import Asked
from garzone.server.dialects.wire import EVENT_STREAM, event

STOP_REASONS: Final = {
    FinishReason.STOP: "end_turn",
    FinishReason.LENGTH: "max_tokens",
    FinishReason.TOOL_CALLS: "tool_use",
    FinishReason.ABORTED: "end_turn",
}
# Clients send thoughts back only with a signature; Anthropic's proves who thought them, this one only says so.
SIGNATURE: Final = "garzone"
_EMPTY_DELTAS: Final = {
    "text": {"type": "text_delta", "text": ""},
    "thinking": {"type": "thinking_delta", "thinking": ""},
}


class MessagesExchange(Asked):
    """`/v1/messages`."""

    media_type = EVENT_STREAM
    drops_thinking = True  # Claude Code asks every model to think

    def __init__(self, body: Mapping[str, Any], request_id: str = "") -> None:
        super().__init__(body)
        self._request_id = request_id
        self._id = f"msg_{uuid.uuid4().hex[:24]}"
        self._open = ""  # the type of the block that is open
        self._index = -1
        self._num_calls = 0
        self._text_head = ""

    def begin(self) -> bytes:
        """The message, still empty. Its usage is not known yet; the one at the end counts."""
        message: dict[str, Any] = {**self._message(), "content": [], "stop_reason": None, "usage": _usage(None)}
        return event({"type": "message_start", "message": message}, "message_start")

    def piece(self, delta: Delta) -> bytes:
        """The events of one Delta; the one with the finish reason ends the message."""
        events = b""
        if delta.thinking:
            events += self._enter("thinking") + self._delta({"type": "thinking_delta", "thinking": delta.thinking})
        if delta.text:
            events += self._enter("text")
            events += f"{self._text_head}{json.dumps(delta.text)}}}}}\n\n".encode()
        for call in delta.tool_calls:
            events += self._call(call)
        if delta.finish_reason is None:
            return events
        ending = {"type": "message_delta", "delta": self._ending(delta), "usage": _usage(delta.usage)}
        events += self._close() + event(ending, "message_delta")
        return events + event({"type": "message_stop"}, "message_stop")

    def heartbeat(self) -> bytes:
        """An empty delta of the open block, or of one of text."""
        events = b"" if self._open in _EMPTY_DELTAS else self._enter("text")
        return events + self._delta(_EMPTY_DELTAS[self._open])

    def broken(self, error: GarzoneError) -> bytes:
        """An event with the error."""
        return event(self.error_document(error), "error")

    def whole(self, deltas: Sequence[Delta]) -> Mapping[str, Any]:
        """The message in one document."""
        content: list[dict[str, Any]] = []
        if thinking := "".join(delta.thinking for delta in deltas):
            content.append({"type": "thinking", "thinking": thinking, "signature": SIGNATURE})
        if text := "".join(delta.text for delta in deltas):
            content.append({"type": "text", "text": text})
        calls = [call for delta in deltas for call in delta.tool_calls]
        content += [_tool_use(call, dict(call.arguments)) for call in calls]
        self._num_calls = len(calls)
        last = deltas[-1]
        return {**self._message(), "content": content, **self._ending(last), "usage": _usage(last.usage)}

    def error_document(self, error: GarzoneError) -> Mapping[str, Any]:
        """`{type: "error", error: {type, message}, request_id}`."""
        return error_document(error, self._request_id)

    def _message(self) -> dict[str, Any]:
        return {"id": self._id, "type": "message", "role": "assistant", "model": self.model, "stop_sequence": None}

    def _ending(self, last: Delta) -> dict[str, Any]:
        """Why the answer ended. Only a stop string of the request's own is named: the model's are how it ends turns."""
        assert last.finish_reason is not None
        if self._num_calls and last.finish_reason is FinishReason.STOP:
            return {"stop_reason": STOP_REASONS[FinishReason.TOOL_CALLS], "stop_sequence": None}
        if last.stop in self.stop_sequences:
            return {"stop_reason": "stop_sequence", "stop_sequence": last.stop}
        return {"stop_reason": STOP_REASONS[last.finish_reason], "stop_sequence": None}

    def _enter(self, kind: str) -> bytes:
        """Open a block of text or thinking, unless one is open."""
        if self._open == kind:
            return b""
        events = self._close()
        blocks = {
            "text": {"type": "text", "text": ""},
            "thinking": {"type": "thinking", "thinking": "", "signature": ""},
        }
        self._start(kind)
        self._text_head = (
            f'event: content_block_delta\ndata: {{"type": "content_block_delta", "index": {self._index}, '
            '"delta": {"type": "text_delta", "text": '
        )
        return events + self._block_start(blocks[kind])

    def _call(self, call: ToolCall) -> bytes:
        events = self._close()
        self._start("tool_use")
        self._num_calls += 1
        arguments = json.dumps(dict(call.arguments))
        events += self._block_start(_tool_use(call, {}))
        events += self._delta({"type": "input_json_delta", "partial_json": arguments})
        return events + self._close()

    def _start(self, kind: str) -> None:
        self._open = kind
        self._index += 1

    def _block_start(self, block: Mapping[str, Any]) -> bytes:
        start = {"type": "content_block_start", "index": self._index, "content_block": block}
        return event(start, "content_block_start")

    def _delta(self, delta: Mapping[str, Any]) -> bytes:
        return event({"type": "content_block_delta", "index": self._index, "delta": delta}, "content_block_delta")

    def _close(self) -> bytes:
        if not self._open:
            return b""
        signature = (
            self._delta({"type": "signature_delta", "signature": SIGNATURE}) if self._open == "thinking" else b""
        )
        self._open = ""
        return signature + event({"type": "content_block_stop", "index": self._index}, "content_block_stop")


def _tool_use(call: ToolCall, arguments: Mapping[str, Any]) -> dict[str, Any]:
    number = call.id or f"toolu_{uuid.uuid4().hex[:24]}"
    return {"type": "tool_use", "id": number, "name": call.name, "input": arguments}


def _usage(usage: Usage | None) -> dict[str, Any]:
    """Here, unlike in the other dialects, `input_tokens` leaves out what was cached."""
    spent = usage or Usage()
    return {
        "input_tokens": spent.prompt_tokens - spent.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": spent.cached_tokens,
        "output_tokens": spent.completion_tokens,
    }


def error_document(error: GarzoneError, request_id: str) -> dict[str, Any]:
    """How every route of this dialect says what went wrong."""
    kind = "api_error"
    if isinstance(error, UsageError):
        kind = "invalid_request_error"
    if isinstance(error, ModelNotFound):
        kind = "not_found_error"
    if isinstance(error, Overloaded):
        kind = "overloaded_error"
    return {"type": "error", "error": {"type": kind, "message": str(error)}, "request_id": request_id or None}


def count_document(num_tokens: int) -> dict[str, Any]:
    """`/v1/messages/count_tokens`."""
    return {"input_tokens": num_tokens}


def models_document(models: Sequence[ModelDetails]) -> dict[str, Any]:
    """`/v1/models`, asked for in this dialect."""
    documents = [model_document(model) for model in models]
    ends = {"first_id": documents[0]["id"], "last_id": documents[-1]["id"]} if documents else {}
    return {"data": documents, "has_more": False, "first_id": None, "last_id": None, **ends}


def model_document(model: ModelDetails) -> dict[str, Any]:
    """`/v1/models/NAME`, asked for in this dialect."""
    created = datetime.fromtimestamp(model.modified_at, UTC).isoformat().replace("+00:00", "Z")
    return {"type": "model", "id": model.name, "display_name": model.name, "created_at": created}
