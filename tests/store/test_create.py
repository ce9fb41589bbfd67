"""Models made of others: what is changed, what is shared, and what cannot be made."""

import json
import os
from pathlib import Path

import pytest

from garzone.core.chat import Message, Role
from garzone.core.errors import DigestMismatch, GGUFError, InvalidReference, ModelNotFound, StoreError, UsageError
from garzone.core.recipe import ModelRecipe
from garzone.store.blobs import PARTIAL_SUFFIX, sha256_of
from garzone.store.catalog import Store
from garzone.testing import write_tiny_model
from tests.store.test_catalog import ollama_wrote


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "tiny.gguf").read_bytes()


@pytest.fixture
def store(tmp_path: Path, tiny: bytes) -> Store:
    params = json.dumps({"temperature": 0.5, "stop": ["a", "b"], "num_ctx": 64}).encode()
    texts = {"template": b"{{ .Prompt }}", "system": b"Be brief.", "params": params, "license": b"MIT"}
    ollama_wrote(tmp_path, "base:1b", tiny, host="registry.ollama.ai/library", **texts, projector=b"eyes")
    return Store(tmp_path)


def test_only_what_is_said_changes_and_weights_are_shared(store: Store) -> None:
    before, base = set(store.blobs.digests()), store.find("base:1b")
    recipe = ModelRecipe(
        "base:1b", system="You are a pirate.", parameters={"temperature": ("0.9",)},
        messages=(Message.of(Role.USER, "hi"), Message.of(Role.ASSISTANT, "arr")),
    )  # fmt: skip
    made = store.create("pirate", recipe)
    assert made == store.find("pirate:latest")
    assert (made.path, made.license, made.template) == (base.path, "MIT", base.template)
    assert made.system == "You are a pirate."
    assert made.parameters == {"temperature": ("0.9",), "stop": ("a", "b"), "num_ctx": ("64",)}
    assert [message.text for message in made.messages] == ["hi", "arr"]
    assert made.digest != base.digest
    manifest = json.loads((store.models_dir / "manifests/registry.ollama.ai/library/pirate/latest").read_bytes())
    assert any(layer["mediaType"].endswith("projector") for layer in manifest["layers"]), "what is unknown is kept"
    store.remove("pirate")
    assert set(store.blobs.digests()) == before, "nothing of it is left, and nothing of the base is gone"
    assert store.find("base:1b") == base


def test_a_jinja_template_is_used_before_the_files_own(store: Store) -> None:
    own = store.find("base:1b").template
    assert "<|im_start|>" in own, "a template for Ollama is not used"
    made = store.create("plain", ModelRecipe("base:1b", template="{{ messages[-1].content }}"))
    assert made.template == "{{ messages[-1].content }}"
    assert store.create("go", ModelRecipe("base:1b", template="{{ .Prompt }}!")).template == own
    able = store.create("able", ModelRecipe("base:1b", template="{% if tools %}{{ tools }}{% endif %}<think>"))
    assert able.capabilities == ("completion", "tools", "thinking"), "what can be asked for is the template's to say"
    assert store.create("go", ModelRecipe("able", template="{{ .Tools }}")).capabilities == made.capabilities
    with pytest.raises(UsageError, match="TEMPLATE cannot be used"):
        store.create("bad", ModelRecipe("base:1b", template="{% for x in %}"))


def test_weights_may_come_from_a_file_which_is_copied(store: Store, tmp_path: Path, tiny: bytes) -> None:
    file = tmp_path / "mine.gguf"
    file.write_bytes(tiny + b"\0" * 32)
    made = store.create("me/mine:1", ModelRecipe(str(file)))
    assert made.name == "me/mine:1"
    assert Path(made.path).read_bytes() == file.read_bytes()
    assert Path(made.path).parent == store.blobs.directory
    assert (made.system, made.license) == ("", "")


def test_weights_may_be_handed_in(store: Store, tiny: bytes) -> None:
    raw = tiny + b"\0" * 64
    digest = sha256_of(raw)
    assert not store.has_blob(digest)
    with pytest.raises(UsageError, match="POST /api/blobs"):
        store.create("up", ModelRecipe(weights_digest=digest))
    upload = store.open_upload(digest)
    upload.write(raw[:100])
    assert not store.has_blob(digest)
    upload.write(raw[100:])
    upload.commit()
    assert store.has_blob(digest)
    assert Path(store.create("up", ModelRecipe(weights_digest=digest)).path).read_bytes() == raw


def test_an_upload_that_is_not_what_it_says_or_breaks_off_leaves_nothing(store: Store) -> None:
    before = sorted(store.blobs.directory.iterdir())
    upload = store.open_upload("sha256:" + "b" * 64)
    upload.write(b"something else")
    with pytest.raises(DigestMismatch):
        upload.commit()
    upload = store.open_upload("sha256:" + "b" * 64)
    upload.write(b"half")
    upload.close()
    assert sorted(store.blobs.directory.iterdir()) == before
    with pytest.raises(InvalidReference):
        store.open_upload("sha256:../../x")


def test_replacing_a_model_takes_what_only_the_old_one_used(store: Store) -> None:
    store.create("x", ModelRecipe("base:1b", system="one"))
    count = len(store.blobs.digests())
    store.create("x", ModelRecipe("base:1b", system="two"))
    assert len(store.blobs.digests()) == count
    assert store.find("x").system == "two"
    assert store.find("base:1b").system == "Be brief."


@pytest.mark.parametrize("name", ["../x", "a/b/c/d", "x:", "", "x y", "/etc/x", "x:../../y"])
def test_names_that_would_leave_the_store_are_refused(store: Store, name: str) -> None:
    with pytest.raises(InvalidReference):
        store.create(name, ModelRecipe("base:1b"))


def test_what_is_no_model_is_refused_before_it_is_copied(store: Store, tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF, but not really" * 100)
    os.mkfifo(tmp_path / "fifo.gguf")
    before = sorted(store.blobs.directory.iterdir())
    for path in (tmp_path / "x.gguf", tmp_path / "fifo.gguf", Path("/dev/zero"), Path("/dev/stdin"), tmp_path):
        with pytest.raises((GGUFError, ModelNotFound)):
            store.create("x", ModelRecipe(str(path)))
    with pytest.raises((ModelNotFound, GGUFError)):
        store.create("x", ModelRecipe(str(tmp_path / "none.gguf")))
    assert sorted(store.blobs.directory.iterdir()) == before
    assert not list(store.blobs.directory.glob(f"*{PARTIAL_SUFFIX}"))


def test_a_broken_base_is_named(store: Store) -> None:
    Path(store.find("base:1b").path).unlink()
    with pytest.raises((StoreError, GGUFError)):
        store.create("x", ModelRecipe("base:1b"))


def test_tensors_are_listed_as_the_file_has_them(store: Store) -> None:
    tensors = store.tensors("base:1b")
    assert tensors[0].name == "token_embd.weight"
    assert (tensors[0].kind, tensors[0].shape) == ("F32", (64, 260))
