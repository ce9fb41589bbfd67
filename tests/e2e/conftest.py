"""A machine with garzone installed and smollm2:135m pulled: the real commands, model and server."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

MODEL = "smollm2:135m"
SAMPLES = Path(__file__).parents[2] / "demo" / "samples"


@dataclass(frozen=True)
class World:
    """Where garzone keeps its things, and how to call it."""

    home: Path
    models: Path

    @property
    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "GARZONE_HOME": str(self.home),
            "OLLAMA_MODELS": str(self.models),
            "COLUMNS": "120",
        }

    def garzone(self, *arguments: object, timeout: float = 240) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "garzone", *map(str, arguments)],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "garzone-tests"
    world = World(tmp_path_factory.mktemp("home"), cache / "models")
    pulled = world.garzone("pull", MODEL)
    assert pulled.returncode == 0, pulled.stderr
    return world


@pytest.fixture(scope="session")
def server(world: World) -> Iterator[str]:
    """The URL of a running `garzone serve`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = world.home / "serve.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "garzone", "serve", "--port", str(port)],
            env=world.environment,
            stdout=output,
            stderr=output,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(200):
            try:
                urllib.request.urlopen(f"{url}/api/version", timeout=1).close()
                break
            except OSError:
                assert process.poll() is None, log.read_text()
                time.sleep(0.05)
        yield url
    finally:
        process.terminate()
        assert process.wait(timeout=20) in (0, 130, -15), log.read_text()


def git(directory: Path, *arguments: str) -> str:
    command = ["git", "-C", str(directory), "-c", "user.name=t", "-c", "user.email=t@example.test", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def sample(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A fresh copy of a sample repository (`inventory` unless parametrised), committed."""
    name: str = getattr(request, "param", "inventory")
    repository = tmp_path / name
    shutil.copytree(SAMPLES / name, repository, ignore=shutil.ignore_patterns("__pycache__", ".pytest_cache"))
    git(repository, "init", "-q")
    git(repository, "add", "-A")
    git(repository, "commit", "-qm", "As it was")
    return repository
