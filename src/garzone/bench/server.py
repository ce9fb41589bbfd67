"""`garzone bench server`: what the server adds to the engine, many clients at once, and pulls next to curl.

Measures; draws no conclusions beyond the goal that stands next to each number.

Wall-clock times on a machine that does other things are too long, never too short: the least of several is reported,
and next to it the processor time the server took, which others do not disturb.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from garzone.bench.loopback import Registry, write_large_model
from garzone.bench.server_subject import MODEL
from garzone.core.errors import UnavailableError
from garzone.core.recipe import ModelRecipe
from garzone.store.catalog import Store
from garzone.testing import write_tiny_model

NUM_TOKENS: Final = 200  # some milliseconds: short enough to be undisturbed now and then
ROUNDS: Final = 60
PULL_ROUNDS: Final = 5
MEMORY: Final = Path("/dev/shm")  # noqa: S108  a file system without a disk, where there is one
TINY: Final = "tiny:latest"
_TICK: Final = os.sysconf("SC_CLK_TCK")

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Number:
    """One measured number. `ok` is whether it is within the goal; None where there is none."""

    name: str
    value: float
    unit: str
    goal: str = ""
    ok: bool | None = None


class Subject:
    """A server process."""

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self.process, self.port = process, port

    def cpu_s(self) -> float | None:
        """Processor time it has taken so far, without its children's; None where the system does not tell exactly."""
        try:
            fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        except FileNotFoundError:
            return None
        return (int(fields[11]) + int(fields[12])) / _TICK

    def resident_bytes(self) -> int:
        """Memory it holds now."""
        command = ["ps", "-o", "rss=", "-p", str(self.process.pid)]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout) << 10  # noqa: S603

    def connect(self) -> http.client.HTTPConnection:
        """A connection to it."""
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)


@contextlib.contextmanager
def subject(kind: str, home: Path) -> Generator[Subject]:
    """A server of that kind with a home of its own."""
    environ = {**os.environ, "GARZONE_HOME": str(home), "OLLAMA_MODELS": str(home / "models"), "GARZONE_API_KEY": ""}
    command = [sys.executable, "-m", "garzone.bench.server_subject", kind]
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise UnavailableError("the server that should be measured did not start; its reason is above")
        try:
            yield Subject(process, int(line))
        finally:
            process.terminate()


def measure(
    *, num_clients: int, num_requests: int, pull_mebibytes: int, progress: Progress = lambda what: None
) -> list[Number]:
    """All numbers.

    Args:
        num_clients: streams at the same time.
        num_requests: for the memory to stay flat over.
        pull_mebibytes: size of the model that is pulled; 0 to leave it out.
        progress: told what is being measured.

    Raises:
        UnavailableError: a server does not start.
    """
    numbers: list[Number] = []
    with tempfile.TemporaryDirectory(prefix="garzone-bench-") as folder:
        home = Path(folder)
        with subject("instant", home) as server:
            for path in ("/api/chat", "/v1/chat/completions", "/v1/messages"):
                progress(f"overhead of {path}")
                numbers += overhead(server, path)
            progress(f"{num_clients} streams at once")
            numbers += many_streams(server, num_clients)
            progress(f"memory over {num_requests} requests")
            numbers.append(flat_memory(server, num_requests))
        progress("tags and show while a model loads")
        numbers += while_loading(home, num_clients, progress)
        if pull_mebibytes:
            progress(f"a pull of {pull_mebibytes} MiB next to curl")
            numbers += pull(home, pull_mebibytes)
    return numbers


def overhead(server: Subject, path: str) -> list[Number]:
    """What a request and a token cost."""
    connection = server.connect()

    def seconds(num_tokens: int) -> float:
        started = time.perf_counter()
        connection.request("POST", path, json.dumps(_body(MODEL, "token", num_tokens)), {"anthropic-version": "1"})
        answer = connection.getresponse().read()
        elapsed = time.perf_counter() - started
        assert answer.count(b"token ") == num_tokens, answer[:300]
        return elapsed

    seconds(NUM_TOKENS)
    one = min(seconds(1) for _ in range(ROUNDS))
    before = server.cpu_s()
    many = min(seconds(NUM_TOKENS) for _ in range(ROUNDS))
    after = server.cpu_s()
    connection.close()
    token_us = (many - one) / (NUM_TOKENS - 1) * 1e6
    numbers = [
        Number(f"{path}, a token", token_us, "us", "< 50", token_us < 50),
        Number(f"{path}, a request", one * 1e3, "ms", "< 3", one < 3e-3),
    ]
    if before is not None and after is not None:
        cpu_us = (after - before) / (ROUNDS * NUM_TOKENS) * 1e6
        numbers.append(Number(f"{path}, a token, processor", cpu_us, "us", "< 50", cpu_us < 50))
    return numbers


def many_streams(server: Subject, num_clients: int) -> list[Number]:
    """Whether every one of many streams gets its own words, all of them, and nothing else."""
    started = time.perf_counter()
    texts = asyncio.run(_streams(server.port, [(MODEL, f"client-{n}-says", 100) for n in range(num_clients)]))
    elapsed = time.perf_counter() - started
    wrong = sum(text != f"client-{n}-says " * 100 for n, text in enumerate(texts))
    return [
        Number(f"{num_clients} streams at once, wrong or broken", wrong, "streams", "0", wrong == 0),
        Number(f"{num_clients} streams at once", num_clients * 100 / elapsed, "tok/s"),
    ]


def flat_memory(server: Subject, num_requests: int) -> Number:
    """How much memory grows between the first tenth of many requests and the last."""

    def ask(count: int) -> None:
        connection = server.connect()
        body = json.dumps({"model": MODEL, "prompt": "x", "stream": False, "options": {"num_predict": 4}})
        for _ in range(count):
            connection.request("POST", "/api/generate", body)
            answer = connection.getresponse()
            assert answer.status == 200, answer.read()
            answer.read()
        connection.close()

    def all_of(count: int) -> None:
        threads = [threading.Thread(target=ask, args=(count // 4,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    all_of(num_requests // 10)
    before = server.resident_bytes()
    all_of(num_requests - num_requests // 10)
    grown = (server.resident_bytes() - before) / 1e6
    return Number(f"memory grown over {num_requests} requests", grown, "MB", "< 3", grown < 3)


def while_loading(home: Path, num_clients: int, progress: Progress) -> list[Number]:
    """How long tags and show take while the engine loads and compiles; then many real streams next to solo ones."""
    store = Store(home / "models")
    _name_tiny(store, home)
    with subject("engine", home) as server:
        connection = server.connect()
        loaded = threading.Event()

        def load() -> None:
            loading = server.connect()
            loading.request("POST", "/api/generate", json.dumps({"model": TINY, "stream": False}))
            answer = loading.getresponse()
            body = answer.read()
            loaded.set()
            assert answer.status == 200, body

        _timed(connection, "GET", "/api/tags", None)  # the first look opens each file once
        _timed(connection, "POST", "/api/show", {"model": TINY})
        thread = threading.Thread(target=load)
        thread.start()
        tags: list[float] = []
        show: list[float] = []
        while not loaded.is_set():
            tags.append(_timed(connection, "GET", "/api/tags", None))
            show.append(_timed(connection, "POST", "/api/show", {"model": TINY}))
            time.sleep(0.01)
        thread.join()
        connection.close()
        progress(f"{num_clients} streams of the engine")
        numbers = _engine_streams(server.port, num_clients)
    for name, times in (("/api/tags", tags), ("/api/show", show)):
        ranked = sorted(times)
        typical, late = statistics.median(ranked) * 1e3, ranked[int(len(ranked) * 0.95)] * 1e3
        numbers.append(Number(f"{name} while a model loads, median", typical, "ms", "< 20", typical < 20))
        numbers.append(Number(f"{name} while a model loads, 95 %", late, "ms"))
    return numbers


def _engine_streams(port: int, num_clients: int) -> list[Number]:
    prompts = [f"prompt number {n}" for n in range(10)]
    alone = [asyncio.run(_streams(port, [(TINY, prompt, 12)]))[0] for prompt in prompts]
    asked = [(TINY, prompts[n % 10], 12) for n in range(num_clients)]
    started = time.perf_counter()
    together = asyncio.run(_streams(port, asked))
    elapsed = time.perf_counter() - started
    wrong = sum(text != alone[n % 10] for n, text in enumerate(together))
    return [
        Number(f"{num_clients} streams of the engine, other than alone", wrong, "streams", "0", wrong == 0),
        Number(f"{num_clients} streams of the engine", num_clients * 12 / elapsed, "tok/s"),
    ]


def pull(home: Path, num_mebibytes: int) -> list[Number]:
    """Pulls and curl's downloads of one file from one server, in turns; medians.

    Once in memory, where no disk is measured; once on the disk, where a pull is synced before it says that it is done,
    and what curl fetched is synced for comparison, as well.
    """
    curl = shutil.which("curl")
    if curl is None:
        return []
    numbers: list[Number] = []
    if MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > 4 * num_mebibytes << 20:
        with tempfile.TemporaryDirectory(prefix="garzone-bench-", dir=MEMORY) as folder:
            ours, theirs, _ = _pulls(curl, Path(folder), num_mebibytes)
        numbers += _compared("in memory", ours, theirs, "curl")
    ours, alone, synced = _pulls(curl, home, num_mebibytes)
    numbers += _compared("on the disk", ours, synced, "curl and sync")
    numbers.append(Number("curl on the disk, not synced", statistics.median(alone), "MiB/s"))
    return numbers


def _pulls(curl: str, home: Path, num_mebibytes: int) -> tuple[list[float], list[float], list[float]]:
    """MiB a second of pulls, of curl, and of curl with a sync behind it."""
    path = write_large_model(home / "large.gguf", num_mebibytes)
    ours: list[float] = []
    theirs: list[float] = []
    synced: list[float] = []
    with Registry(path).running() as registry:
        for _ in range(PULL_ROUNDS):
            target = home / "fetched"
            os.sync()  # what the disk owes for other files would be waited for, too
            started = time.perf_counter()
            subprocess.run([curl, "-s", "-o", str(target), registry.url], check=True)  # noqa: S603
            theirs.append(num_mebibytes / (time.perf_counter() - started))
            with target.open("rb") as file:
                os.fsync(file.fileno())
            synced.append(num_mebibytes / (time.perf_counter() - started))
            target.unlink()
            store = Store(home / "pulled")
            os.sync()
            started = time.perf_counter()
            store.pull(registry.reference)
            ours.append(num_mebibytes / (time.perf_counter() - started))
            shutil.rmtree(home / "pulled")
    return ours, theirs, synced


def _compared(where: str, ours: list[float], theirs: list[float], name: str) -> list[Number]:
    ratio = statistics.median(ours) / statistics.median(theirs)
    return [
        Number(f"pull {where}", statistics.median(ours), "MiB/s"),
        Number(f"{name} {where}", statistics.median(theirs), "MiB/s"),
        Number(f"pull next to {name}, {where}", 100 * ratio, "%", ">= 80", ratio >= 0.8),
    ]


async def _streams(port: int, asked: list[tuple[str, str, int]]) -> list[str]:
    """The texts of many streams at once; "" for one that broke."""
    return list(await asyncio.gather(*(_stream(port, *one) for one in asked)))


async def _stream(port: int, model: str, prompt: str, num_tokens: int) -> str:
    body = json.dumps(_body(model, prompt, num_tokens) | {"prompt": prompt, "raw": True}).encode()
    head = f"POST /api/generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head.encode() + body)
        answer = await reader.read()
        writer.close()
    except OSError:
        return ""
    text, done = "", False
    for line in answer.split(b"\n"):
        if line.startswith(b"{"):
            piece = json.loads(line)
            text += piece.get("response", "")
            done = done or bool(piece.get("done"))
    return text if done else ""


def _timed(connection: http.client.HTTPConnection, method: str, path: str, body: dict[str, Any] | None) -> float:
    started = time.perf_counter()
    connection.request(method, path, json.dumps(body) if body else None)
    answer = connection.getresponse()
    answer.read()
    assert answer.status == 200
    return time.perf_counter() - started


def _body(model: str, prompt: str, num_tokens: int) -> dict[str, Any]:
    """A request that every dialect understands."""
    return {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "stream": True,
        "max_tokens": num_tokens,
        "options": {"num_predict": num_tokens, "temperature": 0, "seed": 1},
    }


def _name_tiny(store: Store, home: Path) -> None:
    store.create(TINY, ModelRecipe(str(write_tiny_model(home / "tiny.gguf"))))
