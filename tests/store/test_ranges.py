"""Large blobs over several connections: whatever breaks, and whenever the process dies, what arrived is used."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from garzone.core.errors import DigestMismatch, DownloadFailed
from garzone.store import ranges, transfer
from garzone.store.blobs import PARTIAL_SUFFIX, Blobs, sha256_of
from garzone.store.catalog import Store
from garzone.store.manifest import Layer
from garzone.store.sources.ollama import pull_blob
from garzone.store.transfer import Transfer
from garzone.testing import write_tiny_model
from tests.store.web import Resource, Web

BODY = random.Random(7).randbytes(700_001)
LAYER = Layer("model", sha256_of(BODY), len(BODY))
RANGE = 50_000
NUM_RANGES = 15


@pytest.fixture(autouse=True)
def small_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "MAX_BACKOFF_S", 0.01)
    monkeypatch.setattr(transfer, "PARALLEL_BYTES", 100_000)
    monkeypatch.setattr(ranges, "RANGE_BYTES", RANGE)
    monkeypatch.setattr(ranges, "STALL_S", 2.0)
    monkeypatch.setattr(ranges, "_NOTE_BYTES", 10_000)


@pytest.fixture
def web() -> Iterator[Web]:
    with Web() as server:
        server.resources["/blob"] = Resource(BODY)
        yield server


def pull(blobs: Blobs, url: str, seen: list[int] | None = None) -> None:
    with Transfer() as client:
        pull_blob(LAYER, url, blobs, client, lambda what, done, total: seen.append(done) if seen is not None else None)


def partial_of(blobs: Blobs) -> Path:
    return blobs.directory / (blobs.path(LAYER.digest).name + PARTIAL_SUFFIX)


def requested(web: Web, path: str = "/blob") -> list[tuple[int, int]]:
    """The ranges asked for, without the first question that finds out where the file is."""
    pairs = [each.removeprefix("bytes=").split("-") for each in web.ranges_of(path)]
    return sorted((int(start), int(end)) for start, end in pairs if (start, end) != ("0", "0"))


def test_a_large_blob_comes_in_ranges_and_is_whole(tmp_path: Path, web: Web) -> None:
    blobs, seen = Blobs(tmp_path), list[int]()
    pull(blobs, web.url + "/blob", seen)
    assert blobs.path(LAYER.digest).read_bytes() == BODY
    assert not partial_of(blobs).exists()
    assert requested(web) == [(at, min(at + RANGE, len(BODY)) - 1) for at in range(0, len(BODY), RANGE)]
    assert seen[-1] == len(BODY)
    assert seen == sorted(seen)


def test_several_connections_are_used_at_once(tmp_path: Path, web: Web) -> None:
    gate = threading.Event()
    web.resources["/blob"].gate, web.resources["/blob"].gate_after = gate, 1
    pulling = threading.Thread(target=pull, args=(Blobs(tmp_path), web.url + "/blob"))
    pulling.start()
    deadline = time.monotonic() + 30
    while len(requested(web)) < ranges.NUM_STREAMS:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    gate.set()
    pulling.join(30)
    assert Blobs(tmp_path).has(LAYER)


def test_each_range_goes_on_where_it_broke(tmp_path: Path, web: Web) -> None:
    web.resources["/blob"].cut_after = [1, 20_000, 30_000, 0, 10]  # the first is the question where the file is
    web.resources["/blob"].statuses = [503]
    pull(Blobs(tmp_path), web.url + "/blob")
    assert Blobs(tmp_path).path(LAYER.digest).read_bytes() == BODY
    again = [start % RANGE for start, _ in requested(web) if start % RANGE]
    assert 20_000 in again
    assert 30_000 in again


def test_a_connection_that_stalls_is_given_up_for_another(
    tmp_path: Path, web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranges, "STALL_S", 0.3)
    resource = web.resources["/blob"]
    resource.gate, resource.gate_after = threading.Event(), 25_000
    pulling = threading.Thread(target=pull, args=(Blobs(tmp_path), web.url + "/blob"))
    pulling.start()
    time.sleep(0.6)
    resource.gate.set()  # those that wait have been left by now; others are served at once
    pulling.join(30)
    assert Blobs(tmp_path).path(LAYER.digest).read_bytes() == BODY


def test_a_signed_address_that_ran_out_is_asked_for_again(tmp_path: Path, web: Web) -> None:
    with Web() as elsewhere:
        elsewhere.resources["/cdn"] = Resource(BODY, statuses=[])
        web.resources["/blob"] = Resource(status=307, headers={"Location": f"{elsewhere.url}/cdn?signature=s3cret"})
        web.resources["/blob"].token = "t0ken"
        web.resources["/token"] = Resource(b'{"token": "t0ken"}', "application/json")
        from garzone.store.sources.ollama import RegistryToken

        with Transfer(auth=RegistryToken()) as client:
            blobs = Blobs(tmp_path)
            original = client._locate  # pyright: ignore[reportPrivateUsage]
            located: list[str] = []

            def locate_then_expire(url: str, size: int) -> ranges.Source:
                source = original(url, size)
                if not located:  # the address is given once before it runs out, and is good from then on
                    elsewhere.resources["/cdn"].statuses = [403, 403]
                located.append(source.url)
                return source

            client._locate = locate_then_expire  # pyright: ignore
            pull_blob(LAYER, web.url + "/blob", blobs, client, lambda *_: None)
        assert blobs.path(LAYER.digest).read_bytes() == BODY
        assert len([each for each in web.paths() if each == "/blob"]) >= 3, "it was asked again where the file is"
        assert len(located) >= 2
        assert not any("authorization" in headers for _, headers in elsewhere.requests), "the token stays at home"


def test_a_token_goes_with_every_range_where_the_registry_itself_has_the_bytes(tmp_path: Path, web: Web) -> None:
    from garzone.store.sources.ollama import RegistryToken

    web.resources["/blob"].token = "t0ken"
    web.resources["/token"] = Resource(b'{"token": "t0ken"}', "application/json")
    with Transfer(auth=RegistryToken()) as client:
        pull_blob(LAYER, web.url + "/blob", Blobs(tmp_path), client, lambda *_: None)
    assert Blobs(tmp_path).has(LAYER)


def test_a_server_without_ranges_is_read_from_front_to_back(tmp_path: Path, web: Web) -> None:
    web.resources["/blob"].ranges = False
    pull(Blobs(tmp_path), web.url + "/blob")
    assert Blobs(tmp_path).path(LAYER.digest).read_bytes() == BODY


def test_a_part_that_was_fetched_from_front_to_back_is_continued(tmp_path: Path, web: Web) -> None:
    blobs = Blobs(tmp_path)
    partial_of(blobs).write_bytes(BODY[:123_456])
    pull(blobs, web.url + "/blob")
    assert blobs.path(LAYER.digest).read_bytes() == BODY
    assert min(start for start, _ in requested(web)) == 123_456


@pytest.mark.parametrize("junk", [b"\0" * 200_000, b"x" * (len(BODY) + 144), b"\0" * len(BODY), os.urandom(900_000)])
def test_a_part_spoilt_by_a_crash_is_fetched_again(tmp_path: Path, web: Web, junk: bytes) -> None:
    blobs = Blobs(tmp_path)
    partial_of(blobs).write_bytes(junk)
    pull(blobs, web.url + "/blob")
    assert blobs.path(LAYER.digest).read_bytes() == BODY


def test_wrong_bytes_never_become_a_blob(tmp_path: Path, web: Web) -> None:
    web.resources["/blob"].body = BODY[:-1] + bytes([BODY[-1] ^ 1])
    with pytest.raises(DigestMismatch, match="thrown away"):
        pull(Blobs(tmp_path), web.url + "/blob")
    assert list(tmp_path.iterdir()) == []


def test_another_size_than_the_manifest_says_is_refused_before_anything_is_fetched(tmp_path: Path, web: Web) -> None:
    web.resources["/blob"].body = BODY + b"more"
    with pytest.raises(DownloadFailed, match="not the 700001"):
        pull(Blobs(tmp_path), web.url + "/blob")
    assert requested(web) == []


def test_a_server_that_stays_broken_is_given_up_and_what_arrived_is_kept(tmp_path: Path, web: Web) -> None:
    blobs = Blobs(tmp_path)
    web.resources["/blob"].cut_after = [1, *[40_000] * 8, *[0] * 200]
    with pytest.raises(DownloadFailed, match="run the same command again"):
        pull(blobs, web.url + "/blob")
    web.resources["/blob"].cut_after = []
    web.requests.clear()
    pull(blobs, web.url + "/blob")
    assert sum(end + 1 - start for start, end in requested(web)) <= len(BODY) - 4 * 40_000
    assert blobs.path(LAYER.digest).read_bytes() == BODY


def test_whoever_watches_can_end_it(tmp_path: Path, web: Web) -> None:
    web.resources["/blob"].slow_s = 0.05
    blobs = Blobs(tmp_path)

    def stop(what: str, done: int, total: int) -> None:
        if done > 150_000:
            raise KeyboardInterrupt

    with Transfer() as client, pytest.raises(KeyboardInterrupt):
        pull_blob(LAYER, web.url + "/blob", blobs, client, stop)
    web.resources["/blob"].slow_s = 0.0
    web.requests.clear()
    pull(blobs, web.url + "/blob")
    missing = {end: start for start, end in reversed(requested(web))}  # a broken connection asks twice
    assert sum(end + 1 - start for end, start in missing.items()) <= len(BODY) - 150_000
    assert blobs.path(LAYER.digest).read_bytes() == BODY


def test_calling_off_does_not_wait_for_a_silent_server_and_frees_the_file(
    tmp_path: Path, web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranges, "STALL_S", 30.0)
    resource = web.resources["/blob"]
    resource.gate, resource.gate_after = threading.Event(), 30_000
    blobs = Blobs(tmp_path)

    def stop(what: str, done: int, total: int) -> None:
        if len(requested(web)) >= ranges.NUM_STREAMS:  # all of them wait for the server now
            raise KeyboardInterrupt

    with Transfer() as client, pytest.raises(KeyboardInterrupt):
        pull_blob(LAYER, web.url + "/blob", blobs, client, stop)
    started = time.monotonic()
    with blobs.open_partial(blobs.path(LAYER.digest).name):
        assert time.monotonic() - started < 5, "nobody holds it any more"
    resource.gate.set()


PROGRAM = """
import sys
from pathlib import Path
from garzone.store import ranges, transfer
from garzone.store.catalog import Store
transfer.PARALLEL_BYTES, ranges.RANGE_BYTES, ranges._NOTE_BYTES = 100_000, 50_000, 10_000
print(Store(Path(sys.argv[1])).pull(sys.argv[2]).digest)
"""


def serve(web: Web, gguf: bytes) -> str:
    config = b'{"model_format":"gguf"}'
    layers = [{"mediaType": "application/vnd.ollama.image.model", "digest": sha256_of(gguf), "size": len(gguf)}]
    document = {"config": {"mediaType": "x", "digest": sha256_of(config), "size": len(config)}, "layers": layers}
    web.resources["/v2/library/tiny/manifests/1b"] = Resource(json.dumps(document).encode())
    web.resources[f"/v2/library/tiny/blobs/{sha256_of(config)}"] = Resource(config)
    web.resources[f"/v2/library/tiny/blobs/{sha256_of(gguf)}"] = Resource(gguf)
    return f"127.0.0.1:{web.port}/library/tiny:1b"


def test_kill_9_at_any_moment_leaves_the_store_valid_and_the_next_pull_goes_on(tmp_path: Path, web: Web) -> None:
    gguf = write_tiny_model(tmp_path / "x.gguf", hidden=128, feed_forward=256).read_bytes()
    reference = serve(web, gguf)
    blob = f"/v2/library/tiny/blobs/{sha256_of(gguf)}"
    web.resources[blob].slow_s = 0.02
    store, dice = Store(tmp_path / "models"), random.Random(3)
    fetched, kills = 0, 0
    for _ in range(5):
        web.requests.clear()
        with subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(store.models_dir), reference], stdout=subprocess.PIPE
        ) as child:
            deadline = time.monotonic() + 60
            while not requested(web, blob) and child.poll() is None and time.monotonic() < deadline:
                time.sleep(0.005)
            time.sleep(dice.uniform(0.0, 0.3))
            child.send_signal(signal.SIGKILL)
        killed = child.returncode == -signal.SIGKILL
        kills += killed
        for digest in store.blobs.digests():
            assert hashlib.sha256(store.blobs.path(digest).read_bytes()).hexdigest() == digest[7:], "blobs are whole"
        for model in store.list_models():
            assert Path(model.path).read_bytes() == gguf
        if not killed:
            break
        fetched = max(fetched, len(gguf) - sum(end + 1 - start for start, end in requested(web, blob)))
    assert kills >= 2
    web.resources[blob].slow_s = 0.0
    web.requests.clear()
    assert Path(store.pull(reference).path).read_bytes() == gguf
    assert sum(end + 1 - start for start, end in requested(web, blob)) < len(gguf), "what the killed ones had is used"
    assert sorted(path.name for path in store.blobs.directory.glob(f"*{PARTIAL_SUFFIX}")) == []


def test_pulls_of_one_model_at_once_do_not_damage_each_other(tmp_path: Path, web: Web) -> None:
    gguf = write_tiny_model(tmp_path / "x.gguf", hidden=128, feed_forward=256).read_bytes()
    reference = serve(web, gguf)
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "models"), reference]
    children = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    said = {child.communicate(timeout=120)[0] for child in children}
    assert len(said) == 1
    assert all(child.returncode == 0 for child in children)
    assert Path(Store(tmp_path / "models").find(reference).path).read_bytes() == gguf
    blob = f"/v2/library/tiny/blobs/{sha256_of(gguf)}"
    assert sum(end + 1 - start for start, end in requested(web, blob)) == len(gguf), "fetched once"
