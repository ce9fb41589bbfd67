"""What is fit to be delegated, told from the words alone."""

import pytest

from garzone.delegate.instruction import Obstacle, read_instruction, split


@pytest.mark.parametrize(
    ("instruction", "obstacle"),
    [
        ("Should we use Redis or Postgres for the queue?", Obstacle.DESIGN),
        ("design a plugin architecture", Obstacle.DESIGN),
        ("decide how to shard the table", Obstacle.DESIGN),
        ("which library is best for dates", Obstacle.DESIGN),
        ("ask the user which colour they want", Obstacle.CONVERSATION),
        ("the test is flaky, find out why", Obstacle.HARD_DEBUGGING),
        ("there is a race condition in the pool", Obstacle.HARD_DEBUGGING),
        ("fix the parser and then add a test for it", Obstacle.SEVERAL),
        ("- add a --json flag\n- rename run() to main()", Obstacle.SEVERAL),
    ],
)
def test_what_needs_judgement_is_declined_with_a_suggestion(instruction: str, obstacle: Obstacle) -> None:
    reading = read_instruction(instruction)
    assert reading.obstacle is obstacle
    assert reading.reason
    assert reading.suggestion


@pytest.mark.parametrize(
    "instruction",
    [
        "",
        "off by one in paginate",
        "take() adds the quantity instead of subtracting it",
        "a test fails: find the wrong line and repair it",
        "page_count and page_items disagree about the last page",
        "write a function to read and sort lines",
        "fix the crash when the list is empty and the flag is set",
        "translate utils.py from Python to TypeScript",
        "document the public functions of pager.py",
        "the designer's colour is wrong in theme.py",
        "implement LRU eviction: drop the least recently used entry when the cache is full",
    ],
)
def test_a_bounded_task_is_taken_for_one(instruction: str) -> None:
    assert read_instruction(instruction).obstacle is Obstacle.NONE


def test_several_tasks_are_split_into_what_could_be_delegated() -> None:
    assert split("Fix the off by one in paginate, then rename page to number and add a test for both") == (
        "Fix the off by one in paginate",
        "rename page to number",
        "add a test for both",
    )
    assert split("1. add a flag\n2. write tests for it") == ("add a flag", "write tests for it")


def test_a_list_of_symptoms_is_one_task() -> None:
    assert len(split("- the first page is empty\n- the last page is missing")) == 1
