"""Finds out what speaks at an address: Ollama's protocol, OpenAI's or Anthropic's.

Asks only what costs the server nothing; loads no model.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from garzone.clients.anthropic import VERSION, AnthropicClient
from garzone.clients.ollama import OllamaClient
from garzone.clients.openai import OpenAIClient
from garzone.clients.transport import Transport, Unreachable, without_v1
from garzone.core.errors import BackendUnavailable, GarzoneError
from garzone.core.ports import TextGenerator

_ASK_TIMEOUT_S = 10.0


async def open_client(url: str, *, api_key: str = "", timeout_s: float = 600.0) -> TextGenerator:
    """A client for whatever answers at `url`.

    A server that speaks several is taken as Ollama, because only that protocol sets the context. Anthropic's own host
    is known by its name; others that speak its protocol only are asked as it wants to be asked, with a version.

    Args:
        url: `http://host:port`, with or without `/v1`.
        api_key: sent as a bearer token (to Anthropic as `x-api-key`), if given.
        timeout_s: how long an answer may be silent.

    Raises:
        BackendUnavailable: nothing answers there, or nothing that speaks a known protocol.
        InvalidRequest: not an http or https URL.
    """
    root = without_v1(url)
    if (urlsplit(root).hostname or "").endswith("anthropic.com"):
        return AnthropicClient(root, api_key=api_key, timeout_s=timeout_s)
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    transport = Transport(root, timeout_s=_ASK_TIMEOUT_S, headers=headers)
    versed = Transport(root, timeout_s=_ASK_TIMEOUT_S, headers={"anthropic-version": VERSION, "x-api-key": api_key})
    try:
        if await _answers(transport, "/api/version", "version") and await _answers(transport, "/api/tags", "models"):
            return OllamaClient(root, api_key=api_key, timeout_s=timeout_s)
        if await _answers(transport, "/v1/models", "data"):
            return OpenAIClient(root, api_key=api_key, timeout_s=timeout_s)
        if await _answers(versed, "/v1/models", "has_more"):
            return AnthropicClient(root, api_key=api_key, timeout_s=timeout_s)
    finally:
        await transport.aclose()
        await versed.aclose()
    raise BackendUnavailable(
        f"{transport.base_url}: something answers, but not as Ollama (/api/version), OpenAI or Anthropic (/v1/models)"
    )


async def _answers(transport: Transport, path: str, key: str) -> bool:
    """True if that path gives a JSON object with that key. An unreachable server is not False but an exception."""
    try:
        return key in await transport.get_json(path)
    except Unreachable:
        raise
    except GarzoneError:
        return False
