"""The tool `delegate`, whatever protocol it is called by: its words, its arguments, and doing what a call asks.

Everything a coordinator has to read is kept small, because it pays for it: schema and description on every turn, the
result once. Speaks no protocol: see `mcp_server`, and `cli.call` for plugins that start a process a task.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
from collections.abc import Coroutine
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Final, cast

import anyio

from garzone.agent.events import Listener
from garzone.config import Settings
from garzone.core.errors import GarzoneError, UsageError
from garzone.core.ports import TextGenerator
from garzone.core.task import Report, Route, Task, TaskKind
from garzone.delegate.run import RESULT_CHARS, WORKING_KINDS, decide, decline, new_task_id, result_text, run

NAME: Final = "delegate"
# Read by every coordinator on every turn: each word is there because leaving it out cost more (docs/delegation.md).
DESCRIPTION: Final = (
    "Hand one bounded coding task to a local model, which works on a git branch and proves the result by running a "
    "check. Do not read the files first. Trust `proved`: merge the branch unread; read its diff only if not proved. "
    "Not for design questions, or several tasks at once."
)


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
            "check": {"type": "string", "description": "Shell command that passes when done (fix: fails now)"},
            "cwd": {"type": "string", "description": "The git repository"},
        },
        "required": ["kind", "task"],
    }


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


class Delegator:
    """Does calls of the tool over one generator, which the first call opens.

    Args:
        settings: of this process.
        choices: what the person decided who started it.
        caller: for the ledger: `mcp`, or the name of a plugin.
    """

    def __init__(self, settings: Settings, choices: Choices, caller: str) -> None:
        self._settings = settings
        self._choices = choices
        self._caller = caller
        self._backend = choices.backend or settings.backend
        self._generator: TextGenerator | None = None
        self._opening = asyncio.Lock()
        self._running: set[asyncio.Task[Report]] = set()

    async def aclose(self) -> None:
        """End the tasks that run, in order, then the model's process."""
        if self._running:
            for task in self._running:
                task.cancel()
            await asyncio.wait(tuple(self._running))
        generator, self._generator = self._generator, None
        if generator is not None:
            await generator.aclose()

    def task(self, arguments: dict[str, Any]) -> Task:
        """What a call asks for.

        Raises:
            UsageError: an argument is missing, unknown or of the wrong type.
        """
        call = Call.parse(arguments)
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

    async def delegate(self, task: Task, arguments: dict[str, Any], listener: Listener) -> str:
        """Do a task, or send it back where that does not pay.

        Args:
            task: from `task`.
            arguments: what the coordinator wrote, for what it cost.
            listener: told of every step.

        Returns:
            What the coordinator reads, shorter than RESULT_CHARS.

        Raises:
            GarzoneError: see `delegate.run.run`.
        """
        await asyncio.to_thread(import_wiring)
        from garzone import wiring  # noqa: PLC0415 - imported a line above, off the event loop

        call_text = json.dumps({"name": NAME, "input": arguments}, ensure_ascii=False)
        ledger = wiring.open_ledger(self._settings)
        counter = wiring.open_counter(self._settings, task.model)
        device = await asyncio.to_thread(wiring.device_facts, self._settings, task.model, task.backend)
        if not self._choices.always:
            decision = await asyncio.to_thread(decide, task, ledger, device)
            if decision.route is Route.COORDINATOR:
                return await decline(task, decision, ledger, counter, call_text=call_text, caller=self._caller)
        sandbox = wiring.open_sandbox(task.unsandboxed)
        async with self._opening:
            if self._generator is None:
                self._generator = await wiring.open_generator(self._settings, self._backend)
        work = run(
            task,
            self._generator,
            sandbox,
            ledger,
            on_event=listener,
            caller=self._caller,
            call_text=call_text,
            counter=counter,
            journals=wiring.open_journals(self._settings),
            device=device,
        )
        return result_text(await self._to_its_end(work))

    def not_done(self, task: Task, error: GarzoneError) -> str:
        """What the coordinator reads of a task that broke off."""
        from garzone import wiring  # noqa: PLC0415 - imported by the task already

        way_back = wiring.open_journals(self._settings).way_back(task)
        return shortened(f"not done: {error}", f"; {way_back}" if way_back else "")

    async def _to_its_end(self, work: Coroutine[Any, Any, Report]) -> Report:
        """Await a task so that a cancellation ends it in order: the worker removes its worktree and processes first.

        A protocol's cancel scope may cancel every await again and again; the worker's own task is cancelled once.
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


def import_wiring() -> None:
    """What tasks need, imported by the first: a coordinator waits for the list of tools before its first turn."""
    importlib.import_module("garzone.wiring")


def shortened(text: str, end: str = "") -> str:
    """A text short enough for a coordinator's purse, with an end that is not cut."""
    most = RESULT_CHARS - 1 - len(end)
    return (text if len(text) <= most else text[: most - 1] + "…") + end


def _relative(name: str, repo: Path) -> str:
    """Coordinators like absolute paths, tasks have relative ones. What lies outside is left to the worker to refuse."""
    path = Path(name)
    if not path.is_absolute():
        return name
    with contextlib.suppress(ValueError):
        return str(path.resolve().relative_to(repo.resolve()))
    return name
