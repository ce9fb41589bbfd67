"""Finds what is missing in a file: a marked place, or the body of a stub; and fills it, with an answer or with a trap.

Text in, text out; asks nobody and runs nothing. A trap is code that fails when it is reached: where a check does not
fail with a trap in the hole, it says nothing of what is put there.
"""

from __future__ import annotations

import ast
import itertools
import re
import textwrap
import warnings
from dataclasses import dataclass
from pathlib import PurePosixPath

from garzone.agent.syntax import definitions, num_errors
from garzone.agent.target import Function, Span, functions, is_python, node_at, parse, split_lines

# `<fill>`, alone or as the whole of a comment
MARK = re.compile(r"(?:#|//)[ \t]*<(?:fill|hole)>|/\*[ \t]*<(?:fill|hole)>[ \t]*\*/|<(?:fill|hole)>", re.IGNORECASE)
_STUB_BODIES = re.compile(
    r"""^\{?\s*(?:(?://[^\n]*|/\*.*?\*/|\#[^\n]*)\s*)*
    (?:throw\s+new\s+Error\([^)]*\)\s*;?|throw\s+new\s+UnsupportedOperationException\([^)]*\)\s*;?|todo!\([^)]*\)\s*;?|
    unimplemented!\([^)]*\)\s*;?|panic!?\(["'][^)]*\)\s*;?)?
    \s*(?:(?://[^\n]*|/\*.*?\*/)\s*)*\}?$""",
    re.VERBOSE | re.DOTALL,
)
_TRAPS = {
    ".py": "raise NotImplementedError('garzone')", ".pyi": "raise NotImplementedError('garzone')",
    ".go": 'panic("garzone")', ".rs": 'panic!("garzone")', ".java": 'throw new RuntimeException("garzone");',
    ".c": "__builtin_trap();", ".h": "__builtin_trap();", ".cpp": "__builtin_trap();", ".cc": "__builtin_trap();",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Hole:
    """A part of a text that is missing: characters `start` to `end`, in `span` where that is a function's.

    `is_body` says that the whole body of a stub is asked for; otherwise the place was marked.
    """

    start: int
    end: int
    span: Span | None
    is_body: bool


def find_holes(path: str, text: str) -> list[Hole]:
    """Marked places; where there are none, the bodies of stubs."""
    marks = [Hole(m.start(), m.end(), _around(path, text, m), False) for m in MARK.finditer(text)]
    return marks or ([*_python_stubs(text)] if is_python(path) else [*_stubs(path, text)])


def _around(path: str, text: str, mark: re.Match[str]) -> Span | None:
    """The function a mark is in, as far as the text around it parses."""
    line = text.count("\n", 0, mark.start()) + 1
    if is_python(path):
        for filling in ("pass", "None"):
            tree = parse(text[: mark.start()] + filling + text[mark.end() :])
            if tree:
                return next((s for s in functions(tree) if s.first_line <= line <= s.last_line), None)
        return None
    return next((d.span for d in definitions(path, text) if d.span.first_line <= line <= d.span.last_line), None)


def _python_stubs(text: str) -> list[Hole]:
    tree = parse(text)
    found: list[Hole] = []
    offsets = line_offsets(text)
    for span in functions(tree) if tree else ():
        node = node_at(tree, span) if tree else None
        if node is None or not _is_stub(node):
            continue
        body = node.body[len(lead_in(node)) :]
        if body and body[0].lineno > node.lineno:
            start = offsets[body[0].lineno - 1] + body[0].col_offset
            found.append(Hole(start, offsets[span.last_line - 1] + len(_line(text, span.last_line)), span, True))
        elif not body:  # a docstring, perhaps with imports: the body goes behind them
            end = offsets[span.last_line - 1] + len(_line(text, span.last_line))
            found.append(Hole(end, end, span, True))
    return found


def _line(text: str, number: int) -> str:
    return split_lines(text)[number - 1].rstrip("\r\n")


def lead_in(node: Function) -> list[ast.stmt]:
    """What a function's body begins with before it does anything: its docstring, and imports around it."""
    return list(
        itertools.takewhile(lambda each: isinstance(each, ast.Import | ast.ImportFrom) or _is_text(each), node.body)
    )


def _is_text(statement: ast.stmt) -> bool:
    value = statement.value if isinstance(statement, ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str)


def _is_stub(node: Function) -> bool:
    lead = lead_in(node)
    rest = node.body[len(lead) :]
    # imports alone may be all that a function is for
    return all(map(_says_nothing, rest)) and bool(rest or any(map(_is_text, lead)))


def _says_nothing(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.Pass):
        return True
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
        return True  # `...`, or a string
    raised = statement.exc if isinstance(statement, ast.Raise) else None
    name = raised.func if isinstance(raised, ast.Call) else raised
    return isinstance(name, ast.Name) and name.id == "NotImplementedError"


def _stubs(path: str, text: str) -> list[Hole]:
    raw = text.encode()
    found: list[Hole] = []
    for d in definitions(path, text):
        body = raw[d.body_start : d.body_end].decode("utf-8", "replace")
        if body.startswith("{") and _STUB_BODIES.match(body):
            inner = body[1:-1]
            start = len(raw[: d.body_start].decode("utf-8", "replace")) + 1 + len(inner) - len(inner.lstrip())
            found.append(Hole(start, start + len(inner.strip()), d.span, True))
    return found


def line_offsets(text: str) -> list[int]:
    """Where each line begins, in characters."""
    offsets = [0]
    for line in split_lines(text):
        offsets.append(offsets[-1] + len(line))
    return offsets


def trapped(path: str, text: str, hole: Hole) -> str | None:
    """The text with a trap in its hole; None where none fits."""
    trap = _TRAPS.get(PurePosixPath(path).suffix, 'throw new Error("garzone");')
    needs_line = is_python(path) and hole.start == hole.end and hole.is_body
    margin = _margin(path, text, hole)
    fillings = [f"\n{margin}{trap}" if needs_line else trap]
    if not hole.is_body:
        if is_python(path):
            fillings += ["(_ for _ in ()).throw(NotImplementedError('garzone'))", f"{trap}\n{margin}"]
        elif PurePosixPath(path).suffix not in _TRAPS:
            fillings.append('(() => { throw new Error("garzone"); })()')
        if not text[: hole.start] or text[: hole.start].endswith(("\n", "\r")):
            fillings += [depth + trap for depth in _depths(text[: hole.start], text[hole.end :])]
    for filling in fillings:
        result = text[: hole.start] + filling + text[hole.end :]
        if not parses_worse(path, result):
            return result
    return None


def trapped_function(path: str, text: str, span: Span) -> str | None:
    """The text with a function's body replaced by a trap; None where that is not possible."""
    trap = _TRAPS.get(PurePosixPath(path).suffix, 'throw new Error("garzone");')
    if not is_python(path):
        raw = text.encode()
        for d in definitions(path, text):
            if d.span == span and raw[d.body_start : d.body_start + 1] == b"{":
                return (raw[: d.body_start] + b"{ " + trap.encode() + b" }" + raw[d.body_end :]).decode(
                    "utf-8", "replace"
                )
        return None
    tree = parse(text)
    node = node_at(tree, span) if tree else None
    if node is None or node.body[0].lineno == node.lineno:
        return None
    lines = split_lines(text)
    margin = " " * node.body[0].col_offset
    result = "".join([*lines[: node.body[0].lineno - 1], f"{margin}{trap}\n", *lines[span.last_line :]])
    return result if parse(result) else None


def parses_worse(path: str, text: str) -> bool:
    """Whether a text is not of its language."""
    if not is_python(path):
        return num_errors(path, text) > 0
    try:
        with warnings.catch_warnings(action="ignore"):
            compile(text, path, "exec", dont_inherit=True)  # sees more than the parser: a `return` outside a function
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return True
    return False


def _margin(path: str, text: str, hole: Hole) -> str:
    """What the lines of a filling start with."""
    if hole.is_body and hole.span is not None and hole.start == hole.end:
        line = split_lines(text)[hole.span.last_line - 1]
        if not is_python(path):
            return line[: len(line) - len(line.lstrip())] + "  "
    else:
        line = text[text.rfind("\n", 0, hole.start) + 1 : hole.start]
    return line[: len(line) - len(line.lstrip())]


def fill(path: str, text: str, hole: Hole, code: str) -> str | None:
    """The text with its hole filled by code, moved to the right indentation; None where nothing that parses comes out.

    Nothing but the hole changes. The code may be the missing part alone, or hold lines that stand around the hole.
    """
    code = code.strip("\n").rstrip()
    margin = _margin(path, text, hole)
    before, after = text[: hole.start], text[hole.end :]
    newline = "\r\n" if "\r\n" in text else "\n"
    for piece in [*_without_surroundings(before, after, code), code]:
        lines = textwrap.dedent(piece).strip("\n").splitlines()
        if not lines:
            continue
        moved = [lines[0], *(margin + line if line.strip() else "" for line in lines[1:])]
        empty = hole.is_body and hole.start == hole.end
        lead = newline + margin if empty else ""
        trail = newline + margin[:-2] if empty and not is_python(path) else ""
        fillings = [lead + newline.join(moved) + trail, lead + piece.strip() + trail]
        if not hole.is_body and (not before or before.endswith(("\n", "\r"))):
            # the depth of a line that is missing from its start is part of the answer; else that of its neighbours
            kept = piece.strip("\n").rstrip().splitlines()
            around = [newline.join(_shifted(lines, depth)) for depth in _depths(before, after)]
            first = [newline.join(kept)]
            indented = bool(kept) and kept[0][:1].isspace()
            fillings = [*first, *fillings, *around] if indented else [*around, *fillings, *first]
        for filling in fillings:
            result = before + filling + after
            if not parses_worse(path, result):
                return result
    return None


def _depths(before: str, after: str) -> list[str]:
    """Margins a whole line between two texts may have: that of the line before, one deeper after a `:`, of the next."""
    above = next((line for line in reversed(before.splitlines()) if line.strip()), "")
    below = next((line for line in after.splitlines() if line.strip()), "")
    margins = [line[: len(line) - len(line.lstrip())] for line in (above, below)]
    return [margins[0] + "    ", *margins] if above.rstrip().endswith((":", "{", "(")) else margins


def _shifted(lines: list[str], margin: str) -> list[str]:
    return [margin + line if line.strip() else "" for line in lines]


def _without_surroundings(before: str, after: str, code: str) -> list[str]:
    """The code without lines that repeat what stands before or after the hole; only where some do."""
    lines = code.splitlines()
    head = [line.strip() for line in before.splitlines() if line.strip()][-40:]
    tail = [line.strip() for line in after.splitlines() if line.strip()][:40]
    found: list[str] = []
    start = 0
    for cut in range(min(len(lines), 40), 0, -1):
        said = [line.strip() for line in lines[:cut] if line.strip()]
        if said and said == head[-len(said) :]:
            start = cut
            break
    end = len(lines)
    for cut in range(start, len(lines)):
        said = [line.strip() for line in lines[cut:] if line.strip()]
        if said and said == tail[: len(said)]:
            end = cut
            break
    if start or end < len(lines):
        found.append("\n".join(lines[start:end]))
    return found
