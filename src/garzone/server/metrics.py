"""`GET /metrics`: numbers for Prometheus, from what goes through the server and from what is in memory.

Counts; keeps no history and knows no dialect. Labels are models that exist, routes that exist, and a few words: nothing
that a client can make up, so that nobody can fill the memory with names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from garzone.core.ports import LoadedModels
from garzone.server.activity import Activity, Entry

_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_TOKEN_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1)
MAX_MODELS: Final = 100  # labels; more models than anybody runs in the life of one server
OTHER: Final = "other"


class Metrics:
    """The numbers of one server. Implements `activity.Observer`."""

    def __init__(self) -> None:
        disable_created_metrics()  # a second series for each, which Prometheus does not need
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self._models: set[str] = set()
        self.http = Counter(
            "garzone_http_requests", "HTTP requests.", ["method", "route", "status"], registry=self.registry
        )
        self._requests = Counter(
            "garzone_requests", "Requests for text, by how they ended.", ["model", "outcome"], registry=self.registry
        )
        tokens = ("prompt", "cached", "completion", "drafted", "accepted")
        self._tokens = {
            kind: Counter(f"garzone_{kind}_tokens", f"{kind.capitalize()} tokens.", ["model"], registry=self.registry)
            for kind in tokens
        }
        self._first = Histogram(
            "garzone_time_to_first_token_seconds",
            "From a request to its first text, waiting included.",
            ["model"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._whole = Histogram(
            "garzone_request_seconds", "From a request to its end.", ["model"], buckets=_SECONDS, registry=self.registry
        )
        self._each = Histogram(
            "garzone_time_per_token_seconds",
            "Between tokens, as the engine measured.",
            ["model"],
            buckets=_TOKEN_SECONDS,
            registry=self.registry,
        )
        self._hits = Counter(
            "garzone_prefix_cache_requests",
            "Requests by whether the cache had the beginning of their prompt.",
            ["model", "found"],
            registry=self.registry,
        )

    def ended(self, entry: Entry) -> None:
        """Count one request."""
        model, usage = self._label(entry), entry.usage
        self._requests.labels(model, entry.outcome).inc()
        assert entry.ended is not None
        self._whole.labels(model).observe(entry.ended - entry.started)
        if entry.first_text is not None:
            self._first.labels(model).observe(entry.first_text - entry.started)
        if usage is None:
            return
        for kind, count in (
            ("prompt", usage.prompt_tokens),
            ("cached", usage.cached_tokens),
            ("completion", usage.completion_tokens),
            ("drafted", usage.drafted_tokens),
            ("accepted", usage.accepted_tokens),
        ):
            if count:
                self._tokens[kind].labels(model).inc(count)
        if usage.prompt_tokens:
            self._hits.labels(model, "yes" if usage.cached_tokens else "no").inc()
        if usage.completion_tokens and usage.decode_ms:
            self._each.labels(model).observe(usage.decode_ms / usage.completion_tokens / 1e3)

    def _label(self, entry: Entry) -> str:
        """The model's name; a name that nothing was generated for may be anything."""
        if entry.model in self._models:
            return entry.model
        if entry.usage is None or len(self._models) >= MAX_MODELS:
            return OTHER
        self._models.add(entry.model)
        return entry.model

    def watch(self, activity: Activity, models: LoadedModels, memory_limit: Callable[[], int]) -> None:
        """Also show what is going on at the moment somebody asks."""
        self.registry.register(_Now(activity, models, memory_limit))

    async def answer(self, request: Request) -> Response:
        """The page."""
        del request
        return Response(generate_latest(self.registry), headers={"content-type": CONTENT_TYPE_LATEST})


class _Now(Collector):
    """Gauges, read when they are asked for."""

    def __init__(self, activity: Activity, models: LoadedModels, memory_limit: Callable[[], int]) -> None:
        self._activity, self._models, self._memory_limit = activity, models, memory_limit

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The state of things."""
        waiting = self._activity.num_waiting()
        requests = GaugeMetricFamily("garzone_requests_in_flight", "Requests under way.", labels=["state"])
        requests.add_metric(["waiting"], waiting)
        requests.add_metric(["generating"], len(self._activity.live) - waiting)
        yield requests
        loaded = self._models.loaded()
        yield GaugeMetricFamily("garzone_loaded_models", "Models in memory.", value=len(loaded))
        memory = GaugeMetricFamily("garzone_model_memory_bytes", "Device memory by model.", labels=["model", "device"])
        for model in loaded:
            memory.add_metric([model.details.name, model.device], model.memory_bytes)
        yield memory
        yield GaugeMetricFamily(
            "garzone_memory_limit_bytes", "What models may take of the device; 0: unknown.", value=self._memory_limit()
        )
        yield GaugeMetricFamily(
            "garzone_tokens_per_second", "Tokens of all requests over ten seconds.", value=self._activity.tokens_per_s()
        )

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """Nothing is known before somebody asks."""
        return ()


class CountRequests:
    """ASGI middleware that counts HTTP requests by method, route and status."""

    def __init__(self, app: ASGIApp, *, counter: Counter, routes: Iterable[str]) -> None:
        self._app = app
        self._counter = counter
        self._exact = {path for path in routes if "{" not in path}
        self._prefixes = tuple(sorted({path.partition("{")[0] for path in routes if "{" in path}))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass it on, and look at the status that comes back."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 499

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            method = scope["method"] if scope["method"] in _METHODS else OTHER
            self._counter.labels(method, self._route(scope["path"]), str(status)).inc()

    def _route(self, path: str) -> str:
        if path in self._exact:
            return path
        return next((prefix for prefix in self._prefixes if path.startswith(prefix)), OTHER)


_METHODS: Final = frozenset({"GET", "HEAD", "POST", "DELETE", "OPTIONS", "PUT", "PATCH"})
