"""A model that was never taught to take turns is asked by a document that it goes on with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from garzone.agent.document import as_document, filling, of_function
from garzone.agent.kinds import Question
from garzone.agent.sandbox import open_sandbox
from garzone.agent.worker import run_task
from garzone.core.chat import Message, Role
from garzone.core.generation import GenerateRequest, ModelDetails
from garzone.core.task import TaskKind, Verdict
from garzone.testing import ScriptedGenerator
from tests.agent.repositories import FIXED_PAGINATE, fix_task, make_repository

LEAD = "```python\ndef up(x):\n"


class Pretrained(ScriptedGenerator):
    async def details(self, model: str) -> ModelDetails:
        return replace(await super().details(model), is_base=True)


def test_turns_become_sections_and_the_last_is_open() -> None:
    turns = (Message.of(Role.USER, "A?"), Message.of(Role.ASSISTANT, "a"), Message.of(Role.USER, "B?"))
    question = as_document(Question(turns), "python", "def up(x):\n")
    assert question.lead == LEAD
    assert question.messages == ()
    assert question.prompt == (f"## Exercise\n\nA?\n\n## Solution\n\na\n\n## Exercise\n\nB?\n\n## Solution\n\n{LEAD}")
    assert question.stop == ("\n```", "\n## ")


@pytest.mark.parametrize(
    ("lead", "written", "kept"),
    [
        (LEAD, "    return x\nprint(up(1))\nx", "    return x\n```\n"),
        (LEAD, "    return x\n\n\ndef", "    return x\n\n\n```\n"),
        (LEAD, "    y = [\n        1,\n]\n    return y\n", "    y = [\n        1,\n]\n    return y\n"),
        (LEAD, "    return x", "    return x"),
        ("```python\n    def f(self):\n", "        return 1\n\n    def g", "        return 1\n\n```\n"),
        ("```python\nimport re\n", "x = 1\ny = 2\n", "x = 1\ny = 2\n"),
    ],
)
def test_what_is_written_on_behind_the_function_is_no_part_of_it(lead: str, written: str, kept: str) -> None:
    assert of_function(lead, lead + written) == (lead + kept, kept != written)


@pytest.mark.parametrize(
    ("before", "after", "written", "kept", "over"),
    [
        ("x = 1\n", "return y\n", "\ny = 2\nreturn y\n", "y = 2\n", True),  # up to what comes next
        ("x = 1\n", "\n  return y\n", "\n  if x:\n    y\n  z\n  return y\n", "  if x:\n    y\n  z\n", True),
        ("x = 1\n", "return y\n", "\ny = 2\nz = 3\nu", "y = 2\n", False),  # which may still come
        ("x = 1\n", "return y\n", "\ny = 2\n" + "z = 3\n" * 13, "y = 2\n", True),  # and did not
        ("x = 1\n", "return y\n", "\nif x:\n  y\nelse:\n  y = 3\nz\n", "if x:\n  y\nelse:\n  y = 3\n", False),
        ("x = 1\n", "return y\n", "\n    y = 2\n  z = 3\n", "    y = 2\n", False),
        ("x = 1\n", "", "\ny = 2\n```\n", "y = 2\n", True),
        ("x =", "\nreturn y\n", " 2\n   return y\n", " 2\n", True),
        ("x = 1\n", "", "\ny = 2", "y = 2", False),
        ("x = 1\n", "", " # what ends the line before", "", False),
    ],
)
def test_a_hole_is_filled_up_to_what_comes_next_or_by_one_statement(
    before: str, after: str, written: str, kept: str, over: bool
) -> None:
    question = filling(before, after, "python", shown=True)
    assert question.cut is not None and question.prompt is not None
    assert question.prompt.endswith(f"```python\n{before.rstrip()}")
    assert f"```python\n{after.strip()}\n```" in question.prompt.replace("```python\n  ", "```python\n") or not after
    alone = filling(before, after, "python", shown=False)
    assert alone.prompt == f"```python\n{before.rstrip()}"
    for each in (question, alone):
        assert each.cut is not None
        assert each.cut(each.lead + written) == (each.lead + kept, over)


async def test_a_pretrained_model_repairs_a_function_whose_first_lines_it_is_given(tmp_path: Path) -> None:
    repo = make_repository(tmp_path / "r")
    body = FIXED_PAGINATE.partition("\n")[2]

    def goes_on(request: GenerateRequest) -> str:
        assert request.raw and not request.messages and request.prompt is not None
        assert request.prompt.endswith("## Solution\n\n```python\ndef paginate(items, page, size):\n")
        return f"{body}\nprint(paginate([1], 1, 1))\nfor ever in it:\n"

    generator = Pretrained([goes_on])
    report = await run_task(
        replace(fix_task(repo), files=("pager.py",), instruction="Fix paginate."), generator, open_sandbox()
    )
    assert report.verdict is Verdict.PROVED
    assert generator.closed_early == 1
    assert "print" not in report.patch


async def test_a_kind_whose_answers_are_no_code_is_asked_in_turns(tmp_path: Path) -> None:
    repo = make_repository(tmp_path / "r")
    generator = Pretrained(["Nothing to say."])
    task = replace(fix_task(repo), kind=TaskKind.REVIEW, files=("pager.py",), num_candidates=1, max_rounds=1)
    await run_task(task, generator, open_sandbox())
    assert generator.requests
    assert all(request.messages and not request.raw for request in generator.requests)
