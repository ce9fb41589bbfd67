"""Makes mutants: small wrong versions of code, to see whether tests notice. Text in, texts out; runs nothing.

Python is mutated through `ast`; other languages through the operators and literals that tree-sitter finds. The choice
is the same every time, spread over the code where there are more than wanted.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import tree_sitter as ts

from garzone.agent.holes import trapped_function
from garzone.agent.syntax import definitions, num_errors, root_of, text_of, walk
from garzone.agent.target import Function, Span, is_python, parse

MAX_MUTANTS = 40


@dataclass(frozen=True, slots=True)
class Mutant:
    """A file's text with one fault, which line it is on (from 1), and what was done."""

    text: str
    line: int
    what: str


_COMPARE: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip
_ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.FloorDiv, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult, ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.BitXor: ast.BitAnd,
    ast.LShift: ast.RShift, ast.RShift: ast.LShift,
}  # fmt: skip


def mutants_of(path: str, text: str, spans: Sequence[Span] = (), limit: int = MAX_MUTANTS) -> list[Mutant]:
    """Mutants of a file.

    Args:
        path: decides the language.
        text: the code.
        spans: mutate only within these functions; none means everywhere.
        limit: at most so many, spread over the code.
    """
    found = list(_python(text, spans) if is_python(path) else _others(path, text, spans))
    if not found and not is_python(path):  # nothing but calls: at least that they happen must be noticed
        sprung = [(d.span, trapped_function(path, text, d.span)) for d in definitions(path, text)]
        found = [Mutant(t, s.def_line, "the body left out") for s, t in sprung if t and (not spans or s in spans)]
    unique = list({mutant.text: mutant for mutant in found if mutant.text != text}.values())
    if len(unique) <= limit:
        return unique
    step = len(unique) / limit
    return [unique[int(i * step)] for i in range(limit)]


def _within(line: int, spans: Sequence[Span]) -> bool:
    return not spans or any(span.first_line <= line <= span.last_line for span in spans)


def _python(text: str, spans: Sequence[Span]) -> Iterator[Mutant]:
    tree = parse(text)
    if tree is None:
        return
    nodes = list(ast.walk(tree))
    silent = _annotations(tree) | _docstrings(tree)
    order = sorted(
        (i for i, node in enumerate(nodes) if hasattr(node, "lineno") and node not in silent),
        key=lambda i: (getattr(nodes[i], "lineno", 0), getattr(nodes[i], "col_offset", 0)),
    )
    for index in order:
        node = nodes[index]
        line = int(getattr(node, "lineno", 0))
        if not _within(line, spans):
            continue
        for number, what in enumerate(_python_faults(node)):
            changed = copy.deepcopy(tree)
            twin = list(ast.walk(changed))[index]
            _apply(changed, twin, number)
            try:
                yield Mutant(ast.unparse(ast.fix_missing_locations(changed)) + "\n", line, what)
            except (ValueError, RecursionError):
                continue


def _annotations(tree: ast.Module) -> set[ast.AST]:
    found: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, Function) and node.returns:
            found |= set(ast.walk(node.returns))
        annotation = getattr(node, "annotation", None)
        if isinstance(annotation, ast.AST):
            found |= set(ast.walk(annotation))
    return found


def _docstrings(tree: ast.Module) -> set[ast.AST]:
    found: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            found |= {node, node.value}
    return found


def _python_faults(node: ast.AST) -> list[str]:
    """What can be done to a node; `_apply` does the one of that number."""
    match node:
        case ast.Compare(ops=[op, *_]):
            return ["a comparison turned"] if type(op) in _COMPARE else []
        case ast.BinOp(op=op):
            return ["an operator exchanged"] if type(op) in _ARITHMETIC else []
        case ast.AugAssign(op=op):
            return ["an operator exchanged", "a statement left out"] if type(op) in _ARITHMETIC else []
        case ast.BoolOp():
            return ["and for or", "a condition left out"]
        case ast.UnaryOp(op=ast.Not() | ast.USub()):
            return ["a negation left out"]
        case ast.Constant(value=value) if isinstance(value, bool | int | float | str):
            return ["a constant changed"]
        case ast.Return(value=value) if value is not None and not (
            isinstance(value, ast.Constant) and value.value is None
        ):
            return ["nothing returned"]
        case ast.If() | ast.While() | ast.IfExp():
            return ["a condition turned"]
        case ast.Break() | ast.Continue():
            return ["break for continue"]
        case ast.Expr(value=ast.Call()):
            return ["a statement left out"]
        case ast.Call(func=ast.Name(id="min" | "max" | "any" | "all")):
            return ["a function exchanged"]
        case _:
            return []


_TWINS = {"min": "max", "max": "min", "any": "all", "all": "any"}


def _apply(tree: ast.Module, node: ast.AST, number: int) -> None:
    match node:
        case ast.Compare():
            node.ops[0] = _COMPARE[type(node.ops[0])]()
        case ast.AugAssign() if number == 1:
            _replace(tree, node, ast.Pass())
        case ast.BinOp() | ast.AugAssign():
            node.op = _ARITHMETIC[type(node.op)]()
        case ast.BoolOp() if number == 1:
            node.values = node.values[1:]
            if len(node.values) == 1:
                _replace(tree, node, node.values[0])
        case ast.BoolOp():
            node.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        case ast.UnaryOp():
            _replace(tree, node, node.operand)
        case ast.Constant():
            value = node.value
            if isinstance(value, bool):
                node.value = not value
            elif isinstance(value, int | float):
                node.value = value + 1
            else:
                node.value = "" if value else "garzone"
        case ast.Return():
            node.value = ast.Constant(None)
        case ast.If() | ast.While() | ast.IfExp():
            node.test = ast.UnaryOp(ast.Not(), node.test)
        case ast.Break() | ast.Continue():
            _replace(tree, node, ast.Continue() if isinstance(node, ast.Break) else ast.Break())
        case ast.Expr():
            _replace(tree, node, ast.Pass())
        case ast.Call(func=ast.Name() as name):
            name.id = _TWINS[name.id]
        case _:
            pass


def _replace(tree: ast.Module, old: ast.AST, new: ast.AST) -> None:
    for parent in ast.walk(tree):
        for name, value in ast.iter_fields(parent):
            if value is old:
                setattr(parent, name, new)
                return
            if isinstance(value, list) and any(item is old for item in value):  # pyright: ignore[reportUnknownVariableType]
                setattr(parent, name, [new if item is old else item for item in value])  # pyright: ignore[reportUnknownVariableType]
                return


_OPERATORS = {
    "<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "==", "===": "!==", "!==": "===", "+": "-", "-": "+",
    "*": "/", "/": "*", "%": "*", "&&": "||", "||": "&&", "+=": "-=", "-=": "+=", "*=": "+=", "/=": "*=", "++": "--",
    "--": "++",
}  # fmt: skip
_OPERATED = frozenset({
    "binary_expression", "augmented_assignment_expression", "update_expression", "assignment_statement",
    "compound_assignment_expr", "assignment_expression", "inc_statement", "dec_statement",
})  # fmt: skip
_NUMBERS = frozenset({"number", "int_literal", "integer_literal", "decimal_integer_literal", "number_literal"})
_STRINGS = frozenset({"string", "string_literal", "interpreted_string_literal"})


def _others(path: str, text: str, spans: Sequence[Span]) -> Iterator[Mutant]:
    root = root_of(path, text)
    if root is None:
        return
    raw = text.encode()
    bodies = [(d.body_start, d.body_end) for d in definitions(path, text) if not spans or d.span in spans]
    for node in walk(root):
        if not any(start <= node.start_byte and node.end_byte <= end for start, end in bodies):
            continue
        for new, what in _other_faults(node):
            mutated = (raw[: node.start_byte] + new.encode() + raw[node.end_byte :]).decode("utf-8", "replace")
            if num_errors(path, mutated) == 0:
                yield Mutant(mutated, node.start_point.row + 1, what)


def _other_faults(node: ts.Node) -> Iterator[tuple[str, str]]:
    shown, parent = text_of(node), node.parent
    if not node.is_named and parent is not None and parent.type in _OPERATED and shown in _OPERATORS:
        yield _OPERATORS[shown], "an operator exchanged"
    elif node.type in _NUMBERS and shown.isdigit():
        yield str(int(shown) + 1), "a constant changed"
    elif node.type in _STRINGS and (parent is None or "import" not in parent.type):
        yield ('""' if len(shown) > 2 else '"garzone"'), "a constant changed"
    elif node.type in ("true", "false") or node.type == "boolean_literal":
        yield ("false" if shown == "true" else "true"), "a constant changed"
    elif node.type in ("if_statement", "if_expression", "while_statement"):
        condition = node.child_by_field_name("condition")
        if condition is not None:
            inner = text_of(condition)
            bare = inner[1:-1] if inner.startswith("(") and inner.endswith(")") else inner
            whole = f"(!({bare}))" if inner.startswith("(") else f"!({bare})"
            start, end = condition.start_byte - node.start_byte, condition.end_byte - node.start_byte
            raw = shown.encode()
            yield (raw[:start] + whole.encode() + raw[end:]).decode("utf-8", "replace"), "a condition turned"
    elif node.type == "unary_expression" and shown.startswith("!"):
        yield shown[1:], "a negation left out"
    elif node.type in ("break_statement", "continue_statement"):
        yield ("continue;" if shown.startswith("break") else "break;"), "break for continue"
    elif node.type == "expression_statement" and any(child.type == "call_expression" for child in node.children):
        yield ";", "a statement left out"
