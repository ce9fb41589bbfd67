"""What the server needs of a dialect: one exchange is one request for text and the answer to it.

Says nothing about HTTP methods, sockets or models; each dialect implements it in its own words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from garzone.core.errors import (
    BackendUnavailable,
    DeadlineExceeded,
    GarzoneError,
    ModelNotFound,
    Overloaded,
    UnavailableError,
    Unsupported,
    UsageError,
)
from garzone.core.generation import Delta, Embeddings, GenerateRequest, SamplingParams


class Exchange(Protocol):
    """A parsed request, and how its answer is spelled."""

    model: str
    stream: bool
    media_type: str  # of a streamed answer; a whole one is JSON in every dialect
    drops_thinking: bool  # whether a wish to think is dropped where the model cannot, instead of refused

    def to_request(self, defaults: SamplingParams) -> GenerateRequest:
        """The request, with the model's own sampling where it says nothing. Raises InvalidRequest."""
        ...

    def choices(self, request: GenerateRequest) -> Sequence[GenerateRequest]:
        """The requests to which that is what to answer: several, where several answers are wanted."""
        ...

    def begin(self) -> bytes:
        """What a streamed answer begins with, before there is any text."""
        ...

    def piece(self, delta: Delta) -> bytes:
        """One Delta of a streamed answer; the one with a finish reason ends it, once all choices have theirs."""
        ...

    def heartbeat(self) -> bytes:
        """Something that clients ignore, but that proves the connection alive."""
        ...

    def broken(self, error: GarzoneError) -> bytes:
        """The end of a streamed answer that broke off."""
        ...

    def whole(self, deltas: Sequence[Delta]) -> Mapping[str, Any]:
        """The answer in one document."""
        ...

    def error_document(self, error: GarzoneError) -> Mapping[str, Any]:
        """The body of an error that came before anything was sent."""
        ...


class EmbedExchange(Protocol):
    """A parsed request for embeddings, and how the answer is spelled. No inputs only load the model."""

    model: str
    inputs: list[str]
    truncate: bool
    dimensions: int | None
    unit_length: bool
    keep_alive_s: float | None

    def document(self, embeddings: Embeddings) -> Mapping[str, Any]:
        """The answer."""
        ...


def headers_of(error: GarzoneError) -> dict[str, str]:
    """What an error's headers tell programs that would try again by themselves."""
    if isinstance(error, Unsupported):
        return {"x-should-retry": "false"}  # the openai and anthropic packages repeat every other 5xx
    if isinstance(error, Overloaded):
        return {"retry-after": "1"}
    return {}


def status_of(error: GarzoneError) -> int:
    """The HTTP status that says the same in every dialect."""
    if isinstance(error, Unsupported):
        return 501
    if isinstance(error, DeadlineExceeded):
        return 504
    if isinstance(error, UsageError):
        return 400
    if isinstance(error, ModelNotFound):
        return 404
    if isinstance(error, Overloaded):
        return 503
    if isinstance(error, BackendUnavailable):
        return 502
    if isinstance(error, UnavailableError):
        return 503
    return 500
