"""The catalogue: what Ollama left here is used in place, whatever state it is in."""

import hashlib
import json
import os
import time
from pathlib import Path

import pytest

from garzone.core.errors import GGUFError, InvalidReference, ModelNotFound, StoreError
from garzone.core.ports import ModelStore
from garzone.store import details
from garzone.store.blobs import PARTIAL_SUFFIX, Blobs
from garzone.store.catalog import Store
from garzone.store.details import human_bytes, human_number
from garzone.store.manifest import parse_manifest
from garzone.testing import write_gguf, write_tiny_model
from tests.numbers import record_number

LIBRARY = "manifests/registry.ollama.ai/library"


def _blob(root: Path, raw: bytes) -> dict[str, object]:
    digest = hashlib.sha256(raw).hexdigest()
    (root / "blobs").mkdir(parents=True, exist_ok=True)
    (root / "blobs" / f"sha256-{digest}").write_bytes(raw)
    return {"digest": f"sha256:{digest}", "size": len(raw)}


def ollama_wrote(
    root: Path, name: str, weights: bytes, *, host: str = "registry.ollama.ai/library", **layers: bytes
) -> Path:
    """A model as Ollama 0.13 leaves it on disk."""
    model, _, tag = name.partition(":")
    document = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
        "config": {"mediaType": "application/vnd.docker.container.image.v1+json", **_blob(root, b'{"os":"linux"}')},
        "layers": [
            {"mediaType": f"application/vnd.ollama.image.{kind}", **_blob(root, raw)}
            for kind, raw in {"model": weights, **layers}.items()
        ],
    }
    path = root / "manifests" / host / model / tag
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document) + "\n")
    return path


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "tiny.gguf").read_bytes()


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("other") / "other.gguf"
    return write_tiny_model(path, architecture="qwen2", seed=1).read_bytes()


def _blobs(root: Path) -> set[str]:
    return {path.name for path in (root / "blobs").iterdir()}


def test_a_model_that_ollama_pulled_is_found_in_place(tmp_path: Path, tiny: bytes) -> None:
    path = ollama_wrote(tmp_path, "tiny:1b", tiny, template=b"{{ .Prompt }}", system=b"Be brief.", license=b"MIT")
    before = {each: each.stat().st_mtime_ns for each in tmp_path.rglob("*")}
    store: ModelStore = Store(tmp_path)
    model = store.find("tiny:1b")
    assert model.name == "tiny:1b"
    assert model.digest == "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()
    assert Path(model.path).read_bytes() == tiny
    assert (model.family, model.context_tokens, model.embedding_length) == ("llama", 512, 64)
    assert model.parameter_size == human_number(int(model.model_info["general.parameter_count"]))
    assert (model.system, model.license) == ("Be brief.", "MIT")
    assert "<|im_start|>" in model.template, "the template in the weights can be rendered, Ollama's cannot"
    assert not model.is_base
    assert model.capabilities[0] == "completion"
    assert model.model_info["general.architecture"] == "llama"
    assert "tokenizer.ggml.tokens" not in model.model_info
    json.dumps(dict(model.model_info))
    assert before == {each: each.stat().st_mtime_ns for each in tmp_path.rglob("*")}, "looking changes nothing"


def test_names_differ_neither_by_case_nor_by_a_missing_tag(tmp_path: Path, tiny: bytes) -> None:
    ollama_wrote(tmp_path, "Tiny:latest", tiny)
    store = Store(tmp_path)
    assert store.find("tiny").name == "Tiny:latest"
    assert store.find("TINY:Latest").digest == store.find("library/tiny").digest
    with pytest.raises(ModelNotFound, match="garzone pull tiny:1b"):
        store.find("tiny:1b")


def test_models_are_listed_latest_first_with_full_names_where_needed(tmp_path: Path, tiny: bytes, other: bytes) -> None:
    old = ollama_wrote(tmp_path, "tiny:1b", tiny)
    ollama_wrote(tmp_path, "mine:latest", other, host="registry.ollama.ai/me")
    ollama_wrote(tmp_path, "repo:Q4_K_M", other, host="hf.co/owner")
    os.utime(old, (1e9, 1e9))
    names = [model.name for model in Store(tmp_path).list_models()]
    assert names[-1] == "tiny:1b"
    assert set(names[:2]) == {"me/mine:latest", "hf.co/owner/repo:Q4_K_M"}


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"layers": []}',
        b'{"layers": [3]}',
        b'{"layers": [{"mediaType": "application/vnd.ollama.image.model", "digest": "sha256:../../x", "size": 3}]}',
        b'{"layers": [{"mediaType": "application/vnd.ollama.image.model", "digest": "sha256:'
        + b"a" * 64
        + b'", "size": -1}]}',
        b'{"layers": [{"mediaType": 3, "digest": "sha256:' + b"a" * 64 + b'", "size": 1}]}',
        b'{"config": 7, "layers": [{"mediaType": "x", "digest": "sha256:' + b"a" * 64 + b'", "size": 1}]}',
        b"[" * 100_000,
        b" " * (1 << 21),
    ],
)
def test_a_broken_manifest_is_skipped_with_a_warning_and_stops_nothing(
    tmp_path: Path, tiny: bytes, raw: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    ollama_wrote(tmp_path, "good:1b", tiny)
    broken = tmp_path / LIBRARY / "broken" / "1b"
    broken.parent.mkdir()
    broken.write_bytes(raw)
    store = Store(tmp_path)
    assert [model.name for model in store.list_models()] == ["good:1b"]
    assert "broken" in caplog.text
    with pytest.raises(StoreError, match="broken:1b"):
        store.find("broken:1b")
    with pytest.raises(StoreError):
        parse_manifest(raw)
    before = _blobs(tmp_path)
    store.remove("good:1b")
    assert _blobs(tmp_path) == before, "the broken manifest may name any of them"
    store.remove("broken:1b")
    assert store.list_models() == []


def test_strange_files_among_the_manifests_are_ignored(tmp_path: Path, tiny: bytes) -> None:
    ollama_wrote(tmp_path, "good:1b", tiny)
    (tmp_path / "manifests/.DS_Store").write_bytes(b"x")
    (tmp_path / LIBRARY / "good/.hidden").write_bytes(b"x")
    (tmp_path / LIBRARY / "good/deeper").mkdir()
    (tmp_path / LIBRARY / "good/bad name").write_bytes(b"{}")
    assert [model.name for model in Store(tmp_path).list_models()] == ["good:1b"]


def test_weights_of_the_wrong_size_are_not_used(tmp_path: Path, tiny: bytes) -> None:
    ollama_wrote(tmp_path, "tiny:1b", tiny)
    store = Store(tmp_path)
    weights = Path(store.find("tiny:1b").path)
    weights.write_bytes(tiny[:-1])
    with pytest.raises(StoreError, match=rf"{len(tiny)} bytes.*{len(tiny) - 1} bytes.*garzone pull"):
        store.find("tiny:1b")
    weights.unlink()
    with pytest.raises(StoreError, match="is missing"):
        store.find("tiny:1b")


def test_weights_that_are_no_gguf_are_named(tmp_path: Path, tiny: bytes, caplog: pytest.LogCaptureFixture) -> None:
    ollama_wrote(tmp_path, "tiny:1b", tiny)
    ollama_wrote(tmp_path, "text:1b", b"this is not a model")
    store = Store(tmp_path)
    with pytest.raises(GGUFError):
        store.find("text:1b")
    assert [model.name for model in store.list_models()] == ["tiny:1b"]
    assert "text" in caplog.text


def test_a_missing_text_layer_costs_the_text_and_not_the_model(
    tmp_path: Path, tiny: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    ollama_wrote(tmp_path, "tiny:1b", tiny, system=b"Be brief.")
    (tmp_path / "blobs" / ("sha256-" + hashlib.sha256(b"Be brief.").hexdigest())).unlink()
    assert Store(tmp_path).find("tiny:1b").system == ""
    assert "layer left out" in caplog.text


def test_removing_a_model_keeps_what_others_use(tmp_path: Path, tiny: bytes, other: bytes) -> None:
    ollama_wrote(tmp_path, "a:1b", tiny, license=b"MIT")
    ollama_wrote(tmp_path, "b:1b", tiny, system=b"Other.")
    ollama_wrote(tmp_path, "c:1b", other, license=b"MIT")
    store = Store(tmp_path)
    store.remove("A:1B")
    assert not (tmp_path / LIBRARY / "a").exists(), "empty directories go too"
    assert Path(store.find("b:1b").path).read_bytes() == tiny
    assert store.find("c:1b").license == "MIT"
    store.remove("b:1b")
    assert ("sha256-" + hashlib.sha256(tiny).hexdigest()) not in _blobs(tmp_path)
    store.remove("c:1b")
    assert _blobs(tmp_path) == set()
    with pytest.raises(ModelNotFound):
        store.remove("c:1b")


def test_a_copy_is_the_same_model_under_another_name(tmp_path: Path, tiny: bytes, other: bytes) -> None:
    ollama_wrote(tmp_path, "a:1b", tiny)
    ollama_wrote(tmp_path, "mine:latest", other)
    store = Store(tmp_path)
    store.copy("a:1b", "mine")
    assert store.find("mine").digest == store.find("a:1b").digest
    assert ("sha256-" + hashlib.sha256(other).hexdigest()) not in _blobs(tmp_path), "what was replaced is gone"
    store.remove("a:1b")
    assert Path(store.find("mine").path).read_bytes() == tiny
    with pytest.raises(InvalidReference):
        store.copy("mine", "../../x")


def test_garbage_is_collected_but_nothing_that_is_used_young_or_being_written(tmp_path: Path, tiny: bytes) -> None:
    ollama_wrote(tmp_path, "a:1b", tiny)
    store, blobs = Store(tmp_path), Blobs(tmp_path / "blobs")
    used = _blobs(tmp_path)
    old, young = blobs.put(b"old", "").digest, blobs.put(b"young", "").digest
    with blobs.open_partial("forgotten") as partial:
        partial.write(b"x")
    with blobs.open_partial("in-use") as partial:
        partial.write(b"x")
        partial.flush()
        for name in (old.replace(":", "-"), "forgotten" + PARTIAL_SUFFIX, "in-use" + PARTIAL_SUFFIX, *used):
            os.utime(tmp_path / "blobs" / name, (1e9, 1e9))
        deleted = store.collect_garbage()
    assert sorted(deleted) == sorted([old.replace(":", "-"), "forgotten" + PARTIAL_SUFFIX])
    assert _blobs(tmp_path) == used | {young.replace(":", "-"), "in-use" + PARTIAL_SUFFIX}


def test_an_empty_store_has_no_models(tmp_path: Path) -> None:
    store = Store(tmp_path / "none")
    assert store.list_models() == []
    with pytest.raises(ModelNotFound):
        store.find("x")
    assert not (tmp_path / "none").exists()


def test_headers_are_read_once_and_again_when_the_file_changes(
    tmp_path: Path, tiny: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []

    def counting(path: Path) -> details.Header:
        read.append(path)
        return real(path)

    real = details.read_header
    monkeypatch.setattr(details, "read_header", counting)
    file = tmp_path / "x.gguf"
    file.write_bytes(tiny)
    store = Store(tmp_path)
    assert store.find(str(file)) == store.find(str(file))
    assert len(read) == 1
    write_tiny_model(file, architecture="qwen2")
    assert store.find(str(file)).family == "qwen2"
    assert len(read) == 2


def test_listing_the_real_model_again_takes_milliseconds(tmp_path: Path, smollm2_path: Path) -> None:
    manifest = ollama_wrote(tmp_path, "smollm2:135m", b"placeholder")
    document = json.loads(manifest.read_text())
    digest = "sha256:b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
    document["layers"][0] |= {"digest": digest, "size": smollm2_path.stat().st_size}
    manifest.write_text(json.dumps(document))
    (tmp_path / "blobs" / digest.replace(":", "-")).symlink_to(smollm2_path)
    store = Store(tmp_path)
    started = time.perf_counter()
    model = store.find("smollm2:135m")
    first_ms = (time.perf_counter() - started) * 1e3
    started = time.perf_counter()
    for _ in range(20):
        assert store.list_models() == [model]
    again_ms = (time.perf_counter() - started) / 20 * 1e3
    assert (model.family, model.parameter_size, model.quantization) == ("llama", "134.52M", "Q4_1")
    assert (model.context_tokens, model.embedding_length) == (8192, 576)
    record_number("store: first look at smollm2:135m", f"{first_ms:.0f} ms")
    record_number("store: listing it again", f"{again_ms:.2f} ms")
    assert again_ms < 50


def test_fill_in_the_middle_and_embeddings_are_seen_in_the_header(tmp_path: Path) -> None:
    def found(**metadata: object) -> tuple[str, ...]:
        keys = {key.replace("__", "."): value for key, value in metadata.items()}
        file = write_gguf(tmp_path / "x.gguf", {"general.architecture": "bert", **keys}, {})
        return details.read_header(file).capabilities

    assert found() == ("completion",)
    ids = {f"tokenizer__ggml__fim_{part}_token_id": 5 for part in ("pre", "suf", "mid")}
    assert found(**ids) == ("completion", "insert")
    del ids["tokenizer__ggml__fim_mid_token_id"]
    assert found(**ids) == ("completion",)
    qwen = ["a", "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"]
    assert found(tokenizer__ggml__tokens=qwen) == ("completion", "insert")
    assert found(tokenizer__ggml__tokens=qwen[:3]) == ("completion",)
    assert found(tokenizer__ggml__tokens=["[SUFFIX]", "[PREFIX]"]) == ("completion", "insert")
    assert found(bert__pooling_type=1) == ("embedding",)


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (134515008, "134.52M"),
        (7615616512, "7.6B"),
        (70_000_000_000, "70B"),
        (268098176, "268.10M"),
        (5000, "5K"),
        (7, "7"),
    ],
)
def test_parameters_are_counted_as_ollama_prints_them(count: int, said: str) -> None:
    assert human_number(count) == said


@pytest.mark.parametrize(
    ("size", "said"),
    [(98362432, "98 MB"), (4683087332, "4.7 GB"), (1_000_000, "1 MB"), (9_900_000, "9.9 MB"), (512, "512 B")],
)
def test_sizes_are_written_as_ollama_prints_them(size: int, said: str) -> None:
    assert human_bytes(size) == said
