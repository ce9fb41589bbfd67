"""`translate` end to end: a scripted model, a real repository, the real sandbox, the real compiler where it is."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import pytest

from garzone.agent.harness import make_cases
from garzone.agent.sandbox import open_sandbox
from garzone.agent.translation import Function, ecmascript
from garzone.agent.translation.compare import differences, same_value
from garzone.agent.worker import run_task
from garzone.core.errors import UnavailableError, UsageError
from garzone.core.ports import Sandbox
from garzone.core.task import Report, Task, TaskKind, Verdict
from garzone.testing import ScriptedGenerator
from tests.agent.repositories import fix_task, git, make_repository

CODE = '''from typing import List, Optional


def longest(words: List[str]) -> Optional[str]:
    """The first of the longest words.

    >>> longest(["a", "bb", "cc"])
    'bb'
    """
    if not words:
        return None
    return max(words, key=len)


def mean(numbers: List[float]) -> float:
    if not numbers:
        raise ValueError("nothing")
    return sum(numbers) / len(numbers)
'''
JAVASCRIPT = """export function longest(words) {
  if (words.length === 0) return null;
  let best = words[0];
  for (const word of words) if (word.length > best.length) best = word;
  return best;
}

export function mean(numbers) {
  if (numbers.length === 0) throw new Error("nothing");
  return numbers.reduce((a, b) => a + b, 0) / numbers.length;
}
"""
TYPESCRIPT = JAVASCRIPT.replace("(words)", "(words: string[]): string | null").replace(
    "(numbers)", "(numbers: number[]): number"
)


@pytest.fixture(scope="module")
def box() -> Sandbox:
    return open_sandbox()


@pytest.fixture(scope="session")
def typescript() -> Path:
    """The TypeScript compiler, fetched once a machine."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "garzone-tests"
    package = cache / "node_modules" / "typescript"
    if not (package / "lib/tsc.js").is_file():
        if shutil.which("npm") is None:
            pytest.skip("npm is not installed")
        cache.mkdir(parents=True, exist_ok=True)
        command = ["npm", "install", "--silent", "--no-save", "--prefix", str(cache), "typescript@5.9"]
        if subprocess.run(command, check=False, capture_output=True).returncode != 0:
            pytest.skip("typescript cannot be fetched")
    return package


def a_task(repo: Path, language: str, **given: object) -> Task:
    values = {"kind": TaskKind.TRANSLATE, "instruction": f"to {language}", "files": ("words.py",), **given}
    return replace(fix_task(repo, None, num_candidates=1), **values)  # type: ignore[arg-type]


async def translated(tmp_path: Path, box: Sandbox, code: str, language: str = "JavaScript") -> Report:
    repo = make_repository(tmp_path / "r", {"words.py": CODE})
    answer = f"```{language.lower()}\n{code}```"
    return await run_task(a_task(repo, language), ScriptedGenerator([answer]), box)


async def test_the_same_outputs_are_proved(tmp_path: Path, box: Sandbox) -> None:
    report = await translated(tmp_path, box, JAVASCRIPT)
    assert report.verdict is Verdict.PROVED, report
    assert [f.path for f in report.files] == ["words.js"]
    assert report.proof["inputs_compared"]["longest"] >= 10
    assert report.proof["inputs_compared"]["mean"] >= 10
    assert git(tmp_path / "r", "show", f"{report.branch}:words.js") == JAVASCRIPT.strip()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("word.length > best", "word.length >= best"),  # the last of the longest
        ("return null", 'return ""'),
        ('throw new Error("nothing")', "return 0"),
        ("/ numbers.length", "/ (numbers.length - 1)"),
        ("export function mean", 'require("node:fs"); export function mean'),
        ("return best", 'process.exit(0); return best'),
    ],
)  # fmt: skip
async def test_other_outputs_are_not_proved(tmp_path: Path, box: Sandbox, old: str, new: str) -> None:
    assert old in JAVASCRIPT
    report = await translated(tmp_path, box, JAVASCRIPT.replace(old, new))
    assert report.verdict is not Verdict.PROVED, report


async def test_what_never_ends_is_not_proved(tmp_path: Path, box: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ecmascript, "DRIVE_S", 3.0)
    endless = JAVASCRIPT.replace("export function mean(numbers) {", "export function mean(numbers) { while (true) {}")
    report = await translated(tmp_path, box, endless)
    assert report.verdict is Verdict.FAILED, report


async def test_typescript_is_compiled_strictly(
    tmp_path: Path, box: Sandbox, typescript: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NODE_PATH", str(typescript.parent))
    report = await translated(tmp_path, box, TYPESCRIPT, "TypeScript")
    assert report.verdict is Verdict.PROVED, report
    assert "compiles strictly" in report.summary
    loose = await translated(tmp_path / "2", box, TYPESCRIPT.replace("(words: string[])", "(words)"), "TypeScript")
    assert loose.verdict is Verdict.FAILED
    assert "TS7006" in (loose.post_mortem or "")


async def test_typescript_without_its_compiler_is_unproved(
    tmp_path: Path, box: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NODE_PATH", raising=False)
    report = await translated(tmp_path, box, TYPESCRIPT, "TypeScript")
    assert report.verdict is Verdict.UNPROVED, report
    assert "typescript is not installed" in report.summary


async def test_another_language_is_refused(tmp_path: Path, box: Sandbox) -> None:
    repo = make_repository(tmp_path / "r", {"words.py": CODE})
    with pytest.raises(UsageError, match="cannot translate to kotlin yet"):
        await run_task(a_task(repo, "Kotlin"), ScriptedGenerator(["no"]), box)


async def test_a_language_without_its_compiler_says_what_to_install(
    tmp_path: Path, box: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = make_repository(tmp_path / "r", {"words.py": CODE})
    monkeypatch.setattr(shutil, "which", lambda _: None)
    for language, words in (("Rust", "apt-get install rustc"), ("Go", "golang-go"), ("Java", "install a JDK")):
        with pytest.raises(UnavailableError, match=words):
            await run_task(a_task(repo, language), ScriptedGenerator(["no"]), box)


BITS = '''def both(a: str, b: str) -> str:
    """Bits that are set in both.

    >>> both("110", "011")
    '010'
    >>> both("1", "0")
    '0'
    """
    return "".join("1" if x == y == "1" else "0" for x, y in zip(a, b))
'''
OF_BITS = """export function both(a, b) {
  let out = "";
  for (let i = 0; i < a.length; i++) out += a[i] === "1" && b[i] === "1" ? "1" : "0";
  return out;
}
"""


async def test_inputs_unlike_all_examples_prove_nothing_against_a_translation(tmp_path: Path, box: Sandbox) -> None:
    repo = make_repository(tmp_path / "r", {"bits.py": BITS})
    task = a_task(repo, "JavaScript", files=("bits.py",))
    report = await run_task(task, ScriptedGenerator([f"```javascript\n{OF_BITS}```"]), box)
    assert report.verdict is Verdict.UNPROVED, report
    assert "unlike those of the examples it differs" in report.summary
    assert report.proof["differences_beyond_the_examples"] > 0
    wrong = OF_BITS.replace('&& b[i] === "1"', "")
    other = make_repository(tmp_path / "2", {"bits.py": BITS})
    report = await run_task(replace(task, repo=other), ScriptedGenerator([f"```javascript\n{wrong}```"]), box)
    assert report.verdict is Verdict.FAILED, report


async def test_what_differs_beyond_the_examples_is_said_to_the_model(tmp_path: Path, box: Sandbox) -> None:
    repo = make_repository(tmp_path / "r", {"bits.py": BITS})
    task = replace(a_task(repo, "JavaScript", files=("bits.py",)), max_rounds=2)
    right = OF_BITS.replace("i < a.length", "i < Math.min(a.length, b.length)")
    generator = ScriptedGenerator([f"```javascript\n{OF_BITS}```", f"```javascript\n{right}```"])
    report = await run_task(task, generator, box)
    assert report.verdict is Verdict.PROVED, report
    assert "must give" in generator.requests[1].messages[-1].text


def test_values_are_compared_as_people_would() -> None:
    assert same_value([1, 2.0, None, {"a": "b"}], [1.0, 2, None, {"a": "b"}])
    assert same_value(0.1 + 0.2, 0.3)
    for one, other in ((1, 2), (True, 1), (None, 0), ([1], [1, 2]), ("1", 1), ({"a": 1}, {"b": 1}), (None, "")):
        assert not same_value(one, other)


def driven(tmp_path: Path, code: str) -> list[dict[str, object]]:
    """What the driver says of `f` called with 1 and with 2, by node itself."""
    (tmp_path / "t.js").write_text(code)
    (tmp_path / "cases.json").write_text('{"f": [[1], [2]]}')
    out = tmp_path / "out.json"
    driver = files("garzone.agent.harness") / "drive_js.cjs"
    command = ["node", str(driver), "t.js", "cases.json", "-"]
    environment = {**os.environ, "GARZONE_OUT": str(out), "GARZONE_CALL_MS": "200"}
    subprocess.run(command, cwd=tmp_path, env=environment, check=False, timeout=60)
    return json.loads(out.read_text())["results"]["f"] if out.exists() else []


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_one_input_without_an_end_does_not_hide_the_others(tmp_path: Path) -> None:
    code = "function f(x) { while (x === 1) {} return x; }"
    assert driven(tmp_path, code) == [{"late": True}, {"result": 2}]
    (case, other) = {"arguments": [1], "result": 1, "unlike": True}, {"arguments": [2], "result": 2}
    found = differences(Function("f", (case, other)), [{"late": True}, {"result": 2}])
    assert found == ([], ["f(1) does not end"])
    assert differences(Function("f", (other, other)), [{"late": True}, {"skipped": True}]) == (
        ["f(2) does not end"],
        [],
    )


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
@pytest.mark.parametrize("forged", ["({ skipped: true })", "({ late: true })", "'words'", "null", "[1]", "undefined"])
def test_a_translation_cannot_speak_for_the_driver(tmp_path: Path, forged: str) -> None:
    code = f"Object.prototype.toJSON = () => {forged};\nfunction f(x) {{ return 0; }}"
    results = driven(tmp_path, code)
    assert all(set(each) <= {"throws", "result"} for each in results)
    cases = [{"arguments": [1], "result": 1}, {"arguments": [2], "result": 2}]
    wrong, unlike = differences(Function("f", tuple(cases)), results)
    assert not results or (len(wrong) == 2 and not unlike)


@pytest.mark.parametrize(
    ("examples", "arguments", "unlike"),
    [
        ([[13195], [2048]], [0], True),
        ([[13195], [2048]], [12], False),
        ([["a b c"], ["a b b a"]], ["a  "], True),
        ([["a b c"], ["a b b a"]], [" a"], True),
        ([["a b c"], ["a b b a"]], ["c a"], False),
        ([[" a  b"], ["a "]], ["b  a "], False),
    ],
)
def test_what_all_examples_keep_is_a_rule(examples: list[list[object]], arguments: list[object], unlike: bool) -> None:
    assert make_cases.is_unlike(make_cases.rules_of(examples), arguments) is unlike


def test_a_result_of_another_type_than_the_function_says_is_not_meant() -> None:
    number, text = ast.parse("int", mode="eval").body, ast.parse("List[int]", mode="eval").body
    assert make_cases.contradicts(number, {"result": None})
    assert make_cases.contradicts(number, {"result": True})
    assert not make_cases.contradicts(number, {"result": 1.5})
    assert not make_cases.contradicts(number, {"raises": "ValueError"})
    assert not make_cases.contradicts(text, {"result": None})
    assert not make_cases.contradicts(None, {"result": None})


@pytest.mark.parametrize(
    ("output", "lacking"),
    [
        (
            "a.ts(1,1): error TS2580: Cannot find name 'require'. Do you need to install type definitions for node?",
            True,
        ),
        ("a.ts(1,1): error TS2307: Cannot find module 'crypto' or its corresponding type declarations.", True),
        ("a.ts(1,1): error TS2307: Cannot find module 'left-pad' or its corresponding type declarations.", False),
        ("a.ts(1,1): error TS2580: Cannot find name 'require'.\na.ts(2,1): error TS2322: Type 'x'.", False),
        ("", False),
    ],
)
def test_missing_types_of_node_are_no_fault_of_a_translation(output: str, lacking: bool) -> None:
    assert ecmascript.lacks_types_of_node(output) is lacking


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_a_translation_has_nothing_but_the_language(tmp_path: Path) -> None:
    assert driven(tmp_path, "export function f(x) { return [x, new Map([['a', 1n]])]; }") == [
        {"result": [1, {"a": 1}]},
        {"result": [2, {"a": 1}]},
    ]
    for way in (
        "(() => {}).constructor('return process')().pid",
        "this.constructor.constructor('return process')().pid",
        "require('node:fs').readdirSync('.').length",
    ):
        assert [set(each) for each in driven(tmp_path, f"function f(x) {{ return {way}; }}")] == [{"throws"}] * 2
    # an error of the outer realm reaches nobody: the process has ended by then
    late = "import('x').catch((e) => e.constructor.constructor('return process')().mainModule"
    late += f".require('node:fs').writeFileSync({str(tmp_path / 'out.json')!r}, 'taken'))"
    assert driven(tmp_path, f"function f(x) {{ {late}; return x; }}") == [{"result": 1}, {"result": 2}]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("return best;", "return typeof process === 'undefined' ? best : null;"),
        ("return best;", "return new Error().stack.length > 3 ? best : null;"),
        ("return best;", "return String(console.log).length > 3 ? best : null;"),
    ],
)
async def test_what_asks_where_it_runs_is_not_proved(tmp_path: Path, box: Sandbox, old: str, new: str) -> None:
    report = await translated(tmp_path, box, JAVASCRIPT.replace(old, new))
    assert report.verdict is Verdict.UNPROVED, report
    assert "asks where it runs" in report.summary
