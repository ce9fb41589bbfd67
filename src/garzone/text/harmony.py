"""gpt-oss's harmony format as it streams -> what was said, what was thought, and which tools were called. Pure.

A message is `<|start|>ROLE<|channel|>CHANNEL to=RECIPIENT <|constrain|>json<|message|>BODY` and one of `<|end|>`,
`<|return|>`, `<|call|>`; the prompt ends inside the first header. `analysis` is thought, `commentary` to a function is
a call, all else is said. Source: https://github.com/openai/harmony/blob/main/docs/format.md
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from garzone.core.chat import ToolSpec
from garzone.core.generation import Delta
from garzone.text.tool_formats import read_harmony_call

MESSAGE: Final = "<|message|>"
_HEADER_MARKS: Final = ("<|start|>", "<|channel|>", "<|constrain|>")
_BODY_ENDS: Final = ("<|end|>", "<|return|>", "<|call|>", "<|start|>")
_RECIPIENT: Final = re.compile(r"to=([^\s<|]{1,256})")
_MAX_HEADER_CHARS: Final = 512  # a longer one is none


class HarmonyParser:
    """The parser for gpt-oss. A call of a tool that was not offered is given back as content, as it was written."""

    def __init__(self, tools: Sequence[ToolSpec] = (), *, id_prefix: str = "call_") -> None:
        self._names = frozenset(tool.name for tool in tools)
        self._id_prefix = id_prefix
        self._num_calls = 0
        self._pending: str = ""
        self._header: str | None = None  # of the message that is being read; None outside of headers
        self._kind = "said"
        self._call = ""
        self._recipient = ""
        self._head_of_call = ""
        self._fresh = True  # nothing has been read yet: the prompt may have ended inside a header

    def push(self, text: str) -> list[Delta]:
        """Deltas that `text` completes."""
        self._pending += text
        deltas: list[Delta] = []
        while self._step(deltas, last=False):
            pass
        return deltas

    def finish(self) -> list[Delta]:
        """What was held back, now that nothing follows."""
        deltas: list[Delta] = []
        while self._step(deltas, last=True):
            pass
        if self._kind == "call":
            self._end_call("", deltas)
        return deltas

    def _step(self, deltas: list[Delta], *, last: bool) -> bool:
        text = self._pending
        if not text:
            return False
        if self._fresh and self._header is None:
            if not last and any(mark.startswith(text) for mark in _HEADER_MARKS):
                return False
            self._fresh = False
            self._header = "" if text.startswith(_HEADER_MARKS) else None
            return True
        return self._step_in_header(deltas, last) if self._header is not None else self._step_in_body(deltas, last)

    def _step_in_header(self, deltas: list[Delta], last: bool) -> bool:
        assert self._header is not None
        text = self._pending
        at = text.find(MESSAGE)
        if 0 <= at <= _MAX_HEADER_CHARS:
            self._pending = text[at + len(MESSAGE) :]
            self._open(text[:at])
            return True
        if len(text) > _MAX_HEADER_CHARS + len(MESSAGE) or last:  # no header after all
            self._header, self._kind = None, "said"
            if last and text.startswith(_HEADER_MARKS) and _is_header(text):
                self._pending = ""  # cut off in the middle of one: nothing was said yet
                return False
            mark = next((mark for mark in _HEADER_MARKS if text.startswith(mark)), text[:1])
            self._put(mark, deltas)
            self._pending = text[len(mark) :]
            return True
        return False

    def _open(self, header: str) -> None:
        self._header = None
        recipient = _RECIPIENT.search(header)
        channel = header.rpartition("<|channel|>")[2]
        if recipient and recipient[1].startswith("functions."):
            self._kind, self._call, self._head_of_call = "call", "", header
            self._recipient = recipient[1]
        else:
            self._kind = "thought" if channel.lstrip().startswith("analysis") else "said"

    def _step_in_body(self, deltas: list[Delta], last: bool) -> bool:
        text = self._pending
        marks = (*_BODY_ENDS, "<|channel|>") if self._kind == "said" else _BODY_ENDS
        hits = [(at, mark) for mark in marks if (at := text.find(mark)) >= 0]
        if not hits:
            keep = 0 if last else max(_overlap(text, mark) for mark in marks)
            self._put(text[: len(text) - keep], deltas)
            self._pending = text[len(text) - keep :]
            return False
        at, mark = min(hits)
        self._put(text[:at], deltas)
        if self._kind == "call":
            self._end_call("" if mark == "<|start|>" else mark, deltas)
        self._kind = "said"
        if mark in _HEADER_MARKS:
            self._header, self._pending = "", text[at:]
        else:
            self._pending = text[at + len(mark) :]
        return True

    def _put(self, text: str, deltas: list[Delta]) -> None:
        if not text:
            return
        if self._kind == "call":
            self._call += text
        else:
            deltas.append(Delta(thinking=text) if self._kind == "thought" else Delta(text=text))

    def _end_call(self, close: str, deltas: list[Delta]) -> None:
        calls = read_harmony_call(self._recipient, self._call)
        self._kind = "said"
        if calls and calls[0].name in self._names:
            deltas.append(Delta(tool_calls=(replace(calls[0], id=f"{self._id_prefix}{self._num_calls}"),)))
            self._num_calls += 1
        else:
            self._put(f"{self._head_of_call}{MESSAGE}{self._call}{close}", deltas)
        self._call = ""


def _is_header(text: str) -> bool:
    """Whether a text that begins with a header's mark holds nothing but a header's words."""
    return re.fullmatch(r"(?:<\|(?:start|channel|constrain)\|>|[\w\s.=])*(?:<[|a-z]*)?", text) is not None


def _overlap(text: str, mark: str) -> int:
    """Length of the longest end of `text` that begins `mark`."""
    return next((size for size in range(min(len(text), len(mark) - 1), 0, -1) if mark.startswith(text[-size:])), 0)
