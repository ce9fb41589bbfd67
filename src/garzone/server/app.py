"""The routes: which path speaks which dialect, and the documents about models.

Everything that generates is an `Answer`; what a field means is the dialect's business, and whether it can be done the
generator's. Tags and show ask the store only, and never wait for a model.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any, Final, cast

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from garzone import __version__
from garzone.core.errors import GarzoneError, GenerationFailed, InvalidRequest, ModelNotFound, Unsupported
from garzone.core.generation import Embeddings, GenerateRequest, ModelDetails, SamplingParams
from garzone.core.ports import Embedder, LoadedModels, ModelStore, PromptCounter, TextGenerator
from garzone.core.recipe import TensorSummary
from garzone.server import aliases, speech
from garzone.server.body import BodyTooLarge, read_json
from garzone.server.dialects import (
    anthropic,
    anthropic_stream,
    ollama,
    ollama_embed,
    ollama_models,
    openai,
    openai_common,
    openai_completions,
    openai_embeddings,
    openai_responses_stream,
)
from garzone.server.exchange import EmbedExchange, Exchange
from garzone.server.gateway import Gateway, GatewayRules
from garzone.server.lifecycle import HEARTBEAT_S, Answer, Clock, unless_hung_up
from garzone.server.origins import LOCAL_NAMES, Guard
from garzone.server.speech import ANTHROPIC, NATIVE, OPENAI, Speech

# The version of Ollama's API whose routes clients may expect; codex refuses anything below 0.13.4 (WIRE.md). What
# follows the plus sign is build metadata in both semver and PEP 440.
API_VERSION: Final = f"0.13.4+garzone.{__version__}"
MAX_BODY_BYTES: Final = 256 << 20  # a long conversation with many images, base64
_log = logging.getLogger(__name__)


def build_app(
    generator: TextGenerator,
    models: LoadedModels,
    store: ModelStore,
    *,
    preload: str | None = None,
    host: str = "127.0.0.1",
    origins: Sequence[str] = (),
    default_model: str = "",
    embedder: Embedder | None = None,
    counter: PromptCounter | None = None,
    heartbeat_s: float = HEARTBEAT_S,
    max_body_bytes: int = MAX_BODY_BYTES,
    clock: Clock | None = None,
    tensors: Callable[[str], Sequence[TensorSummary]] | None = None,
    gateway: GatewayRules | None = None,
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
        default_model: what answers for `claude-*`, if `preload` does not.
        embedder: makes vectors of texts; None where nothing here does.
        counter: counts the tokens of whole prompts; None where they are estimated.
        heartbeat_s: how long a stream may be silent.
        max_body_bytes: longer requests are refused.
        clock: used for heartbeats instead of the real one.
        tensors: lists what a model's file holds; None where that cannot be said.
        gateway: what of /v1/messages goes to another server; None: nothing.
    """
    local = host in LOCAL_NAMES and host != "0.0.0.0"  # noqa: S104  compared, not bound
    routes = _Routes(
        generator,
        models,
        store,
        embedder=embedder,
        counter=counter,
        defaults=[name for name in (preload, default_model) if name],
        heartbeat_s=heartbeat_s,
        max_body_bytes=max_body_bytes,
        clock=clock or Clock(),
        paths_allowed=local,
        tensors=tensors,
    )

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
        middleware=[
            Middleware(Guard, check_host=local, origins=origins),
            *([Middleware(Gateway, rules=gateway, max_body_bytes=max_body_bytes)] if gateway else []),
        ],
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
    if error.status_code == 405:
        return PlainTextResponse("405 method not allowed", 405, error.headers)
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


async def _bug(request: Request, error: Exception) -> Response:
    """Also logged with its stack, by uvicorn."""
    failure = GenerationFailed(f"{request.url.path} failed: {type(error).__name__}: {error}")
    return speech.of_path(request.url.path).error(failure, speech.new_request_id(), 500)


Endpoint = Callable[[Request, str], Awaitable[Response]]
"""Answers a request; the text is the request's id."""


class _Routes:
    def __init__(
        self,
        generator: TextGenerator,
        models: LoadedModels,
        store: ModelStore,
        *,
        embedder: Embedder | None,
        counter: PromptCounter | None,
        defaults: Sequence[str],
        heartbeat_s: float,
        max_body_bytes: int,
        clock: Clock,
        paths_allowed: bool,
        tensors: Callable[[str], Sequence[TensorSummary]] | None,
    ) -> None:
        self._generator, self._models, self._store = generator, models, store
        self._embedder, self._counter, self._defaults = embedder, counter, defaults
        self._heartbeat_s, self._max_body_bytes, self._clock = heartbeat_s, max_body_bytes, clock
        self._paths_allowed, self._tensors = paths_allowed, tensors

    def table(self) -> list[Route]:
        """Path, what answers, method."""

        def answers(path: str, words: Speech, exchange_of: Callable[[Mapping[str, Any], str], Exchange]) -> Route:
            return Route(path, self._answering(words, exchange_of), methods=["POST"])

        def embeds(path: str, words: Speech, exchange_of: Callable[[Mapping[str, Any]], EmbedExchange]) -> Route:
            return Route(path, self._embedding(words, exchange_of), methods=["POST"])

        def tells(path: str, words: Speech, endpoint: Endpoint, method: str = "GET") -> Route:
            return Route(path, self._guarded(words, endpoint), methods=[method])

        return [
            Route("/", _greet, methods=["GET"]),
            Route("/api/version", _version, methods=["GET"]),
            tells("/api/tags", NATIVE, self._tags),
            tells("/api/ps", NATIVE, self._ps),
            tells("/api/show", NATIVE, self._show, "POST"),
            answers("/api/generate", NATIVE, lambda body, _: ollama.GenerateExchange(body)),
            answers("/api/chat", NATIVE, lambda body, _: ollama.ChatExchange(body)),
            embeds("/api/embed", NATIVE, ollama_embed.EmbedExchange),
            embeds("/api/embeddings", NATIVE, ollama_embed.EmbeddingsExchange),
            answers("/v1/chat/completions", OPENAI, lambda body, _: openai.ChatExchange(body)),
            answers("/v1/completions", OPENAI, lambda body, _: openai_completions.CompletionExchange(body)),
            answers("/v1/responses", OPENAI, lambda body, _: openai_responses_stream.ResponseExchange(body)),
            embeds("/v1/embeddings", OPENAI, openai_embeddings.EmbeddingsExchange),
            tells("/v1/models", OPENAI, self._v1_models),
            tells("/v1/models/{name:path}", OPENAI, self._v1_model),
            answers("/v1/messages", ANTHROPIC, anthropic_stream.MessagesExchange),
            tells("/v1/messages/count_tokens", ANTHROPIC, self._count_tokens, "POST"),
        ]

    def _answering(
        self, words: Speech, exchange_of: Callable[[Mapping[str, Any], str], Exchange]
    ) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request, request_id: str) -> Response:
            exchange = exchange_of(await read_json(request, self._max_body_bytes), request_id)
            answer = Answer(
                self._generator,
                exchange,
                model=await self._resolve(exchange.model),
                headers={words.id_header: request_id},
                heartbeat_s=self._heartbeat_s,
                clock=self._clock,
            )
            return cast(Response, answer)  # an ASGI application, which is all that is asked of a response

        return self._guarded(words, endpoint)

    def _embedding(
        self, words: Speech, exchange_of: Callable[[Mapping[str, Any]], EmbedExchange]
    ) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request, request_id: str) -> Response:
            exchange = exchange_of(await read_json(request, self._max_body_bytes))
            model = await self._resolve(exchange.model)
            embeddings = await unless_hung_up(request.receive, self._embed(exchange, model))
            return JSONResponse(exchange.document(embeddings), headers={words.id_header: request_id})

        return self._guarded(words, endpoint)

    async def _embed(self, exchange: EmbedExchange, model: str) -> Embeddings:
        details = await self._generator.details(model)
        if self._embedder is None:
            raise Unsupported(f"model '{details.name}': embeddings are not supported by this server's engine yet")
        if not exchange.inputs:
            return Embeddings((), ())
        return await self._embedder.embed(
            model,
            exchange.inputs,
            truncate=exchange.truncate,
            dimensions=exchange.dimensions,
            unit_length=exchange.unit_length,
            keep_alive_s=exchange.keep_alive_s,
        )

    @staticmethod
    def _guarded(words: Speech, endpoint: Endpoint) -> Callable[[Request], Awaitable[Response]]:
        """The endpoint, with errors in its dialect."""

        async def guarded(request: Request) -> Response:
            request_id = speech.new_request_id()
            try:
                return await endpoint(request, request_id)
            except BodyTooLarge as error:
                return words.error(error, request_id, 413)
            except GarzoneError as error:
                return words.error(error, request_id)
            except ClientDisconnect:
                return Response(status_code=499)

        return guarded

    async def _tags(self, request: Request, request_id: str) -> Response:
        del request, request_id
        return JSONResponse(ollama_models.tags_document(await asyncio.to_thread(self._store.list_models)))

    async def _ps(self, request: Request, request_id: str) -> Response:
        del request, request_id
        return JSONResponse(ollama_models.ps_document(self._models.loaded()))

    async def _show(self, request: Request, request_id: str) -> Response:
        del request_id
        body = await read_json(request, self._max_body_bytes)
        name = body.get("model") or body.get("name")
        if not isinstance(name, str):
            raise InvalidRequest("model is required")
        tensors = self._tensors if body.get("verbose") else None
        listed = await asyncio.to_thread(tensors, name) if tensors is not None else None
        return JSONResponse(ollama_models.show_document(await self._find(name), listed))

    async def _v1_models(self, request: Request, request_id: str) -> Response:
        del request_id
        document = anthropic_stream.models_document if _is_anthropic(request) else openai_common.models_document
        return JSONResponse(document(await asyncio.to_thread(self._store.list_models)))

    async def _v1_model(self, request: Request, request_id: str) -> Response:
        try:
            model = await self._find(request.path_params["name"])
        except GarzoneError as error:
            return (ANTHROPIC if _is_anthropic(request) else OPENAI).error(error, request_id)
        document = anthropic_stream.model_document if _is_anthropic(request) else openai_common.model_document
        return JSONResponse(document(model))

    async def _count_tokens(self, request: Request, request_id: str) -> Response:
        asked = anthropic.Asked(await read_json(request, self._max_body_bytes))
        model = await self._resolve(asked.model)
        prompt = replace(asked.to_request(SamplingParams()), model=model)
        if self._counter is not None:
            num_tokens = await self._counter.count_prompt(prompt)
        else:
            await self._generator.details(model)  # which says so when there is no such model
            num_tokens = await self._generator.count_tokens(model, anthropic.text_of(prompt))
        headers = {ANTHROPIC.id_header: request_id}
        return JSONResponse(anthropic_stream.count_document(num_tokens), headers=headers)

    async def _find(self, name: str) -> ModelDetails:
        return await asyncio.to_thread(self._store.find, await self._resolve(name))

    async def _resolve(self, name: str) -> str:
        """The model that answers for a name. Raises ModelNotFound."""
        self._check_name(name)
        store = self._store
        if _is_path(name):
            try:
                await asyncio.to_thread(store.find, name)
            except GarzoneError:
                # Whatever is there instead: nobody can ask a server which files there are (CVE-2024-39719).
                raise ModelNotFound(name, "no model can be read there; garzone show says why") from None
        if not aliases.is_alias(name):
            return name
        return await asyncio.to_thread(aliases.resolve, name, store.find, self._defaults, store.list_models)

    def _check_name(self, name: str) -> None:
        if not self._paths_allowed and _is_path(name):
            raise ModelNotFound(name, "files are only served by path to programs on the same machine")


def _is_path(name: str) -> bool:
    by_name = name.startswith(("hf:", "pypi:"))
    return not by_name and (name.startswith(("/", ".", "~")) or name.lower().endswith(".gguf"))


def _is_anthropic(request: Request) -> bool:
    """Whether a route that two dialects share is asked for in Anthropic's."""
    return "anthropic-version" in request.headers


async def _greet(request: Request) -> Response:
    del request
    return PlainTextResponse("Ollama is running")  # word for word what clients look for


async def _version(request: Request) -> Response:
    del request
    return JSONResponse({"version": API_VERSION})
