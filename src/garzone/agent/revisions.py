"""Finds the change an instruction speaks of (`main..HEAD`, "the last commit") and reads it from git, hunk by hunk.

The change must end at the commit that is worked on, because only its lines exist. Judges nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from garzone.agent.git import Git, GitFailed
from garzone.agent.worktree import Repository
from garzone.core.errors import UsageError

CONTEXT_LINES = 8
_RANGE = re.compile(r"(?<![\w./-])(?P<start>[\w@][\w./@{}~^-]*?)(?P<dots>\.{2,3})(?P<end>[\w@][\w/@{}~^-]*)(?![\w/])")
_LAST = re.compile(r"\b(?:the )?(?:last|latest)(?: (?P<number>\d{1,3}))? commits?\b", re.IGNORECASE)
_HUNK = re.compile(r"^@@ -\d+(?:,\d+)? \+(?P<first>\d+)(?:,(?P<count>\d+))? @@", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Patch:
    """What a change does to one file that is still there: the hunks, and which of its lines they show, from 1."""

    path: str
    text: str
    lines: frozenset[int]


def spoken_range(instruction: str) -> str | None:
    """The range of revisions an instruction names, as git takes it; None where it names none."""
    if last := _LAST.search(instruction):
        return f"HEAD~{last['number'] or 1}..HEAD"
    found = _RANGE.search(instruction)
    return f"{found['start']}{found['dots']}{found['end']}" if found else None


def is_range(repository: Repository, revisions: str) -> bool:
    """Whether both ends of a range are commits here."""
    git = Git(repository.top)
    ends = re.split(r"\.{2,3}", revisions, maxsplit=1)
    return all(
        git.succeeds("rev-parse", "--verify", "--quiet", "--end-of-options", f"{end}^{{commit}}") for end in ends
    )


def patches(repository: Repository, revisions: str, paths: Sequence[str] = ()) -> list[Patch]:
    """What a range of revisions changes, file by file.

    Args:
        repository: at the commit that is worked on.
        revisions: `A..B`, or `A...B` for what B changed since both parted.
        paths: from the top level; none means all.

    Raises:
        UsageError: there is no such revision, or the range does not end at the repository's commit.
    """
    git = Git(repository.top)
    start, dots, end = re.split(r"(\.{2,3})", revisions, maxsplit=1)
    try:
        first, last = (
            git.text("rev-parse", "--verify", "--end-of-options", f"{name}^{{commit}}") for name in (start, end)
        )
        base = git.text("merge-base", first, last) if dots == "..." else first
    except GitFailed as error:
        raise UsageError(f"{revisions} names no change here: {error.detail or 'unknown revision'}") from error
    if last != repository.head:
        raise UsageError(
            f"{end} is not what is checked out: a review reads the lines of HEAD, so name {start}{dots}HEAD"
        )
    options = ("--no-color", "--no-ext-diff", "--no-textconv", "--no-renames", f"--unified={CONTEXT_LINES}")
    found: list[Patch] = []
    names = git.run(
        "diff", "-z", "--name-only", "--diff-filter=AM", "--no-renames", base, last, "--", *map(_literal, paths)
    )
    for name in filter(None, names.decode("utf-8", "surrogateescape").split("\0")):
        text = git.run("diff", *options, base, last, "--", _literal(name)).decode("utf-8", "replace")
        hunks = list(_HUNK.finditer(text))
        if hunks:
            shown = frozenset(
                number
                for hunk in hunks
                for number in range(int(hunk["first"]), int(hunk["first"]) + int(hunk["count"] or 1))
            )
            found.append(Patch(name, text[hunks[0].start() :], shown))
    return found


def _literal(path: str) -> str:
    """A path that git reads as no pattern."""
    return f":(top,literal){path}"
