"""Models of Hugging Face repositories, asked for by the hub's own library from a server on loopback."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest

from garzone.core.errors import DigestMismatch, DownloadFailed, GGUFError, InvalidReference, ModelNotFound
from garzone.engine.gguf import GGUFFile
from garzone.store import transfer
from garzone.store.blobs import PARTIAL_SUFFIX
from garzone.store.catalog import Store
from garzone.store.reference import parse
from garzone.store.sources.huggingface import RepositoryFile, choose
from garzone.testing import tiny_vocabulary, write_gguf, write_tiny_model
from tests.store.web import Resource, Web

REVISION = "5" * 40


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "MAX_BACKOFF_S", 0.01)


@pytest.fixture
def web() -> Iterator[Web]:
    with Web() as server:
        yield server


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_tiny_model(tmp_path_factory.mktemp("gguf") / "tiny.gguf").read_bytes()


def serve(web: Web, files: dict[str, bytes], *, lfs: bool = True, repository: str = "owner/repo") -> None:
    siblings = []
    for name, body in files.items():
        sibling = {"rfilename": name, "size": len(body)}
        if lfs:
            digest = hashlib.sha256(body).hexdigest()
            sibling["lfs"] = {"sha256": digest, "size": len(body), "pointerSize": 130}
        siblings.append(sibling)
        web.resources[f"/{repository}/resolve/{REVISION}/{name}"] = Resource(body)
    document = {"id": repository, "sha": REVISION, "siblings": siblings, "tags": [], "downloads": 1, "likes": 1,
                "private": False}  # fmt: skip
    web.resources[f"/api/models/{repository}"] = Resource(json.dumps(document).encode(), "application/json")


def _store(tmp_path: Path, web: Web) -> Store:
    return Store(tmp_path / "models", hugging_face=web.url)


def _partials(store: Store) -> list[str]:
    return [path.name for path in store.blobs.directory.glob(f"*{PARTIAL_SUFFIX}")]


def test_a_quantization_is_chosen_by_tag_and_by_default_the_one_ollama_takes(
    tmp_path: Path, web: Web, tiny: bytes
) -> None:
    serve(web, {"README.md": b"x", "m-Q8_0.gguf": b"no", "m-Q4_K_M.gguf": tiny, "mmproj-m-f16.gguf": b"no"})
    store = _store(tmp_path, web)
    model = store.pull("hf:owner/repo")
    assert model.name == "hf.co/owner/repo:latest"
    assert Path(model.path).read_bytes() == tiny
    named = store.pull("hf:owner/repo:q4_k_m")
    assert named.name == "hf.co/owner/repo:q4_k_m"
    assert store.find("hf.co/owner/repo:Q4_K_M") == named, "what Ollama calls it"
    assert sum("/resolve/" in path for path in web.paths()) == 1, "the same blob is not fetched twice"
    with pytest.raises(ModelNotFound, match="m-Q4_K_M, m-Q8_0"):
        store.pull("hf:owner/repo:Q5_K_M")


def test_a_file_by_its_name_and_a_connection_that_breaks(tmp_path: Path, web: Web, tiny: bytes) -> None:
    serve(web, {"dir/tiny.Q4_0.gguf": tiny, "other.gguf": b"x"})
    path = f"/owner/repo/resolve/{REVISION}/dir/tiny.Q4_0.gguf"
    web.resources[path].cut_after = [100_000]
    store = _store(tmp_path, web)
    model = store.pull("hf:owner/repo:dir/tiny.Q4_0.gguf")
    assert model.name == "hf.co/owner/repo:tiny.Q4_0"
    assert store.find("hf:owner/repo:tiny.Q4_0.gguf") == model
    assert web.ranges_of(path) == ["", "bytes=100000-"]
    assert _partials(store) == []


def test_what_is_not_there_is_named(tmp_path: Path, web: Web, tiny: bytes) -> None:
    serve(web, {"readme.md": b"x"})
    with pytest.raises(ModelNotFound, match="no GGUF files"):
        _store(tmp_path, web).pull("hf:owner/repo")
    web.resources["/api/models/owner/hidden"] = Resource(
        b"{}", status=401, headers={"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository Not Found"}
    )
    with pytest.raises(ModelNotFound, match="hf auth login"):
        _store(tmp_path, web).pull("hf:owner/hidden")
    with pytest.raises(ModelNotFound):
        _store(tmp_path, web).pull("hf:owner/nothing")


def test_a_hub_that_cannot_be_reached_says_so(tmp_path: Path) -> None:
    with pytest.raises(DownloadFailed, match=r"127\.0\.0\.1:9"):
        Store(tmp_path, hugging_face="http://127.0.0.1:9").pull("hf:owner/repo")


def test_bytes_of_another_digest_are_thrown_away(tmp_path: Path, web: Web, tiny: bytes) -> None:
    serve(web, {"m-Q4_0.gguf": tiny})
    web.resources[f"/owner/repo/resolve/{REVISION}/m-Q4_0.gguf"].body = tiny[:-1] + b"!"
    store = _store(tmp_path, web)
    with pytest.raises(DigestMismatch, match="thrown away"):
        store.pull("hf:owner/repo")
    assert store.blobs.digests() == []
    assert _partials(store) == []


def test_a_file_without_a_digest_is_taken_and_checked_as_gguf(tmp_path: Path, web: Web, tiny: bytes) -> None:
    serve(web, {"m-Q4_0.gguf": tiny}, lfs=False)
    assert Path(_store(tmp_path, web).pull("hf:owner/repo").path).read_bytes() == tiny
    serve(web, {"m-Q4_0.gguf": b"not at all"}, lfs=False, repository="owner/bad")
    with pytest.raises(GGUFError):
        _store(tmp_path, web).pull("hf:owner/bad")


def test_the_persons_token_goes_to_the_hub_and_to_nobody_else(
    tmp_path: Path, web: Web, tiny: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_s3cret")
    serve(web, {"m-Q4_0.gguf": tiny})
    with Web() as cdn:
        cdn.resources["/cdn"] = Resource(tiny)
        path = f"/owner/repo/resolve/{REVISION}/m-Q4_0.gguf"
        web.resources[path] = Resource(
            status=302, headers={"Location": f"{cdn.url.replace('127.0.0.1', 'localhost')}/cdn"}
        )
        _store(tmp_path, web).pull("hf:owner/repo")
        assert any(headers.get("authorization") == "Bearer hf_s3cret" for _, headers in web.requests)
        assert cdn.requests
        assert not any("authorization" in headers for _, headers in cdn.requests)


@pytest.mark.parametrize(
    "text", ["hf:owner", "hf:/x", "hf:o/r:../x.gguf", "hf:o/r:", "hf:o/r:Q4 K", "hf:../r", "hf:o/r:a/b"]
)
def test_references_that_are_none(text: str) -> None:
    with pytest.raises(InvalidReference, match="Hugging Face"):
        parse(text)


def _files(*names: str) -> list[RepositoryFile]:
    return [RepositoryFile(name, 10, "a" * 64) for name in names]


@pytest.mark.parametrize(
    ("tag", "expected"),
    [
        ("", "m-Q4_K_M.gguf"),
        (":Q4_K", None),
        (":IQ4_XS", "m-IQ4_XS.gguf"),
        (":q8_0", "Q8_0/m-Q8_0-00001-of-00002.gguf"),
        (":m-F16.gguf", "sub/m-F16.gguf"),
    ],
)
def test_which_file_a_tag_means(tag: str, expected: str | None) -> None:
    files = _files(
        "m-Q4_K_M.gguf", "m-Q4_K_M.imatrix.gguf", "m-IQ4_XS.gguf", "sub/m-F16.gguf", "mmproj-F16.gguf",
        "Q8_0/m-Q8_0-00002-of-00002.gguf", "Q8_0/m-Q8_0-00001-of-00002.gguf",
    )  # fmt: skip
    reference = parse("hf:owner/repo" + tag)
    if expected is None:
        with pytest.raises(ModelNotFound):
            choose(reference, files)  # pyright: ignore[reportArgumentType]
    else:
        assert choose(reference, files)[0].path == expected  # pyright: ignore[reportArgumentType]


def test_a_part_that_is_missing_is_noticed_before_anything_is_fetched() -> None:
    reference = parse("hf:owner/repo:Q8_0")
    with pytest.raises(ModelNotFound, match="of 3 parts the repository has 2"):
        choose(reference, _files("m-Q8_0-00001-of-00003.gguf", "m-Q8_0-00003-of-00003.gguf"))  # pyright: ignore


# --- split models


def split(
    tmp_path: Path, wrong: dict[str, object] | None = None, parts: int = 3
) -> tuple[list[bytes], dict[str, np.ndarray]]:
    """A model in parts, as llama-gguf-split writes them: metadata in the first, tensors in all."""
    rng, parts = np.random.default_rng(5), 3
    tensors = {f"blk.{index}.weight": rng.standard_normal((3 + index, 7)).astype(np.float32) for index in range(7)}
    metadata = {"general.architecture": "llama", "llama.context_length": 99, "llama.embedding_length": 7,
                "general.name": "split", **tiny_vocabulary()}  # fmt: skip
    written: list[bytes] = []
    for number in range(parts):
        own = {name: tensor for index, (name, tensor) in enumerate(tensors.items()) if index % parts == number}
        keys = {"split.no": number, "split.count": parts, "split.tensors.count": len(tensors), **(wrong or {})}
        head = {**(metadata if number == 0 else {}), **keys}
        written.append(write_gguf(tmp_path / f"part{number}.gguf", head, own).read_bytes())
    return written, tensors


def test_a_split_model_is_joined_into_one_that_others_can_read(tmp_path: Path, web: Web) -> None:
    parts, tensors = split(tmp_path)
    serve(web, {f"m-Q8_0-{n + 1:05}-of-00003.gguf": raw for n, raw in enumerate(parts)})
    store, seen = _store(tmp_path, web), set[str]()
    model = store.pull("hf:owner/repo:Q8_0", lambda what, done, total: seen.add(what))
    assert "joining the parts" in seen
    assert (model.family, model.context_tokens) == ("llama", 99)
    assert _partials(store) == []
    assert len(store.blobs.digests()) == 2, "the weights and the config: no part is left"
    reader = gguf.GGUFReader(model.path)  # the format's own reader
    assert {tensor.name for tensor in reader.tensors} == set(tensors)
    for tensor in reader.tensors:
        assert np.array_equal(tensor.data, tensors[tensor.name])
    assert not [key for key in reader.fields if key.startswith("split.")]
    with GGUFFile.open(Path(model.path)) as file:
        assert list(file.metadata["tokenizer.ggml.tokens"]) == tiny_vocabulary()["tokenizer.ggml.tokens"]


@pytest.mark.parametrize("wrong", [{"split.tensors.count": 9}, {"split.no": 1}, {"split.count": 4}])
def test_parts_that_do_not_belong_together_are_refused(tmp_path: Path, web: Web, wrong: dict[str, object]) -> None:
    parts, _ = split(tmp_path, wrong)
    serve(web, {f"m-Q8_0-{n + 1:05}-of-00003.gguf": raw for n, raw in enumerate(parts)})
    with pytest.raises(GGUFError):
        _store(tmp_path, web).pull("hf:owner/repo:Q8_0")
