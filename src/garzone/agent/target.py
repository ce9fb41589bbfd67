"""Finds functions in Python source: where they are, what they call, what a test means by a name.

Reads text only; whether a function is the right one to change is decided in `context.py`.
"""

from __future__ import annotations

import ast
import io
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True)
class Span:
    """A function or method of a file: `qualname` is `f` or `Class.f`; lines count from 1 and include decorators."""

    qualname: str
    first_line: int
    last_line: int
    def_line: int

    @property
    def name(self) -> str:
        """The name without its class."""
        return self.qualname.rpartition(".")[2]

    @property
    def num_lines(self) -> int:
        """Lines from the first decorator to the end of the body."""
        return self.last_line - self.first_line + 1


@dataclass(frozen=True, slots=True)
class SourceText:
    """A file's bytes as text, with what is needed to write it back unchanged: encoding, byte order mark."""

    text: str
    encoding: str

    @classmethod
    def read(cls, content: bytes, path: str) -> SourceText | None:
        """Decode a file; None when it is not text. Line breaks stay as they are."""
        encoding = "utf-8-sig" if content.startswith(b"\xef\xbb\xbf") else "utf-8"
        if is_python(path):
            try:
                encoding, _ = tokenize.detect_encoding(io.BytesIO(content).readline)
            except SyntaxError:
                return None
        try:
            text = content.decode(encoding)
        except (UnicodeDecodeError, LookupError):
            return None
        return None if "\0" in text else cls(text, encoding)

    def encode(self, text: str) -> bytes:
        """Text in this file's encoding. Raises UnicodeEncodeError."""
        return text.encode(self.encoding)


def is_python(path: str) -> bool:
    """Whether a path names Python source."""
    return path.endswith((".py", ".pyi"))


def is_script(path: str) -> bool:
    """Whether a path names JavaScript or TypeScript."""
    return PurePosixPath(path).suffix in (".js", ".mjs", ".cjs", ".jsx", ".ts", ".mts", ".cts", ".tsx")


def is_test(path: str) -> bool:
    """Whether a path names a test, by the habits of the common test runners."""
    parts = PurePosixPath(path)
    name = parts.name
    return (
        name.startswith(("test_", "tests_"))
        or name in ("conftest.py", "tests.py", "test.py")
        or parts.stem.endswith(("_test", "_tests", ".test", ".spec", "-test"))
        or (parts.suffix == ".java" and parts.stem.endswith(("Test", "Tests", "IT")))
        or any(part in ("tests", "test", "__tests__", "spec", "testing") for part in parts.parts[:-1])
    )


CONFIGURATION = frozenset({
    "pytest.ini", ".pytest.ini", "pyproject.toml", "setup.cfg", "setup.py", "tox.ini", "noxfile.py", "conftest.py",
    "sitecustomize.py", "usercustomize.py", "makefile", "gnumakefile", "package.json", "package-lock.json",
    "pnpm-lock.yaml", "tsconfig.json", "cargo.toml", "build.rs", "go.mod", "go.sum", "justfile", "cmakelists.txt",
    ".coveragerc", ".gitattributes", ".gitmodules", ".env",
})  # fmt: skip


def is_protected(path: str) -> bool:
    """Whether a file decides what the check means, so that a fix may not touch it unless it was named."""
    name = PurePosixPath(path).name.lower()
    configured = name in CONFIGURATION or name.endswith((".pth", ".egg-link")) or ".config." in name
    return is_test(path) or configured or name.startswith((".env", "vitest.", "jest."))


def parse(text: str) -> ast.Module | None:
    """The syntax tree, or None when it has none."""
    try:
        return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None  # what the parser raises for text that is no program, or one too deep to be read


def functions(tree: ast.Module) -> list[Span]:
    """Top-level functions and methods, in the order of the file; inner functions belong to their outermost."""
    return list(_spans(tree.body, ""))


def _spans(body: list[ast.stmt], prefix: str) -> Iterator[Span]:
    for node in body:
        if isinstance(node, Function):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            yield Span(prefix + node.name, first, node.end_lineno or node.lineno, node.lineno)
        elif isinstance(node, ast.ClassDef):
            yield from _spans(node.body, f"{prefix}{node.name}.")
        elif isinstance(node, ast.If | ast.Try):  # definitions that depend on a version or an import
            for part in (node.body, node.orelse, getattr(node, "finalbody", [])):
                yield from _spans(part, prefix)


def node_at(tree: ast.Module, span: Span) -> Function | None:
    """The syntax node of a span."""
    for node in ast.walk(tree):
        if isinstance(node, Function) and node.lineno == span.def_line and node.name == span.name:
            return node
    return None


def covering(spans: list[Span], line: int) -> Span | None:
    """The function a line is in."""
    return next((span for span in spans if span.first_line <= line <= span.last_line), None)


def names_used(node: ast.AST) -> list[str]:
    """Names called or referred to, in the order of the source, each once: `f`, and `g` of `x.g`."""
    found: dict[str, None] = {}
    nodes = [n for n in ast.walk(node) if isinstance(n, ast.Name | ast.Attribute)]
    for item in sorted(nodes, key=lambda n: (n.lineno, n.col_offset)):
        found.setdefault(item.id if isinstance(item, ast.Name) else item.attr)
    return list(found)


def source_lines(text: str, span: Span) -> str:
    """The text of a span, with its line break."""
    return "".join(split_lines(text)[span.first_line - 1 : span.last_line])


def split_lines(text: str) -> list[str]:
    r"""Lines as Python counts them (\n, \r\n, \r), line breaks kept; form feeds and the like do not end a line."""
    return io.StringIO(text, newline="").readlines()
