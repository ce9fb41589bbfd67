"""A model that was never taught to take turns is asked by a document that it goes on with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from garzone.agent.document import as_document, is_over, within
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
    question, lead = as_document(Question(turns), "python", "def up(x):\n")
    assert lead == LEAD
    assert question.messages == ()
    assert question.prompt == (f"## Exercise\n\nA?\n\n## Solution\n\na\n\n## Exercise\n\nB?\n\n## Solution\n\n{LEAD}")
    assert question.stop == ("\n```", "\n## ")


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("    return x\nprint(up(1))\nx", "    return x\n```\n"),
        ("    return x\n\n\ndef", "    return x\n\n\n```\n"),
        ("    y = [\n        1,\n]\n    return y\n", "    y = [\n        1,\n]\n    return y\n"),
        ("    return x", "    return x"),
    ],
)
def test_what_is_written_on_behind_the_function_is_no_part_of_it(written: str, kept: str) -> None:
    assert within(LEAD, LEAD + written) == LEAD + kept
    assert is_over(LEAD, LEAD + written) is (kept != written)


def test_where_no_function_was_begun_nothing_is_cut() -> None:
    lead = "```python\nimport re\n"
    assert within(lead, f"{lead}x = 1\ny = 2\n") == f"{lead}x = 1\ny = 2\n"


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
