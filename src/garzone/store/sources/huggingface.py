"""Fetches a GGUF model of a Hugging Face repository: picks the quantization, joins what is split.

Asks the hub by its own library, with the token that `hf auth login` left, and fetches by `Transfer`: resumable, checked
against the digests that the hub gives.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import httpx2

from garzone.core.errors import DigestMismatch, DownloadFailed, ModelNotFound
from garzone.core.ports import ProgressCallback
from garzone.store.blobs import Blobs, Partial
from garzone.store.join import join
from garzone.store.manifest import MODEL, Layer
from garzone.store.reference import HuggingFaceReference
from garzone.store.sources.ollama import fetch_checked
from garzone.store.transfer import HTTPFailed, Transfer

DEFAULT_ENDPOINT: Final = "https://huggingface.co"
# Where nothing is said: the best quality for its size first. Q4_K_M is what Ollama takes, too.
PREFERENCE: Final = (
    "Q4_K_M", "Q4_K_S", "IQ4_XS", "Q4_0", "Q4_1", "IQ4_NL", "MXFP4", "Q5_K_M", "Q5_K_S", "Q6_K", "Q8_0", "Q3_K_M",
    "BF16", "F16", "F32",
)  # fmt: skip
_SPLIT: Final = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.IGNORECASE)
_NO_WEIGHTS: Final = re.compile(r"(^|/)(mmproj|imatrix)[^/]*\.gguf$|\.imatrix\.gguf$", re.IGNORECASE)
_TIMEOUT_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class RepositoryFile:
    """A file of a repository. `sha256` "" where the hub does not say: files outside its large storage."""

    path: str
    size: int
    sha256: str


class HubToken(httpx2.Auth):
    """Puts the person's token on requests to the hub, and to nobody else."""

    def __init__(self, endpoint: str) -> None:
        self._host = httpx2.URL(endpoint).netloc

    def auth_flow(self, request: httpx2.Request) -> Generator[httpx2.Request, httpx2.Response]:
        """Send the request, with the token if there is one."""
        from huggingface_hub import get_token  # noqa: PLC0415  half a second that only who pulls from there should pay

        token = get_token() if request.url.netloc == self._host else None
        if token:
            request.headers["Authorization"] = f"Bearer {token}"
        yield request


def pull_files(
    reference: HuggingFaceReference,
    blobs: Blobs,
    transfer: Transfer,
    progress: ProgressCallback,
    *,
    endpoint: str = DEFAULT_ENDPOINT,
) -> Layer:
    """Fetch a model. Returns the layer of the weights.

    Raises:
        ModelNotFound: no such repository, file or quantization; says which there are.
        DownloadFailed, DigestMismatch, StoreError, GGUFError: as the names say.
    """
    progress("asking Hugging Face", 0, 0)
    files, revision = list_files(reference, endpoint)
    pull = _Pull(reference, revision, endpoint, blobs, transfer, progress)
    parts = choose(reference, files)
    return pull.one(parts[0]) if len(parts) == 1 else pull.joined(parts)


def locate(reference: HuggingFaceReference, endpoint: str = DEFAULT_ENDPOINT) -> list[tuple[str, int]]:
    """Where a model's files are, and how many bytes each has.

    Raises:
        ModelNotFound, DownloadFailed: as `pull_files`.
    """
    files, revision = list_files(reference, endpoint)
    return [(_url(reference, file, revision, endpoint), file.size) for file in choose(reference, files)]


def _url(reference: HuggingFaceReference, file: RepositoryFile, revision: str, endpoint: str) -> str:
    from huggingface_hub import hf_hub_url  # noqa: PLC0415  half a second that only who pulls from there should pay

    return hf_hub_url(f"{reference.owner}/{reference.repository}", file.path, revision=revision, endpoint=endpoint)


def list_files(reference: HuggingFaceReference, endpoint: str) -> tuple[list[RepositoryFile], str]:
    """The GGUF files of a repository, and its newest revision.

    Raises:
        ModelNotFound: there is no such public repository, or the token does not open it.
        DownloadFailed: the hub does not answer.
    """
    from huggingface_hub import HfApi  # noqa: PLC0415  half a second that only who pulls from there should pay
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError  # noqa: PLC0415

    repository = f"{reference.owner}/{reference.repository}"
    try:
        info = HfApi(endpoint=endpoint).model_info(repository, files_metadata=True, timeout=_TIMEOUT_S)
    except GatedRepoError as error:
        raise ModelNotFound(
            str(reference), f"accept its terms at {endpoint}/{repository}, then log in: hf auth login"
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelNotFound(
            str(reference), "there is no such public repository on Hugging Face (for a private one: hf auth login)"
        ) from error
    except HfHubHTTPError as error:
        if error.response.status_code == 404:
            raise ModelNotFound(str(reference), "Hugging Face does not know it") from error
        raise DownloadFailed(f"{endpoint}: HTTP {error.response.status_code}") from error
    except (httpx2.HTTPError, OSError, ValueError, TypeError, KeyError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DownloadFailed(f"{endpoint}: {reason[:200]}") from error
    files: list[RepositoryFile] = []
    for sibling in info.siblings or []:
        if sibling.rfilename.lower().endswith(".gguf"):
            sha256 = sibling.lfs.sha256 if sibling.lfs else ""
            checked = sha256 if re.fullmatch(r"[0-9a-f]{64}", sha256 or "") else ""
            files.append(RepositoryFile(sibling.rfilename, sibling.size or 0, checked))
    return files, info.sha or "main"


def choose(reference: HuggingFaceReference, files: Sequence[RepositoryFile]) -> list[RepositoryFile]:
    """The files that a reference means, in order: several where a model is split. Pure.

    Raises:
        ModelNotFound: there is nothing of the kind, or parts are missing; says what there is.
    """
    models = _models(file for file in files if not _NO_WEIGHTS.search(file.path))
    if reference.names_file:
        found = [
            parts
            for parts in models.values()
            if any(reference.file in (part.path, part.path.rsplit("/", 1)[-1]) for part in parts)
        ]
    else:
        found: list[list[RepositoryFile]] = []
        for wanted in (reference.file,) if reference.file else PREFERENCE:
            found = [parts for stem, parts in models.items() if _is_quantized(stem, wanted)]
            if found:
                break
        if not found and not reference.file:
            found = list(models.values())
    if not found or (reference.names_file and len(found) != 1):
        there = ", ".join(sorted(stem.rsplit("/", 1)[-1] for stem in models)[:12]) or "no GGUF files"
        raise ModelNotFound(str(reference), f"the repository has {there}")
    parts = min(found, key=lambda each: (sum(part.size for part in each), each[0].path))
    match = _SPLIT.fullmatch(parts[0].path)
    if match and int(match["count"]) != len(parts):
        raise ModelNotFound(str(reference), f"of {match['count'].lstrip('0')} parts the repository has {len(parts)}")
    return parts


def _models(files: Iterable[RepositoryFile]) -> dict[str, list[RepositoryFile]]:
    """Files by model: the parts of a split one belong together."""
    models: dict[str, list[RepositoryFile]] = {}
    for file in sorted(files, key=lambda each: each.path):
        match = _SPLIT.fullmatch(file.path)
        models.setdefault(match["stem"] if match else file.path[: -len(".gguf")], []).append(file)
    return models


def _is_quantized(stem: str, quantization: str) -> bool:
    """Whether a file's name, or its folder's, says that quantization: `model-Q4_K_M`, `Q4_K_M/model`."""
    pattern = rf"(^|[-._/]){re.escape(quantization)}([-./]|$)"
    return re.search(pattern, stem, re.IGNORECASE) is not None


@dataclass(frozen=True, slots=True)
class _Pull:
    """One pull: what is fetched, where from, and where to."""

    reference: HuggingFaceReference
    revision: str
    endpoint: str
    blobs: Blobs
    transfer: Transfer
    progress: ProgressCallback

    def one(self, file: RepositoryFile) -> Layer:
        """A model of one file."""
        layer = self._layer(file)
        if layer and self.blobs.has(layer):
            return layer
        with self._fetched(file, self._key(file)) as partial:
            layer = self.blobs.commit(partial)
        return Layer(MODEL, layer.digest, layer.size)

    def joined(self, files: Sequence[RepositoryFile]) -> Layer:
        """A model of several files, made one. The parts stay until the whole is there: a kill costs no download."""
        with contextlib.ExitStack() as held:
            parts = [held.enter_context(self._fetched(file, self._key(file) + "-part")) for file in files]
            with self.blobs.open_partial(self._key(files[0]) + "-joined") as target:
                join(
                    [part.path for part in parts],
                    target,
                    lambda done, total: self.progress("joining the parts", done, total),
                )
                layer = self.blobs.commit(target)
            for part in parts:
                part.discard()
        return Layer(MODEL, layer.digest, layer.size)

    def _layer(self, file: RepositoryFile) -> Layer | None:
        return Layer(MODEL, f"sha256:{file.sha256}", file.size) if file.sha256 and file.size else None

    def _key(self, file: RepositoryFile) -> str:
        layer, name = self._layer(file), self.reference.local_name
        if layer:
            return self.blobs.path(layer.digest).name
        stem = re.sub(r"[^A-Za-z0-9_.-]", "-", file.path.rsplit("/", 1)[-1])
        return f"hf-{name.namespace}-{name.name}-{stem}"[:200]

    @contextlib.contextmanager
    def _fetched(self, file: RepositoryFile, key: str) -> Generator[Partial]:
        """A file, complete and checked, as a partial file."""
        what = f"fetching {file.path.rsplit('/', 1)[-1]}"
        url = _url(self.reference, file, self.revision, self.endpoint)
        layer = self._layer(file)

        def report(done: int, total: int) -> None:
            self.progress(what, done, total)

        def waiting() -> None:
            self.progress(f"waiting for another process that is {what}", 0, 0)

        with self.blobs.open_partial(key, waiting=waiting) as partial:
            try:
                if layer:
                    fetch_checked(url, partial, layer, self.transfer, report)
                else:  # nothing says what it should be: a broken GGUF is found when its header is read
                    self.transfer.download(url, partial, progress=report)
            except HTTPFailed as error:
                if error.status in (401, 403, 404):
                    partial.discard()
                    raise ModelNotFound(str(self.reference), f"Hugging Face does not give out {file.path}") from error
                raise
            if layer and partial.digest != layer.digest:
                partial.discard()
                raise DigestMismatch(
                    f"{file.path}: what arrived hashes to {partial.digest[:19]}, not {layer.digest[:19]}; "
                    "it was thrown away"
                )
            yield partial
