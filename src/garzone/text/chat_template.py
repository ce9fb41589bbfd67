"""A conversation -> the prompt text a model was trained to read, by the template its file carries.

A chat template is downloaded code, so it runs in Jinja's immutable sandbox, with bounds on what it may build. Does not
tokenise.

The environment is the one Hugging Face's `apply_chat_template` offers, which is what templates are written for:
https://huggingface.co/docs/transformers/chat_templating_writing
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, NoReturn, cast

import jinja2
from jinja2.exceptions import SecurityError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from garzone.core.chat import Message, Role, ToolSpec
from garzone.core.errors import InvalidRequest

MAX_SOURCE_CHARS: Final = 1 << 20  # the longest published ones have some 20,000
MAX_PROMPT_CHARS: Final = 1 << 26  # far beyond any model's context
MAX_POWER: Final = 1000  # `**` is not in templates; numbers of a million digits should not be either


class _Environment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, with `*` and `**` bounded: both build memory out of nothing, and `range` is bounded already."""

    intercepted_binops = frozenset({"*", "**", "%", "+", "~"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Refuse what would be enormous before it is built."""
        if operator == "*":
            for sequence, times in ((left, right), (right, left)):
                size = len(cast(Sequence[Any], sequence)) if isinstance(sequence, str | list | tuple) else 0
                if isinstance(times, int) and size * times > MAX_PROMPT_CHARS:
                    raise SecurityError("a repetition longer than any prompt")
        if operator == "**" and isinstance(right, int | float) and abs(right) > MAX_POWER:
            raise SecurityError("a number larger than any prompt needs")
        if operator == "%" and isinstance(left, str):
            raise SecurityError("formatting with % is not offered to templates")
        if operator == "+" and isinstance(left, str) and len(left) + len(str(right)) > MAX_PROMPT_CHARS:
            raise SecurityError("a text longer than any prompt")
        return super().call_binop(context, operator, left, right)


def _to_json(value: Any, indent: int | None = None, ensure_ascii: bool = False, **options: Any) -> str:
    """As `transformers` defines it: unlike Jinja's own it does not escape HTML characters."""
    separators, sort_keys = options.get("separators"), bool(options.get("sort_keys"))
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().astimezone().strftime(pattern)


def _environment() -> _Environment:
    environment: Any = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


class ChatTemplate:
    """A compiled template.

    Args:
        source: Jinja.
        bos_token: text of the token that begins a prompt, where the template asks for it.
        eos_token: text of the token that ends a turn.

    Raises:
        InvalidRequest: it is not Jinja; names the line.
    """

    def __init__(self, source: str, *, bos_token: str = "", eos_token: str = "") -> None:
        if len(source) > MAX_SOURCE_CHARS:
            raise InvalidRequest(f"template: {len(source)} characters, more than {MAX_SOURCE_CHARS}")
        self._tokens = {"bos_token": bos_token, "eos_token": eos_token}
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise InvalidRequest(f"template: line {error.lineno}: {error.message}") from error
        except RecursionError as error:
            raise InvalidRequest("template: nested too deeply") from error

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[ToolSpec] = (),
        add_generation_prompt: bool = True,
        extra: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt as text.

        Args:
            messages: the conversation.
            tools: what the model may call.
            add_generation_prompt: end with the beginning of the assistant's turn.
            extra: further names the template may use, `enable_thinking` for instance.

        Raises:
            InvalidRequest: the template refuses this conversation, fails, or builds more than any model reads.
        """
        names: dict[str, Any] = {
            **self._tokens,
            **(extra or {}),
            "messages": [message_document(message) for message in messages],
            "tools": [tool_document(tool) for tool in tools] or None,
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            return "".join(_bounded(self._template.generate(names)))
        except jinja2.TemplateError as error:
            line = f"line {error.lineno}: " if isinstance(error, jinja2.TemplateSyntaxError) else _line(error)
            raise InvalidRequest(f"template: {line}{error.message or type(error).__name__}") from error
        except (
            ArithmeticError,
            AttributeError,
            LookupError,
            RecursionError,
            TypeError,
            ValueError,
            MemoryError,
        ) as error:
            # Whatever Python raises when a template does something foolish with the values it was given.
            raise InvalidRequest(f"template: {_line(error)}{type(error).__name__}: {error}") from error


def _bounded(pieces: Iterator[str]) -> Iterator[str]:
    length = 0
    for piece in pieces:
        length += len(piece)
        if length > MAX_PROMPT_CHARS:
            raise SecurityError("a prompt longer than any model reads")
        yield piece


def _line(error: BaseException) -> str:
    """The template's line an exception came from: Jinja names its frames `<template>` in tracebacks."""
    trace, line = error.__traceback__, 0
    while trace:
        if trace.tb_frame.f_code.co_filename == "<template>":
            line = trace.tb_lineno
        trace = trace.tb_next
    return f"line {line}: " if line else ""


def message_document(message: Message) -> dict[str, Any]:
    """A message in the shape templates expect (OpenAI's, with arguments as an object)."""
    document: dict[str, Any] = {"role": message.role.value, "content": message.text}
    if message.thinking:
        document["reasoning_content"] = document["thinking"] = message.thinking
    if message.tool_calls:
        document["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": dict(call.arguments)}}
            for call in message.tool_calls
        ]
    if message.role is Role.TOOL:
        document["tool_call_id"] = message.tool_call_id
        document["name"] = message.tool_name
    return document


def tool_document(tool: ToolSpec) -> dict[str, Any]:
    """A tool in the shape templates expect."""
    function = {"name": tool.name, "description": tool.description, "parameters": dict(tool.parameters)}
    return {"type": "function", "function": function}


_READS_TOOLS = re.compile(r"\{[%{][^}%]*\btools\b")


def template_capabilities(source: str) -> tuple[str, ...]:
    """What a template can express beyond plain chat: `tools`, `thinking`, in this order.

    Judged by the names it reads, as there is no other sign: a template that never looks at `tools` cannot offer them.
    """
    found: list[str] = []
    if _READS_TOOLS.search(source):
        found.append("tools")
    if "<think>" in source or "enable_thinking" in source or "<|channel|>analysis" in source:
        found.append("thinking")
    return tuple(found)
