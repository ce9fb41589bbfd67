"""Chooses which code the model sees: the function to change, the test that fails and how; measured in tokens.

Reads text it is given; asks no model and runs nothing. The order of what it gives is stable within a task, so that the
engine can reuse the common prefix across candidates and rounds.
"""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from garzone.agent.evidence import Evidence
from garzone.agent.imports import imported_files
from garzone.agent.syntax import is_source, names_in, spans_of
from garzone.agent.target import (
    SourceText,
    Span,
    covering,
    functions,
    is_protected,
    is_python,
    is_test,
    names_used,
    parse,
    source_lines,
    split_lines,
)
from garzone.core.errors import RepositoryError

SHORT_FILE_LINES = 60  # up to here a small model rewrites a whole file about as well as one function
MAX_TARGETS = 3
MAX_SEARCHED_FILES = 400
# what the probe adds to the traceback of a script
_PROBE_FRAMES = re.compile(r' *File "<frozen runpy>"(?:.*\n)*?.*exec\(compile\(source, path.*\n(?: *\^+\n)?')
_PLACES = (
    re.compile(r"(?:[\s(]|file://)([\w./@\-]+\.(?:[cm]?[jt]sx?|rs|go|java|cc?|cpp)):(\d+)"),
    re.compile(r'File "([^"\n]+)", line (\d+)'),
    re.compile(r"^([\w./\-]+\.\w+):(\d+)", re.MULTILINE),
)

Read = Callable[[str], bytes]


@dataclass(frozen=True, slots=True)
class Target:
    """What is to be written: one function of a file, or (span None) the file, which may be new.

    `hole` is the part of the text that is missing, in characters from the beginning of the file.
    """

    path: str
    content: bytes
    source: SourceText
    span: Span | None
    is_new: bool = False
    hole: tuple[int, int] | None = None

    @property
    def label(self) -> str:
        """How a person would name it."""
        return f"{self.span.qualname} in {self.path}" if self.span else self.path

    @property
    def code(self) -> str:
        """Its text as it is now."""
        return source_lines(self.source.text, self.span) if self.span else self.source.text

    @property
    def shown(self) -> str:
        """Its text with the comment above it, which often says what it is for; not indented."""
        if self.span is None:
            return self.code
        lines = split_lines(self.source.text)
        first = self.span.first_line - 1
        while first and _is_comment(lines[first - 1]) and not lines[first - 1].startswith("#!"):
            first -= 1
        return textwrap.dedent("".join(lines[first : self.span.last_line]))


def _is_comment(line: str) -> bool:
    return line.lstrip().startswith(("#", "//", "/*", "* ", "*/"))


@dataclass(frozen=True, slots=True)
class FailingTest:
    """A failing test's own text."""

    path: str
    name: str
    code: str


@dataclass(slots=True)
class _Ranking:
    scores: dict[tuple[str, Span | None], float] = field(default_factory=dict[tuple[str, "Span | None"], float])

    def add(self, path: str, span: Span | None, points: float) -> None:
        key = (path, span)
        self.scores[key] = max(self.scores.get(key, 0.0), points)


class CodeBase:
    """The tracked files of one commit, read once each."""

    def __init__(self, tracked: Sequence[str], read: Read, prefix: str = "") -> None:
        self.tracked = list(tracked)
        self._tracked_set = frozenset(tracked)
        self._prefix = prefix  # where the check runs: paths in its output are relative to it
        self._read = read
        self._sources: dict[str, SourceText | None] = {}
        self._trees: dict[str, ast.Module | None] = {}
        self._spans: dict[str, list[Span]] = {}
        self.remembered: dict[str, list[str]] = {}  # what a command said of the code as it is

    def content(self, path: str) -> bytes:
        """A file's bytes."""
        return self._read(path)

    def source(self, path: str) -> SourceText | None:
        """A file's text; None when it is not text, or not there."""
        if path not in self._tracked_set:
            return None
        if path not in self._sources:
            self._sources[path] = SourceText.read(self._read(path), path)
        return self._sources[path]

    def tree(self, path: str) -> ast.Module | None:
        """A Python file's syntax tree."""
        if path not in self._trees:
            source = self.source(path) if is_python(path) else None
            self._trees[path] = parse(source.text) if source else None
        return self._trees[path]

    def spans(self, path: str) -> list[Span]:
        """A file's functions."""
        if is_python(path):
            tree = self.tree(path)
            return functions(tree) if tree else []
        if path not in self._spans:
            source = self.source(path) if is_source(path) else None
            spans = spans_of(path, source.text) if source else []
            # Rust keeps unit tests beside the code; they are not what a task rewrites
            inline = ("tests.", "test.") if path.endswith(".rs") else ()
            self._spans[path] = [span for span in spans if not span.qualname.startswith(inline)]
        return self._spans[path]

    def resolve(self, place: str) -> str | None:
        """The tracked file a path in an output means."""
        place = place.removeprefix("./")
        for name in (f"{self._prefix}/{place}" if self._prefix else place, place):
            if name in self._tracked_set:
                return name
        return next((name for name in self.tracked if place.endswith(f"/{name}")), None)


def failing_tests(code: CodeBase, evidence: Evidence, output: str, check: str = "") -> list[FailingTest]:
    """The text of the failing tests, in the order they failed; each once.

    Where the run says nothing (it was killed, say), the files the check names, else the repository's only test file.
    """
    found: dict[tuple[str, str], FailingTest] = {}
    for failure in evidence.failures:
        path, name = _test_of(code, failure.test)
        for place, line in () if path and name else failure.trace:
            resolved = code.resolve(place)
            if resolved and is_test(resolved):
                span = covering(code.spans(resolved), line)
                path, name = resolved, span.name if span else ""
                break
        if path is not None:
            _add_test(code, found, path, name)
    if not found:
        for place, line in _places(output):
            resolved = code.resolve(place)
            if resolved and is_test(resolved):
                span = covering(code.spans(resolved), line)
                _add_test(code, found, resolved, span.name if span else "")
    if not found:
        all_tests = [name for name in code.tracked if is_test(name) and is_source(name)]
        mentioned = [
            code.resolve(word.partition("::")[0]) for word in check.split() if is_source(word.partition("::")[0])
        ]
        for path in [name for name in mentioned if name] or (all_tests if len(all_tests) == 1 else []):
            _add_test(code, found, path, "")
    return list(found.values())


def choose_targets(
    code: CodeBase, named: Sequence[str], evidence: Evidence, output: str, *, instruction: str, check: str = ""
) -> list[Target]:
    """What to rewrite, the likeliest first; at most three.

    Args:
        code: the repository.
        named: files the task names; the target is in one of them. Without any: what the trace or the tests lead to.
        evidence: of the failing run.
        output: of the failing run.
        instruction: the task in words; functions it names come first.
        check: the command; where nothing else does, the files it names lead on.

    Raises:
        RepositoryError: nothing leads to a file, or a named file is not text.
    """
    allowed = [name for name in named if not is_protected(name)] or list(named)
    for name in allowed:
        if code.source(name) is None:
            raise RepositoryError(f"{name} is not a text file in a known encoding")
    tests = failing_tests(code, evidence, output, check)
    searched = allowed or [name for name in code.tracked if is_source(name) and not is_protected(name)]
    ranking = _Ranking()
    _rank_by_trace(code, ranking, searched, evidence, output)
    _rank_by_calls(code, ranking, searched, tests)
    _rank_callees(code, ranking, searched)
    _rank_by_words(code, ranking, searched, instruction)
    if not ranking.scores:
        if not allowed:
            raise RepositoryError(
                "neither the failing output nor the failing test leads to a function of this repository: "
                "say which file to change with --file"
            )
        for name in allowed:
            spans = code.spans(name)
            ranking.add(name, spans[0] if len(spans) == 1 else None, 1.0)
    ordered = sorted(ranking.scores.items(), key=lambda item: -item[1])
    keys = [key for key, _ in ordered][:MAX_TARGETS]
    first_file = keys[0][0]
    source = code.source(first_file)
    num_lines = source.text.count("\n") if source else 0
    if len(keys) < MAX_TARGETS and (first_file, None) not in keys and num_lines <= SHORT_FILE_LINES:
        keys.append((first_file, None))
    return [_target(code, path, span) for path, span in keys]


def _target(code: CodeBase, path: str, span: Span | None) -> Target:
    source = code.source(path)
    assert source is not None
    return Target(path, code.content(path), source, span)


def _rank_by_trace(code: CodeBase, ranking: _Ranking, searched: Sequence[str], evidence: Evidence, output: str) -> None:
    """Functions the trace went through, the innermost first: where it broke is the first suspect."""
    traces = [list(failure.trace) or _places(failure.message) for failure in evidence.failures] or [_places(output)]
    for trace in traces[:3]:
        # Python's traces end where it broke, those of others begin there
        ordered = trace if trace and not is_python(trace[0][0]) else list(reversed(trace))
        for depth, (place, line) in enumerate(ordered):
            path = code.resolve(place)
            if path is not None and path in searched:
                span = covering(code.spans(path), line)
                # a module that cannot even be loaded is repaired as a whole, whatever functions are spoken of
                ranking.add(path, span, 12.0 if span is None and depth == 0 else 8.0 / (1 + 0.2 * depth))


def _rank_by_calls(code: CodeBase, ranking: _Ranking, searched: Sequence[str], tests: Sequence[FailingTest]) -> None:
    """Functions the failing tests call by name; those of a module the test imports before namesakes elsewhere."""
    for test in tests[:5]:
        names = _names_used_in(test.path, test.code)
        imported = imported_files(code, test.path)
        # test names tell what they test: test_slugify_empty -> slugify
        for name in [*names, *_named_by(test.name)]:
            for path in [p for p in searched if p in imported] or searched[:MAX_SEARCHED_FILES]:
                for span in code.spans(path):
                    if span.name == name and not name.startswith("__"):
                        ranking.add(path, span, 5.0 if name in names else 4.0)


def _rank_by_words(code: CodeBase, ranking: _Ranking, searched: Sequence[str], instruction: str) -> None:
    words = set(re.findall(r"[A-Za-z_]\w+", instruction))
    for path in searched[:MAX_SEARCHED_FILES]:
        for span in code.spans(path):
            known = (path, span) in ranking.scores
            # outside of what the failure leads to, only a name no sentence would contain by chance counts
            if span.name in words and (known or "_" in span.name):
                ranking.add(path, span, 10.0)


def _rank_callees(code: CodeBase, ranking: _Ranking, searched: Sequence[str]) -> None:
    """What the suspects call in their own file may be where the fault is."""
    for (path, span), score in list(ranking.scores.items()):
        source = code.source(path)
        if span is None or source is None or path not in searched:
            continue
        used = set(_names_used_in(path, source_lines(source.text, span))) - {span.name}
        for other in code.spans(path):
            if other.name in used and not other.name.startswith("__"):
                ranking.add(path, other, score * 0.4)


def focus_lines(code: CodeBase, path: str, evidence: Evidence, output: str, words: set[str]) -> list[int]:
    """Lines of a file that a task is about, the most important first: where it broke, functions it names, its words."""
    traces = [list(failure.trace) or _places(failure.message) for failure in evidence.failures] or [_places(output)]
    broke = [line for trace in traces for place, line in reversed(trace) if code.resolve(place) == path]
    spans = [span for span in code.spans(path) if span.name in words]
    named = [line for span in spans for line in (span.first_line, span.last_line)]  # what it takes, what it gives
    source = code.source(path)
    lines = split_lines(source.text) if source else []
    telling = {word for word in words if len(word) > 3}
    said = [number for number, line in enumerate(lines, 1) if telling & set(re.findall(r"[A-Za-z_]\w+", line))]
    return list(dict.fromkeys([*broke, *named, *said]))


def trimmed_output(output: str, evidence: Evidence, max_chars: int) -> str:
    """What a failing run says, in few words: the messages of the failing tests, else the end of the output."""
    # a script's message alone does not show the line that failed; its traceback does
    if evidence.failures and not all(failure.is_script for failure in evidence.failures):
        pieces = [f"{failure.test}: {_short(failure.message)}" for failure in evidence.failures[:4]]
        more = len(evidence.failures) - 4
        text = "\n".join([*pieces, f"(and {more} more)"] if more > 0 else pieces)
    else:
        text = "\n".join(line.rstrip() for line in _PROBE_FRAMES.sub("", output).strip().splitlines())
    text = re.sub(r"\n{3,}", "\n\n", text)
    if len(text) <= max_chars:
        return text
    return text[: max_chars // 3] + "\n[...]\n" + text[-(max_chars * 2 // 3) :]


def _short(message: str) -> str:
    lines = [line for line in message.strip().splitlines() if line.strip()]
    return "\n".join(lines[:12])


def _places(output: str) -> list[tuple[str, int]]:
    """Files and lines an output mentions, in the order of the output."""
    found = [(m.start(), m[1], int(m[2])) for pattern in _PLACES for m in pattern.finditer(output)]
    return [(path, line) for _, path, line in sorted(found)]


def _test_of(code: CodeBase, test_id: str) -> tuple[str | None, str]:
    """File and function of `a/test_b.py::TestC::test_d[e]` (pytest) or `a.test_b.TestC.test_d` (unittest)."""
    path, _, rest = test_id.removeprefix("collect:").partition("::")
    if resolved := code.resolve(path):
        return resolved, rest.rpartition("::")[2].partition("[")[0]
    parts = test_id.split(".")
    for length in range(len(parts) - 1, 0, -1):
        if resolved := code.resolve("/".join(parts[:length]) + ".py"):
            return resolved, parts[-1]
    return None, ""


def _add_test(code: CodeBase, found: dict[tuple[str, str], FailingTest], path: str, name: str) -> None:
    source = code.source(path)
    if source is None or (path, name) in found:
        return
    span = next((span for span in code.spans(path) if name and span.name == name), None)
    found[path, name] = FailingTest(path, name, source_lines(source.text, span) if span else source.text)


def _named_by(test_name: str) -> list[str]:
    words = test_name.removeprefix("test_").split("_")
    return ["_".join(words[:length]) for length in range(len(words), 0, -1)] if test_name.startswith("test_") else []


def _names_used_in(path: str, code: str) -> list[str]:
    if not is_python(path):
        return names_in(path, code)
    tree = parse(dedented(code))
    return names_used(tree) if tree else []


def dedented(code: str) -> str:
    """Code moved to the margin, whatever its multi-line strings hold."""
    lines = code.splitlines()
    margin = min((len(line) - len(line.lstrip()) for line in lines if line.strip()), default=0)
    return "\n".join(line[margin:] for line in lines)
