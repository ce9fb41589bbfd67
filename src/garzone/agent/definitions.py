"""What the target of a task uses, as text: what a reader would look up. Reads text only."""

from __future__ import annotations

import ast

from garzone.agent.context import CodeBase, Target
from garzone.agent.imports import imported_files
from garzone.agent.syntax import definitions, names_in
from garzone.agent.target import Function, is_python, names_used, node_at

MAX_ELSEWHERE = 6  # definitions of other files; more is a reading list


def definitions_used(code: CodeBase, target: Target) -> list[str]:
    """Definitions that the target uses: those of its own file in full, functions of imported files by their head."""
    if not is_python(target.path):
        return _used_elsewhere_in_text(code, target)
    tree = code.tree(target.path)
    node = node_at(tree, target.span) if tree and target.span else None
    if tree is None or node is None:
        return []
    used = set(names_used(node))
    found: list[str] = []
    for item in tree.body:
        names = {item.name} if isinstance(item, Function | ast.ClassDef) else _assigned(item)
        if (
            names & used
            and item is not node
            and not (target.span and target.span.qualname.startswith(f"{min(names)}."))
        ):
            found.append(ast.get_source_segment(target.source.text, item, padded=True) or "")
    return [*found, *_python_heads(code, target.path, used)]


def _python_heads(code: CodeBase, path: str, used: set[str]) -> list[str]:
    """Signatures and first docstring lines of functions that are imported from the repository and used."""
    heads: list[str] = []
    for name in sorted(imported_files(code, path)):
        tree = code.tree(name)
        for node in tree.body if tree else ():
            if isinstance(node, Function) and node.name in used:
                doc = (ast.get_docstring(node) or "").partition("\n")[0]
                returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
                head = f"def {node.name}({ast.unparse(node.args)}){returns}: ..."
                heads.append(f"# {name}\n{head}" + (f"  # {doc}" if doc else ""))
    return heads[:MAX_ELSEWHERE]


def _used_elsewhere_in_text(code: CodeBase, target: Target) -> list[str]:
    if target.span is None:
        return []
    used = set(names_in(target.path, target.code))
    raw = target.source.text.encode()
    found = [
        raw[d.start : d.end].decode("utf-8", "replace")
        for d in definitions(target.path, target.source.text)
        if d.span.name in used and d.span != target.span
    ]
    heads: list[str] = []
    for name in sorted(imported_files(code, target.path)):
        source = code.source(name)
        known = definitions(name, source.text) if source else []
        heads += [f"// {name}\n{d.signature}" for d in known if d.span.name in used and d.public]
    return [*found, *heads[:MAX_ELSEWHERE]]


def _assigned(node: ast.stmt) -> set[str]:
    if isinstance(node, ast.Import | ast.ImportFrom):
        return {alias.asname or alias.name for alias in node.names}
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return {name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}
