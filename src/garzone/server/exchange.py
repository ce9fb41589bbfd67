"""What the server needs of a dialect: one exchange is one request for text and the answer to it.

Says nothing about HTTP methods, sockets or models; each dialect implements it in its own words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from garzone.core.errors import (
    BackendUnavailable,
    GarzoneError,
    ModelNotFound,
    Overloaded,
    UnavailableError,
    Unsupported,
    UsageError,
)
from garzone.core.generation import Delta, GenerateRequest, SamplingParams


class Exchange(Protocol):
    """A parsed request, and how its answer is spelled."""

    model: str
    stream: bool
    media_type: str  # of a streamed answer; a whole one is JSON in every dialect

    def to_request(self, defaults: SamplingParams) -> GenerateRequest:
        """The request, with the model's own sampling where it says nothing. Raises InvalidRequest."""
        ...

    def begin(self) -> bytes:
        """What a streamed answer begins with, before there is any text."""
        ...

    def piece(self, delta: Delta) -> bytes:
        """One Delta of a streamed answer; the one with a finish reason ends it."""
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


def status_of(error: GarzoneError) -> int:
    """The HTTP status that says the same in every dialect."""
    if isinstance(error, Unsupported):
        return 501
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
