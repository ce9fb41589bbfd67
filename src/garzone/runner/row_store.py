"""Rows outside the slots: set aside in memory, and on disk between one process and the next.

What is found on disk is a guess until its digest was checked: a damaged file, or one of other weights or another
engine, is ignored with a warning, and the rows are computed again. Which rows to keep is the slots' business.

A file: a line that names the format, a line of JSON, token ids as little-endian int32, the rows, and a BLAKE2b digest
of all before it. It holds what was in prompts, so only its owner may read it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast

import numpy as np

from garzone.runner.model import Engine
from garzone.scheduler.slots import Copy, Forget, Move, Restore, SetAside, SlotPool

MAGIC: Final = b"garzone rows 1\n"
SUFFIX: Final = ".rows"
_DIGEST_BYTES: Final = 32
_MAX_HEADER_BYTES: Final = 4096
MEMORY_BYTES: Final = 1 << 30  # set aside at most; a few long conversations with a 7B model
DISK_BYTES: Final = 2 << 30
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Lost:
    """Spares that turned out to be unusable, and slots that now hold something else than they should."""

    spares: frozenset[int]
    slots: frozenset[int]

    def __bool__(self) -> bool:
        return bool(self.spares)


@dataclass(frozen=True, slots=True)
class _OnDisk:
    path: Path
    tokens_digest: str


@dataclass(eq=False)
class RowStore:
    """The rows of one engine that are not in its slots.

    Attributes:
        engine: whose rows.
        key: names weights, engine and layout; files of another key are not read. "" keeps nothing on disk.
        folder: where files are kept; None for nowhere.
        budget_bytes: the most that is set aside in memory.
    """

    engine: Engine
    key: str = ""
    folder: Path | None = None
    budget_bytes: int = MEMORY_BYTES
    _spares: dict[int, bytes | _OnDisk] = field(default_factory=dict[int, "bytes | _OnDisk"])

    def __post_init__(self) -> None:
        self.row_bytes = self.engine.row_bytes

    def restore_into(self, pool: SlotPool) -> None:
        """Find the files of this key, latest first, and let the pool know of as many as it has room for."""
        if self.folder is None or not self.key:
            return
        found: list[tuple[float, Path]] = []
        with contextlib.suppress(OSError):
            found = [(path.stat().st_mtime, path) for path in self.folder.glob(f"{self._name()}-*{SUFFIX}")]
        for _, path in sorted(found, reverse=True):
            try:
                tokens = self._tokens_of(path)
            except (OSError, ValueError) as error:
                _log.warning("ignoring cached rows in %s: %s", path, error)
                continue
            number = pool.adopt(tokens)
            if number is not None:
                self._spares[number] = _OnDisk(path, _digest_of(tokens))

    def make(self, moves: Sequence[Move]) -> Lost:
        """Make the scheduler's moves, in order. What could not be made is told, and what depends on it, too."""
        spares: set[int] = set()
        slots: set[int] = set()
        for move in moves:
            if isinstance(move, Copy):
                self.engine.copy_rows(move.source, move.target, move.num_rows)
                (slots.add if move.source in slots else slots.discard)(move.target)
            elif isinstance(move, SetAside):
                self._spares[move.spare] = self.engine.read_rows(move.slot, 0, move.num_rows)
                if move.slot in slots:
                    spares.add(move.spare)
            elif isinstance(move, Forget):
                self._spares.pop(move.spare, None)
            elif self._restore(move):
                slots.discard(move.slot)
            else:
                spares.add(move.spare)
                slots.add(move.slot)
        return Lost(frozenset(spares), frozenset(slots))

    def save(self, kept: Sequence[tuple[tuple[int, ...], Move | int]], deadline_s: float) -> int:
        """Write sequences to disk, most valuable first, until the time or the space is used up; how many."""
        if self.folder is None or not self.key or not self.row_bytes:
            return 0
        ends = time.monotonic() + deadline_s
        room = DISK_BYTES
        written: set[Path] = set()
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            for tokens, place in kept:
                room -= len(tokens) * self.row_bytes
                if room < 0 or time.monotonic() > ends:
                    break
                path = self.folder / f"{self._name()}-{_digest_of(tokens)}{SUFFIX}"
                if not self._is_there(path, place):
                    self._write(path, tokens, self._bytes_of(place))
                written.add(path)
            self._drop_old(written, room)
        except OSError as error:
            _log.warning("rows could not be kept in %s: %s", self.folder, error)
        return len(written)

    # --- memory

    def _restore(self, move: Restore) -> bool:
        source = self._spares.get(move.spare)
        if isinstance(source, _OnDisk):
            try:
                source = self._spares[move.spare] = self._checked_rows(source)
            except (OSError, ValueError) as error:
                _log.warning("ignoring cached rows in %s: %s", source.path, error)
                source = None
        if source is None:
            self._spares.pop(move.spare, None)
            return False
        # all of them, since bytes are by layers; those behind `num_rows` are overwritten before they are read
        self.engine.write_rows(move.slot, 0, len(source) // self.row_bytes, source)
        return True

    def _bytes_of(self, place: Move | int) -> bytes:
        if isinstance(place, SetAside):
            return self.engine.read_rows(place.slot, 0, place.num_rows)
        assert isinstance(place, int)
        kept = self._spares[place]
        return kept if isinstance(kept, bytes) else self._checked_rows(kept)

    # --- disk

    def _name(self) -> str:
        return hashlib.blake2b(self.key.encode(), digest_size=12).hexdigest()

    def _is_there(self, path: Path, place: Move | int) -> bool:
        kept = self._spares.get(place) if isinstance(place, int) else None
        return isinstance(kept, _OnDisk) and kept.path == path

    def _write(self, path: Path, tokens: Sequence[int], rows: bytes) -> None:
        header = json.dumps({"key": self.key, "num_tokens": len(tokens), "row_bytes": self.row_bytes}).encode() + b"\n"
        parts = (MAGIC, header, np.asarray(tokens, "<i4").tobytes(), rows)
        digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                for part in parts:
                    digest.update(part)
                    file.write(part)
                file.write(digest.digest())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    def _header(self, raw: bytes) -> tuple[int, int]:
        """Number of tokens, and where they begin. Raises ValueError unless the file is one of ours."""
        if not raw.startswith(MAGIC):
            raise ValueError("not a file of cached rows")
        end = raw.find(b"\n", len(MAGIC), len(MAGIC) + _MAX_HEADER_BYTES)
        header: Any = json.loads(raw[len(MAGIC) : end]) if end > 0 else None
        fields = cast("dict[str, Any]", header) if isinstance(header, dict) else {}
        if fields.get("key") != self.key or fields.get("row_bytes") != self.row_bytes:
            raise ValueError("it belongs to other weights or to another engine")
        count = fields.get("num_tokens")
        if not isinstance(count, int) or count < 1:
            raise ValueError("its header makes no sense")
        return count, end + 1

    def _tokens_of(self, path: Path) -> list[int]:
        with path.open("rb") as file:
            count, start = self._header(file.read(len(MAGIC) + _MAX_HEADER_BYTES))
            expected = start + count * (4 + self.row_bytes) + _DIGEST_BYTES
            if os.fstat(file.fileno()).st_size != expected:
                raise ValueError(f"it should have {expected} bytes")
            file.seek(start)
            tokens = np.frombuffer(file.read(4 * count), "<i4").tolist()
        if _digest_of(tokens) not in path.name:
            raise ValueError("its name is not that of its tokens")
        return tokens

    def _checked_rows(self, kept: _OnDisk) -> bytes:
        """The rows of a file, its digest checked. Raises ValueError or OSError."""
        raw = kept.path.read_bytes()
        count, start = self._header(raw)
        tokens = np.frombuffer(raw, "<i4", count, start) if len(raw) >= start + 4 * count else ()
        if len(raw) != start + count * (4 + self.row_bytes) + _DIGEST_BYTES or _digest_of(tokens) != kept.tokens_digest:
            raise ValueError("it was changed since it was found")
        body = memoryview(raw)[:-_DIGEST_BYTES]
        if hashlib.blake2b(body, digest_size=_DIGEST_BYTES).digest() != raw[-_DIGEST_BYTES:]:
            raise ValueError("it is damaged: its digest does not match")
        return bytes(body[start + 4 * count :])

    def _drop_old(self, written: set[Path], room: int) -> None:
        """Remove those of this key that were not kept, and of other models', the oldest, what no longer fits."""
        assert self.folder is not None
        for path in self.folder.glob(f"{self._name()}-*{SUFFIX}"):
            if path not in written:
                path.unlink(missing_ok=True)
        others = [path for path in self.folder.glob(f"*{SUFFIX}") if path not in written]
        for path in sorted(others, key=lambda path: -path.stat().st_mtime):
            room -= path.stat().st_size
            if room < 0:
                path.unlink(missing_ok=True)


def _digest_of(tokens: Sequence[int] | np.ndarray) -> str:
    return hashlib.blake2b(np.asarray(tokens, "<i4").tobytes(), digest_size=16).hexdigest()
