"""Joins the files of a split GGUF model into one, as `llama-gguf-split --merge` does. Unpacks nothing.

Format of splits: https://github.com/ggml-org/llama.cpp/blob/master/tools/gguf-split/gguf-split.cpp
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from garzone.core.errors import GGUFError
from garzone.engine.gguf import DEFAULT_ALIGNMENT, MAGIC, GGUFFile, TensorInfo
from garzone.store.blobs import CHUNK_BYTES, Partial

_VERSION: Final = 3
_SPLIT_KEYS: Final = frozenset({"split.no", "split.count", "split.tensors.count"})


def join(parts: Sequence[Path], target: Partial, progress: Callable[[int, int], None]) -> None:
    """Write the whole model into `target`.

    Args:
        parts: the files, in order.
        target: an empty partial file.
        progress: called as (bytes done, bytes in all); what it raises ends the work.

    Raises:
        GGUFError: they are not the parts of one model, or not all of them.
    """
    with contextlib.ExitStack() as held:
        files = [held.enter_context(GGUFFile.open(path, part=True)) for path in parts]
        _check(files)
        first = files[0]
        alignment = int(first.metadata.get("general.alignment", DEFAULT_ALIGNMENT))
        tensors = [(file, info) for file in files for info in file.tensors.values()]
        header = _header(first, [info for _, info in tensors], alignment)
        target.restart()
        target.write(header)
        total = len(header) + sum(_padded(info.num_bytes, alignment) for _, info in tensors)
        for file, info in tensors:
            for at in range(0, info.num_bytes, CHUNK_BYTES):
                target.write(file.data(info.name)[at : at + CHUNK_BYTES].tobytes())
                progress(target.size, total)
            target.write(bytes(_padded(info.num_bytes, alignment) - info.num_bytes))


def _check(files: Sequence[GGUFFile]) -> None:
    numbers = [_number(file, "split.no") for file in files]
    counts = {_number(file, "split.count") for file in files}
    if numbers != list(range(len(files))) or counts != {len(files)}:
        raise GGUFError(f"{files[0].path}: parts {numbers} of {sorted(counts)} are not all parts of one model in order")
    names = [name for file in files for name in file.tensors]
    if len(names) != len(set(names)):
        raise GGUFError(f"{files[0].path}: a tensor is in more than one part")
    expected = _number(files[0], "split.tensors.count")
    if expected != len(names):
        raise GGUFError(f"{files[0].path}: the parts hold {len(names)} tensors, not {expected}")


def _number(file: GGUFFile, key: str) -> int:
    value: Any = file.metadata.get(key)
    if isinstance(value, bool) or not isinstance(value, int):
        raise GGUFError(f"{file.path}: has no {key}: not a part of a split model")
    return value


def _header(first: GGUFFile, tensors: Sequence[TensorInfo], alignment: int) -> bytes:
    """Keys and values as the first part has them, byte for byte, and the directory of all tensors."""
    raw = first.path.open("rb").read(first.header_bytes)
    kept = [raw[start:end] for key, (start, end) in first.spans.items() if key not in _SPLIT_KEYS]
    header = bytearray(struct.pack("<4sIQQ", MAGIC, _VERSION, len(tensors), len(kept)))
    header += b"".join(kept)
    offset = 0
    for info in tensors:
        name = info.name.encode()
        header += struct.pack("<Q", len(name)) + name
        header += struct.pack(f"<I{len(info.shape)}Q", len(info.shape), *info.shape[::-1])
        header += struct.pack("<IQ", int(info.ggml_type), offset)
        offset += _padded(info.num_bytes, alignment)
    return bytes(header) + bytes(_padded(len(header), alignment) - len(header))


def _padded(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment
