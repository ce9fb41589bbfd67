"""Text as a model streams it -> what was said, what was thought, and which tools were called. Pure.

Models mark reasoning and tool calls each in their own way (`tool_formats.py`, `harmony.py`). Knows nothing of wire
formats, and never guesses: text that only looks like a call is content unless it names a tool that was offered.

The parser holds text back only while it may still turn out to be a marker or a call, so that any chunking of the same
text gives the same result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final, Protocol

from garzone.core.chat import ToolCall, ToolSpec
from garzone.core.generation import Delta
from garzone.text.harmony import HarmonyParser
from garzone.text.tool_formats import (
    DEEPSEEK,
    HARMONY,
    HERMES,
    LLAMA3,
    MISTRAL,
    Calls,
    ThinkingTags,
    ToolFormat,
    disproved,
    may_be_bare_call,
    read_bare_calls,
)

MAX_REJECTED: Final = 16  # places that looked like a bare call and were none; after that nobody looks any more
MAX_CLOSES: Final = 64  # closing markers inside one call's strings
_MARKED: Final = (HERMES, LLAMA3, MISTRAL, DEEPSEEK)


class Parser(Protocol):
    """Feed it text as it comes with `push`, end with `finish`; both give Deltas in order."""

    def push(self, text: str) -> list[Delta]:
        """Deltas that `text` completes."""
        ...

    def finish(self) -> list[Delta]:
        """What was held back, now that nothing follows."""
        ...


def parser_of(
    tools: Sequence[ToolSpec], tool_format: ToolFormat, thinking: ThinkingTags | None, *, id_prefix: str = "call_"
) -> Parser:
    """The parser for a model of that format; `thinking` None where it does not reason."""
    if tool_format is HARMONY:
        return HarmonyParser(tools, id_prefix=id_prefix)
    return StreamParser(tools, tool_format, thinking, id_prefix=id_prefix)


class StreamParser:
    """The parser for all formats in which marks stand around calls and thoughts.

    Text inside markers that turns out to be no call of an offered tool is given back as content, markers and all, so
    that nothing a model wrote is lost. With no tools offered, markers of calls are content.

    Args:
        tools: what was offered.
        tool_format: how the model was taught to call; other families' markers are understood, too.
        thinking: how it marks its reasoning; None where it does not reason.
        id_prefix: what the ids of calls begin with; a number follows.
    """

    def __init__(
        self,
        tools: Sequence[ToolSpec] = (),
        tool_format: ToolFormat = HERMES,
        thinking: ThinkingTags | None = None,
        *,
        id_prefix: str = "call_",
    ) -> None:
        self._names = frozenset(tool.name for tool in tools)
        known = (tool_format, *(other for other in _MARKED if other is not tool_format))
        self._formats = {known_format.open: known_format for known_format in known} if tools else {}
        self._thinking = thinking
        self._id_prefix = id_prefix
        self._mode = "thinking" if thinking and thinking.implied else "content"
        self._call_format = tool_format
        self._pending = ""
        self._call = ""  # the text of a call so far, up to a close that did not end it
        self._first_close = -1  # where in `_call` the first close is, if there was one
        self._num_closes = 0  # how many of those there were
        self._patient = True  # whether they are passed over
        self._said_anything = False
        self._line_start = True  # whether what comes next stands at the beginning of a line
        self._held = ""  # content from the beginning of a line on that may be calls without markers
        self._checked = 0  # length of `_held` when it was last asked whether it still may
        self._num_rejected = 0
        self._num_calls = 0
        self._after_marker = False

    def push(self, text: str) -> list[Delta]:
        """Deltas that `text` completes."""
        self._pending += text
        deltas: list[Delta] = []
        while self._step(deltas):
            pass
        return deltas

    def finish(self) -> list[Delta]:
        """What was held back, now that nothing follows."""
        deltas: list[Delta] = []
        while self._mode == "call" and self._first_close >= 0:  # it was the end of the call after all
            self._patient = False
            text, at = self._call + self._pending, self._first_close
            close = self._call_format.close
            self._end_call(text[:at], close, deltas)
            self._pending = text[at + len(close) :]
            while self._step(deltas):
                pass
        rest, self._pending = self._pending, ""
        if self._mode == "call":
            self._end_call(self._call + rest, "", deltas)
        elif self._mode == "thinking":
            self._think(rest, deltas)
        else:
            self._say(rest, deltas)
        self._settle(deltas)
        return deltas

    # --- one step: consume up to the next marker, or as much as cannot be part of one

    def _step(self, deltas: list[Delta]) -> bool:
        if self._mode == "call":
            return self._step_in_call(deltas)
        if self._mode == "thinking":
            assert self._thinking
            before, found = self._until((self._thinking.close,))
            self._think(before, deltas)
            if found:
                self._mode, self._after_marker = "content", True
            return bool(found)
        markers = list(self._formats)
        if self._thinking and not self._said_anything and not self._held.strip():
            markers.append(self._thinking.open)
        before, found = self._until(markers)
        self._say(before, deltas)
        if not found:
            return False
        self._settle(deltas)
        if found in self._formats:
            self._mode, self._call_format = "call", self._formats[found]
            self._call, self._first_close, self._num_closes = "", -1, 0
        elif self._said_anything:  # said in this very step
            self._emit(found, deltas)
        else:
            self._mode, self._after_marker = "thinking", True
        return True

    def _step_in_call(self, deltas: list[Delta]) -> bool:
        close = self._call_format.close
        if not close:
            return False
        before, found = self._until((close,))
        self._call += before
        if not found:
            return False
        patient = self._patient and self._num_closes < MAX_CLOSES
        if patient and self._call_format.read(self._call) is None and _goes_on(self._call):
            if self._first_close < 0:
                self._first_close = len(self._call)
            self._num_closes += 1
            self._call += found
            return True
        self._end_call(self._call, found, deltas)
        return True

    def _until(self, markers: Sequence[str]) -> tuple[str, str]:
        """Take the text before the first marker and that marker, or all that cannot begin one."""
        text = self._pending
        hits = [(at, -len(marker), marker) for marker in markers if (at := text.find(marker)) >= 0]
        if hits:
            at, _, marker = min(hits)
            self._pending = text[at + len(marker) :]
            return text[:at], marker
        keep = max((_overlap(text, marker) for marker in markers), default=0)
        self._pending = text[len(text) - keep :]
        return text[: len(text) - keep], ""

    def _think(self, text: str, deltas: list[Delta]) -> None:
        if text := self._trimmed(text):
            deltas.append(Delta(thinking=text))

    def _trimmed(self, text: str) -> str:
        """Newlines right after a marker belong to the marker."""
        if self._after_marker:
            text = text.lstrip("\n")
            self._after_marker = not text
        return text

    # --- content, and calls in it that have no markers

    def _say(self, text: str, deltas: list[Delta]) -> None:
        text = self._trimmed(text)
        if not text:
            return
        if not self._formats:
            self._emit(text, deltas)
            return
        self._held += text
        while self._held:
            if self._may_be_call():
                return
            self._emit_line(deltas)

    def _may_be_call(self) -> bool:
        held = self._held
        if not self._line_start or not may_be_bare_call(held):
            return False
        if not held.strip():
            return True
        if self._num_rejected >= MAX_REJECTED:
            return False
        if len(held) > 1.25 * self._checked + 64:  # so that all these checks together take linear time
            self._checked = len(held)
            if disproved(held, self._offered):
                self._num_rejected += 1
                return False
        return True

    def _settle(self, deltas: list[Delta]) -> None:
        """Nothing more belongs to what is held: it is calls, or it is not."""
        while self._held:
            if self._line_start and self._held.strip() and may_be_bare_call(self._held):
                if self._num_rejected < MAX_REJECTED:
                    calls = read_bare_calls(self._held)
                    if calls and self._offered(calls):
                        self._held = ""
                        deltas.append(Delta(tool_calls=self._numbered(calls)))
                        return
                self._num_rejected += 1
            self._emit_line(deltas)

    def _emit_line(self, deltas: list[Delta]) -> None:
        """Let the held text go up to the next beginning of a line that could be that of a call."""
        end = self._held.find("\n")
        while 0 <= end < len(self._held) - 1 and not may_be_bare_call(self._held[end + 1 : end + 400]):
            end = self._held.find("\n", end + 1)
        end = end + 1 if end >= 0 else len(self._held)
        text, self._held, self._checked = self._held[:end], self._held[end:], 0
        self._emit(text, deltas)

    def _emit(self, text: str, deltas: list[Delta]) -> None:
        if text:
            self._said_anything = self._said_anything or not text.isspace()
            self._line_start = text.endswith("\n")
            deltas.append(Delta(text=text))

    # --- calls

    def _end_call(self, body: str, close: str, deltas: list[Delta]) -> None:
        self._mode, self._call, self._first_close = "content", "", -1
        calls = self._call_format.read(body)
        if calls and self._offered(calls):
            deltas.append(Delta(tool_calls=self._numbered(calls)))
            self._after_marker = self._line_start = True
        else:
            self._emit(self._call_format.open + body + close, deltas)

    def _offered(self, calls: Calls) -> bool:
        return all(call.name in self._names for call in calls)

    def _numbered(self, calls: Calls) -> tuple[ToolCall, ...]:
        first = self._num_calls
        self._num_calls += len(calls)
        return tuple(replace(call, id=call.id or f"{self._id_prefix}{first + n}") for n, call in enumerate(calls))


def _goes_on(body: str) -> bool:
    """Whether a closing marker after `body` stands inside a value: a file may well hold the word `</tool_call>`."""
    text = body.lstrip()
    if text.startswith("{"):
        return _ends_in_string(text)
    return "<parameter=" in text and text.rfind("<parameter=") > text.rfind("</parameter>")


def _ends_in_string(text: str) -> bool:
    """Whether JSON text stops inside a string."""
    inside, position = False, 0
    while (at := text.find('"', position)) >= 0:
        backslashes = len(text[position:at]) - len(text[position:at].rstrip("\\")) if inside else 0
        if backslashes % 2 == 0:
            inside = not inside
        position = at + 1
    return inside


def _overlap(text: str, marker: str) -> int:
    """Length of the longest end of `text` that begins `marker`."""
    at = text.find(marker[0], max(0, len(text) - len(marker) + 1))
    while at >= 0:
        if marker.startswith(text[at:]):
            return len(text) - at
        at = text.find(marker[0], at + 1)
    return 0
