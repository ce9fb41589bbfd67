"""Docstrings of Python source: puts them in, compares programs without them, says which names they speak of.

Text in, text out; runs nothing.
"""

from __future__ import annotations

import ast
import builtins
import doctest
import re
from collections.abc import Iterator
from dataclasses import dataclass

from garzone.agent.target import Function, parse, split_lines
from garzone.agent.vet import objections

Documented = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module
_SECTION = re.compile(
    r"^\s*(Args|Arguments|Parameters|Params|Returns?|Yields?|Raises|Throws|Examples?|Notes?|Attributes)\s*:?\s*$"
)
_ITEM = re.compile(r"^(\s*)`{0,2}\*{0,2}(\w+)`{0,2}\s*(?:\([^)]*\))?\s*:(?:\s|$)")
_SPHINX = re.compile(r":(param|parameter|arg|raises?|returns?|rtype|type)(?:\s+[\w\[\], .|]*?(\w+))?\s*:")


@dataclass(frozen=True, slots=True)
class Spoken:
    """What a docstring names."""

    parameters: tuple[str, ...] = ()
    exceptions: tuple[str, ...] = ()
    returns: bool = False


def documented(tree: ast.Module) -> Iterator[tuple[str, Documented]]:
    """Everything that can have a docstring, with its qualified name; the module is ""."""
    yield "", tree
    pending: list[tuple[str, Documented]] = [("", tree)]
    while pending:
        prefix, node = pending.pop(0)
        for child in node.body:
            if isinstance(child, Function | ast.ClassDef):
                name = f"{prefix}.{child.name}" if prefix else child.name
                yield name, child
                if isinstance(child, ast.ClassDef):
                    pending.append((name, child))


def bare(text: str) -> str | None:
    """The program without docstrings, as a text to compare; None where it does not parse."""
    tree = parse(text)
    if tree is None:
        return None
    for node in ast.walk(tree):
        if isinstance(node, Documented) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
        if isinstance(node, Function | ast.ClassDef) and _only_placeholder(node.body):
            node.body = [ast.Pass()]  # a docstring may take the place of `pass` or `...`
    return ast.dump(tree)


def _only_placeholder(body: list[ast.stmt]) -> bool:
    return len(body) == 1 and isinstance(body[0], ast.Pass)


def docstrings_in(text: str) -> dict[str, str]:
    """Qualified name -> docstring, of what has one."""
    tree = parse(text)
    found = {name: ast.get_docstring(node) for name, node in documented(tree)} if tree else {}
    return {name: doc for name, doc in found.items() if doc}


def put_in(text: str, name: str, docstring: str) -> str | None:
    """The text with the docstring of one function, class or module set; None where it has no room."""
    tree = parse(text)
    node = dict(documented(tree)).get(name) if tree else None
    if node is None or not node.body:
        return None
    lines = split_lines(text)
    newline = "\r\n" if text[:4096].count("\r\n") else "\n"
    first = node.body[0]
    if not isinstance(node, ast.Module) and first.lineno == node.lineno:
        return None  # `def f(): return 1`
    margin = "" if isinstance(node, ast.Module) else lines[first.lineno - 1][: first.col_offset]
    written = _literal(docstring, margin, newline)
    has_one = ast.get_docstring(node, clean=False) is not None
    if has_one:
        lines[first.lineno - 1 : first.end_lineno] = written
    elif isinstance(node, ast.Module):
        at = 1 if lines and lines[0].startswith("#!") else 0
        lines[at:at] = written
    else:
        at = min([first.lineno, *(d.lineno for d in getattr(first, "decorator_list", []))]) - 1
        at = _above_comments(lines, at, node.lineno)
        lines[at:at] = written
    result = "".join(lines)
    return result if bare(result) == bare(text) else None


def _above_comments(lines: list[str], at: int, lowest: int) -> int:
    while at > lowest and lines[at - 1].lstrip().startswith("#"):
        at -= 1
    return at


def _literal(docstring: str, margin: str, newline: str) -> list[str]:
    raw = "r" if "\\" in docstring else ""
    body = docstring.strip().replace('"""', "'''")
    if body.endswith('"'):
        body += " "
    lines = body.splitlines()
    if len(lines) == 1:
        return [f'{margin}{raw}"""{body}"""{newline}']
    rest = [f"{margin}{line}{newline}" if line.strip() else newline for line in lines[1:]]
    return [f'{margin}{raw}"""{lines[0]}{newline}', *rest, f'{margin}"""{newline}']


def spoken_of(docstring: str) -> Spoken:
    """Parameters, exceptions and return value that a docstring names: Google, NumPy and Sphinx style."""
    parameters: list[str] = []
    exceptions: list[str] = []
    returns = False
    section, margin = "", None
    lines = docstring.splitlines()
    for number, line in enumerate(lines):
        if head := _SECTION.match(line):
            section, margin = head[1].lower().rstrip("s"), None
            returns = returns or section in ("return", "yield")
            continue
        if re.fullmatch(r"\s*-{3,}\s*", line):
            continue
        if section and line.strip() and not line.startswith((" ", "\t")) and not _numpy(lines, number):
            section = ""
        item = _ITEM.match(line) or (re.match(r"^(\s*)(\w+)\s*(?::.*)?$", line) if _numpy(lines, number) else None)
        if section and item:
            margin = len(item[1]) if margin is None else margin
            if len(item[1]) == margin:
                target = {"arg": parameters, "argument": parameters, "parameter": parameters, "param": parameters}
                target |= {"raise": exceptions, "throw": exceptions}
                target.get(section, []).append(item[2])
        for found in _SPHINX.finditer(line):
            if found[1] in ("param", "parameter", "arg") and found[2]:
                parameters.append(found[2])
            elif found[1].startswith("raise") and found[2]:
                exceptions.append(found[2])
            elif found[1].startswith("return"):
                returns = True
    return Spoken(tuple(parameters), tuple(exceptions), returns)


def _numpy(lines: list[str], number: int) -> bool:
    """Whether a line is in a section that is underlined."""
    for earlier in range(number - 1, -1, -1):
        if _SECTION.match(lines[earlier]):
            return earlier + 1 < len(lines) and bool(re.fullmatch(r"\s*-{3,}\s*", lines[earlier + 1]))
    return False


def untrue_names(node: Documented, docstring: str, module: ast.Module) -> list[str]:
    """What a docstring names that is not there, as sentences."""
    spoken = spoken_of(docstring)
    found: list[str] = []
    if isinstance(node, Function):
        taken = node.args
        have = {a.arg for a in (*taken.posonlyargs, *taken.args, *taken.kwonlyargs)}
        have |= {a.arg for a in (taken.vararg, taken.kwarg) if a}
        found += [f"{node.name} has no parameter {name}" for name in spoken.parameters if name not in have]
        own = [n for n in ast.walk(node) if isinstance(n, ast.Return | ast.Yield | ast.YieldFrom)]
        gives = any(not isinstance(n, ast.Return) or n.value is not None for n in own)
        if spoken.returns and not gives and not _says_none(docstring):
            found.append(f"{node.name} returns nothing")
        raised = {name for n in ast.walk(node) if isinstance(n, ast.Raise) for name in _names(n)}
        known = raised | {
            n for n in dir(builtins) if n.endswith(("Error", "Exception", "Interrupt", "Iteration", "Exit"))
        }
        known |= {n.name for n in ast.walk(module) if isinstance(n, ast.ClassDef)}
        known |= {a.asname or a.name for n in ast.walk(module) if isinstance(n, ast.ImportFrom) for a in n.names}
        found += [f"there is no exception {name}" for name in spoken.exceptions if name not in known]
    return found


def unseen_exceptions(node: Documented, docstring: str) -> list[str]:
    """Exceptions a docstring names that no `raise` and no call in the function's body could account for."""
    if not isinstance(node, Function):
        return []
    raised = {name for n in ast.walk(node) if isinstance(n, ast.Raise) for name in _names(n)}
    works = any(isinstance(n, ast.Call | ast.Subscript | ast.BinOp | ast.Raise | ast.Attribute) for n in ast.walk(node))
    return [name for name in spoken_of(docstring).exceptions if name not in raised and not works]


def _says_none(docstring: str) -> bool:
    return bool(re.search(r"Returns?\s*:?\s*\n?\s*(?:None|Nothing)\b|:returns?:\s*None", docstring))


def _names(node: ast.AST) -> set[str]:
    return {
        n.id if isinstance(n, ast.Name) else n.attr for n in ast.walk(node) if isinstance(n, ast.Name | ast.Attribute)
    }


def example_doubts(name: str, docstring: str, module: str) -> list[str]:
    """Why the examples of a docstring would prove nothing even where they run, as phrases."""
    try:
        examples = doctest.DocTestParser().get_examples(docstring)
    except ValueError:
        return [f"the examples of {name or 'the module'} cannot be read"]
    short = name.rpartition(".")[2]
    shown = [e for e in examples if e.want.strip()]
    if not any(re.search(rf"\b{re.escape(short)}\b", e.source) for e in examples) or not shown:
        return [f"no example shows that the words about {name or 'the module'} are true"]
    found: list[str] = []
    for example in examples:
        if example.options or "doctest:" in example.source or example.want.strip() == "...":
            found.append("an example has a directive")
        powers = objections("example.py", "", example.source)
        own = re.compile(rf"newly imports .*\b{re.escape(module)}\b.*")
        found += [f"an example {what}" for what in powers if not own.fullmatch(what)]
    return list(dict.fromkeys(found))
