"""`review` end to end: a scripted model, a real repository, the real sandbox."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from garzone.agent.kinds.review import parse_findings
from garzone.agent.revisions import spoken_range
from garzone.agent.sandbox import open_sandbox
from garzone.agent.worker import run_task
from garzone.core.errors import UsageError
from garzone.core.ports import Sandbox
from garzone.core.task import Report, Task, TaskKind, Verdict
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
    assert (none.num_malformed, none.num_asked_again) == (2, 1)


async def test_no_findings_prove_nothing(tmp_path: Path, box: Sandbox) -> None:
    report = await reviewed(tmp_path, box, "No findings.")
    assert report.verdict is Verdict.UNPROVED
    assert report.findings == ()


def test_findings_are_read_as_models_write_them() -> None:
    answer = "Here:\n\n## **High**\n- **Line:** `12: x = 1`\n- **Problem:** Bad\n  thing.\n- **Suggestion:** None.\n"
    (finding,) = parse_findings(answer, "a.py")
    assert (finding.severity, finding.line, finding.quote) == ("high", 12, "x = 1")
    assert finding.reason == "Bad thing."


USES = "from stats import last\n\n\ndef newest(log):\n    return last(log)[0]\n"


def a_review(repo: Path, instruction: str, *named: str) -> Task:
    return replace(fix_task(repo, None, num_candidates=1), kind=TaskKind.REVIEW, instruction=instruction, files=named)


async def test_several_files_are_reviewed_together_and_findings_say_which(tmp_path: Path, box: Sandbox) -> None:
    repo = make_repository(tmp_path / "r", {"stats.py": CODE, "lib/log.py": USES})
    answer = (
        "### low\nFile: `log.py`\nLine: return last(log)[0]\nProblem: No check for an empty log.\n"
        f"{CRASH}"  # names no file, but only one has the line
        "### low\nFile: other.py\nLine: return last(log)[0]\nProblem: Not here.\n"
    )
    generator = ScriptedGenerator([answer])
    report = await run_task(a_review(repo, "", "stats.py", "lib/log.py"), generator, box)
    asked = generator.requests[0].messages[0].text
    assert "File: the path of the file" in asked and USES in asked and CODE in asked
    assert [(f.path, f.line, f.seen) for f in report.findings] == [("lib/log.py", 5, False), ("stats.py", 6, True)]
    assert report.verdict is Verdict.PROVED
    assert "stats.py line 6 (seen)" in report.summary
    assert report.proof["dropped"] == 1


async def test_files_that_do_not_fit_are_named(tmp_path: Path, box: Sandbox) -> None:
    long = "x = 1\n" * 4000
    repo = make_repository(tmp_path / "r", {"stats.py": CODE, "long.py": long, "log.py": USES})
    generator = ScriptedGenerator([OPINION])
    report = await run_task(a_review(repo, "", "stats.py", "long.py", "log.py"), generator, box)
    assert any("not looked at" in note and "long.py" in note and "log.py" not in note for note in report.notes)
    assert USES in generator.requests[0].messages[0].text


async def test_a_change_is_reviewed_by_its_own_lines(tmp_path: Path, box: Sandbox) -> None:
    far = "".join(f"a{n} = {n}\n" for n in range(40))
    repo = make_repository(
        tmp_path / "r", {"stats.py": far + "\n\n" + CODE.partition("\n\n\n")[0] + "\n", "gone.py": "x = 1\n"}
    )
    (repo / "stats.py").write_text(far + "\n\n" + CODE)
    (repo / "gone.py").unlink()
    git(repo, "commit", "-qam", "last")
    answer = CRASH.replace("Line: return", "Line: +    return") + "### low\nLine: a3 = 3\nProblem: A bad name.\n"
    generator = ScriptedGenerator([answer])
    report = await run_task(a_review(repo, "Review the last commit."), generator, box)
    asked = generator.requests[0].messages[0].text
    assert "+    return items[len(items)]" in asked and "a3 = 3" not in asked and "gone.py" not in asked
    assert [(f.path, f.line, f.seen) for f in report.findings] == [("stats.py", 48, True)]
    assert report.verdict is Verdict.PROVED
    assert report.summary.startswith("Reviewed HEAD~1..HEAD (stats.py): 1 finding, 1 seen")


@pytest.mark.parametrize(
    ("instruction", "complaint"),
    [
        ("Review main..main.", "main..main changes no text file"),
        ("Review HEAD..old", "old is not what is checked out"),
        ("Review nowhere..HEAD", "nowhere..HEAD names no change here"),
        ("Review the last 9 commits", "names no change here"),
    ],
)
async def test_a_change_that_cannot_be_read_is_refused(
    tmp_path: Path, box: Sandbox, instruction: str, complaint: str
) -> None:
    repo = make_repository(tmp_path / "r", {"stats.py": CODE})
    git(repo, "branch", "old")
    git(repo, "commit", "-q", "--allow-empty", "-m", "next")
    with pytest.raises(UsageError, match=complaint):
        await run_task(a_review(repo, instruction), ScriptedGenerator([OPINION]), box)


@pytest.mark.parametrize(
    ("instruction", "revisions"),
    [
        ("Review main..HEAD please.", "main..HEAD"),
        ("Look at origin/main...HEAD", "origin/main...HEAD"),
        ("v1.2..HEAD~3, mind the limits", "v1.2..HEAD~3"),
        ("the last 3 commits", "HEAD~3..HEAD"),
        ("Review the latest commit", "HEAD~1..HEAD"),
        ("Look closely... and slowly", None),
        ("see ../other/file.py", None),
    ],
)
def test_a_range_of_revisions_is_heard(instruction: str, revisions: str | None) -> None:
    assert spoken_range(instruction) == revisions
