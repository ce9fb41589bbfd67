"""Where tests go, how they import what they test, and the command that runs one test file. Decides from names."""

from __future__ import annotations

import posixpath
import re
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from garzone.agent.checks import narrowed
from garzone.agent.target import is_python, is_test
from garzone.agent.worktree import Repository


def module_name(path: str, tracked: Sequence[str] = ()) -> str:
    """The name under which a Python file is imported: from below `src/`, else from the top of its packages."""
    parts = list(PurePosixPath(path).with_suffix("").parts)
    if "src" in parts:
        parts = parts[parts.index("src") + 1 :]
    elif tracked:
        known, start = set(tracked), len(parts) - 1
        while start > 0 and "/".join([*parts[:start], "__init__.py"]) in known:
            start -= 1
        parts = parts[start:]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def import_line(
    path: str, test_path: str, language: str, names: Sequence[str] = (), tracked: Sequence[str] = ()
) -> str:
    """How a test file imports names of the file it tests."""
    if language == "python":
        listed = ", ".join(names) or "*"
        return f"from {module_name(path, tracked)} import {listed}"
    relative = posixpath.relpath(path, posixpath.dirname(test_path) or ".")
    relative = relative if relative.startswith(".") else f"./{relative}"
    if language in ("typescript", "tsx"):
        relative = re.sub(r"\.tsx?$", "", relative)
    listed = f"{{ {', '.join(names)} }}" if names else "* as subject"
    if path.endswith(".cjs"):
        return f"const {listed if names else 'subject'} = require('{relative}');"
    return f"import {listed} from '{relative}';"


def new_test_path(path: str, tracked: Sequence[str]) -> str:
    """Where a new test file for a source file goes, by the habits of its language and repository."""
    place, known = PurePosixPath(path), set(tracked)
    tests = [name for name in tracked if is_test(name) and PurePosixPath(name).suffix == place.suffix]
    folder = posixpath.dirname(path)
    if is_python(path):
        folders = sorted({posixpath.dirname(name) for name in tests if not name.endswith("conftest.py")}, key=len)
        beside = not folders or folder in folders
        folder = folder if beside else folders[0]
        names = [f"test_{place.stem}.py", *(f"test_{place.stem}_{n}.py" for n in ("more", "further", "also"))]
    elif place.suffix == ".go":
        names = [f"{place.stem}_test.go", f"{place.stem}_more_test.go"]
    elif place.suffix == ".rs":
        folder = posixpath.join(folder.removesuffix("src").rstrip("/"), "tests").lstrip("/")
        names = [f"{place.stem}.rs", f"{place.stem}_more.rs"]
    elif place.suffix == ".java":
        folder = folder.replace("src/main/", "src/test/")
        names = [f"{place.stem}Test.java", f"{place.stem}MoreTest.java"]
    else:
        spec = ".spec" if any(".spec." in name for name in tests) else ".test"
        if tests and all("__tests__" in name or name.startswith("test") for name in tests):
            folder = posixpath.dirname(tests[0])
        names = [f"{place.stem}{spec}{place.suffix}", f"{place.stem}.more{spec}{place.suffix}"]
    paths = [posixpath.join(folder, name) if folder else name for name in names]
    return next((name for name in paths if name not in known), paths[-1])


def test_command(check: str | None, path: str, repository: Repository) -> str | None:
    """The command that runs one test file; None where it is not known how."""
    prefix = repository.prefix
    if check is not None and (narrow := narrowed(check, [path], prefix)):
        return narrow
    shown = shlex.quote(path.removeprefix(f"{prefix}/") if prefix else path)
    suffix = PurePosixPath(path).suffix
    if suffix == ".py":
        places = [repository.top / ".venv/bin", repository.top / prefix / ".venv/bin", Path(sys.prefix) / "bin"]
        if any((place / "pytest").exists() for place in places) or shutil.which("pytest"):
            return f"pytest -q -p no:cacheprovider {shown}"
        return f"python3 -m unittest -q {shown}"
    if suffix in (".js", ".mjs", ".cjs"):
        return f"node --test {shown}"
    if suffix == ".go":
        return "go test ./..."
    if suffix == ".rs":
        return "cargo test --quiet --offline"
    if suffix == ".ts" and check is not None and "npx" in check:
        return f"{check} {shown}"
    return None
