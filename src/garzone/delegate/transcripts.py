"""Reads coordinators' transcripts for what delegations were really billed. Pure: lines in, bills out.

Claude Code and Clawdbot keep one JSON line an event; OpenClaw has the same events in a table. Formats are those of the
releases docs/delegation.md names; what is not understood is passed over.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from garzone.delegate.pricing import Billed, price_of

TOOL_NAME = re.compile(r"(?:^|__)delegate$")
TASK_ID = re.compile(r"\[garzone ([0-9a-f]{8})\b")  # what `result_text` puts into every result
Fields = Mapping[str, Any]


@dataclass(slots=True)
class _Turn:
    """One answer of the API: who, when, what it used, which tools it called, which results its request carried."""

    model: str
    at: str
    output_tokens: int
    input_tokens: int
    cache_write_tokens: int
    cache_read_tokens: int
    written: dict[str, int] = field(default_factory=dict[str, int])  # characters by tool call, "" for the rest
    delegations: list[str] = field(default_factory=list[str])
    results: list[str] = field(default_factory=list[str])


@dataclass(slots=True)
class _Session:
    """A transcript as it is read: turns in order, and the task each call of ours turned out to be."""

    name: str = ""
    turns: dict[str, _Turn] = field(default_factory=dict[str, _Turn])
    tasks: dict[str, str] = field(default_factory=dict[str, str])
    pending: list[str] = field(default_factory=list[str])


def bills(lines: Iterable[str], *, source: str, session: str = "") -> dict[str, Billed]:
    """What each delegation of a transcript was billed, by task id.

    A call is its share (by length) of the message that holds it. The result is the input side of the next request,
    which is the extra turn; where a request carried several results, each has its share.

    Args:
        lines: of the transcript; lines that are broken or of another kind do not matter.
        source: `claude-code` or `openclaw`, for the ledger.
        session: the session's name, where no line says it.
    """
    read = _Session(session)
    for line in lines:
        if '"message"' not in line:  # most lines of Claude Code's are large and none of ours
            continue
        try:
            event: Any = json.loads(line)
        except ValueError:
            continue  # the last line of a session that is being written
        if isinstance(event, dict):
            _read_event(read, cast("dict[str, Any]", event))
    return _bills(read, source)


def _read_event(read: _Session, event: Fields) -> None:
    message = event.get("message")
    if not isinstance(message, dict):
        return
    message = cast("dict[str, Any]", message)
    read.name = str(event.get("sessionId") or read.name)
    content: Any = message.get("content")
    blocks = _blocks_of(content)
    role = message.get("role")
    if role == "assistant" and isinstance(message.get("usage"), dict):
        _read_answer(read, event, message, blocks)
    elif role in ("toolResult", "tool"):  # OpenClaw: a message of its own
        _read_result(read, str(message.get("toolCallId") or ""), blocks)
    else:
        for block in blocks:
            if block.get("type") == "tool_result":
                _read_result(read, str(block.get("tool_use_id") or ""), _blocks_of(block.get("content")))


def _read_answer(read: _Session, event: Fields, message: Fields, blocks: list[Fields]) -> None:
    usage = cast("Fields", message["usage"])
    # Claude Code writes one line a content block, each with the usage of the whole message
    key = str(message.get("id") or event.get("id") or len(read.turns))
    turn = read.turns.get(key)
    if turn is None:
        turn = read.turns[key] = _Turn(
            model=str(message.get("model") or ""),
            at=str(event.get("timestamp") or message.get("timestamp") or ""),
            output_tokens=0,
            input_tokens=_count(usage, "input_tokens", "input"),
            cache_write_tokens=_count(usage, "cache_creation_input_tokens", "cacheWrite"),
            cache_read_tokens=_count(usage, "cache_read_input_tokens", "cacheRead"),
            results=read.pending,
        )
        read.pending = []
    turn.output_tokens = max(turn.output_tokens, _count(usage, "output_tokens", "output"))  # the last line has it all
    for block in blocks:
        is_call = block.get("type") in ("tool_use", "toolCall")
        call = str(block.get("id") or "") if is_call else ""
        told: Any = next((block[key] for key in ("input", "arguments", "text", "thinking") if block.get(key)), "")
        turn.written[call] = turn.written.get(call, 0) + len(json.dumps(told))
        if is_call and TOOL_NAME.search(str(block.get("name") or "")) and call not in turn.delegations:
            turn.delegations.append(call)


def _read_result(read: _Session, call: str, blocks: list[Fields]) -> None:
    text = " ".join(str(block.get("text") or "") for block in blocks)
    if found := TASK_ID.search(text):
        read.tasks[call] = found[1]
    read.pending.append(call)


def _bills(read: _Session, source: str) -> dict[str, Billed]:
    turns = list(read.turns.values())
    out: dict[str, Billed] = {}
    for calling in turns:
        for call in calling.delegations:
            if (task := read.tasks.get(call)) is None:
                continue
            share = calling.written[call] / max(sum(calling.written.values()), 1)
            written = round(calling.output_tokens * share)
            reading = next((turn for turn in turns if call in turn.results), None)
            parts = max(len(reading.results), 1) if reading else 1
            tokens = (
                (reading.input_tokens, reading.cache_write_tokens, reading.cache_read_tokens) if reading else (0, 0, 0)
            )
            fresh, cache_write, cache_read = (round(number / parts) for number in tokens)
            price = price_of(calling.model)
            usd = price and price.usd(
                input_tokens=fresh, output_tokens=written, cached_tokens=cache_read, cache_write_tokens=cache_write
            )
            out[task] = Billed(
                source=source,
                session=read.name,
                at=calling.at,
                model=calling.model,
                call_output_tokens=written,
                input_tokens=fresh,
                cache_write_tokens=cache_write,
                cache_read_tokens=cache_read,
                num_turns=int(reading is not None),
                usd=usd,
            )
    return out


def _blocks_of(content: object) -> list[Fields]:
    if isinstance(content, str):
        return [{"text": content}]
    if not isinstance(content, list):
        return []
    return [cast("Fields", block) for block in cast("list[object]", content) if isinstance(block, dict)]


def _count(usage: Fields, *names: str) -> int:
    for name in names:
        if isinstance(value := usage.get(name), int):
            return value
    return 0
