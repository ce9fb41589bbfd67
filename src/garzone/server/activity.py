"""What the server is doing and has done: requests under way, the last ones, and tokens a second. Opens nothing.

One event loop writes and reads it; nothing here is shared with threads.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from garzone.core.errors import GarzoneError
from garzone.core.generation import Delta, GenerateRequest, Usage

KEPT_REQUESTS: Final = 50
WINDOW_S: Final = 10  # over which tokens a second are averaged, and how often the graph has a point: each second
GRAPH_S: Final = 120


@dataclass(eq=False, slots=True)
class Entry:
    """One request for text. Times are of `time.monotonic`, but `started_at`, which is of the clock on the wall."""

    number: int
    model: str
    started_at: float
    started: float
    first_text: float | None = None
    ended: float | None = None
    num_pieces: int = 0
    usage: Usage | None = None
    outcome: str = ""  # once it has ended: a finish reason, `cancelled`, or the class of an error
    error: str = ""

    @property
    def state(self) -> str:
        """`waiting` for the queue, the model or the prompt; `generating`; `done`, `failed` or `cancelled`."""
        if self.ended is None:
            return "waiting" if self.first_text is None else "generating"
        if self.outcome == "cancelled":
            return "cancelled"
        return "failed" if self.error else "done"

    def tokens_per_s(self, now: float) -> float:
        """While it runs, pieces as they came; afterwards, what the engine measured."""
        if self.usage is not None and self.usage.decode_ms > 0:
            return self.usage.completion_tokens / self.usage.decode_ms * 1e3
        if self.first_text is None:
            return 0.0
        seconds = (self.ended or now) - self.first_text
        return (self.num_pieces - 1) / seconds if seconds > 0 and self.num_pieces > 1 else 0.0


class Observer(Protocol):
    """Is told what happens to requests, at once; must not wait."""

    def ended(self, entry: Entry) -> None:
        """A request is over, however."""
        ...


@dataclass(slots=True)
class Activity:
    """All requests of one server. `clock` is for tests."""

    observers: Sequence[Observer] = ()
    clock: Callable[[], float] = time.monotonic
    live: dict[int, Entry] = field(default_factory=dict[int, Entry])
    recent: deque[Entry] = field(default_factory=lambda: deque[Entry](maxlen=KEPT_REQUESTS))
    _numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))
    _seconds: deque[tuple[int, int]] = field(default_factory=lambda: deque[tuple[int, int]](maxlen=GRAPH_S))

    def begin(self, request: GenerateRequest) -> Entry:
        """A request has come."""
        entry = Entry(next(self._numbers), request.model, time.time(), self.clock())
        self.live[entry.number] = entry
        return entry

    def piece(self, entry: Entry, delta: Delta) -> None:
        """Something of its answer has come."""
        if delta.usage is not None:
            entry.usage = delta.usage
        if delta.finish_reason is not None:
            entry.outcome = delta.finish_reason.value
        if not (delta.text or delta.thinking or delta.tool_calls):
            return
        now = self.clock()
        if entry.first_text is None:
            entry.first_text = now
        entry.num_pieces += 1
        second = int(now)
        seconds = self._seconds
        if seconds and seconds[-1][0] == second:
            seconds[-1] = (second, seconds[-1][1] + 1)
        else:
            seconds.append((second, 1))

    def end(self, entry: Entry, error: BaseException | None = None) -> None:
        """It is over; without error and without a finish reason, its reader has gone."""
        if self.live.pop(entry.number, None) is None:
            return
        entry.ended = self.clock()
        if isinstance(error, GarzoneError):
            entry.outcome, entry.error = type(error).__name__, str(error)
        elif isinstance(error, Exception):
            entry.outcome, entry.error = "error", type(error).__name__
        elif not entry.outcome:
            entry.outcome = "cancelled"
        self.recent.append(entry)
        for observer in self.observers:
            observer.ended(entry)

    def num_waiting(self) -> int:
        """Requests that have no text yet."""
        return sum(entry.first_text is None for entry in self.live.values())

    def tokens_per_s(self) -> float:
        """Over the last ten seconds, of all requests."""
        now = int(self.clock())
        return sum(count for second, count in self._seconds if now - WINDOW_S <= second < now) / WINDOW_S

    def graph(self) -> list[int]:
        """Tokens in each of the last two minutes' seconds, the oldest first, without the one that has just begun."""
        now, counts = int(self.clock()), dict(self._seconds)
        return [counts.get(second, 0) for second in range(now - GRAPH_S, now)]

    def document(self) -> dict[str, Any]:
        """All of it, for a page."""
        now = self.clock()
        return {
            "tokens_per_s": round(self.tokens_per_s(), 1),
            "graph": self.graph(),
            "waiting": self.num_waiting(),
            "live": [_row(entry, now) for entry in reversed(self.live.values())],
            "recent": [_row(entry, now) for entry in reversed(self.recent)],
        }


def _row(entry: Entry, now: float) -> Mapping[str, Any]:
    usage = entry.usage or Usage()
    return {
        "number": entry.number,
        "model": entry.model,
        "state": entry.state,
        "outcome": entry.outcome,
        "error": entry.error[:300],
        "started_at": entry.started_at,
        "seconds": round((entry.ended or now) - entry.started, 2),
        "prompt_tokens": usage.prompt_tokens,
        "cached_tokens": usage.cached_tokens,
        "completion_tokens": usage.completion_tokens or entry.num_pieces,
        "tokens_per_s": round(entry.tokens_per_s(now), 1),
    }
