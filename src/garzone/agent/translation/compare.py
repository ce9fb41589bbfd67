"""Compares what a translation gives with what its source gives. Values in, sentences out; runs nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

from garzone.agent.translation import Case, Function, as_json
from garzone.agent.translation.types import emptied

TOLERANCE = 1e-9  # relative; both sides compute in IEEE doubles, but may add in another order


def differences(function: Function, results: Sequence[Case]) -> tuple[list[str], list[str]]:
    """Where a function gives something else, as sentences: for inputs like those its examples show, and for others.

    What a function is not meant for is not known for certain. A source whose examples are all bits says nothing of
    what it should do with words, so there a difference is no fault, and no proof either.
    """
    found: tuple[list[str], list[str]] = ([], [])
    for number, case in enumerate(function.cases):
        result = results[number] if number < len(results) else {"missing": True}
        if result.get("skipped"):
            continue  # after several calls that did not end, which are said
        if result.get("missing"):
            return [f"{function.name} is not there or no function"], []
        if said := _difference(function, case, result):
            found[bool(case.get("unlike"))].append(said)
    return found


def _difference(function: Function, case: Case, result: Case) -> str | None:
    call = f"{function.name}({', '.join(map(as_json, case['arguments']))[:200]})"
    if result.get("late"):
        return f"{call} does not end"
    if "raises" in case:
        if "throws" in result:
            return None
        return f"{call} must throw ({case['raises']} in Python), and gives {as_json(result.get('result'))[:120]}"
    wanted = as_json(case["result"])
    if "throws" in result:
        return f"{call} throws {result['throws']}, and must give {wanted[:120]}"
    given = emptied(function.result, result.get("result"))
    if same_value(case["result"], given):
        return None
    return f"{call} must give {wanted[:160]}, and gives {as_json(given)[:160]}"


def same_value(wanted: Any, given: Any) -> bool:
    """Whether two values that came through JSON are equal, numbers within rounding."""
    if isinstance(wanted, bool) or isinstance(given, bool) or wanted is None or given is None:
        return wanted is given
    if isinstance(wanted, int | float) and isinstance(given, int | float):
        return math.isclose(wanted, given, rel_tol=TOLERANCE, abs_tol=1e-12)
    if isinstance(wanted, list) and isinstance(given, list):
        ours, theirs = cast("list[Any]", wanted), cast("list[Any]", given)
        return len(ours) == len(theirs) and all(same_value(a, b) for a, b in zip(ours, theirs, strict=True))
    if isinstance(wanted, dict) and isinstance(given, dict):
        mine, other = cast("dict[str, Any]", wanted), cast("dict[str, Any]", given)
        return mine.keys() == other.keys() and all(same_value(mine[key], other[key]) for key in mine)
    return bool(wanted == given)
