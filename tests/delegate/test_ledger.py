"""The ledger with real files and real processes: nothing committed is lost, nothing foreign is touched."""

import contextlib
import hashlib
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from garzone.core.errors import LedgerError
from garzone.core.task import Verdict
from garzone.delegate import pricing
from garzone.delegate.ledger import CANCELLED, ERROR, RUNNING, Ledger
from garzone.delegate.migrations import APPLICATION_ID, MIGRATIONS, migrate
from tests.delegate.rows import PRICES, a_task, book

# Databases stand on these steps: a digest that changes means that a released step was edited. Add, never edit.
RELEASED = ("32aec3fbff5f27f3", "f6e8c812d4d9b979")

WRITER = """
import sys
from pathlib import Path
from garzone.delegate.ledger import Ledger
from tests.delegate.rows import book
ledger = Ledger(Path(sys.argv[1]))
for number in range(int(sys.argv[2])):
    book(ledger)
    print(number, flush=True)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "home" / "ledger.db"


def writer(path: Path, count: int) -> subprocess.Popen[str]:
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", WRITER, str(path), str(count)]
    return subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True)


def dump(path: Path, query: str) -> list[tuple[object, ...]]:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return connection.execute(query).fetchall()


def test_released_migrations_are_never_edited() -> None:
    digests = [hashlib.sha256(" ".join(script.split()).encode()).hexdigest()[:16] for script in MIGRATIONS]
    assert digests[: len(RELEASED)] == list(RELEASED)
    assert len(MIGRATIONS) == len(RELEASED), "pin the new step's digest here"


def test_a_finished_task_is_kept_with_its_provenance(path: Path) -> None:
    ledger = Ledger(path)
    row = book(ledger)
    ledger.add_candidate(row, number=1, round_number=1, outcome="failed", reason="assert 14 == 6")
    (entry,) = ledger.entries()
    assert (entry.outcome, entry.model, entry.kind, entry.completion_tokens) == ("proved", "scripted", "fix", 210)
    assert entry.coordinator_tokens_spent == 100
    assert entry.price_date == "2026-11"
    assert entry.estimated
    assert set(entry.baseline_tokens) == {pricing.ALONE, pricing.SUB_AGENT}
    assert dump(path, "SELECT command, exit_code, before_exit_code FROM checks") == [("pytest -q", 0, 1)]
    assert dump(path, "SELECT round, number, outcome FROM candidates") == [(1, 1, "failed")]
    assert dump(path, "SELECT served_backend, served_device, branch, method FROM tasks") == [
        ("tinygrad", "CPU", "garzone/fix-ab12cd34", "counted by hand")
    ]


def test_a_row_begun_by_a_living_process_is_running_and_by_a_dead_one_interrupted(path: Path) -> None:
    ledger = Ledger(path)
    ledger.begin(a_task(), pricing.Spent(40, 0), PRICES, size_bytes=0, caller="cli")
    assert [entry.outcome for entry in ledger.entries()] == [RUNNING]
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE tasks SET pid = ?", (dead.pid,))
        connection.commit()
    assert [entry.outcome for entry in ledger.entries()] == ["interrupted"]


@pytest.mark.parametrize("outcome", [ERROR, CANCELLED])
def test_a_task_without_a_report_is_booked_too(path: Path, outcome: str) -> None:
    ledger = Ledger(path)
    row = ledger.begin(a_task(), pricing.Spent(40, 0), PRICES, size_bytes=0, caller="mcp")
    ledger.end(row, outcome, "the engine broke off")
    (entry,) = ledger.entries()
    assert (entry.outcome, entry.coordinator_tokens_spent) == (outcome, 40)
    assert ledger.observations() == []  # it says nothing about the worker


def test_observations_are_what_ended_with_a_verdict(path: Path) -> None:
    ledger = Ledger(path)
    for verdict in (Verdict.PROVED, Verdict.FAILED, Verdict.UNPROVED):
        book(ledger, verdict, size_bytes=5000)
    assert [(seen.proved, seen.size_bytes) for seen in ledger.observations()] == [
        (True, 5000),
        (False, 5000),
        (False, 5000),
    ]


def test_since_leaves_out_what_is_older(path: Path) -> None:
    ledger = Ledger(path)
    book(ledger)
    assert len(ledger.entries(since=time.time() - 60)) == 1
    assert ledger.entries(since=time.time() + 60) == []


def test_reading_a_ledger_that_is_not_there_makes_none(path: Path) -> None:
    assert Ledger(path).entries() == []
    assert Ledger(path).observations() == []
    assert not path.parent.exists()


def test_opening_writes_nothing(path: Path) -> None:
    Ledger(path)
    assert not path.parent.exists()


def test_several_processes_write_at_once_and_every_row_arrives(path: Path) -> None:
    writers = [writer(path, 20) for _ in range(3)]
    outputs = [process.communicate(timeout=120)[0] for process in writers]
    assert [process.returncode for process in writers] == [0, 0, 0]
    assert all(output.split()[-1] == "19" for output in outputs)
    assert len(Ledger(path).entries()) == 60
    assert dump(path, "PRAGMA integrity_check") == [("ok",)]


def test_several_threads_may_share_one_ledger(path: Path) -> None:
    ledger = Ledger(path)
    threads = [threading.Thread(target=book, args=(ledger,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ledger.entries()) == 8


def test_kill_9_in_the_middle_of_writes_loses_nothing_that_was_committed(path: Path) -> None:
    for rows_before_kill in (1, 4, 9):
        before = len(Ledger(path).entries())
        process = writer(path, 100_000)
        assert process.stdout
        reported = 0
        while reported < rows_before_kill:
            process.stdout.readline()
            reported += 1
        process.send_signal(signal.SIGKILL)
        reported += len(process.stdout.readlines())
        process.wait()
        entries = Ledger(path).entries()[before:]
        assert sum(entry.outcome == "proved" for entry in entries) >= reported
        # at most the one it was writing is half done, and that one says so
        assert [entry.outcome for entry in entries if entry.outcome != "proved"] in ([], ["interrupted"])
        assert all(len(entry.baseline_tokens) == 2 for entry in entries if entry.outcome == "proved")
        assert dump(path, "PRAGMA integrity_check") == [("ok",)]


def test_a_file_that_is_no_database_is_refused_and_left_alone(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"my diary, which happens to have this name\n" * 100)
    before = path.read_bytes()
    with pytest.raises(LedgerError, match=r"damaged or no SQLite file.*Move it away"):
        book(Ledger(path))
    with pytest.raises(LedgerError, match=str(path)):
        Ledger(path).entries()
    assert path.read_bytes() == before


def test_a_damaged_ledger_is_refused_and_left_alone(path: Path) -> None:
    ledger = Ledger(path)
    for _ in range(20):
        book(ledger)
    raw = bytearray(path.read_bytes())
    raw[200:] = b"\xff" * (len(raw) - 200)
    path.write_bytes(raw)
    with pytest.raises(LedgerError, match=r"nothing was changed"):
        book(ledger)
    assert path.read_bytes() == raw


def test_another_programs_database_is_refused_and_left_alone(path: Path) -> None:
    path.parent.mkdir()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE bookmarks (url TEXT)")
        connection.commit()
    before = path.read_bytes()
    with pytest.raises(LedgerError, match="another program's database"):
        book(Ledger(path))
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == ["ledger.db"]


def test_a_ledger_of_a_newer_garzone_is_refused(path: Path) -> None:
    book(Ledger(path))
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    with pytest.raises(LedgerError, match=r"newer garzone.*upgrade"):
        Ledger(path).entries()


def test_a_place_that_cannot_be_made_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LedgerError, match="GARZONE_HOME"):
        book(Ledger(tmp_path / "file" / "ledger.db"))


def test_a_read_only_ledger_is_an_error_that_says_what_to_do() -> None:
    home = Path(tempfile.mkdtemp(prefix="garzone-test-"))  # not below pytest's own, which only its owner may enter
    try:
        path = home / "ledger.db"
        book(Ledger(path))
        path.chmod(0o444)
        home.chmod(0o555)
        script = (
            "import os, sys\n"
            "from pathlib import Path\n"
            "from garzone.core.errors import LedgerError\n"
            "from garzone.delegate.ledger import Ledger\n"
            "from tests.delegate.rows import book\n"
            "if os.getuid() == 0: os.setuid(65534)\n"  # root may write everywhere
            "try: book(Ledger(Path(sys.argv[1])))\n"
            "except LedgerError as error: print(error)\n"
        )
        command = [sys.executable, "-c", script, str(path)]
        done = subprocess.run(
            command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True, timeout=60
        )
        assert "writable for you" in done.stdout
    finally:
        home.chmod(0o755)
        shutil.rmtree(home)


def test_a_ledger_that_stays_locked_is_an_error_that_says_so(path: Path) -> None:
    book(Ledger(path))
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        with pytest.raises(LedgerError, match="another process has held it"):
            book(Ledger(path, busy_timeout_s=0.1))


def test_a_failed_migration_leaves_the_database_as_it_was(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    book(Ledger(path))
    broken = (*MIGRATIONS, "CREATE TABLE more (x); CREATE NONSENSE;")
    monkeypatch.setattr("garzone.delegate.migrations.MIGRATIONS", broken)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        with pytest.raises(sqlite3.OperationalError):
            migrate(connection)
        assert connection.execute("PRAGMA user_version").fetchone() == (len(broken) - 1,)
        assert connection.execute("SELECT count(*) FROM sqlite_master WHERE name = 'more'").fetchone() == (0,)


def test_the_file_says_whose_it_is(path: Path) -> None:
    book(Ledger(path))
    assert dump(path, "PRAGMA application_id") == [(APPLICATION_ID,)]
    assert dump(path, "PRAGMA journal_mode") == [("wal",)]
