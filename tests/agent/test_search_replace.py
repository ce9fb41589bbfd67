"""Edits of targets that are too long to be written again: read, applied or refused; asked for by the real worker."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from garzone.agent.context import Target
from garzone.agent.edit import Edited, EditMiss
from garzone.agent.events import CandidateStarted, CandidateText, Event
from garzone.agent.excerpts import excerpt
from garzone.agent.sandbox import open_sandbox
from garzone.agent.search_replace import apply_blocks, is_finished, replacements
from garzone.agent.target import SourceText, functions, parse
from garzone.agent.worker import run_task
from garzone.config import Settings
from garzone.core.generation import ModelDetails
from garzone.core.ports import Sandbox
from garzone.core.task import TaskKind, Verdict
from garzone.runner.process import RunnerPool
from garzone.testing import ScriptedGenerator
from tests.agent.repositories import PAGER, TEST_PAGER, fix_task, git, make_repository
from tests.runner.conftest import ListStore

SOURCE = "def a(x):\n    y = x\n    return y\n\n\ndef b(x):\n    y = x\n    return y + 1\n"


def edit(search: str, new: str) -> str:
    return f"<<<<<<< SEARCH\n{search}=======\n{new}>>>>>>> REPLACE\n"


def applied(answer: str, text: str = SOURCE, path: str = "m.py", function: str | None = None) -> str:
    tree = parse(text)
    spans = [span for span in (functions(tree) if tree else []) if span.name == function]
    result = apply_blocks(path, text, spans[0] if spans else None, answer)
    return result.text if isinstance(result, Edited) else f"MISS {result.reason}"


def test_blocks_change_their_place_and_nothing_else() -> None:
    wanted = SOURCE.replace("y + 1", "y + 2")
    one = edit("    return y + 1\n", "    return y + 2\n")
    assert applied(one) == wanted
    assert applied(f"Sure:\n```python\n{one}```\nDone.") == wanted
    assert applied(one + one) == wanted  # said twice
    two = edit("def a(x):\n    y = x\n", "def a(x):\n    y = -x\n")
    assert applied(two + one) == applied(one + two) == wanted.replace("y = x", "y = -x", 1)
    assert applied(edit("    return y + 1\n", "")).startswith("def a(x)")
    windows = SOURCE.replace("\n", "\r\n")
    assert applied(one, windows) == wanted.replace("\n", "\r\n")
    assert applied(one, SOURCE.removesuffix("\n")) == wanted.removesuffix("\n")
    assert applied(edit("    return y + 1   \n", "    return y\n")).endswith("return y\n")  # blanks nobody sees


@pytest.mark.parametrize(
    ("answer", "function", "words"),
    [
        ("def a(x): return 1", None, "no complete block"),
        ("<<<<<<< SEARCH\n    return y + 1\n>>>>>>> REPLACE\n", None, "no complete block"),
        (edit("    return y + 2\n", ""), None, "not in the code"),
        (edit("return y + 1\n", "return y\n"), None, "    return y + 1"),  # the nearest line is shown
        (edit("    y = x\n", "    y = 0\n"), None, "2 times (lines 2, 7)"),
        (edit("", "import os\n"), None, "SEARCH is empty"),
        (edit("\n", "import os\n"), None, "SEARCH is empty"),
        (edit("    return y + 1\n", "    return (y\n"), None, "not valid Python: line 8"),
        (edit("def b(x):\n", "def c(x):\n"), None, "leave out b"),
        (edit("def b(x):\n", "def b(x, z):\n"), "b", "Keep the signature"),
        (edit("def a(x):\n", "def a(x, z=1):\n"), "b", "not in the code"),  # it is outside of the function
        (edit("def a(x):\n    y = x\n", "") + edit("    y = x\n    return y\n\n", "\n"), None, "change line 2"),
    ],
)
def test_what_cannot_be_placed_for_certain_is_a_miss_that_says_why(
    answer: str, function: str | None, words: str
) -> None:
    said = applied(answer, function=function)
    assert said.startswith("MISS ")
    assert words in said


def test_within_a_function_its_own_lines_are_meant() -> None:
    assert applied(edit("    y = x\n", "    y = 0\n"), function="b") == SOURCE.replace("y = x", "y = 0").replace(
        "y = 0", "y = x", 1
    )


def test_a_text_that_holds_dividers_is_not_guessed_at() -> None:
    text = "Title\n=======\nfirst\n=======\nlast\n"
    assert applied(edit("first\n", "second\n"), text, "a.rst") == text.replace("first", "second")
    assert applied(edit("last\n", "Next\n=======\n"), text, "a.rst") == text.replace("last", "Next\n=======")
    unclear = edit("Title\n=======\nfirst\n", "Name\n=======\nfirst\n")
    assert "unclear where SEARCH ends" in applied(unclear, text, "a.rst")


def test_other_languages_must_still_parse() -> None:
    code = "function f(a) {\n  return a + 1;\n}\n"
    assert applied(edit("  return a + 1;\n", "  return a + 2;\n"), code, "m.js") == code.replace("1", "2")
    assert "does not parse" in applied(edit("}\n", ""), code, "m.js")


@given(st.text(alphabet="<>=SEARCHPLA \n`xy", max_size=300), st.sampled_from([SOURCE, "", "\n", "a\n=======\nb"]))
def test_no_answer_breaks_the_reader(answer: str, text: str) -> None:
    assert isinstance(apply_blocks("m.py", text, None, answer), Edited | EditMiss)
    replacements(answer)
    is_finished(answer)


def test_an_answer_ends_when_its_fence_closes_or_it_repeats_itself() -> None:
    one, other = edit("a\n", "b\n"), edit("c\n", "d\n")
    assert not is_finished(one)
    assert not is_finished(one + other)
    assert is_finished(one + one)
    assert is_finished(f"```\n{one}```")
    assert not is_finished("```\n<<<<<<< SEARCH\na\n=======\n")


def test_an_excerpt_keeps_what_matters_and_says_what_it_leaves_out() -> None:
    text = "".join(f"line{number} = {number}\n" for number in range(1, 101))
    target = Target("m.py", text.encode(), SourceText(text, "utf-8"), None)
    assert excerpt(target).text == text
    cut = excerpt(target, (50, 90), 20)
    assert "line50 = 50\n" in cut.text and "line90 = 90\n" in cut.text
    assert "[... lines 1 to 4" in cut.text and "are not shown ...]\n" in cut.text
    assert cut.left_out == "80 of 100 lines of m.py"
    assert all(piece in text for piece in cut.pieces)
    assert sum(piece.count("\n") for piece in cut.pieces) == 20


@pytest.fixture(scope="module")
def box() -> Sandbox:
    return open_sandbox()


def long_pager() -> str:
    """The pager with its bug deep inside a function that is far too long to be written again."""
    lines = "".join(f"    size_{number} = size + {number} - {number}\n" for number in range(250))
    return PAGER.replace("    start = page * size\n", f"{lines}    start = page * size\n")


RIGHT = edit("    start = page * size\n", "    start = (page - 1) * size\n")


@pytest.mark.parametrize("context_tokens", [4096, 1500])
async def test_a_long_function_is_repaired_by_edits(tmp_path: Path, box: Sandbox, context_tokens: int) -> None:
    repo = make_repository(tmp_path / "r", {"pager.py": long_pager(), "test_pager.py": TEST_PAGER})
    missing = edit("    start = page * page\n", "    start = 0\n")
    generator = ScriptedGenerator([missing, RIGHT], context_tokens=context_tokens)
    report = await run_task(fix_task(repo, num_candidates=1, max_rounds=2), generator, box)
    assert report.verdict is Verdict.PROVED, report
    assert report.num_malformed == 1
    assert [(f.added, f.removed) for f in report.files] == [(1, 1)]
    assert git(repo, "show", f"{report.branch}:pager.py") == long_pager().replace("page * size", "(page - 1) * size"
                                                                                  ).strip()  # fmt: skip
    first, second = (request.messages for request in generator.requests)
    assert "SEARCH" in first[0].text and "size_249" in first[0].text
    assert "not in the code" in second[-1].text and "    start = page * size" in second[-1].text
    assert second[0] == first[0]  # the stable part first
    assert any("edits were asked for" in note for note in report.notes)
    if context_tokens < 4096:
        assert "are not shown" in first[0].text and "size_100 " not in first[0].text
        assert any("lines of paginate in pager.py" in note for note in report.notes)


@pytest.mark.parametrize("kind", [TaskKind.REFACTOR, TaskKind.IMPLEMENT])
async def test_other_kinds_edit_long_files_as_well(tmp_path: Path, box: Sandbox, kind: TaskKind) -> None:
    code = long_pager().replace("page * size\n", "(page - 1) * size\n")
    code = code.replace("return -(-len(items) // size)", "return (len(items) + size - 1) // size")
    test = TEST_PAGER
    answer = edit("    return (len(items) + size - 1) // size\n", "    return -(-len(items) // size)\n")
    if kind is TaskKind.IMPLEMENT:
        test += "\n\ndef test_last():\n    from pager import last_page\n    assert [last_page([1] * n, 2) for n in "
        test += "(1, 2, 3)] == [1, 1, 2]\n"
        answer = edit(
            "    return (len(items) + size - 1) // size\n",
            "    return (len(items) + size - 1) // size\n\n\ndef last_page(items, size):\n"
            "    return count_pages(items, size)\n",
        )
    repo = make_repository(tmp_path / "r", {"pager.py": code, "test_pager.py": test})
    task = replace(fix_task(repo, num_candidates=1, files=("pager.py",)), kind=kind, instruction="make pages simpler")
    generator = ScriptedGenerator([answer], context_tokens=4096)
    report = await run_task(task, generator, box)
    assert report.verdict is Verdict.PROVED, report
    assert "SEARCH" in generator.requests[0].messages[0].text


@pytest.mark.slow
async def test_the_real_engine_can_only_search_for_what_exists(
    tmp_path: Path, box: Sandbox, smollm2_path: Path
) -> None:
    repo = make_repository(tmp_path / "r", {"pager.py": long_pager(), "test_pager.py": TEST_PAGER})
    store = ListStore(ModelDetails(name="model", path=str(smollm2_path), parameter_size="134.52M"))
    pool = RunnerPool(store, Settings(home=tmp_path, models_dir=tmp_path, num_ctx=2048, device="CPU"))
    writing: dict[int, int] = {}  # of which answer a candidate's text is
    answers: dict[int, str] = {}

    def listen(event: Event) -> None:
        if isinstance(event, CandidateStarted):
            writing[event.number] = len(answers)
            answers[len(answers)] = ""
        elif isinstance(event, CandidateText):
            answers[writing[event.number]] += event.text

    try:
        task = replace(fix_task(repo, num_candidates=3), model="model", timeout_s=170.0)
        report = await run_task(task, pool, box, on_event=listen)
    finally:
        await pool.aclose()
    assert any("held to text that exists" in note for note in report.notes), report.notes
    assert len(answers) == report.num_candidates + report.num_asked_again
    blocks = [block for answer in answers.values() for block in replacements(answer)]
    assert blocks, answers
    for answer in answers.values():
        assert answer.startswith("<<<<<<< SEARCH\n")
    for block in blocks:
        assert any("\n".join(search) + "\n" in long_pager() for search, _ in block.readings)
