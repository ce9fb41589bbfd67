"""A server for `bench server` to measure: the real one in front of a generator that takes no time, or of the engine.

Run as `python -m garzone.bench.server_subject instant|engine`; prints its port on one line, then serves until killed.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator

import uvicorn
from starlette.applications import Starlette

from garzone import config
from garzone.core.generation import Delta, FinishReason, GenerateRequest, ModelDetails, Usage
from garzone.server.activity import Activity
from garzone.server.app import build_app
from garzone.server.front import Front, put_front
from garzone.server.listener import open_listener
from garzone.server.metering import MeteredGenerator
from garzone.server.metrics import Metrics
from garzone.testing import ScriptedGenerator
from garzone.wiring import build_server, open_store

MODEL = "instant"


class Instant(ScriptedGenerator):
    """As many tokens as asked for, in no time: each is the request's own prompt, so that a mix-up shows."""

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Delta]:
        """Every few tokens, others have their turn, as they have between two steps of an engine."""
        text = (request.prompt or (request.messages[-1].text if request.messages else "")) + " "
        for number in range(request.sampling.max_tokens or 0):
            yield Delta(text=text)
            if number % 8 == 7:
                await asyncio.sleep(0)
        yield Delta(finish_reason=FinishReason.LENGTH, usage=Usage(completion_tokens=request.sampling.max_tokens or 0))

    async def details(self, model: str) -> ModelDetails:
        """Any name will do."""
        return ModelDetails(model, context_tokens=8192)


class _NothingLoaded:
    def loaded(self) -> list[object]:
        return []

    async def unload(self, model: str) -> bool:
        del model
        return False


def build(kind: str) -> Starlette:
    """The application."""
    settings = config.load()
    if kind == "engine":
        return build_server(settings)
    metrics = Metrics()
    activity = Activity(observers=(metrics,))
    nothing, store = _NothingLoaded(), open_store(settings)
    generator = MeteredGenerator(Instant([""], model=MODEL), activity)
    app = build_app(generator, nothing, store)  # pyright: ignore[reportArgumentType] - an empty list is one of anything
    return put_front(app, Front(activity, metrics, nothing, store))  # pyright: ignore[reportArgumentType]


def main(kind: str) -> None:
    """Serve, as `garzone serve` does."""
    listener = open_listener("127.0.0.1", 0)
    print(listener.getsockname()[1], flush=True)
    uvicorn.Server(
        uvicorn.Config(
            build(kind), log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=2
        )
    ).run(sockets=[listener])


if __name__ == "__main__":
    main(sys.argv[1])
