"""The JSON document in a request's body: how long and how deep it may be, and what else it must be."""

from __future__ import annotations

import json
import re
from typing import Any, Final, cast

from starlette.requests import Request

from garzone.core.errors import InvalidRequest

MAX_DEPTH: Final = 128  # tools' schemas are a dozen deep; what walks a document by recursion can go further than this
_SURROGATE_ESCAPE = re.compile(rb"\\u[dD][89a-fA-F]")


class BodyTooLarge(InvalidRequest):
    """More bytes than `max_body_bytes` (HTTP 413)."""


async def read_json(request: Request, max_bytes: int) -> dict[str, Any]:
    """The object in the body, whatever its Content-Type says. Raises InvalidRequest."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_bytes:
            raise BodyTooLarge(f"the request is longer than {max_bytes} bytes")
    if not body.strip():
        raise InvalidRequest("missing request body")
    try:
        document = json.loads(body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"the request body is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise InvalidRequest("the request body must be a JSON object")
    _check_depth(cast("object", document))
    if _SURROGATE_ESCAPE.search(body):
        # Half an emoji, where a client cut a string: no tokeniser takes that. As Go's decoder does.
        whole = json.dumps(document, ensure_ascii=False).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        document = json.loads(whole)
    return cast("dict[str, Any]", document)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _check_depth(document: object) -> None:
    """Raise InvalidRequest for lists and objects nested more than MAX_DEPTH deep."""
    level = [document]
    for _ in range(MAX_DEPTH):
        inner: list[object] = []
        for container in level:
            if isinstance(container, dict):
                values = list(cast("dict[str, object]", container).values())
            else:
                values = cast("list[object]", container)
            inner += [value for value in values if isinstance(value, dict | list)]
        if not inner:
            return
        level = inner
    raise InvalidRequest(f"the request body is nested more than {MAX_DEPTH} deep")
