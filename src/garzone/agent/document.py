"""Turns a conversation into a document that ends where its answer begins, for models that go on with a text.

A pretrained model was never taught to take turns; what it has seen is texts with headings and code blocks. Does not
decide who is asked so.
"""

from __future__ import annotations

import re
from dataclasses import replace

from garzone.agent.kinds import Question
from garzone.core.chat import Role

EXERCISE, SOLUTION = "## Exercise", "## Solution"
_STOP = ("\n```", "\n## ")


def as_document(question: Question, language: str, opening: str = "") -> tuple[Question, str]:
    """A conversation as a text to go on with.

    Args:
        question: its messages.
        language: of the code that is wanted.
        opening: how that code begins, where this is known.

    Returns:
        The question, and what its answer begins with: an opened code block.
    """
    parts = [
        f"{SOLUTION if message.role is Role.ASSISTANT else EXERCISE}\n\n{message.text.strip()}"
        for message in question.messages
    ]
    lead = f"```{language}\n{opening}"
    text = "\n\n".join([*parts, f"{SOLUTION}\n\n{lead}"])
    return replace(question, messages=(), prompt=text, stop=(*question.stop, *_STOP), grammar=None), lead


def is_over(lead: str, text: str) -> bool:
    """Whether an answer that began with a function has come to the end of it."""
    return _end(lead, text) is not None


def within(lead: str, text: str) -> str:
    """An answer without what was written on behind the function it began with."""
    end = _end(lead, text)
    return text if end is None else f"{text[:end]}```\n"


def _end(lead: str, text: str) -> int | None:
    opening = lead.partition("\n")[2]
    if not re.search(r"^(?:async )?def \w", opening, re.MULTILINE):
        return None
    # a line that begins at the margin; brackets that close a signature do as well
    found = re.compile(r"^(?=[^\s)\]}])", re.MULTILINE).search(text, len(lead) + 1)
    return found.start() if found else None
