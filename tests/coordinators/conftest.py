"""The world of a person with a coordinator; the model is pulled once a machine."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.coordinators.world import MODEL, World, make_world


@pytest.fixture(scope="session")
def models() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "garzone-tests"
    environment = {**os.environ, "OLLAMA_MODELS": str(cache / "models"), "GARZONE_HOME": str(cache / "home")}
    command = [sys.executable, "-m", "garzone", "pull", MODEL]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return cache / "models"


@pytest.fixture
def world(tmp_path: Path, models: Path) -> World:
    return make_world(tmp_path, models)
