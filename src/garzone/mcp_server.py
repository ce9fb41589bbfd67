"""The MCP server: the tool `delegate` for coordinators that speak the Model Context Protocol over stdio.

Turns calls, progress and cancellation from and to the protocol; what the tool says and does is `tool`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import AsyncGenerator
from typing import Any, Final

import anyio
import mcp_types as types
from mcp.server import Server, ServerRequestContext
from mcp.server.stdio import stdio_server

from garzone import __version__
from garzone.agent.events import CandidateJudged, CandidateStarted, CandidateText, CheckFinished, Event
from garzone.config import Settings
from garzone.core.errors import GarzoneError
from garzone.core.task import Task
from garzone.tool import DESCRIPTION, NAME, Choices, Delegator, import_wiring, input_schema, shortened

HEARTBEAT_S: Final = 10.0  # clients give up on a call that is silent for 60 s
_log = logging.getLogger(__name__)


def tool() -> types.Tool:
    """The tool as `tools/list` gives it."""
    return types.Tool(
        name=NAME,
        description=DESCRIPTION,
        input_schema=input_schema(),
        # Claude Code hides tools behind a search unless told otherwise: an extra turn and 9 KB (INTEGRATION.md)
        _meta={"anthropic/alwaysLoad": True},
    )


class DelegateServer:
    """One tool over one `Delegator`."""

    def __init__(self, settings: Settings, choices: Choices | None = None) -> None:
        self._delegator = Delegator(settings, choices or Choices(), "mcp")
        self._warming: asyncio.Task[None] | None = None
        self.protocol: Server[dict[str, Any]] = Server(
            "garzone", version=__version__, on_list_tools=self._list_tools, on_call_tool=self._call_tool
        )

    async def aclose(self) -> None:
        """End what runs, in order."""
        if self._warming is not None:
            await self._warming
        await self._delegator.aclose()

    async def _list_tools(self, ctx: ServerRequestContext[Any], params: object) -> types.ListToolsResult:
        del ctx, params
        if self._warming is None:  # not before: the coordinator waits for this list
            self._warming = asyncio.create_task(asyncio.to_thread(import_wiring))
        return types.ListToolsResult(tools=[tool()])

    async def _call_tool(
        self, ctx: ServerRequestContext[Any], params: types.CallToolRequestParams
    ) -> types.CallToolResult:
        if params.name != NAME:
            return _result(f"no tool is called {params.name!r}; there is: {NAME}", is_error=True)
        arguments = params.arguments or {}
        try:
            task = self._delegator.task(arguments)
        except GarzoneError as error:
            return _result(f"not done: {error}", is_error=True)
        try:
            async with _Progress.reported(ctx, task) as progress:
                return _result(await self._delegator.delegate(task, arguments, progress))
        except GarzoneError as error:
            return _result(self._delegator.not_done(task, error), is_error=True)
        except Exception as error:  # noqa: BLE001 - a bug must not end the coordinator's server; it is logged in full
            _log.exception("delegate failed")
            return _result(f"not done: garzone failed ({type(error).__name__}: {error})", is_error=True)


async def serve(settings: Settings, choices: Choices | None = None) -> None:
    """Serve on stdin and stdout until stdin is closed or the process is asked to end; both end running tasks.

    Does not return after a signal: the thread that waits for stdin cannot be woken, so the process exits (code 0).
    """
    server = DelegateServer(settings, choices)
    loop = asyncio.get_running_loop()
    endings: list[asyncio.Task[None]] = []

    async def end() -> None:
        await server.aclose()
        os._exit(0)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, lambda: endings.append(asyncio.create_task(end())))
    try:
        async with stdio_server() as (incoming, outgoing):
            await server.protocol.run(incoming, outgoing, server.protocol.create_initialization_options())
    finally:
        await server.aclose()


class _Progress:
    """Turns worker events into progress notifications. Never fails a task because nobody listens."""

    def __init__(self, task: Task) -> None:
        self._total = float(max(task.num_candidates, 1) * max(task.max_rounds, 1) + 1)
        self._done = 0.0
        self._chars = 0
        self._message = f"task {task.id}: reading the repository, running the check"
        self._changed = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    @classmethod
    @contextlib.asynccontextmanager
    async def reported(cls, ctx: ServerRequestContext[Any], task: Task) -> AsyncGenerator[_Progress]:
        """Report what the listener hears while the block runs."""
        progress = cls(task)
        reporting = asyncio.create_task(progress._report(ctx))
        try:
            yield progress
        finally:
            reporting.cancel()
            with anyio.CancelScope(shield=True), contextlib.suppress(asyncio.CancelledError):
                await reporting

    def __call__(self, event: Event) -> None:
        """Hear one event."""
        match event:
            case CheckFinished(stage="before"):
                self._tell("asking the model", done=self._done + 1)
            case CandidateStarted():
                self._chars = 0
                self._tell(f"candidate {event.number}: {event.target}")
            case CandidateText():
                self._chars += len(event.text)  # the heartbeat says it
            case CandidateJudged():
                self._tell(f"candidate {event.number}: {event.outcome}", done=self._done + 1)
            case _:
                pass

    def _tell(self, message: str, *, done: float | None = None) -> None:
        self._message = message
        self._done = self._done if done is None else min(done, self._total)
        self._changed.set()

    async def _report(self, ctx: ServerRequestContext[Any]) -> None:
        """Send what changed at once, and something every HEARTBEAT_S. The number must grow (MCP: progress)."""
        sent = -1.0
        while True:
            message = f"{self._message} ({self._chars} characters)" if self._chars else self._message
            sent = max(self._done, sent + 0.001)
            with contextlib.suppress(anyio.ClosedResourceError, anyio.BrokenResourceError):
                await ctx.session.report_progress(sent, self._total, message)
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), HEARTBEAT_S)


def _result(text: str, *, is_error: bool = False) -> types.CallToolResult:
    return types.CallToolResult(content=[types.TextContent(text=shortened(text))], is_error=is_error)
