"""Changing single members of JSON5: what was not asked for stays to the byte."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from garzone.integrations.json5 import JSON5Error, find, parse, with_item, with_member, without

COMMENTED = """// OpenClaw
{
  tools: { profile: 'coding' }, // one line
  /* agents */
  "agents": {
    entries: {
      main: {model: "anthropic/claude", temperature: .5, seed: 0x1F,},
    },
  },
  list: [
    'a', // first
    "b"
  ],
}
"""
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=12,
)
PATHS = st.lists(st.sampled_from(["a", "b", "c", "it's", "ü"]), min_size=1, max_size=3).map(tuple)


def test_everything_json5_allows_is_read() -> None:
    value = parse(COMMENTED).value
    assert value["agents"]["entries"]["main"] == {"model": "anthropic/claude", "temperature": 0.5, "seed": 31}
    assert value["list"] == ["a", "b"]
    assert parse("[+1, -Infinity, 'a\\\nb', \"\\u00e9\\x41\\'\", null,]").value == [1, float("-inf"), "ab", "éA'", None]


@settings(deadline=None)
@given(VALUES)
def test_json_is_json5(value: Any) -> None:
    assert parse(json.dumps(value)).value == value
    assert parse(json.dumps(value, indent=3, ensure_ascii=False)).value == value


@pytest.mark.parametrize(
    "text", ["", "{", "{a}", "{a:}", "[1 2]", "{a:1} x", "'a", '"\\u12"', "{a:1,,}", "nul", "[" * 300 + "]" * 300]
)
def test_what_is_no_json5_is_refused_with_the_line(text: str) -> None:
    with pytest.raises(JSON5Error, match="line 1"):
        parse(text)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(["a", "b", "ü"]), VALUES, max_size=3), PATHS, VALUES, st.sampled_from([None, 2]))
def test_a_member_that_was_put_in_is_there_and_all_else_as_before(
    document: dict[str, Any], path: tuple[str, ...], value: Any, indent: int | None
) -> None:
    text = json.dumps(document, indent=indent)
    try:
        changed = with_member(text, path, value)
    except JSON5Error as error:
        assert "is not an object" in str(error)
        return
    found = find(parse(changed), path)
    assert found is not None
    assert found.value == value
    for key in set(document) - {path[0]}:
        assert parse(changed).value[key] == document[key]
    back = without(changed, path)
    assert find(parse(back), path) is None
    for key in set(document) - {path[0]}:
        assert parse(back).value[key] == document[key]


def test_comments_order_and_spelling_stay() -> None:
    changed = with_item(with_member(COMMENTED, ("plugins", "entries", "garzone"), {"enabled": True}), ("list",), "c")
    for line in COMMENTED.splitlines():
        assert line.rstrip("]}, ") in changed
    assert parse(changed).value["list"] == ["a", "b", "c"]
    assert parse(changed).value["plugins"] == {"entries": {"garzone": {"enabled": True}}}
    back = without(without(changed, ("plugins",)), ("list",), "c")
    assert back.replace('"b",\n', '"b"\n') == COMMENTED


@pytest.mark.parametrize("text", ["{}", "{\n}\n", "{ // nothing yet\n}\n", "", "{a: 1}", "{\n\ta: 1 // tabs\n}\n"])
def test_small_and_empty_documents_take_a_member(text: str) -> None:
    changed = with_member(text, ("tools", "alsoAllow"), ["delegate"])
    assert parse(changed).value["tools"] == {"alsoAllow": ["delegate"]}
    assert all(word in changed for word in text.replace("}", " ").split())


def test_an_item_is_put_into_a_list_once() -> None:
    once = with_item("{a: ['x']}", ("a",), "y")
    assert once == "{a: ['x', \"y\"]}"
    assert with_item(once, ("a",), "y") == once
    with pytest.raises(JSON5Error, match="not a list"):
        with_item("{a: 1}", ("a",), "y")
