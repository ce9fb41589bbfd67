"""`tests` end to end: a scripted model, a real repository, the real sandbox."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from garzone.agent.mutants import mutants_of
from garzone.agent.sandbox import open_sandbox
from garzone.agent.syntax import num_errors
from garzone.agent.worker import run_task
from garzone.core.ports import Sandbox
from garzone.core.task import Report, Task, TaskKind, Verdict
from garzone.testing import Answer, ScriptedGenerator
from tests.agent.repositories import CHECK, block, fix_task, git, make_repository

CODE = '''def grade(points):
    """A letter for points from 0 to 100."""
    if points < 0 or points > 100:
        raise ValueError("points")
    if points >= 90:
        return "A"
    if points >= 70:
        return "B"
    return "C"
'''
GOOD = """import pytest
from marks import grade


def test_best():
    assert grade(90) == "A"
    assert grade(100) == "A"


def test_second():
    assert grade(89) == "B"
    assert grade(70) == "B"


def test_rest():
    assert grade(69) == "C"
    assert grade(0) == "C"


def test_outside():
    with pytest.raises(ValueError):
        grade(-1)
    with pytest.raises(ValueError):
        grade(101)
"""


@pytest.fixture(scope="module")
def box() -> Sandbox:
    return open_sandbox()


def a_task(repo: Path, check: str | None = None, **given: object) -> Task:
    values = {"kind": TaskKind.TESTS, "instruction": "", "files": ("marks.py",), "num_candidates": 1, **given}
    return replace(fix_task(repo, check), **values)  # type: ignore[arg-type]


async def judged(
    tmp_path: Path, box: Sandbox, *answers: Answer, files: dict[str, str] | None = None, **given: object
) -> Report:
    repo = make_repository(tmp_path / "r", {"marks.py": CODE, **(files or {})})
    return await run_task(a_task(repo, **given), ScriptedGenerator(answers), box)  # type: ignore[arg-type]


async def test_tests_that_notice_mutants_are_proved(tmp_path: Path, box: Sandbox) -> None:
    report = await judged(tmp_path, box, block(GOOD))
    assert report.verdict is Verdict.PROVED, report
    assert [f.path for f in report.files] == ["test_marks.py"]
    assert report.proof["mutation_score"] >= 0.6
    assert git(tmp_path / "r", "show", f"{report.branch}:test_marks.py") == GOOD.strip()


async def test_failing_tests_are_left_out_and_the_rest_is_judged(tmp_path: Path, box: Sandbox) -> None:
    report = await judged(tmp_path, box, block(GOOD + "\n\ndef test_wrong():\n    assert grade(50) == 'A'\n"))
    assert report.verdict is Verdict.PROVED, report
    assert report.proof["tests_dropped"] == 1
    assert "test_wrong" not in report.patch


HOLLOW = {
    "asserts little": "from marks import grade\n\n\ndef test_a():\n    assert grade(95)\n",
    "reads the source": "from marks import grade\n\n\ndef test_a():\n"
    f"    assert open('marks.py').read() == {CODE!r}\n    assert grade(95) == 'A'\n",
    "inspects": "import inspect\nimport marks\n\n\ndef test_a():\n    assert hash(inspect.getsource(marks)) or True\n"
    "    assert len(inspect.getsource(marks)) == 257\n",
    "repeats": "from marks import grade\n\n\n"
    + CODE.replace("def grade", "def expected")
    + "\n\ndef test_a():\n    for n in range(101):\n        assert grade(n) == expected(n)\n",
    "bytecode": "from marks import grade\n\n\ndef test_a():\n    assert len(grade.__code__.co_code) == 58\n",
    "reads by a fixture": "from marks import grade\n\n\ndef test_a(tmp_path):\n"
    f"    assert (tmp_path.cwd() / 'marks.py').read_text() == {CODE!r}\n    assert grade(95) == 'A'\n",
    "reads by a trace": "import pytest\nfrom marks import grade\n\n\ndef test_a():\n"
    "    with pytest.raises(TypeError) as caught:\n        grade(None)\n"
    "    assert 'points < 0 or points > 100' in str(caught.getrepr())\n",
    "fails after some runs": "from marks import grade\n\n\ndef test_a(tmp_path):\n"
    "    place = tmp_path.parent.parent\n    seen = len(list(place.glob('seen*')))\n"
    "    place.joinpath(f'seen{seen}').mkdir()\n    assert seen < 3 and grade(95)\n",
    "repeats with other names": "from marks import grade\n\n\n"
    + CODE.replace("def grade", "def expected").replace("points", "n")
    + "\n\ndef test_a():\n    for n in range(101):\n        assert grade(n) == expected(n)\n",
    "always": "from marks import grade\n\n\ndef test_a():\n    assert True\n",
}


@pytest.mark.parametrize("name", list(HOLLOW))
async def test_hollow_tests_are_not_proved(tmp_path: Path, box: Sandbox, name: str) -> None:
    report = await judged(tmp_path, box, block(HOLLOW[name]))
    assert report.verdict is not Verdict.PROVED, report


async def test_one_input_proves_no_tests_however_many_mutants_it_notices(tmp_path: Path, box: Sandbox) -> None:
    code = "def shift(a):\n    return a * 7 + 3\n"
    one = "from shifts import shift\n\n\ndef test_a():\n    assert shift(5) == 38\n"
    three = one + "    assert shift(0) == 3\n    assert shift(-1) == -4\n"
    for number, (text, verdict) in enumerate(((one, Verdict.UNPROVED), (three, Verdict.PROVED))):
        repo = make_repository(tmp_path / str(number), {"shifts.py": code})
        report = await run_task(a_task(repo, files=("shifts.py",)), ScriptedGenerator([block(text)]), box)
        assert report.verdict is verdict, report
        assert report.proof["mutation_score"] >= 0.6


async def test_tests_that_repeat_what_is_there_are_not_proved(tmp_path: Path, box: Sandbox) -> None:
    report = await judged(tmp_path, box, block(GOOD), files={"test_marks.py": GOOD}, check=CHECK)
    assert report.verdict is Verdict.UNPROVED, report
    assert "reaches nothing" in report.summary


async def test_javascript_tests_are_proved_by_mutants_too(tmp_path: Path, box: Sandbox) -> None:
    code = "export function grade(points) {\n  if (points >= 90) {\n    return 'A';\n  }\n  return 'B';\n}\n"
    head = "import { grade } from './marks.mjs';\nimport test from 'node:test';\n"
    head += "import assert from 'node:assert/strict';\n"
    good = head + "test('a', () => assert.equal(grade(90), 'A'));\ntest('b', () => assert.equal(grade(89), 'B'));\n"
    repo = make_repository(tmp_path / "r", {"marks.mjs": code})
    task = a_task(repo, files=("marks.mjs",))
    hollow = head + "test('a', () => { grade(90); assert.ok(true); });\n"
    for text, verdict in ((good, Verdict.PROVED), (hollow, Verdict.UNPROVED)):
        report = await run_task(task, ScriptedGenerator([f"```javascript\n{text}```"]), box)
        assert report.verdict is verdict, report
        assert [f.path for f in report.files] == ["marks.test.mjs"]


def test_mutants_of_all_languages_parse_and_differ() -> None:
    codes = {
        "a.py": CODE,
        "a.ts": "export function f(a: number): number {\n  if (a > 1 && a < 5) { return a + 1; }\n  return 0;\n}\n",
        "a.go": "package p\n\nfunc F(a int) int {\n\tif a > 1 {\n\t\treturn a * 2\n\t}\n\treturn 0\n}\n",
        "a.rs": "pub fn f(a: i64) -> i64 {\n    if a > 1 { return a * 2; }\n    0\n}\n",
        "A.java": "class A { int f(int a) { if (a > 1) { return a * 2; } return 0; } }\n",
    }
    for path, code in codes.items():
        found = mutants_of(path, code)
        assert len(found) >= 3, path
        assert all(mutant.text != code and num_errors(path, mutant.text) == 0 for mutant in found), path
    assert mutants_of("a.py", CODE) == mutants_of("a.py", CODE)
    assert len(mutants_of("a.py", CODE, limit=3)) == 3
