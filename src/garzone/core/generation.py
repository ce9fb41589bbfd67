"""A request for text and the pieces it comes back in. Not how either is spelled on a wire."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

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

    `temperature` 0 is greedy. `top_k` 0 means no limit, `top_p` 1.0, `min_p` 0.0 and `typical_p` 1.0 switch those
    filters off. `repeat_penalty` looks at the last `repeat_last_n` tokens (0: none, -1: the whole context).
    `max_tokens` None means up to the end of the context. `seed` None means a fresh one per request. `num_keep` tokens
    at the beginning stay when a full context is shifted (`GenerateRequest.shift`); -1 keeps the whole prompt.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.9
    min_p: float = 0.0
    typical_p: float = 1.0
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    num_keep: int = 0


class GrammarKind(Enum):
    """In which language a grammar is written."""

    JSON_SCHEMA = "json_schema"
    REGEX = "regex"
    LARK = "lark"


@dataclass(frozen=True, slots=True)
class Grammar:
    """What an answer may look like. `source` is a JSON schema as JSON text, a regex, or a Lark grammar.

    The whole answer matches it, after any thoughts. Lark as llguidance reads it: `%json {...}`, and
    `%regex {"substring_chunks": [...]}` for text that is in a given file.
    """

    kind: GrammarKind
    source: str


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """One request for text from one model.

    Exactly one of `messages` (rendered through the chat template) and `prompt` is used; `raw` sends `prompt`
    to the tokeniser without the template, otherwise `prompt` and `system` become a user and a system turn.
    With neither, the model is only loaded. `context` (token ids of an earlier answer) is put before the prompt.
    `num_ctx` caps the context in tokens; None means the model's default here. `keep_alive_s` is how long the model
    stays loaded afterwards: negative for ever, 0 unload at once, None the server's default.
    `truncate` allows dropping the oldest messages when the prompt does not fit; False makes it ContextOverflow.
    `output_schema` is a JSON schema the answer must match ({} for any JSON); None leaves it free. `grammar` says the
    same in other languages; at most one of the two is given.
    `suffix` is the text after the gap that the answer fills: `prompt` and it are rendered with the model's own
    fill-in-the-middle tokens.
    `draft` allows guessing several tokens ahead and checking them at once, which changes speed but no answer;
    `prediction` is text that the answer will largely repeat (the file that is being edited), to guess from.
    `logprobs` asks for the log probability of each token and of so many alternatives; None for none of it.
    `must_call` makes the answer a call of one of `tools`, with arguments that match its schema.
    `shift` lets an answer that fills the context go on by forgetting the oldest rows; False ends it with LENGTH.
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
    grammar: Grammar | None = None
    draft: bool = True
    prediction: str | None = None
    logprobs: int | None = None
    shift: bool = False
    must_call: bool = False

    @property
    def load_only(self) -> bool:
        """True when nothing is asked but to load (or, with keep_alive 0, to unload) the model."""
        return not (self.messages or self.prompt or self.suffix or self.context)


@dataclass(frozen=True, slots=True)
class Usage:
    """What a finished request cost. `prompt_tokens` includes `cached_tokens`; durations are in milliseconds.

    `context` is prompt and answer as token ids, for clients that send it back. Of `drafted_tokens` guesses,
    `accepted_tokens` were right.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    load_ms: float = 0.0
    prefill_ms: float = 0.0
    decode_ms: float = 0.0
    context: tuple[int, ...] = ()
    drafted_tokens: int = 0
    accepted_tokens: int = 0


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token that was chosen or could have been, with its natural log probability before any filter or penalty.

    `token` is its text with U+FFFD where its bytes are not whole characters, `bytes_` are the bytes.
    """

    token: str
    token_id: int
    logprob: float
    bytes_: bytes


@dataclass(frozen=True, slots=True)
class ChosenToken:
    """One token of the answer, and the most probable ones in its place, best first."""

    chosen: TokenLogprob
    top: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of an answer. The last one carries `finish_reason` and `usage`; only the last does.

    `logprobs` are those of the tokens generated since the last Delta, where the request asked for them; text may come
    later than its tokens do (stop strings and thoughts are held back), so the two do not line up piece by piece.
    `stop` is the stop string that ended the answer, on the last Delta, where one did and the backend tells.
    `choice` numbers the answers to a request that wanted several; a TextGenerator writes one, which is 0.
    """

    text: str = ""
    thinking: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    logprobs: tuple[ChosenToken, ...] = ()
    stop: str | None = None
    choice: int = 0


class KVCacheType(Enum):
    """How keys and values of what was read are kept: as half floats, or in blocks of 32 bytes that share a factor.

    The names are those of Ollama's OLLAMA_KV_CACHE_TYPE. A number takes 16 bits or 8.5.
    """

    F16 = "f16"
    Q8_0 = "q8_0"


class Pooling(Enum):
    """How the states of a text's tokens become one vector.

    LAST is the last token's, as embedding models of the Qwen family are trained; MEAN the average of all.
    """

    MEAN = "mean"
    LAST = "last"


@dataclass(frozen=True, slots=True)
class Embeddings:
    """One vector a text, in the texts' order, of length 1 each; and how many tokens each text had."""

    vectors: tuple[tuple[float, ...], ...]
    num_tokens: tuple[int, ...]
    load_ms: float = 0.0
    embed_ms: float = 0.0


NO_TEMPLATE: Final = ("", "{{ .Prompt }}")  # none at all, and what Ollama writes where there is none


@dataclass(frozen=True, slots=True)
class ModelDetails:
    """What is known of a model without running it.

    `name` is the full local name (`smollm2:135m`), `digest` is `sha256:` and 64 hex digits, `size_bytes` is all layers
    on disk, `modified_at` seconds since the epoch. `context_tokens` and `embedding_length` come from the weights'
    metadata (0 where unknown), `template` from the GGUF or the store. `model_info` holds the metadata as the file has
    it, without the vocabulary arrays. `path` is the weights file, "" when the model is not on this machine.
    `messages` begin every conversation with it (a Modelfile's MESSAGE lines). `takes_grammar` says that answers of the
    backend it was asked of can be held to a `GenerateRequest.grammar`; the others ignore one. `is_base` says that
    neither its file nor its store has a chat template: a pretrained model, which goes on with a text.
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
    messages: tuple[Message, ...] = ()
    takes_grammar: bool = False
    is_base: bool = False


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model in memory. `expires_at` is seconds since the epoch, None when it stays for ever."""

    details: ModelDetails
    context_tokens: int
    device: str
    memory_bytes: int
    expires_at: float | None
    kv_cache: KVCacheType = KVCacheType.F16


@dataclass(frozen=True, slots=True)
class ServedBy:
    """Who really generated: model, digest of its weights, backend (`tinygrad`, `ollama`, ...) and device."""

    model: str
    digest: str = ""
    backend: str = ""
    device: str = ""
