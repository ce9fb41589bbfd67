"""Reads what the model wrote and applies it to one file: text in, text out.

Touches no disk and runs nothing. Whatever cannot be read for certain is an `EditMiss`, whose reason becomes part of the
next prompt; nothing is ever guessed into another place. Outside of the target (and of imports the target newly needs)
the text stays as it is, to the byte. This is for Python; `edit_syntax.py` does the same for other languages.
"""

from __future__ import annotations

import ast
import re
import textwrap
from dataclasses import dataclass

from garzone.agent.syntax import tokens_without_comments
from garzone.agent.target import Function, Span, functions, is_python, names_used, node_at, parse, split_lines

_FENCE = re.compile(r"^(?P<indent>[ \t]*)(?P<fence>`{3,}|~{3,})(?P<info>[^\n`]*)$", re.MULTILINE)
MAX_ANSWER_CHARS = 200_000  # a longer answer is a loop, and parsing it would take seconds
MAX_CUTS = 40  # places where an answer that does not parse is tried to be cut
_CODE_START = re.compile(r"^(?:[ \t]*@\w|[ \t]*(?:async )?def |[ \t]*class |import |from )", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class EditMiss:
    """An answer that cannot be applied, and why, as a sentence to the model."""

    reason: str


@dataclass(frozen=True, slots=True)
class Edited:
    """The whole new text of the file."""

    text: str


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced code block. `closed` is False when the answer ended inside."""

    info: str
    code: str
    closed: bool


def code_blocks(answer: str) -> list[Block]:
    """The fenced blocks of an answer, in order. A fence closes with at least as many of the same marks and no words."""
    blocks: list[Block] = []
    opened: re.Match[str] | None = None
    for mark in _FENCE.finditer(answer):
        if opened is None:
            opened = mark
            continue
        same = mark["fence"][0] == opened["fence"][0] and len(mark["fence"]) >= len(opened["fence"])
        if same and not mark["info"].strip():
            blocks.append(Block(opened["info"].strip(), answer[opened.end() + 1 : mark.start()], True))
            opened = None
        elif same:  # a new block begins where the last one was never closed
            blocks.append(Block(opened["info"].strip(), answer[opened.end() + 1 : mark.start()], False))
            opened = mark
    if opened is not None:
        blocks.append(Block(opened["info"].strip(), answer[opened.end() + 1 :], False))
    return blocks


def bare_code(answer: str) -> str:
    """The code before a fence that was never opened, only closed, as some templates make models write; else ""."""
    mark = _FENCE.search(answer)
    return answer[: mark.start()] if mark and _CODE_START.match(answer.lstrip()) else ""


def _readings(answer: str, *, shorten: bool = True) -> list[str]:
    """Everything in an answer that may be meant as the code, the likeliest first; what does not parse, shortened."""
    answer = answer.replace("\r\n", "\n")
    blocks = code_blocks(answer)
    readings = [block.code for block in blocks if block.code.strip()]
    # a docstring may hold fences of its own: from the first opening to each later fence
    marks = list(_FENCE.finditer(answer))
    readings += [answer[marks[0].end() + 1 : mark.start()] for mark in reversed(marks[2:])] if len(marks) > 2 else []
    if bare := bare_code(answer):
        readings.insert(0, bare)
    if not blocks:
        readings.append(answer)
        if start := _CODE_START.search(answer):
            readings.append(answer[start.start() :])
    return [*readings, *filter(None, map(_shortened, readings if shorten else ()))]


def _shortened(code: str) -> str:
    """The definitions at the beginning of code that does not parse, each of them whole; "" where there are none.

    Small models write on behind the code: what it prints, prose, one more attempt that is cut off in its middle.
    """
    if parse(textwrap.dedent(code)) is not None:
        return ""
    lines = split_lines(code)
    margin = min((len(line) - len(line.lstrip(" ")) for line in lines if line.strip()), default=0)
    cuts = [n for n, line in enumerate(lines) if n and line[margin : margin + 1].strip()]
    for cut in reversed(cuts[:MAX_CUTS]):
        part = "".join(lines[:cut])
        tree = parse(textwrap.dedent(part))
        if tree and any(isinstance(node, Function | ast.ClassDef) for node in tree.body):
            return part
    return ""


def replace_function(text: str, span: Span, answer: str) -> Edited | EditMiss:
    """Put the answer's version of one Python function in the place of the old one.

    Accepts the function alone, with wrong indentation, inside its class, among other code, or a whole file. Imports the
    file lacks are added below its own; other definitions with new names go in front of the target. Decorators and the
    docstring are kept where the answer leaves them out.
    """
    if len(answer) > MAX_ANSWER_CHARS:
        return EditMiss("The answer was far too long. Write only the one function.")
    tree = parse(text)
    original = node_at(tree, span) if tree else None
    if tree is None or original is None:
        return EditMiss(f"The file has no function {span.qualname} that could be replaced.")
    reasons: list[str] = []
    for reading in _readings(answer):
        code = textwrap.dedent(reading.expandtabs(4) if "\t" in reading else reading).strip("\n") + "\n"
        written = parse(code)
        if written is None:
            reasons.append(syntax_complaint(code))
            continue
        found = _definition(written, span)
        if found is None:
            reasons.append(f"The code block does not define {span.name}. Keep the name {span.name}.")
            continue
        if complaint := signature_complaint(original, found):
            reasons.append(complaint)
            continue
        return _spliced(text, tree, span, original, code=code, written=written, found=found)
    return EditMiss(reasons[0] if reasons else "There was no code block in the answer.")


def replace_file(text: str, path: str, answer: str) -> Edited | EditMiss:
    """Put the answer's code block in the place of a whole Python file; it may be new (`text` is "")."""
    if len(answer) > MAX_ANSWER_CHARS:
        return EditMiss("The answer was far too long. Write the file once.")
    reasons: list[str] = []
    tree = parse(text) if is_python(path) else None
    for reading in _readings(answer, shorten=not text.strip()):  # else what a file had at its end might be lost
        written = parse(reading)
        if written is None:
            reasons.append(syntax_complaint(reading))
            continue
        missing = sorted(lost_names(tree, written)) if tree else []
        if missing:
            reasons.append(f"The code block leaves out {', '.join(missing[:5])}. Write the whole file.")
        elif not written.body:
            reasons.append("The code block is empty.")
        else:
            return Edited(in_style_of(text, reading))
    return EditMiss(reasons[0] if reasons else "There was no code block in the answer.")


def same_program(path: str, before: str, after: str) -> bool:
    """Whether two texts of a file mean the same to the language: comments and layout do not count in Python."""
    if before == after:
        return True
    if not is_python(path):
        return tokens_without_comments(path, before) == tokens_without_comments(path, after)
    return fingerprint(path, before) == fingerprint(path, after)


def fingerprint(path: str, text: str) -> str:
    """A text that two candidates share when they are the same program."""
    tree = parse(text) if is_python(path) else None
    return ast.dump(tree) if tree else "\0".join(tokens_without_comments(path, text))


def _definition(written: ast.Module, span: Span) -> Function | None:
    """The target in the answer: by its full name if there, else a function of its name anywhere at class or top level.

    A model that was shown a bug sometimes writes the function twice; the last one is what Python would use.
    """
    found = [candidate for candidate in functions(written) if candidate.name == span.name]
    exact = [candidate for candidate in found if candidate.qualname == span.qualname]
    chosen = (exact or found)[-1:]
    return node_at(written, chosen[0]) if chosen else None


def signature_complaint(before: Function, after: Function) -> str | None:
    """Why the answer's signature would break callers: a parameter gone, renamed or moved, or a new one to be given."""
    if type(before) is not type(after):
        return f"{before.name} must stay {'async def' if isinstance(before, ast.AsyncFunctionDef) else 'def'}."
    was, now = before.args, after.args
    shown = f"Keep the signature: def {before.name}({ast.unparse(was)})"
    old, new = [a.arg for a in (*was.posonlyargs, *was.args)], [a.arg for a in (*now.posonlyargs, *now.args)]
    if new[: len(old)] != old or len(new) - len(now.defaults) > max(len(old) - len(was.defaults), 0):
        return shown
    old_keywords, new_keywords = {a.arg for a in was.kwonlyargs}, {a.arg for a in now.kwonlyargs}
    required = {a.arg for a, default in zip(now.kwonlyargs, now.kw_defaults, strict=True) if default is None}
    if old_keywords - new_keywords or required - old_keywords:
        return shown
    if bool(was.vararg) != bool(now.vararg) or bool(was.kwarg) != bool(now.kwarg):
        return shown
    return None


def _spliced(
    text: str, tree: ast.Module, span: Span, original: Function, *, code: str, written: ast.Module, found: Function
) -> Edited | EditMiss:
    lines = split_lines(text)
    newline = _newline(lines)
    code_lines = split_lines(code)
    indent = re.match(r"[ \t]*", lines[span.def_line - 1])
    base = indent[0] if indent else ""
    body = code_lines[found.lineno - 1 : found.end_lineno]
    if not found.decorator_list:
        decorators = lines[span.first_line - 1 : span.def_line - 1]
    else:
        first = min(decorator.lineno for decorator in found.decorator_list)
        decorators = _indented(code_lines[first - 1 : found.lineno - 1], base, tabs=False, newline=newline)
    if ast.get_docstring(original, clean=False) and not ast.get_docstring(found, clean=False):
        body = _with_docstring(body, found, original, lines)
    tabs = any(line.startswith(base + "\t") for line in lines[span.def_line : span.last_line])
    replacement = [*decorators, *_indented(body, base, tabs=tabs, newline=newline)]
    if not lines[span.last_line - 1].endswith(("\n", "\r")):
        replacement[-1] = replacement[-1].rstrip("\r\n")
    helpers = _helpers(tree, written, found, code_lines)
    if helpers and not base:
        replacement[:0] = [line + newline for helper in helpers for line in [*helper, "", ""]]
    result = [*lines[: span.first_line - 1], *replacement, *lines[span.last_line :]]
    imports = _new_imports(tree, written, found)
    if imports:
        at = _import_line(tree)
        result[at:at] = [line + newline for line in imports]
    new_text = "".join(result)
    if parse(new_text) is None:
        return EditMiss("The function does not fit into the file: check its indentation.")
    return Edited(new_text)


def _with_docstring(body: list[str], found: Function, original: Function, lines: list[str]) -> list[str]:
    """The answer's function with the original's docstring in front of its first statement."""
    first, old = found.body[0], original.body[0]
    if first.lineno == found.lineno:
        return body  # `def f(): return 1` has no room for it
    at = first.lineno - found.lineno
    margin = " " * first.col_offset
    old_lines = [line.rstrip("\r\n") for line in lines[old.lineno - 1 : old.end_lineno]]
    old_margin = lines[old.lineno - 1][: len(lines[old.lineno - 1]) - len(lines[old.lineno - 1].lstrip())]
    moved = [margin + line.removeprefix(old_margin) + "\n" if line.strip() else "\n" for line in old_lines]
    return [*body[:at], *moved, *body[at:]]


def _indented(code: list[str], base: str, *, tabs: bool, newline: str) -> list[str]:
    """Code at another indentation and with another line break; the inside of multi-line strings moves along."""
    margin = min((len(line) - len(line.lstrip(" ")) for line in code if line.strip()), default=0)
    result: list[str] = []
    for line in code:
        content = line.rstrip("\r\n")[margin:]
        if tabs:
            depth = (len(content) - len(content.lstrip(" "))) // 4
            content = "\t" * depth + content[depth * 4 :]
        result.append((base + content if content.strip() else "") + newline)
    return result


def _helpers(tree: ast.Module, written: ast.Module, found: Function, code_lines: list[str]) -> list[list[str]]:
    """Top-level functions of the answer that are new to the file and that the target uses."""
    known = {node.name for node in ast.walk(tree) if isinstance(node, Function | ast.ClassDef)}
    used = set(names_used(found))
    return [
        [line.rstrip("\r\n") for line in code_lines[node.lineno - 1 : node.end_lineno]]
        for node in written.body
        if isinstance(node, Function) and node is not found and node.name in used - known
    ]


def _new_imports(tree: ast.Module, written: ast.Module, found: Function) -> list[str]:
    """Import lines of the answer that bind a name the target uses and the file does not have."""
    have = {alias.asname or alias.name.partition(".")[0] for node in ast.walk(tree) for alias in _aliases(node)}
    have |= {name.id for name in ast.walk(tree) if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)}
    used = set(names_used(found))
    lines: list[str] = []
    for node in written.body:
        wanted = [a for a in _aliases(node) if (a.asname or a.name.partition(".")[0]) in used - have]
        if wanted and isinstance(node, ast.Import):
            lines.append(ast.unparse(ast.Import(wanted)))
        elif wanted and isinstance(node, ast.ImportFrom):
            lines.append(ast.unparse(ast.ImportFrom(node.module, wanted, node.level)))
    return lines


def _aliases(node: ast.AST) -> list[ast.alias]:
    return node.names if isinstance(node, ast.Import | ast.ImportFrom) else []


def _import_line(tree: ast.Module) -> int:
    """The line after which a new import goes: the last import at the top, else the docstring, else the start."""
    at = 0
    for position, node in enumerate(tree.body):
        is_docstring = position == 0 and isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if not is_docstring and not isinstance(node, ast.Import | ast.ImportFrom):
            break
        at = node.end_lineno or node.lineno
    return at


def lost_names(before: ast.Module, after: ast.Module) -> set[str]:
    """Public functions and classes that are not there any more."""
    return _public_names(before) - _public_names(after)


def _public_names(tree: ast.Module) -> set[str]:
    named = [node for node in tree.body if isinstance(node, Function | ast.ClassDef)]
    return {node.name for node in named if not node.name.startswith("_")}


def _newline(lines: list[str]) -> str:
    first = lines[0] if lines else "\n"
    return "\r\n" if first.endswith("\r\n") else "\r" if first.endswith("\r") else "\n"


def in_style_of(text: str, code: str) -> str:
    """Code with the line breaks of the file it replaces, and a line break at the end only if that had one."""
    newline = _newline(split_lines(text))
    body = newline.join(line.rstrip("\r\n") for line in split_lines(code.strip("\n") + "\n"))
    return body + newline if not text or text.endswith(("\n", "\r")) else body


def syntax_complaint(code: str) -> str:
    """Why code does not parse, as a sentence to the model."""
    try:
        ast.parse(code)
    except SyntaxError as error:
        return f"The code block is not valid Python: line {error.lineno}: {error.msg}."
    except (
        ValueError,
        RecursionError,
        MemoryError,
    ) as error:  # what else the parser raises for text that is no program
        return f"The code block cannot be parsed: {error}."
    return "The code block could not be read."
