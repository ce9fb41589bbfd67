"""`complete` end to end: a scripted model, a real repository, the real sandbox."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from garzone.agent.harness import shown
from garzone.agent.holes import fill, find_holes, trapped
from garzone.agent.sandbox import open_sandbox
from garzone.agent.worker import run_task
from garzone.core.errors import UsageError
from garzone.core.generation import ModelDetails
from garzone.core.ports import Sandbox
from garzone.core.task import Report, Task, TaskKind, Verdict
from garzone.testing import Answer, ScriptedGenerator
from tests.agent.repositories import CHECK, block, fix_task, git, make_repository

STUB = '''"""Words."""


def shout(text):
    """Make it loud.

    >>> shout("a")
    'A!'
    """
    raise NotImplementedError


def whisper(text):
    return text.lower()
'''
TEST = "from words import shout, whisper\n\n\ndef test_shout():\n    assert shout('ab') == 'AB!'\n\n\n"
TEST += "def test_whisper():\n    assert whisper('A') == 'a'\n"
FILES = {"words.py": STUB, "test_words.py": TEST}
MARKED = STUB.replace("raise NotImplementedError", 'loud = # <fill>\n    return loud + "!"')
RIGHT = block('def shout(text):\n    return text.upper() + "!"\n')


@pytest.fixture(scope="module")
def box() -> Sandbox:
    return open_sandbox()


def complete_task(repo: Path, check: str | None = CHECK, **given: object) -> Task:
    return replace(fix_task(repo, check), kind=TaskKind.COMPLETE, instruction="", **given)  # type: ignore[arg-type]


async def completed(tmp_path: Path, box: Sandbox, files: dict[str, str], *answers: Answer, **given: object) -> Report:
    repo = make_repository(tmp_path / "r", files)
    return await run_task(complete_task(repo, **given), ScriptedGenerator(answers), box)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("example", "verdict"),
    [
        ('>>> label(12)\n    "a12"', Verdict.UNPROVED),  # quotes as people write them
        (">>> label(12) == 'a12'", Verdict.UNPROVED),
        (">>> label(12) == 'b12'", Verdict.FAILED),
        (">>> lable(12)\n    'a12'", Verdict.UNPROVED),  # nothing of that name: it says nothing
        (">>> label(12)\n   ends like this", Verdict.UNPROVED),  # no example at all
        (">>> label(12)\n    'b12'", Verdict.FAILED),
        (">>> label(12)\n    'a12'", Verdict.UNPROVED),
    ],
)
async def test_examples_count_as_they_are_meant(tmp_path: Path, box: Sandbox, example: str, verdict: Verdict) -> None:
    code = f'def label(n):\n    """Says n.\n\n    {example}\n    """\n    ...\n'
    repo = make_repository(tmp_path / "r", {"label.py": code})
    task = replace(fix_task(repo, None, num_candidates=1), kind=TaskKind.COMPLETE, instruction="", files=("label.py",))
    report = await run_task(task, ScriptedGenerator([block("def label(n):\n    return f'a{n}'\n")]), box)
    assert report.verdict is verdict, report


async def test_the_body_of_a_stub_is_filled_and_nothing_else(tmp_path: Path, box: Sandbox) -> None:
    answer = RIGHT.replace("def shout(text):", "import os\n\ndef shout(text: str) -> str:\n    '''Other words.'''")
    report = await completed(tmp_path, box, FILES, answer)
    assert report.verdict is Verdict.PROVED, report
    text = git(tmp_path / "r", "show", f"{report.branch}:words.py")
    assert text == STUB.replace("raise NotImplementedError", 'return text.upper() + "!"').strip()


async def test_a_marked_place_is_filled(tmp_path: Path, box: Sandbox) -> None:
    report = await completed(tmp_path, box, FILES | {"words.py": MARKED}, block("text.upper()\n"))
    assert report.verdict is Verdict.PROVED, report
    assert "loud = text.upper()\n" in git(tmp_path / "r", "show", f"{report.branch}:words.py")


@pytest.mark.parametrize(
    "body", ["return text + '!'", "return 'AB!'.lower()", "import sys\n    sys.exit(0)", "return None"]
)
async def test_a_wrong_body_is_not_proved(tmp_path: Path, box: Sandbox, body: str) -> None:
    report = await completed(tmp_path, box, FILES, block(f"def shout(text):\n    {body}\n"))
    assert report.verdict is not Verdict.PROVED, report


async def test_a_check_that_does_not_reach_the_hole_proves_nothing(tmp_path: Path, box: Sandbox) -> None:
    blind = TEST.partition("\n\n\n")[0].replace("shout, ", "") + "\n\n\n" + TEST.rpartition("\n\n\n")[2]
    for place, text in (("stub", STUB), ("mark", MARKED)):
        repo = tmp_path / place
        answer = RIGHT if place == "stub" else block("text.upper()\n")
        report = await completed(repo, box, {"words.py": text, "test_words.py": blind}, answer)
        assert report.verdict is Verdict.UNPROVED, report
        assert "trap" in report.summary


async def test_without_a_check_examples_choose_and_nothing_is_proved(tmp_path: Path, box: Sandbox) -> None:
    wrong = block("def shout(text):\n    return text\n")
    report = await completed(tmp_path, box, {"words.py": STUB}, wrong, RIGHT, check=None)
    assert report.verdict is Verdict.UNPROVED
    assert report.num_candidates == 2
    assert "1 examples agree" in report.summary
    assert "no check" in report.summary


async def test_what_a_docstring_says_in_prose_chooses_but_refuses_nothing(tmp_path: Path, box: Sandbox) -> None:
    code = 'def label(n):\n    """Says n.\n\n    label(12) -> "a12", label(0) -> "none"\n    """\n    ...\n'
    plain, right = "return f'a{n}'", "return f'a{n}' if n else 'none'"
    answers = [block(f"def label(n):\n    {body}\n") for body in (plain, right, "return ''")]
    report = await completed(tmp_path, box, {"label.py": code}, *answers, check=None, num_candidates=3, max_rounds=1)
    assert report.verdict is Verdict.UNPROVED, report
    assert right in git(tmp_path / "r", "show", f"{report.branch}:label.py")
    assert "2 examples agree" in report.summary
    worse = await completed(
        tmp_path / "worse", box, {"label.py": code}, *answers[::-2], check=None, num_candidates=2, max_rounds=1
    )
    assert worse.verdict is Verdict.UNPROVED, worse
    assert "1 of 2 statements of the docstring do not hold" in worse.summary


async def test_of_what_agrees_with_the_examples_the_commonest_behaviour_is_taken(tmp_path: Path, box: Sandbox) -> None:
    bodies = ["return text.title() + '!'", "return f'{text.upper()}!'", "return text.upper() + '!'"]
    answers = [block(f"def shout(text):\n    {body}\n") for body in bodies]
    report = await completed(
        tmp_path, box, {"words.py": STUB}, *answers, check=None, num_candidates=3, max_rounds=1, parallel=1
    )
    assert bodies[1] in git(tmp_path / "r", "show", f"{report.branch}:words.py")
    assert any("3 candidates are as good; 2 of them do the same" in note for note in report.notes), report.notes


@pytest.mark.parametrize(
    ("line", "claims"),
    [
        ("f([1, 2]) == 3", [([[1, 2]], 3)]),
        ('f("a)b") => "x"  # two', [(["a)b"], "x")]),
        ("`f(3)` returns 4.", [([3], 4)]),
        ("f(3) should return true", [([3], True)]),
        ("so f(1, 2) \N{RIGHTWARDS ARROW} [1], since it is", [([1, 2], [1])]),
        ("f(1)  # => 3", [([1], 3)]),
        ("f(3) is the best, f(x) == 3, off(2) == 3", []),
        (">>> f(1) == 2", []),  # an example, which doctest runs
    ],
)
def test_prose_says_what_literal_calls_come_to(line: str, claims: list[object]) -> None:
    assert list(shown.claims_of(f"Does it.\n\n    {line}\n", "f")) == claims


@pytest.mark.parametrize("answer", ["    loud = text.upper()\n", "loud = text.upper()\n"])
def test_the_depth_of_a_whole_missing_line_is_the_answers_or_its_neighbours(answer: str) -> None:
    text = MARKED.replace("    loud = # <fill>\n", "<fill>\n")
    (hole,) = find_holes("words.py", text)
    filled = fill("words.py", text, hole, answer)
    assert filled is not None and "\n    loud = text.upper()\n    return loud" in filled
    sprung = trapped("words.py", text, hole)
    assert sprung is not None and "    raise NotImplementedError('garzone')" in sprung


async def test_a_model_that_can_fill_in_is_asked_so(tmp_path: Path, box: Sandbox) -> None:
    repo = make_repository(tmp_path / "r", FILES | {"words.py": MARKED})
    generator = Filling(["text.upper()\n    return loud + '!'\n\ndef x("])
    report = await run_task(complete_task(repo), generator, box)
    assert report.verdict is Verdict.PROVED, report
    (request,) = generator.requests
    assert request.prompt is not None and request.prompt.endswith("loud = ")
    assert request.suffix is not None and request.suffix.startswith('\n    return loud + "!"')


class Filling(ScriptedGenerator):
    """A model with fill-in-the-middle tokens."""

    async def details(self, model: str):  # type: ignore[no-untyped-def]
        return replace(await super().details(model), capabilities=("completion", "insert"))


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ('import math\n    """Up."""', True),
        ('"""Up."""\n    import math\n    from os import path\n    pass', True),
        ("import math\n    ...", True),
        ("import math\n    raise NotImplementedError('later')", True),
        ("import readline", False),  # may be all that it is for
        ('import math\n    """Up."""\n    return math.ceil(x)', False),
        ("import math\n    x += 1", False),
    ],
)
def test_imports_before_or_behind_a_docstring_hide_no_stub_and_stay(body: str, found: bool) -> None:
    text = f"def up(x):\n    {body}\n\n\ndef other():\n    return 2\n"
    holes = find_holes("up.py", text)
    assert bool(holes) is found
    for hole in holes:
        filled = fill("up.py", text, hole, "return math.ceil(x)")
        assert filled is not None
        assert filled.index("import math") < filled.index("    return math.ceil(x)\n\n\ndef other")
        assert "pass" not in filled and "..." not in filled and "NotImpl" not in filled
        assert filled.count("import") == text.count("import")


async def test_a_stub_that_begins_with_an_import_is_filled_from_a_whole_function(tmp_path: Path, box: Sandbox) -> None:
    stub = 'def shout(text):\n    import re\n    """Make it loud."""\n'
    answer = block(f'{stub}    return re.sub("$", "!", text.upper())\n')
    report = await completed(
        tmp_path,
        box,
        {"words.py": stub, "test_words.py": TEST.partition("def test_wh")[0].replace(", whisper", "")},
        answer,
    )
    assert report.verdict is Verdict.PROVED
    assert git(tmp_path / "r", "show", f"{report.branch}:words.py").count("import re") == 1


class Small(ScriptedGenerator):
    async def details(self, model: str) -> ModelDetails:
        return replace(await super().details(model), parameter_size="135M")


@pytest.mark.parametrize(
    ("source", "ends", "answer"),
    [
        (STUB, 'loud.\n\n    >>> shout("a")\n    \'A!\'\n    """', '\n    return text.upper() + "!"\n\n\ndef next'),
        (MARKED, '"""\n    loud =', ' text.upper()\n    return loud + "!"\n'),
        (
            STUB.replace("    raise NotImplementedError", '# <fill>\n    return loud + "!"'),
            '"""',
            '\n    loud = text.upper()\n    return loud + "!"\n',
        ),
    ],
)
async def test_a_small_model_goes_on_with_the_text_before_the_hole(
    tmp_path: Path, box: Sandbox, source: str, ends: str, answer: str
) -> None:
    repo = make_repository(tmp_path / "r", {**FILES, "words.py": source})
    generator = Small([answer])
    report = await run_task(complete_task(repo, num_candidates=1, max_rounds=1), generator, box)
    (request,) = generator.requests
    assert request.raw and not request.messages and request.suffix is None
    assert request.prompt is not None and request.prompt.endswith(ends)
    assert report.verdict is Verdict.PROVED, report
    assert "next" not in report.patch


async def test_a_small_model_is_asked_for_a_body_in_three_ways_greedily_first(tmp_path: Path, box: Sandbox) -> None:
    repo = make_repository(tmp_path / "r", {"words.py": STUB})
    ways = ["text", "text.lower()", "text.title()", "text * 2"]
    generator = Small([f"\n    return {way}\n\n\ndef" for way in ways])
    await run_task(complete_task(repo, None, num_candidates=4, max_rounds=1, parallel=1), generator, box)
    bare, told, worked, again = generator.requests
    assert told.messages and "def shout" in told.messages[0].text
    assert bare.prompt is not None and worked.prompt is not None
    opened, rest = worked.prompt.split("def count_words(")
    assert bare.prompt == opened + rest.partition("    return count\n\n\n")[2]
    assert [each.sampling.temperature for each in (bare, told, worked)] == [0.0, 0.0, 0.0]
    assert again.prompt == bare.prompt and 0.0 < again.sampling.temperature <= 0.5


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(
            'def shout(text):\n    """Make it loud."""\n    return text.upper() + "!")\n', id="a bracket too many"
        ),
        pytest.param('def shout(text):\n    """Make it loud."""\n    return "!" + text.upper(', id="cut off"),
        pytest.param('def shout(text):\n    """Make it loud."""\n', id="no more than its head"),
    ],
)
async def test_a_function_that_cannot_be_read_is_not_put_into_itself(tmp_path: Path, box: Sandbox, answer: str) -> None:
    # its head alone parses there: a function within the function, which does nothing and would pass without a check
    files = {"words.py": STUB.replace(">>> shout(\"a\")\n    'A!'", "In capitals.")}
    report = await completed(tmp_path, box, files, block(answer), check=None, num_candidates=1, max_rounds=1)
    assert report.verdict is Verdict.FAILED, report.patch
    assert report.num_malformed == 2  # it was asked for again


async def test_of_a_function_that_was_cut_off_what_can_be_read_is_taken(tmp_path: Path, box: Sandbox) -> None:
    answer = block('def shout(text):\n    loud = text.upper()\n    return loud + "!"\n    again = (loud +\n')
    report = await completed(tmp_path, box, FILES, answer, num_candidates=1, max_rounds=1)
    assert report.verdict is Verdict.PROVED, report
    assert "again" not in report.patch


async def test_what_passed_and_is_written_again_is_no_waste(tmp_path: Path, box: Sandbox) -> None:
    repo = make_repository(tmp_path / "r", {"words.py": STUB})
    generator = ScriptedGenerator([RIGHT])
    report = await run_task(complete_task(repo, None, num_candidates=3, max_rounds=1, parallel=1), generator, box)
    assert report.verdict is Verdict.UNPROVED
    assert (report.num_candidates, report.num_asked_again, len(generator.requests)) == (3, 0, 3)


async def test_a_repository_without_a_hole_is_refused(tmp_path: Path, box: Sandbox) -> None:
    with pytest.raises(UsageError, match="<fill>"):
        await completed(tmp_path, box, {"a.py": "x = 1\n"}, RIGHT)


async def test_javascript_is_completed(tmp_path: Path, box: Sandbox) -> None:
    files = {
        "words.mjs": 'export function shout(text) {\n  throw new Error("not implemented");\n}\n',
        "words.test.mjs": "import test from 'node:test';\nimport assert from 'node:assert/strict';\n"
        "import { shout } from './words.mjs';\ntest('loud', () => assert.equal(shout('a'), 'A!'));\n",
    }
    wrong = "```javascript\nfunction shout(text) {\n  return text;\n}\n```"
    right = "```javascript\nfunction shout(text) {\n  return text.toUpperCase() + '!';\n}\n```"
    report = await completed(tmp_path, box, files, wrong, right, check=None)
    assert report.verdict is Verdict.PROVED, report
    assert report.checks[0].command == "node --test"
    assert git(tmp_path / "r", "show", f"{report.branch}:words.mjs").startswith(
        "export function shout(text) {\n  return"
    )


def test_stubs_of_all_languages_are_found_and_trapped() -> None:
    stubs = {
        "a.ts": "export function f(a: number): number {\n  // TODO\n}\n",
        "a.go": 'package p\n\nfunc F(a int) int {\n\tpanic("todo")\n}\n',
        "a.rs": "pub fn f(a: i64) -> i64 {\n    todo!()\n}\n",
        "A.java": 'class A {\n  int f() {\n    throw new UnsupportedOperationException("x");\n  }\n}\n',
        "a.py": "class A:\n    async def f(self):\n        '''Only words.'''\n",
    }
    for path, text in stubs.items():
        (hole,) = find_holes(path, text)
        assert hole.is_body
        sprung = trapped(path, text, hole)
        assert sprung is not None and "garzone" in sprung, path
