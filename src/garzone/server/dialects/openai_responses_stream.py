"""OpenAI's `/v1/responses`: how an answer is spelled, as events or in one piece.

An answer is a list of items: thoughts, words, calls. Events are numbered and name the item they belong to; without
`response.completed` codex asks again five times. A heartbeat is one more `response.in_progress`.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Final

from garzone.core.chat import ToolCall
from garzone.core.errors import ContextOverflow, GarzoneError, Overloaded
from garzone.core.generation import ChosenToken, Delta, FinishReason, Usage
from garzone.server.dialects.openai_common import chosen_token, error_document
from garzone.server.dialects.openai_responses import Asked, OfferedTool, ToolKind
from garzone.server.dialects.wire import EVENT_STREAM, Json, event

_MESSAGE, _REASONING = "message", "reasoning"
_PREFIXES: Final = {_MESSAGE: "msg", _REASONING: "rs", "function_call": "fc", "custom_tool_call": "ctc"}


class ResponseExchange(Asked):
    """`/v1/responses`."""

    media_type = EVENT_STREAM
    drops_thinking = True  # codex asks every model to think

    def __init__(self, body: Mapping[str, Any]) -> None:
        super().__init__(body)
        self._id = f"resp_{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._number = 0
        self._items: list[Json] = []  # those that are done
        self._open: Json | None = None
        self._texts: list[str] = []  # of the open item
        self._tokens: list[ChosenToken] = []  # likewise, where asked for
        self._text_head = ""
        self._at: Json = {}  # where that text is, for events about it

    def begin(self) -> bytes:
        """The response, still empty."""
        return self._event("response.created", response=self._beginning()) + self._in_progress()

    def piece(self, delta: Delta) -> bytes:
        """The events of one Delta; the one with the finish reason ends the response."""
        events = b""
        if delta.thinking:
            events += self._enter(_REASONING) + self._say(delta.thinking)
        self._tokens += delta.logprobs
        if delta.text:
            events += self._enter(_MESSAGE) + self._say(delta.text)
        for call in delta.tool_calls:
            events += self._call(call)
        if delta.finish_reason is None:
            return events
        return events + self._close() + self._end(delta)

    def heartbeat(self) -> bytes:
        """That it still works on it."""
        return self._in_progress()

    def broken(self, error: GarzoneError) -> bytes:
        """The response has failed."""
        code = "server_error"
        if isinstance(error, ContextOverflow):
            code = "context_length_exceeded"
        if isinstance(error, Overloaded):
            code = "server_is_overloaded"
        events = self._close()
        response = {**self._response("failed"), "error": {"code": code, "message": str(error)}}
        return events + self._event("response.failed", response=response)

    def whole(self, deltas: Sequence[Delta]) -> Mapping[str, Any]:
        """The response in one document."""
        for delta in deltas:
            self.piece(delta)
        return self._ended(deltas[-1])[1]

    @staticmethod
    def error_document(error: GarzoneError) -> Mapping[str, Any]:
        """`{"error": {message, type, param, code}}`."""
        return error_document(error)

    # --- the response

    def _response(self, status: str, usage: Usage | None = None) -> Json:
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": None,
            "model": self.model,
            "output": list(self._items),
            "previous_response_id": None,
            "store": False,
            "usage": None if usage is None else _usage(usage),
            **self.echoed,
        }

    def _ended(self, last: Delta) -> tuple[str, Json]:
        """The event that ends the response, and the response."""
        usage = last.usage or Usage()
        if last.finish_reason is FinishReason.LENGTH:
            response = self._response("incomplete", usage)
            return "response.incomplete", {**response, "incomplete_details": {"reason": "max_output_tokens"}}
        return "response.completed", self._response("completed", usage)

    def _end(self, last: Delta) -> bytes:
        name, response = self._ended(last)
        return self._event(name, response=response)

    def _in_progress(self) -> bytes:
        return self._event("response.in_progress", response=self._beginning())

    def _beginning(self) -> Json:
        """The response without what was asked, which may be long and which the end repeats."""
        return {**self._response("in_progress"), "output": [], "instructions": None, "tools": []}

    def _event(self, name: str, **fields: Any) -> bytes:
        self._number += 1
        return event({"type": name, "sequence_number": self._number - 1, **fields}, name)

    # --- items

    def _enter(self, kind: str) -> bytes:
        """Open an item of words or thoughts, unless one is open."""
        if self._open is not None and self._open["type"] == kind:
            return b""
        events = self._close()
        at = self._begin_item(kind, {"content": [], "role": "assistant"} if kind == _MESSAGE else {"summary": []})
        events += self._event("response.output_item.added", output_index=len(self._items), item=self._open)
        if kind == _MESSAGE:
            part: Json = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
            events += self._event("response.content_part.added", **at, part=part)
        else:
            part = {"type": "summary_text", "text": ""}
            events += self._event("response.reasoning_summary_part.added", **at, part=part)
        return events

    def _begin_item(self, kind: str, fields: Mapping[str, Any]) -> Json:
        """What events about the text of the item say of where it is."""
        number = f"{_PREFIXES[kind]}_{uuid.uuid4().hex[:24]}"
        self._open = {"id": number, "type": kind, "status": "in_progress", **fields}
        self._texts = []
        index = "content_index" if kind == _MESSAGE else "summary_index"
        at = {"item_id": number, "output_index": len(self._items), index: 0}
        self._at = at
        name = "response.output_text.delta" if kind == _MESSAGE else "response.reasoning_summary_text.delta"
        head: Json = {"type": name, **at, **({"logprobs": []} if kind == _MESSAGE else {})}
        self._text_head = f"event: {name}\ndata: {json.dumps(head)[:-1]}"
        return at

    def _say(self, text: str) -> bytes:
        self._texts.append(text)
        self._number += 1
        return f'{self._text_head}, "sequence_number": {self._number - 1}, "delta": {json.dumps(text)}}}\n\n'.encode()

    def _close(self) -> bytes:
        """End the open item."""
        part: Json
        item = self._open
        if item is None:
            return b""
        self._open = None
        text = "".join(self._texts)
        if item["type"] == _MESSAGE:
            logprobs = [chosen_token(token) for token in self._tokens]
            part = {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}
            self._tokens = []
            events = self._event("response.output_text.done", **self._at, text=text, logprobs=logprobs)
            events += self._event("response.content_part.done", **self._at, part=part)
            done = {**item, "status": "completed", "content": [part]}
        else:
            part = {"type": "summary_text", "text": text}
            events = self._event("response.reasoning_summary_text.done", **self._at, text=text)
            events += self._event("response.reasoning_summary_part.done", **self._at, part=part)
            done = {**item, "status": "completed", "summary": [part]}
        return events + self._done(done)

    def _done(self, item: Json) -> bytes:
        self._items.append(item)
        return self._event("response.output_item.done", output_index=len(self._items) - 1, item=item)

    def _call(self, call: ToolCall) -> bytes:
        events = self._close()
        tool = self.tools.get(call.name)
        custom = tool is not None and tool.kind is ToolKind.CUSTOM
        item, field, text = _custom_call(call) if custom else _function_call(call, tool)
        at = {"item_id": item["id"], "output_index": len(self._items)}
        added = {**item, "status": "in_progress", field: ""}
        events += self._event("response.output_item.added", output_index=len(self._items), item=added)
        name = "response.custom_tool_call_input" if custom else "response.function_call_arguments"
        events += self._event(f"{name}.delta", **at, delta=text)
        events += self._event(f"{name}.done", **at, **{field: text})
        return events + self._done(item)


def _function_call(call: ToolCall, tool: OfferedTool | None) -> tuple[Json, str, str]:
    """The item, the name of its field that streams, and the text of that."""
    arguments = json.dumps(dict(call.arguments))
    item = _call_item("function_call", call)
    if tool is not None and tool.namespace:
        item["namespace"] = tool.namespace
    return {**item, "arguments": arguments}, "arguments", arguments


def _custom_call(call: ToolCall) -> tuple[Json, str, str]:
    """As `_function_call`, for a tool whose input is free text."""
    given = call.arguments.get("input", "")
    text = given if isinstance(given, str) else json.dumps(given)
    return {**_call_item("custom_tool_call", call), "input": text}, "input", text


def _call_item(kind: str, call: ToolCall) -> Json:
    return {
        "id": f"{_PREFIXES[kind]}_{uuid.uuid4().hex[:24]}",
        "type": kind,
        "status": "completed",
        "call_id": call.id or f"call_{uuid.uuid4().hex[:24]}",
        "name": call.name,
    }


def _usage(usage: Usage) -> Json:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
