"""Finds the check a project has: its test command, its type check, and the narrower command for some of its tests.

Reads files it is given and looks for programs; runs nothing.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, cast

from garzone.agent.target import is_python, is_test

Read = Callable[[str], bytes]
MAX_LOOKED_AT = 5000
NPM_PLACEHOLDER = "no test specified"  # what `npm init` writes
JS_TEST = re.compile(r"\.(?:test|spec)\.[cm]?[jt]sx?$|(?:^|/)__tests__/.*\.[cm]?[jt]sx?$|(?:^|/)test/.*\.[cm]?js$")


@dataclass(frozen=True, slots=True)
class FoundCheck:
    """A command and why it is believed to be the project's check."""

    command: str
    reason: str


def find_check(tracked: Sequence[str], read: Read, top: Path, prefix: str = "") -> FoundCheck | None:
    """The project's own check, from its files; None where nothing tells.

    Args:
        tracked: all files, relative to the top level.
        read: gives a file's bytes.
        top: the working tree, where installed programs are looked for.
        prefix: the task's directory; a check found above it is run from there.
    """
    parts = PurePosixPath(prefix).parts
    for depth in range(len(parts), -1, -1):
        base = "/".join(parts[:depth])
        finder = _Finder(tracked, read, top, base)
        if found := finder.find():
            up = "/".join([".."] * (len(parts) - depth))
            return FoundCheck(f"cd {up} && {found.command}", found.reason) if up else found
    return None


def shows_a_check(directory: Path) -> bool:
    """Whether a directory's files, committed or not, tell a check; True where there is nothing to look at."""
    directory = directory.expanduser()
    patterns = ("*", "*/*", "*/*/*")
    try:
        found = [path for pattern in patterns for path in directory.glob(pattern) if path.is_file()][:MAX_LOOKED_AT]
    except OSError:
        return True  # that it cannot be read is said by whoever has to
    names = [str(path.relative_to(directory)) for path in found]
    return not names or find_check(names, lambda name: (directory / name).read_bytes(), directory) is not None


class _Finder:
    """Looks at one directory."""

    def __init__(self, tracked: Sequence[str], read: Read, top: Path, base: str) -> None:
        self._read = read
        self._base = f"{base}/" if base else ""
        self._files = {name.removeprefix(self._base) for name in tracked if name.startswith(self._base)}
        self._place = top / base
        self._top = top

    def find(self) -> FoundCheck | None:
        for look in (self._node, self._cargo, self._go, self._python, self._maven, self._make, self._bare_node):
            if found := look():
                return found
        return None

    def _text(self, name: str) -> str:
        return self._read(self._base + name).decode("utf-8", "replace") if name in self._files else ""

    def _has_program(self, name: str) -> bool:
        places = [self._place / ".venv/bin", self._place / "venv/bin", self._place / "node_modules/.bin"]
        places += [self._top / ".venv/bin", self._top / "node_modules/.bin", Path(sys.prefix) / "bin"]
        return any((place / name).exists() for place in places) or shutil.which(name) is not None

    def _node(self) -> FoundCheck | None:
        package = _json(self._text("package.json"))
        scripts = _table(package.get("scripts"))
        script = str(scripts.get("test") or "")
        if script and NPM_PLACEHOLDER not in script:
            tool = "pnpm" if "pnpm-lock.yaml" in self._files and self._has_program("pnpm") else "npm"
            last = re.split(r"&&|;", script)[-1]
            more = " -- --no-cache" if re.search(r"\bvitest\b", last) and "--no-cache" not in last else ""
            return FoundCheck(f"{tool} --silent test{more}", f"package.json: test is `{script[:60]}`")
        wanted = {**_table(package.get("devDependencies")), **_table(package.get("dependencies"))}
        if "vitest" in wanted or any(name.startswith("vitest.config.") for name in self._files):
            # its cache lies in node_modules, which no check may write
            return FoundCheck("npx --no-install vitest run --no-cache", "vitest is what package.json asks for")
        if "jest" in wanted or any(name.startswith("jest.config.") for name in self._files):
            return FoundCheck("npx --no-install jest", "jest is what package.json asks for")
        return None

    def _bare_node(self) -> FoundCheck | None:
        tests = [name for name in self._files if JS_TEST.search(name) and name.endswith(("js", "mjs", "cjs"))]
        return FoundCheck("node --test", f"test files for Node's own runner ({min(tests)})") if tests else None

    def _cargo(self) -> FoundCheck | None:
        if "Cargo.toml" not in self._files:
            return None
        return FoundCheck("cargo test --quiet --offline", "Cargo.toml")

    def _go(self) -> FoundCheck | None:
        if "go.mod" not in self._files or not any(name.endswith("_test.go") for name in self._files):
            return None
        return FoundCheck("go test ./...", "go.mod and _test.go files")

    def _python(self) -> FoundCheck | None:
        tests = sorted(name for name in self._files if is_test(name) and is_python(name))
        tests = [name for name in tests if PurePosixPath(name).name not in ("conftest.py", "__init__.py")]
        configured = self._pytest_is_configured()
        if not tests and not configured:
            return None
        texts = [self._text(name) for name in tests[:40]]
        only_unittest = bool(texts) and all("unittest" in text or "TestCase" in text for text in texts if text.strip())
        if configured or not only_unittest:
            if not self._has_program("pytest"):
                if not only_unittest:
                    return None  # nothing here could run them
            elif configured or any(re.search(r"^\s*(?:async )?def test|import pytest", text, re.M) for text in texts):
                return FoundCheck("pytest -q", configured or f"tests for pytest ({tests[0]})")
        if only_unittest:
            folders = {PurePosixPath(name).parts[0] for name in tests if "/" in name}
            whole = f"python3 -m unittest discover -q -s {shlex.quote(min(folders))} -t ." if len(folders) == 1 else ""
            has_package = len(folders) == 1 and f"{min(folders)}/__init__.py" in self._files
            if whole and not has_package:
                whole = f"python3 -m unittest discover -q -s {shlex.quote(min(folders))}"
            return FoundCheck(whole or "python3 -m unittest -q", f"tests for unittest ({tests[0]})")
        return None

    def _pytest_is_configured(self) -> str:
        for name, mark in (
            ("pytest.ini", ""),
            (".pytest.ini", ""),
            ("setup.cfg", "[tool:pytest]"),
            ("tox.ini", "[pytest]"),
        ):
            if name in self._files and mark in self._text(name):
                return name
        tool = _table(_toml(self._text("pyproject.toml")).get("tool"))
        return (
            "pyproject.toml: tool.pytest" if "pytest" in tool else "conftest.py" if "conftest.py" in self._files else ""
        )

    def _maven(self) -> FoundCheck | None:
        if "pom.xml" in self._files:
            return FoundCheck("mvn -q -o test", "pom.xml")
        if {"build.gradle", "build.gradle.kts"} & self._files:
            wrapper = "./gradlew" if "gradlew" in self._files else "gradle"
            return FoundCheck(f"{wrapper} -q --offline test", "build.gradle")
        return None

    def _make(self) -> FoundCheck | None:
        for name in ("Makefile", "makefile", "GNUmakefile"):
            if re.search(r"^test\s*:(?!=)", self._text(name), re.MULTILINE):
                return FoundCheck("make test", f"{name} has a target test")
        return None


_PYTEST = re.compile(r"^(?:\w+=\S+ )*(?:\S*python[\d.]* -m )?(?:\S*/)?pytest(?: -\S+(?: no:\S+)?)*$")
_NODE = re.compile(r"^node --test$")
_RUNNERS = re.compile(r"^(?:npx --no-install )?(?:vitest run(?: --no-cache)?|jest)$")
_NPM = re.compile(r"^(?:npm|pnpm) --silent test( -- --no-cache)?$")


def narrowed(check: str, tests: Sequence[str], prefix: str = "") -> str | None:
    """The same check for some test files only; None where the command does not say how.

    Args:
        check: the whole command.
        tests: test files, relative to the top level.
        prefix: the directory the command runs in.
    """
    start = f"{prefix}/" if prefix else ""
    if not tests or not all(name.startswith(start) for name in tests):
        return None
    names = " ".join(shlex.quote(name.removeprefix(start)) for name in sorted(set(tests)))
    if _PYTEST.match(check) or _NODE.match(check) or _RUNNERS.match(check):
        return f"{check} {names}"
    npm = _NPM.match(check)
    return (f"{check} {names}" if npm[1] else f"{check} -- {names}") if npm else None


def find_type_check(tracked: Sequence[str], read: Read, top: Path, prefix: str, changed: Sequence[str]) -> str | None:
    """The type check of a project that has one configured and installed, for the language of the changed files."""
    files = set(tracked)
    start = f"{prefix}/" if prefix else ""
    installed = [top / prefix, top]

    def tool(name: str, *folders: str) -> bool:
        local = any((root / folder / name).exists() for root in installed for folder in folders)
        return local or shutil.which(name) is not None

    if any(re.search(r"\.[cm]?tsx?$", name) for name in changed):
        configured = f"{start}tsconfig.json" in files or "tsconfig.json" in files
        return "tsc --noEmit --pretty false" if configured and tool("tsc", "node_modules/.bin") else None
    if any(is_python(name) for name in changed):
        text = read("pyproject.toml").decode("utf-8", "replace") if "pyproject.toml" in files else ""
        settings = _table(_toml(text).get("tool"))
        paths = " ".join(shlex.quote(name.removeprefix(start)) for name in changed if is_python(name))
        if ("mypy" in settings or "mypy.ini" in files) and tool("mypy", ".venv/bin", "venv/bin"):
            return f"mypy --no-error-summary --cache-dir=/dev/null {paths}"
        if ("pyright" in settings or "pyrightconfig.json" in files) and tool(
            "pyright", ".venv/bin", "node_modules/.bin"
        ):
            return f"pyright {paths}"
    return None


def _json(text: str) -> dict[str, Any]:
    try:
        return _table(json.loads(text)) if text else {}
    except ValueError:
        return {}


def _toml(text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return {}


def _table(value: object) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}
