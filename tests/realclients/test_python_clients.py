"""The clients that are Python packages, against a real server with a scripted model: each a real exchange, checked."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.realclients.model import ScriptedModel
from tests.realclients.python_clients import DRIVERS
from tests.realclients.server import app_of
from tests.server.conftest import running


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running(app_of(ScriptedModel())) as address:
        yield address


@pytest.mark.parametrize("name", DRIVERS)
def test_a_client_gets_what_it_asked_for(url: str, name: str) -> None:
    command = [sys.executable, "-W", "ignore", "-m", "tests.realclients.python_clients", name, url]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
