"""Generates text with Anthropic's Messages API, or anything else that speaks it.

Sends what that protocol has: of sampling, temperature, stop sequences and a limit; no seed, no schema of ours. What it
cannot do is refused, never left out in silence where it would change the meaning of an answer.
Format: https://docs.anthropic.com/en/api/messages and messages-streaming.
"""

from __future__ import annotations

import base64
import contextlib
import time
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, cast
from urllib.parse import quote

from garzone.clients.streamed_calls import parse_calls
from garzone.clients.token_counter import TokenCounter, as_one_message, input_tokens
from garzone.clients.transport import Asked, Transport, Unreachable, error_message, estimate_tokens, without_v1
from garzone.core.chat import ImagePart, Message, Role, TextPart
from garzone.core.errors import GarzoneError, GenerationFailed, InvalidRequest, ModelNotFound, Overloaded
from garzone.core.generation import Delta, FinishReason, GenerateRequest, ModelDetails, ServedBy, Usage

VERSION: Final = "2023-06-01"
DEFAULT_MAX_TOKENS: Final = 4096  # the protocol wants a limit
# The list of models does not always say; every Claude since 2.1 has as much or more.
CONTEXT_TOKENS: Final = 200_000
THINKING_TOKENS: Final = {"low": 1024, "medium": 4096, "high": 16_384, "max": 32_000}
_INFO_TIMEOUT_S: Final = 30.0
_MAX_ARGUMENT_CHARS: Final = 1 << 20
_FINISH: Final = {
    "end_turn": FinishReason.STOP,
    "stop_sequence": FinishReason.STOP,
    "max_tokens": FinishReason.LENGTH,
    "model_context_window_exceeded": FinishReason.LENGTH,
    "tool_use": FinishReason.TOOL_CALLS,
    "refusal": FinishReason.ABORTED,
}


@dataclass(slots=True)
class _Answer:
    """What has been seen of one answer."""

    asked_for: str
    started: float = field(default_factory=time.monotonic)
    first_at: float = 0.0
    model: str = ""
    finish: FinishReason | None = None
    stop: str | None = None
    counts: dict[str, int] = field(default_factory=dict[str, int])
    calls: dict[int, list[str]] = field(default_factory=dict[int, list[str]])  # block index -> id, name, arguments
    ended: bool = False


class AnthropicClient:
    """A TextGenerator over `/v1/messages`."""

    def __init__(self, base_url: str, *, api_key: str = "", timeout_s: float = 600.0) -> None:
        """Prepare; nothing is sent yet.

        Args:
            base_url: `https://host`, with or without `/v1`.
            api_key: sent as `x-api-key`, if given.
            timeout_s: how long an answer may be silent.

        Raises:
            InvalidRequest: not an http or https URL.
        """
        headers = {"anthropic-version": VERSION, **({"x-api-key": api_key} if api_key else {})}
        self._transport = Transport(without_v1(base_url), timeout_s=timeout_s, headers=headers)
        self.base_url = self._transport.base_url
        self._info_timeout_s = min(_INFO_TIMEOUT_S, timeout_s)
        self._counter = TokenCounter(
            self._transport, "/v1/messages/count_tokens", input_tokens, timeout_s=self._info_timeout_s
        )
        self._answered_as: dict[str, str] = {}

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Delta]:
        """Stream the answer. Raises as `core.ports.TextGenerator.generate` says."""
        if request.load_only:
            await self.served_by(request.model)
            yield Delta(finish_reason=FinishReason.STOP, usage=Usage())
            return
        body = _body(request)
        text = (request.prompt or "") + "".join(message.text for message in request.messages)
        answer = _Answer(request.model)
        lines = self._transport.lines("/v1/messages", body, Asked(request.model, estimate_tokens(text)))
        async with contextlib.aclosing(lines):
            async for line in lines:
                if not line.startswith(b"data:"):
                    if line.startswith(b"{"):
                        raise GenerationFailed(f"{self.base_url}: failed: {error_message(line)[0]}")
                    if line.startswith((b":", b"event:", b"id:", b"retry:")):
                        continue
                    raise self._transport.nonsense(f"not an event stream: {line[:80]!r}")
                payload = line[5:].strip()
                delta = self._read_event(self._transport.parse(payload), payload, answer)
                if delta.text or delta.thinking:
                    yield delta
                if answer.ended:
                    break
        if answer.finish is None or not answer.ended:
            raise GenerationFailed(f"{self.base_url}: the answer ended without its last event")
        yield self._last(answer)

    async def count_tokens(self, model: str, text: str) -> int:
        """Asked of the server; estimated from the length where it cannot tell."""
        return await self._counter.count(model, text, as_one_message(model, text)) if text else 0

    async def details(self, model: str) -> ModelDetails:
        """What `/v1/models` says. Raises ModelNotFound, BackendUnavailable, InvalidRequest where none is named."""
        entry = await self._entry(model)
        context = entry.get("max_input_tokens")
        return ModelDetails(
            name=str(entry["id"]),
            context_tokens=context if isinstance(context, int) and context > 0 else CONTEXT_TOKENS,
            capabilities=("completion", "tools", "vision"),
        )

    async def served_by(self, model: str) -> ServedBy:
        """The model that answered under this name, else the one the server lists. Raises ModelNotFound."""
        name = self._answered_as.get(model) or str((await self._entry(model))["id"])
        return ServedBy(model=name, backend="anthropic")

    async def aclose(self) -> None:
        """Close all connections."""
        await self._transport.aclose()

    async def _entry(self, model: str) -> dict[str, Any]:
        if not model:
            raise InvalidRequest(f"{self.base_url} has several models; say which with --model")
        try:
            entry = await self._transport.get_json(f"/v1/models/{quote(model)}", timeout_s=self._info_timeout_s)
        except Unreachable:
            raise
        except GarzoneError as error:
            if "404" in str(error) or isinstance(error, ModelNotFound):
                raise ModelNotFound(model, f"says {self.base_url}") from error
            raise
        if not isinstance(entry.get("id"), str):
            raise self._transport.nonsense("a model without an id")
        return entry

    def _read_event(self, event: dict[str, Any], payload: bytes, answer: _Answer) -> Delta:
        kind = event.get("type")
        if kind == "error":
            message, fields = error_message(payload)
            if fields.get("type") == "overloaded_error" and not answer.first_at:
                raise Overloaded(f"{self.base_url}: too busy ({message}); try again later")
            raise GenerationFailed(f"{self.base_url}: failed amid an answer: {message}")
        if kind == "message_start":
            message = _mapping(event.get("message"))
            answer.model = str(message.get("model") or "")
            if answer.model:
                self._answered_as[answer.asked_for] = answer.model
            _count(answer, message.get("usage"))
        elif kind == "content_block_start":
            block = _mapping(event.get("content_block"))
            if block.get("type") == "tool_use":
                answer.calls[self._index(event)] = [str(block.get("id") or ""), str(block.get("name") or ""), ""]
        elif kind == "content_block_delta":
            return self._read_delta(event, answer)
        elif kind == "message_delta":
            if reason := _mapping(event.get("delta")).get("stop_reason"):
                answer.finish = _FINISH.get(str(reason), FinishReason.STOP)
                stop = _mapping(event.get("delta")).get("stop_sequence")
                answer.stop = stop if isinstance(stop, str) else None
            _count(answer, event.get("usage"))
        elif kind == "message_stop":
            answer.ended = True
        return Delta()

    def _read_delta(self, event: dict[str, Any], answer: _Answer) -> Delta:
        delta = _mapping(event.get("delta"))
        text, thinking = delta.get("text") or "", delta.get("thinking") or ""
        if not isinstance(text, str) or not isinstance(thinking, str):
            raise self._transport.nonsense("text that is none")
        piece = delta.get("partial_json")
        if isinstance(piece, str) and (call := answer.calls.get(self._index(event))):
            call[2] += piece
            if len(call[2]) > _MAX_ARGUMENT_CHARS:
                raise self._transport.nonsense("a tool call without end")
        if not answer.first_at and (text or thinking or piece):
            answer.first_at = time.monotonic()
        return Delta(text=text, thinking=thinking)

    def _index(self, event: dict[str, Any]) -> int:
        index = event.get("index")
        if not isinstance(index, int):
            raise self._transport.nonsense("a content block without a number")
        return index

    def _last(self, answer: _Answer) -> Delta:
        calls = parse_calls(self.base_url, answer.calls)
        now = time.monotonic()
        first = answer.first_at or now
        counts = answer.counts
        cached = counts.get("cache_read_input_tokens", 0)
        usage = Usage(
            # the protocol counts what was read from or written to its cache apart
            prompt_tokens=counts.get("input_tokens", 0) + cached + counts.get("cache_creation_input_tokens", 0),
            cached_tokens=cached,
            completion_tokens=counts.get("output_tokens", 0),
            prefill_ms=(first - answer.started) * 1e3,
            decode_ms=(now - first) * 1e3,
        )
        return Delta(tool_calls=calls, finish_reason=answer.finish, usage=usage, stop=answer.stop)


def _body(request: GenerateRequest) -> dict[str, Any]:
    if request.raw or request.suffix is not None:
        raise InvalidRequest("Anthropic's protocol has no completion of raw text: ask with messages")
    if request.output_schema is not None:
        raise InvalidRequest("Anthropic's protocol takes no schema for the answer here: ask for JSON in words")
    sampling = request.sampling
    max_tokens = sampling.max_tokens if sampling.max_tokens and sampling.max_tokens > 0 else DEFAULT_MAX_TOKENS
    body: dict[str, Any] = {"model": request.model, "stream": True, "max_tokens": max_tokens}
    if request.think:
        budget = THINKING_TOKENS.get(str(request.think), THINKING_TOKENS["medium"])
        # thinking goes with the default temperature only, and its tokens come on top of the answer's
        body |= {"max_tokens": max_tokens + budget, "thinking": {"type": "enabled", "budget_tokens": budget}}
    else:
        body["temperature"] = min(sampling.temperature, 1.0)  # top_p is left out: newer models refuse both together
    if sampling.stop:
        body["stop_sequences"] = list(sampling.stop)
    messages = list(request.messages)
    if not messages:
        messages = [Message.of(Role.SYSTEM, request.system)] if request.system else []
        messages.append(Message.of(Role.USER, request.prompt or ""))
    system = [message.text for message in messages if message.role is Role.SYSTEM and message.text]
    if system:
        body["system"] = "\n\n".join(system)
    body["messages"] = _turns([message for message in messages if message.role is not Role.SYSTEM])
    if request.tools:
        body["tools"] = [
            {
                "name": tool.name,
                "description": tool.description,
                "input_schema": dict(tool.parameters) or {"type": "object", "properties": {}},
            }
            for tool in request.tools
        ]
    return body


def _turns(messages: list[Message]) -> list[dict[str, Any]]:
    """Messages as turns; the results of tools are the user's words, and one turn holds all that follow each other."""
    turns: list[dict[str, Any]] = []
    for message in messages:
        role = "assistant" if message.role is Role.ASSISTANT else "user"
        blocks = _blocks(message)
        if not blocks:
            continue
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] += blocks
        else:
            turns.append({"role": role, "content": blocks})
    return turns


def _blocks(message: Message) -> list[dict[str, Any]]:
    parts = [_part(part) for part in message.content if not (isinstance(part, TextPart) and not part.text)]
    if message.role is Role.TOOL:
        return [{"type": "tool_result", "tool_use_id": message.tool_call_id, "content": parts}]
    calls = [
        {"type": "tool_use", "id": call.id, "name": call.name, "input": dict(call.arguments)}
        for call in message.tool_calls
    ]
    return [*parts, *calls]


def _part(part: TextPart | ImagePart) -> dict[str, Any]:
    if isinstance(part, TextPart):
        return {"type": "text", "text": part.text}
    source = {"type": "base64", "media_type": part.media_type, "data": base64.b64encode(part.data).decode()}
    return {"type": "image", "source": source}


def _count(answer: _Answer, usage: object) -> None:
    """Take over the counts of an event; later ones are of the whole answer, so they replace earlier ones."""
    answer.counts |= {key: value for key, value in _mapping(usage).items() if isinstance(value, int) and value >= 0}


def _mapping(value: object) -> Mapping[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}
