"""Reads JSON5 and changes single members in its text, so that comments, order and spelling of all else stay. Pure.

The grammar is https://spec.json5.org; JSON with and without comments is part of it. Formats only what it adds.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

_SPACE = re.compile(r"(?:[\s\ufeff]|//[^\n\r\u2028\u2029]*|/\*.*?\*/)*", re.DOTALL)
_NUMBER = re.compile(r"[+-]?(?:0[xX][0-9a-fA-F]+|Infinity|NaN|(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)")
_NAME = re.compile(r"[^\W\d][\w$]*|[$_][\w$]*")
_ESCAPES = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v", "0": "\0"}
MAX_DEPTH = 200


class JSON5Error(ValueError):
    """The text is not JSON5; says where."""


@dataclass(slots=True)
class Node:
    """A value and where it stands: `text[start:end]`. `members` are (key, start of the key, value) of an object."""

    start: int
    end: int
    value: Any
    members: list[tuple[str, int, Node]] | None = None
    items: list[Node] = field(default_factory=list["Node"])


def parse(text: str) -> Node:
    """The one value of a document.

    Raises:
        JSON5Error: it is none.
    """
    parser = _Parser(text)
    node = parser.value(parser.space(0), 0)
    if parser.space(node.end) != len(text):
        parser.fail(node.end, "something follows the value")
    return node


def find(node: Node, path: tuple[str, ...]) -> Node | None:
    """The value under these keys; None if there is none. Of a key that occurs twice the last counts, as in JSON."""
    for key in path:
        found = [value for name, _, value in node.members or () if name == key]
        if not found:
            return None
        node = found[-1]
    return node


def with_member(text: str, path: tuple[str, ...], value: Any) -> str:
    """The text with `value` under these keys; objects on the way are made where they are missing.

    Raises:
        JSON5Error: the text is not JSON5, or something on the way is no object.
    """
    if not text.strip():
        text = "{}\n"
    root = parse(text)
    if present := find(root, path):
        return text[: present.start] + _indented(value, _indent_at(text, present.start)) + text[present.end :]
    parent, depth = root, 0
    while depth < len(path) - 1 and (inner := find(parent, path[depth : depth + 1])):
        parent, depth = inner, depth + 1
    if parent.members is None:
        raise JSON5Error(f"{'.'.join(path[:depth]) or 'the document'} is not an object")
    for key in reversed(path[depth + 1 :]):
        value = {key: value}
    return _inserted(text, parent, f"{json.dumps(path[depth])}: ", value, [node for _, _, node in parent.members])


def with_item(text: str, path: tuple[str, ...], item: Any) -> str:
    """The text with `item` at the end of the list under these keys, which is made where it is missing."""
    node = find(parse(text), path) if text.strip() else None
    if node is None:
        return with_member(text, path, [item])
    if not isinstance(node.value, list):
        raise JSON5Error(f"{'.'.join(path)} is not a list")
    return text if any(one.value == item for one in node.items) else _inserted(text, node, "", item, node.items)


def without(text: str, path: tuple[str, ...], item: Any = None) -> str:
    """The text without the member under these keys, or (where `item` is given) without that item of the list there."""
    root = parse(text)
    if item is not None:
        node = find(root, path)
        spans = [(one.start, one.end) for one in node.items if one.value == item] if node else []
        whole = [(one.start, one.end) for one in node.items] if node else []
    else:
        node = find(root, path[:-1])
        members = node.members if node and node.members else []
        spans = [(at, value.end) for key, at, value in members if key == path[-1]]
        whole = [(at, value.end) for _, at, value in members]
    for start, end in reversed(spans):
        text = _cut_out(text, start, end, is_last=(start, end) == whole[-1], is_first=(start, end) == whole[0])
    return text


def _inserted(text: str, parent: Node, head: str, value: Any, children: list[Node]) -> str:
    """Put something at the end of an object or list, in the way its other children stand."""
    close = parent.end - 1
    last_end = children[-1].end if children else parent.start + 1
    outer = _indent_at(text, parent.start)
    one_line = bool(children) and "\n" not in text[parent.start : parent.end]
    inner = outer + "  "
    if children and (found := re.search(r"\n([ \t]*)[^\n]*$", text[: children[-1].start])) and not one_line:
        inner = found[1]
    gap = text[last_end:close]
    comma_at = _comma(text, last_end, close)
    if one_line:
        written = f", {head}{json.dumps(value)}" if comma_at is None else f" {head}{json.dumps(value)},"
        at = last_end if comma_at is None else comma_at + 1
        return text[:at] + written + text[at:]
    addition = f"\n{inner}{head}{_indented(value, inner)}"
    if not children:
        return text[: parent.start + 1] + gap.rstrip() + addition + f"\n{outer}" + text[close:]
    if comma_at is None:
        text = f"{text[:last_end]},{text[last_end:]}"
        close, gap = close + 1, "," + gap
    elif text[comma_at + 1 :]:
        addition += ","  # a document that likes trailing commas keeps them
    end_of_gap = last_end + len(gap.rstrip())
    tail = text[end_of_gap:close]
    return text[:end_of_gap] + addition + (tail if "\n" in tail else f"\n{outer}") + text[close:]


def _cut_out(text: str, start: int, end: int, *, is_last: bool, is_first: bool) -> str:
    """Remove a child with its comma and, if they hold nothing else, its lines. Comments stay."""
    comma_at = _comma(text, end, len(text))
    if comma_at is not None:
        end = comma_at + 1
    elif is_last and not is_first:
        before = text[:start]
        stripped = before.rstrip()
        if stripped.endswith(","):  # directly before it; a comment in between keeps the comma, which JSON5 allows
            text = stripped[:-1] + before[len(stripped) :] + text[start:]
            start, end = start - 1, end - 1
    line_start = text.rfind("\n", 0, start) + 1
    line_end = text.find("\n", end)
    if line_end >= 0 and not text[line_start:start].strip() and not text[end:line_end].strip():
        return text[:line_start] + text[line_end + 1 :]
    if not is_first and text[start - 1 : start] == " " and (text[end : end + 1] in ("]", "}", "\n", " ")):
        start -= 1
    return text[:start] + text[end:]


def _comma(text: str, start: int, end: int) -> int | None:
    space = _SPACE.match(text, start, end)
    at = space.end() if space else start
    return at if text[at : at + 1] == "," and at < end else None


def _indent_at(text: str, at: int) -> str:
    line = text[text.rfind("\n", 0, at) + 1 : at]
    return line[: len(line) - len(line.lstrip())]


def _indented(value: Any, indent: str) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False).replace("\n", f"\n{indent}")


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text

    def fail(self, at: int, why: str) -> None:
        line = self._text.count("\n", 0, at) + 1
        raise JSON5Error(f"line {line}: {why}")

    def space(self, at: int) -> int:
        found = _SPACE.match(self._text, at)
        return found.end() if found else at

    def value(self, at: int, depth: int) -> Node:
        text = self._text
        if depth > MAX_DEPTH:
            self.fail(at, "nested too deeply")
        character = text[at : at + 1]
        if character == "{":
            return self._object(at, depth)
        if character == "[":
            return self._list(at, depth)
        if character and character in "\"'":
            string, end = self._string(at)
            return Node(at, end, string)
        if number := _NUMBER.match(text, at):
            return Node(at, number.end(), _number(number[0]))
        for word, value in (("true", True), ("false", False), ("null", None)):
            if text.startswith(word, at):
                return Node(at, at + len(word), value)
        self.fail(at, f"a value was expected, found {character!r}" if character else "the text ends too early")
        raise AssertionError

    def _object(self, at: int, depth: int) -> Node:
        members: list[tuple[str, int, Node]] = []
        start, at = at, self.space(at + 1)
        while self._text[at : at + 1] != "}":
            key_at = at
            if self._text[at : at + 1] in ('"', "'"):
                key, at = self._string(at)
            elif name := _NAME.match(self._text, at):
                key, at = name[0], name.end()
            else:
                self.fail(at, "a key was expected")
                raise AssertionError
            at = self.space(at)
            if self._text[at : at + 1] != ":":
                self.fail(at, f"a colon was expected after {key!r}")
            node = self.value(self.space(at + 1), depth + 1)
            members.append((key, key_at, node))
            at = self._next(node.end, "}")
        return Node(start, at + 1, {key: node.value for key, _, node in members}, members)

    def _list(self, at: int, depth: int) -> Node:
        items: list[Node] = []
        start, at = at, self.space(at + 1)
        while self._text[at : at + 1] != "]":
            items.append(self.value(at, depth + 1))
            at = self._next(items[-1].end, "]")
        return Node(start, at + 1, [item.value for item in items], items=items)

    def _next(self, at: int, close: str) -> int:
        at = self.space(at)
        if self._text[at : at + 1] == ",":
            return self.space(at + 1)
        if self._text[at : at + 1] != close:
            self.fail(at, f"a comma or {close} was expected")
        return at

    def _string(self, at: int) -> tuple[str, int]:
        text, quote, out = self._text, self._text[at], list[str]()
        start, at = at, at + 1
        while at < len(text):
            character = text[at]
            if character == quote:
                joined = "".join(out)
                return joined.encode("utf-16", "surrogatepass").decode("utf-16", "replace"), at + 1
            if character == "\n":
                break
            if character != "\\":
                out.append(character)
                at += 1
                continue
            escape = text[at + 1 : at + 2]
            if escape in ("u", "x"):
                digits = text[at + 2 : at + (6 if escape == "u" else 4)]
                if not re.fullmatch(r"[0-9a-fA-F]{4}|[0-9a-fA-F]{2}", digits):
                    self.fail(at, "a broken escape")
                out.append(chr(int(digits, 16)))
                at += 2 + len(digits)
            elif text.startswith("\r\n", at + 1):
                at += 3
            else:
                out.append("" if escape == "\n" else _ESCAPES.get(escape, escape))
                at += 2
        self.fail(start, "a string without an end")
        raise AssertionError


def _number(text: str) -> float | int:
    sign, digits = (-1, text[1:]) if text[0] == "-" else (1, text.lstrip("+"))
    if digits[:2].lower() == "0x":
        return sign * int(digits, 16)
    if digits in ("Infinity", "NaN"):
        return sign * float(digits.lower().replace("infinity", "inf"))
    try:
        return sign * int(digits)
    except ValueError:
        return sign * float(digits)
