"""Reads search-and-replace blocks and applies them to one file: text in, text out.

The form of an answer for targets that are too long to be written again as a whole:

    <<<<<<< SEARCH
    lines of the file
    =======
    lines in their place
    >>>>>>> REPLACE

Nothing is guessed into place: SEARCH must be in the target, in one place only, and else the reason (with the nearest
lines there are) is an `EditMiss` and becomes the next prompt. `text/grammar.for_edits` holds a backend that takes
grammars to text that exists; here the same is verified whoever wrote it. Does not decide when this form is asked for.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from garzone.agent.edit import MAX_ANSWER_CHARS, Edited, EditMiss, lost_names, signature_complaint, syntax_complaint
from garzone.agent.syntax import first_error, is_source, num_errors
from garzone.agent.target import Span, functions, is_python, node_at, parse, split_lines

SEARCH, DIVIDER, REPLACE = "<<<<<<< SEARCH", "=======", ">>>>>>> REPLACE"
MAX_BLOCKS = 12  # of one answer; a model that writes more has lost its way
FORM = f"Write each change as\n{SEARCH}\nlines as they are now\n{DIVIDER}\nlines in their place\n{REPLACE}"
_NEAREST_LINES = 6


@dataclass(frozen=True, slots=True)
class Replacement:
    """One block. `readings` are its (search, replace) pairs: more than one where a line of its text is a divider."""

    readings: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]


def holds_blocks(answer: str) -> bool:
    """Whether an answer was meant as search-and-replace blocks."""
    return re.search(rf"^\s*{SEARCH}\s*$", answer, re.MULTILINE) is not None


def replacements(answer: str) -> list[Replacement]:
    """The complete blocks of an answer, in order, each once. Fences around them do not matter."""
    found: dict[Replacement, None] = {}
    lines: list[str] | None = None
    for line in answer.replace("\r\n", "\n").split("\n"):
        mark = line.strip()
        if mark == SEARCH:
            lines = []
        elif mark == REPLACE and lines is not None:
            at = [number for number, inner in enumerate(lines) if inner.rstrip() == DIVIDER]
            readings = tuple((tuple(lines[:number]), tuple(lines[number + 1 :])) for number in at)
            if readings:
                found.setdefault(Replacement(readings))
            lines = None
        elif lines is not None:
            lines.append(line)
    return list(found)


def is_finished(answer: str) -> bool:
    """Whether an unfinished answer already holds all there will be: its fence is closed, or it repeats itself."""
    num_marks = len(re.findall(rf"^{REPLACE}\s*$", answer, re.MULTILINE))
    if not num_marks:
        return False
    rest = answer[answer.rindex(REPLACE) + len(REPLACE) :]
    return num_marks > len(replacements(answer)) or num_marks >= MAX_BLOCKS or rest.lstrip().startswith(("```", "~~~"))


def apply_blocks(path: str, text: str, span: Span | None, answer: str, may_lose: set[str] | None = None) -> (
    Edited | EditMiss
):  # fmt: skip
    """The file's text with the blocks of an answer applied.

    Args:
        path: decides the language.
        text: of the whole file.
        span: the function that may be changed; None for all of the file.
        answer: what the model wrote.
        may_lose: public names that may be gone afterwards.
    """
    if len(answer) > MAX_ANSWER_CHARS:
        return EditMiss("The answer was far too long. Write only the blocks of what changes.")
    blocks = replacements(answer)
    if not blocks:
        return EditMiss(f"There is no complete block in the answer. {FORM}")
    if len(blocks) > MAX_BLOCKS:
        return EditMiss(f"These are {len(blocks)} blocks. Write at most {MAX_BLOCKS}, of what must be changed only.")
    lines = split_lines(text)
    first, last = (span.first_line - 1, span.last_line) if span else (0, len(lines))
    bare = [line.rstrip("\r\n") for line in lines]
    placed: list[tuple[int, int, tuple[str, ...]]] = []
    for block in blocks:
        place = _place(bare, first, last, block)
        if isinstance(place, EditMiss):
            return place
        placed.append(place)
    placed.sort(key=lambda place: place[:2])
    for one, other in pairwise(placed):
        if other[0] < one[1]:
            return EditMiss(f"Two blocks change line {other[0] + 1}. Make one block of them.")
    newline = "\r\n" if lines and lines[0].endswith("\r\n") else "\n"
    for start, end, new in reversed(placed):
        lines[start:end] = [line + newline for line in new]
    result = "".join(lines)
    if not text.endswith(("\n", "\r")) and result.endswith(newline):
        result = result.removesuffix(newline)
    return _complaint(path, text, span, result, may_lose or set()) or Edited(result)


def _place(lines: list[str], first: int, last: int, block: Replacement) -> tuple[int, int, tuple[str, ...]] | EditMiss:
    """Where a block's SEARCH is: start, end (exclusive), and the new lines."""
    here: list[tuple[int, int, tuple[str, ...]]] = []
    for blanks_count in (True, False):  # trailing blanks are invisible to whoever copies
        seen = lines if blanks_count else [line.rstrip() for line in lines]
        for search, new in block.readings:
            wanted = [line if blanks_count else line.rstrip() for line in search]
            if any(line.strip() for line in wanted):
                here += [(at, at + len(wanted), new) for at in _occurrences(seen, first, last, wanted)]
        if here:
            break
    if len(here) == 1:
        return here[0]
    if len({at for at, *_ in here}) < len(here):
        return EditMiss(
            f"A line {DIVIDER} of the code itself makes unclear where SEARCH ends. Leave it out of the block."
        )
    if here:
        where = ", ".join(str(at + 1) for at, *_ in here[:5])
        return EditMiss(
            f"The SEARCH text is there {len(here)} times (lines {where}): copy the lines above or below as well, so "
            "that it is one place only."
        )
    search = block.readings[0][0]
    if not any(line.strip() for line in search):
        return EditMiss("SEARCH is empty. Copy the lines that change, or the line after which something is added.")
    return EditMiss(
        f"The SEARCH text is not in the code: {search[0].strip()[:100]!r}. The nearest lines are:\n"
        f"{_nearest(lines[first:last], search)}\nCopy lines exactly, with their indentation."
    )


def _occurrences(lines: list[str], first: int, last: int, wanted: list[str]) -> Iterator[int]:
    size = len(wanted)
    for at in range(first, last - size + 1):
        if lines[at] == wanted[0] and lines[at : at + size] == wanted:
            yield at


def _nearest(lines: list[str], search: tuple[str, ...]) -> str:
    """The lines of a text that are most like those that were looked for."""
    wanted = [line.strip() for line in search if line.strip()]
    known = {line: number for number, line in reversed(list(enumerate(line.strip() for line in lines)))}
    close = [difflib.get_close_matches(line, known, n=1, cutoff=0.5) for line in wanted[:8]]
    # those that are there exactly tell the place best
    at = next((known[line] for line in wanted if line in known and len(line) > 8), None)
    if at is None:
        at = next((known[match[0]] for match in close if match), 0)
    start = max(at - 1, 0)
    return "\n".join(lines[start : start + max(min(len(search), 12), _NEAREST_LINES)])


def _complaint(path: str, before: str, span: Span | None, after: str, may_lose: set[str]) -> EditMiss | None:
    """What the changed text lacks that it must have."""
    if not is_python(path):
        if is_source(path) and num_errors(path, after) > num_errors(path, before):
            return EditMiss(f"With these changes the code does not parse: {first_error(path, after)}.")
        return None
    was, now = parse(before), parse(after)
    if now is None:
        # a file that is no program yet may be repaired piece by piece
        return EditMiss(f"With these changes: {syntax_complaint(after)}") if was else None
    if was is None:
        return None
    if lost := sorted(lost_names(was, now) - may_lose):
        return EditMiss(f"These changes leave out {', '.join(lost[:5])}. Keep what others may use.")
    if span is not None:
        old = node_at(was, span)
        found = [node_at(now, other) for other in functions(now) if other.qualname == span.qualname]
        if not found or found[-1] is None:
            return None if span.name in may_lose else EditMiss(f"Keep the function {span.name} and its name.")
        if old is not None and span.name not in may_lose and (said := signature_complaint(old, found[-1])):
            return EditMiss(said)
    return None
