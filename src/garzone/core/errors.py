"""Every exception garzone raises on purpose, and what each means to the person who sees it.

Expected outcomes (a candidate that fails its check, an edit that does not apply) are values, not exceptions.

    GarzoneError                      message: what was wrong, with what, what to do; exit_code for the CLI
      UsageError                      exit 2: the request itself is wrong
        InvalidRequest                a field of an API request is wrong (HTTP 400)
          ContextOverflow             the prompt does not fit the model's context (HTTP 400)
        Unsupported                   a request that is right, but that this engine or model cannot do (HTTP 501)
        InvalidReference              a model reference that cannot be parsed
        RepositoryError               not a git repository, dirty tree, missing file
        CheckNotFound                 the check's command does not exist in the sandbox
        ContextTooSmall               a task's smallest prompt does not fit the model's context
      UnavailableError                exit 3: the environment lacks something
        ModelNotFound                 no such model in the store or the backend (HTTP 404)
        BackendUnavailable            the server that should generate does not answer (HTTP 502)
        SandboxUnavailable            no bubblewrap, or it cannot make its namespaces
        DeviceUnavailable             no such device, or no compiler for it
        Overloaded                    the queue is full (HTTP 503)
      ModelFileError                  exit 3: a model file that cannot be trusted or run
        GGUFError                     malformed GGUF: names the offset or the key
        UnsupportedModel              well-formed, but of an architecture or type that garzone cannot run
      StoreError                      exit 3: models on disk
        DigestMismatch                bytes do not hash to what they claim
        DownloadFailed                the network or the server broke; what arrived is kept
      GenerationFailed                exit 1: the engine broke off one request (HTTP 500)
        RunnerCrashed                 the model's process died under the request
        DeadlineExceeded              it took longer than the server lets a request take (HTTP 504)
      LedgerError                     exit 3: the ledger cannot be read or written
"""

from __future__ import annotations


class GarzoneError(Exception):
    """Root of all. `str(error)` is a sentence for a person; it says what to do where something can be done."""

    exit_code = 1


class UsageError(GarzoneError):
    """The request itself is wrong: no retry will help until it is changed."""

    exit_code = 2


class InvalidRequest(UsageError):
    """A field of an API request is missing, malformed or out of range."""


class ContextOverflow(InvalidRequest):
    """The prompt does not fit. The wording is recognised by Claude Code and OpenClaw (WIRE.md, P1.7)."""

    def __init__(self, prompt_tokens: int, max_tokens: int) -> None:
        super().__init__(f"prompt is too long: {prompt_tokens} tokens > {max_tokens} maximum context length")
        self.prompt_tokens = prompt_tokens
        self.max_tokens = max_tokens


class Unsupported(UsageError):
    """The request is well-formed, but this engine, model or device cannot do what it asks for."""


class InvalidReference(UsageError):
    """A model reference that cannot be parsed, or that tries to leave the store."""


class RepositoryError(UsageError):
    """The task's repository cannot be worked on: not git, dirty, or a named file is missing."""


class CheckNotFound(UsageError):
    """The check names a command that is not there: nothing it says could prove anything."""


class ContextTooSmall(UsageError):
    """Even the smallest prompt for a task, with room for the answer, does not fit the model's context."""

    def __init__(self, needed_tokens: int, context_tokens: int, model: str) -> None:
        super().__init__(
            "context too small: the smallest prompt for this task and room for its answer need "
            f"{needed_tokens} tokens, {model} has {context_tokens}; name a smaller file with --file, or use a model "
            "with a larger context"
        )
        self.needed_tokens = needed_tokens
        self.context_tokens = context_tokens


class UnavailableError(GarzoneError):
    """The environment lacks something: a model, a device, a sandbox, a server."""

    exit_code = 3


class ModelNotFound(UnavailableError):
    """No such model here. The wording of the first clause is Ollama's; clients match on it."""

    def __init__(self, name: str, hint: str = "") -> None:
        super().__init__(f"model '{name}' not found" + (f"; {hint}" if hint else ""))
        self.name = name


class BackendUnavailable(UnavailableError):
    """The server that should generate does not answer, or answers nonsense."""


class SandboxUnavailable(UnavailableError):
    """Nothing can be executed safely here."""


class DeviceUnavailable(UnavailableError):
    """The requested device is not there, or cannot be compiled for."""


class Overloaded(UnavailableError):
    """The queue of waiting requests is full; retry later."""


class ModelFileError(GarzoneError):
    """A model file that cannot be trusted or run."""

    exit_code = 3


class GGUFError(ModelFileError):
    """A malformed GGUF file. The message names the offset, key or tensor."""


class UnsupportedModel(ModelFileError):
    """A well-formed file of an architecture, tensor type or tokeniser that garzone cannot run."""


class StoreError(GarzoneError):
    """Models on disk could not be read or written."""

    exit_code = 3


class DigestMismatch(StoreError):
    """Bytes do not hash to what they claim."""


class DownloadFailed(StoreError):
    """The network or the server broke; what had arrived is kept for the next attempt."""


class GenerationFailed(GarzoneError):
    """The engine broke off one request; the next may work."""


class RunnerCrashed(GenerationFailed):
    """The model's process died while it served the request."""


class DeadlineExceeded(GenerationFailed):
    """The request took longer than the server lets one take."""


class LedgerError(GarzoneError):
    """The ledger cannot be read or written."""

    exit_code = 3
