"""Reads GGUF files: header, metadata, tensor directory, and each tensor's packed bytes as a view of the mapped file.

Does not unpack weights, and knows nothing of what keys or tensors mean to a model.

Every read is checked against the bytes that are there before anything is allocated, so a hostile header costs
neither memory nor time. Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import contextlib
import mmap
import stat
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Final

import numpy as np

from garzone.core.errors import GGUFError, UnsupportedModel
from garzone.kernels.layouts import BLOCK, REMOVED_TYPES, GGMLType, packed_bytes

MAGIC: Final = b"GGUF"
DEFAULT_ALIGNMENT: Final = 32
MAX_DIMENSIONS: Final = 4  # GGML_MAX_DIMS
MAX_NAME_BYTES: Final = 65535  # the format's limit for keys; tensor names are far shorter

# Bounds on what a header may ask for. The largest published models have some 2,000 tensors, 262,144 tokens, 500,000
# merges and 20 MB of metadata; these leave a factor of ten and keep a hostile file under a second.
MAX_ENTRIES: Final = 1 << 16
MAX_LISTED_ELEMENTS: Final = 1 << 22
MAX_HEADER_BYTES: Final = 256 << 20
MAX_NESTING: Final = 4

_STRING, _ARRAY = 8, 9
_SCALARS: Final = {
    0: np.dtype("<u1"),
    1: np.dtype("<i1"),
    2: np.dtype("<u2"),
    3: np.dtype("<i2"),
    4: np.dtype("<u4"),
    5: np.dtype("<i4"),
    6: np.dtype("<f4"),
    7: np.dtype("?"),
    10: np.dtype("<u8"),
    11: np.dtype("<i8"),
    12: np.dtype("<f8"),
}
_SCALAR_STRUCTS: Final = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: struct.Struct("<I"),
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    7: struct.Struct("<?"),
    10: struct.Struct("<Q"),
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}
_TYPES: Final = frozenset(map(int, GGMLType))
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")
_MIN_KEY_VALUE_BYTES: Final = 8 + 4 + 1
_MIN_TENSOR_BYTES: Final = 8 + 4 + 4 + 8


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where a tensor lies.

    `shape` is in numpy order: rows first, the contiguous dimension last. `offset` counts bytes from the start of the
    file, `num_bytes` is the packed size.
    """

    name: str
    shape: tuple[int, ...]
    ggml_type: GGMLType
    offset: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class _Array:
    """An array not read yet: `count` elements of GGUF type `kind` from `start` in the header."""

    kind: int
    count: int
    start: int


class Metadata(Mapping[str, Any]):
    """Keys and values of a file. Arrays are read when first asked for, from a copy of the header: no file stays open.

    Values are str, int, float, bool; arrays are list[str], numpy arrays, or lists of those where nested.
    """

    def __init__(self, header: bytes, values: dict[str, Any]) -> None:
        self._header = header
        self._values = values

    def __getitem__(self, key: str) -> Any:
        value = self._values[key]
        if isinstance(value, _Array):
            value = self._values[key] = _read_array(self._header, value)[0]
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, key: object) -> bool:
        return key in self._values

    @property
    def num_bytes(self) -> int:
        """Of the header they are from."""
        return len(self._header)

    def lists(self, key: str, text: str) -> bool:
        """Whether an array of strings has that one; a large array is searched without reading it."""
        value = self._values.get(key)
        if not isinstance(value, _Array):
            return isinstance(value, list) and text in value
        raw = text.encode()
        return value.kind == _STRING and self._header.find(_U64.pack(len(raw)) + raw, value.start) >= 0

    def is_array(self, key: str) -> bool:
        """True if the value is an array; does not read it."""
        return isinstance(self._values[key], _Array | list | np.ndarray)


class GGUFFile:
    """An open GGUF file: `metadata`, `tensors`, and the bytes of each tensor. A context manager."""

    def __init__(
        self,
        path: Path,
        mapped: mmap.mmap,
        metadata: Metadata,
        tensors: Mapping[str, TensorInfo],
        spans: Mapping[str, tuple[int, int]],
    ) -> None:
        self.path = path
        self.metadata = metadata
        self.tensors = tensors
        self.spans = spans  # of each key with its value: first byte, and the one behind the last
        self._mapped: mmap.mmap | None = mapped
        self._latest: TensorInfo | None = None

    @classmethod
    def open(cls, path: Path, *, part: bool = False) -> GGUFFile:
        """Map the file and read its header.

        Args:
            path: a regular file.
            part: one part of a split model will do, too.

        Raises:
            GGUFError: it cannot be opened, or is malformed; names the offset, key or tensor.
            UnsupportedModel: one part of a split model, or a tensor type that ggml has removed.
        """
        mapped = _map(path)
        try:
            reader = _Reader(path, mapped, part=part)
            metadata, tensors = reader.read()
        except BaseException:
            mapped.close()
            raise
        return cls(path, mapped, metadata, MappingProxyType(tensors), MappingProxyType(reader.spans))

    @property
    def header_bytes(self) -> int:
        """How long the header is, up to the end of the tensor directory."""
        return self.metadata.num_bytes

    def data(self, name: str) -> np.ndarray:
        """The packed bytes of a tensor: uint8, shape (num_bytes,), a read-only view of the mapped file.

        Raises:
            GGUFError: no tensor of that name, or the file was closed.
        """
        if self._mapped is None:
            raise GGUFError(f"{self.path}: closed; tensor {name!r} can no longer be read")
        info = self.tensors.get(name)
        if info is None:
            raise GGUFError(f"{self.path}: has no tensor {name!r}")
        if self._latest is not None:
            self.let_go(self._latest.name)
        self._latest = info
        return np.frombuffer(self._mapped, np.uint8, info.num_bytes, info.offset)

    def let_go(self, name: str) -> None:
        """Give back the memory that reading a tensor took: while loading, a model must not be in memory twice.

        `data` does so for the tensor read before. Pages of a view that is still used come back from the system's file
        cache.
        """
        info = self.tensors[name]
        if self._mapped is not None and hasattr(self._mapped, "madvise"):
            first = info.offset // mmap.PAGESIZE * mmap.PAGESIZE
            self._mapped.madvise(mmap.MADV_DONTNEED, first, info.offset + info.num_bytes - first)

    def close(self) -> None:
        """Let go of the file. Views handed out by `data` stay valid; the mapping goes when the last of them does."""
        mapped, self._mapped = self._mapped, None
        if mapped is None:
            return
        with contextlib.suppress(BufferError):  # views are alive: dropping our reference leaves the mapping to them
            mapped.close()

    def __enter__(self) -> GGUFFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def read_metadata(path: Path) -> Metadata:
    """The metadata alone; the file is closed again when this returns.

    Raises:
        GGUFError, UnsupportedModel: as `GGUFFile.open`.
    """
    with GGUFFile.open(path) as file:
        return file.metadata


def _map(path: Path) -> mmap.mmap:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # opening a FIFO would wait for ever
            raise GGUFError(f"{path}: not a regular file")
        if status.st_size == 0:
            raise GGUFError(f"{path}: empty file, not GGUF")
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:  # ValueError: emptied in between, or a NUL in the path
        raise GGUFError(f"{path}: cannot be opened: {getattr(error, 'strerror', None) or error}") from error


def _read_array(header: bytes, array: _Array) -> tuple[Any, int]:
    """The array's value and the offset behind it. The bounds were checked when the header was walked."""
    position = array.start
    if array.kind == _STRING:
        texts: list[str] = []
        for _ in range(array.count):
            (length,) = _U64.unpack_from(header, position)
            position += 8 + length
            # Files in the wild hold licences and tokens that are not UTF-8; one such byte must not cost the model.
            texts.append(header[position - length : position].decode("utf-8", "replace"))
        return texts, position
    if array.kind == _ARRAY:
        nested: list[Any] = []
        for _ in range(array.count):
            kind, count = struct.unpack_from("<IQ", header, position)
            value, position = _read_array(header, _Array(kind, count, position + 12))
            nested.append(value)
        return nested, position
    dtype = _SCALARS[array.kind]
    values = np.frombuffer(header, np.uint8 if dtype == np.bool_ else dtype, array.count, position)
    return (values != 0 if dtype == np.bool_ else values), position + array.count * dtype.itemsize


class _Reader:
    """Walks a header once, front to back, checking every step."""

    def __init__(self, path: Path, mapped: mmap.mmap, *, part: bool) -> None:
        self.path = path
        self.mapped = mapped
        self.part = part
        self.spans: dict[str, tuple[int, int]] = {}
        self.size = len(mapped)
        self.end = min(self.size, MAX_HEADER_BYTES)
        self.position = 0
        self.listed = 0  # strings and nested arrays seen so far, over all keys

    def read(self) -> tuple[Metadata, dict[str, TensorInfo]]:
        num_tensors, num_keys = self._preamble()
        values: dict[str, Any] = {}
        for index in range(num_keys):
            start = self.position
            key = self._name(f"key {index}")
            if key in values:
                raise self._error(start, f"key {_short(key)} occurs twice")
            values[key] = self._value(key)
            self.spans[key] = (start, self.position)
        split = values.get("split.count", 0)
        if isinstance(split, int) and split > 1 and not self.part:
            raise UnsupportedModel(
                f"{self.path}: one part of a model split into {split} files; pull it by name (hf:owner/repository), or "
                "join the files with `llama-gguf-split --merge`"
            )
        raw = [self._tensor(index) for index in range(num_tensors)]
        alignment = self._alignment(values)
        data_start = -(-self.position // alignment) * alignment
        tensors = self._directory(raw, data_start, alignment)
        return Metadata(self.mapped[: self.position], values), tensors

    def _error(self, offset: int, what: str) -> GGUFError:
        return GGUFError(f"{self.path}: malformed GGUF at byte {offset}: {what}")

    def _take(self, num_bytes: int, what: str) -> int:
        """Step over `num_bytes` and return where they begin."""
        start = self.position
        if num_bytes > self.end - start:
            if self.end < self.size and num_bytes <= self.size - start:
                raise self._error(start, f"{what}: the header goes on beyond {MAX_HEADER_BYTES} bytes")
            raise self._error(start, f"{what}: needs {num_bytes} bytes, but the file ends after {self.size - start}")
        self.position = start + num_bytes
        return start

    def _u32(self, what: str) -> int:
        return _U32.unpack_from(self.mapped, self._take(4, what))[0]

    def _u64(self, what: str) -> int:
        return _U64.unpack_from(self.mapped, self._take(8, what))[0]

    def _preamble(self) -> tuple[int, int]:
        self._take(4, "magic")
        if self.mapped[:4] != MAGIC:
            raise GGUFError(f"{self.path}: not a GGUF file: it begins with {self.mapped[:4]!r}")
        version = self._u32("version")
        if version and not version & 0xFFFF:
            raise GGUFError(f"{self.path}: a big-endian GGUF file; only little-endian ones can be read")
        if version == 1:
            raise GGUFError(f"{self.path}: GGUF version 1, which is no longer read; convert the model again")
        if version not in (2, 3):
            raise GGUFError(f"{self.path}: GGUF version {version}; only 2 and 3 are known")
        num_tensors, num_keys = self._u64("number of tensors"), self._u64("number of keys")
        left = self.end - self.position
        for count, least, what, at in (
            (num_tensors, _MIN_TENSOR_BYTES, "tensors", 8),
            (num_keys, _MIN_KEY_VALUE_BYTES, "keys", 16),
        ):
            if count > MAX_ENTRIES or count * least > left:
                raise self._error(at, f"{count} {what} cannot be in a file of {self.size} bytes")
        return num_tensors, num_keys

    def _name(self, what: str) -> str:
        length = self._u64(f"length of {what}")
        if length > MAX_NAME_BYTES:
            raise self._error(self.position - 8, f"{what}: a name of {length} bytes")
        start = self._take(length, what)
        try:
            return self.mapped[start : self.position].decode("utf-8")
        except UnicodeDecodeError as error:
            raise self._error(start, f"{what}: the name is not UTF-8") from error

    def _value(self, key: str) -> Any:
        what = f"key {_short(key)}"
        start = self.position
        kind = self._u32(what)
        if kind == _STRING:
            length = self._u64(what)
            begin = self._take(length, what)
            return self.mapped[begin : self.position].decode("utf-8", "replace")
        if kind == _ARRAY:
            return self._array(what, 0)
        scalar = _SCALAR_STRUCTS.get(kind)
        if scalar is None:
            raise self._error(start, f"{what}: unknown value type {kind}")
        return scalar.unpack_from(self.mapped, self._take(scalar.size, what))[0]

    def _array(self, what: str, depth: int) -> _Array:
        """Step over an array, checking that all of it is there."""
        start = self.position
        if depth > MAX_NESTING:
            raise self._error(start, f"{what}: arrays nested more than {MAX_NESTING} deep")
        kind, count = self._u32(what), self._u64(what)
        array = _Array(kind, count, self.position)
        if kind in (_STRING, _ARRAY):
            least = 8 if kind == _STRING else 12
            if count * least > self.end - self.position:
                raise self._error(start, f"{what}: {count} elements cannot be in a file of {self.size} bytes")
            self.listed += count
            if self.listed > MAX_LISTED_ELEMENTS:
                raise self._error(start, f"{what}: more than {MAX_LISTED_ELEMENTS} strings and nested arrays")
            if kind == _STRING:
                self._skip_strings(what, count)
            else:
                for _ in range(count):
                    self._array(what, depth + 1)
            return array
        dtype = _SCALARS.get(kind)
        if dtype is None:
            raise self._error(start, f"{what}: unknown array element type {kind}")
        self._take(count * dtype.itemsize, what)
        return array

    def _skip_strings(self, what: str, count: int) -> None:
        # Vocabularies: some 100,000 to 500,000 strings, so this loop is kept free of calls but one.
        unpack, mapped, end, position = _U64.unpack_from, self.mapped, self.end - 8, self.position
        for index in range(count):
            if position > end:
                self.position = min(position, self.end)
                raise self._error(self.position, f"{what}: string {index} of {count} lies beyond the header's end")
            position += 8 + unpack(mapped, position)[0]
        self.position, taken = self.position, position - self.position
        self._take(taken, what)

    def _tensor(self, index: int) -> tuple[str, tuple[int, ...], int, int, int]:
        at = self.position
        name = self._name(f"tensor {index}")
        what = f"tensor {_short(name)}"
        num_dimensions = self._u32(what)
        if num_dimensions > MAX_DIMENSIONS:
            raise self._error(at, f"{what}: {num_dimensions} dimensions; at most {MAX_DIMENSIONS} are possible")
        dimensions = tuple(self._u64(what) for _ in range(num_dimensions))
        return name, dimensions, self._u32(what), self._u64(what), at

    def _alignment(self, values: Mapping[str, Any]) -> int:
        alignment = values.get("general.alignment", DEFAULT_ALIGNMENT)
        if isinstance(alignment, bool) or not isinstance(alignment, int) or not 0 < alignment <= 1 << 31:
            raise GGUFError(f"{self.path}: general.alignment is {alignment!r}; it must be a power of two")
        if alignment & (alignment - 1):
            raise GGUFError(f"{self.path}: general.alignment is {alignment}, not a power of two")
        return alignment

    def _directory(
        self, raw: list[tuple[str, tuple[int, ...], int, int, int]], data_start: int, alignment: int
    ) -> dict[str, TensorInfo]:
        tensors: dict[str, TensorInfo] = {}
        for name, dimensions, kind, relative, at in raw:
            what = f"tensor {_short(name)}"
            if name in tensors:
                raise self._error(at, f"{what} occurs twice")
            if kind in REMOVED_TYPES:
                raise UnsupportedModel(
                    f"{self.path}: {what} is of type {REMOVED_TYPES[kind]}, which ggml has removed; convert it again"
                )
            if kind not in _TYPES:
                raise self._error(at, f"{what}: unknown tensor type {kind}")
            ggml_type = GGMLType(kind)
            block = BLOCK[ggml_type]
            elements = 1
            for dimension in dimensions:
                elements *= dimension
            if elements == 0 or elements >= 1 << 63:
                raise self._error(at, f"{what}: impossible shape {list(dimensions)}")
            if (dimensions[0] if dimensions else 1) % block.elements:
                raise self._error(
                    at, f"{what}: rows of {dimensions[0] if dimensions else 1} do not fill {ggml_type.name} blocks "
                    f"of {block.elements}"
                )  # fmt: skip
            num_bytes = packed_bytes(ggml_type, elements)
            if relative % alignment:
                raise self._error(at, f"{what}: its offset {relative} is not a multiple of {alignment}")
            offset = data_start + relative
            if num_bytes > self.size - offset:
                raise self._error(
                    at, f"{what}: bytes {offset} to {offset + num_bytes} lie outside the file of {self.size}; "
                    "was the download cut short?"
                )  # fmt: skip
            tensors[name] = TensorInfo(name, dimensions[::-1], ggml_type, offset, num_bytes)
        last: TensorInfo | None = None
        for info in sorted(tensors.values(), key=lambda info: info.offset):
            if last is not None and info.offset < last.offset + last.num_bytes:
                raise GGUFError(f"{self.path}: tensors {_short(last.name)} and {_short(info.name)} overlap")
            last = info
        return tensors


def _short(name: str) -> str:
    return repr(name if len(name) <= 64 else name[:61] + "...")
