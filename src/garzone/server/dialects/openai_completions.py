"""OpenAI's `/v1/completions`, the older route: a prompt, and with `suffix` the gap between the two is filled.

As in Ollama, a prompt without suffix goes through the model's chat template. Translates and decides nothing.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field

from garzone.core.errors import GarzoneError, InvalidRequest
from garzone.core.generation import ChosenToken, Delta, GenerateRequest, SamplingParams
from garzone.server.dialects.openai import DONE
from garzone.server.dialects.openai_common import FINGERPRINT, FINISH_REASONS, Sampled, error_document, usage_of
from garzone.server.dialects.wire import EVENT_STREAM, Strings, clamped_top_logprobs, event, validate


class _Asked(Sampled):
    prompt: Strings = Field(min_length=1)
    suffix: str = ""
    echo: bool = False
    n: int = 1
    best_of: int = 1
    logprobs: int | None = None


class CompletionExchange:
    """`/v1/completions`."""

    media_type = EVENT_STREAM
    drops_thinking = False

    def __init__(self, body: Mapping[str, Any]) -> None:
        self._asked = validate(_Asked, body)
        if len(self._asked.prompt) != 1:
            raise InvalidRequest("prompt: one text, please; several at once are not supported")
        self._prompt = self._asked.prompt[0]
        self.model = self._asked.model
        self.stream = self._asked.stream
        self._includes_usage = self._asked.stream_options.include_usage
        self._offset = 0
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
        """The prompt; it is never cut."""
        asked = self._asked
        if asked.n != 1 or asked.best_of != 1:
            raise InvalidRequest("n: only one choice is supported")
        if not self._prompt and not asked.suffix:
            raise InvalidRequest("prompt: must not be empty")
        return GenerateRequest(
            model=asked.model,
            prompt=self._prompt,
            suffix=asked.suffix or None,
            sampling=asked.sampling(defaults, asked.max_tokens),
            think=False,  # there is no field for thoughts in the answer
            truncate=False,
            logprobs=None if asked.logprobs is None else clamped_top_logprobs(asked.logprobs),
        )

    def begin(self) -> bytes:
        """The prompt, if it is to be repeated."""
        return self._chunk(self._prompt) if self._asked.echo else b""

    def piece(self, delta: Delta) -> bytes:
        """One event; with the finish reason also usage, if asked for, and the end."""
        events = self._chunk(delta.text, delta.logprobs) if delta.text or delta.logprobs else b""
        if delta.finish_reason is None:
            return events
        events += self._chunk("", reason=FINISH_REASONS[delta.finish_reason])
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
        last = deltas[-1]
        assert last.finish_reason is not None
        tokens = [token for delta in deltas for token in delta.logprobs]
        text = (self._prompt if self._asked.echo else "") + "".join(delta.text for delta in deltas)
        choice = self._choice(text, tokens, FINISH_REASONS[last.finish_reason])
        return {**self._document, "choices": [choice], "usage": usage_of(last.usage)}

    @staticmethod
    def error_document(error: GarzoneError) -> Mapping[str, Any]:
        """`{"error": {message, type, param, code}}`."""
        return error_document(error)

    def _chunk(self, text: str, tokens: Sequence[ChosenToken] = (), reason: str | None = None) -> bytes:
        choice = json.dumps(self._choice(text, tokens, reason))
        return f'{self._head}, "choices": [{choice}]}}\n\n'.encode()

    def _choice(self, text: str, tokens: Sequence[ChosenToken], reason: str | None) -> dict[str, Any]:
        logprobs = self._logprobs(tokens) if tokens else None
        return {"index": 0, "text": text, "logprobs": logprobs, "finish_reason": reason}

    def _logprobs(self, tokens: Sequence[ChosenToken]) -> dict[str, Any]:
        offsets: list[int] = []
        for token in tokens:
            offsets.append(self._offset)
            self._offset += len(token.chosen.token)
        return {
            "tokens": [token.chosen.token for token in tokens],
            "token_logprobs": [token.chosen.logprob for token in tokens],
            "top_logprobs": [{one.token: one.logprob for one in token.top} for token in tokens],
            "text_offset": offsets,
        }
