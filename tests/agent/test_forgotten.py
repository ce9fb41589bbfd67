"""Imports that an answer forgot: found from the text, and added in a whole task."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from garzone.agent.forgotten import forgotten_imports, with_imports
from garzone.agent.sandbox import open_sandbox
from garzone.agent.worker import run_task
from garzone.core.ports import Sandbox
from garzone.core.task import TaskKind, Verdict
from garzone.testing import ScriptedGenerator
from tests.agent.repositories import CHECK, block, fix_task, git, make_repository

STUB = '''"""Numbers of a text."""


def numbers(text):
    """All whole numbers in a text.

    >>> numbers("a1b22")
    [1, 22]
    """
    raise NotImplementedError
'''
TEST = "from words import numbers\n\n\ndef test_numbers():\n    assert numbers('a1b22') == [1, 22]\n\n\n"
TEST += "def test_none():\n    assert numbers('') == []\n\n\ndef test_one():\n    assert numbers('7') == [7]\n"
RIGHT = 'def numbers(text):\n    return [int(found) for found in re.findall(r"[0-9]+", text)]\n'


@pytest.fixture(scope="module")
def box() -> Sandbox:
    return open_sandbox()


@pytest.mark.parametrize(
    ("code", "imports"),
    [
        ("x = math.sqrt(2)", ["import math"]),
        ("x = math.sqrt(2) + len(re.findall('a', 'b'))", ["import math", "import re"]),
        ("x = Counter('aab')", ["from collections import Counter"]),
        ("def f(x: List[int]) -> Optional[int]: ...", ["from typing import List, Optional"]),
        ("x = bisect(a, 1)\na = []", ["from bisect import bisect"]),
        ("x = bisect.bisect_left([], 1)", ["import bisect"]),
        ("x = sqrt(2)", ["from math import sqrt"]),
        ("def f(x: 'List[int]'): ...", []),  # never evaluated
        ("x = math.squareroot(2)", []),  # math has no such thing
        ("x = math", []),  # may be anything
        ("x = helper(math.sqrt(2))", []),  # something else is missing as well: the model is told
        ("x = os.getcwd()", []),  # can do more than compute
        ("x = subprocess.run(['true'])", []),
        ("import math\nx = math.sqrt(2)", []),
        ("x = 1", []),
        ("x = (", []),
    ],
)
def test_what_is_missing_is_found(code: str, imports: list[str]) -> None:
    assert list(forgotten_imports("a.py", "", code)) == imports


def test_what_was_missing_before_stays_missing() -> None:
    assert forgotten_imports("a.py", "x = math.pi\n", "x = math.pi * 2\n") == ()


def test_only_python_is_looked_at() -> None:
    assert forgotten_imports("a.ts", "", "let x = math.sqrt(2)") == ()


def test_test_files_may_want_pytest() -> None:
    code = "def test():\n    with pytest.raises(ValueError):\n        int('x')\n"
    assert forgotten_imports("a.py", "", code) == ()
    assert with_imports("a.py", "", code, also=("pytest",)) == f"import pytest\n\n\n{code}"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("x = re.escape('')\n", "import re\n\n\nx = re.escape('')\n"),
        ("import sys\nx = re.escape('')\n", "import sys\nimport re\nx = re.escape('')\n"),
        ("import sys\n\nx = re.escape('')\n", "import sys\nimport re\n\nx = re.escape('')\n"),
        ('"""Doc."""\n\nx = re.escape("")\n', '"""Doc."""\n\nimport re\n\nx = re.escape("")\n'),
        ('"""Doc."""\nx = re.escape("")\n', '"""Doc."""\n\nimport re\n\n\nx = re.escape("")\n'),
        ("import sys; x = re.escape('')\n", "import re\n\n\nimport sys; x = re.escape('')\n"),
        ("import sys\r\nx = re.escape('')\r\n", "import sys\r\nimport re\r\nx = re.escape('')\r\n"),
        ("from __future__ import annotations\nx = re.I", "from __future__ import annotations\nimport re\nx = re.I"),
    ],
)
def test_imports_go_behind_those_that_are_there(before: str, after: str) -> None:
    assert with_imports("a.py", "", before) == after


async def test_a_body_begins_with_the_import_it_forgot(tmp_path: Path, box: Sandbox) -> None:
    repo = make_repository(tmp_path / "r", {"words.py": STUB, "test_words.py": TEST})
    task = replace(fix_task(repo, CHECK), kind=TaskKind.COMPLETE, instruction="")
    report = await run_task(task, ScriptedGenerator([block(RIGHT)]), box)
    assert report.verdict is Verdict.PROVED, report
    assert [(file.added, file.removed) for file in report.files] == [(2, 1)]
    written = git(repo, "show", f"{report.branch}:words.py")
    assert written.endswith('    import re\n    return [int(found) for found in re.findall(r"[0-9]+", text)]')


async def test_a_repair_gets_the_import_it_forgot(tmp_path: Path, box: Sandbox) -> None:
    repo = make_repository(tmp_path / "r", {"words.py": STUB, "test_words.py": TEST})
    report = await run_task(fix_task(repo, CHECK), ScriptedGenerator([block(RIGHT)]), box)
    assert report.verdict is Verdict.PROVED, report
    assert git(repo, "show", f"{report.branch}:words.py").startswith(
        '"""Numbers of a text."""\n\nimport re\n\n\ndef numbers'
    )
