"""The Python API: what people import from `garzone`.

Three functions for one question each, and `Garzone` for everything else. Opens nothing until called, prints nothing.

    from garzone import query_local_coder
    print(query_local_coder("Write a regex for ISO dates", model="smollm2:135m"))
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncGenerator, Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from garzone import config
from garzone.config import DEFAULT_MODEL, Settings
from garzone.core.chat import Message, Role
from garzone.core.errors import UsageError
from garzone.core.generation import GenerateRequest, SamplingParams
from garzone.core.ports import TextGenerator
from garzone.core.task import Report, Task, TaskKind
from garzone.delegate.run import run
from garzone.wiring import open_generator, open_ledger, open_sandbox

__all__ = ["Garzone", "code_review", "implement_feature", "new_task_id", "query_local_coder"]

TEMPERATURE = 0.1  # of the three functions: CONTRACT.md
NUM_CTX = 8192  # always explicit: a server's own default can be as small as 2048 (EVIDENCE.md)

_CODER = "You are a careful software engineer. Answer with the code that was asked for, in one Markdown code block."
_REVIEWER = (
    "You are a careful code reviewer. List concrete problems, worst first; for each quote the line, say what goes "
    "wrong and how to repair it. If there are none, say so."
)


def new_task_id() -> str:
    """A short id for a task, as it appears in its branch's name."""
    return secrets.token_hex(3)


class Garzone:
    """A worker and the model behind it, for as long as the `async with` block lasts.

        async with Garzone() as g:
            report = await g.delegate("fix", "off by one in paginate", repo=".", check="pytest -q")

    Args:
        backend: None for the embedded engine; otherwise the URL of an Ollama or OpenAI-compatible server.
        model: used where a call names none.
        settings: None reads configuration and environment.
    """

    def __init__(
        self, backend: str | None = None, *, model: str | None = None, settings: Settings | None = None
    ) -> None:
        self._settings = settings or config.load()
        self._backend = backend or self._settings.backend
        self._model = model or self._settings.model
        self._generator: TextGenerator | None = None

    async def __aenter__(self) -> Garzone:
        self._generator = await open_generator(self._settings, self._backend)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._generator:
            await self._generator.aclose()
            self._generator = None

    @property
    def generator(self) -> TextGenerator:
        """What writes the text. Raises UsageError outside the `async with` block."""
        if self._generator is None:
            raise UsageError("Garzone is not open: use `async with Garzone() as g:`")
        return self._generator

    async def delegate(
        self,
        kind: str,
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
        on_event: Callable[[Any], None] | None = None,
    ) -> Report:
        """Do one bounded task and prove it.

        Args:
            kind: `fix`; the other kinds of CONTRACT.md are refused until they are there.
            instruction: what is wanted, in a sentence.
            repo: a git repository with a clean tree.
            files: what may be changed, relative to `repo`; empty: what the failing check points to.
            check: a shell command that fails now and must pass afterwards.
            model: a model reference; None for this object's.
            candidates: how many answers are tried in a round.
            rounds: how often the failing output is shown to the model again.
            timeout_s: bound on the whole task.
            apply: put a proved change into the working tree too.
            unsandboxed: run the check without isolation; the report says so.
            on_event: told of each step.

        Returns:
            The report; a task that fails is a report too.

        Raises:
            UsageError: the task itself is wrong.
            UnavailableError: no such model, no sandbox, or no server.
        """
        try:
            task_kind = TaskKind(kind)
        except ValueError:
            raise UsageError(f"no such kind: {kind!r}; known: {', '.join(k.value for k in TaskKind)}") from None
        task = Task(
            id=new_task_id(),
            kind=task_kind,
            instruction=instruction,
            repo=Path(repo),
            files=tuple(files),
            check=check,
            model=model or self._model,
            backend=self._backend,
            num_candidates=candidates,
            max_rounds=rounds,
            timeout_s=timeout_s,
            apply=apply,
            unsandboxed=unsandboxed,
        )
        with contextlib.closing(open_ledger(self._settings)) as ledger:
            return await run(task, self.generator, open_sandbox(unsandboxed), ledger, on_event=on_event)

    async def stream(
        self, prompt: str, *, model: str | None = None, system: str = "", sampling: SamplingParams | None = None
    ) -> AsyncGenerator[str]:
        """The answer to one prompt, piece by piece. Raises ModelNotFound, ContextOverflow, GenerationFailed."""
        messages = [Message.of(Role.SYSTEM, system)] if system else []
        request = GenerateRequest(
            model=model or self._model,
            messages=(*messages, Message.of(Role.USER, prompt)),
            sampling=sampling or SamplingParams(temperature=TEMPERATURE),
            num_ctx=NUM_CTX,
            truncate=False,
        )
        async with contextlib.aclosing(self.generator.generate(request)) as deltas:
            async for delta in deltas:
                if delta.text:
                    yield delta.text

    async def ask(
        self, prompt: str, *, model: str | None = None, system: str = "", sampling: SamplingParams | None = None
    ) -> str:
        """The whole answer to one prompt."""
        pieces = self.stream(prompt, model=model, system=system, sampling=sampling)
        return "".join([piece async for piece in pieces])


def query_local_coder(prompt: str, model: str = DEFAULT_MODEL, *, backend: str | None = None) -> str:
    """Ask a local model one question.

        query_local_coder("Write a regex for ISO dates", model="smollm2:135m")

    Args:
        prompt: the question.
        model: a model reference.
        backend: None for the embedded engine, otherwise the URL of an Ollama or OpenAI-compatible server.
    """
    return _ask(prompt, _CODER, model, backend)


def code_review(code: str, model: str = DEFAULT_MODEL, *, backend: str | None = None) -> str:
    """Have a local model look for problems in `code`. What it finds is opinion: nothing is run."""
    return _ask(f"Review this code:\n\n```\n{code}\n```", _REVIEWER, model, backend)


def implement_feature(description: str, model: str = DEFAULT_MODEL, *, backend: str | None = None) -> str:
    """Have a local model write code from a description. Nothing is run; `Garzone.delegate` is what proves."""
    return _ask(f"Implement this:\n\n{description}", _CODER, model, backend)


def _ask(prompt: str, system: str, model: str, backend: str | None) -> str:
    async def answer() -> str:
        async with Garzone(backend, model=model) as garzone:
            return await garzone.ask(prompt, system=system)

    return asyncio.run(answer())
