"""The demo's samples: each has one bug, its tests see it, and one line repairs it. The model is not asked here."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from demo.__main__ import ALL, SAMPLES, Sample, make_repository

REPAIRS = {
    "inventory": ("return stock + sold", "return stock - sold"),
    "pager": ("pages = 1", "pages += 1"),
    "textstats": ("if number < largest", "if number > largest"),
}


def check(directory: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:asyncio"]
    return subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("sample", ALL, ids=lambda sample: sample.name)
def test_a_sample_fails_as_it_is_and_passes_once_its_one_line_is_repaired(sample: Sample, tmp_path: Path) -> None:
    repository = tmp_path / sample.name
    make_repository(SAMPLES / sample.name, repository)
    before = check(repository)
    assert before.returncode == 1, before.stdout
    assert "error" not in before.stdout.lower().replace("assertionerror", "")
    bug, repair = REPAIRS[sample.name]
    code = (repository / sample.file).read_text()
    assert code.count(bug) == 1
    (repository / sample.file).write_text(code.replace(bug, repair))
    after = check(repository)
    assert after.returncode == 0, after.stdout


@pytest.mark.parametrize("sample", ALL, ids=lambda sample: sample.name)
def test_a_sample_is_small_and_has_a_handful_of_tests(sample: Sample) -> None:
    code = (SAMPLES / sample.name / sample.file).read_text()
    assert 20 <= len(code.splitlines()) <= 60
    tests = ast.parse((SAMPLES / sample.name / f"test_{sample.file}").read_text())
    assert 3 <= sum(isinstance(node, ast.FunctionDef) for node in tests.body) <= 6


def test_a_copy_is_a_clean_repository_with_one_commit(tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(SAMPLES / ALL[0].name, source)
    (source / "__pycache__").mkdir()
    (source / "__pycache__" / "old.pyc").write_bytes(b"")
    make_repository(source, tmp_path / "copy")
    git = ["git", "-C", str(tmp_path / "copy")]
    assert subprocess.run([*git, "status", "--porcelain"], capture_output=True, check=True).stdout == b""
    assert subprocess.run([*git, "rev-list", "--count", "HEAD"], capture_output=True, check=True).stdout == b"1\n"
    assert not (tmp_path / "copy" / "__pycache__").exists()
