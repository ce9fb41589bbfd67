"""Text as a model streams it -> what was said, what was thought, and which tools were called. Pure.

Models mark reasoning and tool calls each in their own way; this is the only place that knows the ways. Knows nothing
of wire formats, and never guesses: text that only looks like a call is content unless it names a tool that was offered.

The parser holds text back only while it may still turn out to be a marker, so that any chunking of the same text gives
the same result.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from garzone.core.chat import ToolCall, ToolSpec
from garzone.core.generation import Delta

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """How one model family writes a call: what opens it, what closes it, and how the text between is read.

    `close` "" means the call runs to the end of the answer. `read` returns None when the text is no call.
    """

    name: str
    open: str
    close: str
    read: Callable[[str], list[ToolCall] | None]


# --- readers: the text between the markers -> calls


def _call(document: object) -> ToolCall | None:
    """A call from `{"name": ..., "arguments" or "parameters": {...}}`, arguments as an object or as JSON text."""
    if not isinstance(document, dict):
        return None
    fields = cast(Json, document)
    if isinstance(inner := fields.get("function"), dict):
        fields = cast(Json, inner)
    name = fields.get("name")
    arguments: object = fields.get("arguments", fields.get("parameters", {}))
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except json.JSONDecodeError:
            return None
    if not isinstance(name, str) or not name or not isinstance(arguments, dict):
        return None
    return ToolCall(name, cast(Json, arguments))


def read_json_calls(text: str) -> list[ToolCall] | None:
    """One JSON object, several after one another, or a list of them; None unless all of it is calls."""
    decoder = json.JSONDecoder(strict=False)  # models write raw newlines inside strings
    documents: list[object] = []
    position = 0
    while position < len(text):
        if text[position] in " \t\r\n,;":
            position += 1
            continue
        try:
            document, position = decoder.raw_decode(text, position)
        except (json.JSONDecodeError, RecursionError):
            return None
        documents += cast(list[object], document) if isinstance(document, list) else [document]
    calls = [_call(document) for document in documents]
    return [call for call in calls if call] if calls and all(calls) else None


_XML_FUNCTION = re.compile(r"\s*<function=([^>\n]+)>(.*?)(?:</function>\s*|\Z)", re.DOTALL)
_XML_PARAMETER = re.compile(r"<parameter=([^>\n]+)>\n?(.*?)\n?(?:</parameter>|(?=<parameter=)|\Z)", re.DOTALL)


def read_xml_calls(text: str) -> list[ToolCall] | None:
    """Qwen3-Coder's `<function=NAME><parameter=KEY>value</parameter></function>`.

    Values are text; what parses as a JSON number, boolean, null, list or object is taken as that.
    """
    calls: list[ToolCall] = []
    position = 0
    while match := _XML_FUNCTION.match(text, position):
        parameters = {key.strip(): _xml_value(value) for key, value in _XML_PARAMETER.findall(match[2])}
        calls.append(ToolCall(match[1].strip(), parameters))
        position = match.end()
        if not text[position:].strip():
            break
    return calls if calls and not text[position:].strip() else None


def _xml_value(text: str) -> Any:
    try:
        value = json.loads(text)
    except (json.JSONDecodeError, RecursionError):
        return text
    return text if isinstance(value, str) else value


def _read_tagged(text: str) -> list[ToolCall] | None:
    return read_xml_calls(text) if "<function=" in text else read_json_calls(text)


_MISTRAL_NAMED = re.compile(r"\s*([\w.-]+)\s*(?:\[CALL_ID\]\S*?\s*)?\[ARGS\]\s*")


def _read_mistral(text: str) -> list[ToolCall] | None:
    """A JSON list, or (since v11) `name[ARGS]{...}`, repeated behind further `[TOOL_CALLS]`."""
    calls: list[ToolCall] = []
    for part in text.split("[TOOL_CALLS]"):
        named = _MISTRAL_NAMED.match(part)
        found = read_json_calls(_named(named[1], part[named.end() :]) if named else part)
        if not found:
            return None
        calls += found
    return calls


def _named(name: str, arguments: str) -> str:
    return f'{{"name": {json.dumps(name)}, "arguments": {arguments.strip() or "{}"}}}'


_DEEPSEEK_CALL = re.compile(
    r"\s*<｜tool▁call▁begin｜>(?:function<｜tool▁sep｜>)?(?P<name>.*?)(?:<｜tool▁sep｜>|\n)"
    r"\s*(?:```json\s*)?(?P<arguments>.*?)(?:\s*```)?\s*<｜tool▁call▁end｜>\s*",
    re.DOTALL,
)


def _read_deepseek(text: str) -> list[ToolCall] | None:
    """V3 and R1 (`function`, separator, name, fenced JSON) and V3.1 (name, separator, JSON)."""
    calls: list[ToolCall] = []
    position = 0
    while match := _DEEPSEEK_CALL.match(text, position):
        found = read_json_calls(_named(match["name"].strip(), match["arguments"]))
        if not found:
            return None
        calls += found
        position = match.end()
    return calls if calls and position == len(text) else None


_HARMONY_CALL = re.compile(r"functions\.([\w.-]+)[^{]*?<\|message\|>(.*)", re.DOTALL)


def _read_harmony(text: str) -> list[ToolCall] | None:
    match = _HARMONY_CALL.match(text)
    return read_json_calls(_named(match[1], match[2])) if match else None


HERMES = ToolFormat("hermes", "<tool_call>", "</tool_call>", _read_tagged)  # Qwen2.5, Qwen3, Hermes, Qwen3-Coder
LLAMA3 = ToolFormat("llama3", "<|python_tag|>", "", read_json_calls)
MISTRAL = ToolFormat("mistral", "[TOOL_CALLS]", "", _read_mistral)
DEEPSEEK = ToolFormat("deepseek", "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", _read_deepseek)
HARMONY = ToolFormat("harmony", "<|channel|>commentary to=", "<|call|>", _read_harmony)  # gpt-oss
FORMATS = (HERMES, LLAMA3, MISTRAL, DEEPSEEK, HARMONY)


def format_of_template(template: str) -> ToolFormat:
    """The format a chat template teaches its model; Hermes, the commonest, where it says nothing."""
    for tool_format, mark in (
        (HARMONY, "<|channel|>"),
        (DEEPSEEK, DEEPSEEK.open),
        (MISTRAL, MISTRAL.open),
        (LLAMA3, LLAMA3.open),
    ):
        if mark in template:
            return tool_format
    return HERMES


@dataclass(frozen=True, slots=True)
class ThinkingTags:
    """What opens and closes reasoning. `implied` when the template already opened it in the prompt."""

    open: str = "<think>"
    close: str = "</think>"
    implied: bool = False


# What stands around gpt-oss's channels and is neither said nor thought.
_HARMONY_NOISE = ("<|start|>assistant", "<|channel|>final<|message|>", "<|end|>", "<|return|>")
HARMONY_THINKING = ThinkingTags("<|channel|>analysis<|message|>", "<|end|>")


class StreamParser:
    """Feed it text as it comes with `push`, end with `finish`; both give Deltas in order.

    Text inside markers that turns out to be no call of an offered tool is given back as content, markers and all, so
    that nothing a model wrote is lost. With no tools offered, markers of calls are content.
    """

    def __init__(
        self, tools: Sequence[ToolSpec] = (), tool_format: ToolFormat = HERMES, thinking: ThinkingTags | None = None
    ) -> None:
        self._names = frozenset(tool.name for tool in tools)
        self._format = tool_format if tools else None
        self._thinking = thinking
        self._mode = "thinking" if thinking and thinking.implied else "content"
        self._noise = _HARMONY_NOISE if tool_format is HARMONY else ()
        self._pending = ""
        self._said = ""  # content so far: a bare call is only rescued when it is all there is
        self._held = ""  # content that may be the beginning of a bare JSON call
        self._num_calls = 0
        self._after_marker = False

    def push(self, text: str) -> list[Delta]:
        """Deltas that `text` completes."""
        self._pending += text
        deltas: list[Delta] = []
        while self._step(deltas):
            pass
        return deltas

    def finish(self) -> list[Delta]:
        """What was held back, now that nothing follows."""
        deltas: list[Delta] = []
        rest, self._pending = self._pending, ""
        if self._mode == "call":
            assert self._format
            self._end_call(rest, "", deltas)
        elif self._mode == "thinking":
            self._think(rest, deltas)
        else:
            self._say(rest, deltas)
        if self._held:
            held, self._held = self._held, ""
            calls = self._rescued(held)
            if calls:
                deltas.append(Delta(tool_calls=calls))
            else:
                self._said += held
                deltas.append(Delta(text=held))
        return deltas

    # --- one step: consume up to the next marker, or as much as cannot be part of one

    def _step(self, deltas: list[Delta]) -> bool:
        if self._mode == "call":
            assert self._format
            if not self._format.close:
                return False
            before, found = self._until((self._format.close,))
            if not found:
                self._pending = before + self._pending  # a call is read whole
                return False
            self._end_call(before, found, deltas)
            self._mode, self._after_marker = "content", True
            return True
        if self._mode == "thinking":
            assert self._thinking
            before, found = self._until((self._thinking.close,))
            self._think(before, deltas)
            if found:
                self._mode, self._after_marker = "content", True
            return bool(found)
        markers = self._noise
        if self._thinking and not self._said.strip() and not self._held:
            markers = (*markers, self._thinking.open)
        if self._format:
            markers = (*markers, self._format.open)
        before, found = self._until(markers)
        self._say(before, deltas)
        if self._thinking and found == self._thinking.open:
            self._mode, self._after_marker = "thinking", True
        elif self._format and found == self._format.open:
            self._mode = "call"
        return bool(found)

    def _until(self, markers: Sequence[str]) -> tuple[str, str]:
        """Take the text before the first marker and that marker, or all that cannot begin one."""
        text = self._pending
        hits = [(text.find(marker), -len(marker), marker) for marker in markers if marker in text]
        if hits:
            at, _, marker = min(hits)
            self._pending = text[at + len(marker) :]
            return text[:at], marker
        keep = max((_overlap(text, marker) for marker in markers), default=0)
        self._pending = text[len(text) - keep :]
        return text[: len(text) - keep], ""

    def _think(self, text: str, deltas: list[Delta]) -> None:
        if text := self._trimmed(text):
            deltas.append(Delta(thinking=text))

    def _say(self, text: str, deltas: list[Delta]) -> None:
        text = self._trimmed(text)
        if not text:
            return
        if self._format and not self._said and not self._num_calls and _may_be_bare_call(self._held + text):
            self._held += text
            return
        text, self._held = self._held + text, ""
        self._said += text
        deltas.append(Delta(text=text))

    def _trimmed(self, text: str) -> str:
        """Newlines right after a marker belong to the marker."""
        if self._after_marker:
            text = text.lstrip("\n")
            self._after_marker = not text
        return text

    def _end_call(self, body: str, close: str, deltas: list[Delta]) -> None:
        assert self._format
        calls = self._format.read(body)
        if calls and all(call.name in self._names for call in calls):
            deltas.append(Delta(tool_calls=self._numbered(calls)))
            return
        text = self._format.open + body + close
        self._said += text
        deltas.append(Delta(text=text))

    def _rescued(self, text: str) -> tuple[ToolCall, ...]:
        """Calls written as bare or fenced JSON, if all of them name offered tools (Qwen2.5-Coder does this)."""
        fenced = _FENCED.fullmatch(text.strip())
        calls = read_json_calls(fenced[1] if fenced else text)
        return self._numbered(calls) if calls and all(call.name in self._names for call in calls) else ()

    def _numbered(self, calls: Sequence[ToolCall]) -> tuple[ToolCall, ...]:
        first = self._num_calls
        self._num_calls += len(calls)
        return tuple(replace(call, id=call.id or f"call_{first + index}") for index, call in enumerate(calls))


_FENCED = re.compile(r"```(?:json|tool_call)?\s*\n?(.*?)\s*```", re.DOTALL)
_BARE_STARTS = ("{", "[", "```json", "```tool_call", "```\n{", "```\n[")


def _may_be_bare_call(text: str) -> bool:
    start = text.lstrip()
    return not start or any(start.startswith(mark) or mark.startswith(start) for mark in _BARE_STARTS)


def _overlap(text: str, marker: str) -> int:
    """Length of the longest end of `text` that begins `marker`."""
    for size in range(min(len(text), len(marker) - 1), 0, -1):
        if marker.startswith(text[-size:]):
            return size
    return 0
