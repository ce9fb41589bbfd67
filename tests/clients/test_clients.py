"""What only one of the clients does, and how servers are told apart."""

import contextlib
import socket
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from garzone.clients import open_client, transport
from garzone.clients.ollama import OllamaClient
from garzone.clients.openai import OpenAIClient
from garzone.core.chat import ImagePart, Message, Role, TextPart
from garzone.core.errors import BackendUnavailable, InvalidRequest
from garzone.core.generation import GenerateRequest
from tests.clients.servers import CONTEXT, MODEL, Script, ollama_app, openai_app, serving


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def ollama(script: Script) -> Iterator[str]:
    with serving(ollama_app(lambda: script)) as url:
        yield url


def _request(**fields: object) -> GenerateRequest:
    return GenerateRequest(model=MODEL, messages=(Message.of(Role.USER, "hi"),), **fields)  # type: ignore[arg-type]


async def _run(client: OllamaClient | OpenAIClient, request: GenerateRequest) -> None:
    with contextlib.suppress(StopAsyncIteration):
        async for _ in client.generate(request):
            pass


@pytest.mark.parametrize(
    ("asked", "default", "sent"), [(None, 8192, CONTEXT), (None, 2000, 2000), (16384, 8192, 16384), (512, 8192, 512)]
)
async def test_the_context_is_always_sent_to_ollama(
    ollama: str, script: Script, asked: int | None, default: int, sent: int
) -> None:
    client = OllamaClient(ollama, num_ctx=default)
    await _run(client, _request(num_ctx=asked))
    await client.aclose()
    assert script.bodies("/api/chat")[0]["options"]["num_ctx"] == sent


async def test_a_prompt_that_must_not_be_cut_is_sent_with_that_wish(ollama: str, script: Script) -> None:
    client = OllamaClient(ollama)
    await _run(client, _request(truncate=False, think=False, keep_alive_s=-1.0, output_schema={}))
    await client.aclose()
    body = script.bodies("/api/chat")[0]
    assert (body["truncate"], body["shift"], body["think"], body["keep_alive"], body["format"]) == (
        False,
        False,
        False,
        -1.0,
        "json",
    )


async def test_images_are_sent_the_way_each_protocol_has_them(ollama: str, script: Script) -> None:
    picture = Message(Role.USER, (TextPart("what is it?"), ImagePart(b"\x89PNG", "image/png")))
    client = OllamaClient(ollama)
    await _run(client, GenerateRequest(model=MODEL, messages=(picture,)))
    await client.aclose()
    assert script.bodies("/api/chat")[0]["messages"][0]["images"] == ["iVBORw=="]
    with serving(openai_app(lambda: script)) as url:
        other = OpenAIClient(url)
        await _run(other, GenerateRequest(model=MODEL, messages=(picture,)))
        await other.aclose()
    parts = script.bodies("/v1/chat/completions")[0]["messages"][0]["content"]
    assert parts[1]["image_url"]["url"] == "data:image/png;base64,iVBORw=="


async def test_the_api_key_is_sent_and_only_where_given(script: Script) -> None:
    seen: list[str] = []

    async def models(request: Request) -> PlainTextResponse:
        seen.append(request.headers.get("authorization", ""))
        return PlainTextResponse('{"data": [{"id": "m"}]}')

    with serving(Starlette(routes=[Route("/v1/models", models)])) as url:
        for key in ("", "k3y"):
            client = await open_client(url, api_key=key)
            assert (await client.served_by("")).model == "m"
            await client.aclose()
    assert seen == ["", "", "Bearer k3y", "Bearer k3y"]


async def test_something_else_at_the_address_is_said(script: Script) -> None:
    async def page(request: Request) -> PlainTextResponse:
        return PlainTextResponse("<html>my homepage</html>")

    app = Starlette(routes=[Route("/{path:path}", page)])
    with serving(app) as url, pytest.raises(BackendUnavailable, match="something answers"):
        await open_client(url)


async def test_nobody_at_the_address_is_said() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(BackendUnavailable, match="is it running"):
        await open_client(f"http://127.0.0.1:{port}")


async def test_a_server_that_was_there_is_waited_for_longer_than_one_that_never_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    with serving(ollama_app(Script)) as url:
        client = OllamaClient(url)
        await client.details(MODEL)
    monkeypatch.setattr(transport, "asyncio", SimpleNamespace(sleep=sleep))
    with pytest.raises(BackendUnavailable, match="is it running"):
        await client.details("another")
    assert waits == [0.25, 0.5, 1.0, 2.0]
    waits.clear()
    with pytest.raises(BackendUnavailable, match="is it running"):
        await open_client(url)
    assert waits == [0.25, 0.5]


@pytest.mark.parametrize("url", ["localhost:11434", "ftp://x", "http://", "", "http://[::1", "http://x:99999999"])
async def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(InvalidRequest, match="not the address"):
        await open_client(url)


async def test_ollama_must_be_told_which_model(ollama: str) -> None:
    client = OllamaClient(ollama)
    with pytest.raises(InvalidRequest, match="--model"):
        await _run(client, GenerateRequest(model="", prompt="x"))
    await client.aclose()
