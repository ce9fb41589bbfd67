"""Silence is broken every fifteen seconds, in each client's own dialect; by a clock that the test moves."""

import asyncio
import heapq
from collections.abc import AsyncGenerator, Callable
from typing import Any

import pytest

from garzone.core.generation import Delta, FinishReason, GenerateRequest, Usage
from garzone.server.dialects import anthropic_stream, ollama, openai, openai_completions, openai_responses_stream
from garzone.server.exchange import Exchange
from garzone.server.lifecycle import HEARTBEAT_S, Answer, Clock
from tests.server.conftest import Scripted

HI = [{"role": "user", "content": "hi"}]
ASKED = {"model": "scripted", "messages": HI, "prompt": "hi", "input": "hi", "stream": True}
BEATS = [
    (ollama.ChatExchange, b'"message":{"role":"assistant","content":""},"done":false}\n'),
    (ollama.GenerateExchange, b'"response":"","done":false}\n'),
    (openai.ChatExchange, b": working\n\n"),
    (openai_completions.CompletionExchange, b": working\n\n"),
    (openai_responses_stream.ResponseExchange, b'event: response.in_progress\ndata: {"type": "response.in_progress"'),
    (anthropic_stream.MessagesExchange, b'"delta": {"type": "text_delta", "text": ""}}\n\n'),
]


class HandClock:
    """Time that stands still until it is moved."""

    def __init__(self) -> None:
        self.time = 0.0
        self._sleepers: list[tuple[float, int, asyncio.Event]] = []

    def now(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        event = asyncio.Event()
        heapq.heappush(self._sleepers, (self.time + seconds, id(event), event))
        await event.wait()

    async def move_to(self, time: float) -> None:
        await settle()
        self.time = time
        while self._sleepers and self._sleepers[0][0] <= time:
            heapq.heappop(self._sleepers)[2].set()
        await settle()


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


class Held(Scripted):
    """Says nothing until it is let go; then a word, and nothing again."""

    def __init__(self) -> None:
        super().__init__(["x"], model="scripted")
        self.steps = asyncio.Semaphore(0)

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Delta]:
        await self.steps.acquire()
        yield Delta(text="word")
        await self.steps.acquire()
        yield Delta(finish_reason=FinishReason.STOP, usage=Usage())


@pytest.mark.parametrize(("exchange_of", "beat"), BEATS, ids=lambda value: getattr(value, "__name__", ""))
async def test_a_silent_stream_beats_every_fifteen_seconds(exchange_of: Callable[[Any], Exchange], beat: bytes) -> None:
    clock, generator, sent = HandClock(), Held(), list[dict[str, Any]]()

    async def receive() -> Any:
        await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    def beats() -> int:
        return sum(beat in message.get("body", b"") for message in sent)

    exchange = exchange_of(ASKED)
    answer = Answer(generator, exchange, clock=Clock(clock.now, clock.sleep))
    task = asyncio.create_task(answer({"type": "http"}, receive, send))
    await clock.move_to(HEARTBEAT_S - 0.1)
    assert not sent, "an error may still have a status of its own"
    await clock.move_to(HEARTBEAT_S)
    assert sent[0]["status"] == 200
    assert beats() == 1
    await clock.move_to(2 * HEARTBEAT_S - 0.1)
    assert beats() == 1
    await clock.move_to(2 * HEARTBEAT_S)
    assert beats() == 2
    await clock.move_to(2.5 * HEARTBEAT_S)
    generator.steps.release()
    await settle()
    assert b"word" in sent[-1]["body"]
    await clock.move_to(3 * HEARTBEAT_S)
    assert beats() == 2, "a word is a sign of life, too"
    generator.steps.release()
    await task
    assert sent[-1]["more_body"] is False
