"""Blobs: whole under their names at every moment, whoever is killed, whoever else writes."""

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from garzone.core.errors import DigestMismatch, StoreError
from garzone.store.blobs import PARTIAL_SUFFIX, Blobs, exclusive, is_locked, storage_errors
from garzone.store.manifest import Layer

BODY = bytes(range(256)) * 5000
DIGEST = "sha256:" + hashlib.sha256(BODY).hexdigest()
KEY = DIGEST.replace(":", "-")

WRITER = """
import sys, time
from pathlib import Path
from garzone.store.blobs import Blobs
blobs = Blobs(Path(sys.argv[1]))
with blobs.open_partial(sys.argv[2]) as partial:
    partial.reuse()
    body = bytes(range(256)) * 5000
    while partial.size < len(body):
        partial.write(body[partial.size : partial.size + 10000])
        partial._file.flush()
        print(partial.size, flush=True)
        time.sleep(0.005)
"""


def test_a_written_blob_has_its_digest_for_a_name(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path / "blobs")
    layer = blobs.put(b"hello", "text/plain")
    assert layer == Layer("text/plain", "sha256:" + hashlib.sha256(b"hello").hexdigest(), 5)
    assert blobs.has(layer)
    assert blobs.read(layer, 10) == b"hello"
    assert blobs.digests() == [layer.digest]
    assert [path.name for path in (tmp_path / "blobs").iterdir()] == [layer.digest.replace(":", "-")]


def test_opening_a_store_writes_nothing(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path / "blobs")
    assert blobs.digests() == []
    assert not blobs.has(Layer("", DIGEST, 1))
    assert list(tmp_path.iterdir()) == []


def test_bytes_of_another_digest_never_get_the_name(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path)
    with blobs.open_partial(KEY) as partial:
        partial.write(b"something else")
        with pytest.raises(DigestMismatch, match=DIGEST[:19]):
            blobs.commit(partial, DIGEST)
    assert list(tmp_path.iterdir()) == []


def test_a_writer_that_is_killed_leaves_a_part_that_the_next_one_continues(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path)
    child = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), KEY], stdout=subprocess.PIPE, text=True)
    assert child.stdout
    arrived = [int(child.stdout.readline()) for _ in range(5)][-1]
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert not blobs.path(DIGEST).exists()
    with blobs.open_partial(KEY) as partial:
        assert arrived <= partial.reuse() < len(BODY)
        partial.write(BODY[partial.size :])
        blobs.commit(partial, DIGEST)
    assert blobs.path(DIGEST).read_bytes() == BODY


def test_a_second_process_waits_for_the_first_and_finds_its_work(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path)
    waited: list[float] = []
    child = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), KEY], stdout=subprocess.PIPE, text=True)
    assert child.stdout
    child.stdout.readline()
    assert is_locked(tmp_path / (KEY + PARTIAL_SUFFIX))
    threading.Thread(target=child.stdout.read, daemon=True).start()
    with blobs.open_partial(KEY, waiting=lambda: waited.append(time.monotonic())) as partial:
        assert partial.reuse() == len(BODY)
        blobs.commit(partial, DIGEST)
    assert waited
    assert child.wait() == 0
    child.stdout.close()


def test_waiting_can_be_given_up(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path)

    def give_up() -> None:
        raise KeyboardInterrupt

    with blobs.open_partial(KEY):  # noqa: SIM117 - the order matters
        with pytest.raises(KeyboardInterrupt), blobs.open_partial(KEY, waiting=give_up):
            pytest.fail("two writers at once")
    assert not is_locked(tmp_path / (KEY + PARTIAL_SUFFIX))


def test_a_lock_on_a_file_that_was_moved_away_meanwhile_is_not_taken_for_a_lock(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path)
    taken = threading.Event()
    sizes: list[int] = []

    def second() -> None:
        taken.wait()
        with blobs.open_partial(KEY) as partial:
            sizes.append(partial.reuse())
            partial.discard()

    thread = threading.Thread(target=second)
    thread.start()
    with blobs.open_partial(KEY) as partial:
        taken.set()
        time.sleep(0.15)
        partial.write(BODY)
        blobs.commit(partial, DIGEST)
    thread.join()
    assert sizes == [0]
    assert blobs.path(DIGEST).read_bytes() == BODY


def test_exclusive_sections_do_not_overlap(tmp_path: Path) -> None:
    inside, most = [0], [0]

    def enter() -> None:
        for _ in range(3):
            with exclusive(tmp_path / "lock"):
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                time.sleep(0.002)
                inside[0] -= 1

    threads = [threading.Thread(target=enter) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_a_clear_error() -> None:
    full = Path("/dev/full")
    with (
        pytest.raises(StoreError, match=r"no space left.*OLLAMA_MODELS"),
        storage_errors(full),
        full.open("wb") as file,
    ):
        file.write(b"x" * 100_000)


def test_a_directory_one_may_not_write_to_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"Permission denied.*OLLAMA_MODELS"), storage_errors(tmp_path / "x"):
        raise PermissionError(13, os.strerror(13))
    blocked = tmp_path / "file"
    blocked.write_text("not a directory")
    with pytest.raises(StoreError, match="file"):
        Blobs(blocked / "blobs").put(b"x", "")


def test_a_blob_longer_than_expected_is_not_read(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path)
    layer = blobs.put(b"x" * 100, "application/vnd.ollama.image.template")
    with pytest.raises(StoreError, match="more than 10 bytes"):
        blobs.read(layer, 10)
