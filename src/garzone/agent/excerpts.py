"""Cuts a long target down to the lines a task is about, and says what it leaves out. Text in, text out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from garzone.agent.context import Target
from garzone.agent.target import split_lines

STEPS = (400, 200, 100, 50)  # lines that are shown when all do not fit, from most to least
BESIDE = 3  # lines kept on each side of every place before any place gets more


@dataclass(frozen=True, slots=True)
class Excerpt:
    """`pieces` are runs of whole lines as they are in the file; `text` is what is shown, `left_out` what is not."""

    pieces: tuple[str, ...]
    text: str
    left_out: str = ""


def excerpt(target: Target, focus: Sequence[int] = (), max_lines: int | None = None) -> Excerpt:
    """The target's lines, those around the lines of `focus` (from 1, most important first) where not all are shown.

    Indentation stays, because what is shown is what an answer may copy.
    """
    lines = split_lines(target.source.text)
    first, last = (target.span.first_line, target.span.last_line) if target.span else (1, len(lines))
    if max_lines is None or last - first + 1 <= max_lines:
        code = "".join(lines[first - 1 : last])
        return Excerpt((code,), code)
    kept = _around([line for line in focus if first <= line <= last] or [first], first, last, max_lines)
    runs: list[list[int]] = []
    for number in sorted(kept):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    pieces = tuple("".join(lines[start - 1 : end]) for start, end in runs)
    shown: list[str] = []
    previous = first - 1
    for (start, end), piece in zip(runs, pieces, strict=True):
        shown += [_gap(previous + 1, start - 1), piece]
        previous = end
    shown.append(_gap(previous + 1, last))
    left_out = f"{last - first + 1 - len(kept)} of {last - first + 1} lines of {target.label}"
    return Excerpt(pieces, "".join(shown), left_out)


def _gap(first: int, last: int) -> str:
    return f"[... lines {first} to {last} are not shown ...]\n" if first <= last else ""


def _around(focus: Sequence[int], first: int, last: int, max_lines: int) -> set[int]:
    """Lines near the places, in equal shares; the first place gets what is left over."""
    kept: set[int] = set()
    places = list(dict.fromkeys(focus))[: max(max_lines // (2 * BESIDE + 1), 1)]
    for reach in (*range(BESIDE + 1), *range(BESIDE + 1, max_lines)):
        for place in places:
            for line in (place - reach, place + reach):
                if len(kept) >= max_lines:
                    return kept
                if first <= line <= last:
                    kept.add(line)
    return kept
