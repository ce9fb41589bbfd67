"""`implement` end to end: a scripted model, a real repository, the real sandbox."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from garzone.agent.sandbox import open_sandbox
from garzone.agent.worker import run_task
from garzone.core.errors import RepositoryError, UsageError
from garzone.core.ports import Sandbox
from garzone.core.task import Task, TaskKind, Verdict
from garzone.testing import ScriptedGenerator
from tests.agent.repositories import CHECK, block, fix_task, git, make_repository

TEST = "from stack import Stack\n\n\ndef test_stack():\n    s = Stack()\n    s.push(1)\n    s.push(2)\n"
TEST += "    s.push(3)\n    assert s.pop() == 3\n    assert s.pop() == 2\n"
RIGHT = "class Stack:\n    def __init__(self):\n        self.items = []\n\n    def push(self, item):\n"
RIGHT += "        self.items.append(item)\n\n    def pop(self):\n        return self.items.pop()\n"
WRONG = RIGHT.replace("pop()\n", "pop(0)\n")


@pytest.fixture(scope="module")
def box() -> Sandbox:
    return open_sandbox()


def implement_task(repo: Path, check: str | None = CHECK, **given: object) -> Task:
    values = {"kind": TaskKind.IMPLEMENT, "instruction": "A stack with push and pop", "files": ("stack.py",), **given}
    return replace(fix_task(repo, check), **values)  # type: ignore[arg-type]


async def test_a_new_file_that_makes_the_check_pass_is_proved(tmp_path: Path, box: Sandbox) -> None:
    repo = make_repository(tmp_path / "r", {"test_stack.py": TEST})
    generator = ScriptedGenerator([block(WRONG), block(RIGHT)])
    report = await run_task(implement_task(repo), generator, box)
    assert report.verdict is Verdict.PROVED, report
    assert report.files[0].path == "stack.py"
    assert git(repo, "show", f"{report.branch}:stack.py") == RIGHT.strip()
    assert not (repo / "stack.py").exists()
    assert "def test_stack" in generator.requests[0].messages[0].text


@pytest.mark.parametrize(
    "code",
    [
        "import sys\nsys.exit(0)\n",
        "import os\nos._exit(0)\n" + RIGHT,
        "import unittest.mock\nStack = unittest.mock.MagicMock\n",
        "class Stack:\n    def __getattr__(self, name):\n"
        "        return lambda *a: type('A', (), {'__eq__': lambda *_: True})()\n",
        RIGHT + "\nimport pytest\npytest.skip('x', allow_module_level=True)\n",
    ],
)
async def test_cheating_is_not_proved(tmp_path: Path, box: Sandbox, code: str) -> None:
    repo = make_repository(tmp_path / "r", {"test_stack.py": TEST})
    report = await run_task(implement_task(repo, num_candidates=1), ScriptedGenerator([block(code)]), box)
    assert report.verdict is not Verdict.PROVED, report


async def test_without_a_check_tests_are_written_first_and_prove_nothing(tmp_path: Path, box: Sandbox) -> None:
    repo = make_repository(tmp_path / "r", {"README.md": "Stacks.\n"})
    generator = ScriptedGenerator([block(TEST), block(WRONG), block(RIGHT)])
    report = await run_task(implement_task(repo, None), generator, box)
    assert report.verdict is Verdict.UNPROVED, report
    assert "wrote itself" in report.summary
    assert report.written_tests == TEST
    assert report.num_candidates == 2
    assert [f.path for f in report.files] == ["stack.py"]


async def test_a_function_is_put_into_a_file_that_is_there(tmp_path: Path, box: Sandbox) -> None:
    files = {
        "calc.py": "def add(a, b):\n    return a + b\n",
        "test_calc.py": "from calc import sub\n\n\ndef test_sub():\n"
        "    assert [sub(3, 1), sub(0, 4), sub(5, 5)] == [2, -4, 0]\n",
    }
    repo = make_repository(tmp_path / "r", files)
    answer = block(files["calc.py"] + "\n\ndef sub(a, b):\n    return a - b\n")
    task = implement_task(repo, instruction="Add sub(a, b)", files=("calc.py",))
    report = await run_task(task, ScriptedGenerator([block("def sub(a, b):\n    return a - b\n"), answer]), box)
    assert report.verdict is Verdict.PROVED, report
    assert report.num_malformed == 1  # the first answer left out add


async def test_one_example_does_not_prove_what_was_written_for_it(tmp_path: Path, box: Sandbox) -> None:
    files = {"test_calc.py": "from calc import sub\n\n\ndef test_sub():\n    assert sub(3, 1) == 2\n"}
    repo = make_repository(tmp_path / "r", files)
    task = implement_task(repo, instruction="Write sub(a, b)", files=("calc.py",), num_candidates=1)
    report = await run_task(task, ScriptedGenerator([block("def sub(a, b):\n    return 2\n")]), box)
    assert report.verdict is Verdict.UNPROVED, report
    assert "one input only" in report.summary


async def test_a_place_outside_or_in_git_is_refused(tmp_path: Path, box: Sandbox) -> None:
    repo = make_repository(tmp_path / "r", {"test_stack.py": TEST})
    (repo / "link").symlink_to(tmp_path)
    for name in ("../x.py", ".git/hooks/pre-commit", "link/x.py"):
        with pytest.raises(RepositoryError):
            await run_task(implement_task(repo, files=(name,)), ScriptedGenerator([block(RIGHT)]), box)
    with pytest.raises(UsageError, match="description"):
        await run_task(implement_task(repo, instruction=" "), ScriptedGenerator([block(RIGHT)]), box)


async def test_a_small_model_is_told_the_names_and_what_most_candidates_do_is_taken(
    tmp_path: Path, box: Sandbox
) -> None:
    files = {"test_calc.py": "from calc import total\n\n\ndef test_total():\n    assert total([2, 2]) == 4\n"}
    repo = make_repository(tmp_path / "r", files)
    answers = [
        "def total(a):\n    return 4\n",
        "def total(a):\n    return a[0] * a[1]\n",
        "def total(a):\n    return sum(a)\n",
        "def total(a):\n    n = 0\n    for i in a:\n        n += i\n    return n\n```\nIt adds.",
    ]
    generator = ScriptedGenerator([*map(block, answers[:3]), answers[3]], model="scripted:134m")
    task = implement_task(repo, instruction="Add up a list", files=("calc.py",), num_candidates=4)
    report = await run_task(task, generator, box)
    assert report.verdict is Verdict.UNPROVED, report
    assert git(repo, "show", f"{report.branch}:calc.py") == answers[2].strip()
    assert any("4 candidates pass; 2 of them do the same" in note for note in report.notes), report.notes
    asked = [request.messages for request in generator.requests]
    assert asked[0][0].text.startswith("Write the Python function `total`. Add up a list.")
    assert "assert total([2, 2]) == 4" in asked[0][0].text
    assert [message.role.value for message in asked[1]] == ["user", "assistant", "user"]
    assert asked[1][-1] == asked[0][0]
