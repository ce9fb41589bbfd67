"""From a parsed request to the last byte of its answer, and what happens when the client hangs up on the way.

Streams a generator's Deltas in the words of a dialect. Knows no route and no dialect by name.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from garzone.core.errors import BackendUnavailable, GarzoneError, GenerationFailed
from garzone.core.generation import Delta, SamplingParams
from garzone.core.ports import TextGenerator
from garzone.server.choices import answers
from garzone.server.defaults import sampling_of
from garzone.server.exchange import Exchange, headers_of, status_of

HEARTBEAT_S: Final = 15.0  # clients cut a silent stream at about 300 s (WIRE.md, pitfalls)
_log = logging.getLogger(__name__)

Headers = list[tuple[bytes, bytes]]
_Result = TypeVar("_Result")


class Answer:
    """An ASGI response that generates while it is sent, and stops generating when nobody listens any more.

    Errors that come before the first piece have a status of their own; after that they are the last piece.
    """

    def __init__(
        self,
        generator: TextGenerator,
        exchange: Exchange,
        *,
        model: str = "",
        headers: Mapping[str, str] | None = None,
        heartbeat_s: float = HEARTBEAT_S,
        clock: Clock | None = None,
    ) -> None:
        """What to answer.

        Args:
            generator: writes the answer.
            exchange: what was asked, and how the answer is spelled.
            model: who really answers; "" for who was asked.
            headers: of the response, beside those that say what it is.
            heartbeat_s: how long a stream may be silent.
            clock: used instead of the real one.
        """
        self._generator = generator
        self._exchange = exchange
        self._model = model or exchange.model
        self._headers = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
        self._heartbeat_s = heartbeat_s
        self._clock = clock or Clock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Generate and send, until the end or until the client has gone."""
        del scope
        sender = _Sender(send, self._exchange, self._headers, self._clock)
        work = asyncio.create_task(self._answer(sender))
        hung_up = asyncio.create_task(_hung_up(receive))
        try:
            await asyncio.wait((work, hung_up), return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:  # the server shuts down, and this is its last word
            await _stop(work)
            await self._fail(sender, BackendUnavailable("the server is shutting down"))
        finally:
            await _stop(hung_up)
            await _stop(work)

    async def _answer(self, sender: _Sender) -> None:
        heartbeat: asyncio.Task[None] | None = None
        try:
            details = await self._generator.details(self._model)
            request = self._exchange.to_request(sampling_of(details.parameters) if details.parameters else _DEFAULTS)
            if request.model != self._model:
                request = replace(request, model=self._model)
            if request.think and self._exchange.drops_thinking and "thinking" not in details.capabilities:
                request = replace(request, think=None)
            streams = self._exchange.stream and not request.load_only
            if streams:
                heartbeat = asyncio.create_task(sender.keep_alive(self._heartbeat_s))
            requests = self._exchange.choices(request)
            async with aclosing(answers(self._generator, requests)) as deltas:
                if streams:
                    await self._stream(deltas, sender, len(requests))
                else:
                    await sender.send_document(200, self._exchange.whole(await _collect(deltas)))
        except GarzoneError as error:
            await self._fail(sender, error)
        except Exception as error:  # noqa: BLE001  a bug here must still end the response; it is logged in full
            _log.exception("a request for %s failed", self._exchange.model)
            await self._fail(sender, GenerationFailed(f"the server failed: {type(error).__name__}: {error}"))
        finally:
            if heartbeat is not None:
                heartbeat.cancel()

    async def _stream(self, deltas: AsyncGenerator[Delta], sender: _Sender, num_choices: int) -> None:
        piece_of, send_piece = self._exchange.piece, sender.send_piece
        async for delta in deltas:
            num_choices -= delta.finish_reason is not None
            last = not num_choices
            await send_piece(piece_of(delta), last)
            if last:
                return
        raise GenerationFailed("the answer ended without saying why")

    async def _fail(self, sender: _Sender, error: GarzoneError) -> None:
        if sender.started:
            await sender.send_piece(self._exchange.broken(error), True)
        else:
            await sender.send_document(status_of(error), self._exchange.error_document(error), headers_of(error))


_DEFAULTS: Final = SamplingParams()


@dataclass(frozen=True, slots=True)
class Clock:
    """Seconds that only grow, and waiting for some of them."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep


class _Sender:
    """One HTTP response. Pieces and heartbeats never interleave."""

    def __init__(self, send: Send, exchange: Exchange, headers: Headers, clock: Clock) -> None:
        self._send = send
        self._exchange = exchange
        self._headers = headers
        self._clock = clock
        self._lock = asyncio.Lock()
        self._last = clock.now()
        self.started = False
        self._ended = False

    async def send_document(
        self, status: int, document: Mapping[str, Any], extra: Mapping[str, str] | None = None
    ) -> None:
        """A whole answer or an error."""
        body = json.dumps(document).encode()
        headers = [(b"content-type", b"application/json; charset=utf-8"), (b"content-length", b"%d" % len(body))]
        headers += [*self._headers, *((name.encode(), value.encode()) for name, value in (extra or {}).items())]
        async with self._lock:
            self._ended = True
            await self._send({"type": "http.response.start", "status": status, "headers": headers})
            await self._send({"type": "http.response.body", "body": body})

    async def send_piece(self, piece: bytes, last: bool = False) -> None:
        """A piece of a stream; before the first one, its beginning."""
        async with self._lock:
            if not self.started:
                self.started = True
                headers = [(b"content-type", self._exchange.media_type.encode()), (b"cache-control", b"no-cache")]
                headers += self._headers
                await self._send({"type": "http.response.start", "status": 200, "headers": headers})
                piece = self._exchange.begin() + piece
            self._ended = last
            if piece or last:
                await self._send({"type": "http.response.body", "body": piece, "more_body": not last})
            self._last = self._clock.now()

    async def keep_alive(self, every_s: float) -> None:
        """Send a heartbeat whenever nothing else was sent for so long; also the first thing, if nothing comes."""
        while not self._ended:
            left = self._last + every_s - self._clock.now()
            if left > 0:
                await self._clock.sleep(left)
            elif not self._lock.locked():
                await self.send_piece(self._exchange.heartbeat())
            else:
                await self._clock.sleep(every_s)  # something is being sent to a slow reader: the connection is alive


async def _stop(task: asyncio.Task[None]) -> None:
    """Cancel it if it runs; raise what it raised."""
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def unless_hung_up(receive: Receive, work: Coroutine[Any, Any, _Result]) -> _Result:
    """What `work` gives, unless the client goes first: then it is cancelled. Raises ClientDisconnect."""
    task, hung_up = asyncio.create_task(work), asyncio.create_task(_hung_up(receive))
    try:
        await asyncio.wait((task, hung_up), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        task.cancel()
        await _stop(hung_up)
        with suppress(asyncio.CancelledError, GarzoneError):
            await task


async def _hung_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _collect(deltas: AsyncGenerator[Delta]) -> Sequence[Delta]:
    collected = [delta async for delta in deltas]
    if not collected or collected[-1].finish_reason is None:
        raise GenerationFailed("the answer ended without saying why")
    return collected
