"""Asks a server how many tokens a text has, and estimates once it has said that it cannot tell. Knows no protocol."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from garzone.clients.transport import Asked, Transport, Unreachable, estimate_tokens
from garzone.core.errors import GarzoneError, ModelNotFound


class TokenCounter:
    """One server's. After the first answer that is no number, and none because of the model, only estimates."""

    def __init__(
        self, transport: Transport, path: str, read: Callable[[Mapping[str, Any]], int | None], *, timeout_s: float
    ) -> None:
        """Ask at `path`; `read` finds the number in an answer, None where there is none."""
        self._transport, self._path, self._read, self._timeout_s = transport, path, read, timeout_s
        self._can_tell = True

    async def count(self, model: str, text: str, body: Mapping[str, Any]) -> int:
        """Tokens of `text`, by sending `body`.

        Raises:
            ModelNotFound, Unreachable: as the names say.
        """
        if self._can_tell:
            try:
                answer = await self._transport.post_json(self._path, body, Asked(model), timeout_s=self._timeout_s)
            except (Unreachable, ModelNotFound):
                raise
            except GarzoneError:
                self._can_tell = False
            else:
                count = self._read(answer)
                if count is not None:
                    return count
                self._can_tell = False
        return estimate_tokens(text)


def as_one_message(model: str, text: str) -> dict[str, Any]:
    """The body for Anthropic's `/v1/messages/count_tokens`, which garzone's own server has, too."""
    return {"model": model, "messages": [{"role": "user", "content": text}]}


def input_tokens(answer: Mapping[str, Any]) -> int | None:
    """The number in the answer to that."""
    count = answer.get("input_tokens")
    return count if isinstance(count, int) else None
