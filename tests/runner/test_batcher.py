"""Requests are answered at once as each would be alone, and never from rows that are not theirs."""

import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from garzone.core.chat import Message, Role
from garzone.core.errors import ContextOverflow, GenerationFailed, InvalidRequest, RunnerCrashed
from garzone.core.generation import (
    FinishReason,
    GenerateRequest,
    Grammar,
    GrammarKind,
    Pooling,
    SamplingParams,
)
from garzone.runner.protocol import Accepted, Embed, Embedded, Failed, Finished, Piece
from garzone.text.detokenizer import Detokenizer
from tests.runner.desk import Desk
from tests.runner.stand_in import CHUNK, Tokenizer, ToyEngine, build, next_byte


def raw(prompt: str, max_tokens: int | None = 8, **given_fields: object) -> GenerateRequest:
    sampling = SamplingParams(max_tokens=max_tokens, stop=given_fields.pop("stop", ()))  # pyright: ignore[reportArgumentType]
    return replace(GenerateRequest("toy", prompt=prompt, raw=True, sampling=sampling), **given_fields)


def answer(desk: Desk, request: GenerateRequest, cancel_after: int | None = None) -> tuple[str, Finished]:
    """The text and the end; cancelled when that many messages were heard."""
    number = desk.ask(request)
    desk.work(number, cancel_after)
    end = desk.end(number)
    assert isinstance(desk.said[number][0], Accepted)
    return desk.text(number), end


def expected(prompt: str, count: int) -> str:
    rows = [256, *prompt.encode()]
    for _ in range(count):
        rows.append(next_byte(rows))
    return bytes(rows[-count:]).decode()


@given(st.lists(st.tuples(st.text("ab", max_size=40), st.integers(1, 5), st.none() | st.integers(1, 6)), max_size=6))
def test_cached_rows_never_change_an_answer(turns: list[tuple[str, int, int | None]]) -> None:
    desk = Desk()
    for prompt, count, cancel_after in turns:
        text, end = answer(desk, raw(prompt, count), cancel_after)
        if end.finish_reason is FinishReason.LENGTH:
            assert text == expected(prompt, count)
        else:
            assert end.finish_reason is FinishReason.ABORTED
            assert expected(prompt, count).startswith(text)


def test_a_conversation_that_goes_on_prefills_only_what_is_new() -> None:
    desk = Desk()
    text, first = answer(desk, raw("x" * 40))
    assert first.usage.cached_tokens == 0
    _, second = answer(desk, raw("x" * 40 + text + "and more"))
    assert second.usage.cached_tokens == 41 + len(text) - 1  # the last token of an answer is never fed
    assert second.usage.prompt_tokens == 41 + len(text) + 8


def test_the_same_prompt_again_prefills_one_token() -> None:
    desk = Desk()
    one, _ = answer(desk, raw("x" * 40))
    two, end = answer(desk, raw("x" * 40))
    assert one == two
    assert (end.usage.prompt_tokens, end.usage.cached_tokens) == (41, 40)


def test_cancel_during_prefill_stops_after_one_chunk_and_keeps_what_was_written() -> None:
    desk = Desk()
    _, end = answer(desk, raw("x" * 100), cancel_after=2)  # Accepted, and the first chunk's Progress
    assert end.finish_reason is FinishReason.ABORTED
    assert end.usage.completion_tokens == 0
    _, again = answer(desk, raw("x" * 100))
    assert again.usage.cached_tokens == CHUNK


def test_an_end_token_ends_the_answer_and_is_not_shown() -> None:
    text, end = answer(Desk(), raw("END", None))
    assert end.finish_reason is FinishReason.STOP
    assert len(text) == 5
    assert end.usage.completion_tokens == 6


def test_control_tokens_are_only_shown_to_those_who_look_for_them() -> None:
    class Marked(ToyEngine):
        def _logits(self, rows: list[int], num_said: int) -> np.ndarray:
            return np.eye(258, dtype=np.float32)[(ord("a"), 256, ord("b"), 257)[num_said]]

    class Named(Tokenizer):
        def token_bytes(self, token_id: int) -> bytes:
            return b"<mark>" if token_id == 256 else super().token_bytes(token_id)

    named = Named()
    desk = Desk(replace(build(), engine=Marked(), tokenizer=named, new_detokenizer=lambda: Detokenizer(named)))
    numbers = [desk.ask(raw("x", None), keep_special=keep_special) for keep_special in (False, True)]
    desk.work()
    assert [desk.text(number) for number in numbers] == ["ab", "a<mark>b"]


def test_a_stop_string_ends_the_answer_before_it() -> None:
    whole, _ = answer(Desk(), raw("hello", 12))
    assert answer(Desk(), raw("hello", 12, stop=("nowhere",)))[1].stop is None
    text, end = answer(Desk(), raw("hello", 12, stop=("nowhere", whole[4:7])))
    assert end.finish_reason is FinishReason.STOP
    assert end.stop == whole[4:7]
    assert text == whole[: whole.index(whole[4:7])]


def test_the_longest_answer_is_what_the_context_leaves() -> None:
    text, end = answer(Desk(build(context_tokens=64)), raw("x" * 40, 32_000))
    assert end.finish_reason is FinishReason.LENGTH
    assert len(text) == 64 - 41


def test_num_ctx_caps_the_context() -> None:
    text, _ = answer(Desk(), raw("x" * 40, None, num_ctx=50))
    assert len(text) == 50 - 41
    with pytest.raises(ContextOverflow, match="41 tokens > 39 maximum"):
        answer(Desk(), raw("x" * 40, None, num_ctx=40))


def test_a_refused_request_leaves_the_slot_as_it_was() -> None:
    desk = Desk(build(context_tokens=64))
    answer(desk, raw("x" * 40))
    with pytest.raises(ContextOverflow):
        answer(desk, raw("y" * 80))
    _, end = answer(desk, raw("x" * 40))
    assert end.usage.cached_tokens == 40


def test_nan_is_an_error_to_its_request_and_the_others_can_be_asked_again() -> None:
    desk = Desk(build(num_slots=2))
    guilty, innocent = desk.ask(raw("NAN")), desk.ask(raw("x" * 90))
    with pytest.raises(GenerationFailed, match="nan") as raised:
        desk.work()
    desk.batcher.fail(raised.value)
    with pytest.raises(GenerationFailed, match="computed nan"):
        desk.end(guilty)
    with pytest.raises(RunnerCrashed, match="another request"):
        desk.end(innocent)


def test_messages_and_a_prompt_with_system_go_through_the_template() -> None:
    desk, sampling = Desk(), SamplingParams(max_tokens=4)
    messages = (Message.of(Role.SYSTEM, "be brief"), Message.of(Role.USER, "hi"))
    by_chat, chat = answer(desk, GenerateRequest("toy", messages=messages, sampling=sampling))
    by_prompt, prompt = answer(desk, GenerateRequest("toy", prompt="hi", system="be brief", sampling=sampling))
    assert by_chat == by_prompt == expected("system: be brief\nuser: hi\n", 4)
    assert chat.usage.context == ()
    assert list(prompt.usage.context) == [256, *b"system: be brief\nuser: hi\n", *by_prompt.encode()]


def test_a_context_sent_back_goes_on_where_the_answer_ended() -> None:
    desk = Desk()
    _, first = answer(desk, GenerateRequest("toy", prompt="hi", sampling=SamplingParams(max_tokens=4)))
    request = GenerateRequest("toy", prompt="more", context=first.usage.context, sampling=SamplingParams(max_tokens=4))
    _, second = answer(desk, request)
    assert second.usage.cached_tokens == len(first.usage.context) - 1
    assert second.usage.context[: len(first.usage.context)] == first.usage.context


def test_a_context_of_another_model_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="another model"):
        answer(Desk(), GenerateRequest("toy", prompt="x", context=(5, 90_000)))


def test_a_model_without_a_template_says_what_to_do() -> None:
    model = replace(build(), template=None)
    with pytest.raises(InvalidRequest, match="raw: true"):
        answer(Desk(model), GenerateRequest("toy", prompt="x"))


# --- many at once


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 3),
    st.lists(st.tuples(st.text("ab", max_size=60), st.integers(1, 9), st.integers(0, 8)), min_size=1, max_size=8),
    st.sets(st.integers(1, 8)),
)
def test_any_requests_at_once_are_answered_as_each_alone(
    num_slots: int, requests: list[tuple[str, int, int]], cancelled: set[int]
) -> None:
    desk = Desk(build(num_slots=num_slots))
    wanted: dict[int, str] = {}
    for prompt, count, num_steps in requests:
        number = desk.ask(raw(prompt, count))
        wanted[number] = expected(prompt, count)
        for _ in range(num_steps):
            if desk.batcher.has_work:
                desk.batcher.step()
        if number in cancelled:
            desk.batcher.cancel(number)
    desk.work()
    for number, text in wanted.items():
        if desk.end(number).finish_reason is FinishReason.ABORTED:
            assert number in cancelled
            assert text.startswith(desk.text(number))
        else:
            assert desk.text(number) == text
    assert desk.batcher.pool.num_free == num_slots


def test_candidates_of_one_prompt_compute_it_once() -> None:
    desk = Desk(build(num_slots=8))
    numbers = [desk.ask(replace(raw("x" * 100, 4), draft=False)) for _ in range(8)]
    desk.work()
    assert {desk.text(number) for number in numbers} == {expected("x" * 100, 4)}
    assert desk.engine.num_rows == 100 + 8 * (1 + 3)
    assert desk.end(numbers[-1]).usage.cached_tokens == 100


def test_cancelling_frees_the_slot_before_the_next_step() -> None:
    desk = Desk()
    first = desk.ask(raw("x" * 200, None))
    second = desk.ask(raw("y", 1))
    desk.batcher.step()
    desk.batcher.cancel(first)
    desk.batcher.step()
    assert desk.end(first).finish_reason is FinishReason.ABORTED
    assert desk.text(second) == expected("y", 1)


def test_one_that_cannot_be_answered_does_not_disturb_the_others() -> None:
    desk = Desk(build(context_tokens=64, num_slots=2))
    fine, too_long = desk.ask(raw("x", 8)), desk.ask(raw("y" * 90))
    desk.work()
    assert desk.text(fine) == expected("x", 8)
    with pytest.raises(ContextOverflow):
        desk.end(too_long)


def test_an_engine_that_fails_is_an_error_to_all_that_wait_for_it() -> None:
    desk = Desk(build(num_slots=2))
    numbers = [desk.ask(raw("RAISE", 9)), desk.ask(raw("x", None)), desk.ask(raw("y"))]
    with pytest.raises(RuntimeError):
        desk.work()
    desk.batcher.fail(RuntimeError("device lost"))
    for number in numbers:
        with pytest.raises(GenerationFailed, match="device lost"):
            desk.end(number)


# --- drafts


def test_drafts_change_the_number_of_steps_and_nothing_else() -> None:
    said = "the quick brown fox jumps over the lazy dog"
    request = replace(raw(f"SAY{said}YAS", None), prediction=said)
    plain, guessed = Desk(), Desk()
    text, end = answer(guessed, request)
    assert answer(plain, replace(request, draft=False))[0] == text == said
    assert end.usage.accepted_tokens > len(said) // 2
    assert end.usage.drafted_tokens >= end.usage.accepted_tokens
    assert guessed.engine.num_steps < plain.engine.num_steps - len(said) // 2


def test_a_wrong_prediction_does_no_harm() -> None:
    request = replace(raw("SAYthe quick brown foxYAS", None), prediction="the quack brown fax, the quick")
    assert answer(Desk(), request)[0] == "the quick brown fox"


def test_a_stop_string_inside_a_draft_ends_the_answer_there() -> None:
    request = replace(raw("SAYone two three four fiveYAS", None, stop=("three",)), prediction="one two three four five")
    text, end = answer(Desk(), request)
    assert (text, end.finish_reason) == ("one two ", FinishReason.STOP)


def test_a_draft_never_goes_beyond_the_length_that_was_asked_for() -> None:
    request = replace(raw("SAYone two three four fiveYAS", 6), prediction="one two three four five")
    text, end = answer(Desk(), request)
    assert (text, end.finish_reason, end.usage.completion_tokens) == ("one tw", FinishReason.LENGTH, 6)


# --- grammars


def test_a_grammar_holds_an_answer_to_it() -> None:
    digits = Grammar(GrammarKind.REGEX, "[0-9]{3,5}x")
    text, end = answer(Desk(), replace(raw("hello", None), grammar=digits))
    assert re.fullmatch("[0-9]{3,5}x", text)
    assert end.finish_reason is FinishReason.STOP
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
    text, _ = answer(Desk(), replace(raw("hello", None), output_schema=schema))
    assert re.fullmatch(r'\{\s*"a"\s*:\s*[12]\s*\}', text)


def test_guesses_that_the_grammar_forbids_are_not_made() -> None:
    only = Grammar(GrammarKind.REGEX, "the quick brown bear")
    request = replace(raw("x", None), grammar=only, prediction="the quick brown fox")
    assert answer(Desk(), request)[0] == "the quick brown bear"


def test_a_grammar_begins_where_the_reasoning_ends() -> None:
    desk = Desk()
    grammar = Grammar(GrammarKind.REGEX, "yes|no")
    opened = desk.ask(
        replace(raw("SAYhm, well</t>yes, noYAS", None), grammar=grammar), answer_after="</t>", answer_opened=True
    )
    starts = desk.ask(
        replace(raw("SAY<t>hm</t>noYAS", None), grammar=grammar, draft=False), thinking_mark="<t>", answer_after="</t>"
    )
    does_not = desk.ask(replace(raw("SAYyesYAS", None), grammar=grammar), thinking_mark="<t>", answer_after="</t>")
    desk.work()
    assert [desk.text(number) for number in (opened, starts, does_not)] == ["hm, well</t>yes", "<t>hm</t>no", "yes"]


def test_a_grammar_that_is_none_is_refused_before_anything_is_computed() -> None:
    desk = Desk()
    with pytest.raises(InvalidRequest, match="grammar"):
        answer(desk, replace(raw("x"), grammar=Grammar(GrammarKind.REGEX, "([")))
    assert not desk.engine.num_steps


# --- what else a request can ask for


def test_a_gap_is_shown_in_the_models_own_tokens_and_its_far_ends_give_way() -> None:
    desk = Desk(build(context_tokens=32))
    fill = GenerateRequest("toy", prompt="def f(", suffix="return 1", sampling=SamplingParams(max_tokens=2))
    _, end = answer(desk, fill)
    assert end.usage.context[:-2] == (256, *b"<def f(|return 1>")
    _, end = answer(desk, replace(fill, prompt="x" * 100 + "y", suffix="z" * 100))
    assert end.usage.prompt_tokens == 31
    prompt = bytes(token for token in end.usage.context[1:-1])
    assert re.fullmatch(b"<x+y\\|z+>", prompt[:30])
    with pytest.raises(ContextOverflow):
        answer(desk, replace(fill, prompt="x" * 100, truncate=False))


def test_logprobs_are_told_for_every_token() -> None:
    desk = Desk()
    number = desk.ask(replace(raw("hello", 5), logprobs=2))
    desk.work()
    told = [entry for said in desk.said[number] if isinstance(said, Piece | Finished) for entry in said.logprobs]
    assert "".join(entry.chosen.token for entry in told) == desk.text(number)
    for entry in told:
        assert entry.top[0] == entry.chosen
        assert len(entry.top) == 2
        assert entry.chosen.logprob == pytest.approx(-np.log1p(257 * np.exp(-1.0)), abs=1e-6)


def test_an_answer_that_may_shift_goes_on_beyond_the_context() -> None:
    text, end = answer(Desk(build(context_tokens=32)), replace(raw("x" * 20, 100), shift=True))
    assert len(text) == end.usage.completion_tokens == 100
    assert end.finish_reason is FinishReason.LENGTH
    assert text.startswith(expected("x" * 20, 11))
    rows = [256, *b"x" * 20, *expected("x" * 20, 11).encode()]
    assert text[11] == chr(next_byte(rows[16:]))  # after the later half of what was there


def embed(desk: Desk, *inputs: str, pooling: Pooling | None = None, **fields: object) -> Embedded:
    desk.num_asked += 1
    desk.batcher.embed(replace(Embed(desk.num_asked, inputs, pooling), **fields))
    desk.work()
    said = desk.said[desk.num_asked][-1]
    if isinstance(said, Failed):
        raise said.failure.to_exception()
    assert isinstance(said, Embedded)
    return said


def test_texts_become_the_mean_or_the_last_of_their_states() -> None:
    desk = Desk()
    tokens = [256, *b"x" * 40]
    states = np.array([[sum(tokens[: i + 1]), 1.0 + token] for i, token in enumerate(tokens)])
    for pooling, expected_state in ((Pooling.MEAN, states.mean(0)), (Pooling.LAST, states[-1])):
        found = embed(desk, "x" * 40, "y", pooling=pooling).embeddings
        assert found.num_tokens == (41, 2)
        np.testing.assert_allclose(found.vectors[0], expected_state / np.linalg.norm(expected_state), rtol=1e-6)
        unscaled = embed(desk, "x" * 40, pooling=pooling, unit_length=False).embeddings
        np.testing.assert_allclose(unscaled.vectors[0], expected_state, rtol=1e-6)
    assert embed(desk, "x", dimensions=1).embeddings.vectors == ((1.0,),)
    with pytest.raises(InvalidRequest, match="dimensions"):
        embed(desk, "x", dimensions=3)
    with pytest.raises(ContextOverflow):
        embed(desk, "x" * 300, truncate=False)
    assert embed(desk, "x" * 300).embeddings.num_tokens == (256,)
    assert answer(desk, raw("hello", 8))[0] == expected("hello", 8)
    assert desk.batcher.pool.num_free == 1
