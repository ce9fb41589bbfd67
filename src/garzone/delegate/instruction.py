"""Reads an instruction for what makes it unfit to delegate: a design question, talk, a hunt, several tasks in one.

Pure, and deliberately shallow: patterns people can read. What it does not recognise is taken for a bounded task.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum


class Obstacle(Enum):
    """Why an instruction should stay with the coordinator."""

    NONE = "none"
    DESIGN = "design"
    CONVERSATION = "conversation"
    HARD_DEBUGGING = "hard debugging"
    SEVERAL = "several tasks"


@dataclass(frozen=True, slots=True)
class Reading:
    """What was found, in one line, and what to do instead."""

    obstacle: Obstacle = Obstacle.NONE
    reason: str = ""
    suggestion: tuple[str, ...] = ()


_VERBS = (
    "add|apply|build|change|clean|complete|convert|correct|create|delete|document|drop|explain|extend|extract|finish|fix|"
    "implement|improve|inline|introduce|make|migrate|move|optimi[sz]e|port|refactor|remove|rename|repair|replace|rewrite|"
    "simplify|sort|speed up|split|test|translate|update|upgrade|use|write"
)
_DESIGN = re.compile(
    r"\b(architect(ure|ural)?|trade-?offs?|road-?map|pros and cons|best (approach|way|practice|strategy)|"
    r"(re)?design (a|an|the|our|how|new)|"
    r"(decide|choose|figure out|work out|think about|propose|suggest|recommend|evaluate) "
    r"(a|an|the|our|on|how|what|which|whether|between|if)|"
    r"should (we|i|it|this|they)|"
    r"(which|what) (approach|library|framework|database|pattern|strategy|design)|"
    r"how (should|would|could) (we|i|you))\b",
    re.IGNORECASE,
)
_CONVERSATION = re.compile(
    r"\b(ask|tell|discuss with|talk to|check with|inform|reply to|answer) (me|the user|the team|the customer|them)\b",
    re.IGNORECASE,
)
_HUNT = re.compile(
    r"\b(race condition|dead-?lock|live-?lock|heisenbug|flaky|intermittent(ly)?|sporadic(ally)?|"
    r"memory leak|seg(mentation )?fault|memory corruption|"
    r"only in production|(find|work) out why|investigate|root cause|no idea why)\b",
    re.IGNORECASE,
)
_ITEM = re.compile(r"^\s*(?:[-*•]|\(?\d+[.)])\s+(\S.*)$", re.MULTILINE)
_JOINT = re.compile(
    rf"(?:[.;,]\s*|\s+)(?:and\s+)?(?:then|also|afterwards|after that|finally|next)[,:]?\s+"
    rf"(?:also\s+)?(?=(?:{_VERBS})\b)"
    rf"|[;.]\s+(?:and\s+)?(?=(?:{_VERBS})\b)"
    # a bare `and` joins tasks only before a verb with an object: not in `a function to read and sort lines`
    rf"|,?\s+and\s+(?=(?:{_VERBS})\s+(?:an?|the|all|every|each|its|their|some|more|tests?|docs|docstrings?)\b)",
    re.IGNORECASE,
)
_STARTS_WITH_VERB = re.compile(rf"\s*(?:please\s+)?(?:{_VERBS})\b", re.IGNORECASE)


def read_instruction(instruction: str) -> Reading:
    """What, if anything, speaks against handing this to a small model."""
    if found := _DESIGN.search(instruction):
        return Reading(
            Obstacle.DESIGN,
            f"a design decision ({found[0].strip()!r}): that is the coordinator's to make",
            ("decide first, then delegate the one change that follows from it",),
        )
    if found := _CONVERSATION.search(instruction):
        return Reading(
            Obstacle.CONVERSATION,
            f"it needs somebody to talk to ({found[0].strip()!r}): the worker cannot",
            ("ask first, then delegate the change with the answer in the instruction",),
        )
    if found := _HUNT.search(instruction):
        return Reading(
            Obstacle.HARD_DEBUGGING,
            f"a hunt for a cause ({found[0].strip()!r}), not a bounded change",
            ("find the cause first, then delegate the repair with a check that fails because of it",),
        )
    parts = split(instruction)
    if len(parts) > 1:
        return Reading(
            Obstacle.SEVERAL, f"{len(parts)} tasks in one: delegate them one by one, each with its own check", parts
        )
    return Reading()


def split(instruction: str) -> tuple[str, ...]:
    """The tasks an instruction consists of; one element if it is a single task."""
    items = tuple(item.strip() for item in _ITEM.findall(instruction))
    if len(items) > 1 and all(_STARTS_WITH_VERB.match(item) for item in items):
        return items
    if not _STARTS_WITH_VERB.match(instruction):
        return (instruction.strip(),)  # a description of what is wrong, not an order
    return tuple(part.strip(" .;,\n") for part in _JOINT.split(instruction) if part.strip(" .;,\n"))
