"""The few sentences a failed task leaves behind: what was tried, what still fails and how, where the best try is."""

from __future__ import annotations

from garzone.agent.course import Course
from garzone.agent.worktree import Change
from garzone.core.task import POST_MORTEM_CHARS


def post_mortem(course: Course, change: Change | None) -> str:
    """At most 400 characters for whoever takes over.

    Args:
        course: how the task went.
        change: where the best candidate was committed, if any was.
    """
    counts = {what: course.outcomes.count(what) for what in dict.fromkeys(course.outcomes)}
    tried = ", ".join(f"{number} {what}" for what, number in counts.items()) or "nothing"
    targets = ", ".join(dict.fromkeys(failed.target.label for failed in course.failed)) or course.targets[0].label
    parts = [f"Tried {targets}: {tried}."]
    if course.ended_by:
        parts.append(f"Out of {course.ended_by}.")
    if best := course.best:
        parts.append(f"Doubt: {'; '.join(best.trial.doubts)}.")
    else:
        ran = [failed for failed in course.failed if failed.attempt.output]
        if ran:
            closest = min(ran, key=lambda failed: failed.num_failing)
            parts.append(f"Still fails: {first_line(closest.attempt.output)}.")
        elif course.failed:
            parts.append(f"Last: {course.failed[-1].attempt.reason}")
        if cause := _suspected(counts):
            parts.append(f"Suspected: {cause}.")
    where = f" Best candidate: {change.branch}." if change else ""
    return cut(" ".join(parts), POST_MORTEM_CHARS - len(where)) + where


def _suspected(counts: dict[str, int]) -> str:
    """What the outcomes hint at."""
    total = sum(counts.values())
    if not total:
        return "the model was not reached in time"
    if counts.get("unusable", 0) > total / 2:
        return "the model does not keep to the answer format"
    if counts.get("unchanged", 0) + counts.get("duplicate", 0) > total / 2:
        return "the model repeats itself: it does not see the fault here"
    if counts.get("failed", 0) == total and total > 1:
        return "the fault is elsewhere, or beyond this model"
    return ""


def first_line(text: str) -> str:
    """The first line that says something, cut to what fits in a sentence."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return cut(lines[0] if lines else "no output", 160)


def cut(text: str, max_chars: int) -> str:
    """Text that ends with an ellipsis where something was left out."""
    return text if len(text) <= max_chars else text[: max_chars - 1] + "…"
