"""The protocols through which rooms meet. Each is implemented more than once; `wiring` decides which is used."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from garzone.core.generation import (
    Delta,
    Embeddings,
    GenerateRequest,
    LoadedModel,
    ModelDetails,
    Pooling,
    ServedBy,
)
from garzone.core.recipe import ModelRecipe, TensorSummary
from garzone.core.task import TaskSummary


class TextGenerator(Protocol):
    """Something that writes text: the embedded engine, a remote Ollama, Claude, a scripted fake."""

    def generate(self, request: GenerateRequest) -> AsyncGenerator[Delta]:
        """Stream the answer. The last Delta carries `finish_reason` and `usage`.

        Closing the generator (`aclose`, or cancelling the task that iterates it) stops the work at once.

        Raises:
            ModelNotFound, InvalidRequest, ContextOverflow, BackendUnavailable, GenerationFailed, Overloaded.
            Unsupported: the request asks for something this backend or model cannot do.
        """
        ...

    async def count_tokens(self, model: str, text: str) -> int:
        """Number of tokens of `text` in that model's vocabulary; estimated where the backend cannot tell."""
        ...

    async def details(self, model: str) -> ModelDetails:
        """What is known of a model; its `context_tokens` is what a request may use. Raises ModelNotFound."""
        ...

    async def served_by(self, model: str) -> ServedBy:
        """Who answers for that model name. Raises ModelNotFound."""
        ...

    async def aclose(self) -> None:
        """Release connections and processes."""
        ...


class Embedder(Protocol):
    """Something that turns texts into vectors."""

    async def embed(
        self,
        model: str,
        inputs: Sequence[str],
        *,
        pooling: Pooling | None = None,
        truncate: bool = True,
        dimensions: int | None = None,
        unit_length: bool = True,
        keep_alive_s: float | None = None,
    ) -> Embeddings:
        """One vector for each text.

        Args:
            model: as in a GenerateRequest.
            inputs: the texts; none of them empty.
            pooling: None for what the model's metadata says, MEAN where it says nothing.
            truncate: cut texts that are longer than the context; False makes them ContextOverflow.
            dimensions: keep so many leading numbers of each vector.
            unit_length: make each vector of length 1; False leaves it as the model made it.
            keep_alive_s: as in a GenerateRequest.

        Raises:
            ModelNotFound, InvalidRequest, ContextOverflow, BackendUnavailable, GenerationFailed, Overloaded.
            Unsupported: this backend or model cannot.
        """
        ...


class PromptCounter(Protocol):
    """Counts the tokens of a whole prompt: template, tools and all."""

    async def count_prompt(self, request: GenerateRequest) -> int:
        """Number of tokens the model would read for a request. Neither loads the model nor waits for it.

        Raises:
            ModelNotFound, InvalidRequest: as `generate` would.
        """
        ...


class LoadedModels(Protocol):
    """What is in memory, for `ps` and `stop`."""

    def loaded(self) -> Sequence[LoadedModel]:
        """Models in memory now, most recently used first. Never waits."""
        ...

    async def unload(self, model: str) -> bool:
        """Take a model out of memory. False if it was not there."""
        ...


class ModelStore(Protocol):
    """Models on disk. None of these calls waits for a model to load."""

    def list_models(self) -> Sequence[ModelDetails]:
        """All models, most recently modified first."""
        ...

    def find(self, reference: str) -> ModelDetails:
        """The model that `name:tag` or a path to a GGUF file names. Raises ModelNotFound, InvalidReference."""
        ...

    def remove(self, reference: str) -> None:
        """Forget a model and delete blobs nothing else uses. Raises ModelNotFound."""
        ...


class TaskHistory(Protocol):
    """Delegated tasks and what they saved, for who shows them. Both calls read a file, and may block."""

    def recent(self, limit: int) -> Sequence[TaskSummary]:
        """The latest tasks, the newest first. Raises LedgerError."""
        ...

    def savings(self) -> Mapping[str, Any]:
        """Totals, as `garzone savings --json` prints them. Raises LedgerError."""
        ...


class BlobUpload(Protocol):
    """A blob that somebody hands in. Exactly one of `commit` and `close` ends it."""

    def write(self, chunk: bytes) -> None:
        """Append bytes. Raises StoreError."""
        ...

    def commit(self) -> None:
        """Make it a blob. Raises DigestMismatch when it is not what its digest says; nothing of it is kept then."""
        ...

    def close(self) -> None:
        """Give it up."""
        ...


class ModelLibrary(ModelStore, Protocol):
    """A ModelStore that can be added to. Every call may block: on the network, the disk, or another process."""

    def pull(self, reference: str, progress: ProgressCallback | None = None) -> ModelDetails:
        """Fetch a model. What `progress` raises ends it, and what arrived is kept.

        Raises:
            ModelNotFound, InvalidReference, StoreError, ModelFileError.
        """
        ...

    def create(self, name: str, recipe: ModelRecipe, progress: ProgressCallback | None = None) -> ModelDetails:
        """Make a model out of another. Raises as `pull`, and UsageError for a recipe that cannot be followed."""
        ...

    def copy(self, source: str, destination: str) -> None:
        """Give a model a second name. Raises ModelNotFound, InvalidReference."""
        ...

    def tensors(self, reference: str) -> Sequence[TensorSummary]:
        """What the model's file holds. Raises as `find`."""
        ...

    def has_blob(self, digest: str) -> bool:
        """Whether that blob is here. Raises InvalidReference."""
        ...

    def open_upload(self, digest: str) -> BlobUpload:
        """Begin to write a blob. Raises InvalidReference, StoreError."""
        ...


ProgressCallback = Callable[[str, int, int], None]
"""Called as (what is being done, bytes done, bytes in all; 0 when unknown)."""


@dataclass(frozen=True, slots=True)
class SandboxLimits:
    """What a command in the sandbox may use; all are hard limits.

    `address_bytes` is address space, of which more is reserved than used; at least four times `memory_bytes`.
    """

    wall_s: float = 60.0
    cpu_s: int = 60
    memory_bytes: int = 4 << 30
    max_processes: int = 256
    file_bytes: int = 256 << 20
    output_bytes: int = 256 << 10
    address_bytes: int = 0


@dataclass(frozen=True, slots=True)
class SandboxView:
    """What a command sees besides the system and its directory.

    `appears_at` is the path under which the directory shows inside (None: its own); a sandbox that cannot move things
    ignores it. `start_in` is the subdirectory the command starts in. `read_only` are further host paths that can be
    read, at their own path; `pinned` are paths below the directory that cannot be written; `writable` are host
    directories that can. `scratch` are directories directly below one of `read_only`, whether there or not, that are
    empty and writable inside and gone afterwards; a sandbox that cannot hide things ignores them. `path_first` comes
    before the system's PATH, `path_last` after it. `environment` is added to an otherwise clean one.
    """

    appears_at: Path | None = None
    start_in: str = ""
    read_only: tuple[Path, ...] = ()
    pinned: tuple[str, ...] = ()
    writable: tuple[Path, ...] = ()
    scratch: tuple[Path, ...] = ()
    path_first: tuple[Path, ...] = ()
    path_last: tuple[Path, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True)
class SandboxResult:
    """How a command ended.

    `exit_code` is negative for a signal. `output` is stdout and stderr as they came; beyond `output_bytes` its middle
    is left out, and says so.
    """

    exit_code: int
    output: str
    duration_ms: float
    timed_out: bool = False
    output_truncated: bool = False


class Sandbox(Protocol):
    """Runs untrusted commands so that nothing but one directory can change, and nothing outlives them."""

    @property
    def isolated(self) -> bool:
        """False only for the sandbox a person asked for with `--unsandboxed`."""
        ...

    async def run(
        self, command: str, directory: Path, limits: SandboxLimits, view: SandboxView | None = None
    ) -> SandboxResult:
        """Run a shell command with `directory` as its working directory and its only writable place.

        The whole process group is killed when the command ends, times out or the task is cancelled.

        Raises:
            SandboxUnavailable: when it cannot be started safely.
        """
        ...
