"""Kinds of task as a person delegates them, with the real small model: what is said must be true."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import MODEL, World, git
from tests.numbers import record_number

pytestmark = pytest.mark.slow

EVEN = 'def is_even(number):\n    """Return True if number is even."""\n    raise NotImplementedError\n'
TEST = "from parity import is_even\n\n\ndef test_even():\n    assert is_even(4)\n    assert is_even(0)\n\n\n"
TEST += "def test_odd():\n    assert not is_even(3)\n    assert not is_even(-1)\n"
CLIP = "def clip(value, low, high):\n    return max(low, min(value, high))\n"


def repository(place: Path, files: dict[str, str]) -> Path:
    place.mkdir()
    for name, text in files.items():
        (place / name).write_text(text)
    git(place, "init", "-q")
    git(place, "add", "-A")
    git(place, "commit", "-qm", "start")
    return place


def delegated(world: World, *words: object) -> dict[str, Any]:
    done = world.garzone("delegate", *words, "--model", MODEL, "--json", timeout=580)
    assert done.returncode in (0, 1), done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    record_number(f"delegate {words[0]}, embedded engine, seconds", report["duration_ms"] / 1000)
    return report


def passes(repo: Path, branch: str) -> bool:
    """Whether the tests pass on a branch, asked of pytest and not of garzone."""
    with tempfile.TemporaryDirectory() as directory:
        for name in git(repo, "ls-tree", "--name-only", branch).split():
            (Path(directory) / name).write_text(git(repo, "show", f"{branch}:{name}"))
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        return subprocess.run(command, cwd=directory, capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("kind", ["complete", "implement"])
def test_a_stub_is_filled_by_the_real_model(world: World, tmp_path: Path, kind: str) -> None:
    repo = repository(tmp_path / "r", {"parity.py": EVEN, "test_parity.py": TEST})
    words = ["is_even tells whether a number is even"] if kind == "implement" else []
    report = delegated(world, kind, *words, "--repo", repo, "--file", "parity.py", "--candidates", 8)
    assert report["verdict"] == "proved", report
    assert passes(repo, report["branch"])
    assert git(repo, "status", "--porcelain") == ""


def test_documentation_by_the_real_model_never_touches_the_code(world: World, tmp_path: Path) -> None:
    repo = repository(tmp_path / "r", {"limits.py": CLIP})
    report = delegated(world, "docs", "--repo", repo, "--file", "limits.py", "--candidates", 8)
    assert report["verdict"] in ("proved", "unproved", "failed")
    if report["branch"]:
        text = git(repo, "show", f"{report['branch']}:limits.py")
        assert "return max(low, min(value, high))" in text
        assert '"""' in text or "#" in text
