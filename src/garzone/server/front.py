"""What every request passes before a dialect sees it, and the routes that are no dialect's: models, metrics, page.

Puts things on an application; `wiring` decides which.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from garzone.core.ports import LoadedModels, ModelLibrary, TaskHistory
from garzone.server.access import KeyRequired
from garzone.server.activity import Activity
from garzone.server.metrics import CountRequests, Metrics
from garzone.server.model_routes import ModelRoutes
from garzone.server.page import Page


@dataclass(frozen=True, slots=True)
class Front:
    """What is to be seen of a server besides its dialects.

    `activity` must be what the generator behind the dialects reports to, and `metrics` one of its observers.
    `memory_limit` says how many bytes models may take, 0 where unknown. An `api_key` of "" asks for none.
    """

    activity: Activity
    metrics: Metrics
    models: LoadedModels
    library: ModelLibrary
    history: TaskHistory | None = None
    memory_limit: Callable[[], int] = int
    api_key: str = ""


def put_front(app: Starlette, front: Front) -> Starlette:
    """Add the routes and the middleware to an application that has not started; returns it."""
    page = Page(front.activity, front.models, front.library, front.history, front.memory_limit)
    front.metrics.watch(front.activity, front.models, front.memory_limit)
    app.router.routes += [
        *ModelRoutes(front.library).table(),
        Route("/health", _health, methods=["GET"]),
        Route("/metrics", front.metrics.answer, methods=["GET"]),
        Route("/ui", page.answer, methods=["GET"]),
        Route("/ui/state", page.state, methods=["GET"]),
    ]
    if front.api_key:
        app.add_middleware(KeyRequired, api_key=front.api_key)
    paths = [route.path for route in app.router.routes if isinstance(route, Route)]
    app.add_middleware(CountRequests, counter=front.metrics.http, routes=paths)
    return app


async def _health(request: Request) -> Response:
    del request
    return JSONResponse({"status": "ok"})
