"""Makes a manifest out of a base and changes to it. Writes blobs; naming the result is the catalogue's business."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, cast

from garzone.core.chat import Message, Role
from garzone.core.errors import GarzoneError, ModelNotFound, StoreError, UsageError
from garzone.core.ports import ProgressCallback
from garzone.core.recipe import ModelRecipe
from garzone.store.blobs import CHUNK_BYTES, Blobs, storage_errors
from garzone.store.details import Header
from garzone.store.manifest import (
    CONFIG_TYPE,
    LICENSE,
    MAX_TEXT_BYTES,
    MESSAGES,
    MODEL,
    PARAMS,
    SYSTEM,
    TEMPLATE,
    Layer,
    Manifest,
    build_config,
    build_manifest,
    parse_parameters,
)
from garzone.store.reference import parse_digest
from garzone.text.chat_template import ChatTemplate, is_go_template
from garzone.text.modelfile import layer_of_parameters

_IMPORT_KEY: Final = "import"


def import_file(path: Path, blobs: Blobs, progress: ProgressCallback) -> Layer:
    """Copy a file of weights into the store.

    Raises:
        ModelNotFound: it is not there, or not a regular file (a FIFO or a device would never end).
        StoreError: it cannot be read, or there is no room.
    """
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        raise ModelNotFound(str(path), getattr(error, "strerror", None) or str(error)) from error
    if not stat.S_ISREG(status.st_mode):
        raise ModelNotFound(str(path), "it is not a regular file")
    key = f"{_IMPORT_KEY}-{status.st_dev}-{status.st_ino}"
    with blobs.open_partial(key) as partial, storage_errors(path), path.open("rb") as file:
        partial.restart()
        while chunk := file.read(CHUNK_BYTES):
            if partial.size + len(chunk) > status.st_size:
                partial.discard()
                raise StoreError(f"{path}: it grows while it is copied")
            partial.write(chunk)
            progress("copying the weights", partial.size, status.st_size)
        layer = blobs.commit(partial)
    return Layer(MODEL, layer.digest, layer.size)


def build(
    recipe: ModelRecipe,
    base: Manifest | None,
    weights: Layer,
    blobs: Blobs,
    read_header: Callable[[Path], Header],
) -> Manifest:
    """The manifest of what a recipe describes.

    Args:
        recipe: the changes.
        base: what they are made to; None for bare weights.
        weights: the layer of the weights, which are there.
        blobs: where new layers go.
        read_header: reads a weights file; raises where it is none.

    Raises:
        UsageError: a template or a parameter that cannot be used.
        ModelFileError: the weights are no model.
    """
    header = read_header(blobs.path(weights.digest))
    _check_template(recipe.template)
    layers: list[Layer] = [weights]

    def change(media_type: str, texts: Sequence[bytes]) -> None:
        """New layers of a type where there are any, else the base's."""
        if texts:
            layers.extend(blobs.put(text, media_type) for text in texts)
        elif base is not None:
            layers.extend(base.of_type(media_type))

    change(TEMPLATE, [recipe.template.encode()] if recipe.template else [])
    change(SYSTEM, [recipe.system.encode()] if recipe.system is not None else [])
    change(PARAMS, _parameters(recipe, base, blobs))
    change(MESSAGES, [messages_layer(recipe.messages)] if recipe.messages else [])
    change(LICENSE, [text.encode() for text in recipe.licenses])
    known = {TEMPLATE, SYSTEM, PARAMS, MESSAGES, LICENSE, MODEL}
    if base is not None:  # projectors and whatever else Ollama knows
        layers += [layer for layer in base.layers if layer.media_type.partition(";")[0].strip() not in known]
    config = build_config(
        family=header.family, parameter_size=header.parameter_size, quantization=header.quantization, layers=layers
    )
    return build_manifest(blobs.put(config, CONFIG_TYPE), layers)


def uploaded(digest: str, blobs: Blobs) -> Layer:
    """The layer of weights that were handed in as a blob.

    Raises:
        InvalidReference: not a digest.
        StoreError: no such blob.
    """
    path = blobs.path(parse_digest(digest))
    try:
        size = path.stat().st_size
    except OSError as error:
        raise UsageError(f"there is no blob {digest[:19]}; send it first: POST /api/blobs/{digest}") from error
    return Layer(MODEL, parse_digest(digest), size)


def messages_layer(messages: Sequence[Message]) -> bytes:
    """Messages as they lie on disk."""
    document = [{"role": message.role.value, "content": message.text} for message in messages]
    return json.dumps(document, ensure_ascii=False).encode()


def parse_messages(raw: bytes) -> tuple[Message, ...]:
    """Messages from disk; those that cannot be understood are left out."""
    try:
        document: object = json.loads(raw)
    except (ValueError, RecursionError):
        return ()
    found: list[Message] = []
    for entry in cast("list[object]", document) if isinstance(document, list) else []:
        fields = cast("dict[str, Any]", entry) if isinstance(entry, dict) else {}
        role, content = fields.get("role"), fields.get("content")
        if role in ("system", "user", "assistant") and isinstance(content, str):
            found.append(Message.of(Role(role), content))
    return tuple(found)


def _parameters(recipe: ModelRecipe, base: Manifest | None, blobs: Blobs) -> list[bytes]:
    if not recipe.parameters:
        return []
    merged: dict[str, tuple[str, ...]] = {}
    for layer in base.of_type(PARAMS) if base is not None else ():
        merged.update(parse_parameters(blobs.read(layer, MAX_TEXT_BYTES)))
    merged.update(recipe.parameters)
    return [layer_of_parameters(merged)]


def _check_template(template: str | None) -> None:
    if template is None or not template.strip():
        return
    if is_go_template(template):
        return  # kept for Ollama; the weights' own is used here
    try:
        ChatTemplate(template)
    except GarzoneError as error:
        raise UsageError(f"TEMPLATE cannot be used: {error}") from error
