"""The quality bench on suites of two tasks written here: grading, oracle, saboteurs, resuming."""

from __future__ import annotations

import ast
import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from garzone.agent.edit import code_blocks
from garzone.agent.sandbox import open_sandbox
from garzone.agent.syntax import num_errors
from garzone.bench import quality_javascript
from garzone.bench.quality import Bench, Outcome, Record, Settings
from garzone.bench.quality_attacks import ATTACKS
from garzone.bench.quality_attacks_js import JS_ATTACKS
from garzone.bench.quality_attacks_tests import HOLLOW
from garzone.bench.quality_grading import Grader
from garzone.bench.quality_sabotage import hostile_answers
from garzone.bench.quality_suites import Reference, commission, load_references, load_tasks
from garzone.bench.quality_tables import Rate, rows, summarise
from garzone.core.errors import UsageError
from garzone.core.ports import Sandbox
from garzone.testing import ScriptedGenerator
from tests.agent.repositories import block

WRONG = "def double(x):\n    return x + 1\n"
RIGHT = "def double(x):\n    return x * 2\n"
TEST = (
    "from solution import double\nassert double(1) == 2\nassert double(4) == 8\nassert double(-3) == -6\nprint('OK')\n"
)


@pytest.fixture(scope="module")
def box() -> Sandbox:
    return open_sandbox()


@pytest.fixture
def suites(tmp_path: Path) -> Path:
    data = tmp_path / "suites"
    (data / "canonical").mkdir(parents=True)
    _write(data, "humanevalfix_python", [_fix(number) for number in range(2)])
    return data


def _fix(number: int) -> tuple[dict[str, Any], dict[str, Any]]:
    task = {
        "id": f"fix/{number}", "prompt": "Fix bugs in double.", "files": {"solution.py": WRONG},
        "solution_path": "solution.py", "test_files": {"test_solution.py": TEST},
        "test_cmd": ["python3", "test_solution.py"], "timeout_s": 10, "meta": {"entry_point": "double"},
    }  # fmt: skip
    return task, {"id": task["id"], "files": {"solution.py": RIGHT}}


def _write(data: Path, suite: str, tasks: list[tuple[dict[str, Any], dict[str, Any]]]) -> None:
    (data / f"{suite}.jsonl").write_text("".join(json.dumps(task) + "\n" for task, _ in tasks))
    (data / "canonical" / f"{suite}.jsonl").write_text("".join(json.dumps(right) + "\n" for _, right in tasks))


async def _run(
    data: Path, box: Sandbox, mode: str, generator: Any = None, out: Path | None = None, **given: Any
) -> list[Outcome]:
    settings = Settings("humanevalfix_python", mode, "scripted", num_candidates=2, max_rounds=1, **given)
    references = load_references(data, settings.suite)
    record = Record(out / settings.file_name if out else None, settings)
    bench = Bench(settings, references, box, generator)
    return await bench.run(load_tasks(data, settings.suite), record, jobs=2, tell=lambda _: None)


async def test_the_oracle_is_proved_and_passes_the_grading(suites: Path, box: Sandbox) -> None:
    outcomes = await _run(suites, box, "oracle", parallel=1)
    assert [(each.verdict, each.passed, each.num_candidates) for each in outcomes] == [("proved", True, 1)] * 2
    assert dict(rows(summarise(Settings("humanevalfix_python", "oracle", ""), outcomes)))["candidates"] == "2"


async def test_no_hostile_answer_is_proved(suites: Path, box: Sandbox) -> None:
    outcomes = await _run(suites, box, "saboteur", hostile_per_task=6)
    assert [each.false_proofs for each in outcomes] == [(), ()]
    assert sum(each.num_candidates for each in outcomes) >= 8


async def test_a_model_alone_is_graded_by_what_it_writes(suites: Path, box: Sandbox) -> None:
    outcomes = await _run(suites, box, "alone", ScriptedGenerator([block(RIGHT), block(WRONG)]))
    assert sorted(each.passed for each in outcomes) == [False, True]


async def test_a_stopped_run_goes_on_where_it_was(suites: Path, box: Sandbox, tmp_path: Path) -> None:
    generator = ScriptedGenerator([block(RIGHT)])
    await _run(suites, box, "alone", generator, tmp_path)
    path = tmp_path / "humanevalfix_python-alone-scripted.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:2]) + "\n" + lines[2][:20])  # killed amid the second outcome
    outcomes = await _run(suites, box, "alone", generator, tmp_path)
    assert [each.id for each in outcomes] == ["fix/0", "fix/1"]
    assert len(generator.requests) == 3
    with pytest.raises(UsageError, match="other settings"):
        await _run(suites, box, "alone", generator, tmp_path, timeout_s=7.0)


@pytest.mark.parametrize(
    ("solution", "passed"),
    [(RIGHT, True), (WRONG, False), ("raise SystemExit(0)\n", False), ("import time\ntime.sleep(99)\n", False)],
)
async def test_grading_wants_exit_code_0_and_ok_as_the_last_line(
    suites: Path, box: Sandbox, solution: str, passed: bool
) -> None:
    task = replace(load_tasks(suites, "humanevalfix_python")[0], timeout_s=3)
    grader = Grader(box, sys.executable, {})
    assert (await grader.grade(task, {"solution.py": solution})).passed is passed
    # the suite's own tests are laid over last
    assert not (await grader.grade(task, {"solution.py": WRONG, "test_solution.py": "print('OK')"})).passed


async def test_tests_are_graded_by_the_mutants_they_kill(tmp_path: Path, box: Sandbox) -> None:
    command = ["python3", "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "test_generated.py"]
    task = {
        "id": "t", "prompt": "", "files": {"solution.py": RIGHT}, "solution_path": "test_generated.py",
        "test_files": {}, "test_cmd": command, "timeout_s": 20, "meta": {"entry_point": "double"},
    }  # fmt: skip
    (tmp_path / "canonical").mkdir()
    right = {"id": "t", "files": {}, "mutants": [{"files": {"solution.py": WRONG}}, {"files": {"solution.py": "x"}}]}
    _write(tmp_path, "testgen_humaneval", [(task, right)])
    [loaded] = load_tasks(tmp_path, "testgen_humaneval")
    grader = Grader(box, sys.executable, load_references(tmp_path, "testgen_humaneval"))
    start = "from solution import double\ndef test_it():\n    assert "
    for text, score in (("double(2) == 4", 1.0), ("double(1) == 2", 0.5), ("double(1) == 3", 0.0)):
        graded = await grader.grade(loaded, {"test_generated.py": start + text, "solution.py": "x"})
        assert (graded.score, graded.passed) == (score, score == 1.0), text


def test_every_attack_is_met_and_every_answer_is_stable(suites: Path) -> None:
    task = load_tasks(suites, "humanevalfix_python")[0]
    reference = Reference({"solution.py": RIGHT})
    answers = hostile_answers(task, reference, 4 + len(ATTACKS))
    assert {each.name for each in answers if each.tampers} == {attack.name for attack in ATTACKS}
    assert answers == hostile_answers(task, reference, 4 + len(ATTACKS))
    assert len({attack.name for attack in ATTACKS}) == len(ATTACKS)


def test_every_hollow_test_file_is_met_and_can_be_read(suites: Path) -> None:
    task = replace(
        load_tasks(suites, "humanevalfix_python")[0], suite="testgen_humaneval", files={"solution.py": RIGHT}
    )
    reference = Reference({}, tests="def check(double):\n    assert double(2) == 4\n    assert double(-1) == -2\n")
    answers = hostile_answers(task, reference, 2 + len(HOLLOW))
    assert {each.name for each in answers if each.tampers} == {each.name for each in HOLLOW}
    assert [each.name for each in answers if not each.tampers] == ["one example", "wrong values"]
    for each in answers:
        [block] = code_blocks(each.text)
        ast.parse(block.code)
        assert not re.search(r"\b(NAME|ARGS|VALUE|SOURCE|COPY)\b", block.code), each.name
    assert answers == hostile_answers(task, reference, 2 + len(HOLLOW))


def test_every_attack_on_translations_is_met(suites: Path) -> None:
    prompt = "Translate. Exactly this signature:\n\n```typescript\nfunction double(x: number): number {\n```\n"
    tests = {"t.ts": "  assert.deepEqual(candidate(2),4);\n  assert.deepEqual(candidate(3),6);\n"}
    task = replace(
        load_tasks(suites, "humanevalfix_python")[0], solution_path="solution.ts", prompt=prompt, test_files=tests
    )
    right = "function double(x: number): number {\n  return x + x;\n}\n"
    answers = hostile_answers(task, Reference({"solution.ts": right}), 4 + len(JS_ATTACKS))
    assert {each.name for each in answers if each.tampers} == {attack.name for attack in JS_ATTACKS}
    assert sum(not each.tampers for each in answers) == 4
    for each in answers:
        [block] = code_blocks(each.text)
        assert block.code.strip() != right.strip()
        assert "NAME" not in block.code
        assert num_errors("solution.ts", block.code) == 0, each.name


def test_faults_in_javascript_are_made_from_the_typescript_suite(suites: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        quality_javascript, "without_types", lambda texts, _: [t.replace(": number", "") for t in texts]
    )
    first, second = load_tasks(suites, "humanevalfix_python")
    tests = {"t.ts": "  assert.deepEqual(candidate(2),4);\n  assert.deepEqual(candidate(3),6);\n"}
    typed = [replace(task, solution_path="solution.ts", test_files=tests) for task in (first, second)]
    right = "function double(x: number): number {\n  return x + x;\n}\n"
    tasks, references = quality_javascript.javascript_suite(typed, {first.id: Reference({"solution.ts": right})}, None)
    [task] = tasks  # the other has no right answer
    assert references[task.id].files == {"solution.mjs": "export function double(x) {\n  return x + x;\n}\n"}
    assert task.files["solution.mjs"].startswith("export function double(x) {")
    assert task.files != references[task.id].files
    assert task.test_files["solution.test.mjs"].count("assert.deepEqual(double(") == 2
    assert commission(task, "python3").check == "node --test solution.test.mjs"


def test_a_sample_depends_on_its_seed_alone(suites: Path) -> None:
    _write(suites, "humanevalfix_python", [_fix(number) for number in range(50)])
    first = load_tasks(suites, "humanevalfix_python", limit=9, seed=3)
    assert first == load_tasks(suites, "humanevalfix_python", limit=9, seed=3)
    assert first != load_tasks(suites, "humanevalfix_python", limit=9, seed=4)
    assert load_tasks(suites, "humanevalfix_python", limit=2)[1].id == "fix/1"


def test_what_was_looked_at_can_be_left_out_of_a_sample(suites: Path) -> None:
    _write(suites, "humanevalfix_python", [_fix(number) for number in range(50)])
    whole = load_tasks(suites, "humanevalfix_python", limit=9, seed=3)
    assert load_tasks(suites, "humanevalfix_python", limit=9, seed=3, skip=4) == whole[4:]
    assert load_tasks(suites, "humanevalfix_python", skip=49)[0].id == "fix/49"
    with pytest.raises(UsageError, match="leaves none of the 9"):
        load_tasks(suites, "humanevalfix_python", limit=9, seed=3, skip=9)


def test_a_suite_that_would_leave_its_directory_is_refused(suites: Path) -> None:
    task, right = _fix(0)
    _write(suites, "humanevalfix_python", [({**task, "files": {"../x": ""}}, right)])
    with pytest.raises(UsageError, match="leads out"):
        load_tasks(suites, "humanevalfix_python")
    shutil.rmtree(suites)
    with pytest.raises(UsageError, match="--data"):
        load_tasks(suites, "humanevalfix_python")


def test_intervals_are_wilsons() -> None:
    # statsmodels.stats.proportion.proportion_confint(5, 100, method="wilson")
    low, high = Rate(5, 100).interval
    assert (round(low, 4), round(high, 4)) == (0.0215, 0.1118)
    assert Rate(0, 10).interval[0] == 0.0
    assert round(Rate(0, 10).interval[1], 4) == 0.2775
