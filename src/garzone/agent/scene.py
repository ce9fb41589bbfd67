"""The place a check runs in: a copy of the worktree that is as fresh for every candidate as for the first.

Knows files and what happened to them; runs nothing. The copy has no `.git`, so no check can reach the repository. After
a run everything is compared with what it was before (type, size, inode, times); the inode change time is set by the
kernel and cannot be forged by what ran. What was added is removed, and when anything that existed was touched, the copy
is made anew.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from garzone.agent.sandbox import fresh_uid, hand_over
from garzone.agent.worktree import remove_tree
from garzone.core.errors import UnavailableError

_Stamp = tuple[int, int, int, int, int]


@dataclass(frozen=True, slots=True)
class Traces:
    """What a run left: paths relative to the scene, directories included, each list sorted."""

    changed: tuple[str, ...]
    added: tuple[str, ...]


class Scene:
    """A copy of `source` at `path`, in which `overlay` puts one changed file at a time."""

    def __init__(self, source: Path, path: Path) -> None:
        self._source = source
        self.path = path
        self._stamps: dict[str, _Stamp] = {}
        self._overlaid: str | None = None
        self._uid = fresh_uid()
        self._spoilt = True

    def prepare(self, name: str | None = None, content: bytes = b"") -> None:
        """Make the scene fresh, with one file's content replaced."""
        if self._spoilt:
            self._copy()
        if self._overlaid is not None and self._overlaid != name:
            self._write(self._overlaid, (self._source / self._overlaid).read_bytes())
            self._overlaid = None
        if name is not None:
            self._write(name, content)
            self._overlaid = name
        self._stamps = dict(self._walk())
        self._spoilt = True  # until `inspect` has looked

    def inspect(self) -> Traces:
        """See what a run did, and clean up after it."""
        now = dict(self._walk())
        added = sorted(name for name in now if name not in self._stamps)
        changed = sorted(name for name, stamp in self._stamps.items() if not _same(stamp, now.get(name)))
        if changed:
            return Traces(tuple(changed), tuple(added))
        for name in added:
            place = self.path / name
            if place.is_dir() and not place.is_symlink():
                remove_tree(place)
            else:
                place.unlink(missing_ok=True)
        self._spoilt = False
        return Traces((), tuple(added))

    def _write(self, name: str, content: bytes) -> None:
        place = self.path / name
        mode = place.stat().st_mode & 0o777
        place.unlink()  # a new file: whatever shared its inode keeps the old one
        place.write_bytes(content)
        place.chmod(mode | 0o444)
        if os.geteuid() == 0:
            os.chown(place, self._uid, self._uid)

    def _copy(self) -> None:
        if self.path.exists():
            remove_tree(self.path)
        self._overlaid = None
        command = ["cp", "-a", "--reflink=auto", "--"] if sys.platform == "linux" else ["cp", "-Rp"]
        self.path.mkdir(parents=True)
        entries = [str(self._source / name) for name in os.listdir(self._source) if name != ".git"]  # noqa: PTH208 - names
        for start in range(0, len(entries), 1000):  # below every system's limit on arguments
            done = subprocess.run(  # noqa: S603 - our own paths
                [*command, *entries[start : start + 1000], str(self.path)], capture_output=True, text=True, check=False
            )
            if done.returncode != 0:
                raise UnavailableError(f"the files cannot be copied to {self.path}: {done.stderr.strip()[:200]}")
        self.path.chmod(0o755)
        if os.geteuid() == 0:  # bubblewrap.py: root becomes this user before anything runs
            hand_over(self._uid, self.path)

    def _walk(self) -> Iterator[tuple[str, _Stamp]]:
        pending = [""]
        while pending:
            folder = pending.pop()
            try:
                entries = list(os.scandir(self.path / folder))
            except PermissionError:
                (self.path / folder).chmod(0o700)  # the run locked it; its stamp says so
                entries = list(os.scandir(self.path / folder))
            for entry in entries:
                name = f"{folder}/{entry.name}" if folder else entry.name
                status = entry.stat(follow_symlinks=False)
                is_folder = entry.is_dir(follow_symlinks=False)
                # a directory's times change with what is created in it, which is told by the entries themselves
                size, written, changed = (
                    (0, 0, 0) if is_folder else (status.st_size, status.st_mtime_ns, status.st_ctime_ns)
                )
                yield name, (status.st_mode, status.st_ino, size, written, changed)
                if is_folder:
                    pending.append(name)


def _same(before: _Stamp, after: _Stamp | None) -> bool:
    return before == after
