"""Tool calls whose arguments came as pieces of JSON text, once they are whole. Does not collect the pieces."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

from garzone.core.chat import ToolCall
from garzone.core.errors import GenerationFailed


def parse_calls(base_url: str, pieces: Mapping[int, Sequence[str]]) -> tuple[ToolCall, ...]:
    """The calls in their order.

    Args:
        base_url: the server, for messages.
        pieces: by index: id, name and the JSON text of the arguments ("" for none).

    Raises:
        GenerationFailed: arguments that are no JSON object.
    """
    calls: list[ToolCall] = []
    for _, (call_id, name, arguments) in sorted(pieces.items()):
        try:
            parsed: object = json.loads(arguments or "{}")
        except (ValueError, RecursionError) as error:
            raise GenerationFailed(f"{base_url}: arguments of {name!r} that are not JSON: {error}") from error
        if not isinstance(parsed, dict):
            raise GenerationFailed(f"{base_url}: arguments of {name!r} that are not an object")
        calls.append(ToolCall(name, cast("dict[str, Any]", parsed), call_id))
    return tuple(calls)
