"""The examples run as they are, as programs of their own, against a scripted Ollama."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.agent.repositories import CHECK, FIXED_PAGINATE, block, make_repository
from tests.server.conftest import app_of, running, scripted

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def url() -> Iterator[str]:
    with running(app_of(scripted(block(FIXED_PAGINATE)))) as address:
        yield address


def run(name: str, url: str, home: Path, *arguments: object) -> str:
    environment = {
        **os.environ,
        "GARZONE_BACKEND": url,
        "GARZONE_MODEL": "scripted",
        "GARZONE_HOME": str(home),
        "OLLAMA_MODELS": str(home / "models"),
    }
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_example_is_run_here() -> None:
    source = Path(__file__).read_text()
    assert all(f'"{example.name}"' in source for example in EXAMPLES.glob("*.py"))


def test_questions(url: str, tmp_path: Path) -> None:
    assert run("ask.py", url, tmp_path).count("def paginate") == 3
    assert "def paginate" in run("stream.py", url, tmp_path)


def test_delegating_and_waiting(url: str, tmp_path: Path) -> None:
    repo = make_repository(tmp_path / "repo")
    said = run("delegate_and_wait.py", url, tmp_path / "home", repo, "paginate skips the first page", CHECK)
    assert said.startswith("proved: ")
    assert "git merge garzone/fix-" in said


def test_several_at_once_and_what_does_not_pay_is_left(url: str, tmp_path: Path) -> None:
    one, two = make_repository(tmp_path / "one"), make_repository(tmp_path / "two")
    tasks = (f"{one}=paginate skips the first page", f"{two}=should we use pages at all?")
    said = run("several_at_once.py", url, tmp_path / "home", CHECK, *tasks)
    assert f"{two}: coordinator, a design decision" in said
    assert said.count("proved: garzone/fix-") == 1
