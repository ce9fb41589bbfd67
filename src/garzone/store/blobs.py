"""Content-addressed files: written beside their final name, digest-checked, and moved there in one step.

Does not know what a blob means, nor where bytes come from. Whatever moment a process is killed at, a file under a
blob's name is whole; what had arrived waits under a `.garzone-partial` name and is continued by the next attempt. The
partial file itself is the lock: two processes never write the same one, and a lock never outlives its process.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import BinaryIO, Final

from garzone.core.errors import DigestMismatch, StoreError
from garzone.store.manifest import Layer
from garzone.store.reference import parse_digest

PARTIAL_SUFFIX: Final = ".garzone-partial"  # not Ollama's `-partial`, which is sparse and means something else
CHUNK_BYTES: Final = 1 << 20
_LOCK_POLL_S: Final = 0.1

Waiting = Callable[[], None]


def sha256_of(raw: bytes) -> str:
    """The digest of bytes in memory."""
    return "sha256:" + hashlib.sha256(raw).hexdigest()


class Partial:
    """A blob being written by this process alone. Get one from `Blobs.open_partial`."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path = path
        self._file = file
        self._hash = hashlib.sha256()
        self.size = 0

    def reuse(self, progress: Callable[[int], None] | None = None) -> int:
        """Hash what an earlier attempt left, so that writing goes on behind it. Returns its size in bytes."""
        self.restart(keep=True)
        while chunk := self._file.read(CHUNK_BYTES):
            self._hash.update(chunk)
            self.size += len(chunk)
            if progress:
                progress(self.size)
        return self.size

    def restart(self, *, keep: bool = False) -> None:
        """Go back to the beginning; drops what is there unless `keep`."""
        self._file.seek(0)
        if not keep:
            self._file.truncate()
        self._hash = hashlib.sha256()
        self.size = 0

    def write(self, chunk: bytes) -> None:
        """Append bytes."""
        self._file.write(chunk)
        self._hash.update(chunk)
        self.size += len(chunk)

    def note(self, chunk: bytes) -> None:
        """Count and hash bytes that somebody else has put at the end."""
        self._hash.update(chunk)
        self.size += len(chunk)

    def fileno(self) -> int:
        """The file's descriptor, for those who put bytes elsewhere than at the end."""
        return self._file.fileno()

    @property
    def digest(self) -> str:
        """Of everything written so far."""
        return "sha256:" + self._hash.hexdigest()

    def flush(self) -> None:
        """Put everything on the disk, not just into the system's cache."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def discard(self) -> None:
        """Remove the file."""
        self.path.unlink(missing_ok=True)


class Blobs:
    """The directory of blobs. Creates nothing before something is written."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def path(self, digest: str) -> Path:
        """Where the blob of that digest is, or would be.

        Raises:
            InvalidReference: not a digest.
        """
        return self.directory / parse_digest(digest).replace(":", "-")

    def has(self, layer: Layer) -> bool:
        """True if the blob is there with the right size. Its bytes were checked when it was written."""
        try:
            return self.path(layer.digest).stat().st_size == layer.size
        except OSError:
            return False

    @contextlib.contextmanager
    def open_partial(self, key: str, *, waiting: Waiting | None = None) -> Generator[Partial]:
        """The partial file called `key`, for this process alone; waits while another one has it.

        The file stays when the block ends, unless it was discarded or committed.

        Args:
            key: a digest with `-` for `:`, or another file name of letters, digits and `-`.
            waiting: called again and again while another process has it; may raise.

        Raises:
            StoreError: no permission, no space.
        """
        path = self.directory / (key + PARTIAL_SUFFIX)
        with storage_errors(path):
            self.directory.mkdir(parents=True, exist_ok=True)
            file = _open_locked(path, waiting)
        try:
            with storage_errors(path):
                yield Partial(path, file)
        finally:
            with contextlib.suppress(OSError):  # a full disk was reported by the write before; closing is the unlocking
                file.close()

    def commit(self, partial: Partial, digest: str | None = None) -> Layer:
        """Give a partial file its final name. Returns digest and size as a Layer without media type.

        Raises:
            DigestMismatch: its bytes are not what `digest` says; the partial file is removed.
            StoreError: it cannot be moved.
        """
        if digest is not None and partial.digest != digest:
            partial.discard()
            raise DigestMismatch(f"{digest[:19]}: what arrived hashes to {partial.digest[:19]}; it was thrown away")
        layer = Layer("", partial.digest, partial.size)
        with storage_errors(partial.path):
            partial.flush()
            partial.path.chmod(0o644)
            partial.path.replace(self.path(layer.digest))
            sync_directory(self.directory)
        return layer

    def put(self, raw: bytes, media_type: str) -> Layer:
        """Write a small blob in one go; nothing to do if it is there."""
        layer = Layer(media_type, sha256_of(raw), len(raw))
        if not self.has(layer):
            with self.open_partial(self.path(layer.digest).name) as partial:
                partial.restart()
                partial.write(raw)
                self.commit(partial, layer.digest)
        return layer

    def read(self, layer: Layer, limit: int) -> bytes:
        """A small blob's bytes.

        Raises:
            StoreError: it is missing, or has more than `limit` bytes.
        """
        path = self.path(layer.digest)
        with storage_errors(path), path.open("rb") as file:
            raw = file.read(limit + 1)
        if len(raw) > limit:
            raise StoreError(f"{path}: more than {limit} bytes, too long for a {layer.media_type}")
        return raw

    def remove(self, digest: str) -> None:
        """Delete a blob; nothing if it is not there."""
        path = self.path(digest)
        with storage_errors(path):
            path.unlink(missing_ok=True)

    def digests(self) -> list[str]:
        """All blobs that are there."""
        try:
            names = [entry.name for entry in self.directory.iterdir()]
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(name.replace("-", ":") for name in names if len(name) == 71 and name.startswith("sha256-"))


class Upload:
    """A blob that comes from outside, piece by piece. Implements `core.ports.BlobUpload`."""

    def __init__(self, blobs: Blobs, digest: str) -> None:
        self._blobs, self._digest = blobs, digest
        self._stack = contextlib.ExitStack()
        self._partial = self._stack.enter_context(blobs.open_partial(blobs.path(digest).name + "-upload"))
        self._partial.restart()

    def write(self, chunk: bytes) -> None:
        """Append bytes. Raises StoreError."""
        with storage_errors(self._partial.path):
            self._partial.write(chunk)

    def commit(self) -> None:
        """Make it a blob. Raises DigestMismatch, StoreError."""
        with self._stack:
            self._blobs.commit(self._partial, self._digest)

    def close(self) -> None:
        """Give it up; nothing of it stays. Does nothing after `commit`."""
        with self._stack:
            self._partial.discard()


@contextlib.contextmanager
def storage_errors(path: Path) -> Generator[None]:
    """Turn what the file system says into a StoreError that says what to do."""
    try:
        yield
    except ConnectionError:
        raise  # of a pipe or socket, not of the disk
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = _free_bytes(path)
            raise StoreError(
                f"{path.parent}: no space left ({free / 1e6:.0f} MB free); "
                "make room, or set OLLAMA_MODELS to another disk"
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise StoreError(
                f"{path}: {error.strerror}; check who owns the directory, or set OLLAMA_MODELS to one you may write to"
            ) from error
        raise StoreError(f"{path}: {error.strerror or error}") from error


def sync_directory(directory: Path) -> None:
    """Make renames in a directory survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, raw: bytes) -> None:
    """Write a small file so that readers see the old one or the new one.

    Raises:
        StoreError: no permission, no space.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL_SUFFIX}")
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                file.write(raw)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        sync_directory(path.parent)


@contextlib.contextmanager
def exclusive(path: Path, *, waiting: Waiting | None = None) -> Generator[None]:
    """Hold the lock file `path` against every other process and thread.

    Raises:
        StoreError: no permission, no space.
    """
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = _open_locked(path, waiting)
    try:
        yield
    finally:
        file.close()


def is_locked(path: Path) -> bool:
    """True if another open file holds the lock on `path`."""
    try:
        with path.open("rb") as file:
            return not _try_lock(file)
    except OSError:
        return False


def _try_lock(file: BinaryIO) -> bool:
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _open_locked(path: Path, waiting: Waiting | None) -> BinaryIO:
    while True:
        file = os.fdopen(
            os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644), "r+b", buffering=0
        )
        try:
            while not _try_lock(file):
                if waiting:
                    waiting()
                time.sleep(_LOCK_POLL_S)
            # Whoever had it may have moved or removed it meanwhile: then this is a lock on nothing.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                    return file
        except BaseException:
            file.close()
            raise
        file.close()


def _free_bytes(path: Path) -> int:
    try:
        return shutil.disk_usage(path.parent).free
    except OSError:
        return 0
