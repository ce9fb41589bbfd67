"""Reads source of several languages with tree-sitter: definitions, the names they use, tokens without comments.

Python is read by `ast` in `target.py`, whose answers are exact; here only where a token or a comment matters. The
grammars ship in their wheels and are loaded when a file of their language is first seen.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import PurePosixPath

import tree_sitter as ts

from garzone.agent.target import Span

_GRAMMARS = {
    ".py": ("tree_sitter_python", "language"),
    ".pyi": ("tree_sitter_python", "language"),
    ".js": ("tree_sitter_javascript", "language"),
    ".mjs": ("tree_sitter_javascript", "language"),
    ".cjs": ("tree_sitter_javascript", "language"),
    ".jsx": ("tree_sitter_javascript", "language"),
    ".ts": ("tree_sitter_typescript", "language_typescript"),
    ".mts": ("tree_sitter_typescript", "language_typescript"),
    ".cts": ("tree_sitter_typescript", "language_typescript"),
    ".tsx": ("tree_sitter_typescript", "language_tsx"),
    ".go": ("tree_sitter_go", "language"),
    ".rs": ("tree_sitter_rust", "language"),
    ".java": ("tree_sitter_java", "language"),
    ".c": ("tree_sitter_c", "language"),
    ".h": ("tree_sitter_c", "language"),
    ".cc": ("tree_sitter_cpp", "language"),
    ".cpp": ("tree_sitter_cpp", "language"),
    ".hpp": ("tree_sitter_cpp", "language"),
}
_FUNCTIONS = frozenset({
    "function_declaration", "generator_function_declaration", "method_definition", "method_declaration",
    "constructor_declaration", "function_item", "function_definition",
})  # fmt: skip
_HOLDERS = frozenset({
    "class_declaration", "abstract_class_declaration", "class", "impl_item", "trait_item", "interface_declaration",
    "enum_declaration", "record_declaration", "class_specifier", "struct_specifier", "namespace_definition", "mod_item",
    "internal_module", "namespace_declaration",
})  # fmt: skip
_VALUES = frozenset({"arrow_function", "function_expression", "function", "generator_function"})
_NAMES = frozenset({
    "identifier", "property_identifier", "field_identifier", "type_identifier", "shorthand_property_identifier",
    "private_property_identifier", "scoped_identifier", "package_identifier",
})  # fmt: skip
_DOC_ABOVE = frozenset({"comment", "line_comment", "block_comment", "decorator", "attribute_item", "annotation"})


@dataclass(frozen=True, slots=True)
class Definition:
    """A function or method: where it is, its text up to its body, and the body's range in bytes of UTF-8.

    `public` is what the language lets others use: exported, `pub`, capitalised in Go, not private in Java.
    """

    span: Span
    signature: str
    body_start: int
    body_end: int
    start: int
    end: int
    public: bool


def grammar_of(path: str) -> str:
    """Which languages can be read: a name for the grammar, "" for none."""
    module, function = _GRAMMARS.get(PurePosixPath(path).suffix, ("", ""))
    return f"{module}:{function}" if module else ""


def is_source(path: str) -> bool:
    """Whether a path names source of a language that is read here."""
    return PurePosixPath(path).suffix in _GRAMMARS


@cache
def _language(grammar: str) -> ts.Language:
    module, function = grammar.split(":")
    return ts.Language(getattr(importlib.import_module(module), function)())  # pyright: ignore[reportDeprecated]


@lru_cache(maxsize=256)
def _tree(grammar: str, text: str) -> ts.Tree:
    return ts.Parser(_language(grammar)).parse(text.encode())


def root_of(path: str, text: str) -> ts.Node | None:
    """The syntax tree of a text; None for a language that is not read here."""
    grammar = grammar_of(path)
    return _tree(grammar, text).root_node if grammar else None


def num_errors(path: str, text: str) -> int:
    """How many places of a text are not of its language; 0 where the language is not read here."""
    root = root_of(path, text)
    return sum(1 for node in walk(root) if node.is_error or node.is_missing) if root and root.has_error else 0


def first_error(path: str, text: str) -> str:
    """Where a text is not of its language, as a sentence; "" where it is."""
    root = root_of(path, text)
    if root is None or not root.has_error:
        return ""
    for node in walk(root):
        if node.is_missing:
            return f"line {node.start_point.row + 1}: a {node.type} is missing"
        if node.is_error:
            shown = text_of(node).strip().splitlines()
            return f"line {node.start_point.row + 1}: {shown[0][:60] if shown else 'something'} does not belong there"
    return "it does not parse"


def walk(node: ts.Node) -> Iterator[ts.Node]:
    """A node and all below it, in the order of the text."""
    pending = [node]
    while pending:
        here = pending.pop()
        yield here
        pending.extend(reversed(here.children))


def text_of(node: ts.Node) -> str:
    """A node's text."""
    return (node.text or b"").decode("utf-8", "replace")


def definitions(path: str, text: str) -> list[Definition]:
    """Functions and methods in the order of the text; inner functions belong to their outermost."""
    root = root_of(path, text)
    return list(_definitions(root, "", exported=False)) if root else []


def spans_of(path: str, text: str) -> list[Span]:
    """Where the functions of a text are."""
    return [definition.span for definition in definitions(path, text)]


def _definitions(node: ts.Node, prefix: str, *, exported: bool) -> Iterator[Definition]:
    for child in node.children:
        if child.type == "export_statement":
            yield from _definitions(child, prefix, exported=True)
        elif child.type in _FUNCTIONS:
            if found := _definition(child, child, prefix, exported):
                yield found
        elif child.type in ("lexical_declaration", "variable_declaration"):
            for declarator in child.children:
                value = declarator.child_by_field_name("value")
                if (
                    value is not None
                    and value.type in _VALUES
                    and (found := _definition(child, value, prefix, exported))
                ):
                    yield found
        elif child.type in _HOLDERS:
            name = child.child_by_field_name("type") if child.type == "impl_item" else child.child_by_field_name("name")
            inner = child.child_by_field_name("body")
            label = re.sub(r"<.*", "", text_of(name), flags=re.DOTALL) if name else ""
            if inner is not None:
                yield from _definitions(inner, f"{prefix}{label}." if label else prefix, exported=exported)
        elif child.type in ("linkage_specification", "declaration_list", "ambient_declaration", "template_declaration"):
            yield from _definitions(child, prefix, exported=exported)


def _definition(whole: ts.Node, function: ts.Node, prefix: str, exported: bool) -> Definition | None:
    body = function.child_by_field_name("body")
    name = _name(whole, function)
    if body is None or not name:
        return None
    outer = whole.parent if whole.parent is not None and whole.parent.type == "export_statement" else whole
    if function.type == "method_declaration" and (receiver := function.child_by_field_name("receiver")):
        kind = [text_of(n) for n in walk(receiver) if n.type == "type_identifier"]
        prefix = f"{kind[0]}." if kind else prefix
    before = outer.prev_sibling
    first = outer.start_point.row
    while before is not None and before.type in ("decorator", "attribute_item") and before.end_point.row >= first - 1:
        first = before.start_point.row
        before = before.prev_sibling
    raw = _source(whole)
    signature = raw[outer.start_byte : body.start_byte].decode("utf-8", "replace").strip()
    span = Span(f"{prefix}{name}", first + 1, outer.end_point.row + 1, outer.start_point.row + 1)
    public = exported or _is_public(function, name, signature)
    return Definition(span, signature, body.start_byte, body.end_byte, outer.start_byte, outer.end_byte, public)


def _source(node: ts.Node) -> bytes:
    while node.parent is not None:
        node = node.parent
    # a root starts at its first token, not at the first byte
    return b" " * node.start_byte + (node.text or b"")


def _name(whole: ts.Node, function: ts.Node) -> str:
    node = function.child_by_field_name("name")
    if node is None and function.type in _VALUES:
        for declarator in whole.children:
            if declarator.child_by_field_name("value") == function:
                node = declarator.child_by_field_name("name")
    if node is None and function.type == "function_definition":
        declarator = function.child_by_field_name("declarator")
        while declarator is not None and (inner := declarator.child_by_field_name("declarator")):
            declarator = inner
        node = declarator
    return text_of(node).replace("::", ".") if node is not None else ""


def _is_public(function: ts.Node, name: str, signature: str) -> bool:
    match function.type:
        case "function_item":
            return signature.startswith("pub")
        case "method_declaration" | "constructor_declaration" if "func" not in signature.split("(", maxsplit=1)[0]:
            return not re.search(r"\bprivate\b", signature)
        case "method_definition":
            return not name.startswith(("#", "_")) and not re.match(r"\s*private\b", signature)
        case "function_definition":
            return not re.match(r"\s*static\b", signature)
        case _:
            return name[:1].isupper() if re.match(r"func\b", signature) else False


def names_in(path: str, text: str) -> list[str]:
    """Names a text uses, in its order, each once."""
    root = root_of(path, text)
    found: dict[str, None] = {}
    for node in walk(root) if root else ():
        if node.type in _NAMES and not node.children:
            found.setdefault(text_of(node))
    return list(found)


def tokens_without_comments(path: str, text: str) -> list[str]:
    """The leaves of the tree but comments: two texts with the same ones are the same program."""
    root = root_of(path, text)
    if root is None:
        return text.split()
    return [text_of(node) for node in _leaves(root)]


def _leaves(node: ts.Node) -> Iterator[ts.Node]:
    if node.type in ("comment", "line_comment", "block_comment"):
        return
    if not node.children or node.type in ("string", "template_string", "string_literal", "raw_string_literal"):
        yield node
        return
    for child in node.children:
        yield from _leaves(child)


def comments(path: str, text: str) -> list[tuple[int, str]]:
    """Comments with the line (from 1) each begins at."""
    root = root_of(path, text)
    kinds = ("comment", "line_comment", "block_comment")
    return [(n.start_point.row + 1, text_of(n)) for n in walk(root) if n.type in kinds] if root else []


def comment_above(path: str, text: str, definition: Definition) -> tuple[int, int] | None:
    """First and last line (from 1) of the comment that stands directly above a definition."""
    root = root_of(path, text)
    if root is None:
        return None
    wanted = definition.span.first_line - 2
    found: tuple[int, int] | None = None
    for node in reversed([n for n in walk(root) if n.type in ("comment", "line_comment", "block_comment")]):
        end = node.end_point.row - (
            1 if node.end_point.column == 0 and node.end_point.row > node.start_point.row else 0
        )
        if end == wanted:
            found = (node.start_point.row + 1, (found[1] if found else end + 1))
            wanted = node.start_point.row - 1
    return found
