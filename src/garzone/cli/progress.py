"""Shows on stderr how a task is going: a live line on a terminal, plain lines where it is piped. Decides nothing."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.status import Status

from garzone.agent.events import AskedAgain, CandidateJudged, CandidateStarted, CandidateText, CheckFinished, Event

REFRESH_S = 0.2
CHARS_PER_TOKEN = 4


class TaskProgress:
    """A listener for worker events, and a context manager around them.

    `generation_s` is how long the model wrote in all, from the first piece of a candidate to its last.
    """

    def __init__(self, console: Console, *, num_candidates: int, max_rounds: int) -> None:
        self._console = console
        self._num_candidates, self._max_rounds = num_candidates, max_rounds
        self._status: Status | None = (
            console.status("reading the repository, running the check") if console.is_terminal else None
        )
        self._head = ""
        self._heads: dict[int, str] = {}  # of candidates that are being written or tried
        self._num_chars = 0
        self._first_text_at: float | None = None
        self._shown_at = 0.0
        self.generation_s = 0.0

    def __enter__(self) -> TaskProgress:
        if self._status:
            self._status.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._status:
            self._status.stop()

    def __call__(self, event: Event) -> None:
        """Show one event."""
        match event:
            case CheckFinished(stage="before"):
                outcome = "fails, as it should" if event.exit_code else "already passes"
                self._line(
                    f"check   {escape(event.command)}: {outcome} (exit {event.exit_code}, {_s(event.duration_ms)})"
                )
                self._now("asking the model (loading it, the first time)")
            case CheckFinished():
                pass  # the judgement that follows says it
            case CandidateStarted():
                where = f"{event.number}" + (
                    f", round {event.round}" if event.round > 1 else f"/{self._num_candidates}"
                )
                self._head = self._heads[event.number] = f"candidate {where}  {event.target}"
                self._num_chars, self._first_text_at = 0, None
                self._now(f"{escape(self._head)}: reading the prompt")
            case CandidateText():
                self._text(event.text)
            case AskedAgain():
                self._line(f"{escape(self._heads.get(event.number, self._head))}  [dim]{event.outcome}, asked again[/]")
            case CandidateJudged():
                self._judged(event)

    def _text(self, text: str) -> None:
        now = time.monotonic()
        self._num_chars += len(text)
        if self._first_text_at is None:
            self._first_text_at = now
        self._last_text_at = now
        if now - self._shown_at > REFRESH_S:
            self._shown_at = now
            self._now(f"{escape(self._head)}: about {self._num_chars // CHARS_PER_TOKEN} tokens")

    def _judged(self, event: CandidateJudged) -> None:
        if self._first_text_at is not None:
            self.generation_s += self._last_text_at - self._first_text_at
            self._first_text_at = None
        colour = {"proved": "green", "unproved": "yellow"}.get(event.outcome, "dim")
        reason = f": {escape(_first_line(event.reason))}" if event.reason else ""
        head = self._heads.pop(event.number, self._head)
        self._line(f"{escape(head)}  [{colour}]{event.outcome}[/]{reason}")
        self._now("next candidate")

    def _line(self, markup: str) -> None:
        if self._console.is_terminal:
            self._console.print(markup, highlight=False, no_wrap=True, overflow="ellipsis")
        else:
            self._console.print(markup, highlight=False, soft_wrap=True)

    def _now(self, markup: str) -> None:
        if self._status:
            self._status.update(markup)


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0][:160] if text.strip() else ""


def _s(duration_ms: float) -> str:
    return f"{duration_ms / 1000:.1f} s"
