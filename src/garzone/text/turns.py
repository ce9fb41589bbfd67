"""Conversations made plainer for templates that refuse them. Pure.

Agents send several system messages, some in the middle, and several user messages in a row. Templates of Mistral's and
Gemma's models and of some of Qwen's raise on that. What is said stays, and its order; only who says it changes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from garzone.core.chat import Message, Role, TextPart

_BREAK = TextPart("\n\n")


def plainer(messages: Sequence[Message]) -> Iterator[list[Message]]:
    """Versions that ask less and less of a template: with one system message, at the beginning; then without any."""
    merged = _merged(_system_first(messages))
    yield merged
    if merged and merged[0].role is Role.SYSTEM:
        yield _merged([replace(merged[0], role=Role.USER), *merged[1:]])


def _system_first(messages: Sequence[Message]) -> Iterator[Message]:
    """Instructions after the beginning are told by the user, marked as what they are."""
    beginning = True
    for message in messages:
        beginning = beginning and message.role is Role.SYSTEM
        if message.role is Role.SYSTEM and not beginning:
            yield Message.of(Role.USER, f"<system>\n{message.text}\n</system>")
        else:
            yield message


def _merged(messages: Iterator[Message] | Sequence[Message]) -> list[Message]:
    """Neighbours who speak with one voice become one; results of tools stay apart."""
    turns: list[Message] = []
    for message in messages:
        last = turns[-1] if turns else None
        if last is None or last.role is not message.role or message.role is Role.TOOL:
            turns.append(message)
            continue
        between = (_BREAK,) if last.content and message.content else ()
        turns[-1] = replace(
            last,
            content=(*last.content, *between, *message.content),
            thinking=last.thinking + message.thinking,
            tool_calls=(*last.tool_calls, *message.tool_calls),
        )
    return turns
