import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from garzone.core.chat import ToolCall, ToolSpec
from garzone.core.generation import Delta
from garzone.text.stream_parser import (
    DEEPSEEK,
    HARMONY,
    HARMONY_THINKING,
    HERMES,
    LLAMA3,
    MISTRAL,
    StreamParser,
    ThinkingTags,
    ToolFormat,
    format_of_template,
)

TOOLS = (ToolSpec("weather"), ToolSpec("search"))
PARIS = {"city": "Paris"}

# As each family writes a call, from its chat template or its vendor's documentation.
WRITTEN = [
    (HERMES, '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'),
    (HERMES, "<tool_call>\n<function=weather>\n<parameter=city>\nParis\n</parameter>\n</function>\n</tool_call>"),
    (LLAMA3, '<|python_tag|>{"name": "weather", "parameters": {"city": "Paris"}}'),
    (LLAMA3, '{"name": "weather", "parameters": {"city": "Paris"}}'),
    (MISTRAL, '[TOOL_CALLS][{"name": "weather", "arguments": {"city": "Paris"}}]'),
    (MISTRAL, '[TOOL_CALLS]weather[ARGS]{"city": "Paris"}'),
    (
        DEEPSEEK,
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n"
        '{"city": "Paris"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
    ),
    (
        DEEPSEEK,
        '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>{"city": "Paris"}'
        "<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    ),
    (HARMONY, '<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{"city": "Paris"}<|call|>'),
    (HERMES, '```json\n{"name": "weather", "arguments": {"city": "Paris"}}\n```'),
    (HERMES, '{"name": "weather", "arguments": "{\\"city\\": \\"Paris\\"}"}'),
    (HERMES, '{"type": "function", "function": {"name": "weather", "arguments": {"city": "Paris"}}}'),
]


def _parse(parser: StreamParser, pieces: list[str]) -> tuple[str, str, list[ToolCall]]:
    deltas: list[Delta] = []
    for piece in pieces:
        deltas += parser.push(piece)
    deltas += parser.finish()
    return (
        "".join(delta.text for delta in deltas),
        "".join(delta.thinking for delta in deltas),
        [call for delta in deltas for call in delta.tool_calls],
    )


@pytest.mark.parametrize(("tool_format", "text"), WRITTEN)
def test_a_call_is_read_as_each_family_writes_it(tool_format: ToolFormat, text: str) -> None:
    content, _, calls = _parse(StreamParser(TOOLS, tool_format), [text])
    assert content == ""
    assert [(call.name, dict(call.arguments)) for call in calls] == [("weather", PARIS)]
    assert calls[0].id


@pytest.mark.parametrize(("tool_format", "text"), WRITTEN)
def test_a_call_of_a_tool_that_was_not_offered_stays_text(tool_format: ToolFormat, text: str) -> None:
    assert _parse(StreamParser([ToolSpec("other")], tool_format), [text]) == (text, "", [])


@pytest.mark.parametrize(("tool_format", "text"), WRITTEN)
def test_without_tools_nothing_is_a_call(tool_format: ToolFormat, text: str) -> None:
    assert _parse(StreamParser((), tool_format), [text]) == (text, "", [])


@given(st.data())
def test_any_chunking_gives_the_same_result(data: st.DataObject) -> None:
    tool_format, call = data.draw(st.sampled_from(WRITTEN))
    said = data.draw(st.text(alphabet='ab<>`{"[\n|', max_size=12))
    text = data.draw(st.sampled_from([call, said + call, call + said, said, f"<think>{said}</think>\n\n{call}"]))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]

    def parser() -> StreamParser:
        return StreamParser(TOOLS, tool_format, ThinkingTags())

    assert _parse(parser(), pieces) == _parse(parser(), [text])


@given(st.text(alphabet='<tol_ca>/{}"`jsn\n[] x', max_size=60))
def test_nothing_a_model_wrote_is_lost(text: str) -> None:
    content, _, calls = _parse(StreamParser(TOOLS), [text])
    assert calls or content == text


def test_several_calls_and_the_text_around_them_come_in_order() -> None:
    one = '<tool_call>{"name": "weather", "arguments": {}}</tool_call>'
    two = '<tool_call>{"name": "search", "arguments": {"q": "x"}}</tool_call>'
    content, _, calls = _parse(StreamParser(TOOLS), ["Let me look. " + one + "\n" + two])
    assert content.strip() == "Let me look."
    assert [(call.name, call.id) for call in calls] == [("weather", "call_0"), ("search", "call_1")]


def test_thinking_is_kept_apart_and_streams() -> None:
    parser = StreamParser(thinking=ThinkingTags())
    assert parser.push("<think>\nHm") == [Delta(thinking="Hm")]
    assert parser.push("m</thi") == [Delta(thinking="m")]
    assert parser.push("nk>\n\nHello") == [Delta(text="Hello")]
    assert parser.push(" <think>") == [Delta(text=" <think>")], "tags in the middle of an answer are content"


def test_thinking_the_template_opened_needs_no_opening_tag() -> None:
    parsed = _parse(StreamParser(thinking=ThinkingTags(implied=True)), ["because</think>", "42"])
    assert parsed == ("42", "because", [])


def test_harmony_channels_become_thinking_content_and_calls() -> None:
    text = (
        "<|channel|>analysis<|message|>I should say hi.<|end|>"
        "<|start|>assistant<|channel|>final<|message|>Hi!<|return|>"
    )
    assert _parse(StreamParser(TOOLS, HARMONY, HARMONY_THINKING), [text]) == ("Hi!", "I should say hi.", [])


def test_content_streams_at_once_when_it_cannot_be_a_call() -> None:
    parser = StreamParser(TOOLS)
    assert parser.push("Hello") == [Delta(text="Hello")]
    assert parser.push(" < 3 {") == [Delta(text=" < 3 {")]
    assert parser.push(" <tool") == [Delta(text=" ")]


def test_an_unfinished_call_is_given_back_as_text() -> None:
    text = '<tool_call>{"name": "weather", "argu'
    assert _parse(StreamParser(TOOLS), [text]) == (text, "", [])


def test_json_that_is_an_answer_and_no_call_is_an_answer() -> None:
    text = json.dumps({"name": "Alice", "arguments": [1]})
    assert _parse(StreamParser(TOOLS), [text]) == (text, "", [])


def test_numbers_and_objects_in_xml_parameters_keep_their_type() -> None:
    text = (
        "<tool_call><function=search><parameter=n>3</parameter><parameter=q>3 cats</parameter>"
        '<parameter=o>{"a": 1}</parameter></function></tool_call>'
    )
    _, _, calls = _parse(StreamParser(TOOLS), [text])
    assert dict(calls[0].arguments) == {"n": 3, "q": "3 cats", "o": {"a": 1}}


@pytest.mark.parametrize("tool_format", [HERMES, LLAMA3, MISTRAL, DEEPSEEK, HARMONY])
def test_the_format_is_known_from_the_template(tool_format: ToolFormat) -> None:
    assert format_of_template(f"x {tool_format.open} y") is tool_format
