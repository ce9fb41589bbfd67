"""The pool of runner processes: which models are in memory, who may use them next, and for how long they stay.

Implements TextGenerator, Embedder and LoadedModels for the embedded engine. Imports no tensors: they live in the
processes, so that compiling never blocks the server and an engine that crashes is an error to its requests only.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from garzone.config import Settings
from garzone.core.errors import BackendUnavailable, ModelNotFound, Overloaded, RunnerCrashed
from garzone.core.generation import (
    Delta,
    Embeddings,
    FinishReason,
    GenerateRequest,
    LoadedModel,
    ModelDetails,
    Pooling,
    ServedBy,
    Usage,
)
from garzone.core.ports import ModelStore
from garzone.engine.devices import detect
from garzone.engine.footprint import check_kv_cache
from garzone.runner.child import PING_INTERVAL_S, Answer, RunnerProcess
from garzone.runner.load_plan import context_of, plan_load
from garzone.runner.model import Tokenizer
from garzone.runner.protocol import Accepted, Embed, Embedded, Finished, Load, Loaded, Piece, ProtocolError
from garzone.runner.support import check_supported, generate_message, is_go_template, parser_for, with_model_defaults
from garzone.text.stream_parser import Parser

BACKEND: Final = "tinygrad"
DEFAULT_ENGINE: Final = "garzone.runner.model:load_model"
_log = logging.getLogger(__name__)
MAX_TOKENIZERS: Final = 2  # kept for count_tokens; tens of megabytes each


@dataclass(eq=False)
class _Resident:
    """A model in memory, or on its way there. `num_users` use it or wait for it."""

    details: ModelDetails
    keep_alive_s: float
    estimated_bytes: int = 0  # what it will take of the device, until it is loaded and says itself
    loading: asyncio.Task[tuple[RunnerProcess, Loaded]] | None = None
    num_users: int = 0
    num_slots: int = 1
    in_memory: bool = False  # it holds one of the places: loading, loaded or being closed
    last_used: float = field(default_factory=time.time)
    expires_at: float | None = None
    timer: asyncio.TimerHandle | None = None

    @property
    def process(self) -> RunnerProcess | None:
        """The process, once the model is loaded."""
        task = self.loading
        if task is None or not task.done() or task.cancelled() or task.exception() is not None:
            return None
        return task.result()[0]

    @property
    def memory_bytes(self) -> int:
        """What it takes of the device's memory."""
        loaded = self.loading.result()[1] if self.loading is not None and self.process is not None else None
        return loaded.memory_bytes if loaded is not None else self.estimated_bytes

    @property
    def num_waiting(self) -> int:
        """Requests that nothing is done for yet."""
        loaded = self.loading.result()[1] if self.loading is not None and self.process is not None else None
        return max(0, self.num_users - loaded.num_slots) if loaded is not None else self.num_users

    @property
    def broken(self) -> bool:
        """True when a new process is needed."""
        return self.loading is not None and self.loading.done() and (self.process is None or not self.process.usable)


class RunnerPool:
    """One process per loaded model, started on first use, restarted when it died, ended when idle for long enough.

    Requests for one model are answered as many at once as it has slots, and begun in the order they came. At most
    `max_loaded` models are in memory, and no more than fit the device's; the least recently used idle one makes
    room. At most `settings.max_queue` requests wait.
    """

    def __init__(
        self,
        store: ModelStore,
        settings: Settings,
        *,
        engine: str = DEFAULT_ENGINE,
        max_loaded: int = 2,
        stall_timeout_s: float = 180.0,
        ping_interval_s: float = PING_INTERVAL_S,
    ) -> None:
        self._store = store
        self._settings = settings
        self._engine = engine
        self._max_loaded = max_loaded
        self._stall_timeout_s = stall_timeout_s
        self._ping_interval_s = ping_interval_s
        self._memory_bytes = settings.max_memory_bytes  # 0: the device was not asked yet, or does not tell
        self._memory_asked = bool(settings.max_memory_bytes)
        self._residents: dict[str, _Resident] = {}  # by path of the weights: two names may share them
        self._closing: set[_Resident] = set()
        self._freed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._tokenizers: dict[str, Tokenizer] = {}
        self._closed = False
        self._finder = ThreadPoolExecutor(1, "find")  # one thread, so that requests are found in the order they came

    # --- TextGenerator

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Delta]:
        """Stream the answer. The first Delta is empty: it says that the request was accepted and its prompt fits.

        Raises:
            ModelNotFound, InvalidRequest, ContextOverflow, Overloaded: before anything was generated.
            GenerationFailed, RunnerCrashed: the engine broke off; the next request gets a new process. So does, once,
                one of which nothing was shown yet when the process died.
            ModelFileError, DeviceUnavailable: the model cannot be loaded.
        """
        details = await self._find(request.model)
        check_supported(request, details)
        if request.load_only and request.keep_alive_s == 0:
            await self.unload(request.model)
            yield Delta(finish_reason=FinishReason.STOP, usage=Usage())
            return
        started = time.perf_counter()
        load_ms, accepted, shown, retried = 0.0, False, False, False
        while True:
            resident, process, loaded_now = await self._enter(details, request.keep_alive_s)
            load_ms += (time.perf_counter() - started) * 1e3 if loaded_now else 0.0
            answer: Answer | None = None
            parser: Parser | None = None
            num_calls = 0
            try:
                if request.load_only:
                    yield Delta(finish_reason=FinishReason.STOP, usage=Usage(load_ms=load_ms))
                    return
                request = with_model_defaults(request, details)
                answer = process.begin(generate_message(request, details))
                while True:
                    message = await answer.next()
                    if isinstance(message, Accepted):
                        parser = parser_for(request, details, thinking_open=message.thinking_open)
                        if not accepted:
                            accepted = True
                            yield Delta()
                    elif isinstance(message, Finished):
                        break
                    elif not isinstance(message, Piece):
                        raise ProtocolError(f"a {type(message).__name__} is no part of an answer")
                    else:
                        shown = True
                        for delta in _deltas(message, parser):
                            num_calls += len(delta.tool_calls)
                            yield delta
                break
            except RunnerCrashed:
                if shown or retried or self._closed:
                    raise
                retried = True  # most likely another request's fault, and nobody has seen anything of this one yet
            finally:
                self._part(resident, answer)
        reason = message.finish_reason
        for delta in _last_deltas(message.text, parser):
            num_calls += len(delta.tool_calls)
            yield delta
        if num_calls and reason is FinishReason.STOP:
            reason = FinishReason.TOOL_CALLS
        usage = replace(message.usage, load_ms=load_ms)
        yield Delta(finish_reason=reason, usage=usage, logprobs=message.logprobs, stop=message.stop)

    async def embed(
        self,
        model: str,
        inputs: Sequence[str],
        *,
        pooling: Pooling | None = None,
        truncate: bool = True,
        dimensions: int | None = None,
        unit_length: bool = True,
        keep_alive_s: float | None = None,
    ) -> Embeddings:
        """One vector for each text; see the port."""
        details = await self._find(model)
        started = time.perf_counter()
        resident, process, loaded_now = await self._enter(details, keep_alive_s)
        load_ms = (time.perf_counter() - started) * 1e3 if loaded_now else 0.0
        answer: Answer | None = None
        try:
            answer = process.begin(Embed(0, tuple(inputs), pooling, truncate, dimensions, unit_length))
            message = await answer.next()
        finally:
            self._part(resident, answer)
        if not isinstance(message, Embedded):
            raise ProtocolError(f"a {type(message).__name__} is no vector")
        return replace(message.embeddings, load_ms=load_ms)

    async def save_rows(self, model: str) -> bool:
        """Keep on disk now what a model has computed of its prompts. False when it is not in memory."""
        details = await self._find(model)
        resident = self._residents.get(details.path)
        if resident is None or resident.process is None:
            return False
        resident.process.save_rows()
        return True

    async def count_tokens(self, model: str, text: str) -> int:
        """Number of tokens of `text`. Does not wait for the model, nor load it."""
        details = await self._find(model)
        tokenizer = self._tokenizers.get(details.path)
        if tokenizer is None:
            tokenizer = await asyncio.to_thread(_load_tokenizer, details.path)
            while len(self._tokenizers) >= MAX_TOKENIZERS:
                del self._tokenizers[next(iter(self._tokenizers))]
            self._tokenizers[details.path] = tokenizer
        return len(await asyncio.to_thread(tokenizer.encode, text, add_special=False))

    async def details(self, model: str) -> ModelDetails:
        """What the store knows; `context_tokens` is what a request may use here."""
        details = await self._find(model)
        return replace(details, context_tokens=context_of(details, self._settings), takes_grammar=True)

    async def served_by(self, model: str) -> ServedBy:
        """This engine, and the device the model is on (or would be asked to go to)."""
        details = await self._find(model)
        resident = self._residents.get(details.path)
        device = self._settings.device
        if resident is not None and resident.process is not None and resident.loading is not None:
            device = resident.loading.result()[1].device
        return ServedBy(model=details.name, digest=details.digest, backend=BACKEND, device=device)

    async def aclose(self) -> None:
        """End all processes; answers under way break off."""
        self._closed = True
        self._finder.shutdown(wait=False)
        for resident in list(self._residents.values()):
            self._retire(resident)
        while self._tasks:
            await asyncio.gather(*self._tasks)

    # --- LoadedModels

    def loaded(self) -> Sequence[LoadedModel]:
        """Models in memory now, most recently used first."""
        models: list[LoadedModel] = []
        for resident in sorted(self._residents.values(), key=lambda one: -one.last_used):
            if resident.process is None or resident.broken or resident.loading is None:
                continue
            _, loaded = resident.loading.result()
            expires_at = resident.expires_at
            if resident.num_users and resident.keep_alive_s >= 0:
                expires_at = time.time() + resident.keep_alive_s
            taken = loaded.context_tokens, loaded.device, loaded.memory_bytes
            models.append(LoadedModel(resident.details, *taken, expires_at, self._settings.kv_cache))
        return models

    @property
    def memory_bytes(self) -> int:
        """What models may take of the device; 0 when that is not known (yet)."""
        return self._memory_bytes

    async def unload(self, model: str) -> bool:
        """Take a model out of memory: at once when idle, else when those who wait for it have their answers."""
        details = await self._find(model)
        resident = self._residents.get(details.path)
        if resident is None:
            return False
        if resident.num_users:
            resident.keep_alive_s = 0
        else:
            await asyncio.shield(self._retire(resident))
        return True

    # --- who is in memory

    async def _find(self, model: str) -> ModelDetails:
        if self._closed:
            raise BackendUnavailable("garzone is shutting down")
        details = await asyncio.get_running_loop().run_in_executor(self._finder, self._store.find, model)
        if not details.path:
            raise ModelNotFound(model, "its weights are not on this machine")
        return details

    async def _enter(self, details: ModelDetails, keep_alive_s: float | None) -> tuple[_Resident, RunnerProcess, bool]:
        """Wait for the model; whether it had to be loaded. `_part` or `_leave` has to follow."""
        num_waiting = sum(one.num_waiting for one in (*self._residents.values(), *self._closing))
        if num_waiting >= self._settings.max_queue:
            raise Overloaded(f"{num_waiting} requests are waiting already; try again later (max_queue in config.toml)")
        keep_alive_s = self._settings.keep_alive_s if keep_alive_s is None else keep_alive_s
        loaded_now = False
        while True:
            resident = self._residents.get(details.path)
            if resident is not None and resident.broken:
                self._retire(resident)
                resident = None
            if resident is None:
                plan = plan_load(details, replace(self._settings, num_parallel=1))
                resident = self._residents[details.path] = _Resident(details, keep_alive_s, plan.memory_bytes)
                resident.loading = asyncio.create_task(self._load(resident), name=f"load {details.name}")
                resident.loading.add_done_callback(_mark_retrieved)
            resident.num_users += 1
            if resident.timer is not None:
                resident.timer.cancel()
            assert resident.loading is not None
            loaded_now = loaded_now or not resident.loading.done()
            try:
                process = await _loaded_process(resident)
            except BaseException:
                self._leave(resident)
                raise
            if process.usable:
                resident.details, resident.keep_alive_s = details, keep_alive_s
                return resident, process, loaded_now
            self._leave(resident)  # it died under another: a new one, and no harm done

    def _part(self, resident: _Resident, answer: Answer | None) -> None:
        """Leave a model with an answer that may still be under way."""
        if answer is None or answer.ended:
            self._leave(resident)
        else:
            self._spawn(self._cancel(answer, resident))

    def _leave(self, resident: _Resident) -> None:
        """One user less; the last one out sets the clock."""
        resident.num_users -= 1
        resident.last_used = time.time()
        if not resident.num_users:
            self._freed.set()
            self._start_clock(resident)

    def _start_clock(self, resident: _Resident) -> None:
        if self._residents.get(resident.details.path) is not resident:
            return  # retired already
        if resident.timer is not None:
            resident.timer.cancel()
        if resident.broken or resident.keep_alive_s == 0:
            self._retire(resident)
        elif resident.keep_alive_s > 0:
            resident.expires_at = time.time() + resident.keep_alive_s
            loop = asyncio.get_running_loop()
            resident.timer = loop.call_later(resident.keep_alive_s, self._retire, resident)
        else:
            resident.expires_at = None

    def _retire(self, resident: _Resident) -> asyncio.Task[None]:
        """Out of the pool now, out of memory as soon as its process has ended."""
        if self._residents.get(resident.details.path) is resident:
            del self._residents[resident.details.path]
        if resident.timer is not None:
            resident.timer.cancel()
        self._closing.add(resident)
        return self._spawn(self._close(resident))

    async def _close(self, resident: _Resident) -> None:
        assert resident.loading is not None
        if not resident.loading.done():
            resident.loading.cancel()
        await asyncio.wait([resident.loading])
        if resident.process is not None:
            await resident.process.close()
        resident.in_memory = False
        self._closing.discard(resident)
        self._freed.set()

    async def _load(self, resident: _Resident) -> tuple[RunnerProcess, Loaded]:
        """Bring a model into memory once there is room. Whoever waits for it may leave; it is loaded all the same."""
        if not self._memory_asked:
            self._memory_asked = True
            self._memory_bytes = (await asyncio.to_thread(detect, self._settings.device)).usable_bytes
        details = resident.details
        check_kv_cache(details.model_info, self._settings.kv_cache)
        draft = await self._find_draft(details)
        plan = plan_load(details, self._settings, device_bytes=self._memory_bytes, draft=draft)
        resident.num_slots, resident.estimated_bytes = plan.num_slots, plan.memory_bytes
        while not self._has_room(resident.estimated_bytes):
            self._freed.clear()
            await self._freed.wait()
        resident.in_memory = True
        process = await RunnerProcess.start(
            self._engine, stall_timeout_s=self._stall_timeout_s, ping_interval_s=self._ping_interval_s
        )
        try:
            template = "" if is_go_template(details.template) else details.template
            rows_dir = str(self._settings.cache_dir / "rows")
            load = Load(
                details.path,
                plan.num_ctx,
                self._settings.device,
                template,
                num_slots=plan.num_slots,
                digest=details.digest,
                rows_dir=rows_dir,
                draft_path=draft.path if draft else "",
                kv_cache=self._settings.kv_cache,
            )
            loaded = await process.load(load, self._settings.load_timeout_s)
            if loaded.note:
                _log.warning("model '%s' %s", details.name, loaded.note)
        except BaseException:
            process.kill()
            await process.close()
            resident.in_memory = False
            if self._residents.get(details.path) is resident:
                del self._residents[details.path]
            self._freed.set()
            raise
        if not resident.num_users:
            asyncio.get_running_loop().call_soon(self._start_clock, resident)
        return process, loaded

    async def _find_draft(self, details: ModelDetails) -> ModelDetails | None:
        """The model that guesses ahead for this one, where one is set and it is another."""
        if not self._settings.draft_model:
            return None
        try:
            draft = await self._find(self._settings.draft_model)
        except ModelNotFound as error:
            _log.warning("model '%s' goes without the draft model: %s", details.name, error)
            return None
        return draft if draft.path != details.path else None

    def _has_room(self, needed_bytes: int) -> bool:
        """Whether one more model may be in memory; if not, an idle one is asked to leave.

        One that is alone always may: whether it really fits is for the device to say.
        """
        present = [one for one in (*self._residents.values(), *self._closing) if one.in_memory]
        taken = sum(one.memory_bytes for one in present)
        fits = not self._memory_bytes or taken + needed_bytes <= self._memory_bytes
        if not present or (fits and len(present) < self._max_loaded):
            return True
        idle = [one for one in self._residents.values() if one.in_memory and one.process and not one.num_users]
        if idle and not self._closing:
            self._retire(min(idle, key=lambda one: one.last_used))
        return False

    async def _cancel(self, answer: Answer, resident: _Resident) -> None:
        await answer.cancel()
        self._leave(resident)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _deltas(piece: Piece, parser: Parser | None) -> Iterator[Delta]:
    if parser is None:
        yield Delta(text=piece.text, logprobs=piece.logprobs)
        return
    if piece.logprobs:
        yield Delta(logprobs=piece.logprobs)
    yield from parser.push(piece.text)


def _last_deltas(text: str, parser: Parser | None) -> list[Delta]:
    if parser is not None:
        return [*parser.push(text), *parser.finish()]
    return [Delta(text=text)] if text else []


async def _loaded_process(resident: _Resident) -> RunnerProcess:
    assert resident.loading is not None
    await asyncio.wait([resident.loading])  # whoever stops waiting does not stop the loading
    if resident.loading.cancelled():
        raise BackendUnavailable(f"model '{resident.details.name}' was taken out of memory while it was loading")
    return resident.loading.result()[0]


def _mark_retrieved(task: asyncio.Task[Any]) -> None:
    """A load whose waiters all left may fail without anybody to tell."""
    if not task.cancelled():
        task.exception()


def _load_tokenizer(path: str) -> Tokenizer:
    from garzone.engine.gguf import read_metadata  # noqa: PLC0415  only who counts pays for the import
    from garzone.text.tokenizer import Tokenizer as TextTokenizer  # noqa: PLC0415

    return TextTokenizer.from_gguf(read_metadata(Path(path)))
