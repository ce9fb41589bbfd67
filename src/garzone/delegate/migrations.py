"""The ledger's schema, as numbered steps that are only ever appended to.

Knows SQL and nothing of tasks. A step that was released is never edited: databases out there stand on it, and a test
pins the digest of each.
"""

from __future__ import annotations

import sqlite3

from garzone.core.errors import LedgerError

APPLICATION_ID = 0x67617A6F  # "gazo": tells a ledger from any other SQLite file (PRAGMA application_id)

MIGRATIONS: tuple[str, ...] = (
    # 1: tasks with their provenance; what was tried and checked; what the alternatives would have cost
    """
    CREATE TABLE tasks (
      id INTEGER PRIMARY KEY,
      task_id TEXT NOT NULL,
      caller TEXT NOT NULL,
      garzone_version TEXT NOT NULL,
      pid INTEGER NOT NULL,
      deadline_at REAL NOT NULL,
      kind TEXT NOT NULL,
      repo TEXT NOT NULL,
      instruction TEXT NOT NULL,
      files TEXT NOT NULL,
      size_bytes INTEGER NOT NULL,
      check_command TEXT,
      requested_model TEXT NOT NULL,
      requested_backend TEXT,
      started_at REAL NOT NULL,
      ended_at REAL,
      duration_ms REAL,
      outcome TEXT NOT NULL DEFAULT 'interrupted'
        CHECK (outcome IN ('proved', 'unproved', 'failed', 'error', 'cancelled', 'interrupted')),
      error TEXT,
      summary TEXT,
      branch TEXT,
      applied INTEGER,
      sandboxed INTEGER,
      served_model TEXT,
      served_digest TEXT,
      served_backend TEXT,
      served_device TEXT,
      num_candidates INTEGER NOT NULL DEFAULT 0,
      num_rounds INTEGER NOT NULL DEFAULT 0,
      prompt_tokens INTEGER NOT NULL DEFAULT 0,
      cached_tokens INTEGER NOT NULL DEFAULT 0,
      completion_tokens INTEGER NOT NULL DEFAULT 0,
      coordinator_model TEXT NOT NULL,
      coordinator_tokens_spent INTEGER NOT NULL,
      coordinator_usd REAL NOT NULL,
      price_date TEXT NOT NULL,
      estimated INTEGER NOT NULL,
      method TEXT NOT NULL
    ) STRICT;
    CREATE INDEX tasks_started ON tasks (started_at);
    CREATE INDEX tasks_cell ON tasks (kind, requested_model);
    CREATE TABLE candidates (
      task INTEGER NOT NULL REFERENCES tasks (id),
      number INTEGER NOT NULL,
      round INTEGER NOT NULL,
      outcome TEXT NOT NULL,
      reason TEXT NOT NULL,
      at REAL NOT NULL,
      PRIMARY KEY (task, round, number)
    ) STRICT;
    CREATE TABLE checks (
      task INTEGER NOT NULL REFERENCES tasks (id),
      number INTEGER NOT NULL,
      command TEXT NOT NULL,
      exit_code INTEGER NOT NULL,
      before_exit_code INTEGER,
      duration_ms REAL NOT NULL,
      PRIMARY KEY (task, number)
    ) STRICT;
    CREATE TABLE baselines (
      task INTEGER NOT NULL REFERENCES tasks (id),
      name TEXT NOT NULL,
      model TEXT NOT NULL,
      tokens INTEGER NOT NULL,
      usd REAL NOT NULL,
      price_date TEXT NOT NULL,
      PRIMARY KEY (task, name)
    ) STRICT;
    """,
    # 2: how tokens were counted, energy, what the policy said; what was declined; what a transcript says was billed
    """
    ALTER TABLE tasks ADD COLUMN call_tokens INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE tasks ADD COLUMN result_tokens INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE tasks ADD COLUMN counted_by TEXT NOT NULL DEFAULT '4 characters a token';
    ALTER TABLE tasks ADD COLUMN energy_joules REAL;
    ALTER TABLE tasks ADD COLUMN energy_source TEXT;
    ALTER TABLE tasks ADD COLUMN route TEXT;
    ALTER TABLE tasks ADD COLUMN expected_value_tokens INTEGER;
    ALTER TABLE tasks ADD COLUMN success_probability REAL;
    CREATE TABLE declined (
      id INTEGER PRIMARY KEY,
      task_id TEXT NOT NULL,
      caller TEXT NOT NULL,
      garzone_version TEXT NOT NULL,
      at REAL NOT NULL,
      kind TEXT NOT NULL,
      repo TEXT NOT NULL,
      instruction TEXT NOT NULL,
      size_bytes INTEGER NOT NULL,
      requested_model TEXT NOT NULL,
      reason TEXT NOT NULL,
      expected_value_tokens INTEGER NOT NULL,
      success_probability REAL NOT NULL,
      call_tokens INTEGER NOT NULL,
      result_tokens INTEGER NOT NULL,
      counted_by TEXT NOT NULL,
      coordinator_model TEXT NOT NULL,
      coordinator_usd REAL NOT NULL,
      price_date TEXT NOT NULL
    ) STRICT;
    CREATE INDEX declined_at ON declined (at);
    CREATE TABLE billed (
      task_id TEXT PRIMARY KEY,
      source TEXT NOT NULL,
      session TEXT NOT NULL,
      at TEXT NOT NULL,
      model TEXT NOT NULL,
      call_output_tokens INTEGER NOT NULL,
      input_tokens INTEGER NOT NULL,
      cache_write_tokens INTEGER NOT NULL,
      cache_read_tokens INTEGER NOT NULL,
      num_turns INTEGER NOT NULL,
      usd REAL,
      price_date TEXT NOT NULL,
      reconciled_at REAL NOT NULL
    ) STRICT;
    """,
)


def migrate(connection: sqlite3.Connection) -> None:
    """Bring a database to the newest schema, all steps or none. Quick when it already is.

    Args:
        connection: in autocommit mode (`isolation_level=None`).

    Raises:
        LedgerError: the database belongs to another program, or was written by a newer garzone.
        sqlite3.Error: it cannot be read or written.
    """
    connection.execute("BEGIN")  # one snapshot: another thread may commit its migration between two reads
    try:
        current = _version(connection)
    finally:
        connection.execute("ROLLBACK")
    if current == len(MIGRATIONS):
        return
    connection.execute("BEGIN IMMEDIATE")  # another process may be migrating: decide under the write lock
    try:
        version = _version(connection)
        for number, script in enumerate(MIGRATIONS[version:], version + 1):
            for statement in filter(None, map(str.strip, script.split(";"))):
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {number}")
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def _version(connection: sqlite3.Connection) -> int:
    """How many steps this database has taken; 0 for an empty file. To be called inside a transaction."""
    application_id = connection.execute("PRAGMA application_id").fetchone()[0]
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if application_id != APPLICATION_ID:
        num_tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if application_id or version or num_tables:
            raise LedgerError(
                "it is another program's database; move it away, or set GARZONE_HOME to another directory"
            )
    if version > len(MIGRATIONS):
        raise LedgerError(
            f"it was written by a newer garzone (schema {version}, this one knows {len(MIGRATIONS)}); upgrade garzone"
        )
    return version
