"""The server in front of real runner processes (stand-in engine): crashes, cancellations and queues by HTTP."""

import os
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import ollama
import pytest

from garzone.config import Settings
from garzone.runner.process import RunnerPool
from garzone.server.app import build_app
from tests.runner.conftest import STAND_IN, TOYS, ListStore
from tests.runner.test_process import pids
from tests.server.conftest import running
from tests.server.test_lifecycle import eventually, send


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    store = ListStore(*TOYS)
    pool = RunnerPool(store, Settings(home=tmp_path, models_dir=tmp_path), engine=STAND_IN)
    with running(build_app(pool, pool, store)) as address:
        yield address
    assert not pids()


def generate(url: str, prompt: str, **given: object) -> ollama.GenerateResponse:
    options = {"num_predict": 8}
    return ollama.Client(host=url).generate("toy", prompt, raw=True, options=options, **given)  # pyright: ignore


def test_kill_9_of_the_runner_is_an_error_to_one_request(url: str) -> None:
    before = generate(url, "hello").response
    (pid,) = pids()
    stream = ollama.Client(host=url).generate("toy", "SLOW", raw=True, stream=True)
    next(stream)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(ollama.ResponseError, match="SIGKILL"):
        list(stream)
    assert generate(url, "hello").response == before


def test_the_server_answers_while_a_model_loads(url: str) -> None:
    loading = send(url, "/api/generate", {"model": "endless"})
    time.sleep(0.1)
    assert httpx2.get(f"{url}/api/tags", timeout=30).status_code == 200
    assert httpx2.get(f"{url}/api/ps", timeout=30).json() == {"models": []}
    loading.close()
    loaded = httpx2.post(f"{url}/api/generate", json={"model": "slow"}, timeout=60)
    assert loaded.json()["done_reason"] == "load"
    assert [model["name"] for model in httpx2.get(f"{url}/api/ps").json()["models"]] == ["slow"]


def test_hanging_up_frees_the_runner_within_a_step(url: str) -> None:
    generate(url, "hello")
    body = {"model": "toy", "prompt": "SLOW", "raw": True, "options": {"num_predict": 240}}
    connection = send(url, "/api/generate", body)
    assert connection.recv(100)
    connection.close()
    started = time.monotonic()
    generate(url, "hello")
    assert time.monotonic() - started < 3  # 240 slow tokens would take five seconds


def test_stop_unloads(url: str) -> None:
    generate(url, "hello")
    httpx2.post(f"{url}/api/generate", json={"model": "toy", "keep_alive": 0})
    eventually(lambda: not pids())


def test_the_context_of_an_answer_goes_on_where_it_ended(url: str) -> None:
    client = ollama.Client(host=url)
    first = client.generate("toy", "hi", options={"num_predict": 4})
    assert first.context
    second = client.generate("toy", "more", context=first.context, options={"num_predict": 4})
    assert second.context
    assert list(second.context)[: len(first.context)] == list(first.context)


def test_an_overflow_is_400_before_anything_is_streamed(url: str) -> None:
    body = {"model": "toy", "messages": [{"role": "user", "content": "x" * 400}], "stream": True, "truncate": False}
    response = httpx2.post(f"{url}/api/chat", json=body, timeout=30)
    assert response.status_code == 400
    assert response.json()["error"].startswith("prompt is too long: ")


def test_twenty_clients_queue_for_one_runner(url: str) -> None:
    alone = [generate(url, f"number {index}").response for index in range(20)]
    with ThreadPoolExecutor(20) as threads:
        together = list(threads.map(lambda index: generate(url, f"number {index}").response, range(20)))
    assert together == alone


def test_a_client_that_leaves_the_queue_costs_nothing(url: str) -> None:
    generate(url, "hello")
    body = {"model": "toy", "prompt": "SLOW", "raw": True, "options": {"num_predict": 30}}
    busy = send(url, "/api/generate", body)
    assert busy.recv(100)
    waiting: list[socket.socket] = [send(url, "/api/generate", body) for _ in range(10)]
    time.sleep(0.1)
    for connection in waiting:
        connection.close()
    started = time.monotonic()
    generate(url, "hello")
    assert time.monotonic() - started < 3  # ten more would take six seconds
    busy.close()


def test_a_number_that_is_not_finite_is_refused_wherever_it_hides(url: str) -> None:
    body = b'{"model":"clever","messages":[{"role":"user","content":"x"}],"tools":[{"function":'
    body += b'{"name":"f","parameters":{"x":1e999}}}]}'
    response = httpx2.post(f"{url}/api/chat", content=body, timeout=30)
    assert response.status_code == 400
    assert "not finite" in response.json()["error"]
