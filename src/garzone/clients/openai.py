"""Generates text with any server that speaks OpenAI's protocol: llama-server, vLLM, LM Studio, LiteLLM and others.

Sends only what the protocol has, and a few sampling settings more to servers that are known to take them. The context
is the server's own choice here; it is asked for, not set.
"""

from __future__ import annotations

import base64
import contextlib
import json
import time
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, cast

from garzone.clients.streamed_calls import parse_calls
from garzone.clients.token_counter import TokenCounter
from garzone.clients.transport import Asked, Transport, Unreachable, error_message, estimate_tokens, without_v1
from garzone.core.chat import ImagePart, Message, Role, TextPart
from garzone.core.errors import GarzoneError, GenerationFailed, InvalidRequest, ModelNotFound
from garzone.core.generation import Delta, FinishReason, GenerateRequest, ModelDetails, ServedBy, Usage

_INFO_TIMEOUT_S: Final = 30.0
_FINISH: Final = {
    "stop": FinishReason.STOP,
    "length": FinishReason.LENGTH,
    "tool_calls": FinishReason.TOOL_CALLS,
    "function_call": FinishReason.TOOL_CALLS,
    "content_filter": FinishReason.ABORTED,
    "abort": FinishReason.ABORTED,
}
_CONTEXT_KEYS: Final = (
    "max_model_len",
    "context_length",
    "context_window",
    "max_context_length",
    "loaded_context_length",
)
# `owned_by` of servers that take top_k, min_p and repeat_penalty beside OpenAI's own fields
_EXTENDED: Final = frozenset({"llamacpp", "vllm", "library", "garzone"})
_MAX_ARGUMENT_CHARS: Final = 1 << 20


@dataclass(slots=True)
class _Answer:
    """What has been seen of one answer."""

    started: float = field(default_factory=time.monotonic)
    first_at: float = 0.0
    finish: FinishReason | None = None
    usage: Usage | None = None
    calls: dict[int, list[str]] = field(default_factory=dict[int, list[str]])  # index -> id, name, arguments


class OpenAIClient:
    """A TextGenerator over `/v1/chat/completions` and `/v1/completions`."""

    def __init__(self, base_url: str, *, api_key: str = "", timeout_s: float = 600.0) -> None:
        """Prepare; nothing is sent yet.

        Args:
            base_url: `http://host:port`, with or without `/v1`.
            api_key: sent as a bearer token, if given.
            timeout_s: how long an answer may be silent.

        Raises:
            InvalidRequest: not an http or https URL.
        """
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else None
        self._transport = Transport(without_v1(base_url), timeout_s=timeout_s, headers=headers)
        self.base_url = self._transport.base_url
        self._info_timeout_s = min(_INFO_TIMEOUT_S, timeout_s)
        self._counter = TokenCounter(self._transport, "/tokenize", _count_of, timeout_s=self._info_timeout_s)
        self._extended: bool | None = None

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Delta]:
        """Stream the answer. Raises as `core.ports.TextGenerator.generate` says."""
        if request.load_only:
            await self.served_by(request.model)
            yield Delta(finish_reason=FinishReason.STOP, usage=Usage())
            return
        model = request.model or (await self.served_by("")).model
        path, body = _body(replace(request, model=model), extended=await self._takes_more())
        text = (request.prompt or "") + "".join(message.text for message in request.messages)
        answer = _Answer()
        lines = self._transport.lines(path, body, Asked(model, estimate_tokens(text)))
        async with contextlib.aclosing(lines):
            async for line in lines:
                if not line.startswith(b"data:"):
                    if line.startswith(b"{"):
                        raise GenerationFailed(f"{self.base_url}: failed: {error_message(line)[0]}")
                    if line.startswith((b":", b"event:", b"id:", b"retry:")):
                        continue
                    raise self._transport.nonsense(f"not an event stream: {line[:80]!r}")
                payload = line[5:].strip()
                if payload == b"[DONE]":
                    break
                delta = self._read_event(self._transport.parse(payload), payload, answer)
                if delta.text or delta.thinking:
                    yield delta
        if answer.finish is None:
            raise GenerationFailed(f"{self.base_url}: the answer ended without saying why")
        yield self._last(answer)

    async def count_tokens(self, model: str, text: str) -> int:
        """Asked where the server can tell (llama-server, vLLM), else estimated from the length."""
        body = {"model": model, "content": text, "prompt": text}  # llama-server reads one, vLLM the other
        return await self._counter.count(model, text, body)

    async def details(self, model: str) -> ModelDetails:
        """What `/v1/models` and llama-server's `/props` say; `context_tokens` 0 where neither tells.

        Raises:
            ModelNotFound, BackendUnavailable: as the names say.
        """
        entry = await self._entry(model)
        meta = entry.get("meta")
        inner = cast("dict[str, Any]", meta) if isinstance(meta, dict) else {}
        contexts = (entry.get(key) for key in _CONTEXT_KEYS)
        context = next((each for each in contexts if isinstance(each, int) and each > 0), 0)
        size, embedding = inner.get("size"), inner.get("n_embd")
        return ModelDetails(
            name=str(entry["id"]),
            context_tokens=context or await self._props_context(),
            size_bytes=size if isinstance(size, int) else 0,
            embedding_length=embedding if isinstance(embedding, int) else 0,
        )

    async def served_by(self, model: str) -> ServedBy:
        """The model as the server lists it; the protocol has no digests. Raises ModelNotFound, BackendUnavailable."""
        entry = await self._entry(model)
        return ServedBy(model=str(entry["id"]), backend=str(entry.get("owned_by") or "openai"))

    async def aclose(self) -> None:
        """Close all connections."""
        await self._transport.aclose()

    async def _takes_more(self) -> bool:
        """True if the server is one that takes more sampling settings than OpenAI."""
        if self._extended is None:
            try:
                self._extended = any(entry.get("owned_by") in _EXTENDED for entry in await self._models())
            except Unreachable:
                raise
            except GarzoneError:  # no list of models; the answer may still come
                self._extended = False
        return self._extended

    async def _models(self) -> list[dict[str, Any]]:
        answer = await self._transport.get_json("/v1/models", timeout_s=self._info_timeout_s)
        models: object = answer.get("data")
        entries = cast("list[object]", models) if isinstance(models, list) else []
        found = [cast("dict[str, Any]", entry) for entry in entries if isinstance(entry, dict)]
        return [entry for entry in found if isinstance(entry.get("id"), str)]

    async def _entry(self, model: str) -> dict[str, Any]:
        """The model's entry in the list; the only one there is for "" and for servers that ignore the name."""
        models = await self._models()
        for entry in models:
            if entry["id"] == model or entry["id"] == f"{model}:latest":
                return entry
        if len(models) == 1 and (not model or models[0].get("owned_by") == "llamacpp"):
            return models[0]
        names = ", ".join(str(entry["id"]) for entry in models[:8]) or "none"
        if not model:
            raise InvalidRequest(f"{self.base_url} has several models; say which with --model: {names}")
        raise ModelNotFound(model, f"{self.base_url} has: {names}")

    async def _props_context(self) -> int:
        """llama-server's context per request, if it is llama-server."""
        try:
            props = await self._transport.get_json("/props", timeout_s=self._info_timeout_s)
        except Unreachable:
            raise
        except GarzoneError:
            return 0
        settings = props.get("default_generation_settings")
        context = cast("dict[str, Any]", settings).get("n_ctx") if isinstance(settings, dict) else None
        return context if isinstance(context, int) else 0

    def _read_event(self, event: dict[str, Any], payload: bytes, answer: _Answer) -> Delta:
        if event.get("error"):
            raise GenerationFailed(f"{self.base_url}: failed amid an answer: {error_message(payload)[0]}")
        if isinstance(event.get("usage"), dict):
            answer.usage = _usage(event)
        choices: object = event.get("choices")
        choice: object = cast("list[object]", choices)[0] if isinstance(choices, list) and choices else None
        if not isinstance(choice, dict):
            return Delta()
        fields = cast("dict[str, Any]", choice)
        if reason := fields.get("finish_reason"):
            answer.finish = _FINISH.get(str(reason), FinishReason.STOP)
        delta: object = fields.get("delta")
        inner = cast("dict[str, Any]", delta) if isinstance(delta, dict) else {}
        text = inner.get("content", fields.get("text")) or ""
        thinking = inner.get("reasoning_content") or inner.get("reasoning") or ""
        if not isinstance(text, str) or not isinstance(thinking, str):
            raise self._transport.nonsense("text that is none")
        self._collect_calls(inner.get("tool_calls"), answer)
        if not answer.first_at and (text or thinking or answer.calls):
            answer.first_at = time.monotonic()
        return Delta(text=text, thinking=thinking)

    def _collect_calls(self, value: object, answer: _Answer) -> None:
        for position, entry in enumerate(cast("list[object]", value) if isinstance(value, list) else []):
            fields = cast("dict[str, Any]", entry) if isinstance(entry, dict) else {}
            index = fields.get("index", position)
            function: object = fields.get("function")
            parts = cast("dict[str, Any]", function) if isinstance(function, dict) else {}
            call = answer.calls.setdefault(index if isinstance(index, int) else position, ["", "", ""])
            for slot, piece in enumerate((fields.get("id"), parts.get("name"), parts.get("arguments"))):
                if isinstance(piece, str):
                    call[slot] = call[slot] + piece if slot == 2 else call[slot] or piece
            if len(call[2]) > _MAX_ARGUMENT_CHARS:
                raise self._transport.nonsense("a tool call without end")

    def _last(self, answer: _Answer) -> Delta:
        calls = parse_calls(self.base_url, answer.calls)
        usage, now = answer.usage or Usage(), time.monotonic()
        if not usage.decode_ms:  # no server's own timings: what was seen from here
            first = answer.first_at or now
            usage = replace(usage, prefill_ms=(first - answer.started) * 1e3, decode_ms=(now - first) * 1e3)
        finish = answer.finish
        if calls and finish is FinishReason.STOP:
            finish = FinishReason.TOOL_CALLS
        return Delta(tool_calls=calls, finish_reason=finish, usage=usage)


def _count_of(answer: Mapping[str, Any]) -> int | None:
    count, tokens = answer.get("count"), answer.get("tokens")
    if isinstance(count, int):
        return count
    return len(cast("list[object]", tokens)) if isinstance(tokens, list) else None


def _body(request: GenerateRequest, *, extended: bool) -> tuple[str, dict[str, Any]]:
    sampling = request.sampling
    body: dict[str, Any] = {
        "model": request.model,
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
    }
    if extended:
        body |= {"top_k": sampling.top_k, "min_p": sampling.min_p, "repeat_penalty": sampling.repeat_penalty}
    if sampling.max_tokens is not None and sampling.max_tokens >= 0:
        body["max_tokens"] = sampling.max_tokens
    if sampling.seed is not None:
        body["seed"] = sampling.seed
    if sampling.stop:
        body["stop"] = list(sampling.stop)
    if request.raw or request.suffix is not None:
        body["prompt"] = request.prompt or ""
        if request.suffix is not None:
            body["suffix"] = request.suffix
        return "/v1/completions", body
    messages = list(request.messages)
    if not messages:
        messages = [Message.of(Role.SYSTEM, request.system)] if request.system else []
        messages.append(Message.of(Role.USER, request.prompt or ""))
    body["messages"] = [_message(message) for message in messages]
    if request.tools:
        body["tools"] = [
            {
                "type": "function",
                "function": {
                    "name": tool.name,
                    "description": tool.description,
                    "parameters": dict(tool.parameters) or {"type": "object", "properties": {}},
                },
            }
            for tool in request.tools
        ]
    if isinstance(request.think, str):
        body["reasoning_effort"] = request.think
    if request.output_schema is not None:
        schema = {"name": "answer", "schema": dict(request.output_schema), "strict": True}
        free = {"type": "json_object"}
        body["response_format"] = {"type": "json_schema", "json_schema": schema} if request.output_schema else free
    return "/v1/chat/completions", body


def _message(message: Message) -> dict[str, Any]:
    content: object = message.text
    if any(isinstance(part, ImagePart) for part in message.content):
        content = [_part(part) for part in message.content]
    fields: dict[str, Any] = {"role": message.role.value, "content": content}
    if message.tool_calls:
        fields["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": json.dumps(call.arguments)},
            }
            for call in message.tool_calls
        ]
    if message.role is Role.TOOL:
        fields["tool_call_id"] = message.tool_call_id
    return fields


def _part(part: TextPart | ImagePart) -> dict[str, Any]:
    if isinstance(part, TextPart):
        return {"type": "text", "text": part.text}
    encoded = base64.b64encode(part.data).decode()
    return {"type": "image_url", "image_url": {"url": f"data:{part.media_type};base64,{encoded}"}}


def _usage(event: dict[str, Any]) -> Usage:
    usage, timings = _mapping(event.get("usage")), _mapping(event.get("timings"))
    cached = _number(_mapping(usage.get("prompt_tokens_details")).get("cached_tokens"))
    return Usage(
        prompt_tokens=int(_number(usage.get("prompt_tokens"))),
        cached_tokens=int(cached),
        completion_tokens=int(_number(usage.get("completion_tokens"))),
        prefill_ms=_number(timings.get("prompt_ms")),
        decode_ms=_number(timings.get("predicted_ms")),
    )


def _mapping(value: object) -> Mapping[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) and value >= 0 else 0.0
