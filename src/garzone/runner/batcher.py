"""Answers many requests at once: a step computes what the scheduler chose, and every answer grows by what came of it.

Speaks to no pipe: what it has to say goes to a callback. One thread calls `step`; prompts are made and masks computed
in others, while it runs.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Final

from garzone.core.errors import GarzoneError, GenerationFailed, RunnerCrashed
from garzone.core.generation import ChosenToken, FinishReason, GenerateRequest, Usage
from garzone.engine.row import Row
from garzone.engine.scores import Scores
from garzone.runner.draft_model import ModelDrafts
from garzone.runner.embedding import EmbeddingJob
from garzone.runner.gate import AllowedDrafts, GatedMatcher
from garzone.runner.model import Model
from garzone.runner.protocol import Accepted, Embed, Failed, Failure, Finished, Generate, Message, Piece, Progress
from garzone.runner.rendering import Prompt, render
from garzone.runner.row_store import RowStore
from garzone.runner.writer import Writer, Written
from garzone.scheduler.cost import StepTimes
from garzone.scheduler.scheduler import Batch, Part, Scheduler
from garzone.scheduler.sequence import Sequence as Progressing
from garzone.scheduler.slots import SlotPool
from garzone.text.grammar import for_schema

LONGEST_SHIFTED: Final = 10  # contexts: where an answer that shifts ends if nothing else ends it; Ollama's limit
_log = logging.getLogger(__name__)

Send = Callable[[Message], None]


@dataclass(eq=False)
class _Answer:
    """A request on its way: first its prompt is made, then it is scheduled and written."""

    number: int
    request: GenerateRequest
    num_ctx: int
    writer: Writer
    prompt: list[int]
    sequence: Progressing
    started: float | None = None  # when its first rows were computed
    prefilled: float | None = None


@dataclass(frozen=True, slots=True)
class _Prepared:
    prompt: Prompt
    prediction: list[int]
    matcher: GatedMatcher | None


class Batcher:
    """The answers of one model."""

    def __init__(self, model: Model, send: Send, rows: RowStore | None = None, times: StepTimes | None = None) -> None:
        self._model = model
        self._send = send
        self.rows = rows or RowStore(model.engine)
        num_slots = model.num_slots or model.engine.num_slots
        self.pool = SlotPool(num_slots, row_bytes=self.rows.row_bytes, spare_bytes=self.rows.budget_bytes)
        self.rows.restore_into(self.pool)
        self._times = times or StepTimes()
        self._scheduler = Scheduler(self.pool, model.engine.chunk_tokens, self._times)
        self._preparing: deque[tuple[Generate, Future[_Prepared]]] = deque()
        self._answers: dict[int, _Answer] = {}
        self._embeddings: deque[EmbeddingJob] = deque()
        self._prepare_thread = ThreadPoolExecutor(1, "prepare")
        self._mask_thread = ThreadPoolExecutor(1, "mask")

    @property
    def has_work(self) -> bool:
        """Whether `step` has anything to do."""
        return bool(self._preparing or self._answers or self._embeddings)

    def prepare_more(self) -> bool:
        """Compile one thing more that an answer may need, when there is no work; False when nothing is left."""
        return self._model.engine.prepare_more()

    def add(self, message: Generate) -> None:
        """A request arrived."""
        self._preparing.append((message, self._prepare_thread.submit(self._prepare, message)))

    def embed(self, message: Embed) -> None:
        """Texts to be embedded arrived."""
        self._embeddings.append(EmbeddingJob(self._model, message, self.pool, self.rows))

    def cancel(self, number: int) -> None:
        """A request is no longer wanted: its slot is free before the next step."""
        for entry in list(self._preparing):
            if entry[0].id == number:
                self._preparing.remove(entry)
                self._send(Finished(number, "", FinishReason.ABORTED, Usage()))
        for job in list(self._embeddings):
            if job.number == number:
                self._embeddings.remove(job)
                job.close()
                self._send(Finished(number, "", FinishReason.ABORTED, Usage()))
        answer = self._answers.get(number)
        if answer is not None:
            self._end(answer, "", FinishReason.ABORTED)

    def step(self) -> None:
        """Compute once, and send what came of it.

        Raises:
            GenerationFailed: the engine computed nonsense, or raised; nothing it holds can be trusted any more.
        """
        self._admit()
        if self._embeddings:
            self._embed_some()
        batch = self._scheduler.schedule()
        if not self._move(batch) or not batch.parts:
            return
        rows = [row for part in batch.parts for row in _rows(part)]
        for part in batch.parts:
            answer = self._answers[part.number]
            answer.started = answer.started or time.perf_counter()
            if part.num_wanted:
                answer.writer.prepare(part.draft, self._mask_thread)
        started = time.perf_counter()
        scores = self._model.engine.score(rows)
        self._times.observe(len(rows), (time.perf_counter() - started) * 1e3)
        first = 0
        for part in batch.parts:
            self._advance(part, scores[first : first + part.num_wanted])
            first += part.num_wanted

    def fail(self, error: BaseException) -> None:
        """Tell everybody that the engine is of no more use.

        GenerationFailed is one answer's nonsense, which it was told already; the others can be asked again.
        """
        if isinstance(error, GenerationFailed):
            error = RunnerCrashed("another request's answer was nonsense, and the model's process ends with it")
        for number in [*(message.id for message, _ in self._preparing), *self._answers, *self._embedding_numbers()]:
            self._send(Failed(number, Failure.of(error), fatal=True))

    def save(self, deadline_s: float) -> int:
        """Keep on disk what the slots and spares hold, as far as there is time; how many sequences were saved."""
        return self.rows.save(self.pool.kept(), deadline_s)

    def close(self) -> None:
        """End the threads."""
        self._prepare_thread.shutdown(wait=False, cancel_futures=True)
        self._mask_thread.shutdown(wait=False, cancel_futures=True)

    # --- from a request to a sequence

    def _prepare(self, message: Generate) -> _Prepared:
        """Everything about a request that takes time but no tensors."""
        model, request = self._model, message.request
        prompt = render(model, request, self._num_ctx(request) - 1)  # one row at least for the answer
        prediction: list[int] = []
        if request.prediction and request.draft and model.new_drafter is not None:
            prediction = model.tokenizer.encode(request.prediction, add_special=False, parse_special=False)
        grammar = request.grammar
        if grammar is None and request.output_schema is not None:
            grammar = for_schema(request.output_schema)
        matcher = None
        if grammar is not None:
            matcher = GatedMatcher(
                model.compile_grammar(grammar),
                model.tokenizer,
                thinking_mark=message.thinking_mark,
                begins_after=message.answer_after,
                opened=prompt.thinking_open or message.answer_opened,
            )
        return _Prepared(prompt, prediction, matcher)

    def _num_ctx(self, request: GenerateRequest) -> int:
        most = self._model.context_tokens
        return min(request.num_ctx or most, most)

    def _admit(self) -> None:
        """Take in what is prepared; wait for it when there is nothing else to do."""
        while self._preparing:
            message, future = self._preparing[0]
            if not future.done() and (self._answers or self._embeddings):
                return
            self._preparing.popleft()
            try:
                prepared = future.result()
            except GarzoneError as error:
                self._send(Failed(message.id, Failure.of(error)))
                continue
            except Exception as error:  # noqa: BLE001  a template or tokeniser that failed; the engine was not touched
                _log.exception("request %d could not be prepared", message.id)
                self._send(Failed(message.id, Failure.of(error)))
                continue
            self._send(Accepted(message.id, prepared.prompt.thinking_open))
            self._start(message, prepared)

    def _start(self, message: Generate, prepared: _Prepared) -> None:
        request, tokens = message.request, prepared.prompt.tokens
        num_ctx = self._num_ctx(request)
        most = LONGEST_SHIFTED * num_ctx if request.shift else num_ctx - len(tokens)
        if request.sampling.max_tokens is not None:
            most = min(most, request.sampling.max_tokens)
        drafter = None
        if request.draft and self._model.new_drafter is not None:
            drafter = self._model.new_drafter(tokens, prepared.prediction)
            if self._model.draft_model is not None:
                drafter = ModelDrafts(drafter, self._model.draft_model, tokens, self._times, self._is_alone)
            if prepared.matcher is not None:
                drafter = AllowedDrafts(prepared.matcher, drafter)
        writer = Writer(
            self._model,
            replace(request.sampling, max_tokens=most),
            tokens,
            keep_special=message.keep_special,
            matcher=prepared.matcher,
            num_logprobs=request.logprobs,
        )
        max_rows = num_ctx if request.shift else min(num_ctx, len(tokens) + most)
        sequence = Progressing(message.id, list(tokens), max(max_rows, len(tokens)), drafter)
        answer = _Answer(message.id, request, num_ctx, writer, tokens, sequence)
        self._answers[message.id] = answer
        if most < 1:  # only the prompt was wanted in the rows, and nothing said
            self._end(answer, "", FinishReason.LENGTH)
            return
        self._scheduler.add(sequence)

    def _is_alone(self) -> bool:
        return len(self._answers) == 1 and not self._embeddings

    # --- one step

    def _move(self, batch: Batch) -> bool:
        """Put rows where the batch expects them. False when some could not be had: it has to be scheduled again."""
        lost = self.rows.make(batch.moves)
        if not lost:
            return True
        for spare in lost.spares:
            self.pool.discard(spare)
        for slot in lost.slots:
            owner = self.pool.owner(slot)
            if owner is not None:
                self._scheduler.restart(owner)
        return False

    def _advance(self, part: Part, scores: Sequence[Scores]) -> None:
        answer = self._answers[part.number]
        if not part.num_wanted:
            self._scheduler.update(part)
            self._send(Progress(part.number, answer.sequence.num_computed))
            return
        if answer.prefilled is None:
            answer.prefilled = time.perf_counter()
        try:
            written = answer.writer.take(scores, part.draft)
        except GarzoneError as error:
            self._scheduler.finish(part.number)
            del self._answers[part.number]
            fatal = isinstance(error, GenerationFailed)  # nonsense may be in the rows, too
            self._send(Failed(part.number, Failure.of(error), fatal))
            if fatal:
                raise
            return
        self._scheduler.update(part, written.tokens)
        if written.finish_reason is not None:
            self._end(answer, written.text, written.finish_reason, written.logprobs)
        else:
            if written.text or written.logprobs:
                self._send(Piece(part.number, written.text, written.logprobs))
            self._shift_if_full(answer, written)

    def _shift_if_full(self, answer: _Answer, written: Written) -> None:
        if len(answer.sequence.tokens) < answer.num_ctx or not written.tokens:
            return
        num_keep = answer.request.sampling.num_keep
        self._scheduler.forget(answer.number, len(answer.prompt) if num_keep < 0 else num_keep)

    def _end(self, answer: _Answer, text: str, reason: FinishReason, logprobs: tuple[ChosenToken, ...] = ()) -> None:
        self._scheduler.finish(answer.number)
        del self._answers[answer.number]
        now = time.perf_counter()
        prefilled = answer.prefilled or now
        request, writer = answer.request, answer.writer
        usage = Usage(
            prompt_tokens=len(answer.prompt),
            cached_tokens=answer.sequence.num_cached,
            completion_tokens=len(writer.tokens),
            prefill_ms=(prefilled - (answer.started or now)) * 1e3,
            decode_ms=(now - prefilled) * 1e3,
            context=(*answer.prompt, *writer.tokens) if request.prompt is not None and not request.raw else (),
            drafted_tokens=writer.drafted,
            accepted_tokens=writer.accepted,
        )
        self._send(Finished(answer.number, text, reason, usage, logprobs, writer.stop))

    # --- embeddings

    def _embedding_numbers(self) -> Sequence[int]:
        return [job.number for job in self._embeddings]

    def _embed_some(self) -> None:
        """One chunk of the texts that are to be embedded, so that answers go on in between."""
        job = self._embeddings[0]
        try:
            done = job.step()
        except GarzoneError as error:
            job.close()
            self._embeddings.popleft()
            self._send(Failed(job.number, Failure.of(error), fatal=isinstance(error, GenerationFailed)))
            if isinstance(error, GenerationFailed):
                raise
            return
        if done is not None:
            self._embeddings.popleft()
            self._send(done)


def _rows(part: Part) -> list[Row]:
    first_wanted = len(part.tokens) - part.num_wanted
    return [
        Row(part.slot, part.start + index, token_id, index >= first_wanted)
        for index, token_id in enumerate(part.tokens)
    ]
