"""Renames a name of a Python module in the files that import it, by their syntax trees. Text in, edits out.

Only what certainly means that name is changed: imports of it, its uses where nothing local hides it, attributes of the
module, dotted names in strings as `mock.patch` takes them, and `__all__`; through modules that pass it on as well.
Members of classes are `member_renames.py`'s. Does not decide what is renamed.
"""

from __future__ import annotations

import ast
import posixpath
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from garzone.agent.changes import FileEdit
from garzone.agent.context import CodeBase
from garzone.agent.target import is_python, parse, split_lines


@dataclass(slots=True)
class Places:
    """Where a file says the name: (line, column in bytes, old, new), and whether it hands it on under the new name."""

    found: set[tuple[int, int, str, str]] = field(default_factory=set[tuple[int, int, str, str]])
    passes_on: bool = False

    def add(self, line: int, column: int, old: str, new: str) -> None:
        """Columns count bytes, as in syntax trees."""
        self.found.add((line, column, old, new))


def rename_elsewhere(
    code: CodeBase, path: str, old: str, new: str, earlier: Mapping[str, FileEdit] | None = None
) -> list[FileEdit]:
    """Edits of all other files that use a module's name, in their order; none of the module itself.

    Args:
        code: the repository as it is.
        path: the module, in which the name is another already.
        old: its name in the other files.
        new: its name from now on.
        earlier: edits of the same files for other names; what is given holds them as well.
    """
    texts = {name: edit.after for name, edit in (earlier or {}).items()}
    pending, seen = [path], {path}
    while pending:
        module = pending.pop()
        for name in code.tracked:
            if name == path or not is_python(name):
                continue
            source = code.source(name)
            now = texts.get(name, source.text if source else "")
            tree = parse(now)
            if source is None or tree is None or old not in now:
                continue
            places = _places(code, name, tree, module, old=old, new=new)
            text = replaced(now, places)
            if text is None:
                continue
            texts[name] = text
            if places.passes_on and name not in seen:  # `from pkg import old` means it, too
                seen.add(name)
                pending.append(name)
    edits: list[FileEdit] = []
    for name, text in texts.items():
        source = code.source(name)
        assert source is not None
        if text != source.text and parse(text) is not None:
            edits.append(FileEdit(name, source.text, text, source.encode(text)))
    return sorted(edits, key=lambda edit: edit.path)


def mentions(code: CodeBase, name: str, changed: set[str]) -> list[str]:
    """Files that speak of a name and were not changed, source or not: for a person to look at."""
    word = re.compile(rf"\b{re.escape(name)}\b")
    sources = ((path, code.source(path)) for path in code.tracked if path not in changed)
    return [path for path, source in sources if source and word.search(source.text)]


def module_file(code: CodeBase, importer: str, module: str, level: int) -> str | None:
    """The tracked file that an import means; None where none does, or several may."""
    tail = module.replace(".", "/")
    if level:
        folder = posixpath.dirname(importer)
        for _ in range(level - 1):
            folder = posixpath.dirname(folder)
        base = posixpath.normpath(posixpath.join(folder, tail)) if tail else folder
        names = (f"{base}.py", f"{base}/__init__.py") if base else ("__init__.py",)
        return next((name for name in names if name in code.tracked), None)
    beside = posixpath.join(posixpath.dirname(importer), tail)
    for base in (tail, beside):
        for name in (f"{base}.py", f"{base}/__init__.py"):
            if name in code.tracked:
                return name
    ends = (f"/{tail}.py", f"/{tail}/__init__.py")
    found = [name for name in code.tracked if name.endswith(ends)]
    return found[0] if len(found) == 1 else None


def _places(code: CodeBase, path: str, tree: ast.Module, module: str, *, old: str, new: str) -> Places:
    places = Places()
    bound, modules = False, set[str]()  # what the module is called here
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    local = {node.id for node in names if not isinstance(node.ctx, ast.Load)} | _bound_otherwise(tree)
    # where the new name means something else, or the old one is sometimes a local, the import alone says the new one
    keeps = new in {node.id for node in names} | _bound_by_imports(tree) or old in local
    dotted = {dotted_name(module)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            means = module_file(code, path, node.module or "", node.level) == module
            for alias in node.names:
                if means and alias.name == old:
                    keep = f" as {old}" if keeps and not alias.asname else ""
                    places.add(alias.lineno, alias.col_offset, old, new + keep)
                    bound = bound or not (alias.asname or keep)
                elif module_file(code, path, ".".join(filter(None, (node.module, alias.name))), node.level) == module:
                    modules.add(alias.asname or alias.name)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if module_file(code, path, alias.name, 0) == module:
                    modules.add(alias.asname or alias.name)
                    dotted.add(alias.name)
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id == old and bound:
            places.add(node.lineno, node.col_offset, old, new)
        elif isinstance(node, ast.Attribute) and node.attr == old:
            called = _chain(node.value)
            if called in modules and called.partition(".")[0] not in local:
                line, end = node.end_lineno or node.lineno, node.end_col_offset or 0
                places.add(line, end - len(old.encode()), old, new)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "." in node.value:
            for name in dotted:
                if node.value == f"{name}.{old}" or node.value.startswith(f"{name}.{old}."):
                    places.add(node.lineno, node.col_offset, f"{name}.{old}", f"{name}.{new}")
    if bound:
        places.passes_on = True
        for item in _listed(tree):
            if item.value == old:
                places.add(item.lineno, item.col_offset, old, new)
    return places


def dotted_name(path: str) -> str:
    """What a module's file is called in strings, with `src/` left out."""
    parts = [part for part in PurePosixPath(path).with_suffix("").parts if part != "src"]
    return ".".join(parts[:-1] if parts and parts[-1] == "__init__" else parts)


def _bound_by_imports(tree: ast.Module) -> set[str]:
    nodes = (node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom))
    return {alias.asname or alias.name.partition(".")[0] for node in nodes for alias in node.names}


def _bound_otherwise(tree: ast.Module) -> set[str]:
    """Names of parameters, definitions and exceptions."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.arg):
            found.add(node.arg)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.ExceptHandler) and node.name:
            found.add(node.name)
    return found


def _listed(tree: ast.Module) -> Iterator[ast.Constant]:
    """The strings of `__all__`."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets):
            yield from (item for item in ast.walk(node.value) if isinstance(item, ast.Constant))


def _chain(node: ast.expr) -> str:
    if isinstance(node, ast.Name):
        return node.id
    return f"{_chain(node.value)}.{node.attr}" if isinstance(node, ast.Attribute) else ""


def replaced(text: str, places: Places) -> str | None:
    """The text with the name changed where it stands; None where it stands nowhere."""
    if not places.found:
        return None
    lines = [line.encode() for line in split_lines(text)]
    for number, column, old, new in sorted(places.found, reverse=True):
        line = lines[number - 1]
        at = line.find(old.encode(), column)  # a string's own quotes come first
        if at >= 0:
            lines[number - 1] = line[:at] + new.encode() + line[at + len(old.encode()) :]
    return b"".join(lines).decode()
