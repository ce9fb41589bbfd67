"""`review` end to end: a scripted model, a real repository, the real sandbox."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from garzone.agent.kinds.review import parse_findings
from garzone.agent.sandbox import open_sandbox
from garzone.agent.worker import run_task
from garzone.core.ports import Sandbox
from garzone.core.task import Report, TaskKind, Verdict
from garzone.testing import ScriptedGenerator
from tests.agent.repositories import fix_task, git, make_repository

CODE = (
    "def mean(numbers):\n    return sum(numbers) / len(numbers)\n\n\ndef last(items):\n    return items[len(items)]\n"
)
CRASH = """### high
Line: return items[len(items)]
Problem: The index is one too far.
Suggestion: Use items[-1].

```python
from stats import last

def test_last():
    assert last([1, 2]) == 2
```

"""
OPINION = "### low\nLine: `def mean(numbers):`\nProblem: No type hints.\nSuggestion: Add them.\n"


@pytest.fixture(scope="module")
def box() -> Sandbox:
    return open_sandbox()


async def reviewed(tmp_path: Path, box: Sandbox, answer: str, code: str = CODE) -> Report:
    repo = make_repository(tmp_path / "r", {"stats.py": code})
    task = replace(fix_task(repo, None, num_candidates=1), kind=TaskKind.REVIEW, instruction="", files=("stats.py",))
    report = await run_task(task, ScriptedGenerator([answer]), box)
    assert report.branch is None
    assert git(repo, "branch", "--list", "garzone/*") == ""
    return report


async def test_a_bug_that_is_seen_happening_is_proved_and_opinions_are_marked(tmp_path: Path, box: Sandbox) -> None:
    report = await reviewed(tmp_path, box, CRASH + OPINION)
    assert report.verdict is Verdict.PROVED, report
    first, second = report.findings
    assert (first.severity, first.line, first.seen) == ("high", 6, True)
    assert (second.line, second.seen) == (1, False)
    assert [f["status"] for f in report.to_json()["findings"]] == ["seen", "opinion"]
    assert "1 seen happening" in report.summary


NOT_SEEN = {
    "opinion": OPINION,
    "wrong expectation": CRASH.replace("return items[len(items)]", "return sum(numbers) / len(numbers)")
    .replace("last([1, 2]) == 2", "mean([2]) == 3").replace("import last", "import mean"),
    "its own crash": CRASH.replace("assert last([1, 2]) == 2", "assert [][1] == last"),
    "garbage in": CRASH.replace("last([1, 2]) == 2", "last(None)"),
    "raises it": CRASH.replace("assert last([1, 2]) == 2", "assert 1\n    raise IndexError"),
    "patches": CRASH.replace("assert last", "import stats; stats.len = lambda x: 99\n    assert last"),
    "one seen, one not": CRASH + CRASH.replace("[1, 2]) == 2", "None)"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(NOT_SEEN))
async def test_what_was_not_seen_is_not_proved(tmp_path: Path, box: Sandbox, name: str) -> None:
    report = await reviewed(tmp_path, box, NOT_SEEN[name])
    assert report.verdict is Verdict.UNPROVED, report
    assert report.findings


async def test_a_finding_that_quotes_no_line_is_dropped(tmp_path: Path, box: Sandbox) -> None:
    report = await reviewed(tmp_path, box, CRASH + OPINION.replace("def mean(numbers)", "def average(numbers)"))
    assert len(report.findings) == 1
    assert report.proof["dropped"] == 1
    none = await reviewed(tmp_path / "2", box, OPINION.replace("def mean(numbers)", "def average(numbers)"))
    assert none.verdict is Verdict.FAILED
    assert none.num_malformed == 1


async def test_no_findings_prove_nothing(tmp_path: Path, box: Sandbox) -> None:
    report = await reviewed(tmp_path, box, "No findings.")
    assert report.verdict is Verdict.UNPROVED
    assert report.findings == ()


def test_findings_are_read_as_models_write_them() -> None:
    answer = "Here:\n\n## **High**\n- **Line:** `12: x = 1`\n- **Problem:** Bad\n  thing.\n- **Suggestion:** None.\n"
    (finding,) = parse_findings(answer, "a.py")
    assert (finding.severity, finding.line, finding.quote) == ("high", 12, "x = 1")
    assert finding.reason == "Bad thing."
