"""OpenAI's `/v1/completions`, the older route: a prompt, and with `suffix` the gap between the two is filled.

As in Ollama, a prompt without suffix goes through the model's chat template. Translates and decides nothing.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pydantic import Field

from garzone.core.errors import GarzoneError, InvalidRequest
from garzone.core.generation import ChosenToken, Delta, GenerateRequest, SamplingParams
from garzone.server.dialects.openai import DONE
from garzone.server.dialects.openai_common import (
    FINGERPRINT,
    FINISH_REASONS,
    MAX_CHOICES,
    Sampled,
    error_document,
    several,
    usage_of,
)
from garzone.server.dialects.wire import EVENT_STREAM, Strings, clamped_top_logprobs, event, validate


class _Asked(Sampled):
    prompt: Strings = Field(min_length=1)
    suffix: str = ""
    echo: bool = False
    n: int = Field(1, ge=1, le=MAX_CHOICES)
    best_of: int = 1
    logprobs: int | None = None


class CompletionExchange:
    """`/v1/completions`."""

    media_type = EVENT_STREAM
    drops_thinking = False

    def __init__(self, body: Mapping[str, Any]) -> None:
        self._asked = validate(_Asked, body)
        self._prompts = [prompt for prompt in self._asked.prompt for _ in range(self._asked.n)]  # by choice
        if len(self._prompts) > MAX_CHOICES:
            raise InvalidRequest(f"prompt: {len(self._prompts)} answers at once; at most {MAX_CHOICES} are supported")
        self.model = self._asked.model
        self.stream = self._asked.stream
        self._includes_usage = self._asked.stream_options.include_usage
        self._num_open = len(self._prompts)
        self._offsets = [0] * self._num_open
        head = {
            "id": f"cmpl-{uuid.uuid4().hex[:24]}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": self.model,
            "system_fingerprint": FINGERPRINT,
        }
        self._document = head
        self._head = "data: " + json.dumps(head)[:-1]

    def to_request(self, defaults: SamplingParams) -> GenerateRequest:
        """The first prompt; it is never cut."""
        asked = self._asked
        if asked.best_of not in (1, asked.n):
            raise InvalidRequest("best_of: answers are not compared here; ask for n of them and choose")
        if not all(asked.prompt) and not asked.suffix:
            raise InvalidRequest("prompt: must not be empty")
        return GenerateRequest(
            model=asked.model,
            prompt=asked.prompt[0],
            suffix=asked.suffix or None,
            sampling=asked.sampling(defaults, asked.max_tokens),
            think=False,  # there is no field for thoughts in the answer
            truncate=False,
            logprobs=None if asked.logprobs is None else clamped_top_logprobs(asked.logprobs),
        )

    def choices(self, request: GenerateRequest) -> Sequence[GenerateRequest]:
        """As many as are wanted to each prompt, those to one prompt next to each other."""
        prompts = (replace(request, prompt=prompt) for prompt in self._asked.prompt)
        return [choice for one in prompts for choice in several(one, self._asked.n)]

    def begin(self) -> bytes:
        """The prompts, if they are to be repeated."""
        if not self._asked.echo:
            return b""
        return b"".join(self._chunk(choice, prompt) for choice, prompt in enumerate(self._prompts))

    def piece(self, delta: Delta) -> bytes:
        """One event; with the last finish reason also usage, if asked for, and the end."""
        events = self._chunk(delta.choice, delta.text, delta.logprobs) if delta.text or delta.logprobs else b""
        if delta.finish_reason is None:
            return events
        events += self._chunk(delta.choice, "", reason=FINISH_REASONS[delta.finish_reason])
        self._num_open -= 1
        if self._num_open:
            return events
        if self._includes_usage:
            usage = json.dumps(usage_of(delta.usage))
            events += f'{self._head}, "choices": [], "usage": {usage}}}\n\n'.encode()
        return events + DONE

    def heartbeat(self) -> bytes:
        """A comment, which every reader of server-sent events skips."""
        return b": working\n\n"

    def broken(self, error: GarzoneError) -> bytes:
        """An event with the error; the `openai` package raises it."""
        return event(self.error_document(error))

    def whole(self, deltas: Sequence[Delta]) -> Mapping[str, Any]:
        """The completion in one document."""
        choices = [self._whole_choice(number, deltas) for number in range(len(self._prompts))]
        return {**self._document, "choices": choices, "usage": usage_of(deltas[-1].usage)}

    @staticmethod
    def error_document(error: GarzoneError) -> Mapping[str, Any]:
        """`{"error": {message, type, param, code}}`."""
        return error_document(error)

    def _whole_choice(self, number: int, deltas: Sequence[Delta]) -> dict[str, Any]:
        own = [delta for delta in deltas if delta.choice == number]
        reason = own[-1].finish_reason
        assert reason is not None
        tokens = [token for delta in own for token in delta.logprobs]
        text = (self._prompts[number] if self._asked.echo else "") + "".join(delta.text for delta in own)
        return self._choice(number, text, tokens, FINISH_REASONS[reason])

    def _chunk(self, number: int, text: str, tokens: Sequence[ChosenToken] = (), reason: str | None = None) -> bytes:
        choice = json.dumps(self._choice(number, text, tokens, reason))
        return f'{self._head}, "choices": [{choice}]}}\n\n'.encode()

    def _choice(self, number: int, text: str, tokens: Sequence[ChosenToken], reason: str | None) -> dict[str, Any]:
        logprobs = self._logprobs(number, tokens) if tokens else None
        return {"index": number, "text": text, "logprobs": logprobs, "finish_reason": reason}

    def _logprobs(self, number: int, tokens: Sequence[ChosenToken]) -> dict[str, Any]:
        offsets: list[int] = []
        for token in tokens:
            offsets.append(self._offsets[number])
            self._offsets[number] += len(token.chosen.token)
        return {
            "tokens": [token.chosen.token for token in tokens],
            "token_logprobs": [token.chosen.logprob for token in tokens],
            "top_logprobs": [{one.token: one.logprob for one in token.top} for token in tokens],
            "text_offset": offsets,
        }
