"""Reads what a person writes after `/garzone`, and sees in a prompt whether it could be delegated. Pure.

A slash command asks no model: its words go straight to `garzone delegate`.
"""

from __future__ import annotations

import re
import shlex

from garzone.core.errors import UsageError
from garzone.core.task import TaskKind
from garzone.delegate.instruction import Obstacle, read_instruction

COMMAND = re.compile(r"\s*/garzone(?::garzone)?(?:\s+(?P<rest>.*))?$", re.DOTALL)
USAGE = '/garzone KIND "what to do" [--file F]... [--check "CMD"] [--apply]; KIND: ' + ", ".join(
    kind.value for kind in TaskKind
)
# Words by which people ask for a kind of task, the surest first
_ASKS: tuple[tuple[str, TaskKind], ...] = (
    (r"\b(add|write|extend)\b.{0,40}\b(unit )?tests?\b", TaskKind.TESTS),
    (r"\b(add|write|improve)\b.{0,40}\b(docstrings?|documentation|docs)\b|^\s*(please )?document\b", TaskKind.DOCS),
    (r"\b(translate|port|convert)\b.{0,60}\b(to|into)\b", TaskKind.TRANSLATE),
    (r"\b(refactor|rename|extract|inline|simplify|deduplicate)\b", TaskKind.REFACTOR),
    (r"\b(complete|fill in|finish)\b.{0,40}\b(function|method|class|stub|body|TODO)\b", TaskKind.COMPLETE),
    (r"\b(fix|repair|correct)\b|\boff by one\b|\bbug in\b", TaskKind.FIX),
)


def parse_slash(text: str) -> list[str]:
    """Arguments for `garzone delegate`, from words as people type them: quotes are optional.

    The first word is the kind; what follows up to the first option is the instruction; an option's value goes up to the
    next option.

    Raises:
        UsageError: there is nothing, or the first word is no kind.
    """
    try:
        words = shlex.split(text)
    except ValueError:  # an apostrophe in plain English
        words = text.split()
    kinds = {kind.value for kind in TaskKind}
    if not words or words[0] not in kinds:
        raise UsageError(USAGE)
    groups: list[list[str]] = [[]]
    for word in words[1:]:
        if word.startswith("--"):
            name, given, value = word.partition("=")
            groups.append([name, value] if given else [name])
        else:
            groups[-1].append(word)
    instruction, *options = groups
    arguments = [words[0], " ".join(instruction)]
    for name, *value in options:
        if name == "--file":  # several may follow one
            for file in value:
                arguments += [name, file]
        else:
            arguments += [name, " ".join(value)] if value else [name]
    return arguments


def suggested_kind(prompt: str) -> TaskKind | None:
    """The kind of task a prompt asks for, if it is one bounded task; None for everything else."""
    if len(prompt) > 600 or read_instruction(prompt).obstacle is not Obstacle.NONE:
        return None
    return next((kind for words, kind in _ASKS if re.search(words, prompt, re.IGNORECASE)), None)


def suggestion(kind: TaskKind) -> str:
    """What the hook puts beside such a prompt: about 40 tokens, once."""
    return (
        f"garzone: this looks like one bounded task. If a command can check it, call the delegate tool with kind "
        f"'{kind.value}' before reading files."
    )
