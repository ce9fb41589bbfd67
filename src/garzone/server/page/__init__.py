"""`GET /ui`: one page that shows what the server is doing, and the document it asks for every second.

The page is `page.html`, with its style and its script in it: nothing is built, nothing comes from elsewhere, and the
policy it is sent with allows nothing else. It only looks; it can change nothing.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
import time
from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import PurePath
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from garzone import __version__
from garzone.core.errors import GarzoneError
from garzone.core.ports import LoadedModels, ModelStore, TaskHistory
from garzone.server.activity import Activity

RECENT_TASKS: Final = 12
SLOW_REFRESH_S: Final = 5.0  # for what is read from the disk


class Page:
    """The page of one server."""

    def __init__(
        self,
        activity: Activity,
        models: LoadedModels,
        store: ModelStore,
        history: TaskHistory | None,
        memory_limit: Callable[[], int],
    ) -> None:
        self._activity, self._models, self._store = activity, models, store
        self._history = history
        self._memory_limit = memory_limit
        self._started_at = time.time()
        self._from_disk: dict[str, Any] = {}
        self._read_at = 0.0
        self._reading: asyncio.Lock | None = None
        self._html = ""

    async def answer(self, request: Request) -> Response:
        """The page itself."""
        del request
        if not self._html:
            self._html = files("garzone.server.page").joinpath("page.html").read_text(encoding="utf-8")
        headers = {
            "content-security-policy": policy(self._html),
            "x-content-type-options": "nosniff",
            "x-frame-options": "DENY",
            "referrer-policy": "no-referrer",
            "cache-control": "no-cache",
        }
        return Response(self._html, media_type="text/html", headers=headers)

    async def state(self, request: Request) -> Response:
        """What it shows."""
        del request
        await self._refresh()
        document = {
            "version": __version__,
            "now": time.time(),
            "started_at": self._started_at,
            "memory_limit_bytes": self._memory_limit(),
            "loaded": [
                {
                    "name": model.details.name,
                    "device": model.device,
                    "memory_bytes": model.memory_bytes,
                    "context_tokens": model.context_tokens,
                    "expires_at": model.expires_at,
                    "quantization": model.details.quantization,
                    "parameter_size": model.details.parameter_size,
                }
                for model in self._models.loaded()
            ],
            "activity": self._activity.document(),
            **self._from_disk,
        }
        return JSONResponse(document, headers={"cache-control": "no-store"})

    async def _refresh(self) -> None:
        """Read store and ledger again now and then, once for all who watch."""
        self._reading = self._reading or asyncio.Lock()
        async with self._reading:
            if self._from_disk and time.monotonic() - self._read_at < SLOW_REFRESH_S:
                return
            self._from_disk = await asyncio.to_thread(self._read)
            self._read_at = time.monotonic()

    def _read(self) -> dict[str, Any]:
        document: dict[str, Any] = {"models": [], "tasks": [], "savings": None, "problem": ""}
        try:
            document["models"] = [
                {
                    "name": model.name,
                    "size_bytes": model.size_bytes,
                    "family": model.family,
                    "parameter_size": model.parameter_size,
                    "quantization": model.quantization,
                    "context_tokens": model.context_tokens,
                    "capabilities": list(model.capabilities),
                }
                for model in self._store.list_models()
            ]
            if self._history is not None:
                document["tasks"] = [
                    {
                        "id": task.id,
                        "kind": task.kind,
                        "repo": PurePath(task.repo).name,
                        "model": task.model,
                        "outcome": task.outcome,
                        "started_at": task.started_at,
                        "completion_tokens": task.completion_tokens,
                        "coordinator_tokens_spent": task.coordinator_tokens_spent,
                    }
                    for task in self._history.recent(RECENT_TASKS)
                ]
                document["savings"] = self._history.savings()
        except GarzoneError as error:  # the rest of the page is still worth looking at
            document["problem"] = str(error)
        return document


def policy(html: str) -> str:
    """The Content-Security-Policy that lets exactly this page's own style and script run, and it ask its own server."""
    directives: Mapping[str, str] = {
        "default-src": "'none'",
        "script-src": _hashes(html, "script"),
        "style-src": _hashes(html, "style"),
        "connect-src": "'self'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in directives.items())


def _hashes(html: str, tag: str) -> str:
    bodies = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
    digests = [base64.b64encode(hashlib.sha256(body.encode()).digest()).decode() for body in bodies]
    return " ".join(f"'sha256-{digest}'" for digest in digests)
