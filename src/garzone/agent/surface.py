"""The public surface of a file: names and signatures that others may rely on. Text in, names out."""

from __future__ import annotations

import ast
import re

from garzone.agent.syntax import definitions
from garzone.agent.target import Function, is_python, parse


def surface(path: str, text: str) -> dict[str, str]:
    """Public names of a file with their signatures; assigned names with none."""
    if not is_python(path):
        exported: set[str] = set()
        for match in re.finditer(r"exports\s*=\s*\{([^}]*)\}|exports\.(\w+)|export\s*\{([^}]*)\}", text):
            exported |= set(re.findall(r"\w+", match[1] or match[2] or match[3] or ""))
        found = definitions(path, text)
        return {d.span.qualname: re.sub(r"\s+", " ", d.signature) for d in found if d.public or d.span.name in exported}
    tree = parse(text)
    found_names: dict[str, str] = {}
    pending: list[tuple[str, ast.stmt]] = [("", node) for node in (tree.body if tree else [])]
    while pending:
        prefix, node = pending.pop(0)
        if isinstance(node, Function):
            if not node.name.startswith("_") or node.name == "__init__":
                kind = "async " if isinstance(node, ast.AsyncFunctionDef) else ""
                found_names[prefix + node.name] = kind + ast.unparse(_without_annotations(node.args))
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            found_names[prefix + node.name] = "class"
            pending += [(f"{prefix}{node.name}.", inner) for inner in node.body]
        elif isinstance(node, ast.Assign | ast.AnnAssign) and not prefix:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)]
            found_names |= {name: "" for name in names if not name.startswith("_")}
        elif isinstance(node, ast.If | ast.Try):
            pending += [(prefix, inner) for inner in node.body]
    return found_names


def _without_annotations(arguments: ast.arguments) -> ast.arguments:
    """Adding types is no change for callers."""
    copy = ast.parse(f"def f({ast.unparse(arguments)}): ...").body[0]
    assert isinstance(copy, ast.FunctionDef)
    for node in ast.walk(copy.args):
        if isinstance(node, ast.arg):
            node.annotation = None
    return copy.args


def surface_changes(path: str, before: str, after: str, named: set[str]) -> list[str]:
    """What callers would notice, as sentences; names that the task speaks of may change."""
    was, now = surface(path, before), surface(path, after)
    found: list[str] = []
    for name, signature in was.items():
        if name.rpartition(".")[2] in named or name.partition(".")[0] in named:
            continue
        if name not in now:
            found.append(f"{name} is gone")
        elif now[name] != signature:
            found.append(f"the signature of {name} is another: keep ({signature})")
    return found
