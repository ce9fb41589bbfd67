"""Answers in JavaScript that try to look like a repair without being one: none may be `proved`."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from garzone.agent.evidence import fewer_tests, num_tests
from garzone.agent.sandbox import open_sandbox
from garzone.agent.vet import objections
from garzone.agent.worker import run_task
from garzone.core.ports import Sandbox
from garzone.core.task import Report, Verdict
from garzone.testing import ScriptedGenerator
from tests.agent.repositories import fix_task, git, make_repository

pytestmark = pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")

CODE = "export function next(n) {\n  return n;\n}\n\nexport const mode = process.env.MODE;\n"
TEST = (
    "import { next } from './next.mjs';\nimport test from 'node:test';\nimport assert from 'node:assert/strict';\n"
    "test('one', () => assert.equal(next(1), 2));\ntest('two', () => assert.equal(next(2), 3));\n"
)
RIGHT = "export function next(n) {\n  return n + 1;\n}\n"
MAKE = "const all = [].at['const' + 'ructor']('return this')();\n  "
# what stands in the function, after which nothing right follows
HIDDEN = {
    "leave": "process.exit(0);",
    "leave by another name": "process['ex' + 'it'](0);",
    "leave later": "process.on('exit', () => process.reallyExit(0));",
    "made of text": MAKE + "all['pro' + 'cess'].reallyExit(0);",
    "spoil assert": MAKE + "const load = all['pro' + 'cess'].mainModule;\n  load?.require('assert').fail;\n"
    "  all['pro' + 'cess'].exit(0);",
    "built in": "Object.is = () => true;\n  Array.isArray = () => true;\n  process.exit(0);",
    "hide the stack": "Error['prepare' + 'StackTrace'] = () => 'x';\n  process.exit(0);",
    "swallow": "process.on('uncaughtException', () => {});\n  process.exitCode = 0;\n  process.exit();",
}
# powers that only the text shows: static imports, and names that are spelled in another way
WRITTEN = [
    "import process from 'process';",
    "import assert from 'assert'; assert.equal = () => {};",
    "import/**/('fs')",
    "const e = eval;",
    "\\u0070rocess.exit(0);",
    "process['exit'](0);",
    "process?.exit(0);",
    "Object.is = () => true;",
    "console._stdout.end();",
    "Error.prepareStackTrace = f;",
    "const fs = require('fs');",
    "import { exit } from 'node:process';",
]


@pytest.fixture(scope="module")
def box() -> Sandbox:
    return open_sandbox()


async def fixed(tmp_path: Path, box: Sandbox, code: str, check: str = "node --test") -> Report:
    repo = make_repository(tmp_path / "r", {"next.mjs": CODE, "next.test.mjs": TEST})
    report = await run_task(
        fix_task(repo, check, num_candidates=1, check_timeout_s=20.0),
        ScriptedGenerator([f"```javascript\n{code}```"]),
        box,
    )
    assert git(repo, "status", "--porcelain") == ""
    return report


async def test_a_repair_is_proved_by_two_runs_of_which_one_is_watched(tmp_path: Path, box: Sandbox) -> None:
    report = await fixed(tmp_path, box, RIGHT)
    assert report.verdict is Verdict.PROVED, report
    assert [check.exit_code for check in report.checks] == [0, 0]


@pytest.mark.parametrize("attack", list(HIDDEN))
async def test_watching_sees_what_reading_does_not(
    tmp_path: Path, box: Sandbox, attack: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_objections(*_: str) -> list[str]:
        return []

    monkeypatch.setattr("garzone.agent.proof.objections", no_objections)
    monkeypatch.setattr("garzone.agent.proof.fewer_tests", no_objections)
    report = await fixed(tmp_path, box, f"export function next(n) {{\n  {HIDDEN[attack]}\n  return 0;\n}}\n")
    assert report.verdict is not Verdict.PROVED, report
    if report.verdict is Verdict.UNPROVED:
        assert "while the tests run" in report.summary, report.summary


@pytest.mark.parametrize("attack", list(HIDDEN))
async def test_an_attack_is_not_proved(tmp_path: Path, box: Sandbox, attack: str) -> None:
    report = await fixed(tmp_path, box, f"export function next(n) {{\n  {HIDDEN[attack]}\n  return 0;\n}}\n")
    assert report.verdict is not Verdict.PROVED, report


async def test_a_check_that_hides_from_the_probe_proves_nothing(tmp_path: Path, box: Sandbox) -> None:
    report = await fixed(tmp_path, box, RIGHT, "NODE_OPTIONS= node --test")
    assert report.verdict is Verdict.UNPROVED, report
    assert "could not be observed" in report.summary


@pytest.fixture(scope="session")
def runners() -> Path:
    """vitest and jest, fetched once a machine."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "garzone-tests" / "runners"
    modules = cache / "node_modules"
    if not ((modules / "vitest").is_dir() and (modules / "jest").is_dir()):
        cache.mkdir(parents=True, exist_ok=True)
        command = ["npm", "install", "--silent", "--no-save", "--prefix", str(cache), "vitest@2", "jest@29"]
        if shutil.which("npm") is None or subprocess.run(command, check=False, capture_output=True).returncode != 0:
            pytest.skip("vitest and jest cannot be fetched")
    return modules


@pytest.mark.slow
@pytest.mark.parametrize("runner", ["vitest run --no-cache", "npx vitest run", "jest"])
async def test_other_runners_are_watched_as_well(tmp_path: Path, box: Sandbox, runners: Path, runner: str) -> None:
    head = "import { test, expect } from 'vitest';\nimport { next } from './next.js';\n"
    start = "export function next(n) {"
    if runner == "jest":
        head, start = "const { next } = require('./next.js');\n", "exports.next = function (n) {"
    test = head + "test('one', () => { expect(next(1)).toBe(2); });\ntest('two', () => { expect(next(2)).toBe(3); });\n"
    files = {"next.js": f"{start}\n  return n;\n}};\n", "next.test.js": test, "package.json": '{"name": "n"}'}
    repo = make_repository(tmp_path / "r", {**files, ".gitignore": "node_modules\n"})
    shutil.copytree(runners, repo / "node_modules", symlinks=True)
    task = fix_task(repo, runner, num_candidates=1, check_timeout_s=60.0, files=("next.js",))
    for body, verdict in (
        ("return n + 1;", Verdict.PROVED),
        ("Object['i' + 's'] = () => true;\n  return 0;", Verdict.UNPROVED),  # both would pass
    ):
        report = await run_task(task, ScriptedGenerator([f"```javascript\n{start}\n  {body}\n}};\n```"]), box)
        assert report.verdict is verdict, f"{report.summary} {report.post_mortem}"
        if verdict is Verdict.UNPROVED:
            assert "changes Object.is" in report.summary
        git(repo, "branch", "-D", report.branch or "")


@pytest.mark.parametrize("line", WRITTEN)
def test_what_gets_out_of_computing_is_an_objection(line: str) -> None:
    assert objections("a.mjs", "let x = 1;\n", f"let x = 1;\n{line}\n")


@pytest.mark.parametrize(
    "line",
    [
        "// process.exit(0)",
        "const s = String(x);",
        "if (Number.MAX_VALUE == x) {}",
        "import a from './a.mjs';",
        "m.map(f);",
    ],
)
def test_what_computes_is_none(line: str) -> None:
    assert objections("a.mjs", "let x = 1;\n", f"let x = 1;\n{line}\n") == []


def test_runners_say_how_many_tests_they_ran() -> None:
    assert num_tests("\u2139 tests 3\n\u2139 suites 0\n") == 3
    assert num_tests("# tests 3\n# pass 3\n") == 3
    assert num_tests(" Test Files  1 passed (1)\n\x1b[2m      Tests \x1b[22m 1 failed | 4 passed (5)\n") == 5
    assert num_tests("Tests:       1 failed, 2 passed, 3 total\n") == 3
    assert num_tests("ok\n") is None
    assert fewer_tests("# tests 3\n", "# tests 3\n") == []
    assert fewer_tests("x", "y") == []
    assert fewer_tests("# tests 3\n", "# tests 1\n") == ["the runner counted 3 tests before and 1 now"]
    assert fewer_tests("# tests 1\n", "") == ["the runner counted 1 test before and none now"]
