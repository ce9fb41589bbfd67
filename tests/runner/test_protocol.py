"""What goes over the pipe comes out the same, however it is cut; anything else is an error."""

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from garzone.core.chat import ImagePart, Message, Role, TextPart, ToolCall, ToolSpec
from garzone.core.errors import ContextOverflow, GenerationFailed, InvalidRequest, RunnerCrashed
from garzone.core.generation import (
    ChosenToken,
    FinishReason,
    GenerateRequest,
    Grammar,
    GrammarKind,
    SamplingParams,
    TokenLogprob,
    Usage,
)
from garzone.runner import protocol

TEXT = st.text(max_size=20)
COUNT = st.integers(min_value=0, max_value=1 << 40)
NUMBER = st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | NUMBER | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
OBJECT = st.dictionaries(TEXT, JSON, max_size=3)
MESSAGES = st.builds(
    Message,
    role=st.sampled_from(Role),
    content=st.lists(st.builds(TextPart, TEXT) | st.builds(ImagePart, st.binary(max_size=9), TEXT), max_size=3).map(
        tuple
    ),
    thinking=TEXT,
    tool_calls=st.lists(st.builds(ToolCall, TEXT, OBJECT, TEXT), max_size=2).map(tuple),
    tool_call_id=TEXT,
    tool_name=TEXT,
)
REQUESTS = st.builds(
    GenerateRequest,
    model=TEXT,
    messages=st.lists(MESSAGES, max_size=3).map(tuple),
    prompt=st.none() | TEXT,
    system=st.none() | TEXT,
    raw=st.booleans(),
    context=st.lists(COUNT, max_size=4).map(tuple),
    tools=st.lists(st.builds(ToolSpec, TEXT, TEXT, OBJECT), max_size=2).map(tuple),
    sampling=st.builds(SamplingParams, temperature=NUMBER, seed=st.none() | COUNT, stop=st.lists(TEXT).map(tuple)),
    keep_alive_s=st.none() | NUMBER,
    think=st.none() | st.booleans() | TEXT,
    output_schema=st.none() | OBJECT,
    grammar=st.none() | st.builds(Grammar, st.sampled_from(GrammarKind), TEXT),
    prediction=st.none() | TEXT,
    logprobs=st.none() | st.integers(0, 20),
)
LOGPROB = st.builds(TokenLogprob, TEXT, COUNT, NUMBER, st.binary(max_size=4))
LOGPROBS = st.lists(st.builds(ChosenToken, LOGPROB, st.lists(LOGPROB, max_size=2).map(tuple)), max_size=2).map(tuple)
USAGES = st.builds(Usage, COUNT, COUNT, COUNT, NUMBER, NUMBER, NUMBER, st.lists(COUNT, max_size=4).map(tuple))
FAILURES = st.builds(protocol.Failure, TEXT, TEXT, st.lists(COUNT, max_size=2).map(tuple))
FRAMES = st.one_of(
    st.builds(protocol.Generate, COUNT, REQUESTS, st.booleans()),
    st.builds(protocol.Load, TEXT, COUNT, TEXT, TEXT),
    st.builds(protocol.Piece, COUNT, TEXT, LOGPROBS),
    st.builds(protocol.Finished, COUNT, TEXT, st.sampled_from(FinishReason), USAGES, LOGPROBS),
    st.builds(protocol.Failed, COUNT, FAILURES, st.booleans()),
    st.builds(protocol.Cancel, COUNT),
)


@given(st.lists(FRAMES, max_size=5), st.lists(st.integers(1, 40), max_size=60))
def test_any_messages_in_any_chunks_come_out_the_same(messages: list[protocol.Message], cuts: list[int]) -> None:
    stream = b"".join(map(protocol.encode, messages))
    decoder = protocol.FrameDecoder()
    bodies: list[bytes] = []
    for cut in [*cuts, len(stream)]:
        bodies += decoder.push(stream[:cut])
        stream = stream[cut:]
    assert [protocol.parse(body) for body in bodies] == messages


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"nonsense",
        b'{"@":"Piece"}',
        b'{"@":"Piece","id":"1","text":"a"}',
        b'{"@":"Piece","id":true,"text":"a"}',
        b'{"@":"Piece","id":1,"text":"a","more":1}',
        b'{"@":"system","id":1}',
        b'{"@":"Finished","id":1,"text":"","finish_reason":"bored","usage":null}',
        b"[" * 100_000,
    ],
)
def test_a_body_of_another_shape_is_refused(body: bytes) -> None:
    with pytest.raises(protocol.ProtocolError):
        protocol.parse(body)


def test_text_that_a_library_printed_into_the_pipe_is_noticed() -> None:
    with pytest.raises(protocol.ProtocolError, match="wrote to the pipe"):
        protocol.FrameDecoder().push(b"Traceback (most recent call last)")


def test_errors_keep_their_class_and_words() -> None:
    for error in (InvalidRequest("bad field"), RunnerCrashed("it died"), ContextOverflow(600, 511)):
        again = protocol.Failure.of(error).to_exception()
        assert type(again) is type(error)
        assert str(again) == str(error)
    overflow = protocol.Failure.of(ContextOverflow(600, 511)).to_exception()
    assert isinstance(overflow, ContextOverflow)
    assert (overflow.prompt_tokens, overflow.max_tokens) == (600, 511)


def test_an_exception_of_a_library_becomes_a_failed_generation_that_names_it() -> None:
    error = protocol.Failure.of(RuntimeError("device lost")).to_exception()
    assert type(error) is GenerationFailed
    assert "RuntimeError: device lost" in str(error)


@pytest.mark.parametrize("kind", ["SystemExit", "annotations", "__name__", "NoSuchError", "Exception"])
def test_a_failure_can_only_become_one_of_our_own_exceptions(kind: str) -> None:
    assert type(protocol.Failure(kind, "words").to_exception()) is GenerationFailed


def test_every_message_can_be_sent_and_none_is_pickled() -> None:
    frame = protocol.encode(protocol.Hello(protocol.PROTOCOL_VERSION))
    assert json.loads(frame[4:]) == {"@": "Hello", "version": protocol.PROTOCOL_VERSION}
    for kind in protocol.Message.__args__:
        assert dataclasses.is_dataclass(kind)
