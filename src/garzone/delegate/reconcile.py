"""Puts what coordinators' transcripts say was billed into the ledger. Reads their files, never writes them."""

from __future__ import annotations

import contextlib
import importlib
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from garzone.delegate.ledger import Ledger
from garzone.delegate.pricing import Billed
from garzone.delegate.transcripts import bills

MARK = "[garzone "  # stands in every result a coordinator read
SLACK_S = 86_400.0  # a file may carry an older time than what it says, on another file system


@dataclass(frozen=True, slots=True)
class Reconciled:
    """How many files had delegations in them, and how many tasks of the ledger were found there."""

    num_files: int
    num_tasks: int
    num_in_ledger: int


def reconcile(ledger: Ledger, places: Mapping[str, Path]) -> Reconciled:
    """Read every transcript below these directories and book what it says of tasks in the ledger.

    Args:
        ledger: is asked for its tasks, and gets the bills.
        places: directory by source (`claude-code`, `openclaw`, `clawdbot`).

    Raises:
        LedgerError: the ledger cannot be used.
    """
    entries = ledger.entries()
    known = {entry.task_id for entry in entries}
    earliest = min((entry.started_at for entry in entries), default=0.0) - SLACK_S
    found: dict[str, Billed] = {}
    num_files = 0
    for source, place in places.items() if entries else ():
        for name, lines in _sessions(place, earliest):
            billed = bills(lines, source=source, session=name)
            num_files += bool(billed)
            found |= {task: bill for task, bill in billed.items() if task in known}
    for task, bill in found.items():
        ledger.bill(task, bill)
    return Reconciled(num_files, len(found), len(known))


def _sessions(place: Path, earliest: float) -> Iterator[tuple[str, list[str]]]:
    """Transcripts that mention garzone: files of lines, and OpenClaw's databases."""
    for path in sorted(place.rglob("*.jsonl")):
        with contextlib.suppress(OSError):
            if path.stat().st_mtime < earliest:
                continue
            text = path.read_text(encoding="utf-8", errors="replace")
            if MARK in text:
                yield path.stem, text.splitlines()
    for path in sorted(place.rglob("openclaw-agent.sqlite")):
        with contextlib.suppress(sqlite3.Error, OSError):
            yield from _openclaw_sessions(path)


def _openclaw_sessions(path: Path) -> Iterator[tuple[str, list[str]]]:
    """OpenClaw 2026.9 keeps events as JSON in a table; those that it compressed are read where Python can."""
    uri = f"{path.resolve().as_uri()}?mode=ro"
    with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=1.0)) as connection:
        query = "SELECT session_id, event_json, event_zstd FROM transcript_events ORDER BY session_id, seq"
        sessions: dict[str, list[str]] = {}
        for session, text, packed in connection.execute(query):
            sessions.setdefault(session, []).append(text or _unpacked(packed))
    yield from ((name, lines) for name, lines in sessions.items() if any(MARK in line for line in lines))


def _unpacked(packed: bytes | None) -> str:
    """What was compressed with Zstandard, which Python reads from 3.14 on; "" before."""
    with contextlib.suppress(Exception):
        zstd: Any = importlib.import_module("compression.zstd")
        return str(zstd.decompress(packed or b"").decode())
    return ""
