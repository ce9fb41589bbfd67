from __future__ import annotations

import pytest

from garzone.agent.changes import FileEdit
from garzone.agent.context import CodeBase, choose_targets, failing_tests, trimmed_output
from garzone.agent.definitions import definitions_used
from garzone.agent.evidence import Evidence, Failure
from garzone.agent.prompts import fenced
from garzone.agent.proof import new_powers
from garzone.agent.target import functions, is_protected, is_test, parse
from garzone.core.errors import RepositoryError

SHOP = """RATE = 0.2


def tax(price):
    return price * RATE


def total(prices):
    return sum(prices) + tax(sum(prices))


class Cart:
    def __init__(self):
        self.prices = []

    def add(self, price):
        self.prices.append(price)

    def total(self):
        return total(self.prices)
"""
TEST_SHOP = """from shop import Cart, total


def test_total():
    assert total([10]) == 12


def test_cart():
    cart = Cart()
    cart.add(1)
    assert cart.total() == 1.2
"""


def code_base(files: dict[str, str] | None = None, prefix: str = "") -> CodeBase:
    files = files or {"shop.py": SHOP, "test_shop.py": TEST_SHOP, "other.py": "def total(x):\n    return 0\n"}
    return CodeBase(list(files), lambda name: files[name].encode(), prefix)


def failing(test: str, *trace: tuple[str, int], message: str = "assert 10 == 12") -> Evidence:
    return Evidence({test: "failed"}, (Failure(test, message, trace),), 1, 1, (), frozenset({"pytest"}))


def labels(code: CodeBase, evidence: Evidence, output: str = "", instruction: str = "", *named: str) -> list[str]:
    return [t.label for t in choose_targets(code, named, evidence, output, instruction=instruction)]


def test_the_function_where_it_broke_comes_first() -> None:
    evidence = failing("test_shop.py::test_total", ("test_shop.py", 5), ("shop.py", 9), ("shop.py", 5))
    assert labels(code_base(), evidence)[:2] == ["tax in shop.py", "total in shop.py"]


def test_without_a_trace_into_the_code_the_called_functions_of_the_imported_module_come_first() -> None:
    found = labels(code_base(), failing("test_shop.py::test_total", ("test_shop.py", 5)))
    assert found[0] == "total in shop.py"
    assert "tax in shop.py" in found  # what it calls may be where the fault is
    assert not any("other.py" in label for label in found)


def test_words_of_the_instruction_decide_between_suspects() -> None:
    evidence = failing("test_shop.py::test_total", ("test_shop.py", 5))
    assert labels(code_base(), evidence, "", "tax is charged twice")[0] == "tax in shop.py"


def test_a_module_that_does_not_load_is_rewritten_as_a_whole() -> None:
    evidence = failing("collect:test_shop.py", ("test_shop.py", 1), ("shop.py", 1), message="NameError: total")
    assert labels(code_base(), evidence, "", "total is wrong")[0] == "shop.py"


def test_a_file_that_does_not_parse_is_rewritten_as_a_whole() -> None:
    code = code_base({"a.py": "def f(:\n", "test_a.py": "import a\ndef test_f(): a.f()\n"})
    assert labels(code, failing("collect:test_a.py", ("a.py", 1)), "", "", "a.py") == ["a.py"]


def test_named_files_bound_the_choice() -> None:
    evidence = failing("test_shop.py::test_total", ("test_shop.py", 5), ("shop.py", 9))
    assert labels(code_base(), evidence, "", "", "other.py") == ["total in other.py", "other.py"]
    assert labels(code_base(), evidence, "", "", "shop.py", "test_shop.py")[0] == "total in shop.py"


def test_tests_are_never_chosen_unless_nothing_else_was_named() -> None:
    evidence = failing("test_shop.py::test_total", ("test_shop.py", 5))
    assert not any("test_" in label for label in labels(code_base(), evidence))
    assert all("test_shop.py" in label for label in labels(code_base(), evidence, "", "", "test_shop.py"))


def test_nothing_to_go_by_asks_for_a_file() -> None:
    with pytest.raises(RepositoryError, match="--file"):
        labels(code_base({"a.txt": "x"}), Evidence(), "exit 1")


def test_plain_output_leads_to_test_and_function_too() -> None:
    output = 'Traceback:\n  File "/x/test_shop.py", line 5, in <module>\n  File "/x/shop.py", line 9, in total\nError'
    assert labels(code_base(), Evidence(), output)[0] == "total in shop.py"
    assert [test.name for test in failing_tests(code_base(), Evidence(), output)] == ["test_total"]


def test_a_silent_run_is_told_by_the_check() -> None:
    tests = failing_tests(code_base(), Evidence(), "", "pytest -q test_shop.py::test_cart")
    assert [test.path for test in tests] == ["test_shop.py"]


def test_unittest_ids_and_parametrised_ids_are_understood() -> None:
    files = {"pkg/tests/test_a.py": "class T:\n    def test_b(self):\n        pass\n"}
    for test in ("pkg.tests.test_a.T.test_b", "pkg/tests/test_a.py::T::test_b[1-x]"):
        found = failing_tests(code_base(files), failing(test), "")
        assert [(t.path, t.name) for t in found] == [("pkg/tests/test_a.py", "test_b")]


def test_paths_relative_to_where_the_check_runs_are_understood() -> None:
    code = code_base({"lib/shop.py": SHOP, "lib/test_shop.py": TEST_SHOP}, "lib")
    assert labels(code, failing("test_shop.py::test_total", ("test_shop.py", 5)))[0] == "total in lib/shop.py"


def test_what_a_target_uses_is_looked_up() -> None:
    code = code_base()
    target = choose_targets(code, [], failing("test_shop.py::test_total", ("shop.py", 5)), "", instruction="")[0]
    assert definitions_used(code, target) == ["RATE = 0.2"]


def test_output_is_cut_in_the_middle_and_messages_are_preferred() -> None:
    assert trimmed_output("noise", failing("t::a", message="assert 1 == 2"), 500) == "t::a: assert 1 == 2"
    text = trimmed_output("start " + "x" * 5000 + " end", Evidence(), 300)
    assert len(text) < 320
    assert text.startswith("start") and text.endswith("end")


def test_frames_of_the_probe_are_not_shown() -> None:
    output = (
        "Traceback (most recent call last):\n"
        '  File "<frozen runpy>", line 198, in _run_module_as_main\n'
        '  File "<garzone>", line 2, in <module>\n'
        '  File "/p/sitecustomize.py", line 209, in run_script\n    exec(compile(source, path, "exec"), namespace)\n'
        '  File "test_x.py", line 3, in <module>\n    assert f() == 1\nAssertionError\n'
    )
    shown = trimmed_output(output, Evidence(), 1000)
    assert "runpy" not in shown and "sitecustomize" not in shown
    assert 'File "test_x.py", line 3' in shown


def test_a_fence_is_longer_than_any_inside() -> None:
    assert fenced("a\n````\nb", "md").startswith("`````md\n")
    assert fenced("x = 1\n") == "```\nx = 1\n```"


@pytest.mark.parametrize(
    "path", ["test_a.py", "a_test.py", "tests/x.py", "a/__tests__/a.ts", "a.spec.ts", "conftest.py"]
)
def test_tests_are_known_by_their_names(path: str) -> None:
    assert is_test(path)
    assert is_protected(path)


def test_configuration_is_protected_and_code_is_not() -> None:
    for path in ("pyproject.toml", "sub/setup.cfg", "Makefile", "package.json", "x.pth", "vitest.config.ts", ".env"):
        assert is_protected(path), path
    for path in ("latest.py", "contest.py", "src/app.ts", "attest/x.py"):
        assert not is_protected(path), path


def test_functions_are_found_with_their_decorators_and_classes() -> None:
    source = "@a\n@b\ndef f():\n    def inner(): pass\n\nif x:\n    def g(): pass\n\nclass C:\n    class D:\n"
    tree = parse(source + "        def h(self): pass\n")
    assert tree is not None
    found = [(span.qualname, span.first_line, span.last_line) for span in functions(tree)]
    assert found == [("f", 1, 4), ("g", 7, 7), ("C.D.h", 11, 11)]


def test_the_comment_above_a_function_is_shown_with_it() -> None:
    code = code_base({"a.py": "X = 1\n\n\n# Says f.\n# Twice.\ndef f():\n    return 1\n"})
    target = choose_targets(code, ["a.py"], Evidence(), "", instruction="")[0]
    assert target.shown == "# Says f.\n# Twice.\ndef f():\n    return 1\n"
    assert target.code == "def f():\n    return 1\n"


def test_tests_of_other_languages_are_known_and_not_rewritten() -> None:
    assert is_test("PagesTest.java") and is_test("src/test/java/Pages.java") and not is_test("Contest.java")
    rust = "pub fn f() -> i64 {\n    1\n}\n\n#[cfg(test)]\nmod tests {\n    #[test]\n    fn t() {}\n}\n"
    code = code_base({"src/lib.rs": rust})
    assert [span.qualname for span in code.spans("src/lib.rs")] == ["f"]
    changed = FileEdit("src/lib.rs", rust, rust.replace("fn t() {}", "fn u() {}"), b"")
    assert any("tests in the same file" in what for what in new_powers(changed))
    assert new_powers(FileEdit("src/lib.rs", rust, rust.replace("    1", "    2"), b"")) == []
