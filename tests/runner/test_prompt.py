"""What is dropped of a conversation that does not fit, and what is never dropped."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from garzone.core.chat import Message, Role
from garzone.core.errors import ContextOverflow
from garzone.runner.prompt import fit_continuation, fit_messages

CONVERSATIONS = st.lists(st.tuples(st.sampled_from(Role), st.text("xyz", max_size=6)), min_size=1, max_size=9).map(
    lambda turns: [Message.of(role, text) for role, text in turns]
)


def encode(messages: Sequence[Message]) -> list[int]:
    return [ord(letter) for message in messages for letter in f"<{message.text}>"]


def kept(tokens: list[int]) -> str:
    return "".join(map(chr, tokens))


@given(CONVERSATIONS, st.integers(1, 60))
def test_what_fits_is_a_conversation_that_keeps_its_system_messages_and_its_end(
    messages: list[Message], max_tokens: int
) -> None:
    whole = encode(messages)
    try:
        tokens = fit_messages(messages, encode, max_tokens, truncate=True)
    except ContextOverflow as error:
        assert error.prompt_tokens == len(whole) > max_tokens
        return
    assert len(tokens) <= max_tokens
    starts = [index for index, message in enumerate(messages) if message.role is Role.USER] or [0]
    candidates = [
        encode([m for index, m in enumerate(messages) if index >= start or m.role is Role.SYSTEM])
        for start in [0, *starts[1:]]
    ]
    assert tokens == next(candidate for candidate in candidates if len(candidate) <= max_tokens)


def test_the_oldest_turns_go_first_and_the_system_message_stays() -> None:
    messages = [
        Message.of(Role.SYSTEM, "sys"),
        Message.of(Role.USER, "first"),
        Message.of(Role.ASSISTANT, "answer"),
        Message.of(Role.USER, "second"),
    ]
    assert kept(fit_messages(messages, encode, 14, truncate=True)) == "<sys><second>"


def test_nothing_is_dropped_where_that_was_not_allowed() -> None:
    messages = [Message.of(Role.USER, "first"), Message.of(Role.USER, "second")]
    with pytest.raises(ContextOverflow, match="prompt is too long: 15 tokens > 14 maximum context length"):
        fit_messages(messages, encode, 14, truncate=False)


def test_a_last_turn_that_does_not_fit_alone_is_an_error_and_not_a_torn_question() -> None:
    with pytest.raises(ContextOverflow):
        fit_messages([Message.of(Role.USER, "x" * 50)], encode, 14, truncate=True)


@given(st.lists(st.integers(0, 9), max_size=12), st.lists(st.integers(0, 9), max_size=12), st.integers(0, 20))
def test_of_an_earlier_context_the_front_is_dropped(context: list[int], prompt: list[int], max_tokens: int) -> None:
    if len(prompt) > max_tokens:
        with pytest.raises(ContextOverflow):
            fit_continuation(context, prompt, max_tokens, truncate=True)
        return
    tokens = fit_continuation(context, prompt, max_tokens, truncate=True)
    assert tokens == [*context, *prompt][-max_tokens if max_tokens else len(context) :]
