"""The journal of a task: what was asked for and every answer so far, so that a killed task can go on.

One file a task, below GARZONE_HOME; it is there exactly as long as the task is not finished. Only answers are kept, for
they are what was expensive: a resumed task asks its questions again and gets from here what was answered before, while
every check runs anew. So nothing that was proved before a kill is believed after it, and the rest follows by itself.
Knows nothing of the ledger.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import time
from collections.abc import AsyncGenerator, Generator
from dataclasses import asdict, dataclass, field
from io import TextIOWrapper
from pathlib import Path
from typing import Any, cast

from garzone.core.errors import LedgerError, UsageError
from garzone.core.generation import Delta, FinishReason, GenerateRequest, ModelDetails, ServedBy, Usage
from garzone.core.ports import TextGenerator
from garzone.core.task import Task, TaskKind

SHOWN = 8  # how many tasks an error names
KEPT_S = 14 * 86_400.0  # after which nobody goes on with a task any more


@dataclass(slots=True)
class Journal:
    """An open journal. Nobody else has it open; what is written is on disk before the next answer is asked for."""

    task: Task
    path: Path
    _file: TextIOWrapper
    _answers: dict[str, tuple[str, Usage]] = field(default_factory=dict[str, tuple[str, Usage]])

    @property
    def num_answers(self) -> int:
        """How many answers are kept."""
        return len(self._answers)

    def recall(self, request: GenerateRequest) -> tuple[str, Usage] | None:
        """What was answered to exactly this before."""
        return self._answers.get(_key(request))

    def keep(self, request: GenerateRequest, text: str, usage: Usage) -> None:
        """Write an answer down."""
        self._answers[_key(request)] = (text, usage)
        counts = {"prompt_tokens": usage.prompt_tokens, "cached_tokens": usage.cached_tokens}
        line = {"key": _key(request), "text": text, **counts, "completion_tokens": usage.completion_tokens}
        with contextlib.suppress(OSError):  # a full disk costs the way back, not the task
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()

    def forget(self) -> None:
        """Remove the journal: the task is finished."""
        self.path.unlink(missing_ok=True)


class Journals:
    """All journals, in one directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    @contextlib.contextmanager
    def begin(self, task: Task) -> Generator[Journal]:
        """A new journal for a task, or the one it has, for as long as this process works on it.

        Raises:
            UsageError: another process works on that task.
            LedgerError: the directory cannot be written.
        """
        path = self._path(task.id)
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            self._forget_old()
            file = path.open("a+", encoding="utf-8")
        except OSError as error:
            raise LedgerError(f"{path} cannot be written: {error.strerror}; set GARZONE_HOME") from error
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UsageError(f"task {task.id} is being worked on by another process") from None
            file.seek(0)
            lines = file.read().split("\n")
            if lines[0]:
                answers = _answers(lines[1:])
                if lines[-1]:  # the line that was being written when the process was killed
                    file.write("\n")
            else:
                answers = {}
                file.write(json.dumps(_task_to_json(task)) + "\n")
            file.flush()
            yield Journal(task, path, file, answers)

    def find(self, task_id: str) -> Task:
        """The task of a journal.

        Raises:
            UsageError: there is none of that id; says which there are.
        """
        tasks = {task.id: task for task in self.unfinished()}
        if task_id not in tasks:
            known = [f"{task.id} ({task.kind.value} in {task.repo})" for task in tasks.values()][:SHOWN]
            raise UsageError(
                f"no task {task_id} can go on: it is finished, or never began. "
                + (f"These can: {', '.join(known)}" if known else "No task was interrupted.")
            )
        return tasks[task_id]

    def unfinished(self) -> list[Task]:
        """Tasks with a journal, the newest first, those included that are being worked on."""
        if not self._directory.is_dir():
            return []
        paths = sorted(self._directory.glob("*.jsonl"), key=lambda path: path.stat().st_mtime, reverse=True)
        return [task for path in paths if (task := _task_of(path)) is not None]

    def way_back(self, task: Task) -> str:
        """What to do about a task that broke off, in half a sentence; "" where nothing of it is kept."""
        if self._path(task.id).exists():
            return f"garzone delegate --resume {task.id} goes on with it"
        return ""

    def _forget_old(self) -> None:
        limit = time.time() - KEPT_S
        for path in self._directory.glob("*.jsonl"):
            with contextlib.suppress(OSError):
                if path.stat().st_mtime < limit:
                    path.unlink()

    def _path(self, task_id: str) -> Path:
        if not task_id.isalnum():
            raise UsageError(f"{task_id!r} is not the id of a task")
        return self._directory / f"{task_id}.jsonl"


class Journaled:
    """A TextGenerator that answers from a journal what is in it, and writes down what another generator answers."""

    def __init__(self, inner: TextGenerator, journal: Journal) -> None:
        self._inner = inner
        self._journal = journal

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Delta]:
        """Stream an answer. One that the reader broke off is complete for the reader, so it is kept, too."""
        if kept := self._journal.recall(request):
            yield Delta(text=kept[0])
            yield Delta(finish_reason=FinishReason.STOP, usage=kept[1])
            return
        text, usage = "", None
        stream = self._inner.generate(request)
        async with contextlib.aclosing(stream):
            try:
                async for delta in stream:
                    text += delta.text
                    usage = delta.usage or usage
                    if delta.finish_reason is not None:
                        self._journal.keep(request, text, usage or Usage())
                    yield delta
            except GeneratorExit:
                if usage is None:
                    self._journal.keep(request, text, Usage())
                raise

    async def count_tokens(self, model: str, text: str) -> int:
        """The other's."""
        return await self._inner.count_tokens(model, text)

    async def details(self, model: str) -> ModelDetails:
        """The other's."""
        return await self._inner.details(model)

    async def served_by(self, model: str) -> ServedBy:
        """The other's."""
        return await self._inner.served_by(model)

    async def aclose(self) -> None:
        """The other's."""
        await self._inner.aclose()


def _key(request: GenerateRequest) -> str:
    """What makes two requests the same: all that decides the answer. A reader may break off either."""
    return hashlib.sha256(repr(request).encode()).hexdigest()


def _answers(lines: list[str]) -> dict[str, tuple[str, Usage]]:
    found: dict[str, tuple[str, Usage]] = {}
    for line in lines:
        try:
            fields = json.loads(line)
            usage = Usage(
                prompt_tokens=int(fields["prompt_tokens"]),
                cached_tokens=int(fields["cached_tokens"]),
                completion_tokens=int(fields["completion_tokens"]),
            )
            found[str(fields["key"])] = (str(fields["text"]), usage)
        except (ValueError, KeyError, TypeError):
            continue  # torn by a kill
    return found


def _task_to_json(task: Task) -> dict[str, Any]:
    return {**asdict(task), "kind": task.kind.value, "repo": str(task.repo.expanduser().resolve())}


def _task_of(path: Path) -> Task | None:
    """The task a journal is of; None where its first line was torn by a kill, so that nothing had begun."""
    try:
        with path.open(encoding="utf-8") as file:
            fields: Any = json.loads(file.readline())
        known = {each.name for each in dataclasses.fields(Task)}
        given: dict[str, Any] = {key: value for key, value in cast("dict[str, Any]", fields).items() if key in known}
        given |= {"kind": TaskKind(given["kind"]), "repo": Path(given["repo"]), "files": tuple(given["files"])}
        return Task(**given)
    except (OSError, ValueError, KeyError, TypeError):
        return None
