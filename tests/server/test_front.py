"""What can be seen of a server: health, metrics, the page and its document; and requests that take too long."""

import asyncio
import re
import socket
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx2
import ollama
import pytest
from prometheus_client.parser import text_string_to_metric_families

from garzone.core.errors import DeadlineExceeded, LedgerError, Overloaded
from garzone.core.generation import Delta, FinishReason, GenerateRequest, Usage
from garzone.core.task import TaskSummary
from garzone.server.activity import Activity
from garzone.server.metering import MeteredGenerator
from garzone.server.metrics import MAX_MODELS, Metrics
from garzone.server.page import policy
from garzone.store.catalog import Store
from garzone.testing import ScriptedGenerator, write_tiny_model
from tests.server.conftest import Scripted, running, scripted
from tests.server.test_lifecycle import send
from tests.server.test_model_routes import front_of
from tests.store.test_catalog import ollama_wrote


class History:
    def __init__(self, *, broken: bool = False) -> None:
        self.broken = broken

    def recent(self, limit: int) -> Sequence[TaskSummary]:
        if self.broken:
            raise LedgerError("ledger.db: it is damaged")
        return [
            TaskSummary("ab12cd", "fix", "/home/me/src/pager", "qwen2.5-coder:7b", "proved", time.time() - 80, 212, 310)
        ]

    def savings(self) -> Mapping[str, Any]:
        return {
            "tasks": 3, "outcomes": {"proved": 2, "failed": 1}, "estimated_tasks": 3,
            "baselines": {"alone": {"tokens": 9000, "usd": 0.2, "net_tokens": 8100, "net_usd": 0.17}},
        }  # fmt: skip


def numbers(url: str) -> dict[tuple[str, ...], float]:
    """Samples by name and the values of their labels, sorted."""
    text = httpx2.get(f"{url}/metrics").text
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_requests_tokens_and_latencies_are_counted(tmp_path: Path) -> None:
    with running(front_of(Store(tmp_path), scripted("Paris is the capital."))) as url:
        client = ollama.Client(host=url)
        for _ in range(3):
            client.chat("scripted", [{"role": "user", "content": "what is it"}])
        httpx2.post(f"{url}/api/chat", json={"model": "made-up-by-a-client"})
        httpx2.get(f"{url}/made/up/path")
        found = numbers(url)
    assert found["garzone_requests_total", "scripted", "stop"] == 3
    assert found["garzone_prompt_tokens_total", "scripted"] == 9
    assert found["garzone_completion_tokens_total", "scripted"] == 12
    assert found["garzone_time_to_first_token_seconds_count", "scripted"] == 3
    assert found["garzone_request_seconds_count", "scripted"] == 3
    assert found["garzone_http_requests_total", "/api/chat", "200", "POST"] == 3
    assert found["garzone_http_requests_total", "404", "GET", "other"] == 1
    assert found["garzone_requests_in_flight", "waiting"] == 0
    assert (found["garzone_loaded_models",], found["garzone_model_memory_bytes", "AMD gfx1100", "scripted:latest"]) == (
        1,
        250e6,
    )
    assert found["process_resident_memory_bytes",] > 1e6
    assert not any("made-up" in part or "made/up" in part for key in found for part in key), "nobody can invent labels"


def test_names_that_clients_make_up_do_not_grow_the_labels() -> None:
    metrics = Metrics()
    activity = Activity(observers=(metrics,))
    for index in range(3 * MAX_MODELS):
        entry = activity.begin(GenerateRequest(f"model{index}"))
        activity.piece(entry, Delta(text="x"))
        activity.piece(entry, Delta(finish_reason=FinishReason.STOP, usage=Usage(prompt_tokens=1)))
        activity.end(entry)
    labels = {
        sample.labels["model"]
        for family in metrics.registry.collect()
        for sample in family.samples
        if "model" in sample.labels
    }
    assert len(labels) == MAX_MODELS + 1


class Slow(Scripted):
    """A word, and then nothing for a long time; notes that it was closed."""

    def __init__(self, *, speaks: bool = True) -> None:
        super().__init__(["x"], model="scripted")
        self.speaks, self.closed = speaks, False

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Delta]:
        try:
            if self.speaks:
                yield Delta(text="word")
            await asyncio.sleep(60)
            yield Delta(finish_reason=FinishReason.STOP, usage=Usage())
        finally:
            self.closed = True


@pytest.mark.parametrize("speaks", [True, False])
def test_a_request_that_takes_too_long_is_ended_and_told(tmp_path: Path, speaks: bool) -> None:
    slow = Slow(speaks=speaks)
    with running(front_of(Store(tmp_path), slow, deadline_s=0.3)) as url:
        started = time.monotonic()
        body = {"model": "scripted", "prompt": "x"}
        answer = httpx2.post(f"{url}/api/generate", json=body, timeout=20)
        assert "longer than 0.3 s" in answer.text.splitlines()[-1]
        assert time.monotonic() - started < 10
        assert slow.closed, "the engine stopped"
        whole = httpx2.post(f"{url}/api/generate", json={**body, "stream": False}, timeout=20)
        assert whole.status_code == 504
        assert numbers(url)["garzone_requests_total", "DeadlineExceeded", "other"] == 2


async def test_the_deadline_leaves_quick_answers_alone() -> None:
    generator = MeteredGenerator(ScriptedGenerator(["all of it"]), Activity(), deadline_s=5)
    deltas = [delta async for delta in generator.generate(GenerateRequest("scripted", prompt="x"))]
    assert "".join(delta.text for delta in deltas) == "all of it"
    with pytest.raises(DeadlineExceeded):
        async for _ in MeteredGenerator(Slow(), Activity(), deadline_s=0.05).generate(
            GenerateRequest("scripted", prompt="x")
        ):
            pass


async def test_errors_and_readers_that_leave_are_told_apart() -> None:
    activity = Activity()
    generator = MeteredGenerator(ScriptedGenerator([Overloaded("the queue is full"), "a long answer"]), activity)
    request = GenerateRequest("scripted", prompt="x")
    with pytest.raises(Overloaded):
        async for _ in generator.generate(request):
            pass
    stream = generator.generate(request)
    await anext(stream)
    assert [row["state"] for row in activity.document()["live"]] == ["generating"]
    await stream.aclose()
    document = activity.document()
    assert not document["live"]
    assert [(row["state"], row["outcome"]) for row in document["recent"]] == [
        ("cancelled", "cancelled"), ("failed", "Overloaded")
    ]  # fmt: skip


def test_the_graph_has_a_point_for_every_second() -> None:
    now = 1000.0
    activity = Activity(clock=lambda: now)
    entry = activity.begin(GenerateRequest("m"))
    for second, count in ((1000, 30), (1001, 20), (1005, 50)):
        now = float(second)
        for _ in range(count):
            activity.piece(entry, Delta(text="x"))
    now = 1006.0
    assert activity.graph()[-6:] == [30, 20, 0, 0, 0, 50]
    assert activity.tokens_per_s() == 10.0
    assert entry.tokens_per_s(now) == pytest.approx(99 / 6)


def test_the_page_may_do_nothing_but_ask_its_own_server(tmp_path: Path) -> None:
    with running(front_of(Store(tmp_path), history=History())) as url:
        answer = httpx2.get(f"{url}/ui")
        assert httpx2.post(f"{url}/ui").status_code == 405
    rules = dict(rule.strip().split(" ", 1) for rule in answer.headers["content-security-policy"].split(";"))
    assert rules["default-src"] == "'none'"
    assert re.fullmatch(r"'sha256-[\w+/=]{44}'", rules["script-src"])
    assert rules["connect-src"] == "'self'"
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert answer.headers["x-frame-options"] == "DENY"
    assert not re.search(r"(src|href)=[\"']?(https?:)?//", answer.text), "nothing comes from elsewhere"
    assert " style=" not in answer.text
    assert " onclick=" not in answer.text
    assert "innerHTML" not in answer.text, "what models and clients say is text, never markup"
    assert policy(answer.text) == answer.headers["content-security-policy"]


def test_the_document_behind_the_page_has_everything_it_shows(tmp_path: Path) -> None:
    ollama_wrote(tmp_path, "tiny:1b", write_tiny_model(tmp_path / "tiny.gguf").read_bytes())
    with running(
        front_of(Store(tmp_path), scripted("Paris is."), history=History(), memory_limit=lambda: 20 << 30)
    ) as url:
        ollama.Client(host=url).generate("scripted", "where")
        state = httpx2.get(f"{url}/ui/state").json()
    assert [model["name"] for model in state["models"]] == ["tiny:1b"]
    assert (state["loaded"][0]["device"], state["memory_limit_bytes"]) == ("AMD gfx1100", 20 << 30)
    assert state["activity"]["recent"][0]["completion_tokens"] == 2
    assert (state["tasks"][0]["outcome"], state["tasks"][0]["repo"]) == ("proved", "pager"), "no paths of this machine"
    assert state["savings"]["baselines"]["alone"]["net_tokens"] == 8100
    assert len(state["activity"]["graph"]) == 120


def test_a_broken_ledger_does_not_take_the_page_with_it(tmp_path: Path) -> None:
    with running(front_of(Store(tmp_path), history=History(broken=True))) as url:
        state = httpx2.get(f"{url}/ui/state").json()
    assert "damaged" in state["problem"]
    assert state["tasks"] == []


def test_hanging_up_is_counted_as_what_it_is(tmp_path: Path) -> None:
    slow = Slow()
    with running(front_of(Store(tmp_path), slow)) as url:
        connection = send(url, "/api/generate", {"model": "scripted", "prompt": "x"})
        assert connection.recv(100)
        connection.close()
        deadline = time.monotonic() + 10
        while not slow.closed:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert numbers(url)["garzone_requests_total", "cancelled", "other"] == 1


class Gradual(Scripted):
    """Half a second of words."""

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Delta]:
        for _ in range(10):
            yield Delta(text="word ")
            await asyncio.sleep(0.05)
        yield Delta(finish_reason=FinishReason.STOP, usage=Usage())


def rest_of(connection: socket.socket) -> bytes:
    connection.settimeout(20)
    rest = b""
    while chunk := connection.recv(65536):
        rest += chunk
    return rest


def test_a_server_that_stops_lets_short_answers_end_and_tells_long_ones(tmp_path: Path) -> None:
    with running(front_of(Store(tmp_path), Gradual(["x"], model="scripted"))) as url:
        short = send(url, "/api/generate", {"model": "scripted", "prompt": "x"})
        begun = short.recv(65536)
    answer = begun + rest_of(short)
    assert answer.count(b"word ") == 10
    assert b'"done": true' in answer or b'"done":true' in answer
    with running(front_of(Store(tmp_path), Slow())) as url:
        endless = send(url, "/api/generate", {"model": "scripted", "prompt": "x"})
        begun = endless.recv(65536)
    assert b"the server is shutting down" in begun + rest_of(endless)
