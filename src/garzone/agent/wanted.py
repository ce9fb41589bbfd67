"""What failing Python tests want of a file that is yet to be written: names, examples of their use, and inputs.

Reads text only; how much of it a model is told is each kind's business.
"""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from garzone.agent.context import CodeBase, FailingTest, dedented
from garzone.agent.target import Function, is_python, parse

MAX_NAMES, MAX_EXAMPLES, MAX_EXAMPLE_CHARS = 6, 3, 300


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is wanted.

    `names` are those the tests take from the file, `examples` assertions about them as they stand in the tests,
    `inputs` the literal arguments they are called with: pairs of a name and a tuple as Python source.
    """

    names: tuple[str, ...] = ()
    examples: tuple[str, ...] = ()
    inputs: tuple[tuple[str, str], ...] = ()


def wanted_of(code: CodeBase, tests: Sequence[FailingTest], path: str) -> Wanted:
    """What tests want of the Python file at `path`, in the order they say so; nothing where that cannot be told."""
    names: dict[str, None] = {}
    examples: dict[str, None] = {}
    inputs: dict[tuple[str, str], None] = {}
    for test in tests if is_python(path) else ():
        whole, body = code.tree(test.path), parse(dedented(test.code))
        if whole is None or body is None:
            continue
        taken = _Taken(whole, PurePosixPath(path).stem)
        found = [(node, name) for node in ast.walk(body) if (name := taken.name(node))]
        names |= dict.fromkeys(name for _, name in found)
        nodes = {node for node, _ in found}
        for statement in ast.walk(body):
            if _is_assertion(statement) and nodes & set(ast.walk(statement)):
                text = ast.get_source_segment(dedented(test.code), statement) or ""
                examples |= {text: None} if 0 < len(text) <= MAX_EXAMPLE_CHARS else {}
        inputs |= dict.fromkeys(_inputs(body, taken))
    return Wanted(tuple(names)[:MAX_NAMES], tuple(examples)[:MAX_EXAMPLES], tuple(inputs))


class _Taken:
    """Which names of a test file are taken from the module `stem`."""

    def __init__(self, whole: ast.Module, stem: str) -> None:
        self._original: dict[str, str] = {}  # the test's own name for it -> the module's
        self._modules: set[str] = set()
        self._starred = False
        for node in ast.walk(whole):
            if isinstance(node, ast.ImportFrom) and (node.module or "").rpartition(".")[2] == stem:
                self._starred |= any(alias.name == "*" for alias in node.names)
                self._original |= {alias.asname or alias.name: alias.name for alias in node.names if alias.name != "*"}
            elif isinstance(node, ast.ImportFrom):
                self._modules |= {alias.asname or alias.name for alias in node.names if alias.name == stem}
            elif isinstance(node, ast.Import):
                self._modules |= {a.asname or a.name for a in node.names if a.name.rpartition(".")[2] == stem}
        self._bound = set(dir(builtins)) | set(_bound_in(whole))

    def name(self, node: ast.AST) -> str:
        """The module's name for what a node says; "" for what is not the module's."""
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in self._modules:
            return node.attr
        if not isinstance(node, ast.Name) or not isinstance(node.ctx, ast.Load):
            return ""
        if node.id in self._original:
            return self._original[node.id]
        return node.id if self._starred and node.id not in self._bound else ""


def _bound_in(tree: ast.Module) -> Iterator[str]:
    """Names a file binds itself: whatever else it uses comes from elsewhere."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            yield node.id
        elif isinstance(node, Function | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.alias):
            yield node.asname or node.name.partition(".")[0]


def _is_assertion(node: ast.AST) -> bool:
    if isinstance(node, ast.Assert):
        return True
    call = node.value if isinstance(node, ast.Expr) else None
    return isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr.startswith("assert")


def _inputs(body: ast.Module, taken: _Taken) -> Iterator[tuple[str, str]]:
    for node in ast.walk(body):
        if isinstance(node, ast.Call) and node.args and not node.keywords and (name := taken.name(node.func)):
            text = ast.unparse(ast.Tuple(node.args, ast.Load()))
            try:
                ast.literal_eval(text)
            except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
                continue
            yield name, text
