"""The Python API people import: `Garzone`, and three functions for a single question. Adds nothing but convenience.

from garzone import Garzone, delegate_task, query_local_coder

print(query_local_coder("Write a regex for ISO dates", model="smollm2:135m"))

report = delegate_task("fix", "off by one in paginate", repo=".", check="pytest -q")
print(report.verdict.value, report.branch)

async with Garzone() as g:
    report = await g.delegate("fix", "off by one in paginate", repo=".", check="pytest -q")

More in `examples/`, which the tests run.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import aclosing
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from garzone import config, wiring
from garzone.agent.events import Listener
from garzone.config import DEFAULT_MODEL, Settings
from garzone.core.chat import Message, Role
from garzone.core.errors import UsageError
from garzone.core.generation import Delta, FinishReason, GenerateRequest, SamplingParams
from garzone.core.ports import TextGenerator
from garzone.core.task import Report, Task, TaskKind
from garzone.delegate.policy import RouteDecision
from garzone.delegate.run import decide, new_task_id, run

__all__ = ["DEFAULT_MODEL", "Garzone", "code_review", "delegate_task", "implement_feature", "query_local_coder"]

TEMPERATURE = 0.1  # of the three functions: code wants the likeliest answer
_T = TypeVar("_T")


class Garzone:
    """A local coding agent for one event loop. Use as an async context manager.

    Args:
        backend: URL of an Ollama or OpenAI-compatible server; None is the configured one, or else the embedded engine.
        model: what is used where a call names none; None is the configured one.
        settings: instead of those of configuration file and environment.

    Example:
        >>> async with Garzone(model="smollm2:135m") as g:
        ...     print(await g.generate("Say hello."))
        ...     report = await g.delegate("fix", "take() adds", repo="shop", check="pytest -q")
        ...     print(report.verdict.value, report.branch)
    """

    def __init__(
        self, backend: str | None = None, *, model: str | None = None, settings: Settings | None = None
    ) -> None:
        self._settings = settings or config.load()
        self._backend = backend or self._settings.backend
        self.model = model or self._settings.model
        self._generator: TextGenerator | None = None

    async def __aenter__(self) -> Self:
        self._generator = await wiring.open_generator(self._settings, self._backend)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        generator, self._generator = self._generator, None
        if generator is not None:
            await generator.aclose()

    @property
    def generator(self) -> TextGenerator:
        """What writes; for requests with every field.

        Raises:
            UsageError: outside `async with`.
        """
        if self._generator is None:
            raise UsageError("use it inside `async with Garzone() as g:`")
        return self._generator

    async def delegate(
        self,
        kind: TaskKind | str,
        instruction: str = "",
        *,
        repo: str | Path = ".",
        files: Sequence[str] = (),
        check: str | None = None,
        model: str | None = None,
        candidates: int = 4,
        rounds: int = 2,
        timeout_s: float = 600.0,
        apply: bool = False,
        unsandboxed: bool = False,
        on_event: Listener | None = None,
    ) -> Report:
        """Do one bounded task; the flags are those of `garzone delegate`.

        Returns:
            The report; a task that failed is one too. The result is on `report.branch`.

        Raises:
            UsageError: the kind is unknown or not implemented, no check, a repository that cannot be worked on.
            UnavailableError: no model, no sandbox, no server.
            LedgerError: the ledger cannot be written; nothing was done.
        """
        task = Task(
            id=new_task_id(),
            kind=_kind(kind),
            instruction=instruction,
            repo=Path(repo),
            files=tuple(files),
            check=check,
            model=model or self.model,
            backend=self._backend,
            num_candidates=candidates,
            max_rounds=rounds,
            timeout_s=timeout_s,
            apply=apply,
            unsandboxed=unsandboxed,
        )
        return await self._run(task, on_event)

    async def resume(self, task_id: str, *, on_event: Listener | None = None) -> Report:
        """Go on with a task that broke off or was killed; what was answered is not asked again, every check runs anew.

        Raises:
            UsageError: there is no such task, it is finished, or another process works on it.
            UnavailableError, LedgerError: as `delegate`.
        """
        task = await asyncio.to_thread(wiring.open_journals(self._settings).find, task_id)
        return await self._run(task, on_event)

    async def _run(self, task: Task, on_event: Listener | None) -> Report:
        journals = wiring.open_journals(self._settings)
        try:
            return await run(
                task,
                self.generator,
                wiring.open_sandbox(task.unsandboxed),
                wiring.open_ledger(self._settings),
                on_event=on_event,
                caller="api",
                counter=wiring.open_counter(self._settings, task.model),
                journals=journals,
                device=await asyncio.to_thread(wiring.device_facts, self._settings, task.model, task.backend),
            )
        except BaseException as error:
            if way_back := journals.way_back(task):
                error.add_note(f"{way_back}; so does Garzone.resume({task.id!r})")
            raise

    async def route(
        self,
        kind: TaskKind | str,
        instruction: str = "",
        *,
        repo: str | Path = ".",
        files: Sequence[str] = (),
        check: str | None = None,
        model: str | None = None,
    ) -> RouteDecision:
        """Who should do a task, what delegating it is worth, and why, from what the ledger has seen. Runs nothing."""
        task = Task(
            id=new_task_id(),
            kind=_kind(kind),
            instruction=instruction,
            repo=Path(repo),
            files=tuple(files),
            check=check,
            model=model or self.model,
            backend=self._backend,
        )
        device = await asyncio.to_thread(wiring.device_facts, self._settings, task.model, task.backend)
        return await asyncio.to_thread(decide, task, wiring.open_ledger(self._settings), device)

    async def generate(self, prompt: str, *, model: str | None = None, **sampling: Any) -> str:
        """One answer to one prompt. `sampling` are fields of SamplingParams: temperature, max_tokens, seed, ..."""
        return await self.chat([Message.of(Role.USER, prompt)], model=model, **sampling)

    async def chat(self, messages: Sequence[Message], *, model: str | None = None, **sampling: Any) -> str:
        """The next turn of a conversation, as text."""
        pieces = [delta.text async for delta in self.stream(messages, model=model, **sampling)]
        return "".join(pieces)

    async def stream(
        self, messages: Sequence[Message], *, model: str | None = None, **sampling: Any
    ) -> AsyncGenerator[Delta]:
        """The next turn of a conversation as it is written. Closing the generator stops the work.

        Raises:
            ModelNotFound, BackendUnavailable, ContextOverflow, GenerationFailed: see core.errors.
        """
        request = GenerateRequest(
            model=model or self.model,
            messages=tuple(messages),
            sampling=_sampling(sampling),
            num_ctx=self._settings.num_ctx,  # always said: a server's own default may silently cut the prompt
            truncate=False,
        )
        async with aclosing(self.generator.generate(request)) as deltas:
            async for delta in deltas:
                yield delta


def delegate_task(
    kind: TaskKind | str,
    instruction: str = "",
    *,
    repo: str | Path = ".",
    files: Sequence[str] = (),
    check: str | None = None,
    model: str | None = None,
    backend: str | None = None,
    candidates: int = 4,
    rounds: int = 2,
    timeout_s: float = 600.0,
    apply: bool = False,
    unsandboxed: bool = False,
    on_event: Listener | None = None,
) -> Report:
    """Do one bounded task and wait for it: `Garzone.delegate` for those without an event loop.

    Returns:
        The report; a task that failed is one too. The result is on `report.branch`.

    Raises:
        UsageError, UnavailableError, LedgerError: as `Garzone.delegate`.

    Example:
        >>> report = delegate_task("fix", "take() adds", repo="shop", check="pytest -q")
        >>> if report.verdict is Verdict.PROVED:
        ...     print("git merge", report.branch)
    """

    async def work() -> Report:
        async with Garzone(backend, model=model) as garzone:
            return await garzone.delegate(
                kind,
                instruction,
                repo=repo,
                files=files,
                check=check,
                candidates=candidates,
                rounds=rounds,
                timeout_s=timeout_s,
                apply=apply,
                unsandboxed=unsandboxed,
                on_event=on_event,
            )

    return _wait(work())


def query_local_coder(prompt: str, model: str = DEFAULT_MODEL, *, backend: str | None = None) -> str:
    """Ask a local coding model one question.

    Args:
        prompt: the question.
        model: which model.
        backend: URL of a plain Ollama or an OpenAI-compatible server; None is the configured one, or the engine here.

    Returns:
        The answer. One that was cut off at the end of the context says so in its last line.

    Raises:
        GarzoneError: no such model, no such server, a prompt too long; the message says what to do.

    Example:
        >>> print(query_local_coder("Reverse a list in Python, one line", model="smollm2:135m"))
        >>> print(query_local_coder("Why is the sky blue?", backend="http://127.0.0.1:11434"))
    """
    return _wait(_ask([Message.of(Role.USER, prompt)], model, backend))


def code_review(code: str, model: str = DEFAULT_MODEL, *, backend: str | None = None) -> str:
    """Let a local model look over a piece of code. What it says is not checked.

    Example:
        >>> print(code_review(Path("pager.py").read_text(), model="qwen2.5-coder:7b"))
    """
    system = (
        "You review code. List real problems only: bugs, security holes, unclear names, missing cases. "
        "For each give the line, what is wrong, and how to repair it. If there is none, say so."
    )
    question = f"Review this code:\n\n{_fenced(code)}"
    return _wait(_ask([Message.of(Role.SYSTEM, system), Message.of(Role.USER, question)], model, backend))


def implement_feature(description: str, model: str = DEFAULT_MODEL, *, backend: str | None = None) -> str:
    """Let a local model write code for a description. What it writes is not run; `Garzone.delegate` proves.

    Example:
        >>> print(implement_feature("a function that pads a CSV row to n columns", model="qwen2.5-coder:7b"))
    """
    system = "You write complete, working code with type hints and error handling, in one Markdown code block."
    question = f"Implement this:\n\n{description}"
    return _wait(_ask([Message.of(Role.SYSTEM, system), Message.of(Role.USER, question)], model, backend))


async def _ask(messages: Sequence[Message], model: str, backend: str | None) -> str:
    pieces: list[str] = []
    async with Garzone(backend, model=model) as garzone:
        async for delta in garzone.stream(messages, temperature=TEMPERATURE):
            pieces.append(delta.text)
            if delta.finish_reason is FinishReason.LENGTH:
                pieces.append("\n[cut off: the context is full]")
    return "".join(pieces)


def _wait(work: Coroutine[Any, Any, _T]) -> _T:
    """Run a coroutine to its end, also where an event loop is already running (a notebook)."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    outcome: list[_T] = []
    problem: list[BaseException] = []

    def target() -> None:
        try:
            outcome.append(asyncio.run(work))
        except BaseException as error:  # noqa: BLE001 - carried over to the caller's thread, whatever it is
            problem.append(error)

    thread = threading.Thread(target=target)
    thread.start()
    thread.join()
    if problem:
        raise problem[0]
    return outcome[0]


def _kind(kind: TaskKind | str) -> TaskKind:
    try:
        return TaskKind(kind)
    except ValueError:
        known = ", ".join(kind.value for kind in TaskKind)
        raise UsageError(f"no kind of task is called {kind!r}; there are: {known}") from None


def _sampling(given: dict[str, Any]) -> SamplingParams:
    try:
        return SamplingParams(**given)
    except TypeError as error:
        raise UsageError(f"unknown sampling option: {error}") from error


def _fenced(code: str) -> str:
    fence = "```"
    while fence in code:
        fence += "`"
    return f"{fence}\n{code}\n{fence}"
