"""`refactor` end to end: a scripted model, a real repository, the real sandbox."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from garzone.agent.sandbox import open_sandbox
from garzone.agent.worker import run_task
from garzone.core.ports import Sandbox
from garzone.core.task import Report, Task, TaskKind, Verdict
from garzone.testing import ScriptedGenerator
from tests.agent.repositories import CHECK, block, fix_task, git, make_repository

CODE = """def total(prices, discount=0):
    result = 0
    for price in prices:
        result = result + price
    result = result - discount
    return result


def first(items):
    return items[0]
"""
TEST = "from shop import first, total\n\n\ndef test_total():\n    assert total([1, 2]) == 3\n"
TEST += "    assert total([5], 1) == 4\n\n\ndef test_first():\n    assert first('ab') == 'a'\n"


@pytest.fixture(scope="module")
def box() -> Sandbox:
    return open_sandbox()


def a_task(repo: Path, check: str | None = CHECK, **given: object) -> Task:
    values = {"kind": TaskKind.REFACTOR, "instruction": "simplify total", "num_candidates": 1, **given}
    return replace(fix_task(repo, check), **values)  # type: ignore[arg-type]


async def refactored(tmp_path: Path, box: Sandbox, code: str, test: str = TEST, **given: object) -> Report:
    repo = make_repository(tmp_path / "r", {"shop.py": CODE, "test_shop.py": test})
    return await run_task(a_task(repo, **given), ScriptedGenerator([block(code)]), box)  # type: ignore[arg-type]


async def test_equal_behaviour_is_proved(tmp_path: Path, box: Sandbox) -> None:
    report = await refactored(tmp_path, box, "def total(prices, discount=0):\n    return sum(prices) - discount\n")
    assert report.verdict is Verdict.PROVED, report
    assert report.checks[0].before_exit_code == 0
    assert report.proof["inputs_compared"] > 2


@pytest.mark.parametrize(
    "code",
    [
        "def total(prices, discount=0):\n    return abs(sum(prices) - discount)\n",  # tests pass, a variation tells
        "def total(prices, discount=0):\n    return max(sum(prices), 0) - discount if prices else 1\n",
        "def total(prices, discount=0):\n    prices.append(0)\n    return sum(prices) - discount\n",
        "def total(prices, discount=0, *, tax=0):\n    return sum(prices) - discount + tax\n",  # another signature
        "def total(prices, discount=0):\n    import sys\n    return sum(prices) - discount\n",
        "def total(prices, discount=0):\n    return {(1, 2): 3, (5,): 4}[tuple(prices)]\n",  # the tests by heart
    ],
)
async def test_other_behaviour_is_not_proved(tmp_path: Path, box: Sandbox, code: str) -> None:
    report = await refactored(tmp_path, box, code)
    assert report.verdict is not Verdict.PROVED, report


async def test_what_no_test_calls_is_not_proved(tmp_path: Path, box: Sandbox) -> None:
    blind = "from shop import first\n\n\ndef test_first():\n    assert first('ab') == 'a'\n"
    code = "def total(prices, discount=0):\n    return sum(prices) - discount\n"
    report = await refactored(tmp_path, box, code, blind)
    assert report.verdict is Verdict.UNPROVED, report
    assert "no recorded call" in report.summary


async def test_a_check_that_fails_before_is_told(tmp_path: Path, box: Sandbox) -> None:
    report = await refactored(tmp_path, box, CODE, TEST.replace("== 3", "== 4"))
    assert report.verdict is Verdict.FAILED
    assert "fails already" in report.summary


async def test_a_rename_that_is_asked_for_is_allowed_and_others_are_not(tmp_path: Path, box: Sandbox) -> None:
    test = TEST.replace("from shop import first, total", "import shop\n\ntotal = getattr(shop, 'total')\nfirst = "
                        "getattr(shop, 'head', None) or shop.first")  # fmt: skip
    code = CODE.replace("def first", "def head")
    report = await refactored(tmp_path, box, code, test, instruction="rename first to head", files=("shop.py",))
    assert report.verdict is Verdict.PROVED, report
    code = CODE.replace("def total", "def summed")
    other = await refactored(tmp_path / "2", box, code, test, instruction="rename first to head", files=("shop.py",))
    assert other.verdict is Verdict.FAILED


async def test_a_rename_reaches_the_files_that_use_the_name(tmp_path: Path, box: Sandbox) -> None:
    files = {
        "shop.py": CODE,
        "till.py": "import shop\nfrom shop import total\n\n\ndef pay(of):\n    return total(of), shop.total([])\n",
        "test_shop.py": TEST + "\n\ndef test_pay():\n    from till import pay\n    assert pay([1]) == (1, 0)\n",
        "README.md": "`total` adds prices.\n",
    }
    right = block(CODE.replace("def total", "def add_up"))
    for number, (instruction, answer, verdict) in enumerate((
        ("rename total to add_up", right, Verdict.PROVED),
        ("rename first to head", right, Verdict.FAILED),  # what was not asked for
        ("rename total to add_up", block(CODE.replace("def total", "def add_up").replace("result - d", "result + d")),
         Verdict.FAILED),
    )):  # fmt: skip
        repo = make_repository(tmp_path / str(number), files)
        task = a_task(repo, instruction=instruction, files=("shop.py",))
        report = await run_task(task, ScriptedGenerator([answer]), box)
        assert report.verdict is verdict, report
        if verdict is Verdict.PROVED:
            assert sorted(change.path for change in report.files) == ["shop.py", "test_shop.py", "till.py"]
            assert "shop.add_up([])" in git(repo, "show", f"{report.branch}:till.py")
            assert "renamed in 2 more" in report.summary
            assert any("README.md also speaks of total" in note for note in report.notes)


CART = "class Cart:\n    def __init__(self, items):\n        self.items = items\n\n    def total(self):\n"
CART += "        return sum(self.items)\n"


@pytest.mark.parametrize(
    ("use", "verdict"),
    [
        ("def pay(cart: Cart):\n    return cart.total()\n", Verdict.PROVED),
        ("def pay(cart):\n    return sum(cart.items) if cart else cart.total()\n", Verdict.UNPROVED),
    ],
)
async def test_a_method_is_renamed_where_it_is_used_and_doubted_where_it_may_be(
    tmp_path: Path, box: Sandbox, use: str, verdict: Verdict
) -> None:
    test = "from till import Cart, pay\n\n\ndef test_pay():\n    assert pay(Cart([1, 2])) == 3\n"
    files = {"cart.py": CART, "till.py": f"from cart import Cart\n\n\n{use}", "test_till.py": test}
    repo = make_repository(tmp_path / "r", files)
    task = a_task(repo, instruction="rename the method Cart.total to sum_up", files=("cart.py",))
    report = await run_task(task, ScriptedGenerator([block(CART.replace("total", "sum_up"))]), box)
    assert report.verdict is verdict, report
    if verdict is Verdict.PROVED:
        assert "cart.sum_up()" in git(repo, "show", f"{report.branch}:till.py")
    else:
        assert "cannot be told: Cart.total: till.py:5" in report.summary


async def test_javascript_needs_a_check_that_notices_mutants(tmp_path: Path, box: Sandbox) -> None:
    code = "export function grade(n) {\n  if (n >= 90) {\n    return 'A';\n  } else {\n    return 'B';\n  }\n}\n"
    head = "import { grade } from './marks.mjs';\nimport test from 'node:test';\n"
    head += "import assert from 'node:assert/strict';\n"
    strict = "test('a', () => { assert.equal(grade(90), 'A'); assert.equal(grade(89), 'B'); });\n"
    loose = "test('a', () => { assert.ok(grade(90)); });\n"
    new = "```javascript\nexport function grade(n) {\n  return n >= 90 ? 'A' : 'B';\n}\n```"
    for name, test, verdict in (("s", strict, Verdict.PROVED), ("l", loose, Verdict.UNPROVED)):
        repo = make_repository(tmp_path / name, {"marks.mjs": code, "marks.test.mjs": head + test})
        task = a_task(repo, None, instruction="simplify grade")
        report = await run_task(task, ScriptedGenerator([new]), box)
        assert report.verdict is verdict, report
