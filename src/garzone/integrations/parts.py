"""The things a connection consists of: a directory, a member or item of a JSON5 file, a table of a TOML file.

Each can be looked at, written and removed, knows what it wrote before from its record, and touches nothing else. Files
are replaced whole or not at all; before the first change there is a copy beside them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
import tomllib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, cast

from garzone.core.errors import UsageError
from garzone.integrations import json5

BACKUP = ".before-garzone"
Record = dict[str, Any]


class State(Enum):
    """What was found where a part belongs."""

    ABSENT = "not there"
    WRITTEN = "as garzone wrote it"
    OUTDATED = "written by garzone, but not as it would be now"
    EDITED = "changed since garzone wrote it"
    FOREIGN = "there, but not written by garzone"


class Conflict(UsageError):
    """Something that garzone did not write stands where it would write, or cannot be read."""


class Part(ABC):
    """One of them. `record` is what `write` returned the last time, None if it never wrote."""

    path: Path

    @property
    @abstractmethod
    def name(self) -> str:
        """What it is, for people and as the key of its record."""

    @abstractmethod
    def shown(self) -> str:
        """Its text, for those who write it themselves."""

    @abstractmethod
    def look(self, record: Record | None) -> State:
        """What is there now. Raises Conflict for a file that cannot be read."""

    @abstractmethod
    def write(self, record: Record | None) -> Record:
        """Write it. Only called where `look` allows it."""

    @abstractmethod
    def remove(self, record: Record) -> None:
        """Take away what was written. Only called where `look` says WRITTEN or OUTDATED."""


@dataclass(frozen=True)
class Directory(Part):
    """A directory of files that is all garzone's. What others put into it stays, and keeps it from being removed."""

    path: Path
    files: Mapping[str, bytes]

    @property
    def name(self) -> str:
        """The directory."""
        return str(self.path)

    def shown(self) -> str:
        """Every file that is text."""
        return "\n".join(f"--- {self.path / name}\n{raw.decode()}" for name, raw in sorted(self.files.items()))

    def look(self, record: Record | None) -> State:
        """EDITED if one of our files differs from what was written."""
        if not self.path.exists():
            return State.ABSENT
        if record is None:
            return State.FOREIGN
        written = cast("dict[str, str]", record["files"])
        for name, digest in written.items():
            if not (file := self.path / name).is_file() or _digest(file.read_bytes()) != digest:
                return State.EDITED
        wanted = {name: _digest(raw) for name, raw in self.files.items()}
        return State.WRITTEN if written == wanted else State.OUTDATED

    def write(self, record: Record | None) -> Record:
        """All files; those of an earlier version that are no longer part of it go."""
        for name in set(cast("dict[str, str]", (record or {}).get("files", {}))) - set(self.files):
            (self.path / name).unlink(missing_ok=True)
        for name, raw in self.files.items():
            target = self.path / name
            target.parent.mkdir(parents=True, exist_ok=True)
            replace_file(target, raw)
        return {"files": {name: _digest(raw) for name, raw in self.files.items()}}

    def remove(self, record: Record) -> None:
        """Our files, and the directories that are empty then."""
        for name in cast("dict[str, str]", record["files"]):
            (self.path / name).unlink(missing_ok=True)
        for directory in sorted((d for d in self.path.rglob("*") if d.is_dir()), reverse=True):
            _remove_if_empty(directory)
        _remove_if_empty(self.path)


@dataclass(frozen=True)
class Member(Part):
    """A member of a JSON5 file."""

    path: Path
    keys: tuple[str, ...]
    value: Any

    @property
    def name(self) -> str:
        """The file and the keys."""
        return f"{self.path}: {'.'.join(self.keys)}"

    def shown(self) -> str:
        """The member with the objects around it."""
        value = self.value
        for key in reversed(self.keys):
            value = {key: value}
        return f"--- {self.path}\n{json.dumps(value, indent=2)}\n"

    def look(self, record: Record | None) -> State:
        """By value, so that a program may write its file in its own way."""
        text = read_text(self.path)
        node = json5.find(_parse(text, self.path), self.keys) if text.strip() else None
        if node is None:
            return State.ABSENT
        if record is None:
            return State.FOREIGN
        if node.value == self.value:
            return State.WRITTEN
        return State.OUTDATED if node.value == record["value"] else State.EDITED

    def write(self, record: Record | None) -> Record:
        """Remembers which objects on the way it had to make."""
        text = read_text(self.path)
        made = (record or {}).get("made") or _missing(text, self.path, self.keys)
        change_text(self.path, json5.with_member(text, self.keys, self.value))
        return {"value": self.value, "made": made}

    def remove(self, record: Record) -> None:
        """With it go the objects that were made for it and are empty now."""
        text = json5.without(read_text(self.path), self.keys)
        change_text(self.path, _without_empty(text, self.keys[:-1], record["made"]))


@dataclass(frozen=True)
class Item(Part):
    """An item of a list in a JSON5 file."""

    path: Path
    keys: tuple[str, ...]
    item: str

    @property
    def name(self) -> str:
        """The file, the list and the item."""
        return f"{self.path}: {self.item} in {'.'.join(self.keys)}"

    def shown(self) -> str:
        """The list with that item alone."""
        return Member(self.path, self.keys, [self.item]).shown()

    def look(self, record: Record | None) -> State:
        """An item that somebody else put there already is theirs: it is left when we go."""
        text = read_text(self.path)
        node = json5.find(_parse(text, self.path), self.keys) if text.strip() else None
        if node is not None and not isinstance(node.value, list):
            raise Conflict(f"{self.path}: {'.'.join(self.keys)} is not a list; make it one, or remove it")
        return State.WRITTEN if node and any(one.value == self.item for one in node.items) else State.ABSENT

    def write(self, record: Record | None) -> Record:
        """Nothing where the item is there."""
        text = read_text(self.path)
        new = json5.with_item(text, self.keys, self.item)
        if new == text:
            return record or {"theirs": True}
        made = _missing(text, self.path, self.keys)
        change_text(self.path, new)
        return {"theirs": False, "made": made}

    def remove(self, record: Record) -> None:
        """Only what was put there by us."""
        if not record["theirs"]:
            text = json5.without(read_text(self.path), self.keys, self.item)
            change_text(self.path, _without_empty(text, self.keys, record["made"]))


@dataclass(frozen=True)
class Table(Part):
    """A table of a TOML file, with its own header, at the end of the file."""

    path: Path
    keys: tuple[str, ...]
    value: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The file and the table."""
        return f"{self.path}: [{'.'.join(self.keys)}]"

    def shown(self) -> str:
        """As it is written."""
        return f"--- {self.path}\n{self._text()}"

    def _text(self) -> str:
        # JSON's strings, numbers, booleans and lists of them are TOML's, too
        lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in self.value.items()]
        return "\n".join([f"[{'.'.join(self.keys)}]", *lines, ""])

    def look(self, record: Record | None) -> State:
        """By value."""
        value: Any = self._load(read_text(self.path))
        for key in self.keys:
            if not isinstance(value, dict) or key not in value:
                return State.ABSENT
            value = cast("dict[str, Any]", value)[key]
        if record is None:
            return State.FOREIGN
        if value == dict(self.value):
            return State.WRITTEN
        return State.OUTDATED if value == record["value"] else State.EDITED

    def _load(self, text: str) -> dict[str, Any]:
        try:
            return tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise Conflict(f"{self.path} is not TOML: {error}; repair it first") from error

    def write(self, record: Record | None) -> Record:
        """A file that would not be TOML afterwards is not written."""
        text = read_text(self.path)
        if record is not None:
            text = self._without(text)
        gap = "" if not text else "\n" if text.endswith("\n") else "\n\n"
        new = text + gap + self._text()
        self._load(new)
        change_text(self.path, new)
        return {"value": dict(self.value)}

    def remove(self, record: Record) -> None:
        """From its header to the next one, with the blank line before it."""
        del record
        change_text(self.path, self._without(read_text(self.path)))

    def _without(self, text: str) -> str:
        header = re.escape(f"[{'.'.join(self.keys)}]")
        return re.sub(rf"\n?^{header}[ \t]*\n(?:(?![ \t]*\[)[^\n]*\n?)*", "", text, count=1, flags=re.MULTILINE)


def read_text(path: Path) -> str:
    """The text of a file; "" if it is not there. Raises Conflict if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise Conflict(f"{path} cannot be read: {error}") from error


def change_text(path: Path, text: str) -> None:
    """Replace a configuration file that is not ours. The first time, a copy of what it was is put beside it.

    The copy is empty where there was no file. A text that is again what the copy says, but for its layout, makes the
    file what it was, to the byte, and the copy goes.
    """
    before = read_text(path)
    if text == before:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    backup = path.with_name(path.name + BACKUP)
    if not backup.exists():
        if before:
            shutil.copy2(path, backup)
        else:
            backup.touch()
    if _without_layout(read_text(backup)) != _without_layout(text):
        replace_file(path, text.encode())
        return
    if backup.stat().st_size:
        replace_file(path, backup.read_bytes())
    else:
        path.unlink(missing_ok=True)
    backup.unlink()


def replace_file(path: Path, raw: bytes) -> None:
    """Write a file whole or not at all, with the mode it had. A link stays one.

    Raises:
        Conflict: it cannot be written.
    """
    target = Path(os.path.realpath(path))
    try:
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(raw)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).chmod(target.stat().st_mode & 0o777 if target.exists() else 0o644)
            Path(temporary).replace(target)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise Conflict(f"{path} cannot be written: {error}") from error


def _without_layout(text: str) -> str:
    bare = re.sub(r"[\s,]", "", text)
    return "" if bare == "{}" else bare


def _parse(text: str, path: Path) -> json5.Node:
    try:
        return json5.parse(text)
    except json5.JSON5Error as error:
        raise Conflict(f"{path} is not JSON5: {error}; repair it first") from error


def _missing(text: str, path: Path, keys: tuple[str, ...]) -> list[list[str]]:
    """The objects (or the list) on the way to a member that are not there yet, the innermost first."""
    root = _parse(text, path) if text.strip() else None
    ways = [keys[:depth] for depth in range(len(keys), 0, -1)]
    return [list(way) for way in ways if root is None or json5.find(root, way) is None]


def _without_empty(text: str, keys: tuple[str, ...], made: list[list[str]]) -> str:
    for depth in range(len(keys), 0, -1):
        node = json5.find(json5.parse(text), keys[:depth])
        if list(keys[:depth]) not in made or node is None or node.value not in ({}, []):
            return text
        text = json5.without(text, keys[:depth])
    return text


def _digest(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()


def _remove_if_empty(directory: Path) -> None:
    with contextlib.suppress(OSError):
        directory.rmdir()
