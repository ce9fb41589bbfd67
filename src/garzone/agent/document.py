"""Asks by a text that the model goes on with, and says where its answer ends.

A pretrained model was never taught to take turns: what it has seen is texts with headings and code blocks. And where
the beginning of the code is known, going on with it is the shortest way for any model. Does not decide who is asked so.
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial

from garzone.agent.kinds import Question
from garzone.core.chat import Role

EXERCISE, SOLUTION = "## Exercise", "## Solution"
_STOP = ("\n```", "\n## ")
_CONTINUING = (")", "]", "}", "elif", "else", "except", "finally")  # at the depth of a statement, and still of it
MAX_LOOKED = 12  # lines in which the one after a hole is waited for
_DEF = re.compile(r"^([ \t]*)(?:async )?def \w", re.MULTILINE)


def as_document(question: Question, language: str, opening: str = "") -> Question:
    """A conversation as a text to go on with; its answer begins with an opened code block.

    Args:
        question: its messages.
        language: of the code that is wanted.
        opening: how that code begins, where this is known.
    """
    parts = [
        f"{SOLUTION if message.role is Role.ASSISTANT else EXERCISE}\n\n{message.text.strip()}"
        for message in question.messages
    ]
    lead = f"```{language}\n{opening}"
    text = "\n\n".join([*parts, f"{SOLUTION}\n\n{lead}"])
    stop = (*question.stop, *_STOP)
    return replace(
        question, messages=(), prompt=text, stop=stop, grammar=None, lead=lead, cut=partial(of_function, lead)
    )


def going_on(before: str, head: str, language: str, *, worked: str = "") -> Question:
    """The body of a function, as what follows the text before it.

    What ends in a line break is left to begin with it: tokens of usual tokenisers hold a line break and the blanks
    behind it, so that a model seldom saw a text that goes on behind the one without the other.

    Args:
        before: the text up to the body.
        head: the function's own part of it.
        language: of the code.
        worked: another function, written to its end, to stand before all of it.
    """
    opened = f"```{language}\n"
    lead = opened + head.rstrip()
    return Question(prompt=opened + worked + before.rstrip(), lead=lead, cut=partial(of_function, lead))


def filling(before: str, after: str, language: str, *, shown: bool) -> Question:
    """A missing part: what comes after it (where that is shown), then what comes before it, to go on with.

    Nothing marks the gap, for small models copy the mark.
    """
    in_line = bool(before) and not before.rstrip(" \t").endswith("\n")
    opened = f"```{language}\n"
    ending = after.strip("\n").rstrip()
    text = f"This is how the code ends:\n\n{opened}{ending}\n```\n\nThe whole code:\n\n" if shown and ending else ""
    prompt = f"{text}{opened}{before.rstrip()}"
    return Question(prompt=prompt, lead=opened, cut=partial(_up_to, opened, after, in_line))


def of_function(lead: str, text: str) -> tuple[str, bool]:
    """An answer that began with a function, up to the end of that; any other as it is."""
    heads = list(_DEF.finditer(lead))
    if not heads:
        return text, False
    # a line that begins no further in than the function; brackets that close a signature do as well
    depth = len(heads[-1][1])
    found = re.compile(rf"^(?=[ \t]{{0,{depth}}}[^\s)\]}}])", re.MULTILINE).search(text, len(lead) + 1)
    return (f"{text[: found.start()]}```\n", True) if found else (text, False)


def _up_to(lead: str, after: str, in_line: bool, text: str) -> tuple[str, bool]:
    """An answer up to the line that comes next anyway; where that does not come, its first statement."""
    said = text[len(lead) :]
    if not in_line:  # it begins with the end of the line before
        said = said.partition("\n")[2]
    lines = said.splitlines(keepends=True)
    whole = [line for line in lines if line.endswith("\n")]
    if in_line:
        return lead + "".join(lines[:1]), bool(whole)
    next_line = next((line.strip() for line in after.splitlines() if line.strip()), None)
    for number, line in enumerate(whole[1:], 1):
        if line.strip() == next_line or line.startswith("```"):
            return lead + "".join(lines[:number]), True
    first = next((number for number, line in enumerate(lines) if line.strip()), 0)
    for number in range(first + 1, len(lines)):
        line = lines[number]
        further = _depth(line) - _depth(lines[first])
        if line.strip() and (further < 0 or (further == 0 and not line.lstrip().startswith(_CONTINUING))):
            return lead + "".join(lines[:number]), len(whole) > MAX_LOOKED
    return lead + said, False


def _depth(line: str) -> int:
    return len(line) - len(line.lstrip())
