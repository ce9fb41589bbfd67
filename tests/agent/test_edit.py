from __future__ import annotations

import ast

from hypothesis import given
from hypothesis import strategies as st

from garzone.agent.edit import (
    Edited,
    EditMiss,
    bare_code,
    code_blocks,
    replace_file,
    replace_function,
    same_program,
)
from garzone.agent.edit_syntax import replace_text
from garzone.agent.target import SourceText, Span, functions

SOURCE = '''"""A module."""
import os


def first(a, b=1):
    """Says a.

    ```
    not a fence
    ```
    """
    return a - b


class Box:
    @property
    def size(self):
        return self._n  # comment

    def grow(self, by):
        self._n = by


def last():
    return 3'''


def span(name: str, text: str = SOURCE) -> Span:
    return next(s for s in functions(ast.parse(text)) if s.qualname == name)


def edited(name: str, answer: str, text: str = SOURCE) -> str:
    result = replace_function(text, span(name, text), answer)
    assert isinstance(result, Edited), result
    ast.parse(result.text)
    return result.text


def missed(name: str, answer: str) -> str:
    result = replace_function(SOURCE, span(name), answer)
    assert isinstance(result, EditMiss), result
    return result.reason


def fence(code: str) -> str:
    return f"Sure!\n\n```python\n{code}\n```\nThis works because...\n"


def test_only_the_function_changes_and_its_docstring_stays() -> None:
    text = edited("first", fence("def first(a, b=1):\n    return a + b"))
    assert text == SOURCE.replace("a - b", "a + b")


def test_a_method_without_its_class_is_indented() -> None:
    text = edited("Box.grow", fence("def grow(self, by):\n    self._n += by"))
    assert text == SOURCE.replace("self._n = by", "self._n += by")


def test_a_method_inside_its_class_is_taken_out() -> None:
    text = edited("Box.grow", fence("class Box:\n    def grow(self, by):\n        self._n += by"))
    assert text == SOURCE.replace("self._n = by", "self._n += by")


def test_decorators_left_out_are_kept() -> None:
    text = edited("Box.size", fence("def size(self):\n    return self._n + 1"))
    assert "    @property\n    def size(self):\n        return self._n + 1\n" in text


def test_decorators_given_replace_the_old_ones() -> None:
    text = edited("Box.size", fence("@cached\ndef size(self):\n    return 1"))
    assert "@property" not in text
    assert "    @cached\n    def size" in text


def test_a_missing_line_break_at_the_end_stays_missing() -> None:
    assert edited("last", fence("def last():\n    return 4")) == SOURCE.replace("return 3", "return 4")


def test_a_whole_file_gives_only_the_function() -> None:
    whole = SOURCE.replace("self._n = by", "self._n += by").replace("return 3", "return 99")
    assert edited("Box.grow", fence(whole)) == SOURCE.replace("self._n = by", "self._n += by")


def test_several_blocks_the_one_with_the_function_counts() -> None:
    answer = "The bug:\n```python\nreturn a - b\n```\nFixed:\n" + fence("def first(a, b=1):\n    return a + b")
    assert "a + b" in edited("first", answer)


def test_no_closing_fence_is_accepted_when_all_of_it_parses() -> None:
    assert "a + b" in edited("first", "```python\ndef first(a, b=1):\n    return a + b\n")
    assert "not valid Python" in missed("first", "```python\ndef first(a, b=1):\n    return (a +")


def test_no_fence_at_all_but_code() -> None:
    assert "a + b" in edited("first", "def first(a, b=1):\n    return a + b\n")
    assert "a + b" in edited("first", "Here you are:\n\ndef first(a, b=1):\n    return a + b\n")


def test_fences_inside_a_docstring_do_not_end_the_block() -> None:
    code = 'def first(a, b=1):\n    """Says.\n\n```\nexample\n```\n    """\n    return a + b'
    assert "a + b" in edited("first", fence(code))


def test_prose_only_is_a_miss_that_says_so() -> None:
    assert missed("first", "You should change the operator.")


def test_another_name_is_a_miss() -> None:
    assert "first" in missed("first", fence("def frist(a, b=1):\n    return a + b"))


def test_a_changed_signature_is_a_miss_that_shows_the_old_one() -> None:
    for signature in ("def first(b, a):", "def first(a):", "def first(a, b, c):", "async def first(a, b=1):"):
        assert "first" in missed("first", fence(f"{signature}\n    return a"))
    assert "def first(a, b=1, c=2)" in edited("first", fence("def first(a, b=1, c=2):\n    return a"))


def test_imports_the_function_needs_are_added_below_the_others() -> None:
    text = edited(
        "first", fence("import math\nimport os\nimport json\n\ndef first(a, b=1):\n    return math.floor(a + b)")
    )
    assert text.startswith('"""A module."""\nimport os\nimport math\n\n')
    assert "json" not in text


def test_new_helpers_come_along_known_ones_do_not() -> None:
    answer = "def helper(a): return a\n\ndef last(): return 99\n\ndef first(a, b=1):\n    return helper(a) + last()"
    text = edited("first", fence(answer))
    assert text.index("def helper") < text.index("def first")
    assert "return 99" not in text


def test_windows_line_breaks_and_tabs_are_kept() -> None:
    source = "def f(x):\r\n\tif x:\r\n\t\treturn 1\r\n\treturn 2\r\n\r\ny = 1\r\n"
    text = edited("f", fence("def f(x):\n    if not x:\n        return 1\n    return 2"), source)
    assert text == source.replace("if x", "if not x")


def test_byte_order_mark_and_declared_encoding_survive() -> None:
    for raw in (
        b"\xef\xbb\xbfdef f():\r\n    return 1\r\n",
        "# -*- coding: latin-1 -*-\n# é\ndef f():\n    return 1\n".encode("latin-1"),
    ):
        source = SourceText.read(raw, "a.py")
        assert source is not None
        text = edited("f", fence("def f():\n    return 2"), source.text)
        assert source.encode(text) == raw.replace(b"return 1", b"return 2")


def test_binary_is_not_text() -> None:
    assert SourceText.read(b"\x00\x01", "a.bin") is None
    assert SourceText.read(b"\xff\xfe", "a.txt") is None


def test_a_whole_file_must_keep_its_public_names() -> None:
    result = replace_file("def a():\n    pass\n\n\ndef b():\n    pass\n", "m.py", fence("def a():\n    return 1"))
    assert isinstance(result, EditMiss)
    assert "b" in result.reason


def test_another_language_needs_a_complete_block() -> None:
    assert replace_text("a.ts", "let x = 1;\r\n", "```ts\nlet x = 2;\n```") == Edited("let x = 2;\r\n")
    assert isinstance(replace_text("a.ts", "let x = 1;", "```ts\nlet x = 2;"), EditMiss)


def test_endless_answers_are_not_parsed() -> None:
    assert "too long" in missed("first", "x" * 300_000)


def test_comments_and_layout_are_no_change() -> None:
    assert same_program("a.py", "x = 1\n", "x  =  1  # one\n")
    assert not same_program("a.py", "x = 1\n", "x = 2\n")


def test_a_closing_fence_needs_as_many_marks() -> None:
    blocks = code_blocks("````md\n```\ninner\n```\n````\n")
    assert [block.code for block in blocks] == ["```\ninner\n```\n"]


@given(st.text(max_size=300))
def test_no_answer_breaks_it_or_touches_the_rest(answer: str) -> None:
    for candidate in (answer, f"```python\n{answer}\n```", f"```python\ndef first(a, b=1):\n    {answer}\n```"):
        result = replace_function(SOURCE, span("first"), candidate)
        if isinstance(result, Edited):
            assert result.text.endswith(SOURCE[SOURCE.index("\n\nclass Box") :])
            assert result.text.startswith('"""A module."""\n')


@given(st.sampled_from(["\n", "\r\n"]), st.integers(0, 3), st.booleans())
def test_what_is_around_stays_to_the_byte(newline: str, depth: int, final: bool) -> None:
    before = newline.join(["# before", "", "x = '\t '", ""]) + newline
    classes = "".join("    " * d + f"class C{d}:" + newline for d in range(depth))
    indent = "    " * depth
    after = (newline + "# after  " + newline + "\fz = 1") if final else ""
    source = before + classes + f"{indent}def f(a):{newline}{indent}    return a{newline}" + after
    name = "".join(f"C{d}." for d in range(depth)) + "f"
    text = edited(name, fence("def f(a):\n    return -a"), source)
    assert text == source.replace("return a", "return -a")


def test_a_fence_that_is_only_closed_ends_the_code_before_it() -> None:
    answer = "def first(a, b=1):\n    return a + b\n```\n\nThis adds b to a.\n"
    assert bare_code(answer) == "def first(a, b=1):\n    return a + b\n"
    assert edited("first", answer) == SOURCE.replace("a - b", "a + b")
    assert not bare_code("Sure:\n```\ndef first(a, b=1):\n    return a + b\n```\n")


def test_what_follows_whole_definitions_and_does_not_parse_is_left_out() -> None:
    ends = ("print(first(1)\n", "Output:\n3\n", "def other(a):\n    return [1, 2,", "def first(a, b=1):\n    if a")
    for end in ends:
        answer = f"```python\ndef first(a, b=1):\n    return a + b\n\n{end}"
        assert edited("first", answer) == SOURCE.replace("a - b", "a + b"), end
        assert replace_file("", "new.py", answer) == Edited("def first(a, b=1):\n    return a + b\n"), end
        # the end of a file that is there might be lost
        assert isinstance(replace_file("X = 1\n", "old.py", answer), EditMiss)
    assert isinstance(replace_file("", "new.py", "```python\ndef first(a,\n    return a"), EditMiss)
