"""The routes: which path speaks which dialect, and the documents about models.

Everything that generates is an `Answer`; what a field means is the dialect's business, and whether it can be done the
generator's. Tags and show ask the store only, and never wait for a model.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any, Final, cast

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from garzone import __version__
from garzone.core.errors import GarzoneError, InvalidRequest, ModelNotFound
from garzone.core.generation import GenerateRequest
from garzone.core.ports import LoadedModels, ModelStore, TextGenerator
from garzone.server.dialects import ollama, ollama_models, openai
from garzone.server.exchange import Exchange, status_of
from garzone.server.lifecycle import HEARTBEAT_S, Answer
from garzone.server.origins import LOCAL_NAMES, Guard

# The version of Ollama's API whose routes clients may expect; codex refuses anything below 0.13.4 (WIRE.md). What
# follows the plus sign is build metadata in both semver and PEP 440.
API_VERSION: Final = f"0.13.4+garzone.{__version__}"
MAX_BODY_BYTES: Final = 256 << 20  # a long conversation with many images, base64
_SURROGATE_ESCAPE = re.compile(rb"\\u[dD][89a-fA-F]")
_log = logging.getLogger(__name__)

Documents = Callable[[GarzoneError], Mapping[str, Any]]


class BodyTooLarge(InvalidRequest):
    """More bytes than `max_body_bytes` (HTTP 413)."""


def build_app(
    generator: TextGenerator,
    models: LoadedModels,
    store: ModelStore,
    *,
    preload: str | None = None,
    host: str = "127.0.0.1",
    origins: Sequence[str] = (),
    heartbeat_s: float = HEARTBEAT_S,
    max_body_bytes: int = MAX_BODY_BYTES,
) -> Starlette:
    """The ASGI application.

    Args:
        generator: writes the answers; closed when the server shuts down.
        models: what is in memory.
        store: what is on disk.
        preload: a model to load as soon as the server is up.
        host: what the server listens on. On loopback the Host header is checked; elsewhere, models can only be named,
            not be given by path: strangers must not learn which files there are.
        origins: further origins of web pages that may use the server, with `*` as wildcard.
        heartbeat_s: how long a stream may be silent.
        max_body_bytes: longer requests are refused.
    """
    local = host in LOCAL_NAMES and host != "0.0.0.0"  # noqa: S104  compared, not bound
    routes = _Routes(generator, models, store, heartbeat_s, max_body_bytes, paths_allowed=local)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncGenerator[None]:
        del app
        loading = asyncio.create_task(_preload(generator, preload)) if preload else None
        yield
        if loading is not None:
            loading.cancel()
            with suppress(asyncio.CancelledError):
                await loading
        await generator.aclose()

    return Starlette(
        routes=routes.table(),
        lifespan=lifespan,
        middleware=[Middleware(Guard, check_host=local, origins=origins)],
        exception_handlers={404: _not_found, HTTPException: _http_error, Exception: _bug},
    )


async def _preload(generator: TextGenerator, model: str) -> None:
    try:
        async for _ in generator.generate(GenerateRequest(model)):
            pass
    except GarzoneError as error:
        _log.error("cannot load %s: %s", model, error)


async def _not_found(request: Request, error: Exception) -> Response:
    del request, error
    return PlainTextResponse("404 page not found", 404)


async def _http_error(request: Request, error: Exception) -> Response:
    del request
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


async def _bug(request: Request, error: Exception) -> Response:
    """Also logged with its stack, by uvicorn."""
    return JSONResponse({"error": f"{request.url.path} failed: {type(error).__name__}: {error}"}, 500)


class _Routes:
    def __init__(
        self,
        generator: TextGenerator,
        models: LoadedModels,
        store: ModelStore,
        heartbeat_s: float,
        max_body_bytes: int,
        *,
        paths_allowed: bool,
    ) -> None:
        self._generator, self._models, self._store = generator, models, store
        self._heartbeat_s, self._max_body_bytes = heartbeat_s, max_body_bytes
        self._paths_allowed = paths_allowed

    def table(self) -> list[Route]:
        """Path, what answers, method."""
        native, compatible = _native_error, openai.error_document
        return [
            Route("/", _greet, methods=["GET"]),
            Route("/api/version", _version, methods=["GET"]),
            Route("/api/tags", self._guarded(native, self._tags), methods=["GET"]),
            Route("/api/ps", self._guarded(native, self._ps), methods=["GET"]),
            Route("/api/show", self._guarded(native, self._show), methods=["POST"]),
            Route("/api/generate", self._answering(native, ollama.GenerateExchange), methods=["POST"]),
            Route("/api/chat", self._answering(native, ollama.ChatExchange), methods=["POST"]),
            Route("/v1/chat/completions", self._answering(compatible, openai.ChatExchange), methods=["POST"]),
            Route("/v1/models", self._guarded(compatible, self._v1_models), methods=["GET"]),
            Route("/v1/models/{name:path}", self._guarded(compatible, self._v1_model), methods=["GET"]),
        ]

    def _answering(
        self, documents: Documents, exchange_of: Callable[[Mapping[str, Any]], Exchange]
    ) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            exchange = exchange_of(await read_json(request, self._max_body_bytes))
            self._check_name(exchange.model)
            answer = Answer(self._generator, exchange, heartbeat_s=self._heartbeat_s)
            return cast(Response, answer)  # an ASGI application, which is all that is asked of a response

        return self._guarded(documents, endpoint)

    @staticmethod
    def _guarded(
        documents: Documents, endpoint: Callable[[Request], Awaitable[Response]]
    ) -> Callable[[Request], Awaitable[Response]]:
        """The endpoint, with errors in its dialect."""

        async def guarded(request: Request) -> Response:
            try:
                return await endpoint(request)
            except BodyTooLarge as error:
                return JSONResponse(documents(error), 413)
            except GarzoneError as error:
                return JSONResponse(documents(error), status_of(error))
            except ClientDisconnect:
                return Response(status_code=499)

        return guarded

    async def _tags(self, request: Request) -> Response:
        del request
        return JSONResponse(ollama_models.tags_document(await asyncio.to_thread(self._store.list_models)))

    async def _ps(self, request: Request) -> Response:
        del request
        return JSONResponse(ollama_models.ps_document(self._models.loaded()))

    async def _show(self, request: Request) -> Response:
        body = await read_json(request, self._max_body_bytes)
        name = body.get("model") or body.get("name")
        if not isinstance(name, str):
            raise InvalidRequest("model is required")
        self._check_name(name)
        return JSONResponse(ollama_models.show_document(await asyncio.to_thread(self._store.find, name)))

    async def _v1_models(self, request: Request) -> Response:
        del request
        return JSONResponse(openai.models_document(await asyncio.to_thread(self._store.list_models)))

    async def _v1_model(self, request: Request) -> Response:
        self._check_name(request.path_params["name"])
        find = partial(self._store.find, request.path_params["name"])
        return JSONResponse(openai.model_document(await asyncio.to_thread(find)))

    def _check_name(self, name: str) -> None:
        if not self._paths_allowed and (name.startswith(("/", ".", "~")) or name.lower().endswith(".gguf")):
            raise ModelNotFound(name, "files are only served by path to programs on the same machine")


def _native_error(error: GarzoneError) -> Mapping[str, Any]:
    return ollama.error_document(str(error))


async def _greet(request: Request) -> Response:
    del request
    return PlainTextResponse("Ollama is running")  # word for word what clients look for


async def _version(request: Request) -> Response:
    del request
    return JSONResponse({"version": API_VERSION})


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
    if _SURROGATE_ESCAPE.search(body):
        # Half an emoji, where a client cut a string: no tokeniser takes that. As Go's decoder does.
        whole = json.dumps(document, ensure_ascii=False).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        document = json.loads(whole)
    return cast("dict[str, Any]", document)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
