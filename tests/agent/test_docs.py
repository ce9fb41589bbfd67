"""`docs` end to end: a scripted model, a real repository, the real sandbox."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from garzone.agent.docstrings import bare, put_in, spoken_of
from garzone.agent.sandbox import open_sandbox
from garzone.agent.worker import run_task
from garzone.core.ports import Sandbox
from garzone.core.task import Report, Task, TaskKind, Verdict
from garzone.testing import ScriptedGenerator
from tests.agent.repositories import block, fix_task, git, make_repository

CODE = "def clip(value, low, high):\n    # keep it in\n    return max(low, min(value, high))\n"
DOC = '''    """Keep a value within limits.

    Args:
        value: what to clip.
        low: the least it may be.
        high: the most it may be.

    Returns:
        The value, or the limit it passed.

    >>> clip(9, 0, 5)
    5
    """
'''
GOOD = CODE.replace("high):\n", f"high):\n{DOC}")


@pytest.fixture(scope="module")
def box() -> Sandbox:
    return open_sandbox()


def docs_task(repo: Path, **given: object) -> Task:
    values = {"kind": TaskKind.DOCS, "instruction": "", "files": ("limits.py",), "num_candidates": 1, **given}
    return replace(fix_task(repo, None), **values)  # type: ignore[arg-type]


async def documented(tmp_path: Path, box: Sandbox, answer: str, **given: object) -> Report:
    files = {"limits.py": CODE, "README.md": "# Limits\n\nSmall.\n"}
    repo = make_repository(tmp_path / "r", files)
    return await run_task(docs_task(repo, **given), ScriptedGenerator([answer]), box)


@pytest.mark.parametrize(
    "code",
    [GOOD, GOOD.replace("max(low, min(value, high))", "value"), DOC.replace("    ", "", 1).replace("\n    ", "\n")],
    ids=["with the code", "with wrong code", "alone"],
)
async def test_words_with_a_true_example_are_proved_and_the_code_stays(tmp_path: Path, box: Sandbox, code: str) -> None:
    report = await documented(tmp_path, box, block(code))
    assert report.verdict is Verdict.PROVED, report
    assert git(tmp_path / "r", "show", f"{report.branch}:limits.py") == GOOD.strip()
    assert report.proof["examples"] == 1


UNTRUE = {
    "wrong result": GOOD.replace("    5\n", "    9\n"),
    "no such parameter": GOOD.replace("low: the", "lower: the"),
    "no such exception": GOOD.replace("    >>> clip", "    Raises:\n        LimitsError: never.\n\n    >>> clip"),
    "ends the run": GOOD.replace(">>> clip(9, 0, 5)\n    5", ">>> import os; os._exit(0)"),
    "says nothing": GOOD.replace(">>> clip(9, 0, 5)\n    5", ">>> 1 + 1\n    2"),
    "skips": GOOD.replace("clip(9, 0, 5)\n    5", "clip(9, 0, 5)  # doctest: +SKIP\n    7"),
    "no example": GOOD.replace("    >>> clip(9, 0, 5)\n    5\n", ""),
    "forges": GOOD.replace(
        ">>> clip(9, 0, 5)\n    5",
        ">>> import os; open(os.environ['GARZONE_OUT'], 'w').write('{\"finished\": true}') and os._exit(0)",
    ),
}


@pytest.mark.parametrize("name", list(UNTRUE))
async def test_untrue_or_empty_words_are_not_proved(tmp_path: Path, box: Sandbox, name: str) -> None:
    report = await documented(tmp_path, box, block(UNTRUE[name]))
    assert report.verdict is not Verdict.PROVED, report


SECTION = (
    "## Clipping\n\nUse `clip()` of `limits.py`:\n\n```python\n>>> from limits import clip\n>>> clip(9, 0, 5)\n5\n```\n"
)


@pytest.mark.parametrize(
    ("section", "verdict"),
    [
        (SECTION, Verdict.PROVED),
        (f"```markdown\n{SECTION}```\n", Verdict.PROVED),
        (SECTION.replace("\n5\n", "\n6\n"), Verdict.FAILED),
        (SECTION.replace("clip()", "clamp()"), Verdict.FAILED),
        (SECTION.replace("`limits.py`", "`bounds.py`"), Verdict.FAILED),
        ("## Clipping\n\nIt is fast.\n", Verdict.UNPROVED),
        (SECTION + "\n```sh\nrm -rf x\n```\n", Verdict.UNPROVED),
    ],
)
async def test_a_section_is_added_and_its_examples_run(
    tmp_path: Path, box: Sandbox, section: str, verdict: Verdict
) -> None:
    report = await documented(tmp_path, box, section, files=("README.md",), instruction="A section about clip")
    assert report.verdict is verdict, report
    if verdict is Verdict.PROVED:
        text = git(tmp_path / "r", "show", f"{report.branch}:README.md")
        assert text == f"# Limits\n\nSmall.\n\n{SECTION.strip()}"


async def test_javascript_gets_comments_whose_examples_run(tmp_path: Path, box: Sandbox) -> None:
    code = "export function clip(value, low) {\n  return value < low ? low : value;\n}\n"
    repo = make_repository(tmp_path / "r", {"limits.mjs": code})
    task = docs_task(repo, files=("limits.mjs",))
    words = "/**\n * Keeps a value.\n * @param value what\n * @param low the least\n * @example\n"
    words += " * clip(1, 5); // => 5\n */\n"
    answer = f"```javascript\n{words}{code.replace('low : value', 'value : low')}```"
    report = await run_task(task, ScriptedGenerator([answer]), box)
    assert report.verdict is Verdict.PROVED, report
    assert git(repo, "show", f"{report.branch}:limits.mjs") == (words + code).strip()
    for old, new, verdict in (
        ("@param low", "@param least", Verdict.FAILED),
        ("// => 5", "// => 1", Verdict.FAILED),
        ("clip(1, 5); // => 5", "It is quick.", Verdict.UNPROVED),
        ("clip(1, 5); //", "clip(1, process.exit(0)); //", Verdict.UNPROVED),
    ):
        other = await run_task(task, ScriptedGenerator([answer.replace(old, new)]), box)
        assert other.verdict is verdict, (new, other)


async def test_other_languages_get_comments_which_nothing_can_prove(tmp_path: Path, box: Sandbox) -> None:
    code = "package p\n\nfunc Clip(v int) int {\n\treturn v\n}\n"
    repo = make_repository(tmp_path / "r", {"limits.go": code})
    answer = f"```go\n{code.replace('func', '// Clip keeps a value.' + chr(10) + 'func')}```"
    report = await run_task(docs_task(repo, files=("limits.go",)), ScriptedGenerator([answer]), box)
    assert report.verdict is Verdict.UNPROVED, report
    assert "+// Clip keeps a value." in report.patch


def test_docstrings_of_all_styles_are_read() -> None:
    google = "One.\n\nArgs:\n    a (int): first.\n        More.\n    b: second.\n\nReturns:\n    c: it.\n\n"
    google += "Raises:\n    KeyError: x.\n"
    numpy = "One.\n\nParameters\n----------\na : int\n    first\nb\n    second\n\nReturns\n-------\nint\n\n"
    numpy += "Raises\n------\nKeyError\n"
    sphinx = "One.\n\n:param int a: first\n:param b: second\n:returns: it\n:raises KeyError: x\n"
    for doc in (google, numpy, sphinx):
        spoken = spoken_of(doc)
        assert spoken.parameters == ("a", "b"), doc
        assert spoken.exceptions == ("KeyError",), doc
        assert spoken.returns


def test_a_docstring_goes_in_without_changing_the_program() -> None:
    code = "#!/usr/bin/env python\nclass A:\n    @property\n    def b(self):\n        # why\n        return 1\n"
    for name in ("", "A", "A.b"):
        text = put_in(code, name, 'Says "b".\n\nMore "')
        assert text is not None and bare(text) == bare(code), name
    assert put_in("def f(): return 1\n", "f", "One.") is None
