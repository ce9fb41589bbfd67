"""Several answers to one request as one stream: asked for at once, so that the engine reads their prompt only once.

Knows no dialect; which requests belong together is the exchange's to say.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Final

from garzone.core.errors import GenerationFailed
from garzone.core.generation import Delta, GenerateRequest, Usage
from garzone.core.ports import TextGenerator

_AHEAD: Final = 8  # deltas of each answer that may wait for a slow reader


def answers(generator: TextGenerator, requests: Sequence[GenerateRequest]) -> AsyncGenerator[Delta]:
    """The answers to all of them, each Delta numbered with its request.

    One request is answered as it is. Of several, the last Delta of each answer has its finish reason, and only the
    last of all has the usage: that of all answers together. An error of one ends all. Closing the stream does, too.
    """
    return generator.generate(requests[0]) if len(requests) == 1 else _together(generator, requests)


async def _together(generator: TextGenerator, requests: Sequence[GenerateRequest]) -> AsyncGenerator[Delta]:
    arrived: asyncio.Queue[Delta | Exception] = asyncio.Queue(_AHEAD * len(requests))
    writing = [
        asyncio.create_task(_write(generator, request, number, arrived)) for number, request in enumerate(requests)
    ]
    usages: dict[int, Usage] = {}
    try:
        while len(usages) < len(requests):
            delta = await arrived.get()
            if isinstance(delta, Exception):
                raise delta
            if delta.finish_reason is not None:
                usages[delta.choice] = delta.usage or Usage()
                delta = replace(delta, usage=_total(usages, requests) if len(usages) == len(requests) else None)
            yield delta
    finally:
        for task in writing:
            task.cancel()
        await asyncio.gather(*writing, return_exceptions=True)


async def _write(
    generator: TextGenerator, request: GenerateRequest, number: int, arrived: asyncio.Queue[Delta | Exception]
) -> None:
    try:
        async with aclosing(generator.generate(request)) as deltas:
            async for delta in deltas:
                await arrived.put(replace(delta, choice=number))
                if delta.finish_reason is not None:
                    return
    except Exception as error:  # noqa: BLE001  handed over as it is, to be raised where the answers are read
        await arrived.put(error)
    else:
        await arrived.put(GenerationFailed("an answer ended without saying why"))


def _total(usages: dict[int, Usage], requests: Sequence[GenerateRequest]) -> Usage:
    """What all cost. A prompt that several answers share counts once, with what was cached of it before the first."""
    prompts: dict[str | None, Usage] = {}
    for number in range(len(requests)):
        prompts.setdefault(requests[number].prompt, usages[number])
    return Usage(
        prompt_tokens=sum(usage.prompt_tokens for usage in prompts.values()),
        cached_tokens=sum(usage.cached_tokens for usage in prompts.values()),
        completion_tokens=sum(usage.completion_tokens for usage in usages.values()),
        load_ms=max(usage.load_ms for usage in usages.values()),
        prefill_ms=max(usage.prefill_ms for usage in usages.values()),
        decode_ms=max(usage.decode_ms for usage in usages.values()),
        drafted_tokens=sum(usage.drafted_tokens for usage in usages.values()),
        accepted_tokens=sum(usage.accepted_tokens for usage in usages.values()),
    )
