"""Small real servers for the clients' tests: they speak Ollama's, OpenAI's and Anthropic's protocol, and can misbehave.

What they answer is in `Script`; what they were asked, and whether somebody hung up on them, is recorded there.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

MODEL = "tiny:1b"
DIGEST = "ab" * 32
CONTEXT = 4096


@dataclass
class Script:
    """What the server does with the next requests."""

    pieces: tuple[str, ...] = ("Hel", "lo, ", "wörld")
    thinking: str = ""
    tool_call: dict[str, Any] | None = None
    finish: str = "stop"
    answers_as: str = ""  # the model that an answer says it is from; "" for the one that was asked
    delay_s: float = 0.0  # before every piece
    endless: bool = False
    break_after: int | None = None  # pieces, then the connection is cut
    error_after: int | None = None  # pieces, then an error amid the stream
    garbage_after: int | None = None  # pieces, then something that is not JSON
    stop_short: bool = False  # ends without its last line
    failures: list[tuple[int, bytes]] = field(default_factory=list[tuple[int, bytes]])  # answered first, in order
    retry_after: str = "0"  # what goes with a failure
    requests: list[tuple[str, dict[str, Any]]] = field(default_factory=list[tuple[str, dict[str, Any]]])
    hung_up: threading.Event = field(default_factory=threading.Event)
    asked: threading.Event = field(default_factory=threading.Event)  # for an answer

    def bodies(self, path: str) -> list[dict[str, Any]]:
        return [body for each, body in self.requests if each == path]


@contextlib.contextmanager
def serving(app: Starlette, *, port: int = 0) -> Iterator[str]:
    """Run an app in a thread; yields its URL."""
    listener = socket.create_server(("127.0.0.1", port))
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.005)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()


async def _pieces(script: Script) -> AsyncGenerator[str]:
    """The script's pieces, with its mishaps; raising amid a stream makes uvicorn cut the connection."""
    count = 0
    script.asked.set()
    try:
        while True:
            for piece in script.pieces:
                if script.break_after == count:
                    raise ConnectionResetError("as the script says")
                await asyncio.sleep(script.delay_s)
                yield piece
                count += 1
            if not script.endless:
                return
    except (asyncio.CancelledError, GeneratorExit):
        script.hung_up.set()
        raise


async def _asked(request: Request, script: Script) -> tuple[dict[str, Any], Response | None]:
    body: dict[str, Any] = await request.json() if request.method == "POST" else {}
    script.requests.append((request.url.path, body))
    if script.failures and request.method == "POST" and not request.url.path.endswith("show"):
        status, said = script.failures.pop(0)
        kind = "application/json" if said.startswith(b"{") else "text/html"
        return body, Response(said, status, {"Retry-After": script.retry_after}, media_type=kind)
    return body, None


def ollama_app(current: Callable[[], Script]) -> Starlette:
    """As Ollama 0.13 answers; `current` gives the script for each request."""

    async def chat(request: Request) -> Response:
        script = current()
        body, failure = await _asked(request, script)
        if failure:
            return failure
        if body["model"] != MODEL:
            return JSONResponse({"error": f"model '{body['model']}' not found"}, 404)
        is_chat = request.url.path == "/api/chat"

        def line(text: str, **fields: Any) -> bytes:
            said = (
                {"message": {"role": "assistant", "content": text, **fields}}
                if is_chat
                else {"response": text, **fields}
            )
            return json.dumps({"model": MODEL, "created_at": "x", **said, "done": False}).encode() + b"\n"

        async def stream() -> AsyncGenerator[bytes]:
            count = 0
            if script.thinking:
                yield line("", thinking=script.thinking)
            async with contextlib.aclosing(_pieces(script)) as pieces:
                async for piece in pieces:
                    if script.error_after == count:
                        yield b'{"error":"out of memory"}\n'
                        return
                    if script.garbage_after == count:
                        yield b"<html>what is this</html>\n"
                        return
                    yield line(piece)
                    count += 1
            if script.tool_call:
                yield line("", tool_calls=[{"function": script.tool_call}])
            if not script.stop_short:
                final = {"model": MODEL, "done": True, "done_reason": script.finish, "prompt_eval_count": 11}
                final |= {"eval_count": 7, "eval_duration": 2_000_000, "prompt_eval_duration": 1_000_000}
                final |= {"load_duration": 3_000_000, "context": [1, 2, 3]}
                final |= {"message": {"role": "assistant", "content": ""}} if is_chat else {"response": ""}
                yield json.dumps(final).encode() + b"\n"

        return StreamingResponse(stream(), media_type="application/x-ndjson")

    async def show(request: Request) -> Response:
        script = current()
        body, _ = await _asked(request, script)
        if body["model"].removesuffix(":latest") != MODEL:
            return JSONResponse({"error": f"model '{body['model']}' not found"}, 404)
        return JSONResponse(
            {
                "template": "{{ .Prompt }}",
                "details": {"family": "llama", "parameter_size": "110K", "quantization_level": "Q4_0"},
                "model_info": {"general.architecture": "llama", "llama.context_length": CONTEXT},
                "capabilities": ["completion", "tools"],
            }
        )

    async def tags(request: Request) -> Response:
        script = current()
        await _asked(request, script)
        return JSONResponse({"models": [{"name": MODEL, "model": MODEL, "digest": DIGEST, "size": 1234}]})

    async def version(request: Request) -> Response:
        return JSONResponse({"version": "0.13.5"})

    return Starlette(
        routes=[
            Route("/api/chat", chat, methods=["POST"]),
            Route("/api/generate", chat, methods=["POST"]),
            Route("/api/show", show, methods=["POST"]),
            Route("/api/tags", tags),
            Route("/api/version", version),
        ]
    )


def openai_app(current: Callable[[], Script], *, owned_by: str = "openai") -> Starlette:
    """As OpenAI-compatible servers answer; with owned_by "llamacpp", as llama-server does."""

    async def complete(request: Request) -> Response:
        script = current()
        body, failure = await _asked(request, script)
        if failure:
            return failure
        if body["model"] != MODEL and owned_by != "llamacpp":
            error = {"message": f"The model `{body['model']}` does not exist.", "type": "NotFoundError", "code": 404}
            return JSONResponse({"error": error}, 404)
        is_chat = request.url.path.endswith("chat/completions")

        def event(delta: dict[str, Any], finish: str | None = None) -> bytes:
            choice = {"index": 0, "finish_reason": finish}
            choice |= {"delta": delta} if is_chat else {"text": delta.get("content", "")}
            return b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"

        async def stream() -> AsyncGenerator[bytes]:
            count = 0
            yield b": a comment\n\n" + event({"role": "assistant", "content": ""})
            if script.thinking:
                yield event({"reasoning_content": script.thinking})
            async with contextlib.aclosing(_pieces(script)) as pieces:
                async for piece in pieces:
                    if script.error_after == count:
                        yield b'data: {"error": {"message": "out of memory", "code": 500}}\n\n'
                        return
                    if script.garbage_after == count:
                        yield b"<html>what is this</html>\n"
                        return
                    yield event({"content": piece})
                    count += 1
            if script.stop_short:
                return
            if script.tool_call:
                text = json.dumps(script.tool_call["arguments"])
                first = {"name": script.tool_call["name"], "arguments": text[:4]}
                yield event({"tool_calls": [{"index": 0, "id": "call_1", "type": "function", "function": first}]})
                yield event({"tool_calls": [{"index": 0, "function": {"arguments": text[4:]}}]})
            yield event({}, "tool_calls" if script.tool_call else script.finish)
            usage = {"prompt_tokens": 11, "completion_tokens": 7, "prompt_tokens_details": {"cached_tokens": 4}}
            yield b"data: " + json.dumps({"choices": [], "usage": usage}).encode() + b"\n\ndata: [DONE]\n\n"

        return StreamingResponse(stream(), media_type="text/event-stream")

    async def models(request: Request) -> Response:
        script = current()
        await _asked(request, script)
        entry: dict[str, Any] = {"id": MODEL, "object": "model", "owned_by": owned_by}
        if owned_by != "llamacpp":
            entry["max_model_len"] = CONTEXT
        return JSONResponse({"object": "list", "data": [entry]})

    async def props(request: Request) -> Response:
        return JSONResponse({"default_generation_settings": {"n_ctx": CONTEXT}})

    async def tokenize(request: Request) -> Response:
        script = current()
        body, _ = await _asked(request, script)
        return JSONResponse({"tokens": list(range(len(body["content"].split())))})

    async def missing(request: Request) -> Response:
        return PlainTextResponse("404 page not found", 404)

    local = owned_by == "llamacpp"
    return Starlette(
        routes=[
            Route("/v1/chat/completions", complete, methods=["POST"]),
            Route("/v1/completions", complete, methods=["POST"]),
            Route("/v1/models", models),
            Route("/props", props if local else missing),
            Route("/tokenize", tokenize if local else missing, methods=["POST"]),
        ]
    )


def anthropic_app(current: Callable[[], Script]) -> Starlette:
    """As Anthropic's API answers; without its version header it refuses, and so does this."""

    def refused(status: int, kind: str, message: str) -> Response:
        return JSONResponse({"type": "error", "error": {"type": kind, "message": message}}, status)

    async def messages(request: Request) -> Response:
        script = current()
        body, failure = await _asked(request, script)
        if failure:
            return failure
        if "anthropic-version" not in request.headers:
            return refused(400, "invalid_request_error", "anthropic-version: header is required")
        if body["model"] != MODEL:
            return refused(404, "not_found_error", f"model: {body['model']}")

        def event(kind: str, **fields: Any) -> bytes:
            return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n".encode()

        def block(index: int, start: dict[str, Any], deltas: list[dict[str, Any]]) -> bytes:
            pieces = [event("content_block_delta", index=index, delta=delta) for delta in deltas]
            first = event("content_block_start", index=index, content_block=start)
            return b"".join([first, *pieces, event("content_block_stop", index=index)])

        async def stream() -> AsyncGenerator[bytes]:
            count = 0
            usage = {"input_tokens": 5, "cache_read_input_tokens": 4, "cache_creation_input_tokens": 2}
            message = {"id": "msg_1", "role": "assistant", "model": script.answers_as or MODEL, "content": []}
            yield event("message_start", message={**message, "usage": {**usage, "output_tokens": 1}})
            yield event("ping")
            if script.thinking:
                yield block(0, {"type": "thinking"}, [{"type": "thinking_delta", "thinking": script.thinking}])
            yield event("content_block_start", index=1, content_block={"type": "text", "text": ""})
            async with contextlib.aclosing(_pieces(script)) as pieces:
                async for piece in pieces:
                    if script.error_after == count:
                        yield event("error", error={"type": "api_error", "message": "out of memory"})
                        return
                    if script.garbage_after == count:
                        yield b"<html>what is this</html>\n"
                        return
                    yield event("content_block_delta", index=1, delta={"type": "text_delta", "text": piece})
                    count += 1
            yield event("content_block_stop", index=1)
            if script.stop_short:
                return
            if script.tool_call:
                text = json.dumps(script.tool_call["arguments"])
                start = {"type": "tool_use", "id": "toolu_1", "name": script.tool_call["name"], "input": {}}
                parts = [{"type": "input_json_delta", "partial_json": part} for part in (text[:4], text[4:])]
                yield block(2, start, parts)
            reasons = {"stop": "end_turn", "length": "max_tokens"}
            reason = "tool_use" if script.tool_call else reasons.get(script.finish, script.finish)
            yield event("message_delta", delta={"stop_reason": reason}, usage={"output_tokens": 7})
            yield event("message_stop")

        return StreamingResponse(stream(), media_type="text/event-stream")

    async def models(request: Request) -> Response:
        script = current()
        await _asked(request, script)
        if "anthropic-version" not in request.headers:
            return refused(400, "invalid_request_error", "anthropic-version: header is required")
        entry = {"type": "model", "id": MODEL, "display_name": MODEL, "max_input_tokens": CONTEXT}
        return JSONResponse({"data": [entry], "has_more": False, "first_id": MODEL, "last_id": MODEL})

    async def model(request: Request) -> Response:
        script = current()
        await _asked(request, script)
        if request.path_params["name"] != MODEL:
            script.requests.append(("looked up", {"model": request.path_params["name"]}))
            return refused(404, "not_found_error", f"model: {request.path_params['name']}")
        return JSONResponse({"type": "model", "id": MODEL, "display_name": MODEL, "max_input_tokens": CONTEXT})

    return Starlette(
        routes=[
            Route("/v1/messages", messages, methods=["POST"]),
            Route("/v1/models", models),
            Route("/v1/models/{name}", model),
        ]
    )
