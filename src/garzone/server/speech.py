"""How each dialect's routes answer besides text: errors in its words, and the headers that name a request."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from starlette.responses import JSONResponse, Response

from garzone.core.errors import GarzoneError
from garzone.server.dialects import anthropic_stream, ollama, openai_common
from garzone.server.exchange import headers_of, status_of


@dataclass(frozen=True, slots=True)
class Speech:
    """A dialect's errors (of an error and the request's id), and the header its clients read the id from."""

    document: Callable[[GarzoneError, str], Mapping[str, Any]]
    id_header: str = "x-request-id"

    def error(self, error: GarzoneError, request_id: str, status: int | None = None) -> Response:
        """The response that says what went wrong."""
        headers = {self.id_header: request_id, **headers_of(error)}
        return JSONResponse(self.document(error, request_id), status or status_of(error), headers)


NATIVE = Speech(lambda error, _: ollama.error_document(str(error)))
OPENAI = Speech(lambda error, _: openai_common.error_document(error))
ANTHROPIC = Speech(anthropic_stream.error_document, "request-id")


def of_path(path: str) -> Speech:
    """The dialect of a route."""
    if path.startswith("/v1/messages"):
        return ANTHROPIC
    return OPENAI if path.startswith("/v1/") else NATIVE


def new_request_id() -> str:
    """An id that no other request has."""
    return f"req_{uuid.uuid4().hex[:24]}"
