"""Answers one request after the other in one slot: prompt, prefill, decode, stop.

Keeps the rows of the last request, so that a conversation that goes on prefills only what is new. Speaks to no pipe:
what it has to say goes to a callback, and whether to stop it asks another.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from garzone.core.chat import Message, Role
from garzone.core.errors import GenerationFailed, InvalidRequest
from garzone.core.generation import FinishReason, GenerateRequest, SamplingParams, Usage
from garzone.runner.model import Model, Template
from garzone.runner.prompt import common_prefix, fit_continuation, fit_messages
from garzone.runner.protocol import Accepted, Finished, Piece, Progress
from garzone.runner.stop_strings import StopMatcher


@dataclass(frozen=True, slots=True)
class Listener:
    """Who waits for an answer: the request's id, where pieces go, and whether they are still wanted.

    `keep_special` as in `Generate`.
    """

    number: int
    emit: Callable[[Accepted | Progress | Piece], None]
    cancelled: Callable[[], bool]
    keep_special: bool = False


class Slot:
    """The one sequence of a runner: its KV rows, and the token ids they were made from."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._rows: list[int] = []

    def answer(self, request: GenerateRequest, listener: Listener) -> Finished:
        """Answer a request.

        Args:
            request: what is asked.
            listener: gets Accepted before the first tensor moves, then Progress and Pieces; asked between chunks and
                tokens whether to go on.

        Returns:
            How it ended, with the text that was not emitted yet.

        Raises:
            InvalidRequest, ContextOverflow: before Accepted; the slot is as it was.
            GenerationFailed: the engine computed nonsense.
        """
        model, sampling = self._model, request.sampling
        num_ctx = min(request.num_ctx or model.context_tokens, model.context_tokens)
        prompt, thinking_open = self._prompt(request, num_ctx - 1)  # one row at least for the answer
        max_tokens = num_ctx - len(prompt)
        if sampling.max_tokens is not None:
            max_tokens = min(max_tokens, sampling.max_tokens)
        listener.emit(Accepted(listener.number, thinking_open))

        num_cached = min(common_prefix(self._rows, prompt), len(prompt) - 1)  # the last token gives the logits
        started = time.perf_counter()
        logits = self._prefill(prompt, num_cached, listener)
        prefilled = time.perf_counter()

        answer: list[int] = []
        tail, reason = "", FinishReason.ABORTED
        if logits is not None:
            tail, reason = self._decode(answer, logits, prompt, replace(sampling, max_tokens=max_tokens), listener)
        usage = Usage(
            prompt_tokens=len(prompt),
            cached_tokens=num_cached,
            completion_tokens=len(answer),
            prefill_ms=(prefilled - started) * 1e3,
            decode_ms=(time.perf_counter() - prefilled) * 1e3,
            context=(*prompt, *answer) if request.prompt is not None and not request.raw else (),
        )
        return Finished(listener.number, tail, reason, usage)

    def _prefill(self, prompt: Sequence[int], start: int, listener: Listener) -> NDArray[np.float32] | None:
        """Logits after the prompt, or None when cancelled on the way."""
        engine = self._model.engine
        del self._rows[start:]
        logits: NDArray[np.float32] | None = None
        while len(self._rows) < len(prompt):
            if listener.cancelled():
                return None
            done = len(self._rows)
            chunk = list(prompt[done : done + engine.chunk_tokens])
            logits = engine.prefill(chunk, done)
            self._rows += chunk
            listener.emit(Progress(listener.number, len(self._rows)))
        return logits

    def _decode(
        self,
        answer: list[int],
        logits: NDArray[np.float32],
        prompt: Sequence[int],
        sampling: SamplingParams,
        listener: Listener,
    ) -> tuple[str, FinishReason]:
        """Fill `answer`, at most `sampling.max_tokens` long; the text not yet emitted, and why it ended."""
        model = self._model
        sampler = model.new_sampler(sampling, prompt)
        text, stops = model.new_detokenizer(), StopMatcher(sampling.stop)
        hidden = frozenset[int]() if listener.keep_special else model.tokenizer.special_ids
        while True:
            if listener.cancelled():
                return "", FinishReason.ABORTED
            _check_logits(logits)
            token_id = sampler.sample(logits)
            sampler.accept(token_id)
            answer.append(token_id)
            if token_id in model.tokenizer.eos_ids:
                return stops.push(text.finish()) + stops.finish(), FinishReason.STOP
            piece = "" if token_id in hidden else stops.push(text.push(token_id))
            if stops.matched is not None:
                return piece, FinishReason.STOP
            if len(answer) == sampling.max_tokens:
                return piece + stops.push(text.finish()) + stops.finish(), FinishReason.LENGTH
            if piece:
                listener.emit(Piece(listener.number, piece))
            logits = model.engine.decode(token_id, len(self._rows))
            self._rows.append(token_id)

    def _prompt(self, request: GenerateRequest, max_tokens: int) -> tuple[list[int], bool]:
        """Token ids of the prompt, and whether it ends inside the model's reasoning."""
        tokenizer = self._model.tokenizer
        if any(not 0 <= token_id < tokenizer.vocab_size for token_id in request.context):
            raise InvalidRequest(
                f"context: token ids must be from 0 to {tokenizer.vocab_size - 1}; it is another model's"
            )
        if request.raw and request.prompt is not None:
            tokens = tokenizer.encode(request.prompt, add_special=not request.context)
            return _not_empty(fit_continuation(request.context, tokens, max_tokens, truncate=request.truncate)), False
        messages = list(request.messages)
        if request.prompt is not None:
            messages = [Message.of(Role.SYSTEM, request.system)] if request.system else []
            messages.append(Message.of(Role.USER, request.prompt))
        template = self._template(request)
        extra: dict[str, Any] = {"enable_thinking": bool(request.think)}  # Qwen3, DeepSeek and most others
        if isinstance(request.think, str):
            extra["reasoning_effort"] = request.think  # gpt-oss
        thinking_open = False

        def encode(conversation: Sequence[Message]) -> list[int]:
            nonlocal thinking_open
            text = template.render(conversation, tools=request.tools, extra=extra)
            thinking_open = text.rstrip().endswith("<think>")
            tokens = tokenizer.encode(text, add_special=not request.context)
            if len(tokens) > 1 and tokens[0] == tokens[1] == tokenizer.bos_id:
                del tokens[0]  # the template wrote it, and so did the tokeniser
            return tokens

        if request.context:
            tokens = fit_continuation(request.context, encode(messages), max_tokens, truncate=request.truncate)
        else:
            tokens = _not_empty(fit_messages(messages, encode, max_tokens, truncate=request.truncate))
        return tokens, thinking_open

    def _template(self, request: GenerateRequest) -> Template:
        if request.template:
            return self._model.compile_template(request.template)
        if self._model.template is None:
            raise InvalidRequest(
                f"model '{request.model}' has no chat template; send raw: true with a prompt, or a Jinja `template`"
            )
        return self._model.template


def _not_empty(tokens: list[int]) -> list[int]:
    if not tokens:
        raise InvalidRequest("prompt: it has no tokens")
    return tokens


def _check_logits(logits: NDArray[np.float32]) -> None:
    """A NaN anywhere makes the maximum NaN; a model that overflowed must not look like one that rambles."""
    highest = float(logits.max())
    if not np.isfinite(highest):
        raise GenerationFailed(
            f"the model computed {highest} instead of scores; the file may be damaged, or a kernel wrong here; "
            "try garzone doctor"
        )
