"""Conversations to prompts, by the Jinja template that came with a model; and what such a template can do.

Does not tokenise, and trusts nothing: a template is downloaded code (see `template_sandbox.py`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import traceback
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, cast

from jinja2.exceptions import TemplateSyntaxError

from garzone.core.chat import ImagePart, Message, ToolSpec
from garzone.core.errors import InvalidRequest
from garzone.text.template_sandbox import MAX_SOURCE_CHARS, TemplateLimit, TemplateSandbox, bounded
from garzone.text.turns import plainer
from garzone.text.vocabulary import CODESTRAL_FIM, FIM_TEXTS, PREFIX

_TESTS_CONTENT_FOR_NONE: Final = re.compile(r"content(?:['\"]\])?\s+is\s+none", re.IGNORECASE)
_WANTS_SHORT_IDS: Final = re.compile(r"id\s*\|\s*length\s*!=\s*9")  # Mistral's refuse all other ids
# Ollama's templates are Go's text/template: {{ .Prompt }}, {{ if .System }}, {{- range $i, $_ := .Messages }}. In Jinja
# an expression never begins like that.
_GO_TEMPLATE: Final = re.compile(r"\{\{-?\s*(?:[.$]|(?:if|else|end|range|with|template|block|define)\b)")
_DATE_FORMAT: Final = re.compile(r"(?:%[-a-zA-Z%]|[^%0-9]){0,64}")


def is_go_template(source: str) -> bool:
    """True for a template in the language Ollama's own are written in, which is not rendered here."""
    return _GO_TEMPLATE.search(source) is not None


class _Refused(Exception):
    """The template called `raise_exception`."""


class _Arguments(dict[str, Any]):
    """A call's arguments: a mapping for templates that walk it, JSON for those that write it as text."""

    def __str__(self) -> str:
        return json.dumps(self, ensure_ascii=False)

    def __add__(self, other: Any) -> str:
        return str(self) + other

    def __radd__(self, other: Any) -> str:
        return other + str(self)


class ChatTemplate:
    """A compiled template. Thread-safe.

    Args:
        source: Jinja, as `tokenizer.chat_template` holds it.
        bos_token: text of the beginning token, for templates that write it.
        eos_token: likewise.
        now: the clock that `strftime_now` reads.

    Raises:
        InvalidRequest: it is not a template; names the line.
    """

    def __init__(
        self, source: str, *, bos_token: str = "", eos_token: str = "", now: Callable[[], datetime] = datetime.now
    ) -> None:
        if len(source) > MAX_SOURCE_CHARS:
            raise InvalidRequest(f"the chat template has {len(source)} characters; at most {MAX_SOURCE_CHARS} are read")
        environment = TemplateSandbox()
        self._tokens = {"bos_token": bos_token, "eos_token": eos_token}
        self._short_ids = _WANTS_SHORT_IDS.search(source) is not None
        self._empty_content = None if _TESTS_CONTENT_FOR_NONE.search(source) else ""
        try:
            self._template = environment.from_string(
                source, globals={"raise_exception": _raise_exception, "strftime_now": _strftime(now)}
            )
        except TemplateSyntaxError as error:
            raise InvalidRequest(f"the chat template is not valid: line {error.lineno}: {error.message}") from error
        except (SyntaxError, RecursionError, ValueError, OverflowError, MemoryError) as error:
            raise InvalidRequest(f"the chat template cannot be compiled: {error}") from error

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[ToolSpec] = (),
        add_generation_prompt: bool = True,
        extra: Mapping[str, Any] = {},
    ) -> str:
        """The prompt as text. A conversation that the template refuses is told it in a plainer form.

        Args:
            messages: the conversation, oldest first.
            tools: what the model may call.
            add_generation_prompt: end with what begins the model's answer.
            extra: more variables, such as `enable_thinking`; they win over those above.

        Raises:
            InvalidRequest: the template refuses the conversation, fails, or wants too much; names its line.
        """
        values = {
            **self._tokens,
            "tools": [_tool(tool) for tool in tools] or None,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
            **extra,
        }
        try:
            return self._render(messages, values)
        except _Refused as refusal:
            for version in plainer(messages):
                with contextlib.suppress(_Refused):
                    return self._render(version, values)
            raise InvalidRequest(f"the model's chat template refuses these messages: {refusal}") from refusal

    def _render(self, messages: Sequence[Message], values: Mapping[str, Any]) -> str:
        """One attempt. Raises _Refused, InvalidRequest."""
        given = {**values, "messages": [self._message(message) for message in messages]}
        try:
            return bounded(lambda: self._template.generate(given))
        except _Refused:
            raise
        except TemplateLimit as error:
            raise InvalidRequest(f"the chat template wants too much{_line(error)}: {error}") from error
        except RecursionError as error:
            raise InvalidRequest(f"the chat template calls itself without end{_line(error)}") from error
        except Exception as error:  # foreign code: whatever it raises is its own fault
            raise InvalidRequest(f"the chat template fails{_line(error)}: {type(error).__name__}: {error}") from error

    def _message(self, message: Message) -> dict[str, Any]:
        if any(isinstance(part, ImagePart) for part in message.content):
            raise InvalidRequest("messages: this model reads text only, and a message holds an image")
        shape: dict[str, Any] = {"role": message.role.value, "content": message.text}
        if message.thinking:
            shape["reasoning_content"] = shape["thinking"] = message.thinking  # Qwen and DeepSeek; gpt-oss
        if message.tool_calls:
            shape["content"] = message.text or self._empty_content
            shape["tool_calls"] = [
                {
                    "type": "function",
                    **({"id": number} if (number := self._id(call.id)) else {}),
                    "function": {"name": call.name, "arguments": _Arguments(call.arguments)},
                }
                for call in message.tool_calls
            ]
        if message.tool_call_id:
            shape["tool_call_id"] = self._id(message.tool_call_id)
        if message.tool_name:
            shape["name"] = message.tool_name
        return shape

    def _id(self, given: str) -> str:
        """The id of a call, as the template wants it: the same for the same call."""
        if not self._short_ids or (len(given) == 9 and given.isalnum()):
            return given
        return hashlib.sha256(given.encode("utf-8", "replace")).hexdigest()[:9]


def template_capabilities(source: str, metadata: Mapping[str, Any] | None = None) -> tuple[str, ...]:
    """What a model can be asked for, judged by its template: of "completion", "tools", "thinking", "insert".

    Args:
        source: Jinja, or one of Ollama's Go templates; "" where there is none.
        metadata: of the GGUF file; without it, only a template can tell of "insert".
    """
    found = ["completion"]
    if re.search(r"\btools\b|\.Tools\b", source):
        found.append("tools")
    if re.search(r"</?think>|\benable_thinking\b|\breasoning_content\b|\breasoning_effort\b|\.Think(?:ing)?\b", source):
        found.append("thinking")
    if re.search(r"\.Suffix\b", source) or (metadata is not None and fills_in(metadata)):
        found.append("insert")
    return tuple(found)


def fills_in(metadata: Mapping[str, Any]) -> bool:
    """Whether a vocabulary has the tokens that gaps are shown with: prefix, suffix and middle, or Codestral's two."""
    older = {"fim_pre": "prefix", "fim_suf": "suffix", "fim_mid": "middle"}
    missing = [
        name for name in older
        if f"{PREFIX}{name}_token_id" not in metadata and f"{PREFIX}{older[name]}_token_id" not in metadata
    ]  # fmt: skip
    if not missing:
        return True
    key = f"{PREFIX}tokens"
    lists = getattr(metadata, "lists", None)  # a GGUF header is searched without reading a vocabulary from it
    listed = metadata.get(key) if lists is None else None
    tokens = frozenset(cast("list[str]", listed)) if isinstance(listed, list) else frozenset[str]()

    def has(text: str) -> bool:
        return bool(lists(key, text)) if lists is not None else text in tokens

    return all(any(map(has, FIM_TEXTS[name])) for name in missing) or all(map(has, CODESTRAL_FIM))


def _tool(tool: ToolSpec) -> dict[str, Any]:
    function = {"name": tool.name, "description": tool.description, "parameters": dict(tool.parameters)}
    return {"type": "function", "function": function}


def _raise_exception(message: object) -> str:
    raise _Refused(str(message)[:1000])


def _strftime(now: Callable[[], datetime]) -> Callable[[str], str]:
    def strftime_now(format: str) -> str:
        if not _DATE_FORMAT.fullmatch(format):
            raise TemplateLimit("a date format that no template needs")
        return now().strftime(format)

    return strftime_now


def _line(error: BaseException) -> str:
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == "<template>"]
    return f" in line {lines[-1]}" if lines else ""
