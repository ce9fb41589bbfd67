import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from garzone.core.chat import ToolCall, ToolSpec
from garzone.core.generation import Delta
from garzone.text.stream_parser import Parser, StreamParser, parser_of
from garzone.text.tool_formats import (
    DEEPSEEK,
    HARMONY,
    HERMES,
    LLAMA3,
    MISTRAL,
    ThinkingTags,
    ToolFormat,
    format_of_template,
    thinking_of_template,
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
    (HERMES, "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n</tool_call>"),
    (HERMES, "<function=weather>\n<parameter=city>\nParis\n</parameter>\n</function>\n</tool_call>"),
    (HERMES, '```tool_call\n{"name": "weather", "arguments": {"city": "Paris"}}\n```'),
    (LLAMA3, '[weather(city="Paris")]'),
    (LLAMA3, '<|python_tag|>weather.call(city="Paris")'),
    (LLAMA3, '<function=weather>{"city": "Paris"}</function>'),
    (LLAMA3, '<tool_call>{"name": "weather", "arguments": {"city": "Paris"}}</tool_call>'),
    (MISTRAL, '[TOOL_CALLS]weather[CALL_ID]abcdefghi[ARGS]{"city": "Paris"}'),
    (
        HARMONY,
        ' to=functions.weather<|channel|>commentary json<|message|>{"city": "Paris"}'.join(["<|start|>assistant", ""]),
    ),
]


def _parse(parser: Parser, pieces: list[str]) -> tuple[str, str, list[ToolCall]]:
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
    content, _, calls = _parse(parser_of(TOOLS, tool_format, None), [text])
    assert content == ""
    assert [(call.name, dict(call.arguments)) for call in calls] == [("weather", PARIS)]
    assert calls[0].id


@pytest.mark.parametrize(("tool_format", "text"), WRITTEN)
def test_a_call_of_a_tool_that_was_not_offered_stays_text(tool_format: ToolFormat, text: str) -> None:
    assert _parse(parser_of([ToolSpec("other")], tool_format, None), [text]) == (text, "", [])


@pytest.mark.parametrize(("tool_format", "text"), WRITTEN)
def test_without_tools_nothing_is_a_call(tool_format: ToolFormat, text: str) -> None:
    assert _parse(parser_of((), tool_format, None), [text]) == (text, "", [])


def _pieces(text: str, cuts: list[int]) -> list[str]:
    cuts = sorted(cuts)
    return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]


@given(st.data())
def test_any_chunking_gives_the_same_result(data: st.DataObject) -> None:
    tool_format, call = data.draw(st.sampled_from(WRITTEN))
    said = data.draw(st.text(alphabet='ab<>`{"[\n|', max_size=12))
    text = data.draw(
        st.sampled_from(
            [call, said + call, call + said, said, f"<think>{said}</think>\n\n{call}", f"{said}\n{call}\n{said}",
             f"{call}\n{call}", f"{said}\n{call}"]
        )
    )  # fmt: skip
    pieces = _pieces(text, data.draw(st.lists(st.integers(0, len(text)), max_size=8)))

    def parser() -> Parser:
        return parser_of(TOOLS, tool_format, ThinkingTags())

    assert _parse(parser(), pieces) == _parse(parser(), [text])


# What calls, thoughts and channels are made of, in any order: nothing a model writes may raise, or depend on chunks.
SHARDS = [
    "<tool_call>", "</tool_call>", "<|python_tag|>", "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "weather", "search(", "(",
    ")]", "[", "]", "{", "}", '"', '\\"', '"name"', ": ", '"arguments"', "{}", "\n", "```json\n", "```", "<think>",
    "</think>", "<function=weather>", "<parameter=city>", "</parameter>", "</function>", "<arg_key>", "</arg_key>",
    "<arg_value>", "</arg_value>", "<|start|>", "<|channel|>", "analysis", "commentary", " to=functions.weather",
    "<|message|>", "<|end|>", "<|call|>", "<|return|>", "<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "function",
    "<｜tool▁sep｜>", "<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>", "1e999", "NaN", "null", " ", "x", ",", "<|",
    "\ud83d", '{"name": "weather", "arguments": {"city": "', '"}}', "9" * 5000,
]  # fmt: skip


@pytest.mark.parametrize("tool_format", [HERMES, LLAMA3, MISTRAL, DEEPSEEK, HARMONY])
@given(data=st.data())
def test_hostile_text_never_raises_and_its_chunks_do_not_matter(tool_format: ToolFormat, data: st.DataObject) -> None:
    text = "".join(data.draw(st.lists(st.sampled_from(SHARDS), max_size=24)))
    pieces = _pieces(text, data.draw(st.lists(st.integers(0, len(text)), max_size=12)))
    tags = data.draw(st.sampled_from([None, ThinkingTags(), ThinkingTags(implied=True)]))
    whole = _parse(parser_of(TOOLS, tool_format, tags), [text])
    assert _parse(parser_of(TOOLS, tool_format, tags), pieces) == whole
    for call in whole[2]:
        assert call.name in ("weather", "search")
        json.dumps(dict(call.arguments), allow_nan=False)


@given(st.text(alphabet='<tol_ca>/{}"`jsn\n[] x', max_size=60))
def test_nothing_a_model_wrote_is_lost(text: str) -> None:
    content, _, calls = _parse(StreamParser(TOOLS), [text])
    assert calls or content == text


HOSTILE = {
    "deep": '{"name": ' * 20_000,
    "lists": "[" * 200_000,
    "candidates": '{"name":\n' * 20_000,
    "fences": '```json\n{"name": "x"}\n```\n' * 5_000,
    "closes": '<tool_call>{"name": "' + "</tool_call>" * 10_000,
    "parameters": "<tool_call><function=weather>" + "<parameter=" * 20_000 + "</tool_call>",
    "blanks": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>"
    + " " * 100_000
    + "<｜tool▁call▁end｜>x",
    "headers": "<|start|>" * 20_000,
    "half headers": "<|start|>" + "<a" * 50_000,
    "backslashes": '<tool_call>{"name": "' + "\\" * 100_000 + '"</tool_call>' * 3,
    "markers": "<tool_call" * 20_000,
}


@pytest.mark.parametrize("tool_format", [HERMES, HARMONY])
@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_hostile_text_takes_time_in_proportion_to_its_length(tool_format: ToolFormat, text: str) -> None:
    started = time.process_time()
    parser = parser_of(TOOLS, tool_format, ThinkingTags())
    for start in range(0, len(text), 97):
        parser.push(text[start : start + 97])
    parser.finish()
    assert time.process_time() - started < 5  # quadratic would be minutes


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
    assert _parse(parser_of(TOOLS, HARMONY, None), [text]) == ("Hi!", "I should say hi.", [])


def test_content_streams_at_once_when_it_cannot_be_a_call() -> None:
    parser = StreamParser(TOOLS)
    assert parser.push("Hello") == [Delta(text="Hello")]
    assert parser.push(" < 3 {") == [Delta(text=" < 3 {")]
    assert parser.push(" <tool") == [Delta(text=" ")]


def test_a_call_after_words_is_rescued_when_it_ends_the_answer() -> None:
    call = '{"name": "weather", "arguments": {"city": "Paris"}}'
    for written in (f"I will look.\n```json\n{call}\n```", f"I will look.\n{call}\n", f"I will look.\n{call}\n{call}"):
        content, _, calls = _parse(StreamParser(TOOLS), [written])
        assert content == "I will look.\n"
        assert [dict(one.arguments) for one in calls] == [PARIS] * written.count(call)


def test_a_call_that_is_shown_as_an_example_is_text() -> None:
    text = 'Call it so:\n```json\n{"name": "weather", "arguments": {}}\n```\nand you get the weather.'
    assert _parse(StreamParser(TOOLS), [text]) == (text, "", [])


def test_json_that_is_no_call_streams_although_tools_were_offered() -> None:
    parser = StreamParser(TOOLS)
    assert parser.push('{"an') == [Delta(text='{"an')]
    parser = StreamParser(TOOLS)
    said = "".join(delta.text for delta in parser.push("Look:\n```python\nprint(1)\n```\nThat "))
    assert said == "Look:\n```python\nprint(1)\n```\nThat "


def test_a_file_may_hold_the_word_that_ends_calls() -> None:
    arguments = {"q": 'print("</tool_call>")'}
    text = "<tool_call>" + json.dumps({"name": "search", "arguments": arguments}) + "</tool_call>"
    content, _, calls = _parse(StreamParser(TOOLS), [text])
    assert (content, [dict(call.arguments) for call in calls]) == ("", [arguments])
    broken = '<tool_call>{"name": "</tool_call> and then <tool_call>{"name": "search", "arguments": {}}</tool_call>'
    content, _, calls = _parse(StreamParser(TOOLS), [broken])
    assert content == '<tool_call>{"name": "</tool_call> and then '
    assert [call.name for call in calls] == ["search"]


def test_an_id_the_model_gave_is_kept_and_others_are_numbered() -> None:
    parser = parser_of(TOOLS, MISTRAL, None, id_prefix="p")
    _, _, calls = _parse(parser, ["[TOOL_CALLS]weather[CALL_ID]abc[ARGS]{}[TOOL_CALLS]search[ARGS]{}"])
    assert [call.id for call in calls] == ["abc", "p1"]


def test_harmony_speaks_calls_and_thinks_in_turn() -> None:
    text = (
        "<|channel|>analysis<|message|>I need the weather.<|end|><|start|>assistant<|channel|>commentary<|message|>"
        "Let me look.<|end|><|start|>assistant<|channel|>commentary to=functions.weather <|constrain|>json<|message|>"
        '{"city": "Paris"}<|call|>'
    )
    content, thinking, calls = _parse(parser_of(TOOLS, HARMONY, None), [text])
    assert (content, thinking) == ("Let me look.", "I need the weather.")
    assert [(call.name, dict(call.arguments)) for call in calls] == [("weather", PARIS)]
    assert _parse(parser_of(TOOLS, HARMONY, None), ["plain text"]) == ("plain text", "", [])
    assert _parse(parser_of(TOOLS, HARMONY, None), ["<|channel|>fin"]) == ("", "", [])


def test_reasoning_is_known_from_the_template() -> None:
    assert thinking_of_template("{{ '[THINK]' }}", implied=False) == ThinkingTags("[THINK]", "[/THINK]")
    assert thinking_of_template("", implied=True) == ThinkingTags(implied=True)


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
