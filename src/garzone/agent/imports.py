"""Which files of a repository a file imports. Reads text; Python by its tree, others by the habits of their imports."""

from __future__ import annotations

import ast
import posixpath
import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from garzone.agent.target import is_python

if TYPE_CHECKING:
    from garzone.agent.context import CodeBase

_JS_IMPORT = re.compile(r"""(?:from|import|require\()\s*['"](\.{1,2}/[^'"]+)['"]""")
_JS_ENDINGS = ("", ".ts", ".tsx", ".js", ".jsx", ".mjs", ".cjs", ".mts", "/index.ts", "/index.js")
_WORDS = re.compile(r"\b(?:use|mod|import)\s+([\w.:{}, ]+)|#include\s*\"([^\"]+)\"")


def imported_files(code: CodeBase, path: str) -> set[str]:
    """Tracked files that a file imports, as far as its text tells; for Go, the files beside it."""
    if is_python(path):
        return _python(code, path)
    source = code.source(path)
    if source is None:
        return set()
    tracked = set(code.tracked)
    folder = posixpath.dirname(path)
    if PurePosixPath(path).suffix in (".go", ".java"):
        same = PurePosixPath(path).suffix
        beside = {name for name in tracked if posixpath.dirname(name) == folder and name.endswith(same)}
        mirrored = {name for name in tracked if name == path.replace("src/test/", "src/main/").replace("Test.", ".")}
        return (beside | mirrored) - {path}
    found: set[str] = set()
    for match in _JS_IMPORT.finditer(source.text):
        base = posixpath.normpath(posixpath.join(folder, match[1]))
        stem = re.sub(r"\.[cm]?jsx?$", "", base)  # TypeScript imports `./x.js` and means `./x.ts`
        found |= {
            name for name in (*(base + e for e in _JS_ENDINGS), *(stem + e for e in _JS_ENDINGS)) if name in tracked
        }
    for match in _WORDS.finditer(source.text):
        words = set(re.findall(r"\w+", match[1] or PurePosixPath(match[2]).stem))
        found |= {name for name in tracked if PurePosixPath(name).stem in words and _same_family(name, path)}
    return found - {path}


def _same_family(one: str, other: str) -> bool:
    families = ({".rs"}, {".c", ".h", ".cc", ".cpp", ".hpp"})
    ends = {PurePosixPath(one).suffix, PurePosixPath(other).suffix}
    return any(ends <= family for family in families)


def _python(code: CodeBase, path: str) -> set[str]:
    tree = code.tree(path)
    found: set[str] = set()
    for module in _modules(tree, path) if tree else ():
        tail = module.replace(".", "/")
        endings = (f"{tail}.py", f"{tail}/__init__.py")
        found |= {name for name in code.tracked if name in endings or name.endswith(tuple(f"/{e}" for e in endings))}
    return found - {path}


def _modules(tree: ast.Module, path: str) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = ".".join(PurePosixPath(path).parts[: -node.level]) if node.level else ""
            module = ".".join(filter(None, (start, node.module)))
            if module:
                yield module
            yield from (f"{module}.{alias.name}".strip(".") for alias in node.names)
