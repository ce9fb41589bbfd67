"""Cheap looks at a draft before anything is proved: are its names defined, does it type-check.

What is found here costs milliseconds (the type check seconds, and only where the project has one) and tells the model
more exactly what is wrong than a failing test would.
"""

from __future__ import annotations

import ast
import builtins
import re
import symtable

from garzone.agent.changes import Draft, FileEdit
from garzone.agent.checks import find_type_check
from garzone.agent.context import CodeBase
from garzone.agent.stage import Stage
from garzone.agent.target import is_python, parse

TYPE_CHECK_S = 60.0
MAX_SHOWN = 4  # type errors told to the model
_KNOWN = frozenset(dir(builtins)) | {
    "__file__",
    "__name__",
    "__doc__",
    "__path__",
    "__spec__",
    "__builtins__",
    "reveal_type",
}


async def first_complaint(stage: Stage, code: CodeBase, draft: Draft) -> str | None:
    """What is plainly wrong with a draft, as a sentence to the model; None when nothing is."""
    for edit in draft.edits:
        if complaint := undefined_names(edit):
            return complaint
    return await _type_errors(stage, code, draft)


def undefined_names(edit: FileEdit) -> str | None:
    """Global names that an edit newly uses and nobody defines, as a sentence; None when there are none."""
    new = new_undefined_names(edit)
    return f"Nothing defines {', '.join(sorted(new)[:4])}: import it, define it, or do without." if new else None


def new_undefined_names(edit: FileEdit) -> set[str]:
    """Global names that an edit newly uses and nobody defines; only Python is looked at."""
    return _undefined(edit.after) - _undefined(edit.before) if is_python(edit.path) else set()


def _undefined(text: str) -> set[str]:
    tree = parse(text)
    if tree is None or any(isinstance(n, ast.ImportFrom) and n.names[0].name == "*" for n in ast.walk(tree)):
        return set()
    try:
        top = symtable.symtable(text, "m", "exec")
    except (SyntaxError, ValueError, RecursionError):
        return set()
    defined = {symbol.get_name() for symbol in top.get_symbols() if symbol.is_assigned() or symbol.is_imported()}
    defined |= {symbol.get_name() for symbol in top.get_symbols() if symbol.is_namespace()}
    used: set[str] = set()
    pending = [top]
    while pending:
        table = pending.pop()
        pending += table.get_children()
        for symbol in table.get_symbols():
            if symbol.is_global() and symbol.is_assigned():
                defined.add(symbol.get_name())  # `global x; x = 1` in a function
            elif symbol.is_referenced() and (symbol.is_global() or table.get_type() == "module"):
                used.add(symbol.get_name())
    if {"globals", "vars", "exec"} & used or "__getattr__" in defined:
        return set()  # names may come from anywhere
    return {name for name in used - defined - _KNOWN if not _only_quoted(tree, name)}


def _only_quoted(tree: ast.Module, name: str) -> bool:
    """Whether a name is never evaluated: only annotations speak of it."""
    return not any(isinstance(node, ast.Name) and node.id == name for node in ast.walk(tree))


async def _type_errors(stage: Stage, code: CodeBase, draft: Draft) -> str | None:
    changed = [edit.path for edit in draft.edits]
    if not changed:
        return None
    repository = stage.repository
    command = find_type_check(code.tracked, code.content, repository.top, repository.prefix, changed)
    if command is None:
        return None
    before = code.remembered.get(command)
    if before is None:
        before = _errors((await stage.run(command, wall_s=TYPE_CHECK_S, probed=False)).result.output)
        code.remembered[command] = before
    run = await stage.run(command, draft.contents, wall_s=TYPE_CHECK_S, probed=False)
    if run.passed:
        return None
    new = [
        line for line in _errors(run.result.output) if _without_place(line) not in {_without_place(b) for b in before}
    ]
    return "The type check says:\n" + "\n".join(new[:MAX_SHOWN]) if new else None


def _errors(output: str) -> list[str]:
    return [line.strip() for line in output.splitlines() if re.search(r"\berror\b", line)]


def _without_place(line: str) -> str:
    """An error without its line number, which an edit above moves."""
    return re.sub(r"[:(]\d+([:,]\d+)?\)?", "", line, count=1)
