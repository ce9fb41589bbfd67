"""Guesses are read from where the text occurred before, and their worth is known without being told."""

import random

from hypothesis import given
from hypothesis import strategies as st

from garzone.engine.drafter import PromptLookup
from garzone.scheduler.cost import StepTimes, draft_length, expected_tokens

FILE = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8, 4, 6, 2, 6, 4, 3, 3, 8, 3, 2, 7]


def follow(drafter: PromptLookup, answer: list[int], max_tokens: int = 16) -> list[int]:
    """Let an answer come; how many tokens each step yielded."""
    steps: list[int] = []
    at = 0
    while at < len(answer):
        guess, _ = drafter.propose(max_tokens)
        right = 0
        while right < len(guess) and at + right < len(answer) and guess[right] == answer[at + right]:
            right += 1
        drafter.extend(answer[at : at + right + 1])
        steps.append(len(answer[at : at + right + 1]))
        at += right + 1
    return steps


def test_a_repeated_file_with_one_token_changed_takes_few_steps() -> None:
    answer = [*FILE[:12], 77, *FILE[13:]]
    steps = follow(PromptLookup([50, 51], FILE), answer)
    assert sum(steps) == len(answer)
    assert len(steps) <= 6


def test_the_prompt_is_a_source_too() -> None:
    steps = follow(PromptLookup([0, *FILE, 60, 3]), FILE[1:])
    assert len(steps) <= 8


def test_lines_that_were_put_in_and_left_out_do_not_lose_the_place() -> None:
    file = list(range(100, 200))
    answer = [*file[:20], 7, 8, 9, *file[20:50], *file[60:]]
    assert len(follow(PromptLookup([1], file), answer)) <= 20


def test_a_guess_never_crosses_from_the_prediction_into_the_prompt() -> None:
    drafter = PromptLookup([9, 9, 1, 2], [1, 2, 3])
    drafter.extend([1, 2])
    guess, _ = drafter.propose(10)
    assert guess[0] == 3
    assert -1 not in guess


@given(st.lists(st.integers(0, 3), max_size=60), st.lists(st.integers(0, 3), max_size=60), st.integers(1, 9))
def test_guesses_are_tokens_that_were_there_and_no_more_than_asked(
    prompt: list[int], answer: list[int], most: int
) -> None:
    drafter = PromptLookup(prompt, answer[::-1])
    for token in answer:
        guess, acceptance = drafter.propose(most)
        assert len(guess) <= most
        assert all(0 <= guessed <= 3 for guessed in guess)
        assert 0.0 <= acceptance <= 1.0
        drafter.extend([token])


def test_text_that_cannot_be_foreseen_makes_guesses_worthless_and_repetition_makes_them_worth_it_again() -> None:
    chance = random.Random(1)
    drafter = PromptLookup([])
    follow(drafter, [chance.randrange(6) for _ in range(600)])  # pairs recur, what follows them does not
    drafter.propose(8)
    drafter.extend([chance.randrange(6)])
    _, low = drafter.propose(8)
    for _ in range(12):
        follow(drafter, FILE)
    drafter.extend(FILE[:10])
    guess, high = drafter.propose(8)
    assert list(guess) == FILE[10:18]
    assert high > 0.9
    assert low < 0.4


def test_drafts_are_as_long_as_pays_and_not_longer() -> None:
    cheap, dear = StepTimes(), StepTimes()
    for rows in (1, 2, 4, 8, 16, 32):
        cheap.observe(rows, 10 + 0.1 * rows)
        dear.observe(rows, 10.0 * rows)
    assert draft_length(0.95, 32, 1, 0, cheap) == 31
    assert draft_length(0.5, 32, 1, 0, cheap) in (1, 3, 7)
    assert draft_length(0.95, 32, 1, 0, dear) == 0
    assert draft_length(0.05, 32, 1, 0, cheap) <= 1
    assert draft_length(0.0, 32, 1, 0, cheap) == 0
    assert draft_length(1.0, 5, 1, 0, cheap) == 5
    assert expected_tokens(1.0, 3) == 4.0


def test_one_slow_step_does_not_change_what_steps_are_thought_to_take() -> None:
    times = StepTimes()
    for _ in range(20):
        times.observe(1, 5.0)
    times.observe(1, 5000.0)
    assert times.estimate(1) < 7.0
