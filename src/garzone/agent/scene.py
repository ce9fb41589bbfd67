"""The place a check runs in: a copy of the worktree that is as fresh for every candidate as for the first.

Knows files and what happened to them; runs nothing. The copy has no `.git`, so no check can reach the repository. After
a run everything is compared with what it was before (type, size, inode, times); the inode change time is set by the
kernel and cannot be forged by what ran. What was added is removed, and when anything that existed was touched, the copy
is made anew.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
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
    """A copy of `source` at `path`, in which `prepare` puts changed and new files."""

    def __init__(self, source: Path, path: Path) -> None:
        self._source = source
        self.path = path
        self._stamps: dict[str, _Stamp] = {}
        self._overlaid: dict[str, bool] = {}  # path -> whether the source has it too
        self._uid = fresh_uid()
        self._spoilt = True

    def prepare(self, overlay: Mapping[str, bytes] | None = None) -> None:
        """Make the scene fresh, with the content of some files replaced and others added."""
        overlay = overlay or {}
        if self._spoilt:
            self._copy()
        for name, existed in list(self._overlaid.items()):
            if existed and name not in overlay:
                self._write(name, (self._source / name).read_bytes())
            elif not existed:
                self._remove(name)
        self._overlaid = {}
        for name, content in overlay.items():
            self._overlaid[name] = (self._source / name).is_file()
            self._write(name, content)
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
        mode = 0o644
        if place.is_file():
            mode = place.stat().st_mode & 0o777
            place.unlink()  # a new file: whatever shared its inode keeps the old one
        for folder in reversed(place.relative_to(self.path).parents[:-1]):
            if not (self.path / folder).is_dir():
                (self.path / folder).mkdir()
                self._own(self.path / folder)
        place.write_bytes(content)
        place.chmod(mode | 0o444)
        self._own(place)

    def _remove(self, name: str) -> None:
        place = self.path / name
        place.unlink(missing_ok=True)
        for folder in place.relative_to(self.path).parents[:-1]:
            if not (self._source / folder).is_dir():
                with contextlib.suppress(OSError):  # something else is in it: it then shows as added
                    (self.path / folder).rmdir()

    def _own(self, place: Path) -> None:
        if os.geteuid() == 0:
            os.chown(place, self._uid, self._uid)

    def _copy(self) -> None:
        if self.path.exists():
            remove_tree(self.path)
        self._overlaid = {}
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
