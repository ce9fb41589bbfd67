"""Reads which classes of a repository belong together, and whose attribute an expression is, from syntax trees alone.

What cannot be told for certain is None: types are followed through constructors, annotations, `self` and imports, and
no further. Changes nothing.
"""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterator
from dataclasses import dataclass

from garzone.agent.context import CodeBase
from garzone.agent.renames import module_file
from garzone.agent.target import Function, is_python

Class = tuple[str, str]  # file, and name at its top level
_OPEN = frozenset(("object", "ABC", "Protocol", "Generic", "NamedTuple", "TypedDict", "Enum", "Exception"))
_PLAIN = (
    ast.Constant, ast.List, ast.Dict, ast.Set, ast.Tuple, ast.JoinedStr, ast.ListComp, ast.DictComp, ast.SetComp,
    ast.GeneratorExp, ast.Lambda, ast.Compare,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Family:
    """A class with those it shares an attribute with. `doubts` say what of it lies outside of the repository."""

    members: frozenset[Class]
    doubts: tuple[str, ...] = ()


def owners(tree: ast.Module, attribute: str) -> list[str]:
    """Classes at the top level of a file that define an attribute or method."""
    return [node.name for node in tree.body if isinstance(node, ast.ClassDef) and attribute in set(_defined(node))]


def _defined(node: ast.ClassDef) -> Iterator[str]:
    for each in node.body:
        if isinstance(each, Function):
            yield each.name
            first = (*each.args.posonlyargs, *each.args.args)[:1]
            for inner in ast.walk(each) if first else ():
                if not isinstance(inner, ast.Attribute) or not isinstance(inner.ctx, ast.Store):
                    continue
                if isinstance(inner.value, ast.Name) and inner.value.id == first[0].arg:
                    yield inner.attr
        elif isinstance(each, ast.Assign | ast.AnnAssign):
            targets = each.targets if isinstance(each, ast.Assign) else [each.target]
            yield from (target.id for target in targets if isinstance(target, ast.Name))


class Classes:
    """The classes of a repository."""

    def __init__(self, code: CodeBase) -> None:
        self._code = code

    def called(self, path: str, node: ast.expr, depth: int = 0) -> Class | None:
        """The class of the repository that an expression in a file names."""
        tree = self._code.tree(path)
        if tree is None or depth > 4:
            return None
        if isinstance(node, ast.Constant) and isinstance(node.value, str):  # an annotation in quotes
            try:
                return self.called(path, ast.parse(node.value, mode="eval").body, depth + 1)
            except SyntaxError:
                return None
        if isinstance(node, ast.Name):
            return self._named(path, tree, node.id, depth)
        if isinstance(node, ast.Attribute):
            module = self._module(path, tree, node.value)
            return self.called(module, ast.Name(node.attr, ast.Load()), depth + 1) if module else None
        return None

    def _named(self, path: str, tree: ast.Module, name: str, depth: int) -> Class | None:
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and node.name == name:
                return path, name
        for node in ast.walk(tree):
            for alias in node.names if isinstance(node, ast.ImportFrom) else ():
                if (alias.asname or alias.name) == name:
                    assert isinstance(node, ast.ImportFrom)
                    module = module_file(self._code, path, node.module or "", node.level)
                    return self.called(module, ast.Name(alias.name, ast.Load()), depth + 1) if module else None
        return None

    def _module(self, path: str, tree: ast.Module, node: ast.expr) -> str | None:
        said = ast.unparse(node)
        for each in ast.walk(tree):
            if isinstance(each, ast.Import):
                for alias in each.names:
                    if said == (alias.asname or alias.name):
                        return module_file(self._code, path, alias.name, 0)
            elif isinstance(each, ast.ImportFrom):
                for alias in each.names:
                    if said == (alias.asname or alias.name):
                        name = ".".join(filter(None, (each.module, alias.name)))
                        return module_file(self._code, path, name, each.level)
        return None

    def is_module(self, path: str, node: ast.expr) -> bool:
        """Whether an expression in a file names a module of the repository."""
        tree = self._code.tree(path)
        return tree is not None and self._module(path, tree, node) is not None

    def is_field(self, each: Class, name: str) -> bool:
        """Whether a class takes a name as a keyword because it is one of its annotated fields."""
        node = self.node(each)
        return (
            node is not None
            and not any(isinstance(n, Function) and n.name == "__init__" for n in node.body)
            and any(
                isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name) and n.target.id == name
                for n in node.body
            )
        )

    def is_foreign(self, path: str, name: str) -> bool:
        """Whether a file gets a name from a module that is not in the repository."""
        tree = self._code.tree(path)
        for node in ast.walk(tree) if tree else ():
            if isinstance(node, ast.Import):
                for alias in node.names:
                    if (alias.asname or alias.name.partition(".")[0]) == name:
                        return module_file(self._code, path, alias.name, 0) is None
            elif isinstance(node, ast.ImportFrom) and any((a.asname or a.name) == name for a in node.names):
                inner = f"{node.module or ''}.{name}".strip(".")
                return not (
                    module_file(self._code, path, node.module or "", node.level)
                    or module_file(self._code, path, inner, node.level)
                )
        return False

    def node(self, each: Class) -> ast.ClassDef | None:
        """A class's definition."""
        tree = self._code.tree(each[0])
        found = (n for n in (tree.body if tree else ()) if isinstance(n, ast.ClassDef) and n.name == each[1])
        return next(found, None)

    def family(self, start: Class, attribute: str) -> Family:
        """All classes whose attribute of this name is that of `start`: bases that have it, and all that inherit it."""
        members, doubts = {start}, list[str]()
        pending = [start]
        while pending:
            each = pending.pop()
            node = self.node(each)
            for base in node.bases if node else ():
                bare = base.value if isinstance(base, ast.Subscript) else base
                found = self.called(each[0], bare)
                if found is None and ast.unparse(bare).rpartition(".")[2] not in _OPEN:
                    doubts.append(f"{each[1]} inherits from {ast.unparse(bare)}, which is not in the repository")
                elif found and found not in members and self._has(found, attribute):
                    members.add(found)
                    pending.append(found)
        grown = True
        while grown:
            grown = False
            names = {name for _, name in members}
            for path in self._code.tracked:
                source = self._code.source(path) if is_python(path) else None
                tree = self._code.tree(path) if source and any(name in source.text for name in names) else None
                for node in tree.body if tree else ():
                    if not isinstance(node, ast.ClassDef) or (path, node.name) in members:
                        continue
                    if members & {found for base in node.bases if (found := self.called(path, base))}:
                        members.add((path, node.name))
                        grown = True
        return Family(frozenset(members), tuple(dict.fromkeys(doubts)))

    def _has(self, each: Class, attribute: str, depth: int = 0) -> bool:
        node = self.node(each)
        if node is None or depth > 8:
            return False
        bases = filter(None, (self.called(each[0], base) for base in node.bases))
        return attribute in set(_defined(node)) or any(self._has(base, attribute, depth + 1) for base in bases)


class Receivers:
    """Whose attribute is meant, in one file: True for the family's, False for something else's, None unknown."""

    def __init__(self, classes: Classes, path: str, family: Family) -> None:
        self._classes, self._path, self._family = classes, path, family

    def is_ours(self, node: ast.expr, scopes: list[ast.AST]) -> bool | None:
        """Of the object that an expression gives; `scopes` are the definitions around it, outermost first."""
        if isinstance(node, _PLAIN):
            return False
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name) and node.func.id == "super" and not node.args:
                return self._of_self(scopes)
            return self._of_type(node.func)
        if (found := self._classes.called(self._path, node)) is not None:
            return found in self._family.members
        if self._classes.is_module(self._path, node):
            return False
        if not isinstance(node, ast.Name):
            return None
        for depth in range(len(scopes) - 1, -1, -1):
            scope = scopes[depth]
            if isinstance(scope, ast.ClassDef):
                continue  # its names are not those of its methods
            if (said := self._bound(node.id, scopes[: depth + 1])) != "unbound":
                return said if isinstance(said, bool) else None
        return False if self._classes.is_foreign(self._path, node.id) else None

    def takes(self, node: ast.expr, name: str) -> bool:
        """Whether what is called is a class of the family that has a field of this name."""
        found = self._classes.called(self._path, node)
        return found is not None and found in self._family.members and self._classes.is_field(found, name)

    def _of_self(self, scopes: list[ast.AST]) -> bool | None:
        inside = [scope for scope in scopes if isinstance(scope, ast.ClassDef)]
        return (self._path, inside[-1].name) in self._family.members if inside else None

    def _of_type(self, node: ast.expr) -> bool | None:
        """Of what a call of a name gives: an instance, where that is a class."""
        if (found := self._classes.called(self._path, node)) is not None:
            return found in self._family.members
        if isinstance(node, ast.Name) and isinstance(getattr(builtins, node.id, None), type):
            return False
        return None

    def _of_annotation(self, node: ast.expr) -> bool | None:
        if isinstance(node, ast.Constant) and isinstance(node.value, str):  # in quotes
            try:
                return self._of_annotation(ast.parse(node.value, mode="eval").body)
            except SyntaxError:
                return None
        if isinstance(node, ast.BinOp):  # C | None
            sides = [side for side in (node.left, node.right) if not _is_none(side)]
            return self._of_annotation(sides[0]) if len(sides) == 1 else None
        if isinstance(node, ast.Subscript):
            outer = ast.unparse(node.value).rpartition(".")[2]
            return self._of_annotation(node.slice) if outer in ("Optional", "Annotated", "Final") else False
        first = ast.unparse(node).partition(".")[0]
        return False if self._classes.is_foreign(self._path, first) else self._of_type(node)

    def _bound(self, name: str, scopes: list[ast.AST]) -> bool | str | None:
        """What a scope binds a name to; "unbound" where it does not."""
        scope = scopes[-1]
        said: list[bool | None] = []
        if isinstance(scope, Function | ast.Lambda):
            arguments = (*scope.args.posonlyargs, *scope.args.args, *scope.args.kwonlyargs)
            for number, each in enumerate(arguments):
                if each.arg != name:
                    continue
                method = number == 0 and len(scopes) > 1 and isinstance(scopes[-2], ast.ClassDef)
                if each.annotation is not None:
                    said.append(self._of_annotation(each.annotation))
                elif method and isinstance(scope, Function) and not _is_static(scope):
                    said.append(self._of_self(scopes))
                else:
                    said.append(None)
        for node in _within(scope):
            if isinstance(node, ast.Name) and node.id == name and not isinstance(node.ctx, ast.Load):
                said.append(self._assigned(node, scope, scopes))
            elif isinstance(node, Function | ast.ClassDef) and node is not scope and node.name == name:
                said.append(False if isinstance(node, Function) else None)
        if not said:
            return "unbound"
        return said[0] if len(set(said)) == 1 else None

    def _assigned(self, target: ast.Name, scope: ast.AST, scopes: list[ast.AST]) -> bool | None:
        for node in _within(scope):
            if isinstance(node, ast.Assign) and target in node.targets:
                return self._value(node.value)
            if isinstance(node, ast.AnnAssign) and node.target is target:
                return self._of_annotation(node.annotation)
            if isinstance(node, ast.NamedExpr) and node.target is target:
                return self._value(node.value)
        return None

    def _value(self, node: ast.expr) -> bool | None:
        if isinstance(node, _PLAIN):
            return False
        return self._of_type(node.func) if isinstance(node, ast.Call) else None


def _within(scope: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a scope without those of the scopes in it; their definitions themselves are its own."""
    pending = list(ast.iter_child_nodes(scope))
    while pending:
        node = pending.pop()
        yield node
        if not isinstance(node, Function | ast.ClassDef | ast.Lambda):
            pending += ast.iter_child_nodes(node)


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _is_static(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return any(isinstance(each, ast.Name) and each.id == "staticmethod" for each in node.decorator_list)
