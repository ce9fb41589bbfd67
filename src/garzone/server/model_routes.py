"""The routes that change what is on disk: pull, push, create, copy, delete, blobs.

The store does the work, in threads of its own; here it is started, watched and called off when the client has gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from garzone.core.errors import DigestMismatch, GarzoneError
from garzone.core.ports import BlobUpload, ModelLibrary, ProgressCallback
from garzone.server.body import BodyTooLarge, read_json
from garzone.server.dialects import ollama
from garzone.server.dialects.ollama_store import name_of, progress_line, recipe_of
from garzone.server.exchange import status_of

MAX_BODY_BYTES: Final = 16 << 20  # templates, licences and examples of a model to be created
MAX_WORK: Final = 16  # pulls and copies at once; tags and show have threads of their own, and never wait for these
REPORT_S: Final = 0.1  # between two lines about the same thing
_T = TypeVar("_T")

Work = Callable[[ProgressCallback], object]


class _CalledOff(GarzoneError):
    """Nobody waits for the work any more."""


class ModelRoutes:
    """The routes over one store."""

    def __init__(self, library: ModelLibrary) -> None:
        self._library = library
        self._threads = ThreadPoolExecutor(MAX_WORK, thread_name_prefix="store")

    def table(self) -> list[Route]:
        """Path, what answers, method."""
        return [
            Route("/api/pull", _guarded(self._pull), methods=["POST"]),
            Route("/api/push", _guarded(_push), methods=["POST"]),
            Route("/api/create", _guarded(self._create), methods=["POST"]),
            Route("/api/copy", _guarded(self._copy), methods=["POST"]),
            Route("/api/delete", _guarded(self._delete), methods=["DELETE"]),
            # HEAD is among GET's; asked with GET it says the same without a body
            Route("/api/blobs/{digest:path}", _guarded(self._has_blob), methods=["GET"]),
            Route("/api/blobs/{digest:path}", _guarded(self._put_blob), methods=["POST"]),
        ]

    async def _pull(self, request: Request) -> Response:
        body = await read_json(request, MAX_BODY_BYTES)
        name = name_of(body, "model", "name")
        return await self._working(partial(self._library.pull, name), stream=body.get("stream") is not False)

    async def _create(self, request: Request) -> Response:
        body = await read_json(request, MAX_BODY_BYTES)
        name, recipe = name_of(body, "model", "name"), recipe_of(body)
        work = partial(self._library.create, name, recipe)
        return await self._working(work, stream=body.get("stream") is not False)

    async def _copy(self, request: Request) -> Response:
        body = await read_json(request, MAX_BODY_BYTES)
        await self._run(self._library.copy, name_of(body, "source"), name_of(body, "destination"))
        return Response(status_code=200)

    async def _delete(self, request: Request) -> Response:
        body = await read_json(request, MAX_BODY_BYTES)
        await self._run(self._library.remove, name_of(body, "model", "name"))
        return Response(status_code=200)

    async def _has_blob(self, request: Request) -> Response:
        there = await self._run(self._library.has_blob, request.path_params["digest"])
        return Response(status_code=200 if there else 404)

    async def _put_blob(self, request: Request) -> Response:
        digest = request.path_params["digest"]
        if await self._run(self._library.has_blob, digest):
            return Response(status_code=200)
        upload: BlobUpload = await self._run(self._library.open_upload, digest)
        committed = False
        try:
            async for chunk in request.stream():
                await self._run(upload.write, chunk)
            committed = True
            await self._run(upload.commit)
        finally:
            if not committed:
                await asyncio.shield(self._run(upload.close))
        return Response(status_code=201)

    async def _run(self, work: Callable[..., _T], *arguments: Any) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, partial(work, *arguments))

    async def _working(self, work: Callable[..., object], *, stream: bool) -> Response:
        """Do `work(progress=...)`; stream what it reports, or answer when it is done."""
        if stream:
            return StreamingResponse(self._lines(work), media_type="application/x-ndjson")
        async with contextlib.aclosing(self._lines(work, raising=True)) as lines:
            async for _ in lines:
                pass
        return JSONResponse({"status": "success"})

    async def _lines(self, work: Callable[..., object], *, raising: bool = False) -> AsyncGenerator[bytes]:
        """What is reported, as lines. Closing the generator calls the work off."""
        loop, lines = asyncio.get_running_loop(), asyncio.Queue[dict[str, Any]]()
        called_off = threading.Event()
        latest, reported_at = "", 0.0

        def progress(what: str, done: int, total: int) -> None:
            nonlocal latest, reported_at
            if called_off.is_set():
                raise _CalledOff("the client has gone")
            now = time.monotonic()
            if what == latest and now - reported_at < REPORT_S and (not total or done < total):
                return
            latest, reported_at = what, now
            loop.call_soon_threadsafe(lines.put_nowait, progress_line(what, done, total))

        working = asyncio.ensure_future(self._run(work, progress))
        try:
            while not (working.done() and lines.empty()):
                line = asyncio.ensure_future(lines.get())
                await asyncio.wait((line, working), return_when=asyncio.FIRST_COMPLETED)
                if line.done():
                    yield _line(line.result())
                else:
                    line.cancel()
                    if working.done() and lines.empty():
                        break
            try:
                working.result()
            except GarzoneError as error:
                if raising:
                    raise
                yield _line(ollama.error_document(str(error)))
                return
            yield _line({"status": "success"})
        finally:
            called_off.set()
            working.add_done_callback(_forget)


def _forget(work: asyncio.Future[Any]) -> None:
    """Work that was called off ends with an exception that nobody is left to see."""
    if not work.cancelled():
        work.exception()


async def _push(request: Request) -> Response:
    del request
    text = "garzone does not push models: it has no account at any registry; use Ollama, which sees the same models"
    return JSONResponse(ollama.error_document(text), 501)


def _line(document: object) -> bytes:
    return json.dumps(document).encode() + b"\n"


def _guarded(endpoint: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
    """The endpoint, with errors as documents."""

    async def guarded(request: Request) -> Response:
        try:
            return await endpoint(request)
        except BodyTooLarge as error:
            return JSONResponse(ollama.error_document(str(error)), 413)
        except GarzoneError as error:
            status = 400 if isinstance(error, DigestMismatch) else status_of(error)
            return JSONResponse(ollama.error_document(str(error)), status)
        except ClientDisconnect:
            return Response(status_code=499)

    return guarded
