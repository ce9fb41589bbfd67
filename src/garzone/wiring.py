"""The composition root: the only place where ports meet parts.

Everything that needs a store, a generator, a sandbox or a ledger gets it here, from Settings. Decides which part
implements which port, and nothing else.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from garzone.agent.sandbox import open_sandbox
from garzone.clients import open_client
from garzone.core.errors import GarzoneError
from garzone.delegate.counting import TokenCounter
from garzone.delegate.history import LedgerHistory
from garzone.delegate.journal import Journals
from garzone.delegate.ledger import Ledger
from garzone.delegate.policy import DeviceFacts
from garzone.engine.devices import detect
from garzone.engine.footprint import footprint
from garzone.runner.process import RunnerPool
from garzone.runner.prompt_count import TemplateCounter
from garzone.server.activity import Activity
from garzone.server.app import build_app
from garzone.server.front import Front, put_front
from garzone.server.gateway import GatewayRules
from garzone.server.metering import MeteredGenerator
from garzone.server.metrics import Metrics
from garzone.store.catalog import Store

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from garzone.config import Settings
    from garzone.core.ports import TextGenerator

__all__ = [
    "build_server",
    "device_facts",
    "open_counter",
    "open_generator",
    "open_journals",
    "open_ledger",
    "open_runner_pool",
    "open_sandbox",
    "open_store",
]


def open_store(settings: Settings) -> Store:
    """Models on disk, in Ollama's layout."""
    return Store(settings.models_dir, pypi_index=settings.pypi_index)


def open_runner_pool(settings: Settings) -> RunnerPool:
    """The embedded engine: one process per loaded model, started on first use."""
    return RunnerPool(open_store(settings), settings, max_loaded=settings.max_loaded)


async def open_generator(settings: Settings, backend: str | None = None) -> TextGenerator:
    """What a task is done with: the embedded engine, or the server at `backend` (or `settings.backend`).

    Raises:
        BackendUnavailable: nothing that speaks a known protocol answers there.
    """
    url = backend or settings.backend
    return await open_client(url, api_key=settings.backend_key) if url else open_runner_pool(settings)


def open_journals(settings: Settings) -> Journals:
    """Where unfinished tasks keep their answers; made on first use."""
    return Journals(settings.home / "tasks")


def open_ledger(settings: Settings) -> Ledger:
    """The ledger of tasks and savings; made on first use."""
    return Ledger(settings.ledger_path)


def open_counter(settings: Settings, model: str) -> TokenCounter:
    """What counts a coordinator's tokens: that model's vocabulary if it lies here, else another's, else a rule."""
    store = open_store(settings)
    try:
        details = store.find(model)
    except GarzoneError:
        try:
            details = next(iter(store.list_models()), None)
        except GarzoneError:
            details = None
    return TokenCounter(Path(details.path), details.name) if details and details.path else TokenCounter()


def device_facts(settings: Settings, model: str, backend: str | None = None) -> DeviceFacts:
    """What a task with that model would be done on. Asks the system, and opens no device; of a server, only its URL."""
    if url := backend or settings.backend:
        return DeviceFacts(url)
    device = detect(settings.device)
    roof: float | None = None
    if device.bandwidth:
        with contextlib.suppress(GarzoneError):  # a model that is not here: its size is not known
            details = open_store(settings).find(model)
            roof = device.bandwidth / footprint(details.model_info, details.size_bytes).read_bytes_per_token()
    return DeviceFacts(device.kind, roof)


def build_server(settings: Settings, *, preload: str | None = None, gateway: bool = False) -> Starlette:
    """The API server over the embedded engine; closing it ends every runner process.

    Args:
        settings: what it runs with.
        preload: a model to load at once.
        gateway: whether requests for the coordinator's models are passed on.
    """
    store = open_store(settings)
    pool = RunnerPool(store, settings, max_loaded=settings.max_loaded)
    metrics = Metrics()
    activity = Activity(observers=(metrics,))
    metered = MeteredGenerator(pool, activity, deadline_s=settings.request_timeout_s)
    app = build_app(
        metered,
        pool,
        store,
        preload=preload,
        host=settings.host,
        origins=settings.origins,
        embedder=pool,
        default_model=settings.model,
        tensors=store.tensors,
        gateway=_gateway_rules(settings, preload or settings.model) if gateway else None,
        counter=TemplateCounter(store),
    )
    front = Front(
        activity=activity,
        metrics=metrics,
        models=pool,
        library=store,
        history=LedgerHistory(open_ledger(settings)),
        memory_limit=lambda: pool.memory_bytes,
        api_key=settings.api_key,
    )
    return put_front(app, front)


def _gateway_rules(settings: Settings, model: str) -> GatewayRules:
    return GatewayRules(
        model,
        upstream=settings.gateway_upstream,
        forward=settings.gateway_forward,
        local=settings.gateway_local,
        background=settings.gateway_background,
    )
