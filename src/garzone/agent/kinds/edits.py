"""Asks for search-and-replace blocks where a target is too long to be written again. Does not read or judge them."""

from __future__ import annotations

from collections.abc import Sequence

from garzone.agent.context import Target
from garzone.agent.excerpts import excerpt
from garzone.agent.kinds import Material, Question, Setting
from garzone.agent.kinds.asking import language_of, user
from garzone.agent.prompts import render
from garzone.core.generation import Grammar

WANTED = "Write all changes again as SEARCH/REPLACE blocks of the code as it was shown first, corrected."
TEST_WORDS = "This test fails"


def ask_for_edits(
    setting: Setting, target: Target, material: Material, *, instruction: str, goal: str, test_words: str = TEST_WORDS
) -> Question:
    """The question, held to text that exists where the backend takes a grammar.

    Args:
        setting: of the task.
        target: what may be changed.
        material: what may be shown besides; `num_lines` cuts the target itself.
        instruction: the task in words.
        goal: a sentence that says what the changes are for.
        test_words: what the tests that are shown are.
    """
    shown = excerpt(target, material.focus, material.num_lines)
    question = user(
        render(
            "edits",
            instruction=instruction,
            goal=goal,
            path=target.path,
            language=language_of(target.path),
            function=target.span.name if target.span else None,
            code=shown.text,
            tests=material.tests,
            test_words=test_words,
            output=material.output,
            definitions=material.definitions,
            fence="```",
        )
    )
    grammar = grammar_of(shown.pieces) if setting.takes_grammar else None
    return Question(question.messages, grammar=grammar, wanted=WANTED)


def grammar_of(pieces: Sequence[str]) -> Grammar:
    """The grammar of edits of some text."""
    from garzone.text.grammar import for_edits  # noqa: PLC0415 - loads llguidance, which most tasks do not need

    return for_edits(*pieces)
