"""`garzone delegate fix` as a person runs it: real model, real sandbox, real repository."""

import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from demo.__main__ import ALL

from tests.demo.test_samples import REPAIRS
from tests.e2e.conftest import MODEL, World, git
from tests.numbers import record_number

FIX = ("delegate", "fix", ALL[0].instruction)


def passes_its_tests(repository: Path, code: str) -> bool:
    """Whether the sample's own tests pass with this code, asked of pytest and not of garzone."""
    with tempfile.TemporaryDirectory() as directory:
        shutil.copy(repository / "test_inventory.py", directory)
        (Path(directory) / "inventory.py").write_text(code)
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        return subprocess.run(command, cwd=directory, capture_output=True, check=False).returncode == 0


def test_a_real_bug_is_repaired_and_proved_and_the_tree_stays_as_it_was(world: World, sample: Path) -> None:
    before = {path.name: path.read_bytes() for path in sample.iterdir() if path.is_file()}
    result = world.garzone(
        *FIX,
        "--repo",
        sample,
        "--file",
        "inventory.py",
        "--check",
        "pytest -q",
        "--model",
        MODEL,
        "--candidates",
        8,
        "--json",
    )
    assert result.returncode == 0, result.stderr + result.stdout
    report = json.loads(result.stdout)
    assert report["verdict"] == "proved"
    assert [file["path"] for file in report["files"]] == ["inventory.py"]
    assert report["checks"][0]["before_exit_code"] == 1
    assert report["checks"][0]["exit_code"] == 0
    assert report["served_by"]["model"] == MODEL
    assert re.fullmatch(r"sha256:[0-9a-f]{64}", report["served_by"]["digest"])
    assert report["tokens"]["completion"] > 0
    assert len(report["summary"]) <= 400
    assert {path.name: path.read_bytes() for path in sample.iterdir() if path.is_file()} == before
    assert git(sample, "status", "--porcelain") == ""
    assert passes_its_tests(sample, git(sample, "show", f"{report['branch']}:inventory.py"))
    assert git(sample, "worktree", "list").count("\n") == 1
    record_number("delegate fix, embedded engine, seconds", report["duration_ms"] / 1000)

    savings = json.loads(world.garzone("savings", "--json").stdout)
    assert json.dumps(savings).count("proved") >= 1


def test_the_same_through_a_server_on_the_wire(world: World, server: str, sample: Path) -> None:
    result = world.garzone(
        *FIX,
        "--repo",
        sample,
        "--check",
        "pytest -q",
        "--model",
        MODEL,
        "--backend",
        server,
        "--candidates",
        8,
        "--apply",
        "--json",
    )
    assert result.returncode == 0, result.stderr + result.stdout
    report = json.loads(result.stdout)
    assert report["verdict"] == "proved"
    assert report["served_by"]["backend"] == "ollama"
    assert passes_its_tests(sample, (sample / "inventory.py").read_text())


def test_a_check_that_already_passes_is_not_called_a_fix(world: World, sample: Path) -> None:
    code = (sample / "inventory.py").read_text()
    (sample / "inventory.py").write_text(code.replace(*REPAIRS["inventory"]))
    git(sample, "commit", "-qam", "Already repaired")
    result = world.garzone(*FIX, "--repo", sample, "--check", "pytest -q", "--model", MODEL, "--json")
    assert result.returncode == 1
    report = json.loads(result.stdout)
    assert report["verdict"] != "proved"
    assert "already pass" in report["summary"]


@pytest.mark.parametrize(
    ("arguments", "exit_code", "says"),
    [
        (("--file", "missing.py", "--check", "pytest -q"), 2, "missing.py"),
        (("--check", "no-such-command --now"), 2, "no-such-command"),
        (("--check", "pytest -q", "--model", "no-such-model:1b"), 3, "model 'no-such-model:1b' not found"),
        (("--check", "pytest -q", "--backend", "http://127.0.0.1:9"), 3, "127.0.0.1:9"),
    ],
)
def test_what_is_wrong_is_said_with_its_own_exit_code(
    world: World, sample: Path, arguments: tuple[str, ...], exit_code: int, says: str
) -> None:
    defaults = () if "--model" in arguments else ("--model", MODEL)
    result = world.garzone(*FIX, "--repo", sample, *arguments, *defaults)
    assert result.returncode == exit_code, result.stderr + result.stdout
    assert says in result.stderr
    assert "Traceback" not in result.stderr


def test_a_directory_that_is_no_repository_is_refused(world: World, tmp_path: Path) -> None:
    result = world.garzone(*FIX, "--repo", tmp_path, "--check", "pytest -q", "--model", MODEL)
    assert result.returncode == 2
    assert "not a git repository" in result.stderr


def test_a_dirty_tree_is_refused_and_named(world: World, sample: Path) -> None:
    (sample / "inventory.py").write_text("# half-finished\n")
    result = world.garzone(*FIX, "--repo", sample, "--check", "pytest -q", "--model", MODEL)
    assert result.returncode == 2
    assert "inventory.py" in result.stderr
