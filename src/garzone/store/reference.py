"""Parses what people call a model: `name:tag`, `host/namespace/name:tag`, `hf:...`, `pypi:...`, a path.

Pure: looks at no disk. A `ModelName` can only name a place inside the store, whatever it was parsed from.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from garzone.core.errors import InvalidReference

DEFAULT_HOST: Final = "registry.ollama.ai"
DEFAULT_NAMESPACE: Final = "library"
DEFAULT_TAG: Final = "latest"
HUGGING_FACE_HOST: Final = "hf.co"  # the name under which Ollama keeps what it pulls from there
PYPI_HOST: Final = "pypi.org"

# What Ollama accepts (types/model/name.go). The first character is never a dot, so no part is `.` or `..`.
_HOST: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,242}(:[0-9]{1,5})?")
_NAMESPACE: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_\-]{0,79}")
_PART: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,79}")
_DIGEST: Final = re.compile(r"sha256[:\-]([0-9a-f]{64})")
_PROJECT: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._\-]{0,78}[A-Za-z0-9])?")  # PEP 508
_OWNER: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,95}")
_QUANTIZATION: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_\-]{1,31}")
_MAX_CHARS: Final = 1024


@dataclass(frozen=True, slots=True)
class ModelName:
    """The full name of a model in the store. Build it with `parse` or `name_from_parts`, which check the parts."""

    host: str
    namespace: str
    name: str
    tag: str

    @property
    def short(self) -> str:
        """As Ollama prints it: defaults left out, the tag always there."""
        if self.host != DEFAULT_HOST:
            return f"{self.host}/{self.namespace}/{self.name}:{self.tag}"
        if self.namespace != DEFAULT_NAMESPACE:
            return f"{self.namespace}/{self.name}:{self.tag}"
        return f"{self.name}:{self.tag}"

    @property
    def manifest_path(self) -> PurePosixPath:
        """Where its manifest lies, below `manifests/`."""
        return PurePosixPath(self.host, self.namespace, self.name, self.tag)

    @property
    def folded(self) -> tuple[str, ...]:
        """Equal for names that Ollama takes for the same model."""
        return tuple(part.lower() for part in (self.host, self.namespace, self.name, self.tag))


@dataclass(frozen=True, slots=True)
class PathReference:
    """A GGUF file anywhere on this machine."""

    path: Path


@dataclass(frozen=True, slots=True)
class HuggingFaceReference:
    """A model of a repository on Hugging Face: one of its files, or a quantization (`Q4_K_M`), or "" for the best."""

    owner: str
    repository: str
    file: str

    @property
    def names_file(self) -> bool:
        """Whether `file` is a file's name, not a quantization."""
        return self.file.lower().endswith(".gguf")

    @property
    def local_name(self) -> ModelName:
        """What it is called in the store; for a quantization, what Ollama calls it too."""
        stem = self.file.rsplit("/", 1)[-1].removesuffix(".gguf") if self.file else DEFAULT_TAG
        return ModelName(HUGGING_FACE_HOST, _as_part(self.owner, dots=False), _as_part(self.repository), _as_part(stem))

    def __str__(self) -> str:
        return f"hf:{self.owner}/{self.repository}" + (f":{self.file}" if self.file else "")


@dataclass(frozen=True, slots=True)
class PyPIReference:
    """A GGUF file inside a wheel of a Python package index; `file` "" means the only one there."""

    package: str
    file: str = ""

    @property
    def project(self) -> str:
        """The package's name as indexes spell it (PEP 503)."""
        return re.sub(r"[-_.]+", "-", self.package).lower()

    @property
    def local_name(self) -> ModelName:
        """What it is called in the store."""
        tag = _as_part(self.file.rsplit("/", 1)[-1].removesuffix(".gguf")) if self.file else DEFAULT_TAG
        return ModelName(PYPI_HOST, DEFAULT_NAMESPACE, self.project, tag)


Reference = ModelName | PathReference | HuggingFaceReference | PyPIReference


def parse(text: str) -> Reference:
    """What `text` refers to.

    A path is what begins with `/`, `./`, `../` or `~`, or ends in `.gguf`; a file of the working directory never
    shadows a model's name.

    Raises:
        InvalidReference: it is none of these, or tries to leave the store.
    """
    if not text or len(text) > _MAX_CHARS or not text.isprintable() or text != text.strip():
        raise InvalidReference(
            f"{_short(text)} is not a model reference: it is empty, too long, or has blanks around it"
        )
    if text.startswith("hf:"):
        return _hugging_face(text)
    if text.startswith("pypi:"):
        return _pypi(text)
    if is_path(text):
        try:
            return PathReference(Path(text).expanduser())
        except (RuntimeError, ValueError) as error:  # RuntimeError: ~nobody has no home
            raise InvalidReference(f"{_short(text)} is not a path: {error}") from error
    return parse_name(text)


def is_path(text: str) -> bool:
    """Whether a reference means a file: it begins with `/`, `./`, `../` or `~`, or ends in `.gguf`."""
    by_name = text.startswith(("hf:", "pypi:"))
    return not by_name and (text.startswith(("/", "./", "../", "~")) or text.lower().endswith(".gguf"))


def parse_name(text: str) -> ModelName:
    """`[[host/]namespace/]name[:tag]` with Ollama's defaults filled in.

    Raises:
        InvalidReference: a part is missing, too long, or has a character that names cannot have.
    """
    rest = text.removeprefix("https://").removeprefix("http://")
    *before, last = rest.split("/")
    name, colon, tag = last.partition(":")
    if len(before) > 2 or (colon and not tag):
        raise _invalid(text)
    host = before[0] if len(before) == 2 else DEFAULT_HOST
    namespace = before[-1] if before else DEFAULT_NAMESPACE
    return name_from_parts(host, namespace, name, tag or DEFAULT_TAG)


def name_from_parts(host: str, namespace: str, name: str, tag: str) -> ModelName:
    """A name of four given parts.

    Raises:
        InvalidReference: a part is not valid.
    """
    checks = ((_HOST, host), (_NAMESPACE, namespace), (_PART, name), (_PART, tag))
    if not all(pattern.fullmatch(part) for pattern, part in checks) or ".." in host:
        raise _invalid(f"{host}/{namespace}/{name}:{tag}" if host != DEFAULT_HOST else f"{namespace}/{name}:{tag}")
    return ModelName(host, namespace, name, tag)


def parse_digest(text: object) -> str:
    """A digest as `sha256:<64 lower-case hex digits>`; the only way a digest becomes part of a path.

    Raises:
        InvalidReference: it is anything else (CVE-2024-37032 was a digest with `../` in it).
    """
    match = _DIGEST.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise InvalidReference(f"{_short(text)} is not a digest: expected sha256: and 64 hex digits")
    return f"sha256:{match[1]}"


def local_name(reference: Reference) -> ModelName | None:
    """What a reference is called in the store; None for a path."""
    if isinstance(reference, ModelName):
        return reference
    return None if isinstance(reference, PathReference) else reference.local_name


def _hugging_face(text: str) -> HuggingFaceReference:
    repository, colon, file = text.removeprefix("hf:").partition(":")
    owner, slash, name = repository.partition("/")
    known = not colon or _is_inner_path(file) or _QUANTIZATION.fullmatch(file)
    if not (slash and _OWNER.fullmatch(owner) and _OWNER.fullmatch(name)) or not known:
        raise InvalidReference(
            f"{_short(text)} is not a Hugging Face reference: expected hf:owner/repository, "
            "hf:owner/repository:Q4_K_M or hf:owner/repository:file.gguf"
        )
    return HuggingFaceReference(owner, name, file)


def _pypi(text: str) -> PyPIReference:
    package, colon, file = text.removeprefix("pypi:").partition(":")
    if not _PROJECT.fullmatch(package) or (colon and not _is_inner_path(file)):
        raise InvalidReference(
            f"{_short(text)} is not a PyPI reference: expected pypi:package or pypi:package:file.gguf"
        )
    return PyPIReference(package, file)


def _is_inner_path(file: str) -> bool:
    steps = file.split("/")
    return file.lower().endswith(".gguf") and all(step and step.strip(".") and step.isascii() for step in steps)


def _as_part(text: str, *, dots: bool = True) -> str:
    """`text` with what names cannot have replaced; never empty, never beginning with a dot."""
    part = re.sub(r"[^A-Za-z0-9_.\-]" if dots else r"[^A-Za-z0-9_\-]", "-", text)[:80]
    return part if part and part[0] not in ".-" else "_" + part[1:]


def _invalid(text: str) -> InvalidReference:
    return InvalidReference(
        f"{_short(text)} is not a model name: expected [host/][namespace/]name[:tag] of letters, digits, '_', '-' and "
        "'.', hf:owner/repository[:quantization], pypi:package, or a path to a .gguf file"
    )


def _short(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 120 else shown[:117] + "..."
