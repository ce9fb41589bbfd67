"""Renames a method or attribute of a Python class where the repository uses it, by syntax trees. Text in, edits out.

Changed is what certainly is that class's, or one's that shares it: overrides, `self`, instances made or annotated in
sight. What certainly is another's stays. All else is told, place by place, for nothing says what it is.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from garzone.agent.changes import FileEdit
from garzone.agent.classes import Class, Classes, Family, Receivers
from garzone.agent.context import CodeBase
from garzone.agent.renames import Places, replaced
from garzone.agent.target import Function, is_python, parse

_BY_NAME = frozenset((
    "getattr", "hasattr", "setattr", "delattr", "patch.object", "mock.patch.object", "monkeypatch.setattr",
    "monkeypatch.delattr", "attrgetter", "operator.attrgetter", "methodcaller", "operator.methodcaller",
))  # fmt: skip


@dataclass(frozen=True, slots=True)
class MemberRename:
    """Edits of other files, and the places of which it cannot be told whether they mean the member."""

    edits: tuple[FileEdit, ...]
    open: tuple[str, ...]


def rename_member(
    code: CodeBase, owner: Class, old: str, new: str, earlier: Mapping[str, FileEdit] | None = None
) -> MemberRename:
    """Edits of all files but the owner's own.

    Args:
        code: the repository as it is.
        owner: the class in whose file the member is called `new` already.
        old: its name in the other files.
        new: its name from now on.
        earlier: edits of the same files for other names; what is given holds them as well.
    """
    classes = Classes(code)
    family = classes.family(owner, old)
    edits = dict(earlier or {})
    left: list[str] = list(family.doubts)
    for path in code.tracked:
        source = code.source(path) if is_python(path) and path != owner[0] else None
        if source is None or old not in source.text:
            continue
        text = edits[path].after if path in edits else source.text
        tree = parse(text)
        if tree is None:
            left.append(f"{path} cannot be parsed")
            continue
        places = Places()
        left += [
            f"{path}:{line}" for line in _look(tree, Receivers(classes, path, family), family, places, (path, old, new))
        ]
        changed = replaced(text, places)
        if changed is not None and parse(changed) is not None:
            edits[path] = FileEdit(path, source.text, changed, source.encode(changed))
    return MemberRename(tuple(sorted(edits.values(), key=lambda edit: edit.path)), tuple(left))


def _look(
    tree: ast.Module, receivers: Receivers, family: Family, places: Places, names: tuple[str, str, str]
) -> Iterator[int]:
    """Note where the name stands for the member; gives the lines of which that cannot be told."""
    path, old, new = names
    for node, scopes in _walk(tree, [tree]):
        if isinstance(node, ast.Attribute) and node.attr == old:
            ours = receivers.is_ours(node.value, scopes)
            if ours:
                line, end = node.end_lineno or node.lineno, node.end_col_offset or 0
                places.add(line, end - len(old.encode()), old, new)
            elif ours is None:
                yield node.lineno
        elif isinstance(node, Function) and node.name == old and _is_member(path, scopes, family):
            places.add(node.lineno, node.col_offset, f"def {old}", f"def {new}")
        elif isinstance(node, ast.Name) and node.id == old and isinstance(node.ctx, ast.Store):
            if _is_member(path, scopes, family):
                places.add(node.lineno, node.col_offset, old, new)
        elif isinstance(node, ast.Call):
            yield from _called_by_name(node, scopes, receivers, places, (old, new))
        elif isinstance(node, ast.MatchClass) and old in node.kwd_attrs:
            yield node.lineno


def _called_by_name(
    node: ast.Call, scopes: list[ast.AST], receivers: Receivers, places: Places, names: tuple[str, str]
) -> Iterator[int]:
    """Members in strings (`getattr(x, "old")`), and as keywords of constructors (dataclasses)."""
    old, new = names
    said = [each for each in node.args if isinstance(each, ast.Constant) and each.value == old]
    if said and ast.unparse(node.func) in _BY_NAME:
        ours = receivers.is_ours(node.args[0], scopes) if node.args[0] is not said[0] else None
        if ours:
            places.add(said[0].lineno, said[0].col_offset, old, new)
        elif ours is None:
            yield node.lineno
    for keyword in node.keywords:
        if keyword.arg != old:
            continue
        copied = ast.unparse(node.func).rpartition(".")[2] == "replace" and bool(node.args)
        ours = receivers.is_ours(node.args[0], scopes) if copied else receivers.takes(node.func, old)
        if ours:
            places.add(keyword.lineno, keyword.col_offset, old, new)
        elif ours is None and copied:
            yield node.lineno


def _is_member(path: str, scopes: list[ast.AST], family: Family) -> bool:
    return isinstance(scopes[-1], ast.ClassDef) and (path, scopes[-1].name) in family.members


def _walk(node: ast.AST, scopes: list[ast.AST]) -> Iterator[tuple[ast.AST, list[ast.AST]]]:
    """All nodes with the definitions around them; a definition itself belongs to what is around it."""
    for child in ast.iter_child_nodes(node):
        yield child, scopes
        inner = [*scopes, child] if isinstance(child, Function | ast.ClassDef | ast.Lambda) else scopes
        yield from _walk(child, inner)
