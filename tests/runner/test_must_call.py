"""An answer that must be a call is made one by its schema, and read as one."""

import json
from dataclasses import replace

import pytest
from llguidance import LLMatcher

from garzone.core.chat import ToolCall, ToolSpec
from garzone.core.errors import Unsupported
from garzone.core.generation import GenerateRequest, ModelDetails
from garzone.runner.support import calls_schema, check_supported, parser_for, with_model_defaults
from garzone.text.tool_formats import HARMONY

READ = ToolSpec("read", "", {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]})
TREE = ToolSpec("tree", "", {"$defs": {"n": {}}, "type": "object", "properties": {"child": {"$ref": "#/$defs/n"}}})
DETAILS = ModelDetails("m", capabilities=("completion", "tools"))


def test_the_schema_has_a_call_for_each_tool() -> None:
    schema = calls_schema([READ, TREE])
    names = [call["properties"]["name"] for call in schema["anyOf"]]
    assert names == [{"const": "read"}, {"const": "tree"}]
    assert schema["anyOf"][0]["properties"]["arguments"] == READ.parameters
    assert schema["anyOf"][1]["properties"]["arguments"] == {"type": "object"}
    assert not LLMatcher.validate_grammar(LLMatcher.grammar_from_json_schema(schema))
    assert calls_schema([READ])["properties"]["name"] == {"const": "read"}


def test_what_the_schema_lets_through_is_read_as_a_call() -> None:
    request = GenerateRequest("m", prompt="x", tools=(READ, TREE), must_call=True)
    parser = parser_for(request, DETAILS, thinking_open=False)
    assert parser is not None
    text = json.dumps({"name": "read", "arguments": {"path": "a.py"}})
    deltas = [*parser.push(text), *parser.finish()]
    assert [(call.name, call.arguments) for delta in deltas for call in delta.tool_calls] == [
        ("read", {"path": "a.py"})
    ]
    assert isinstance(deltas[0].tool_calls[0], ToolCall)


@pytest.mark.parametrize(
    "request_",
    [
        GenerateRequest("m", prompt="x", tools=(READ,)),
        GenerateRequest("m", prompt="x", must_call=True),
    ],
)
def test_nothing_changes_without_need(request_: GenerateRequest) -> None:
    assert with_model_defaults(request_, DETAILS).output_schema == request_.output_schema


def test_a_schema_for_the_answers_text_does_not_keep_a_call_from_being_made() -> None:
    request = GenerateRequest("m", prompt="x", tools=(READ,), must_call=True, output_schema={"type": "array"})
    assert with_model_defaults(request, DETAILS).output_schema == calls_schema([READ])


def test_where_calls_are_no_json_forcing_one_is_refused_and_not_left_out() -> None:
    request = GenerateRequest("m", prompt="x", tools=(READ,), must_call=True)
    harmony = replace(DETAILS, template=HARMONY.open)
    check_supported(request, DETAILS)
    check_supported(replace(request, must_call=False), harmony)
    with pytest.raises(Unsupported, match="cannot be made to call a tool"):
        check_supported(request, harmony)
