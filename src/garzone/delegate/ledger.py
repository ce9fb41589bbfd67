"""The ledger: one SQLite file with a row for every task, so that nothing spent or saved is forgotten.

Several processes write it at once. A row exists, as `interrupted`, before the work begins. Computes no prices and no
totals, and never repairs or overwrites a file it cannot trust.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import time
from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from garzone import __version__
from garzone.core.errors import LedgerError
from garzone.core.task import Report, Task, Verdict
from garzone.delegate.belief import Observation
from garzone.delegate.energy import Energy
from garzone.delegate.migrations import migrate
from garzone.delegate.policy import RouteDecision
from garzone.delegate.pricing import Baseline, Billed, Spent
from garzone.delegate.speed import Timing

BUSY_TIMEOUT_S = 10.0
GRACE_S = 600.0  # loading and compiling a model may come on top of a task's own time limit
CANCELLED, DECLINED, ERROR, RUNNING = "cancelled", "declined", "error", "running"
OBSERVED = tuple(verdict.value for verdict in Verdict)  # outcomes that say something about the worker


@dataclass(frozen=True, slots=True)
class Prices:
    """What stands behind a row's amounts: which model, as of when, how they were found, who counted the tokens."""

    coordinator_model: str
    price_date: str
    method: str
    estimated: bool = True
    counted_by: str = ""


@dataclass(frozen=True, slots=True)
class Entry:
    """A task as the ledger has it. `usd` and `tokens` of `baselines` are by baseline name.

    `outcome` is a verdict, or `error`, `cancelled`, `interrupted` (its process died), `declined` (the policy sent it
    back), or `running`. `energy_joules` is None where the device did not tell. `billed` is what a transcript of the
    coordinator says it really used, where one was found.
    """

    task_id: str
    kind: str
    repo: str
    model: str
    outcome: str
    started_at: float
    size_bytes: int
    completion_tokens: int
    coordinator_tokens_spent: int
    coordinator_usd: float
    price_date: str
    estimated: bool
    baseline_tokens: dict[str, int]
    baseline_usd: dict[str, float]
    prompt_tokens: int = 0
    duration_ms: float = 0.0
    caller: str = ""
    counted_by: str = ""
    energy_joules: float | None = None
    billed: Billed | None = None

    @property
    def spent_tokens(self) -> int:
        """Fresh tokens the coordinator spent: as billed, else as counted."""
        return self.billed.fresh_tokens if self.billed else self.coordinator_tokens_spent

    @property
    def spent_usd(self) -> float:
        """What they cost: as billed where the model's price is known, else at the assumed model's price."""
        return self.billed.usd if self.billed and self.billed.usd is not None else self.coordinator_usd


class Ledger:
    """The ledger at `path`. Opens the file for every call and closes it again, so it may be shared by threads.

    Every method raises LedgerError when the file cannot be used.
    """

    def __init__(self, path: Path, *, busy_timeout_s: float = BUSY_TIMEOUT_S) -> None:
        self.path = path
        self._busy_timeout_s = busy_timeout_s

    def begin(
        self,
        task: Task,
        spent: Spent,
        prices: Prices,
        *,
        size_bytes: int,
        caller: str,
        decision: RouteDecision | None = None,
    ) -> int:
        """Record that a task starts. If nothing follows, the row says `interrupted`.

        Args:
            task: what is asked.
            spent: what the call alone cost the coordinator.
            prices: provenance of the amounts.
            size_bytes: size of the files it is about.
            caller: `cli`, `api`, `mcp` or the name of a plugin.
            decision: what the policy said of it.

        Returns:
            The row's number.
        """
        now = time.time()
        values = {
            "task_id": task.id,
            "caller": caller,
            "garzone_version": __version__,
            "pid": os.getpid(),
            "deadline_at": now + task.timeout_s + GRACE_S,
            "kind": task.kind.value,
            "repo": str(task.repo.expanduser().resolve()),
            "instruction": task.instruction,
            "files": json.dumps(task.files),
            "size_bytes": size_bytes,
            "check_command": task.check,
            "requested_model": task.model,
            "requested_backend": task.backend,
            "started_at": now,
            "coordinator_model": prices.coordinator_model,
            "coordinator_tokens_spent": spent.tokens,
            "coordinator_usd": spent.usd,
            "price_date": prices.price_date,
            "estimated": prices.estimated,
            "method": prices.method,
            "call_tokens": spent.call_tokens,
            "counted_by": prices.counted_by,
            "route": decision and decision.route.value,
            "expected_value_tokens": decision and decision.expected_value_tokens,
            "success_probability": decision and decision.success_probability,
        }
        with self._open() as connection:
            return _insert(connection, "tasks", values)

    def decline(
        self, task: Task, decision: RouteDecision, spent: Spent, prices: Prices, *, size_bytes: int, caller: str
    ) -> None:
        """Record a task that went back to the coordinator unattempted: asking cost something, too."""
        values = {
            "task_id": task.id,
            "caller": caller,
            "garzone_version": __version__,
            "at": time.time(),
            "kind": task.kind.value,
            "repo": str(task.repo.expanduser().resolve()),
            "instruction": task.instruction,
            "size_bytes": size_bytes,
            "requested_model": task.model,
            "reason": decision.reason,
            "expected_value_tokens": decision.expected_value_tokens,
            "success_probability": decision.success_probability,
            "call_tokens": spent.call_tokens,
            "result_tokens": spent.result_tokens,
            "counted_by": prices.counted_by,
            "coordinator_model": prices.coordinator_model,
            "coordinator_usd": spent.usd,
            "price_date": prices.price_date,
        }
        with self._open() as connection:
            _insert(connection, "declined", values)

    def bill(self, task_id: str, billed: Billed) -> None:
        """Record what a coordinator's transcript says a delegation used; a later reading replaces an earlier one."""
        values = {"task_id": task_id, **asdict(billed), "reconciled_at": time.time()}
        with self._open() as connection:
            _insert(connection, "billed", values, verb="INSERT OR REPLACE")

    def add_candidate(self, row: int, *, number: int, round_number: int, outcome: str, reason: str) -> None:
        """Record what came of one candidate, at once: a kill leaves those that were finished."""
        values = {"task": row, "number": number, "round": round_number, "outcome": outcome, "reason": reason}
        with self._open() as connection:
            _insert(connection, "candidates", {**values, "at": time.time()}, verb="INSERT OR REPLACE")

    def finish(
        self,
        row: int,
        report: Report,
        spent: Spent,
        alternatives: Sequence[Baseline],
        *,
        size_bytes: int,
        energy: Energy | None = None,
    ) -> None:
        """Complete a row with what came of the task, in one transaction."""
        served = report.served_by
        values = {
            "outcome": report.verdict.value,
            "ended_at": time.time(),
            "duration_ms": report.duration_ms,
            "size_bytes": size_bytes,
            "summary": report.summary,
            "branch": report.branch,
            "applied": report.applied,
            "sandboxed": report.sandboxed,
            "served_model": served.model if served else None,
            "served_digest": served.digest if served else None,
            "served_backend": served.backend if served else None,
            "served_device": served.device if served else None,
            "num_candidates": report.num_candidates,
            "num_rounds": report.num_rounds,
            "prompt_tokens": report.tokens.prompt,
            "cached_tokens": report.tokens.cached,
            "completion_tokens": report.tokens.completion,
            "coordinator_tokens_spent": spent.tokens,
            "coordinator_usd": spent.usd,
            "call_tokens": spent.call_tokens,
            "result_tokens": spent.result_tokens,
            "energy_joules": energy and energy.joules,
            "energy_source": energy and energy.source,
        }
        with self._open() as connection, _transaction(connection):
            _update(connection, row, values)
            for number, check in enumerate(report.checks, 1):
                _insert(
                    connection,
                    "checks",
                    {
                        "task": row,
                        "number": number,
                        "command": check.command,
                        "exit_code": check.exit_code,
                        "before_exit_code": check.before_exit_code,
                        "duration_ms": check.duration_ms,
                    },
                )
            for other in alternatives:
                _insert(
                    connection,
                    "baselines",
                    {
                        "task": row,
                        "name": other.name,
                        "model": other.model,
                        "tokens": other.tokens,
                        "usd": other.usd,
                        "price_date": other.price_date,
                    },
                )

    def end(self, row: int, outcome: str, error: str | None = None) -> None:
        """Complete a row for which there is no report: `error` or `cancelled`."""
        with self._open() as connection:
            started_at = connection.execute("SELECT started_at FROM tasks WHERE id = ?", (row,)).fetchone()[0]
            now = time.time()
            values = {"outcome": outcome, "error": error, "ended_at": now, "duration_ms": (now - started_at) * 1000}
            _update(connection, row, values)

    def entries(self, since: float = 0.0) -> list[Entry]:
        """Tasks that began at or after `since` (seconds since the epoch), the oldest first."""
        if not self.path.exists():
            return []
        with self._open() as connection, _snapshot(connection):
            rows = connection.execute("SELECT * FROM tasks WHERE started_at >= ? ORDER BY id", (since,)).fetchall()
            others = connection.execute("SELECT task, name, tokens, usd FROM baselines").fetchall()
            refused = connection.execute("SELECT * FROM declined WHERE at >= ? ORDER BY id", (since,)).fetchall()
            bills = connection.execute("SELECT * FROM billed").fetchall()
        billed = {bill["task_id"]: _billed(bill) for bill in bills}
        tokens: dict[int, dict[str, int]] = {}
        usd: dict[int, dict[str, float]] = {}
        for other in others:
            tokens.setdefault(other["task"], {})[other["name"]] = other["tokens"]
            usd.setdefault(other["task"], {})[other["name"]] = other["usd"]
        entries = [
            Entry(
                task_id=row["task_id"],
                kind=row["kind"],
                repo=row["repo"],
                model=row["served_model"] or row["requested_model"],
                outcome=RUNNING if _is_running(row) else row["outcome"],
                started_at=row["started_at"],
                size_bytes=row["size_bytes"],
                completion_tokens=row["completion_tokens"],
                coordinator_tokens_spent=row["coordinator_tokens_spent"],
                coordinator_usd=row["coordinator_usd"],
                price_date=row["price_date"],
                estimated=bool(row["estimated"]),
                baseline_tokens=tokens.get(row["id"], {}),
                baseline_usd=usd.get(row["id"], {}),
                prompt_tokens=row["prompt_tokens"],
                duration_ms=row["duration_ms"] or 0.0,
                caller=row["caller"],
                counted_by=row["counted_by"],
                energy_joules=row["energy_joules"],
                billed=billed.get(row["task_id"]),
            )
            for row in rows
        ]
        entries += [_declined(row, billed.get(row["task_id"])) for row in refused]
        return sorted(entries, key=lambda entry: entry.started_at)

    def observations(self) -> list[Observation]:
        """Every task that ended with a verdict, the oldest first. Errors and kills say nothing about the worker.

        Neither does one whose time ran out: that is about the device (`timings`).
        """
        return [
            Observation(row["repo"], row["kind"], row["requested_model"], row["size_bytes"], row["outcome"] == "proved")
            for row in self._judged()
            if row["outcome"] == Verdict.PROVED.value or not _ran_out_of_time(row)
        ]

    def timings(self) -> list[Timing]:
        """How long those tasks took, and where."""
        return [
            Timing(
                row["requested_model"],
                row["requested_backend"] or device_name(row["served_device"] or ""),
                row["size_bytes"],
                row["completion_tokens"],
                row["duration_ms"] / 1e3,
            )
            for row in self._judged()
        ]

    def _judged(self) -> list[sqlite3.Row]:
        if not self.path.exists():
            return []
        with self._open() as connection:
            places = ", ".join("?" * len(OBSERVED))
            return connection.execute(
                f"SELECT * FROM tasks WHERE outcome IN ({places}) ORDER BY id",  # noqa: S608 - placeholders only
                OBSERVED,
            ).fetchall()

    @contextlib.contextmanager
    def _open(self) -> Generator[sqlite3.Connection]:
        """A connection in autocommit mode to a ledger of the newest schema."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.closing(
                sqlite3.connect(self.path, timeout=self._busy_timeout_s, isolation_level=None)
            ) as connection:
                connection.row_factory = sqlite3.Row
                migrate(connection)  # first of all: it refuses a file that is not ours before anything is changed
                self._use_wal(connection)
                connection.execute("PRAGMA synchronous = FULL")  # a row that was reported survives a power failure
                connection.execute("PRAGMA foreign_keys = ON")
                yield connection
        except LedgerError as error:
            raise LedgerError(f"{self.path}: {error}") from error
        except (sqlite3.Error, OSError) as error:
            raise LedgerError(f"{self.path}: {error}; {self._what_to_do(error)}") from error

    def _use_wal(self, connection: sqlite3.Connection) -> None:
        """Readers and one writer at a time without waiting. SQLite does not wait for this switch itself."""
        deadline = time.monotonic() + self._busy_timeout_s
        while connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
            try:
                connection.execute("PRAGMA journal_mode = WAL")
            except sqlite3.OperationalError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)

    def _what_to_do(self, error: Exception) -> str:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the primary code: https://sqlite.org/rescode.html
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            return (
                "it is damaged or no SQLite file; nothing was changed. Move it away and a new one is made "
                f"(what can be saved: sqlite3 {self.path} .recover)"
            )
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return (
                f"another process has held it for {self._busy_timeout_s:g} s; try again, or see who: fuser {self.path}"
            )
        if code == sqlite3.SQLITE_FULL:
            return "the disk is full; make room and try again"
        return "make the file and its directory writable for you, or set GARZONE_HOME to a directory that is"


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Generator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


@contextlib.contextmanager
def _snapshot(connection: sqlite3.Connection) -> Generator[None]:
    """Several reads of one moment."""
    connection.execute("BEGIN")
    try:
        yield
    finally:
        connection.execute("COMMIT")


def _declined(row: sqlite3.Row, billed: Billed | None) -> Entry:
    return Entry(
        task_id=row["task_id"],
        kind=row["kind"],
        repo=row["repo"],
        model=row["requested_model"],
        outcome=DECLINED,
        started_at=row["at"],
        size_bytes=row["size_bytes"],
        completion_tokens=0,
        coordinator_tokens_spent=row["call_tokens"] + row["result_tokens"],
        coordinator_usd=row["coordinator_usd"],
        price_date=row["price_date"],
        estimated=True,
        baseline_tokens={},
        baseline_usd={},
        caller=row["caller"],
        counted_by=row["counted_by"],
        billed=billed,
    )


def _billed(row: sqlite3.Row) -> Billed:
    return Billed(**{field.name: row[field.name] for field in fields(Billed)})


def _insert(connection: sqlite3.Connection, table: str, values: dict[str, Any], *, verb: str = "INSERT") -> int:
    columns = ", ".join(values)
    places = ", ".join(f":{name}" for name in values)
    cursor = connection.execute(f"{verb} INTO {table} ({columns}) VALUES ({places})", values)
    return cursor.lastrowid or 0


def _update(connection: sqlite3.Connection, row: int, values: dict[str, Any]) -> None:
    assignments = ", ".join(f"{name} = :{name}" for name in values)
    connection.execute(f"UPDATE tasks SET {assignments} WHERE id = :row", {**values, "row": row})  # noqa: S608 - names are ours


def device_name(device: str) -> str:
    """A device's name that stays the same: `AMD` of `AMD gfx1100` and of `AMD:1`."""
    return device.replace(":", " ").partition(" ")[0].upper()


def _ran_out_of_time(row: sqlite3.Row) -> bool:
    limit_s = row["deadline_at"] - row["started_at"] - GRACE_S
    return row["duration_ms"] >= 0.95 * limit_s * 1e3


def _is_running(row: sqlite3.Row) -> bool:
    """Whether the process that began a row may still be at it; the deadline tells a number that was used again."""
    if row["ended_at"] is not None or time.time() > row["deadline_at"]:
        return False
    try:
        os.kill(row["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
