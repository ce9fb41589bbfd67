"""Types that Python's plain data has in languages with types: read from annotations, or seen in recorded values.

Says what a value is; does not spell any language.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

_PLAIN = {"int": "int", "float": "float", "str": "str", "bool": "bool"}
_LISTS = frozenset({"list", "List", "Sequence", "Iterable", "Collection", "MutableSequence"})
_DICTS = frozenset({"dict", "Dict", "Mapping", "MutableMapping"})


@dataclass(frozen=True, slots=True)
class Type:
    """`name` is int, float, str, bool, none; or list, dict (its keys are strings) or optional of `inner`."""

    name: str
    inner: Type | None = None

    def __str__(self) -> str:
        return f"{self.name} of {self.inner}" if self.inner else self.name

    @property
    def of(self) -> Type:
        """What is in it."""
        assert self.inner is not None
        return self.inner


NONE = Type("none")


def of_annotation(node: ast.expr | None) -> Type | None:
    """The type an annotation names; None where it names none that plain data has everywhere."""
    if node is None:
        return None
    if isinstance(node, ast.Constant):
        if node.value is None:
            return NONE
        if isinstance(node.value, str):
            try:
                return of_annotation(ast.parse(node.value, mode="eval").body)
            except SyntaxError:
                return None
        return None
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return _union([of_annotation(node.left), of_annotation(node.right)])
    name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
    if name in _PLAIN:
        return Type(_PLAIN[name])
    if isinstance(node, ast.Subscript):
        return _of_subscript(node)
    return None


def _of_subscript(node: ast.Subscript) -> Type | None:
    outer = node.value.id if isinstance(node.value, ast.Name) else getattr(node.value, "attr", "")
    parts = list(node.slice.elts) if isinstance(node.slice, ast.Tuple) else [node.slice]
    parts = [part for part in parts if not (isinstance(part, ast.Constant) and part.value is ...)]
    inner = [of_annotation(part) for part in parts]
    if outer == "Optional":
        return _union([inner[0], NONE])
    if outer == "Union":
        return _union(inner)
    if outer in ("tuple", "Tuple"):  # a result that is one is recorded as a list
        return Type("list", inner[0]) if inner and inner[0] and all(each == inner[0] for each in inner) else None
    if outer in _LISTS and len(inner) == 1 and inner[0]:
        return Type("list", inner[0])
    if outer in _DICTS and len(inner) == 2 and inner[0] == Type("str") and inner[1]:
        return Type("dict", inner[1])
    return None


def _union(parts: list[Type | None]) -> Type | None:
    found: Type | None = None
    for part in parts:
        if part is None:
            return None
        found = part if found is None else merged(found, part)
        if found is None:
            return None
    return found


def merged(one: Type, other: Type) -> Type | None:
    """The type of values of either; None where none holds both."""
    if one == other:
        return one
    if NONE in (one, other):
        kept = other if one == NONE else one
        return kept if kept.name == "optional" else Type("optional", kept)
    if one.name == "optional" or other.name == "optional":
        inner = merged(
            one.of if one.name == "optional" else one, other.of if other.name == "optional" else other
        )  # fmt: skip
        return Type("optional", inner) if inner else None
    if {one.name, other.name} == {"int", "float"}:
        return Type("float")
    if one.name == other.name and one.inner and other.inner:
        if EMPTY in (one.inner, other.inner):
            return other if one.inner == EMPTY else one
        inner = merged(one.inner, other.inner)
        return Type(one.name, inner) if inner else None
    return None


EMPTY = Type("nothing")  # what is in an empty list


def of_values(values: Iterable[Any]) -> Type | None:
    """The type that recorded values have; None where they have none in common."""
    found: Type | None = None
    for value in values:
        each = _of_value(value)
        if each is None:
            return None
        found = each if found is None else merged(found, each)
        if found is None:
            return None
    return found


def _of_value(value: Any) -> Type | None:
    if value is None:
        return NONE
    if isinstance(value, bool | int | float | str):
        return Type(type(value).__name__)
    if isinstance(value, list):
        return _holding("list", cast("list[Any]", value))
    return _holding("dict", list(cast("dict[str, Any]", value).values())) if isinstance(value, dict) else None


def _holding(kind: str, items: list[Any]) -> Type | None:
    inner = of_values(items) if items else EMPTY
    return Type(kind, inner) if inner else None


def is_whole(kind: Type | None) -> bool:
    """Whether all of a type is known."""
    return kind is not None and kind != EMPTY and (kind.inner is None or is_whole(kind.inner))


def fits(kind: Type, value: Any) -> bool:
    """Whether a type holds a recorded value."""
    if value is None:
        return kind.name in ("optional", "none")
    match kind.name:
        case "optional":
            return fits(kind.of, value)
        case "bool":
            return isinstance(value, bool)
        case "int":
            return isinstance(value, int) and not isinstance(value, bool)
        case "float":
            return isinstance(value, int | float) and not isinstance(value, bool)
        case "str":
            return isinstance(value, str)
        case "list":
            return isinstance(value, list) and all(fits(kind.of, item) for item in cast("list[Any]", value))
        case "dict":
            return isinstance(value, dict) and all(
                fits(kind.of, item) for item in cast("dict[str, Any]", value).values()
            )
        case _:
            return False


def settled(annotated: Type | None, values: list[Any]) -> Type | None:
    """The type of a parameter or a result: as annotated where that holds all that was recorded, else as seen."""
    if annotated is not None and all(fits(annotated, value) for value in values):
        return annotated
    seen = of_values(values)
    if annotated is not None and seen is not None and (both := merged(annotated, seen)) and is_whole(both):
        return both
    return seen if is_whole(seen) else None


def emptied(kind: Type | None, value: Any) -> Any:
    """A result in which languages that have one nothing for both say [] or {} and not null."""
    if value is None and kind is not None and kind.name in ("list", "dict"):
        return [] if kind.name == "list" else {}
    if kind is not None and kind.inner is not None:
        if kind.name == "optional":
            return None if value is None else emptied(kind.inner, value)
        if isinstance(value, list):
            return [emptied(kind.inner, item) for item in cast("list[Any]", value)]
        if isinstance(value, dict):
            return {key: emptied(kind.inner, item) for key, item in cast("dict[str, Any]", value).items()}
    return value
