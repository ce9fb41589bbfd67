import os
import struct
import time
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from garzone.core.errors import GGUFError, UnsupportedModel
from garzone.engine.gguf import MAX_ENTRIES, GGUFFile, read_metadata
from garzone.kernels.layouts import GGMLType
from garzone.testing import write_gguf, write_tiny_model


def preamble(num_tensors: int, num_keys: int, version: int = 3) -> bytes:
    return struct.pack("<4sIQQ", b"GGUF", version, num_tensors, num_keys)


def text(value: str | bytes) -> bytes:
    raw = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(raw)) + raw


def pair(key: str, kind: int, body: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + body


def tensor(name: str, dims: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def refuse(path: Path, raw: bytes, match: str, error: type[Exception] = GGUFError) -> None:
    path = path / "bad.gguf"
    path.write_bytes(raw)
    with pytest.raises(error, match=match):
        GGUFFile.open(path)


def written_by_the_gguf_package(path: Path) -> Path:
    rng = np.random.default_rng(1)
    writer = gguf.GGUFWriter(path, "llama")
    for suffix, value in {
        "uint8": 200, "int8": -100, "uint16": 60000, "int16": -30000, "uint32": 1 << 31, "int32": -(1 << 31),
        "uint64": 1 << 63, "int64": -(1 << 63), "float32": 1.5, "float64": 0.1, "bool": True, "string": "Grüße 🦀",
    }.items():  # fmt: skip
        getattr(writer, f"add_{suffix}")(f"test.{suffix}", value)
    writer.add_array("test.strings", ["a", "", "ü" * 300])
    writer.add_array("test.ints", [1, -2, 3])
    writer.add_array("test.floats", [1.0, 2.5])
    writer.add_array("test.bools", [True, False])
    writer.add_array("test.nested", [[1, 2], [3]])
    writer.add_tensor("f32", rng.standard_normal((3, 4, 5)).astype(np.float32))
    writer.add_tensor("f16", rng.standard_normal((7, 1)).astype(np.float16))
    q4k = gguf.quants.quantize(rng.standard_normal((4, 256)).astype(np.float32), gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("q8", q4k, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def contents(field: Any) -> Any:
    value = field.contents()
    return value.tolist() if isinstance(value, np.ndarray) else value


def plain(value: Any) -> Any:
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value.tolist() if isinstance(value, np.ndarray) else value


def assert_reads_as_the_gguf_package_does(path: Path) -> None:
    theirs = gguf.GGUFReader(path)
    with GGUFFile.open(path) as ours:
        fields = {key: field for key, field in theirs.fields.items() if not key.startswith("GGUF.")}
        assert list(ours.metadata) == list(fields)
        for key, field in fields.items():
            if key != "test.nested":  # the package flattens it
                assert plain(ours.metadata[key]) == contents(field), key
        assert list(ours.tensors) == [t.name for t in theirs.tensors]
        for t in theirs.tensors:
            info = ours.tensors[t.name]
            assert info.shape == tuple(int(n) for n in t.shape)[::-1]
            assert (int(info.ggml_type), info.offset) == (int(t.tensor_type), int(t.data_offset))
            assert ours.data(t.name).tobytes() == t.data.tobytes()


def test_a_file_of_the_gguf_package_reads_as_its_own_reader_reads_it(tmp_path: Path) -> None:
    path = written_by_the_gguf_package(tmp_path / "a.gguf")
    assert_reads_as_the_gguf_package_does(path)
    assert plain(read_metadata(path)["test.nested"]) == [[1, 2], [3]]
    assert type(read_metadata(path)["test.bool"]) is bool


def test_smollm2_reads_as_the_gguf_package_reads_it(smollm2_path: Path) -> None:
    assert_reads_as_the_gguf_package_does(smollm2_path)


def test_smollm2_opens_in_well_under_a_third_of_a_second(smollm2_path: Path) -> None:
    times: list[float] = []
    for _ in range(3):
        start = time.process_time()
        with GGUFFile.open(smollm2_path) as file:
            tokens, merges = file.metadata["tokenizer.ggml.tokens"], file.metadata["tokenizer.ggml.merges"]
        times.append(time.process_time() - start)
        assert (len(tokens), len(merges)) == (49152, 48900)
    assert min(times) < 0.3


@pytest.mark.parametrize("version", [2, 3])
def test_tensors_come_back_as_they_were_written(tmp_path: Path, version: int) -> None:
    a = np.arange(12, dtype=np.float32).reshape(3, 4)
    path = write_gguf(
        tmp_path / "a.gguf", {"general.architecture": "x"}, {"a": a, "q": (8, (2, 32), bytes(68))}, version=version
    )
    with GGUFFile.open(path) as file:
        assert file.tensors["a"].shape == (3, 4)
        assert file.data("a").view(np.float32).reshape(3, 4).tolist() == a.tolist()
        assert file.tensors["q"].ggml_type is GGMLType.Q8_0
        assert file.tensors["q"].num_bytes == 68
        assert not file.data("a").flags.writeable


def test_views_outlive_the_file_and_a_closed_file_says_so(tmp_path: Path) -> None:
    file = GGUFFile.open(write_tiny_model(tmp_path / "a.gguf"))
    view = file.data("output_norm.weight")
    file.close()
    file.close()
    assert view.view(np.float32).mean() == pytest.approx(1.0, abs=0.2)
    with pytest.raises(GGUFError, match="closed"):
        file.data("output_norm.weight")
    assert len(file.metadata["tokenizer.ggml.tokens"]) == 260


def test_reading_metadata_keeps_no_file_open(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path / "a.gguf")
    open_files = Path("/proc/self/fd")
    if not open_files.exists():
        pytest.skip("needs /proc")
    before = len(list(open_files.iterdir()))
    kept = [read_metadata(path) for _ in range(5)]
    assert len(list(open_files.iterdir())) == before
    assert kept[0]["tokenizer.ggml.merges"] == ["d e", "r e"]
    assert kept[0].is_array("tokenizer.ggml.merges")
    assert not kept[0].is_array("general.name")


def test_an_unknown_tensor_is_named(tmp_path: Path) -> None:
    with GGUFFile.open(write_tiny_model(tmp_path / "a.gguf")) as file, pytest.raises(GGUFError, match="'nope'"):
        file.data("nope")


def test_what_is_not_a_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "empty").touch()
    for name, match in (("fifo", "regular"), ("empty", "empty"), ("missing", "No such file"), (".", "regular")):
        with pytest.raises(GGUFError, match=match):
            GGUFFile.open(tmp_path / name)


def test_other_formats_and_versions_are_named(tmp_path: Path) -> None:
    refuse(tmp_path, b"PK\x03\x04" + bytes(60), "not a GGUF file")
    refuse(tmp_path, b"GG", "byte 0")
    refuse(tmp_path, preamble(0, 0, version=1), "version 1")
    refuse(tmp_path, preamble(0, 0, version=4), "version 4")
    refuse(tmp_path, struct.pack(">4sIQQ", b"GGUF", 3, 0, 0), "big-endian")
    refuse(tmp_path, preamble(0, 0)[:20], "number of keys|byte 16")


def test_counts_that_cannot_be_true_are_refused_before_anything_is_read(tmp_path: Path) -> None:
    for raw in (
        preamble(1 << 62, 0),
        preamble(0, 1 << 62),
        preamble(0, MAX_ENTRIES + 1) + bytes(20 * MAX_ENTRIES),
        preamble(0, 1) + pair("a", 9, struct.pack("<IQ", 8, 1 << 60)),
        preamble(0, 1) + pair("a", 9, struct.pack("<IQ", 9, 1 << 60)),
        preamble(0, 1) + pair("a", 9, struct.pack("<IQ", 12, 1 << 61)),
        preamble(0, 1) + pair("a", 8, struct.pack("<Q", (1 << 64) - 1)),
        preamble(0, 1) + struct.pack("<Q", 1 << 40) + bytes(20),
        preamble(0, 1) + pair("a", 9, struct.pack("<IQ", 8, 2) + text("x") + struct.pack("<Q", (1 << 64) - 9)),
    ):
        started = time.process_time()
        refuse(tmp_path, raw, "byte")
        assert time.process_time() - started < 0.5


def test_endless_lists_of_nothing_are_cut_short(tmp_path: Path) -> None:
    empty_strings = struct.pack("<IQ", 8, 5_000_000) + bytes(40_000_000)
    started = time.process_time()
    refuse(tmp_path, preamble(0, 1) + pair("a", 9, empty_strings), "more than 4194304")
    assert time.process_time() - started < 2


def test_arrays_nested_too_deep_are_refused(tmp_path: Path) -> None:
    body = struct.pack("<IQ", 9, 1) * 1000 + struct.pack("<IQ", 4, 0)
    refuse(tmp_path, preamble(0, 1) + pair("deep", 9, body), "'deep': arrays nested")


def test_malformed_keys_are_named(tmp_path: Path) -> None:
    one = pair("k", 4, struct.pack("<I", 1))
    refuse(tmp_path, preamble(0, 2) + one + one, "'k' occurs twice")
    refuse(tmp_path, preamble(0, 1) + pair("k", 13, bytes(8)), "'k': unknown value type 13")
    refuse(tmp_path, preamble(0, 1) + pair("k", 9, struct.pack("<IQ", 99, 1) + bytes(8)), "element type 99")
    refuse(tmp_path, preamble(0, 1) + text(b"\xff\xff") + struct.pack("<IB", 0, 1), "not UTF-8")
    for value in (0, 3, 48, (1 << 32) - 1):
        refuse(tmp_path, preamble(0, 1) + pair("general.alignment", 4, struct.pack("<I", value)), "alignment")
    refuse(tmp_path, preamble(0, 1) + pair("general.alignment", 8, text("32")), "alignment")


def test_malformed_tensors_are_named(tmp_path: Path) -> None:
    data = bytes(400)
    for raw, match in (
        (tensor("t", (4,)) + tensor("t", (4,), offset=32), "'t' occurs twice"),
        (tensor("t", (4,)) + tensor("u", (4,)), "'t' and 'u' overlap"),
        (tensor("t", (16,)) + tensor("u", (4,), offset=32), "'t' and 'u' overlap"),
        (tensor("t", (4,)) + tensor("u", (4,), offset=1 << 40), "'u'.*outside the file"),
        (tensor("t", (4,)) + tensor("u", (1000,), offset=32), "'u'.*outside the file"),
        (tensor("t", (4,)) + tensor("u", (4,), offset=33), "'u'.*multiple of 32"),
        (tensor("t", (4,)) + tensor("u", (4,), 999, 32), "'u': unknown tensor type 999"),
        (tensor("t", (4,)) + tensor("u", (33,), 2, 32), "'u': rows of 33 do not fill Q4_0 blocks of 32"),
        (tensor("t", (4,)) + tensor("u", (), 2, 32), "'u': rows of 1 do not fill Q4_0"),
        (tensor("t", (4,)) + tensor("u", (0, 1 << 40), 0, 32), "'u': impossible shape"),
        (tensor("t", (4,)) + tensor("u", (1 << 32, 1 << 32, 1 << 32), 0, 32), "'u': impossible shape"),
        (tensor("t", (4,)) + tensor("u", (1, 1, 1, 1, 1), 0, 32), "'u': 5 dimensions"),
        (tensor("t", (4,)) + tensor(b"\xff".decode("latin1") * 70000, (4,), 0, 32), "a name of"),
    ):
        refuse(tmp_path, preamble(2, 0) + raw + data, match)


def test_a_cut_download_says_that_it_may_be_one(tmp_path: Path) -> None:
    raw = write_tiny_model(tmp_path / "whole.gguf").read_bytes()
    refuse(tmp_path, raw[:-500], "cut short")


def test_well_formed_files_that_cannot_be_run_are_unsupported_not_malformed(tmp_path: Path) -> None:
    refuse(tmp_path, preamble(1, 0) + tensor("t", (32,), 31) + bytes(400), "'t' is of type Q4_0_4_4", UnsupportedModel)
    split = preamble(0, 1) + pair("split.count", 2, struct.pack("<H", 3))
    refuse(tmp_path, split, "split into 3 files; pull it by name", UnsupportedModel)
    whole = tmp_path / "whole.gguf"
    whole.write_bytes(preamble(0, 1) + pair("split.count", 2, struct.pack("<H", 1)))
    assert read_metadata(whole)["split.count"] == 1


def test_bytes_that_are_not_utf8_in_values_do_not_cost_the_model(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "a.gguf", {"general.license": b"caf\xe9", "general.tags": [b"a", b"\xff"]}, {})
    metadata = read_metadata(path)
    assert metadata["general.license"] == "caf�"
    assert metadata["general.tags"] == ["a", "�"]


def test_own_alignment_is_honoured(tmp_path: Path) -> None:
    head = preamble(1, 1) + pair("general.alignment", 4, struct.pack("<I", 1024)) + tensor("t", (2,))
    path = tmp_path / "a.gguf"
    path.write_bytes(head.ljust(1024, b"\0") + np.array([1, 2], np.float32).tobytes())
    with GGUFFile.open(path) as file:
        assert file.data("t").view(np.float32).tolist() == [1.0, 2.0]
