"""What OpenAI's routes have in common: messages' parts, tools, sampling, finish reasons, errors, models.

Fields as in https://platform.openai.com/docs/api-reference; what Ollama accepts and ignores is ignored here, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Final, Literal, cast

from pydantic import BeforeValidator, Field

from garzone.core.chat import ContentPart, TextPart, ToolCall, ToolSpec
from garzone.core.errors import (
    ContextOverflow,
    GarzoneError,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    Unsupported,
    UsageError,
)
from garzone.core.generation import (
    ChosenToken,
    FinishReason,
    GenerateRequest,
    ModelDetails,
    SamplingParams,
    TokenLogprob,
    Usage,
)
from garzone.server.dialects.wire import Strings, Wire, arguments_of, image_of_url, strip_empty

FINGERPRINT: Final = "fp_garzone"
MAX_CHOICES: Final = 128  # of one request; OpenAI's limit
FINISH_REASONS: Final = {
    FinishReason.STOP: "stop",
    FinishReason.LENGTH: "length",
    FinishReason.TOOL_CALLS: "tool_calls",
    FinishReason.ABORTED: "stop",
}


class _Url(Wire):
    url: str


def _url_of(value: Any) -> Any:
    return {"url": value} if isinstance(value, str) else value


class Part(Wire):
    """One part of a message's content."""

    type: str
    text: str = ""
    refusal: str = ""
    image_url: Annotated[_Url | None, BeforeValidator(_url_of)] = None

    def to_core(self) -> ContentPart:
        """The part. Raises InvalidRequest for what no model here reads."""
        if self.type in ("text", "refusal", "input_text", "output_text"):
            return TextPart(self.text or self.refusal)
        if self.type in ("image_url", "input_image") and self.image_url is not None:
            return image_of_url(self.image_url.url, "content.image_url")
        raise InvalidRequest(f"content: parts of type '{self.type}' are not supported")


def parts_of(content: str | Sequence[Part]) -> tuple[ContentPart, ...]:
    """Content that is text or a list of parts."""
    if isinstance(content, str):
        return (TextPart(content),) if content else ()
    return tuple(part.to_core() for part in content)


class _CalledFunction(Wire):
    name: str
    arguments: str | dict[str, Any] = "{}"


class Call(Wire):
    """A call in an assistant's message."""

    id: str = ""
    function: _CalledFunction

    def to_core(self) -> ToolCall:
        """The call. Raises InvalidRequest when its arguments are no object."""
        arguments = arguments_of(self.function.arguments, "messages.tool_calls.function.arguments")
        return ToolCall(self.function.name, arguments, self.id)


class _Function(Wire):
    name: str
    description: str = ""
    parameters: dict[str, Any] = {}


class Tool(Wire):
    """A tool of chat completions."""

    type: str = "function"
    function: _Function | None = None


def several(request: GenerateRequest, count: int) -> list[GenerateRequest]:
    """So many times the same; with a seed, each answer has its own, so that they differ and can be had again."""
    seed = request.sampling.seed
    if seed is None:
        return [request] * count
    return [replace(request, sampling=replace(request.sampling, seed=seed + number)) for number in range(count)]


def tools_of(tools: Sequence[Tool], choice: str | Mapping[str, Any]) -> tuple[ToolSpec, ...]:
    """The functions among the tools; none with choice "none", one alone when it is named."""
    specs = tuple(
        ToolSpec(tool.function.name, tool.function.description, tool.function.parameters)
        for tool in tools
        if tool.function is not None
    )
    return chosen_tools(specs, choice)


def must_call(choice: str | Mapping[str, Any]) -> bool:
    """Whether `tool_choice` wants a call and nothing else."""
    if isinstance(choice, Mapping):
        return choice.get("type", "function") in ("function", "custom")  # not a list of allowed ones, nor web search
    return choice == "required"


def chosen_tools(specs: Sequence[ToolSpec], choice: str | Mapping[str, Any]) -> tuple[ToolSpec, ...]:
    """What `tool_choice` leaves of the tools."""
    if choice == "none":
        return ()
    if isinstance(choice, Mapping):
        inner = (
            cast("Mapping[str, Any]", function) if isinstance(function := choice.get("function"), Mapping) else choice
        )
        name = inner.get("name")
        return tuple(spec for spec in specs if spec.name == name) or tuple(specs)
    return tuple(specs)


class JsonSchema(Wire):
    """A schema with its name."""

    json_schema: dict[str, Any] = Field({}, alias="schema")


class ResponseFormat(Wire):
    """`response_format`, and `text.format` of responses, where the schema stands beside the type."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    json_schema: JsonSchema | None = None
    beside: dict[str, Any] | None = Field(None, alias="schema")

    def schema_of(self) -> Mapping[str, Any] | None:
        """The schema an answer must match, {} for any JSON. Raises InvalidRequest."""
        if self.type == "text":
            return None
        if self.type == "json_object":
            return {}
        if self.json_schema is not None:
            return self.json_schema.json_schema
        if self.beside is not None:
            return self.beside
        raise InvalidRequest("response_format.json_schema: required with type json_schema")


class StreamOptions(Wire):
    """`stream_options`."""

    include_usage: bool = False


class Sampled(Wire):
    """The fields about sampling that chat and plain completions share."""

    model: str = Field(min_length=1, max_length=1024)
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0)
    top_p: float | None = Field(None, ge=0)
    top_k: int | None = None
    min_p: float | None = Field(None, ge=0)
    repetition_penalty: float | None = Field(None, gt=0)
    stop: Strings | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None

    def sampling(self, defaults: SamplingParams, max_tokens: int | None) -> SamplingParams:
        """Temperature and top_p are 1 unless given, whatever the model says (as Ollama does)."""
        changed: dict[str, Any] = {
            "temperature": 1.0 if self.temperature is None else self.temperature,
            "top_p": 1.0 if self.top_p is None else min(1.0, self.top_p),
        }
        if self.seed is not None:
            changed["seed"] = self.seed if self.seed >= 0 else None
        if self.stop is not None:
            changed["stop"] = strip_empty(self.stop)
        if self.top_k is not None:
            changed["top_k"] = max(0, self.top_k)
        if self.repetition_penalty is not None:
            changed["repeat_penalty"] = self.repetition_penalty
        for name in ("presence_penalty", "frequency_penalty", "min_p"):
            if (value := getattr(self, name)) is not None:
                changed[name] = value
        if max_tokens is not None:
            changed["max_tokens"] = max_tokens
        return replace(defaults, **changed)


def usage_of(usage: Usage | None) -> dict[str, Any]:
    """`usage`."""
    spent = usage or Usage()
    return {
        "prompt_tokens": spent.prompt_tokens,
        "completion_tokens": spent.completion_tokens,
        "total_tokens": spent.prompt_tokens + spent.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": spent.cached_tokens},
    }


def chosen_token(token: ChosenToken) -> dict[str, Any]:
    """One entry of `logprobs.content`."""
    return {**_token(token.chosen), "top_logprobs": [_token(one) for one in token.top]}


def _token(token: TokenLogprob) -> dict[str, Any]:
    return {"token": token.token, "logprob": token.logprob, "bytes": list(token.bytes_)}


def error_document(error: GarzoneError) -> dict[str, Any]:
    """How every route of this dialect says what went wrong."""
    kind, code = "api_error", None
    if isinstance(error, UsageError):
        kind = "invalid_request_error"
    if isinstance(error, ContextOverflow):
        code = "context_length_exceeded"
    if isinstance(error, Unsupported):
        code = "unsupported"
    if isinstance(error, ModelNotFound):
        kind, code = "not_found_error", "model_not_found"
    if isinstance(error, Overloaded):
        code = "server_overloaded"
    return {"error": {"message": str(error), "type": kind, "param": None, "code": code}}


def models_document(models: Sequence[ModelDetails]) -> dict[str, Any]:
    """`/v1/models`."""
    return {"object": "list", "data": [model_document(model) for model in models]}


def model_document(model: ModelDetails) -> dict[str, Any]:
    """`/v1/models/NAME`."""
    return {"id": model.name, "object": "model", "created": int(model.modified_at), "owned_by": "library"}
