"""A request for text and the pieces it comes back in. Not how either is spelled on a wire."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from garzone.core.chat import Message, ToolCall, ToolSpec


class FinishReason(Enum):
    """Why generation ended. Each dialect maps these; nobody else spells them."""

    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"
    ABORTED = "aborted"


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is chosen. Defaults are Ollama's (WIRE.md, options defaults).

    `temperature` 0 is greedy. `top_k` 0 means no limit, `top_p` 1.0 and `min_p` 0.0 switch those filters off.
    `repeat_penalty` looks at the last `repeat_last_n` tokens (0: none, -1: the whole context). `max_tokens` None
    means up to the end of the context. `seed` None means a fresh one per request.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.9
    min_p: float = 0.0
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """One request for text from one model.

    Exactly one of `messages` (rendered through the chat template) and `prompt` is used; `raw` sends `prompt`
    to the tokeniser without the template, otherwise `prompt` and `system` become a user and a system turn.
    With neither, the model is only loaded. `context` (token ids of an earlier answer) is put before the prompt.
    `num_ctx` caps the context in tokens; None means the model's default here. `keep_alive_s` is how long the model
    stays loaded afterwards: negative for ever, 0 unload at once, None the server's default.
    `truncate` allows dropping the oldest messages when the prompt does not fit; False makes it ContextOverflow.
    `output_schema` is a JSON schema the answer must match ({} for any JSON); None leaves it free.
    """

    model: str
    messages: tuple[Message, ...] = ()
    prompt: str | None = None
    system: str | None = None
    suffix: str | None = None
    template: str | None = None
    raw: bool = False
    context: tuple[int, ...] = ()
    tools: tuple[ToolSpec, ...] = ()
    sampling: SamplingParams = field(default_factory=SamplingParams)
    num_ctx: int | None = None
    keep_alive_s: float | None = None
    think: bool | str | None = None
    truncate: bool = True
    output_schema: Mapping[str, Any] | None = None

    @property
    def load_only(self) -> bool:
        """True when nothing is asked but to load (or, with keep_alive 0, to unload) the model."""
        return not self.messages and not self.prompt and not self.context


@dataclass(frozen=True, slots=True)
class Usage:
    """What a finished request cost. `prompt_tokens` includes `cached_tokens`; durations are in milliseconds.

    `context` is prompt and answer as token ids, for clients that send it back.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    load_ms: float = 0.0
    prefill_ms: float = 0.0
    decode_ms: float = 0.0
    context: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of an answer. The last one carries `finish_reason` and `usage`; only the last does."""

    text: str = ""
    thinking: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    finish_reason: FinishReason | None = None
    usage: Usage | None = None


@dataclass(frozen=True, slots=True)
class ModelDetails:
    """What is known of a model without running it.

    `name` is the full local name (`smollm2:135m`), `digest` is `sha256:` and 64 hex digits, `size_bytes` is all layers
    on disk, `modified_at` seconds since the epoch. `context_tokens` and `embedding_length` come from the weights'
    metadata (0 where unknown), `template` from the GGUF or the store. `model_info` holds the metadata as the file has
    it, without the vocabulary arrays. `path` is the weights file, "" when the model is not on this machine.
    """

    name: str
    digest: str = ""
    size_bytes: int = 0
    modified_at: float = 0.0
    family: str = ""
    parameter_size: str = ""
    quantization: str = ""
    context_tokens: int = 0
    embedding_length: int = 0
    capabilities: tuple[str, ...] = ("completion",)
    template: str = ""
    system: str = ""
    license: str = ""
    parameters: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    model_info: Mapping[str, Any] = field(default_factory=dict[str, Any])
    path: str = ""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model in memory. `expires_at` is seconds since the epoch, None when it stays for ever."""

    details: ModelDetails
    context_tokens: int
    device: str
    memory_bytes: int
    expires_at: float | None


@dataclass(frozen=True, slots=True)
class ServedBy:
    """Who really generated: model, digest of its weights, backend (`tinygrad`, `ollama`, ...) and device."""

    model: str
    digest: str = ""
    backend: str = ""
    device: str = ""
