"""The MCP server: one tool, `delegate`, for coordinators that speak the Model Context Protocol over stdio.

Everything a coordinator has to read is kept small, because it pays for it: schema and description on every turn, the
result once. Does no work itself: the walk of a task is `delegate.run`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import logging
import os
import signal
from collections.abc import AsyncGenerator, Coroutine
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Final, cast

import anyio
import mcp_types as types
from mcp.server import Server, ServerRequestContext
from mcp.server.stdio import stdio_server

from garzone import __version__
from garzone.agent.events import CandidateJudged, CandidateStarted, CandidateText, CheckFinished, Event
from garzone.config import Settings
from garzone.core.errors import GarzoneError, UsageError
from garzone.core.ports import TextGenerator
from garzone.core.task import Report, Route, Task, TaskKind
from garzone.delegate.run import RESULT_CHARS, WORKING_KINDS, decide, decline, new_task_id, result_text, run

TOOL: Final = "delegate"
# Read by every coordinator on every turn: each word is there because leaving it out cost more (docs/delegation.md).
DESCRIPTION: Final = (
    "Hand one bounded coding task to a local model, which works on a git branch and proves the result by running a "
    "check. Do not read the files first. Trust `proved`: merge the branch unread; read its diff only if not proved. "
    "Not for design questions, or several tasks at once."
)
HEARTBEAT_S: Final = 10.0  # clients give up on a call that is silent for 60 s
TEXT_EVERY_S: Final = 2.0
_log = logging.getLogger(__name__)


def input_schema() -> dict[str, Any]:
    """What the tool takes. No `title` and no `default`: both reach the model and say nothing."""
    return {
        "type": "object",
        "properties": {
            "kind": {"type": "string", "enum": [kind.value for kind in WORKING_KINDS]},
            "task": {"type": "string", "description": "One change, in a sentence"},
            "files": {
                "type": "array",
                "items": {"type": "string"},
                "description": "Files it is about, relative to cwd",
            },
            "check": {"type": "string", "description": "Shell command that fails now and passes when done"},
            "cwd": {"type": "string", "description": "The git repository"},
        },
        "required": ["kind", "task"],
    }


def tool() -> types.Tool:
    """The tool as `tools/list` gives it."""
    return types.Tool(
        name=TOOL,
        description=DESCRIPTION,
        input_schema=input_schema(),
        # Claude Code hides tools behind a search unless told otherwise: an extra turn and 9 KB (INTEGRATION.md)
        _meta={"anthropic/alwaysLoad": True},
    )


@dataclass(frozen=True, slots=True)
class Choices:
    """What the person who starts the server decides; the coordinator cannot.

    `apply` puts proved results into the working tree, where they apply cleanly. `always` does what the policy would
    rather leave to the coordinator.
    """

    model: str | None = None
    backend: str | None = None
    candidates: int | None = None
    timeout_s: float | None = None
    apply: bool = False
    always: bool = False
    unsandboxed: bool = False


@dataclass(frozen=True, slots=True)
class Call:
    """A call of the tool, as the coordinator wrote it."""

    kind: TaskKind
    task: str
    files: tuple[str, ...] = ()
    check: str | None = None
    cwd: str | None = None

    @classmethod
    def parse(cls, arguments: dict[str, Any]) -> Call:
        """Read the arguments.

        Raises:
            UsageError: one is missing, unknown or of the wrong type.
        """
        known = [field.name for field in fields(cls)]
        if unknown := sorted(set(arguments) - set(known)):
            raise UsageError(f"unknown argument {unknown[0]!r}; there are: {', '.join(known)}")
        given = {name: value for name, value in arguments.items() if value not in (None, "", [])}
        try:
            kind = TaskKind(given.pop("kind", None))
        except ValueError:
            working = ", ".join(kind.value for kind in WORKING_KINDS)
            raise UsageError(f"kind must be one of: {working}") from None
        files = given.pop("files", [])
        if isinstance(files, str):
            files = [files]
        if not isinstance(files, list) or not all(isinstance(file, str) for file in cast("list[object]", files)):
            raise UsageError("files must be a list of paths")
        for name, value in given.items():
            if not isinstance(value, str):
                raise UsageError(f"{name} must be a string")
        return cls(kind, given.pop("task", ""), tuple(cast("list[str]", files)), **given)


class DelegateServer:
    """One tool over one generator, sandbox and ledger; each is opened by the first call that needs it."""

    def __init__(self, settings: Settings, choices: Choices | None = None) -> None:
        self._settings = settings
        self._choices = choices or Choices()
        self._backend = self._choices.backend or settings.backend
        self._generator: TextGenerator | None = None
        self._opening = asyncio.Lock()
        self._running: set[asyncio.Task[Report]] = set()
        self.protocol: Server[dict[str, Any]] = Server(
            "garzone", version=__version__, on_list_tools=self._list_tools, on_call_tool=self._call_tool
        )

    async def aclose(self) -> None:
        """End the tasks that run, in order, then the model's process."""
        if self._running:
            for task in self._running:
                task.cancel()
            await asyncio.wait(tuple(self._running))
        generator, self._generator = self._generator, None
        if generator is not None:
            await generator.aclose()

    async def _list_tools(self, ctx: ServerRequestContext[Any], params: object) -> types.ListToolsResult:
        del ctx, params
        return types.ListToolsResult(tools=[tool()])

    async def _call_tool(
        self, ctx: ServerRequestContext[Any], params: types.CallToolRequestParams
    ) -> types.CallToolResult:
        if params.name != TOOL:
            return _result(f"no tool is called {params.name!r}; there is: {TOOL}", is_error=True)
        try:
            return _result(await self._delegate(ctx, params.arguments or {}))
        except GarzoneError as error:
            return _result(f"not done: {error}", is_error=True)
        except Exception as error:  # noqa: BLE001 - a bug here must not end the coordinator's server; it is logged in full
            _log.exception("delegate failed")
            return _result(f"not done: garzone failed ({type(error).__name__}: {error})", is_error=True)

    async def _delegate(self, ctx: ServerRequestContext[Any], arguments: dict[str, Any]) -> str:
        task = self._task(Call.parse(arguments))
        call_text = json.dumps({"name": TOOL, "input": arguments}, ensure_ascii=False)
        await asyncio.to_thread(_import_wiring)
        from garzone import wiring  # noqa: PLC0415 - imported a line above, off the event loop

        ledger = wiring.open_ledger(self._settings)
        counter = wiring.open_counter(self._settings, task.model)
        if not self._choices.always:
            decision = await asyncio.to_thread(decide, task, ledger)
            if decision.route is Route.COORDINATOR:
                return await decline(task, decision, ledger, counter, call_text=call_text, caller="mcp")
        sandbox = wiring.open_sandbox(task.unsandboxed)
        generator = await self._open_generator()
        async with _Progress.reported(ctx, task) as progress:
            work = run(
                task,
                generator,
                sandbox,
                ledger,
                on_event=progress,
                caller="mcp",
                call_text=call_text,
                counter=counter,
            )
            report = await self._to_its_end(work)
        return result_text(report)

    async def _to_its_end(self, work: Coroutine[Any, Any, Report]) -> Report:
        """Await a task so that a cancellation ends it in order: the worker removes its worktree and processes first.

        The protocol's cancel scopes cancel every await again and again; asyncio's `cancel` comes once.
        """
        task = asyncio.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.cancel()
            with anyio.CancelScope(shield=True):
                await asyncio.wait((task,))
            raise

    async def _open_generator(self) -> TextGenerator:
        from garzone import wiring  # noqa: PLC0415 - see _import_wiring

        async with self._opening:
            if self._generator is None:
                self._generator = await wiring.open_generator(self._settings, self._backend)
            return self._generator

    def _task(self, call: Call) -> Task:
        repo = Path(call.cwd).expanduser() if call.cwd else Path.cwd()
        choices = self._choices
        task = Task(
            id=new_task_id(),
            kind=call.kind,
            instruction=call.task,
            repo=repo,
            files=tuple(_relative(name, repo) for name in call.files),
            check=call.check,
            model=choices.model or self._settings.model,
            backend=self._backend,
            apply=choices.apply,
            unsandboxed=choices.unsandboxed,
        )
        changes = {"num_candidates": choices.candidates, "timeout_s": choices.timeout_s}
        return replace(task, **{name: value for name, value in changes.items() if value is not None})


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
    warming = asyncio.create_task(asyncio.to_thread(_import_wiring))
    try:
        async with stdio_server() as (incoming, outgoing):
            await server.protocol.run(incoming, outgoing, server.protocol.create_initialization_options())
    finally:
        await warming
        await server.aclose()


class _Progress:
    """Turns worker events into progress notifications. Never fails a task because nobody listens."""

    def __init__(self, task: Task) -> None:
        self._total = float(max(task.num_candidates, 1) * max(task.max_rounds, 1) + 1)
        self._done = 0.0
        self._chars = 0
        self._message = "reading the repository, running the check"
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


def _import_wiring() -> None:
    """What tasks need, imported by the first: a coordinator waits for the list of tools before its first turn."""
    importlib.import_module("garzone.wiring")


def _result(text: str, *, is_error: bool = False) -> types.CallToolResult:
    """A result in one text, short enough for a coordinator's purse."""
    text = text if len(text) < RESULT_CHARS else text[: RESULT_CHARS - 2] + "…"
    return types.CallToolResult(content=[types.TextContent(text=text)], is_error=is_error)


def _relative(name: str, repo: Path) -> str:
    """Coordinators like absolute paths, tasks have relative ones. What lies outside is left to the worker to refuse."""
    path = Path(name)
    if not path.is_absolute():
        return name
    with contextlib.suppress(ValueError):
        return str(path.resolve().relative_to(repo.resolve()))
    return name
