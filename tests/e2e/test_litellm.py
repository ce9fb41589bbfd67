"""Past one machine: a LiteLLM proxy before two garzone servers, twenty tasks at once, one server killed half-way."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from garzone import wiring
from garzone.agent.events import CandidateJudged, Event
from garzone.config import Settings, load
from garzone.core.task import Report, Task, TaskKind, Verdict
from garzone.delegate.run import new_task_id, run
from tests.agent.repositories import CHECK, make_repository
from tests.e2e.conftest import MODEL, World

LITELLM = Path(__file__).parents[2] / ".venv" / "litellm" / "bin" / "litellm"
NUM_TASKS = 20
KEY = "sk-only-for-this-test"

pytestmark = pytest.mark.litellm

ADDER = "def {name}(a, b):\n    return a - b\n"
TEST_ADDER = (
    "from adder import {name}\n\n\ndef test_it():\n    assert {name}(2, 3) == 5\n    assert {name}(-1, 1) == 0\n"
)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def _program(
    command: list[str], environment: dict[str, str], log: Path, ready: str
) -> Iterator[subprocess.Popen[bytes]]:
    """A server that answers at `ready`; whatever becomes of it, it is gone afterwards."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output, start_new_session=True)
    try:
        for _ in range(1200):
            try:
                urllib.request.urlopen(ready, timeout=2).close()
                break
            except OSError:
                assert process.poll() is None, log.read_text()[-3000:]
                time.sleep(0.1)
        else:
            pytest.fail(f"{command[0]} does not answer: {log.read_text()[-3000:]}")
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _configuration(ports: list[int]) -> str:
    """Two servers under one name. Nothing in it names another model to fall back to."""
    models = [
        {
            "model_name": MODEL,
            "litellm_params": {
                "model": f"openai/{MODEL}", "api_key": "none", "timeout": 300,
                "api_base": f"http://127.0.0.1:{port}/v1",
            },
        }
        for port in ports
    ]  # fmt: skip
    router = {"routing_strategy": "least-busy", "num_retries": 4, "allowed_fails": 1, "cooldown_time": 20}
    general = {"master_key": KEY}  # it does not start without one
    return json.dumps({"model_list": models, "router_settings": router, "general_settings": general})  # JSON is YAML


@pytest.mark.timeout(1500)
async def test_nothing_is_lost_when_one_of_two_servers_behind_a_proxy_dies(world: World, tmp_path: Path) -> None:
    if not LITELLM.exists():
        pytest.fail("no LiteLLM here: make e2e-litellm installs it")
    ports, front = [_free_port(), _free_port()], _free_port()
    config = tmp_path / "litellm.yaml"
    config.write_text(_configuration(ports))
    serve = [sys.executable, "-m", "garzone", "serve", "--port"]
    first = _program([*serve, str(ports[0])], world.environment, tmp_path / "1.log", f"http://127.0.0.1:{ports[0]}/")
    second = _program([*serve, str(ports[1])], world.environment, tmp_path / "2.log", f"http://127.0.0.1:{ports[1]}/")
    command = [str(LITELLM), "--config", str(config), "--host", "127.0.0.1", "--port", str(front)]
    url = f"http://127.0.0.1:{front}"
    proxy = _program(command, dict(os.environ), tmp_path / "proxy.log", f"{url}/health/liveliness")
    with first as victim, second, proxy:
        judged: list[str] = []

        def listener(event: Event) -> None:
            if isinstance(event, CandidateJudged):
                judged.append(event.outcome)
                if len(judged) == NUM_TASKS and victim.poll() is None:
                    os.killpg(victim.pid, signal.SIGKILL)

        reports = await _delegate_all(world, tmp_path, url, listener)
        assert victim.poll() is not None, "the server was to die half-way"
    assert len(reports) == NUM_TASKS
    verdicts = Counter(report.verdict for report in reports)
    print(dict(verdicts), Counter(judged), [note for report in reports for note in report.notes if "again" in note][:3])
    assert {report.served_by.model for report in reports if report.served_by} == {MODEL}
    # a task that is not proved has used all of its candidates: none was lost with the server
    assert all(report.num_candidates == 4 for report in reports if report.verdict is Verdict.FAILED)
    assert (
        len([entry for entry in wiring.open_ledger(_settings(world)).entries() if entry.outcome != "error"])
        == NUM_TASKS
    )
    assert verdicts[Verdict.PROVED] >= 1


def _settings(world: World) -> Settings:
    return load(
        {"GARZONE_HOME": str(world.home / "litellm"), "OLLAMA_MODELS": str(world.models), "GARZONE_BACKEND_KEY": KEY}
    )


async def _delegate_all(world: World, tmp_path: Path, url: str, listener: Callable[[Event], None]) -> list[Report]:
    settings = _settings(world)
    generator = await wiring.open_generator(settings, url)
    sandbox, ledger = wiring.open_sandbox(), wiring.open_ledger(settings)
    task = Task("", TaskKind.FIX, "", Path(), check=CHECK, model=MODEL, num_candidates=4, max_rounds=1, timeout_s=1200)
    names = ["add", "add_numbers", "total", "plus", "sum_of"]

    async def one(number: int) -> Report:
        name = names[number % len(names)]
        files = {"adder.py": ADDER.format(name=name), "test_adder.py": TEST_ADDER.format(name=name)}
        repo = await asyncio.to_thread(make_repository, tmp_path / f"repo{number}", files)
        given = replace(task, id=new_task_id(), repo=repo, instruction=f"{name} must add its two numbers")
        return await run(given, generator, sandbox, ledger, on_event=listener)

    try:
        return await asyncio.gather(*(one(number) for number in range(NUM_TASKS)))
    finally:
        await generator.aclose()
