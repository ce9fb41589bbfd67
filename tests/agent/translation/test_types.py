"""Types that Python's plain data has elsewhere: read, seen in values, and refused."""

from __future__ import annotations

import ast

import pytest

from garzone.agent.translation.go import literal as go_literal
from garzone.agent.translation.go import package_of
from garzone.agent.translation.java import literal as java_literal
from garzone.agent.translation.java import package_of as java_package
from garzone.agent.translation.rust import literal as rust_literal
from garzone.agent.translation.signatures import functions_of
from garzone.agent.translation.types import Type, emptied, fits, of_annotation, of_values, settled

INT, FLOAT, STR = Type("int"), Type("float"), Type("str")


@pytest.mark.parametrize(
    ("annotation", "wanted"),
    [
        ("int", INT),
        ("List[float]", Type("list", FLOAT)),
        ("typing.Dict[str, list[int]]", Type("dict", Type("list", INT))),
        ("Optional[str]", Type("optional", STR)),
        ("str | None", Type("optional", STR)),
        ("Union[int, float]", FLOAT),
        ("Tuple[int, int]", Type("list", INT)),
        ("tuple[float, ...]", Type("list", FLOAT)),
        ("'list[int]'", Type("list", INT)),
        ("Tuple[int, str]", None),
        ("Dict[int, str]", None),
        ("List", None),
        ("Any", None),
        ("int | str", None),
        ("Path", None),
        ("'not python ('", None),
    ],
)
def test_annotations_are_read_where_every_language_has_the_type(annotation: str, wanted: Type | None) -> None:
    assert of_annotation(ast.parse(annotation, mode="eval").body) == wanted


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ([1, 2.5], FLOAT),
        ([None, "a"], Type("optional", STR)),
        ([[], [1], [None, 2]], Type("list", Type("optional", INT))),
        ([{"a": 1}, {}], Type("dict", INT)),
        ([1, "a"], None),
        ([True, 1], None),
    ],
)
def test_values_tell_their_type(values: list[object], wanted: Type | None) -> None:
    assert of_values(values) == wanted


def test_what_was_recorded_decides_over_what_is_annotated() -> None:
    assert settled(INT, [1, 2]) == INT
    assert settled(INT, [1, 2.5]) == FLOAT
    assert settled(None, [[1], []]) == Type("list", INT)
    assert settled(None, [[]]) is None
    assert settled(Type("list", INT), [[]]) == Type("list", INT)
    assert settled(INT, ["a"]) == STR
    assert fits(FLOAT, 1) and not fits(INT, True) and not fits(STR, None)
    assert emptied(Type("list", Type("list", INT)), [None, [1]]) == [[], [1]]
    assert emptied(Type("optional", Type("list", INT)), None) is None


def test_functions_without_such_types_say_what_is_in_the_way() -> None:
    source = (
        "def f(a: int, b: str = 'x') -> str: ...\ndef g(p: Path) -> int: ...\ndef h(a: int) -> None: ...\n"
        "def i(*a: int) -> int: ...\ndef j(a): ...\n"
    )
    cases = {"f": [{"arguments": [1], "result": "y"}], "j": [{"arguments": [1], "result": [2.5]}]}
    found = {f.name: f for f in functions_of(ast.parse(source), cases, list("fghij"))}
    assert found["f"].parameters == (("a", INT), ("b", STR))
    assert found["f"].cases[0]["arguments"] == [1, "x"]
    assert found["g"].obstacle == "its argument p is `Path`, which is no plain data of one type"
    assert "its result is `None`" in found["h"].obstacle
    assert "varying number" in found["i"].obstacle
    assert (found["j"].parameters[0][1], found["j"].result) == (INT, Type("list", FLOAT))


def test_literals_hold_any_text() -> None:
    text = 'a"\\\n\t\x00é😀{}'
    assert go_literal(STR, text) == '"a\\"\\\\\\n\\t\\U00000000\\U000000e9\\U0001f600{}"'
    assert rust_literal(STR, text) == '"a\\"\\\\\\n\\t\\u{0}\\u{e9}\\u{1f600}{}".to_string()'
    assert java_literal(STR, text) == '"a\\"\\\\\\012\\011\\000\\u00e9\\ud83d\\ude00{}"'
    assert go_literal(Type("optional", INT), None) == "(*int64)(nil)"
    assert rust_literal(Type("list", FLOAT), [1, -2.5]) == "vec![(1.0f64), (-2.5f64)]"
    assert java_literal(Type("dict", INT), {"a": 1}) == 'Drive.<Long>map(Long.class, "a", (1L))'


def test_files_are_in_the_package_their_place_says() -> None:
    assert package_of("lib/word_count.go") == "wordcount"
    assert package_of("a/main.go") == "mainpkg"
    assert java_package("src/main/java/com/example/Words.java") == "com.example"
    assert java_package("Words.java") == ""
