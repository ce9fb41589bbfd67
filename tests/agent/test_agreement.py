"""Which of several programs is taken: the choice by itself, and the real programs in the real sandbox."""

from __future__ import annotations

from pathlib import Path

from garzone.agent.agreement import Agreement, most_agreed, preferred
from garzone.agent.sandbox import open_sandbox
from garzone.agent.stage import Stage
from garzone.agent.worktree import Repository, Worktree
from tests.agent.repositories import make_repository

ALIKE = ["def f(a):\n    return sorted(a)\n", "import heapq\ndef f(a):\n    return heapq.nsmallest(len(a), a)\n"]


def test_the_largest_group_is_taken_and_of_it_the_first() -> None:
    assert preferred([["1", "2"], ["1", "3"], ["1", "3"]], [1, 1, 1]) == 1
    assert preferred([["1", "2"], ["1", "3"], ["1", "3"]], [3, 1, 1]) == 0  # written three times
    assert preferred([["1", "2"], ["1", "3"]], [1, 1]) == 0


def test_programs_that_do_not_end_or_do_not_look_at_their_input_come_last() -> None:
    same = ["1", "1", "1", "1"]
    assert preferred([None, same, ["1", "2", "3", "4"]], [5, 5, 1]) == 2
    assert preferred([None, same], [5, 1]) == 1
    assert preferred([["1", "raises TypeError"], ["1", "2"]], [1, 1]) == 1


async def test_programs_are_run_apart_from_each_other_on_inputs_near_the_shown_ones(tmp_path: Path) -> None:
    repository = Repository.open(make_repository(tmp_path / "r", {"a.txt": ""}))
    by_heart = "def f(a):\n    return [1, 2, 3]\n"
    harmful = "import os\nos._exit(0)\n"
    endless = "def f(a):\n    while True:\n        pass\n"
    tracked = repository.tracked()
    with Worktree(repository) as worktree:
        stage = Stage(worktree, open_sandbox(), tracked, wall_s=20.0)
        programs = [by_heart, harmful, *ALIKE, "def g(): ...\n", "def f(:\n", endless]
        found = await most_agreed(stage, "new.py", programs, [("f", "([3, 1, 2],)")])
        assert found is not None
        assert found == Agreement(2, 2, found.num_inputs)
        assert found.num_inputs > 10
        assert await most_agreed(stage, "new.py", [harmful], [("f", "(1,)")]) is None
        for says in (">>> f([3, 1, 2])", "f([3, 1, 2]) returns a sorted list", "`f([3, 1, 2])` gives [1, 2, 3]"):
            told = [f'def f(a):\n    """{says}"""\n    return {body}\n' for body in ("a", "sorted(a)", "[*sorted(a)]")]
            by_words = await most_agreed(stage, "new.py", told, names=("f",))
            assert by_words is not None and by_words.number == 1 and by_words.num_inputs > 10, says
