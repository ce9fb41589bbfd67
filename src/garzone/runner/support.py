"""What the embedded engine can be asked for: whether a request fits a model, and what the model adds to it.

Pure. What it cannot do yet is said, never silently left out.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from garzone.core.chat import ImagePart, Message, Role, ToolSpec
from garzone.core.errors import InvalidRequest, Unsupported
from garzone.core.generation import GenerateRequest, ModelDetails
from garzone.runner.protocol import Generate
from garzone.text.chat_template import is_go_template
from garzone.text.stream_parser import Parser, parser_of
from garzone.text.tool_formats import HARMONY, format_of_template, thinking_of_template

MOST_LOGPROBS: Final = 20  # OpenAI's and Ollama's limit
_HARMONY_ANSWER: Final = "<|channel|>final<|message|>"


def check_supported(request: GenerateRequest, details: ModelDetails) -> None:
    """Raise InvalidRequest or Unsupported when this engine with this model cannot do what is asked."""
    name = details.name
    if any(isinstance(part, ImagePart) for message in request.messages for part in message.content):
        raise InvalidRequest(f"model '{name}' does not support images")
    if request.tools and "tools" not in details.capabilities:
        raise InvalidRequest(f"model '{name}' does not support tools")
    if request.think and "thinking" not in details.capabilities:
        raise InvalidRequest(f"model '{name}' does not support thinking")
    if request.suffix and not request.raw and "insert" not in details.capabilities:
        raise InvalidRequest(f"model '{name}' does not support insert")
    if request.must_call and request.tools and format_of_template(details.template) is HARMONY:
        raise Unsupported(
            f"tool_choice: model '{name}' cannot be made to call a tool: its calls are no plain JSON; use 'auto'"
        )
    if request.output_schema is not None and request.grammar is not None:
        raise InvalidRequest("format: an answer has one grammar or one schema, not both")
    if request.logprobs is not None and not 0 <= request.logprobs <= MOST_LOGPROBS:
        raise InvalidRequest(f"logprobs: alternatives must be from 0 to {MOST_LOGPROBS}, not {request.logprobs}")
    if request.template and is_go_template(request.template):
        raise InvalidRequest(
            "template: this looks like one of Ollama's Go templates, and only Jinja is rendered here; "
            "leave it out to use the model's own, or send raw: true with a prompt that is already rendered"
        )


def generate_message(request: GenerateRequest, details: ModelDetails) -> Generate:
    """The request as the model's process gets it; its number is not given yet."""
    message = Generate(0, request, keep_special=is_parsed(request, details))
    if request.raw or not request.think or "thinking" not in details.capabilities:
        return message
    if format_of_template(details.template) is HARMONY:
        return replace(message, answer_after=_HARMONY_ANSWER, answer_opened=True)
    tags = thinking_of_template(details.template, implied=False)
    return replace(message, thinking_mark=tags.open, answer_after=tags.close)


def is_parsed(request: GenerateRequest, details: ModelDetails) -> bool:
    """Whether the answer's text is searched for thoughts and calls."""
    return not request.raw and (bool(request.tools) or "thinking" in details.capabilities)


def parser_for(request: GenerateRequest, details: ModelDetails, *, thinking_open: bool) -> Parser | None:
    """What tells apart what the model says, thinks and calls; None where its text is passed on as it is.

    `thinking_open` when the prompt already ends inside the model's reasoning. Calls get ids that are not repeated in
    the next answer: clients keep all of a conversation's calls by their id.
    """
    if not is_parsed(request, details):
        return None
    thinks = "thinking" in details.capabilities
    tags = thinking_of_template(details.template, implied=thinking_open) if thinks else None
    id_prefix = f"call_{secrets.token_hex(6)}"
    return parser_of(request.tools, format_of_template(details.template), tags, id_prefix=id_prefix)


def calls_schema(tools: Sequence[ToolSpec]) -> dict[str, Any]:
    """What a call of one of the tools looks like as JSON, which `StreamParser` reads as one in all formats.

    A schema that refers to parts of itself would mean something else inside another; its arguments are any object.
    """
    calls: list[dict[str, Any]] = []
    for tool in tools:
        own = dict(tool.parameters) if tool.parameters and "$ref" not in json.dumps(dict(tool.parameters)) else {}
        calls.append(
            {
                "type": "object",
                "properties": {"name": {"const": tool.name}, "arguments": {"type": "object", **own}},
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
        )
    return calls[0] if len(calls) == 1 else {"anyOf": calls}


def with_model_defaults(request: GenerateRequest, details: ModelDetails) -> GenerateRequest:
    """The request with the model's own system prompt, unless it has one; a model that can think does, unless told."""
    if request.think is None and "thinking" in details.capabilities:
        request = replace(request, think=True)
    if request.must_call and request.tools:  # a call has no text beside it that another schema could be about
        request = replace(request, output_schema=calls_schema(request.tools), grammar=None)
    if details.messages and request.messages and not request.raw:
        request = replace(request, messages=_after_examples(details.messages, request.messages))
    if details.system and not request.raw:
        if request.prompt is not None and request.system is None:
            request = replace(request, system=details.system)
        elif request.messages and request.messages[0].role is not Role.SYSTEM:
            request = replace(request, messages=(Message.of(Role.SYSTEM, details.system), *request.messages))
    return request


def _after_examples(examples: tuple[Message, ...], messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """A conversation behind the model's own MESSAGE lines; a system prompt stays the first of all."""
    first = messages[:1] if messages[0].role is Role.SYSTEM else ()
    return (*first, *examples, *messages[len(first) :])
