"""How each model family writes a tool call, and how what it wrote is read: text between markers -> calls. Pure.

Says nothing of streams or of which tools were offered. A reader gives None for what is no call, whatever it is given:
the text is a model's, and nothing in it may raise or take more than linear time.
"""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, cast

from garzone.core.chat import ToolCall

Json = dict[str, Any]
Calls = list[ToolCall]


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """How one model family writes a call: what opens it, what closes it, and how the text between is read.

    `close` "" means the call runs to the end of the answer. `read` returns None when the text is no call.
    """

    name: str
    open: str
    close: str
    read: Callable[[str], Calls | None]


# --- JSON, as models write it


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is not a number JSON can carry")
    return number


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


# Models write raw newlines inside strings. What cannot be written as JSON again (NaN, 1e999) is not read.
_DECODER: Final = json.JSONDecoder(strict=False, parse_float=_finite, parse_constant=_no_constant)


def _loads(text: str) -> Any:
    """A JSON value with nothing but blanks around it. Raises ValueError, RecursionError."""
    value, end = _DECODER.raw_decode(text, len(text) - len(text.lstrip()))
    if text[end:].strip():
        raise ValueError("something follows the value")
    return value


def call_of(document: object) -> ToolCall | None:
    """A call from `{"name": ..., "arguments" or "parameters": {...}}`, arguments as an object or as JSON text."""
    if not isinstance(document, dict):
        return None
    fields = cast(Json, document)
    if isinstance(inner := fields.get("function"), dict):
        fields = {"id": fields.get("id"), **cast(Json, inner)}
    name = fields.get("name")
    arguments: object = fields.get("arguments", fields.get("parameters", {}))
    if isinstance(arguments, str):
        try:
            arguments = _loads(arguments or "{}")
        except (ValueError, RecursionError):
            return None
    if not isinstance(name, str) or not name or not isinstance(arguments, dict):
        return None
    number = fields.get("id")
    return ToolCall(name, cast(Json, arguments), number if isinstance(number, str) else "")


def read_json_calls(text: str) -> Calls | None:
    """One JSON object, several after one another, or a list of them; None unless all of it is calls."""
    documents: list[object] = []
    position = 0
    while position < len(text):
        if text[position] in " \t\r\n,;":
            position += 1
            continue
        try:
            document, position = _DECODER.raw_decode(text, position)
        except (ValueError, RecursionError):  # ValueError also for an integer of 5000 digits
            return None
        documents += cast(list[object], document) if isinstance(document, list) else [document]
    calls = [call_of(document) for document in documents]
    return [call for call in calls if call] if calls and all(calls) else None


def _named(name: str, arguments: str) -> Calls | None:
    """A call whose name stands apart from its arguments."""
    try:
        call = call_of({"name": name.strip(), "arguments": _loads(arguments.strip() or "{}")})
    except (ValueError, RecursionError):
        return None
    return [call] if call else None


# --- Qwen3-Coder

# Names are short; the bound keeps a hostile text from being scanned again and again.
_XML_FUNCTION: Final = re.compile(r"\s*<function=([^>\n]{1,256})>(.*?)(?:</function>\s*|\Z)", re.DOTALL)
_XML_PARAMETER: Final = re.compile(
    r"<parameter=([^>\n]{1,256})>\n?(.*?)\n?(?:</parameter>|(?=<parameter=)|\Z)", re.DOTALL
)


def read_xml_calls(text: str) -> Calls | None:
    """Qwen3-Coder's `<function=NAME><parameter=KEY>value</parameter></function>`; Llama 3.1's has JSON inside.

    Values are text; what parses as a JSON number, boolean, null, list or object is taken as that.
    """
    calls: Calls = []
    position = 0
    while match := _XML_FUNCTION.match(text, position):
        body = match[2]
        if body.lstrip().startswith("{"):
            found = _named(match[1], body)
            if found is None:
                return None
            calls += found
        else:
            parameters = {key.strip(): _xml_value(value) for key, value in _XML_PARAMETER.findall(body)}
            calls.append(ToolCall(match[1].strip(), parameters))
        position = match.end()
        if not text[position:].strip():
            break
    return calls if calls and not text[position:].strip() else None


def _xml_value(text: str) -> Any:
    try:
        value = _loads(text)
    except (ValueError, RecursionError):
        return text
    return text if isinstance(value, str) else value


# --- GLM: <tool_call>NAME <arg_key>K</arg_key><arg_value>V</arg_value></tool_call>

_GLM_NAME: Final = re.compile(r"\s*([\w.-]{1,256})\s*(?=<arg_key>|\Z)")
_GLM_ARGUMENT: Final = re.compile(r"<arg_key>([^<]{1,256})</arg_key>\s*<arg_value>(.*?)</arg_value>\s*", re.DOTALL)


def _read_glm(text: str) -> Calls | None:
    name = _GLM_NAME.match(text)
    if name is None:
        return None
    arguments: Json = {}
    position = name.end()
    while match := _GLM_ARGUMENT.match(text, position):
        arguments[match[1].strip()] = _xml_value(match[2])
        position = match.end()
    return [ToolCall(name[1], arguments)] if not text[position:].strip() else None


def _read_tagged(text: str) -> Calls | None:
    if "<function=" in text[:300]:
        return read_xml_calls(text)
    return _read_glm(text) if "<arg_key>" in text else read_json_calls(text)


# --- Llama 3

_BUILT_IN: Final = re.compile(r"\s*([\w]{1,64})\.call\((.*)\)\s*", re.DOTALL)  # brave_search.call(query="...")


def _read_llama(text: str) -> Calls | None:
    """JSON, `<function=NAME>{...}</function>`, a built-in's `NAME.call(k="v")`, or 3.2's `[name(k="v"), ...]`."""
    if text.lstrip().startswith("<function="):
        return read_xml_calls(text)
    if built_in := _BUILT_IN.fullmatch(text):
        return read_python_calls(f"[{built_in[1]}({built_in[2]})]")
    return read_python_calls(text) or read_json_calls(text)


def read_python_calls(text: str) -> Calls | None:
    """A Python list of calls with literal keyword arguments, as Llama 3.2 and 4 are taught to write."""
    text = text.strip()
    if not (text.startswith("[") and text.endswith(")]")) or len(text) > 1 << 16:
        return None
    try:
        tree = ast.parse(text, mode="eval").body
        if not isinstance(tree, ast.List):
            return None
        calls: Calls = []
        for node in tree.elts:
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name | ast.Attribute) or node.args:
                return None
            arguments = {key.arg: ast.literal_eval(key.value) for key in node.keywords if key.arg is not None}
            if len(arguments) != len(node.keywords):
                return None
            json.dumps(arguments, allow_nan=False)  # a set or bytes is no argument
            calls.append(ToolCall(ast.unparse(node.func), arguments))
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return None
    return calls or None


# --- Mistral

_MISTRAL_NAMED: Final = re.compile(r"\s*([\w.-]{1,256})\s*(?:\[CALL_ID\]([^\s\[]{0,64})\s*)?\[ARGS\]\s*")


def _read_mistral(text: str) -> Calls | None:
    """A JSON list, or (since v11) `name[CALL_ID]id[ARGS]{...}`, repeated behind further `[TOOL_CALLS]`."""
    calls: Calls = []
    for part in text.split("[TOOL_CALLS]"):
        if named := _MISTRAL_NAMED.match(part):
            found = _named(named[1], part[named.end() :])
            found = found and [ToolCall(call.name, call.arguments, named[2] or "") for call in found]
        else:
            found = read_json_calls(part)
        if not found:
            return None
        calls += found
    return calls


# --- DeepSeek

_CALL_BEGIN, _CALL_END, _SEPARATOR = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>"


def _read_deepseek(text: str) -> Calls | None:
    """V3 and R1 (`function`, separator, name, fenced JSON) and V3.1 (name, separator, JSON)."""
    calls: Calls = []
    rest = text.strip()
    while rest:
        if not rest.startswith(_CALL_BEGIN):
            return None
        body, end, rest = rest[len(_CALL_BEGIN) :].partition(_CALL_END)
        rest = rest.lstrip()
        if not end:
            return None
        kind, separator, after = body.partition(_SEPARATOR)
        if separator and kind.strip() == "function":
            name, _, arguments = after.partition("\n")
        else:
            name, arguments = (kind, after) if separator else ("", "")
        fenced = arguments.strip()
        fenced = fenced.removeprefix("```json").removesuffix("```") if fenced.startswith("```json") else fenced
        found = _named(name, fenced)
        if not found:
            return None
        calls += found
    return calls or None


# --- gpt-oss; its channels are read by text/harmony.py


def read_harmony_call(name: str, arguments: str) -> Calls | None:
    """A call addressed `to=functions.NAME`."""
    return _named(name.removeprefix("functions."), arguments)


def _no_calls(text: str) -> Calls | None:
    del text


HERMES = ToolFormat("hermes", "<tool_call>", "</tool_call>", _read_tagged)  # Qwen2.5, Qwen3, Hermes, Qwen3-Coder, GLM
LLAMA3 = ToolFormat("llama3", "<|python_tag|>", "", _read_llama)
MISTRAL = ToolFormat("mistral", "[TOOL_CALLS]", "", _read_mistral)
DEEPSEEK = ToolFormat("deepseek", "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", _read_deepseek)
HARMONY = ToolFormat("harmony", "<|channel|>", "", _no_calls)
FORMATS = (HERMES, LLAMA3, MISTRAL, DEEPSEEK, HARMONY)


def format_of_template(template: str) -> ToolFormat:
    """The format a chat template teaches its model; Hermes, the commonest, where it says nothing."""
    for tool_format in (HARMONY, DEEPSEEK, MISTRAL, LLAMA3):
        if tool_format.open in template:
            return tool_format
    return HERMES


@dataclass(frozen=True, slots=True)
class ThinkingTags:
    """What opens and closes reasoning. `implied` when the template already opened it in the prompt."""

    open: str = "<think>"
    close: str = "</think>"
    implied: bool = False


_THINKING: Final = (
    ThinkingTags("[THINK]", "[/THINK]"),  # Magistral
    ThinkingTags("<seed:think>", "</seed:think>"),
    ThinkingTags("<|START_THINKING|>", "<|END_THINKING|>"),  # Command R
)


def thinking_of_template(template: str, *, implied: bool) -> ThinkingTags:
    """How a model of that template marks its reasoning; `<think>`, the commonest, where it says nothing."""
    for tags in _THINKING:
        if tags.open in template:
            return ThinkingTags(tags.open, tags.close, implied)
    return ThinkingTags(implied=implied)


# --- calls that models write without their markers

_CALL_KEYS: Final = ("name", "function", "type", "id", "arguments", "parameters")
_FENCE: Final = re.compile(r"```[ \t]*(json|tool_call|tool_code|xml)?[ \t]*\r?\n")
_FENCES: Final = tuple(f"```{language}\n" for language in ("", "json", "tool_call", "tool_code", "xml"))
_BARE_XML: Final = "<function="


def may_be_bare_call(text: str) -> bool:
    """Whether `text` may go on to be one or more calls without markers: JSON, in a fence or not, or bare XML."""
    rest = text.lstrip()
    if rest.startswith("`"):
        fence = _FENCE.match(rest)
        if fence is None:
            return any(start.startswith(rest.replace("\r", "").replace(" ", "")) for start in _FENCES)
        rest = rest[fence.end() :].lstrip()
    if rest.startswith("<"):
        return _begins(rest, _BARE_XML)
    if rest.startswith("["):
        rest = rest[1:].lstrip()
        if re.match(r"[A-Za-z_]", rest):  # [name(key="value")], Llama 3.2
            return re.match(r"\w{1,64}(?:\(|\Z)", rest) is not None
    if not rest:
        return True
    if not rest.startswith("{"):
        return False
    rest = rest[1:].lstrip()
    return not rest or any(_begins(rest, f'"{key}"') for key in _CALL_KEYS)


def _begins(text: str, start: str) -> bool:
    """Whether one of them begins with the other."""
    return text.startswith(start) if len(text) >= len(start) else start.startswith(text)


def read_bare_calls(text: str) -> Calls | None:
    """Calls written as bare or fenced JSON or XML, or as Python calls; None unless all of the text is calls."""
    calls: Calls = []
    rest = text.strip()
    while rest:
        fence = _FENCE.match(rest)
        if fence is None:
            # Qwen3-Coder forgets <tool_call> more often than </tool_call>
            found = read_xml_calls(rest.removesuffix(HERMES.close)) if rest.startswith(_BARE_XML) else None
            found = found or read_python_calls(rest) or read_json_calls(rest)
            return calls + found if found else None
        end = _fence_end(rest, fence.end())
        body, rest = rest[fence.end() : end], rest[end + 3 :].strip()
        if body.strip().startswith("<tool_call>"):
            body = body.strip().removeprefix("<tool_call>").removesuffix("</tool_call>")
        found = read_xml_calls(body) if body.lstrip().startswith(_BARE_XML) else read_json_calls(body)
        if not found:
            return None
        calls += found
    return calls or None


def _fence_end(text: str, start: int) -> int:
    """Where the fence is closed: three backticks at the beginning of a line, else anywhere, else the end."""
    end = text.find("\n```", start - 1)
    if end >= 0:
        return end + 1
    end = text.find("```", start)
    return end if end >= 0 else len(text)


def disproved(text: str, offered: Callable[[Calls], bool]) -> bool:
    """Whether nothing that follows can make `text`, for which `may_be_bare_call` holds, calls that were offered.

    Says False where it cannot tell yet; what it says never changes when more follows.
    """
    rest = text.strip()
    while rest:
        fence = _FENCE.match(rest)
        if fence is not None:
            end = rest.find("\n```", fence.end() - 1)
            if end < 0:
                return False
            calls, rest = read_bare_calls(rest[: end + 4]), rest[end + 4 :].lstrip()
        elif rest.startswith("{"):
            try:
                document, position = _DECODER.raw_decode(rest)
            except (ValueError, RecursionError):
                return False
            call = call_of(document)
            calls, rest = [call] if call else None, rest[position:].lstrip(" \t\r\n,;")
        else:
            return False
        if not calls or not offered(calls) or (rest and not may_be_bare_call(rest)):
            return True
    return False
