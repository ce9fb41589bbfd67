"""A generator that is watched: what goes through it is noted, and what takes too long is ended.

Stands between the dialects and the engine, so that every dialect is counted alike. Changes nothing of an answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

from garzone.core.errors import DeadlineExceeded
from garzone.core.generation import Delta, GenerateRequest, ModelDetails, ServedBy
from garzone.core.ports import TextGenerator
from garzone.server.activity import Activity, Entry


class MeteredGenerator:
    """A TextGenerator in front of another one."""

    def __init__(self, generator: TextGenerator, activity: Activity, *, deadline_s: float = 0.0) -> None:
        """A watched generator.

        Args:
            generator: does the work; closed with this one.
            activity: is told what happens.
            deadline_s: how long a request may take in all, waiting included; 0 for as long as it likes.
        """
        self._generator = generator
        self._activity = activity
        self._deadline_s = deadline_s

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Delta]:
        """Stream the answer. Raises DeadlineExceeded, and what the other one raises."""
        entry = self._activity.begin(request)
        try:
            async with aclosing(self._generator.generate(request)) as deltas:
                if self._deadline_s > 0 and not request.load_only:
                    deltas = self._in_time(deltas)  # noqa: PLW2901  the one inside is closed by the block
                note = self._activity.piece
                async for delta in deltas:
                    note(entry, delta)
                    yield delta
        except BaseException as error:
            self._activity.end(entry, error if _is_failure(error, entry) else None)
            raise
        self._activity.end(entry)

    async def _in_time(self, deltas: AsyncGenerator[Delta]) -> AsyncGenerator[Delta]:
        """The same, until the deadline. The clock is only looked at while waiting: a slow reader is not the engine."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._deadline_s
        while True:
            try:
                async with asyncio.timeout_at(deadline):
                    delta = await anext(deltas)
            except StopAsyncIteration:
                return
            except TimeoutError as error:
                raise DeadlineExceeded(
                    f"the request took longer than {self._deadline_s:g} s; request_timeout_s in config.toml allows more"
                ) from error
            yield delta

    async def count_tokens(self, model: str, text: str) -> int:
        """As the other one does."""
        return await self._generator.count_tokens(model, text)

    async def details(self, model: str) -> ModelDetails:
        """As the other one does."""
        return await self._generator.details(model)

    async def served_by(self, model: str) -> ServedBy:
        """As the other one does."""
        return await self._generator.served_by(model)

    async def aclose(self) -> None:
        """Close the other one."""
        await self._generator.aclose()


def _is_failure(error: BaseException, entry: Entry) -> bool:
    """Not when the reader has gone: that is no error, and neither is closing after the last piece."""
    return not entry.outcome and not isinstance(error, GeneratorExit | asyncio.CancelledError)
