"""Connects, checks and disconnects a program: looks at all parts first, then writes all or nothing.

What was written is recorded in `connections.json`, so that only that is ever changed or removed again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from garzone.integrations.parts import Conflict, Part, Record, State, read_text, replace_file


@dataclass(frozen=True, slots=True)
class Finding:
    """A part and what was found (before, for `connect` and `disconnect`)."""

    part: str
    state: State


class Connections:
    """The record of what was written, by program and part."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def of(self, program: str) -> dict[str, Record]:
        """Records by the name of the part. Raises Conflict if the file is damaged."""
        return self._load().get(program, {})

    def save(self, program: str, records: dict[str, Record]) -> None:
        """Replace the records of one program."""
        everything = self._load()
        everything.pop(program, None)
        if records:
            everything[program] = records
        if everything:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(self._path, (json.dumps(everything, indent=1) + "\n").encode())
        else:
            self._path.unlink(missing_ok=True)

    def _load(self) -> dict[str, dict[str, Record]]:
        text = read_text(self._path)
        try:
            document: Any = json.loads(text or "{}")
        except ValueError as error:
            raise Conflict(f"{self._path} is damaged ({error}); move it away, then connect again") from error
        return cast("dict[str, dict[str, Record]]", document)


def check(program: str, parts: Sequence[Part], connections: Connections) -> list[Finding]:
    """What is there of a connection."""
    records = connections.of(program)
    return [Finding(part.name, part.look(records.get(part.name))) for part in parts]


def connect(program: str, parts: Sequence[Part], connections: Connections) -> list[Finding]:
    """Write what is not there or outdated.

    Raises:
        Conflict: something in the way is not ours, or was edited; nothing was written.
    """
    records = connections.of(program)
    found = check(program, parts, connections)
    for finding in found:
        if finding.state is State.FOREIGN:
            raise Conflict(f"{finding.part} is there already, and garzone did not write it; remove or rename it first")
        if finding.state is State.EDITED:
            raise Conflict(
                f"{finding.part} was changed since garzone wrote it; undo that, or take it away with "
                f"`garzone connect {program} --remove` and by hand"
            )
    for part, finding in zip(parts, found, strict=True):
        record = records.get(part.name)
        if finding.state is State.WRITTEN and record is not None:
            continue
        records[part.name] = part.write(record)
        connections.save(program, records)  # after each: what was written is known, whatever comes
    gone = set(records) - {part.name for part in parts}
    if gone:
        connections.save(program, {name: record for name, record in records.items() if name not in gone})
    return found


def disconnect(program: str, parts: Sequence[Part], connections: Connections) -> list[Finding]:
    """Take away what was written. What was edited since stays, and is still reported as EDITED."""
    records = connections.of(program)
    found = check(program, parts, connections)
    for part, finding in reversed(list(zip(parts, found, strict=True))):
        record = records.get(part.name)
        if record is None:
            continue
        if finding.state in (State.WRITTEN, State.OUTDATED):
            part.remove(record)
        if finding.state is not State.EDITED:
            records.pop(part.name)
    connections.save(program, records)
    return found
