"""Whatever the bytes, a GGUF file is either read or refused with a GarzoneError, in bounded time and memory."""

import resource
import sys
import time
import tracemalloc
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from garzone.core.errors import ModelFileError
from garzone.engine.gguf import GGUFFile
from garzone.testing import write_gguf, write_tiny_model

SLOWEST_S = 1.0
MOST_BYTES = 8 << 20

fuzz = settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@cache
def sample() -> bytes:
    with TemporaryDirectory() as folder:
        return write_tiny_model(Path(folder) / "a.gguf", num_layers=1, hidden=32, feed_forward=32).read_bytes()


@cache
def header_bytes() -> int:
    return sample().rindex(b"output.weight") + 64


@cache
def small() -> bytes:
    metadata = {"a": "x", "b": 7, "c": [1, 2], "d": ["p", "q"], "e": 0.5, "general.alignment": 32}
    with TemporaryDirectory() as folder:
        path = write_gguf(Path(folder) / "a.gguf", metadata, {"t": (8, (2, 32), bytes(68)), "u": (0, (4,), bytes(16))})
        return path.read_bytes()


def read_all(path: Path, raw: bytes) -> bool:
    """True if it could be read; everything that can be asked of the file is asked."""
    path.write_bytes(raw)
    started = time.process_time()
    tracemalloc.start()
    try:
        with GGUFFile.open(path) as file:
            for key in file.metadata:
                file.metadata[key]
            for name, info in file.tensors.items():
                assert file.data(name).nbytes == info.num_bytes
                assert info.offset + info.num_bytes <= len(raw)
    except ModelFileError as error:
        assert str(path) in str(error)
        return False
    else:
        return True
    finally:
        assert tracemalloc.get_traced_memory()[1] < MOST_BYTES
        tracemalloc.stop()
        assert time.process_time() - started < SLOWEST_S


@fuzz
@given(data=st.data())
def test_changed_bytes_are_read_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    raw = bytearray(sample())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, header_bytes()))
        new = data.draw(st.binary(min_size=1, max_size=8))
        raw[at : at + len(new)] = new
    read_all(tmp_path / "a.gguf", bytes(raw))


@fuzz
@given(at=st.integers(0, 1 << 20), number=st.integers(0, 2**64 - 1) | st.sampled_from([2**63, 2**64 - 8, 2**32, 0]))
def test_any_count_or_length_in_a_small_file_may_lie(tmp_path: Path, at: int, number: int) -> None:
    raw = bytearray(small())
    at %= len(raw) - 8
    raw[at : at + 8] = number.to_bytes(8, "little")
    read_all(tmp_path / "a.gguf", bytes(raw))


def test_every_truncation_of_a_small_file_is_refused(tmp_path: Path) -> None:
    raw = small()
    assert read_all(tmp_path / "a.gguf", raw)
    padding = len(raw) - 16
    for length in range(1, len(raw)):
        assert read_all(tmp_path / "a.gguf", raw[:length]) == (length >= padding)


@fuzz
@given(tail=st.binary(max_size=400), tensors=st.integers(0, 3), keys=st.integers(0, 3))
@example(tail=b"", tensors=0, keys=0)
def test_random_headers_are_read_or_refused(tmp_path: Path, tail: bytes, tensors: int, keys: int) -> None:
    raw = b"GGUF" + (3).to_bytes(4, "little") + tensors.to_bytes(8, "little") + keys.to_bytes(8, "little") + tail
    read_all(tmp_path / "a.gguf", raw)


@pytest.mark.skipif(sys.platform != "linux", reason="RSS in kilobytes")
def test_a_sparse_file_of_terabytes_costs_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    head = b"GGUF" + (3).to_bytes(4, "little") + (0).to_bytes(8, "little") + (1).to_bytes(8, "little")
    head += (1).to_bytes(8, "little") + b"k" + (9).to_bytes(4, "little") + (0).to_bytes(4, "little")
    with path.open("wb") as file:
        file.write(head + (1 << 39).to_bytes(8, "little"))
        file.truncate(1 << 40)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ModelFileError, match="goes on beyond"):
        GGUFFile.open(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10
