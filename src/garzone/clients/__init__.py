"""Other programs that generate text, as TextGenerators: by Ollama's protocol, by OpenAI's, by Anthropic's.

`open_client` asks a server what it is. Nothing here ever falls back to another model or server than the one asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from garzone.core.ports import TextGenerator

__all__ = ["open_client"]


async def open_client(url: str, *, api_key: str = "", timeout_s: float = 600.0) -> TextGenerator:
    """A client for whatever answers at `url`. See `garzone.clients.detect.open_client`.

    Raises:
        BackendUnavailable: nothing answers there, or nothing that speaks a known protocol.
        InvalidRequest: not an http or https URL.
    """
    from garzone.clients import detect  # noqa: PLC0415 - an HTTP client is slow to import, and often not needed

    return await detect.open_client(url, api_key=api_key, timeout_s=timeout_s)
