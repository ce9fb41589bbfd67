"""A model's manifest and config blob, as Ollama writes them. Opens no files.

Manifests come from other programs and from the network: whatever is in them is checked before it is used.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

from garzone.core.errors import InvalidReference, StoreError
from garzone.store.reference import parse_digest

MANIFEST_TYPE: Final = "application/vnd.docker.distribution.manifest.v2+json"
CONFIG_TYPE: Final = "application/vnd.docker.container.image.v1+json"
MODEL, TEMPLATE, SYSTEM, PARAMS, MESSAGES, LICENSE = (
    f"application/vnd.ollama.image.{kind}" for kind in ("model", "template", "system", "params", "messages", "license")
)
MAX_MANIFEST_BYTES: Final = 1 << 20  # real ones have about 1 kB
MAX_TEXT_BYTES: Final = 4 << 20  # of a template, licence or parameter layer; the longest licences have 20 kB


@dataclass(frozen=True, slots=True)
class Layer:
    """One blob of a model. `digest` is `sha256:` and 64 hex digits."""

    media_type: str
    digest: str
    size: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a model consists of. `raw` are the bytes it was read from or is to be written as."""

    config: Layer | None
    layers: tuple[Layer, ...]
    raw: bytes

    @property
    def blobs(self) -> tuple[Layer, ...]:
        """Every blob it needs, each once, the config first."""
        both = ((self.config,) if self.config else ()) + self.layers
        return tuple({layer.digest: layer for layer in both}.values())

    @property
    def model(self) -> Layer:
        """The weights.

        Raises:
            StoreError: there are none, or they are spread over several files.
        """
        found = self.of_type(MODEL)
        if len(found) != 1:
            raise StoreError(f"the manifest names {len(found)} files of weights; exactly one is supported")
        return found[0]

    def of_type(self, media_type: str) -> tuple[Layer, ...]:
        """Its layers of one type, in order. Parameters after a `;` of a media type are ignored."""
        return tuple(layer for layer in self.layers if layer.media_type.split(";")[0].strip() == media_type)


def parse_manifest(raw: bytes) -> Manifest:
    """Read a manifest.

    Raises:
        StoreError: it is not one; says what is wrong.
    """
    if len(raw) > MAX_MANIFEST_BYTES:
        raise StoreError(f"a manifest of more than {MAX_MANIFEST_BYTES} bytes")
    try:
        document: object = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise StoreError(f"not JSON: {error}") from error
    if not isinstance(document, dict):
        raise StoreError("not a JSON object")
    fields = cast("dict[str, Any]", document)
    layers: object = fields.get("layers")
    if not isinstance(layers, list) or not layers:
        raise StoreError("it has no layers")
    config: object = fields.get("config")
    return Manifest(
        config=None if config is None else _layer(config, "config"),
        layers=tuple(_layer(layer, f"layer {index}") for index, layer in enumerate(cast("list[object]", layers))),
        raw=raw,
    )


def build_manifest(config: Layer, layers: Sequence[Layer]) -> Manifest:
    """A manifest of given blobs."""
    document = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": _as_json(config),
        "layers": [_as_json(layer) for layer in layers],
    }
    return Manifest(config, tuple(layers), json.dumps(document, separators=(",", ":")).encode())


def build_config(*, family: str, parameter_size: str, quantization: str, layers: Sequence[Layer]) -> bytes:
    """The config blob: what `ollama list` and `/api/tags` show without opening the weights."""
    document = {
        "model_format": "gguf",
        "model_family": family,
        "model_families": [family],
        "model_type": parameter_size,
        "file_type": quantization,
        "architecture": "amd64",  # Ollama writes these two whatever the machine
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [layer.digest for layer in layers]},
    }
    return json.dumps(document, separators=(",", ":")).encode()


def parse_parameters(raw: bytes) -> Mapping[str, tuple[str, ...]]:
    """A parameter layer (`{"stop": ["a", "b"], "temperature": 0.7}`) as text; nothing if it cannot be read."""
    try:
        document: object = json.loads(raw)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(document, dict):
        return {}
    parameters: dict[str, tuple[str, ...]] = {}
    for key, value in cast("dict[str, object]", document).items():
        values = cast("list[object]", value) if isinstance(value, list) else [value]
        parameters[key] = tuple(item if isinstance(item, str) else json.dumps(item) for item in values)
    return parameters


def _layer(value: object, what: str) -> Layer:
    if not isinstance(value, dict):
        raise StoreError(f"{what} is not an object")
    fields = cast("dict[str, Any]", value)
    size, media_type = fields.get("size"), fields.get("mediaType")
    if not isinstance(size, int) or isinstance(size, bool) or size < 0 or not isinstance(media_type, str):
        raise StoreError(f"{what} has no valid size and mediaType")
    try:
        return Layer(media_type, parse_digest(fields.get("digest")), size)
    except InvalidReference as error:
        raise StoreError(f"{what}: {error}") from error


def _as_json(layer: Layer) -> dict[str, object]:
    return {"mediaType": layer.media_type, "digest": layer.digest, "size": layer.size}
