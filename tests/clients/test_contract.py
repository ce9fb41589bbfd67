"""What every client promises, run against each of them and a real server of its kind."""

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.applications import Starlette

from garzone.clients import open_client, transport
from garzone.clients.anthropic import AnthropicClient
from garzone.clients.ollama import OllamaClient
from garzone.clients.openai import OpenAIClient
from garzone.core.chat import Message, Role, ToolCall, ToolSpec
from garzone.core.errors import (
    BackendUnavailable,
    ContextOverflow,
    GenerationFailed,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
)
from garzone.core.generation import Delta, FinishReason, GenerateRequest, SamplingParams
from garzone.core.ports import TextGenerator
from tests.clients.servers import CONTEXT, DIGEST, MODEL, Script, anthropic_app, ollama_app, openai_app, serving

CLIENTS: dict[str, Callable[..., TextGenerator]] = {"ollama": OllamaClient, "anthropic": AnthropicClient}


@dataclass
class Backend:
    """A server, its client and its script."""

    kind: str
    url: str
    script: Script
    make: Callable[..., TextGenerator]

    @property
    def path(self) -> str:
        return {"ollama": "/api/chat", "anthropic": "/v1/messages"}.get(self.kind, "/v1/chat/completions")


@pytest.fixture(params=["ollama", "openai", "llamacpp", "anthropic"], scope="module")
def server(request: pytest.FixtureRequest) -> Iterator[tuple[str, str, list[Script]]]:
    """Kind, URL and, in a list, the script that counts. One server for all tests: starting them is what takes long."""
    scripts = [Script()]
    with serving(_app(request.param, lambda: scripts[-1])) as url:
        yield request.param, url, scripts


@pytest.fixture
def backend(server: tuple[str, str, list[Script]]) -> Backend:
    kind, url, scripts = server
    scripts.append(Script())
    return Backend(kind, url, scripts[-1], CLIENTS.get(kind, OpenAIClient))


def _app(kind: str, current: Callable[[], Script]) -> Starlette:
    if kind == "anthropic":
        return anthropic_app(current)
    return ollama_app(current) if kind == "ollama" else openai_app(current, owned_by=kind)


def _chat(text: str = "hello", **fields: Any) -> GenerateRequest:
    return GenerateRequest(model=fields.pop("model", MODEL), messages=(Message.of(Role.USER, text),), **fields)


async def _all(client: TextGenerator, request: GenerateRequest) -> list[Delta]:
    async with contextlib.aclosing(client.generate(request)) as deltas:
        return [delta async for delta in deltas]


@contextlib.asynccontextmanager
async def _client(backend: Backend, **given: Any) -> AsyncGenerator[TextGenerator]:
    client = backend.make(backend.url, **given)
    try:
        yield client
    finally:
        await client.aclose()


async def test_an_answer_streams_and_only_its_last_delta_says_why_it_ended(backend: Backend) -> None:
    async with _client(backend) as client:
        deltas = await _all(client, _chat())
    assert "".join(delta.text for delta in deltas) == "Hello, wörld"
    assert [delta.finish_reason for delta in deltas] == [None] * (len(deltas) - 1) + [FinishReason.STOP]
    assert all(delta.usage is None for delta in deltas[:-1])
    usage = deltas[-1].usage
    assert usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (11, 7)
    assert usage.decode_ms > 0


async def test_pieces_arrive_while_the_rest_is_still_being_written(backend: Backend) -> None:
    backend.script.delay_s = 0.15
    async with _client(backend) as client:
        started = time.monotonic()
        arrived = [time.monotonic() - started async for delta in client.generate(_chat()) if delta.text]
    assert arrived[-1] - arrived[0] > 0.2


async def test_the_answer_says_when_it_was_cut_off(backend: Backend) -> None:
    backend.script.finish = "length"
    async with _client(backend) as client:
        assert (await _all(client, _chat()))[-1].finish_reason is FinishReason.LENGTH


async def test_thinking_is_kept_apart_from_the_answer(backend: Backend) -> None:
    backend.script.thinking = "Hm."
    async with _client(backend) as client:
        deltas = await _all(client, _chat())
    assert "".join(delta.thinking for delta in deltas) == "Hm."
    assert "".join(delta.text for delta in deltas) == "Hello, wörld"


async def test_a_tool_call_comes_back_parsed(backend: Backend) -> None:
    backend.script.tool_call = {"name": "look", "arguments": {"path": "a.py", "lines": [1, 2]}}
    backend.script.pieces = ()
    tool = ToolSpec("look", "Look at a file.", {"type": "object", "properties": {"path": {"type": "string"}}})
    async with _client(backend) as client:
        deltas = await _all(client, _chat(tools=(tool,)))
    calls = [call for delta in deltas for call in delta.tool_calls]
    assert [(call.name, call.arguments) for call in calls] == [("look", {"path": "a.py", "lines": [1, 2]})]
    assert deltas[-1].finish_reason is FinishReason.TOOL_CALLS
    sent = backend.script.bodies(backend.path)[0]["tools"][0]
    assert (sent if backend.kind == "anthropic" else sent["function"])["name"] == "look"


async def test_a_conversation_with_tools_is_sent_as_it_was(backend: Backend) -> None:
    messages = (
        Message.of(Role.SYSTEM, "Be brief."),
        Message.of(Role.USER, "look"),
        Message(Role.ASSISTANT, tool_calls=(ToolCall("look", {"path": "ä"}, "call_1"),)),
        Message(Role.TOOL, Message.of(Role.TOOL, "found").content, tool_call_id="call_1", tool_name="look"),
    )
    async with _client(backend) as client:
        await _all(client, GenerateRequest(model=MODEL, messages=messages))
    sent = backend.script.bodies(backend.path)[0]["messages"]
    if backend.kind == "anthropic":
        assert backend.script.bodies(backend.path)[0]["system"] == "Be brief."
        assert [message["role"] for message in sent] == ["user", "assistant", "user"]
        assert sent[1]["content"] == [{"type": "tool_use", "id": "call_1", "name": "look", "input": {"path": "ä"}}]
        assert sent[2]["content"][0]["tool_use_id"] == "call_1"
        assert sent[2]["content"][0]["content"] == [{"type": "text", "text": "found"}]
        return
    assert [message["role"] for message in sent] == ["system", "user", "assistant", "tool"]
    arguments = sent[2]["tool_calls"][0]["function"]["arguments"]
    assert (arguments if backend.kind == "ollama" else json.loads(arguments)) == {"path": "ä"}
    assert sent[3]["tool_call_id"] == "call_1"


async def test_sampling_and_schema_are_sent(backend: Backend) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    sampling = SamplingParams(temperature=0.1, top_p=0.5, seed=7, max_tokens=99, stop=("\n\n",))
    if backend.kind == "anthropic":  # has neither seeds nor schemas, and says so of what changes the answer
        async with _client(backend) as client:
            await _all(client, _chat(sampling=sampling))
            with pytest.raises(InvalidRequest, match="schema"):
                await _all(client, _chat(output_schema=schema))
        [body] = backend.script.bodies(backend.path)
        assert (body["temperature"], body["max_tokens"], body["stop_sequences"]) == (0.1, 99, ["\n\n"])
        assert not {"seed", "top_p", "top_k"} & set(body)
        return
    async with _client(backend) as client:
        await _all(client, _chat(sampling=sampling, output_schema=schema))
    body = backend.script.bodies(backend.path)[0]
    where = body["options"] if backend.kind == "ollama" else body
    assert (where["temperature"], where["top_p"], where["seed"], where["stop"]) == (0.1, 0.5, 7, ["\n\n"])
    assert where["num_predict" if backend.kind == "ollama" else "max_tokens"] == 99
    assert ("top_k" in where) == (backend.kind != "openai"), "strict servers refuse what the protocol does not have"
    sent = body["format"] if backend.kind == "ollama" else body["response_format"]["json_schema"]["schema"]
    assert sent == schema


async def test_closing_the_answer_closes_the_socket_at_once(backend: Backend) -> None:
    backend.script.endless, backend.script.delay_s = True, 0.01
    async with _client(backend) as client:
        async with contextlib.aclosing(client.generate(_chat())) as deltas:
            assert (await anext(deltas)).text
        assert await asyncio.to_thread(backend.script.hung_up.wait, 3), "the server goes on generating"


async def test_cancelling_while_the_prompt_is_read_closes_the_socket_at_once(backend: Backend) -> None:
    backend.script.endless, backend.script.delay_s = True, 0.5
    async with _client(backend) as client:
        task = asyncio.create_task(_all(client, _chat()))
        assert await asyncio.to_thread(backend.script.asked.wait, 5)
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(backend.script.hung_up.wait, 3)


async def test_an_unknown_model_is_named_and_replaced_by_no_other(backend: Backend) -> None:
    if backend.kind == "llamacpp":
        pytest.skip("llama-server has one model and ignores the name; served_by says which")
    async with _client(backend) as client:
        with pytest.raises(ModelNotFound, match=r"model 'other:7b' not found"):
            await _all(client, _chat(model="other:7b"))
        with pytest.raises(ModelNotFound, match=r"other:7b"):
            await client.details("other:7b")
        with pytest.raises(ModelNotFound, match=r"other:7b"):
            await client.served_by("other:7b")
    assert {body.get("model") for _, body in backend.script.requests if body} == {"other:7b"}


async def test_the_server_says_who_really_answers(backend: Backend) -> None:
    async with _client(backend) as client:
        served = await client.served_by(MODEL)
        details = await client.details(MODEL)
    assert served.model == MODEL
    assert served.backend == backend.kind
    assert served.digest == (f"sha256:{DIGEST}" if backend.kind == "ollama" else "")
    assert details.context_tokens == CONTEXT


@pytest.mark.parametrize("status", [429, 503, 529])
async def test_a_busy_server_is_asked_again_before_anything_arrived(backend: Backend, status: int) -> None:
    backend.script.failures = [(status, b'{"error": "busy"}')] * 2
    async with _client(backend) as client:
        assert (await _all(client, _chat()))[-1].finish_reason is FinishReason.STOP
    assert len(backend.script.bodies(backend.path)) == 3


async def test_a_server_that_stays_busy_is_overloaded(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "MAX_WAIT_S", 0.01)
    backend.script.failures = [(503, b'{"error": "loading model"}')] * 20
    async with _client(backend) as client:
        with pytest.raises(Overloaded, match="loading model"):
            await _all(client, _chat())
    assert len(backend.script.bodies(backend.path)) == 5


@pytest.mark.parametrize(
    ("status", "body", "expected", "said"),
    [
        (500, b'{"error": "CUDA error"}', GenerationFailed, "CUDA error"),
        (500, b"<html>oops</html>", GenerationFailed, "oops"),
        (502, b"<html>bad gateway</html>", BackendUnavailable, "502"),
        (400, b'{"error": {"message": "bad temperature"}}', InvalidRequest, "bad temperature"),
        (401, b'{"error": {"message": "no key"}}', BackendUnavailable, "API key"),
        (404, b"404 page not found", BackendUnavailable, "right address"),
    ],
)
async def test_failures_are_told_apart_and_not_repeated(
    backend: Backend, status: int, body: bytes, expected: type[Exception], said: str
) -> None:
    backend.script.failures = [(status, body)]
    async with _client(backend) as client:
        with pytest.raises(expected, match=said):
            await _all(client, _chat())
    assert len(backend.script.bodies(backend.path)) == 1


@pytest.mark.parametrize(
    ("status", "message", "prompt", "context"),
    [
        (400, {"error": "prompt is too long: 9000 tokens > 4096 maximum context length"}, 9000, 4096),
        (
            400,
            {
                "error": {
                    "message": "This model's maximum context length is 4096 tokens. However, you requested 9000 tokens",
                    "code": "context_length_exceeded",
                }
            },
            9000,
            4096,
        ),
        (
            400,
            {
                "error": {
                    "message": "the request exceeds the available context size, try increasing it",
                    "type": "exceed_context_size_error",
                    "n_prompt_tokens": 9000,
                    "n_ctx": 4096,
                }
            },
            9000,
            4096,
        ),
        (500, {"error": "the input length exceeds the context length"}, None, None),
    ],
)
async def test_a_prompt_that_does_not_fit_is_recognised(
    backend: Backend, status: int, message: dict[str, Any], prompt: int | None, context: int | None
) -> None:
    backend.script.failures = [(status, json.dumps(message).encode())]
    async with _client(backend) as client:
        with pytest.raises(ContextOverflow) as caught:
            await _all(client, _chat("x" * 30_000, truncate=False))
    assert caught.value.prompt_tokens > caught.value.max_tokens
    if prompt is not None:
        assert (caught.value.prompt_tokens, caught.value.max_tokens) == (prompt, context)


async def test_a_connection_that_breaks_amid_an_answer_is_a_failure_and_not_repeated(backend: Backend) -> None:
    backend.script.break_after = 2
    got: list[str] = []
    async with _client(backend) as client:
        with pytest.raises(GenerationFailed, match="amid an answer"):
            async for delta in client.generate(_chat()):
                got.append(delta.text)  # noqa: PERF401 - what came before the failure counts
    assert got == ["Hel", "lo, "]
    assert len(backend.script.bodies(backend.path)) == 1


async def test_an_error_amid_an_answer_is_a_failure(backend: Backend) -> None:
    backend.script.error_after = 1
    async with _client(backend) as client:
        with pytest.raises(GenerationFailed, match="out of memory"):
            await _all(client, _chat())


async def test_an_answer_that_just_ends_is_a_failure(backend: Backend) -> None:
    backend.script.stop_short = True
    async with _client(backend) as client:
        with pytest.raises(GenerationFailed, match="ended without"):
            await _all(client, _chat())


async def test_nonsense_amid_an_answer_is_named(backend: Backend) -> None:
    backend.script.garbage_after = 1
    async with _client(backend) as client:
        with pytest.raises(BackendUnavailable, match="nonsense"):
            await _all(client, _chat())


async def test_a_silent_server_is_given_up(backend: Backend) -> None:
    backend.script.delay_s = 5
    async with _client(backend, timeout_s=0.3) as client:
        with pytest.raises((GenerationFailed, BackendUnavailable), match=r"silent|no answer"):
            await _all(client, _chat())


async def test_nobody_there_is_said_with_the_address(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "MAX_WAIT_S", 0.01)
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    client = backend.make(f"http://user:secret@127.0.0.1:{port}")
    try:
        with pytest.raises(
            BackendUnavailable, match=rf"cannot reach http://127\.0\.0\.1:{port}: is it running"
        ) as caught:
            await _all(client, _chat())
    finally:
        await client.aclose()
    assert "secret" not in str(caught.value)


async def test_a_server_that_is_just_starting_is_waited_for(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "MAX_WAIT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    app = _app(backend.kind, lambda: backend.script)
    client = backend.make(f"http://127.0.0.1:{port}")
    answer = asyncio.create_task(_all(client, _chat()))
    await asyncio.sleep(0.3)
    with serving(app, port=port):
        assert (await answer)[-1].finish_reason is FinishReason.STOP
        await client.aclose()


async def test_tokens_are_counted_or_guessed_high(backend: Backend) -> None:
    text = "def add(a, b): return a + b " * 10
    async with _client(backend) as client:
        count = await client.count_tokens(MODEL, text)
        assert await client.count_tokens(MODEL, text) == count
    assert count == (len(text.split()) if backend.kind == "llamacpp" else -(-len(text) // 3))


async def test_several_answers_at_once_do_not_mix(backend: Backend) -> None:
    backend.script.delay_s = 0.02
    async with _client(backend) as client:
        answers = await asyncio.gather(*(_all(client, _chat(str(index))) for index in range(5)))
    assert {"".join(delta.text for delta in deltas) for deltas in answers} == {"Hello, wörld"}


async def test_a_prompt_without_messages_is_completed(backend: Backend) -> None:
    request = GenerateRequest(model=MODEL, prompt="def f(", suffix="return 1", raw=True)
    if backend.kind == "anthropic":
        async with _client(backend) as client:
            with pytest.raises(InvalidRequest, match="raw"):
                await _all(client, request)
        return
    async with _client(backend) as client:
        deltas = await _all(client, request)
    assert "".join(delta.text for delta in deltas) == "Hello, wörld"
    path = "/api/generate" if backend.kind == "ollama" else "/v1/completions"
    body = backend.script.bodies(path)[0]
    assert (body["prompt"], body["suffix"]) == ("def f(", "return 1")


async def test_the_kind_of_server_is_found_out_by_asking(backend: Backend) -> None:
    for url in (backend.url, backend.url + "/v1", backend.url + "/"):
        client = await open_client(url)
        assert type(client) is CLIENTS.get(backend.kind, OpenAIClient)
        assert (await _all(client, _chat()))[-1].finish_reason is FinishReason.STOP
        await client.aclose()


async def test_a_model_that_answers_under_another_name_is_named(backend: Backend) -> None:
    if backend.kind != "anthropic":
        pytest.skip("only Anthropic resolves a name like `claude-x` to a dated model, and says which")
    backend.script.answers_as = f"{MODEL}-20260101"
    async with _client(backend) as client:
        deltas = await _all(client, _chat())
        assert (await client.served_by(MODEL)).model == f"{MODEL}-20260101"
    usage = deltas[-1].usage
    assert usage
    assert usage.cached_tokens == 4


async def test_how_long_a_busy_server_asks_to_wait_is_honoured(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    clock = SimpleNamespace(sleep=lambda seconds: waits.append(seconds) or asyncio.sleep(0))
    monkeypatch.setattr(transport, "asyncio", clock)
    soon = format_datetime(datetime.now(tz=UTC) + timedelta(seconds=9), usegmt=True)
    for asked, least, most in (("7", 7, 7), ("2.5", 2.5, 2.5), (soon, 7, 9), ("86400", 20, 20), ("soon", 0.25, 0.25)):
        backend.script.retry_after = asked
        backend.script.failures = [(529, b'{"error": {"message": "busy"}}')]
        async with _client(backend) as client:
            await _all(client, _chat())
        assert least <= waits[-1] <= most, (asked, waits)
