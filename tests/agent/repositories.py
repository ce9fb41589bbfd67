"""Small real repositories for the worker's tests."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from garzone.core.task import Task, TaskKind

# this Python by its path: the first on PATH may be a slow shim
CHECK = f"PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 {sys.executable} -m pytest -q -x -p no:cacheprovider"

PAGER = '''"""Pages of a list."""


def paginate(items, page, size):
    """Return one page; pages count from 1."""
    start = page * size
    return items[start : start + size]


def count_pages(items, size):
    return -(-len(items) // size)
'''
TEST_PAGER = """from pager import count_pages, paginate


def test_first_page():
    assert paginate([1, 2, 3, 4, 5], 1, 2) == [1, 2]


def test_count_pages():
    assert count_pages([1, 2, 3], 2) == 2
"""
FIXED_PAGINATE = '''def paginate(items, page, size):
    """Return one page; pages count from 1."""
    start = (page - 1) * size
    return items[start : start + size]
'''


def git(repo: Path, *arguments: str) -> str:
    """Run git as a person would."""
    done = subprocess.run(
        ["git", "-c", "user.name=U", "-c", "user.email=u@example.com", *arguments],
        cwd=repo,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def make_repository(path: Path, files: Mapping[str, str] | None = None) -> Path:
    """A repository with one commit; the pager with its bug unless other files are given."""
    path.mkdir(parents=True, exist_ok=True)
    git(path, "init", "-q", "-b", "main")
    for name, content in ({"pager.py": PAGER, "test_pager.py": TEST_PAGER} if files is None else files).items():
        place = path / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(content)
    git(path, "add", "-A")
    git(path, "commit", "-q", "--allow-empty", "-m", "start")
    return path


def fix_task(repo: Path, check: str | None = CHECK, **given: Any) -> Task:
    """A fix task with few candidates."""
    values: dict[str, Any] = {"num_candidates": 2, "max_rounds": 1, "check_timeout_s": 20.0, "parallel": 1, **given}
    return Task(
        id="ab12cd", kind=TaskKind.FIX, instruction="paginate skips the first page", repo=repo, check=check, **values
    )  # type: ignore[arg-type]


def block(code: str) -> str:
    """An answer as models write it."""
    return f"Here is the corrected function:\n\n```python\n{code}```\n"
