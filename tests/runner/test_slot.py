"""One slot answers one request after the other, and is never wrong about what it holds."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from garzone.core.chat import Message, Role
from garzone.core.errors import ContextOverflow, GenerationFailed, InvalidRequest
from garzone.core.generation import FinishReason, GenerateRequest, SamplingParams
from garzone.runner.protocol import Accepted, Finished, Piece, Progress
from garzone.runner.slot import Listener, Slot
from garzone.text.detokenizer import Detokenizer
from tests.runner.stand_in import CHUNK, Tokenizer, ToyEngine, build, next_byte


def raw(prompt: str, max_tokens: int | None = 8, **given_fields: object) -> GenerateRequest:
    sampling = SamplingParams(max_tokens=max_tokens, stop=given_fields.pop("stop", ()))  # pyright: ignore[reportArgumentType]
    return replace(GenerateRequest("toy", prompt=prompt, raw=True, sampling=sampling), **given_fields)


def answer(slot: Slot, request: GenerateRequest, cancel_after: int | None = None) -> tuple[str, Finished]:
    """The text and the end; cancelled when that many messages were emitted."""
    emitted: list[Accepted | Progress | Piece] = []

    def cancelled() -> bool:
        return cancel_after is not None and len(emitted) >= cancel_after

    end = slot.answer(request, Listener(1, emitted.append, cancelled))
    assert isinstance(emitted[0], Accepted)
    return "".join(message.text for message in emitted if isinstance(message, Piece)) + end.text, end


def expected(prompt: str, count: int) -> str:
    rows = [256, *prompt.encode()]
    for _ in range(count):
        rows.append(next_byte(rows))
    return bytes(rows[-count:]).decode()


@given(st.lists(st.tuples(st.text("ab", max_size=40), st.integers(1, 5), st.none() | st.integers(1, 6)), max_size=6))
def test_cached_rows_never_change_an_answer(turns: list[tuple[str, int, int | None]]) -> None:
    slot = Slot(build())
    for prompt, count, cancel_after in turns:
        text, end = answer(slot, raw(prompt, count), cancel_after)
        if end.finish_reason is FinishReason.LENGTH:
            assert text == expected(prompt, count)
        else:
            assert end.finish_reason is FinishReason.ABORTED
            assert expected(prompt, count).startswith(text)


def test_a_conversation_that_goes_on_prefills_only_what_is_new() -> None:
    slot = Slot(build())
    text, first = answer(slot, raw("x" * 40))
    assert first.usage.cached_tokens == 0
    _, second = answer(slot, raw("x" * 40 + text + "and more"))
    assert second.usage.cached_tokens == 41 + len(text) - 1  # the last token of an answer is never fed
    assert second.usage.prompt_tokens == 41 + len(text) + 8


def test_the_same_prompt_again_prefills_one_token() -> None:
    slot = Slot(build())
    one, _ = answer(slot, raw("x" * 40))
    two, end = answer(slot, raw("x" * 40))
    assert one == two
    assert (end.usage.prompt_tokens, end.usage.cached_tokens) == (41, 40)


def test_cancel_during_prefill_stops_after_one_chunk_and_keeps_what_was_written() -> None:
    slot = Slot(build())
    _, end = answer(slot, raw("x" * 100), cancel_after=2)  # Accepted, and the first chunk's Progress
    assert end.finish_reason is FinishReason.ABORTED
    assert end.usage.completion_tokens == 0
    _, again = answer(slot, raw("x" * 100))
    assert again.usage.cached_tokens == CHUNK


def test_an_end_token_ends_the_answer_and_is_not_shown() -> None:
    text, end = answer(Slot(build()), raw("END", None))
    assert end.finish_reason is FinishReason.STOP
    assert len(text) == 5
    assert end.usage.completion_tokens == 6


def test_control_tokens_are_only_shown_to_those_who_look_for_them() -> None:
    class Marked(ToyEngine):
        def _logits(self) -> np.ndarray:
            return np.eye(258, dtype=np.float32)[(ord("a"), 256, ord("b"), 257)[self.steps]]

    class Named(Tokenizer):
        def token_bytes(self, token_id: int) -> bytes:
            return b"<mark>" if token_id == 256 else super().token_bytes(token_id)

    named = Named()
    model = replace(build(), engine=Marked(), tokenizer=named, new_detokenizer=lambda: Detokenizer(named))
    shown: list[str] = []
    for keep_special in (False, True):
        emitted: list[Accepted | Progress | Piece] = []
        Slot(model).answer(raw("x", None), Listener(1, emitted.append, lambda: False, keep_special))
        shown.append("".join(message.text for message in emitted if isinstance(message, Piece)))
    assert shown == ["ab", "a<mark>b"]


def test_a_stop_string_ends_the_answer_before_it() -> None:
    whole, _ = answer(Slot(build()), raw("hello", 12))
    text, end = answer(Slot(build()), raw("hello", 12, stop=(whole[4:7],)))
    assert end.finish_reason is FinishReason.STOP
    assert text == whole[: whole.index(whole[4:7])]


def test_the_longest_answer_is_what_the_context_leaves() -> None:
    text, end = answer(Slot(build(context_tokens=64)), raw("x" * 40, 32_000))
    assert end.finish_reason is FinishReason.LENGTH
    assert len(text) == 64 - 41


def test_num_ctx_caps_the_context() -> None:
    text, _ = answer(Slot(build()), raw("x" * 40, None, num_ctx=50))
    assert len(text) == 50 - 41
    with pytest.raises(ContextOverflow, match="41 tokens > 39 maximum"):
        answer(Slot(build()), raw("x" * 40, None, num_ctx=40))


def test_a_refused_request_leaves_the_slot_as_it_was() -> None:
    slot = Slot(build(context_tokens=64))
    answer(slot, raw("x" * 40))
    with pytest.raises(ContextOverflow):
        answer(slot, raw("y" * 80))
    _, end = answer(slot, raw("x" * 40))
    assert end.usage.cached_tokens == 40


def test_nan_is_an_error_and_not_an_answer() -> None:
    with pytest.raises(GenerationFailed, match="nan"):
        answer(Slot(build()), raw("NAN"))


def test_messages_and_a_prompt_with_system_go_through_the_template() -> None:
    slot, sampling = Slot(build()), SamplingParams(max_tokens=4)
    messages = (Message.of(Role.SYSTEM, "be brief"), Message.of(Role.USER, "hi"))
    by_chat, chat = answer(slot, GenerateRequest("toy", messages=messages, sampling=sampling))
    by_prompt, prompt = answer(slot, GenerateRequest("toy", prompt="hi", system="be brief", sampling=sampling))
    assert by_chat == by_prompt == expected("system: be brief\nuser: hi\n", 4)
    assert chat.usage.context == ()
    assert list(prompt.usage.context) == [256, *b"system: be brief\nuser: hi\n", *by_prompt.encode()]


def test_a_context_sent_back_goes_on_where_the_answer_ended() -> None:
    slot = Slot(build())
    _, first = answer(slot, GenerateRequest("toy", prompt="hi", sampling=SamplingParams(max_tokens=4)))
    request = GenerateRequest("toy", prompt="more", context=first.usage.context, sampling=SamplingParams(max_tokens=4))
    _, second = answer(slot, request)
    assert second.usage.cached_tokens == len(first.usage.context) - 1
    assert second.usage.context[: len(first.usage.context)] == first.usage.context


def test_a_context_of_another_model_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="another model"):
        answer(Slot(build()), GenerateRequest("toy", prompt="x", context=(5, 90_000)))


def test_a_model_without_a_template_says_what_to_do() -> None:
    model = replace(build(), template=None)
    with pytest.raises(InvalidRequest, match="raw: true"):
        answer(Slot(model), GenerateRequest("toy", prompt="x"))
