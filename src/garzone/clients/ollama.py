"""Generates text with an Ollama server, or anything else that speaks its native protocol.

Always says how large the context must be: Ollama's own default is 2k to 4k tokens, and it cuts longer prompts off at
the front without a word.
"""

from __future__ import annotations

import base64
import contextlib
from collections.abc import AsyncGenerator, Mapping
from typing import Any, Final, cast

from garzone.clients.token_counter import TokenCounter, as_one_message, input_tokens
from garzone.clients.transport import Asked, Transport, Unreachable, error_message, estimate_tokens, without_v1
from garzone.core.chat import ImagePart, Message, ToolCall, ToolSpec
from garzone.core.errors import BackendUnavailable, GenerationFailed, InvalidRequest, ModelNotFound
from garzone.core.generation import (
    NO_TEMPLATE,
    Delta,
    FinishReason,
    GenerateRequest,
    ModelDetails,
    ServedBy,
    Usage,
)

DEFAULT_NUM_CTX: Final = 8192  # as config.Settings.num_ctx
_INFO_TIMEOUT_S: Final = 30.0
_FINISH: Final = {
    "stop": FinishReason.STOP,
    "length": FinishReason.LENGTH,
    "load": FinishReason.STOP,
    "unload": FinishReason.STOP,
}


class OllamaClient:
    """A TextGenerator over Ollama's native API."""

    def __init__(
        self, base_url: str, *, api_key: str = "", num_ctx: int = DEFAULT_NUM_CTX, timeout_s: float = 600.0
    ) -> None:
        """Prepare; nothing is sent yet.

        Args:
            base_url: `http://host:port`.
            api_key: sent as a bearer token, if given.
            num_ctx: context in tokens for requests that name none; never more than the model has.
            timeout_s: how long an answer may be silent.

        Raises:
            InvalidRequest: not an http or https URL.
        """
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else None
        self._transport = Transport(without_v1(base_url), timeout_s=timeout_s, headers=headers)
        self.base_url = self._transport.base_url
        self._info_timeout_s = min(_INFO_TIMEOUT_S, timeout_s)
        self._num_ctx = num_ctx
        self._trained_ctx: dict[str, int] = {}
        self._counter = TokenCounter(
            self._transport, "/v1/messages/count_tokens", input_tokens, timeout_s=self._info_timeout_s
        )

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Delta]:
        """Stream the answer. Raises as `core.ports.TextGenerator.generate` says."""
        _check_model(request.model)
        num_ctx = await self._context_for(request)
        path, body = _body(request, num_ctx)
        text = (request.prompt or "") + "".join(message.text for message in request.messages)
        asked = Asked(request.model, estimate_tokens(text), num_ctx)
        called = False
        async with contextlib.aclosing(self._transport.lines(path, body, asked)) as lines:
            async for line in lines:
                fields = self._transport.parse(line)
                if "error" in fields:
                    raise GenerationFailed(f"{self.base_url}: failed amid an answer: {error_message(line)[0]}")
                delta = self._delta(fields, called)
                called = called or bool(delta.tool_calls)
                if delta.finish_reason is not None or delta.text or delta.thinking or delta.tool_calls:
                    yield delta
                if delta.finish_reason is not None:
                    return
        raise GenerationFailed(f"{self.base_url}: the answer ended without its last line")

    async def count_tokens(self, model: str, text: str) -> int:
        """Asked where the server can tell (garzone can, Ollama cannot), else estimated from the length."""
        return await self._counter.count(model, text, as_one_message(model, text))

    async def details(self, model: str) -> ModelDetails:
        """What `/api/show` and `/api/tags` say. `context_tokens` is what the weights were trained for.

        Raises:
            ModelNotFound, BackendUnavailable: as the names say.
        """
        _check_model(model)
        shown = await self._transport.post_json(
            "/api/show", {"model": model}, Asked(model), timeout_s=self._info_timeout_s
        )
        listed = await self._listed(model)
        info = _mapping(shown.get("model_info"))
        details = _mapping(shown.get("details"))
        architecture = str(info.get("general.architecture") or details.get("family") or "")
        capabilities = shown.get("capabilities")
        size = listed.get("size")
        return ModelDetails(
            name=str(listed.get("name") or model),
            digest=_digest(listed),
            size_bytes=size if isinstance(size, int) else 0,
            family=str(details.get("family") or architecture),
            parameter_size=str(details.get("parameter_size") or ""),
            quantization=str(details.get("quantization_level") or ""),
            context_tokens=_count(info.get(f"{architecture}.context_length")),
            embedding_length=_count(info.get(f"{architecture}.embedding_length")),
            capabilities=tuple(str(each) for each in cast("list[object]", capabilities))
            if isinstance(capabilities, list)
            else ("completion",),
            template=str(shown.get("template") or ""),
            system=str(shown.get("system") or ""),
            license=str(shown.get("license") or ""),
            model_info=info,
            is_base="completion" in (capabilities or ()) and shown.get("template") in NO_TEMPLATE,
        )

    async def served_by(self, model: str) -> ServedBy:
        """The model's name and digest as the server lists them. Raises ModelNotFound, BackendUnavailable."""
        _check_model(model)
        listed = await self._listed(model)
        if not listed:
            raise ModelNotFound(model, f"{self.base_url} does not list it")
        return ServedBy(model=str(listed.get("name") or model), digest=_digest(listed), backend="ollama")

    async def aclose(self) -> None:
        """Close all connections."""
        await self._transport.aclose()

    async def _listed(self, model: str) -> Mapping[str, Any]:
        """The model's entry in `/api/tags`; empty if there is none."""
        answer = await self._transport.get_json("/api/tags", timeout_s=self._info_timeout_s)
        models: object = answer.get("models")
        wanted = _full_name(model)
        for entry in cast("list[object]", models) if isinstance(models, list) else []:
            fields = _mapping(entry)
            if _full_name(str(fields.get("name") or fields.get("model") or "")) == wanted:
                return fields
        return {}

    async def _context_for(self, request: GenerateRequest) -> int:
        if request.num_ctx is not None:
            return request.num_ctx
        if request.model not in self._trained_ctx:
            try:
                self._trained_ctx[request.model] = (await self.details(request.model)).context_tokens
            except BackendUnavailable as error:
                if isinstance(error, Unreachable):
                    raise
                self._trained_ctx[request.model] = 0  # a server with /api/chat alone will do
        return min(self._num_ctx, self._trained_ctx[request.model] or self._num_ctx)

    def _delta(self, fields: Mapping[str, Any], called: bool) -> Delta:
        message = _mapping(fields.get("message"))
        text = message.get("content", fields.get("response")) or ""
        thinking = message.get("thinking", fields.get("thinking")) or ""
        if not isinstance(text, str) or not isinstance(thinking, str):
            raise self._transport.nonsense("text that is none")
        calls = self._tool_calls(message.get("tool_calls"))
        if fields.get("done") is not True:
            return Delta(text=text, thinking=thinking, tool_calls=calls)
        finish = _FINISH.get(str(fields.get("done_reason") or "stop"), FinishReason.STOP)
        if (called or calls) and finish is FinishReason.STOP:
            finish = FinishReason.TOOL_CALLS
        return Delta(text=text, thinking=thinking, tool_calls=calls, finish_reason=finish, usage=_usage(fields))

    def _tool_calls(self, value: object) -> tuple[ToolCall, ...]:
        calls: list[ToolCall] = []
        for entry in cast("list[object]", value) if isinstance(value, list) else []:
            fields = _mapping(entry)
            function = _mapping(fields.get("function"))
            name, arguments = function.get("name"), function.get("arguments")
            if not isinstance(name, str) or not isinstance(arguments, dict | None):
                raise self._transport.nonsense("a tool call without name and arguments")
            calls.append(ToolCall(name, cast("dict[str, Any]", arguments or {}), str(fields.get("id") or "")))
        return tuple(calls)


def _body(request: GenerateRequest, num_ctx: int) -> tuple[str, dict[str, Any]]:
    sampling = request.sampling
    options: dict[str, Any] = {
        "num_ctx": num_ctx,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        "repeat_penalty": sampling.repeat_penalty,
        "repeat_last_n": sampling.repeat_last_n,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "num_predict": -1 if sampling.max_tokens is None else sampling.max_tokens,
    }
    if sampling.seed is not None:
        options["seed"] = sampling.seed
    if sampling.stop:
        options["stop"] = list(sampling.stop)
    body: dict[str, Any] = {"model": request.model, "stream": True, "options": options}
    if not request.truncate:
        body |= {"truncate": False, "shift": False}
    if request.keep_alive_s is not None:
        body["keep_alive"] = request.keep_alive_s
    if request.think is not None:
        body["think"] = request.think
    if request.output_schema is not None:
        body["format"] = dict(request.output_schema) or "json"
    if request.messages:
        body["messages"] = [_message(message) for message in request.messages]
        if request.tools:
            body["tools"] = [_tool(tool) for tool in request.tools]
        return "/api/chat", body
    body["prompt"] = request.prompt or ""
    for key, value in (("system", request.system), ("suffix", request.suffix), ("template", request.template)):
        if value is not None:
            body[key] = value
    if request.raw:
        body["raw"] = True
    if request.context:
        body["context"] = list(request.context)
    return "/api/generate", body


def _message(message: Message) -> dict[str, Any]:
    fields: dict[str, Any] = {"role": message.role.value, "content": message.text}
    if images := [part for part in message.content if isinstance(part, ImagePart)]:
        fields["images"] = [base64.b64encode(part.data).decode() for part in images]
    if message.thinking:
        fields["thinking"] = message.thinking
    if message.tool_calls:
        fields["tool_calls"] = [
            {"id": call.id, "function": {"name": call.name, "arguments": dict(call.arguments)}}
            for call in message.tool_calls
        ]
    if message.tool_call_id:
        fields["tool_call_id"] = message.tool_call_id
    if message.tool_name:
        fields["tool_name"] = message.tool_name
    return fields


def _tool(tool: ToolSpec) -> dict[str, Any]:
    parameters = dict(tool.parameters) or {"type": "object", "properties": {}}
    return {
        "type": "function",
        "function": {"name": tool.name, "description": tool.description, "parameters": parameters},
    }


def _usage(fields: Mapping[str, Any]) -> Usage:
    context: object = fields.get("context")
    ids = cast("list[object]", context) if isinstance(context, list) else []
    return Usage(
        prompt_tokens=_count(fields.get("prompt_eval_count")),
        completion_tokens=_count(fields.get("eval_count")),
        load_ms=_count(fields.get("load_duration")) / 1e6,
        prefill_ms=_count(fields.get("prompt_eval_duration")) / 1e6,
        decode_ms=_count(fields.get("eval_duration")) / 1e6,
        context=tuple(each for each in ids if isinstance(each, int)),
    )


def _check_model(model: str) -> None:
    if not model:
        raise InvalidRequest("an Ollama server must be told which model: give one with --model")


def _full_name(name: str) -> str:
    """For comparing: Ollama's names are case-insensitive, and `:latest` may be left out."""
    return (name if ":" in name.rsplit("/", 1)[-1] else f"{name}:latest").lower()


def _digest(entry: Mapping[str, Any]) -> str:
    digest = str(entry.get("digest") or "")
    return f"sha256:{digest}" if digest and ":" not in digest else digest


def _mapping(value: object) -> Mapping[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _count(value: object) -> int:
    return int(value) if isinstance(value, int | float) and value >= 0 else 0
