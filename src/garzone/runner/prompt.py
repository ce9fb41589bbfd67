"""Decides what part of a conversation fits the context. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from garzone.core.chat import Message, Role
from garzone.core.errors import ContextOverflow


def fit_messages(
    messages: Sequence[Message],
    encode: Callable[[Sequence[Message]], list[int]],
    max_tokens: int,
    *,
    truncate: bool,
) -> list[int]:
    """Token ids of as much of the conversation as fits.

    What is dropped is the oldest, system messages stay, and what remains begins with a user's turn: an answer or a tool
    result without its question is worse than nothing, and some templates refuse it. The last user's turn and all after
    it stay whatever happens.

    Args:
        messages: the conversation, oldest first.
        encode: renders and tokenises a conversation.
        max_tokens: the most tokens the prompt may have.
        truncate: whether anything may be dropped.

    Raises:
        ContextOverflow: it does not fit, with the number of tokens of the whole conversation.
    """
    whole = encode(messages)
    if len(whole) <= max_tokens:
        return whole
    overflow = ContextOverflow(len(whole), max_tokens)
    if not truncate:
        raise overflow
    turns = [index for index, message in enumerate(messages) if message.role is Role.USER][1:]
    fitting: list[int] | None = None
    low, high = 0, len(turns)  # the fewest dropped turns that make it fit; more dropped is never longer
    while low < high:
        middle = (low + high) // 2
        start = turns[middle]
        kept = [message for index, message in enumerate(messages) if index >= start or message.role is Role.SYSTEM]
        tokens = encode(kept)
        if len(tokens) <= max_tokens:
            fitting, high = tokens, middle
        else:
            low = middle + 1
    if fitting is None:
        raise overflow
    return fitting


def fit_continuation(context: Sequence[int], prompt: Sequence[int], max_tokens: int, *, truncate: bool) -> list[int]:
    """Token ids of an earlier answer's `context` and the new prompt; the front of the context goes first.

    Raises:
        ContextOverflow: both do not fit and may not be cut, or the prompt alone does not fit.
    """
    num_tokens = len(context) + len(prompt)
    if num_tokens > max_tokens and (not truncate or len(prompt) > max_tokens):
        raise ContextOverflow(num_tokens if not truncate else len(prompt), max_tokens)
    return [*context[max(0, num_tokens - max_tokens) :], *prompt]
