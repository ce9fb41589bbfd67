"""From a request to the token ids of its prompt: template, context, gap to fill in, and what of it fits.

Computes nothing; the templates and tokenisers are the model's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from garzone.core.chat import Message, Role
from garzone.core.errors import ContextOverflow, InvalidRequest, Unsupported
from garzone.core.generation import GenerateRequest
from garzone.runner.model import FillIn, Template, Tokenizer
from garzone.runner.prompt import fit_continuation, fit_messages


class Reader(Protocol):
    """What of a model it takes: `Model`, or the like without an engine."""

    @property
    def tokenizer(self) -> Tokenizer:
        """Text to token ids."""
        ...

    @property
    def template(self) -> Template | None:
        """Its chat template, if it has one."""
        ...

    @property
    def compile_template(self) -> Callable[[str], Template]:
        """Makes another from Jinja."""
        ...

    @property
    def fill_in(self) -> FillIn | None:
        """Its tokens for a gap, if it has them."""
        ...


@dataclass(frozen=True, slots=True)
class Prompt:
    """Token ids, and whether they end inside the model's reasoning."""

    tokens: list[int]
    thinking_open: bool = False


def render(model: Reader, request: GenerateRequest, max_tokens: int) -> Prompt:
    """The prompt of a request, of at most so many tokens.

    Raises:
        InvalidRequest, ContextOverflow, Unsupported: it cannot be made, or does not fit.
    """
    tokenizer = model.tokenizer
    if any(not 0 <= token_id < tokenizer.vocab_size for token_id in request.context):
        raise InvalidRequest(f"context: token ids must be from 0 to {tokenizer.vocab_size - 1}; it is another model's")
    if request.suffix and not request.raw:
        return Prompt(_gap(model, request, max_tokens))
    if request.raw and request.prompt is not None:
        tokens = tokenizer.encode(request.prompt, add_special=not request.context)
        return Prompt(_not_empty(fit_continuation(request.context, tokens, max_tokens, truncate=request.truncate)))
    messages = list(request.messages)
    if request.prompt is not None:
        messages += [Message.of(Role.SYSTEM, request.system)] if request.system else []
        messages.append(Message.of(Role.USER, request.prompt))
    template = _template(model, request)
    extra: dict[str, Any] = {"enable_thinking": bool(request.think)}  # Qwen3, DeepSeek and most others
    if isinstance(request.think, str):
        extra["reasoning_effort"] = request.think  # gpt-oss
    thinking_open = False

    def encode(conversation: Sequence[Message]) -> list[int]:
        nonlocal thinking_open
        text = template.render(conversation, tools=request.tools, extra=extra)
        thinking_open = text.rstrip().endswith("<think>")
        tokens = tokenizer.encode(text, add_special=not request.context)
        if len(tokens) > 1 and tokens[0] == tokens[1] == tokenizer.bos_id:
            del tokens[0]  # the template wrote it, and so did the tokeniser
        return tokens

    if request.context:
        tokens = fit_continuation(request.context, encode(messages), max_tokens, truncate=request.truncate)
    else:
        tokens = _not_empty(fit_messages(messages, encode, max_tokens, truncate=request.truncate))
    return Prompt(tokens, thinking_open)


def _gap(model: Reader, request: GenerateRequest, max_tokens: int) -> list[int]:
    """A prompt with a gap, in the model's own tokens. What is too long loses its far ends.

    The text before the gap may take three quarters of the room, what follows it the rest, as in llama.cpp's infill.
    """
    form = model.fill_in
    if form is None:
        raise Unsupported(f"suffix: model '{request.model}' has no tokens to fill a gap with; send a plain prompt")
    encode = model.tokenizer.encode
    begin = [token for token in encode("", add_special=True)[:1] if token == model.tokenizer.bos_id]
    # no special tokens: what a file says is text
    prefix = encode(request.prompt or "", add_special=False, parse_special=False)
    suffix = encode(request.suffix or "", add_special=False, parse_special=False)
    room = max_tokens - len(begin) - len(form.before) - len(form.between) - len(form.after)
    if len(prefix) + len(suffix) > room:
        if not request.truncate or room < 1:
            raise ContextOverflow(len(prefix) + len(suffix) + max_tokens - room, max_tokens)
        num_suffix = min(len(suffix), max(room // 4, room - len(prefix)))
        prefix = prefix[max(0, len(prefix) - (room - num_suffix)) :]
        suffix = suffix[:num_suffix]
    return [*begin, *_in_order(form, prefix, suffix)]


def _in_order(form: FillIn, prefix: Sequence[int], suffix: Sequence[int]) -> list[int]:
    if form.suffix_first:
        return [*form.before, *suffix, *form.between, *prefix, *form.after]
    return [*form.before, *prefix, *form.between, *suffix, *form.after]


def _template(model: Reader, request: GenerateRequest) -> Template:
    if request.template:
        return model.compile_template(request.template)
    if model.template is None:
        raise InvalidRequest(
            f"model '{request.model}' has no chat template; send raw: true with a prompt, or a Jinja `template`"
        )
    return model.template


def _not_empty(tokens: list[int]) -> list[int]:
    if not tokens:
        raise InvalidRequest("prompt: it has no tokens")
    return tokens
