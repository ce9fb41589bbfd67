from __future__ import annotations

import pytest

from garzone.agent.context import CodeBase, FailingTest
from garzone.agent.wanted import Wanted, wanted_of

FUNCTION = "def test_it():\n    items = [3, 1]\n    assert ordered(items) == [1, 3]\n    assert ordered([2]) == [2]\n"


def wanted(test: str, shown: str = "", path: str = "pkg/solution.py") -> Wanted:
    code = CodeBase(["test_a.py"], lambda _: test.encode())
    return wanted_of(code, [FailingTest("test_a.py", "", shown or test)], path)


@pytest.mark.parametrize(
    ("imported", "said"),
    [
        ("from pkg.solution import ordered\n", "ordered"),
        ("from pkg.solution import *\n", "ordered"),
        ("from pkg.solution import ordered as sort\n", "sort"),
        ("import pkg.solution\n", "pkg.solution.ordered"),
        ("import pkg.solution as s\n", "s.ordered"),
        ("from pkg import solution\n", "solution.ordered"),
    ],
)
def test_names_examples_and_inputs_are_found_however_the_file_is_imported(imported: str, said: str) -> None:
    body = FUNCTION.replace("ordered", said)
    found = wanted(f"import os\n{imported}\n\n{body}", shown=body)
    assert found.names == ("ordered",)
    assert found.examples == (f"assert {said}(items) == [1, 3]", f"assert {said}([2]) == [2]")
    assert found.inputs == (("ordered", "([2],)"),)


def test_what_a_test_has_from_elsewhere_is_not_wanted() -> None:
    text = "import math\nfrom solution import *\nfrom other import helper\n\nK = 2\n"
    text += "assert area(K, len('ab')) == math.pi\nhelper(1)\n"
    found = wanted(text)
    assert found.names == ("area",)
    assert found.inputs == ()


def test_methods_of_unittest_are_examples_and_classes_are_names() -> None:
    text = "import unittest\nfrom solution import Stack\n\nclass T(unittest.TestCase):\n    def test_a(self):\n"
    found = wanted(text + "        self.assertEqual(Stack((1, 2)).pop(), 2)\n")
    assert found == Wanted(("Stack",), ("self.assertEqual(Stack((1, 2)).pop(), 2)",), (("Stack", "((1, 2),)"),))


def test_nothing_is_wanted_where_it_cannot_be_told() -> None:
    assert wanted("from elsewhere import f\nassert f(1) == 2\n") == Wanted()
    assert wanted("from solution import f\nassert f(1) == 2\n", path="solution.ts") == Wanted()
    assert wanted("not python at all", path="solution.py") == Wanted()
