"""Which of several programs behave alike, on inputs near those that a test shows. Proves nothing: it only chooses.

A thin check lets many wrong answers pass, each wrong in its own way, while right ones agree with each other.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from garzone.agent.examples import facts_of, python_of
from garzone.agent.harness import script
from garzone.agent.stage import Stage

AGREEMENT_S = 30.0
MIN_DISTINCT = 4  # inputs, before an output that never changes says something


@dataclass(frozen=True, slots=True)
class Agreement:
    """The program to take by its number, how many behave as it does, and on how many inputs all were compared."""

    number: int
    num_alike: int
    num_inputs: int


async def most_agreed(
    stage: Stage,
    path: str,
    programs: Sequence[str],
    inputs: Sequence[tuple[str, str]] = (),
    *,
    names: Sequence[str] = (),
    times: Sequence[int] = (),
) -> Agreement | None:
    """The first of the largest group of programs that do the same; those that ignore their input come last.

    Args:
        stage: where they run.
        path: the Python file each program is a text of, from the top level.
        programs: the texts.
        inputs: names of functions and literal arguments, which are varied.
        names: where there are no such inputs, functions whose docstrings and annotations say what they take.
        times: how often each was written; once, where nothing is said.

    Returns:
        None where nothing could be compared.
    """
    prefix = stage.repository.prefix
    shown = path.removeprefix(f"{prefix}/") if prefix else path
    given = {"inputs": [list(each) for each in inputs], "names": list(names)}
    spec = json.dumps({"path": shown, "programs": list(programs), **given})
    files = {name: script(name) for name in ("agree.py", "make_cases.py", "shown.py")} | {"spec.json": spec.encode()}
    command = f'{python_of(stage)} "$GARZONE_HARNESS/agree.py" "$GARZONE_HARNESS/spec.json"'
    run = await stage.run(command, {}, wall_s=AGREEMENT_S, harness=files, probed=False)
    outcomes = cast("list[list[str] | None]", facts_of(run).get("outcomes") or [])
    if len(outcomes) != len(programs) or not any(outcomes):
        return None
    number = preferred(outcomes, times or [1] * len(programs))
    chosen = outcomes[number] or []
    return Agreement(number, sum(each == chosen for each in outcomes), len(chosen))


def preferred(outcomes: Sequence[Sequence[str] | None], times: Sequence[int]) -> int:
    """Which of the programs to take.

    Args:
        outcomes: what each did with the same inputs; None where it did not come to an end.
        times: how often each was written: what a model says again it is surer of.
    """
    groups: Counter[tuple[str, ...]] = Counter()
    for did, count in zip(outcomes, times, strict=True):
        groups[tuple(did or ())] += count

    def rank(number: int) -> tuple[bool, bool, int, int, int]:
        did = tuple(outcomes[number] or ())
        ignores_input = len(did) >= MIN_DISTINCT and len(set(did)) == 1
        num_raised = sum(each.startswith("raises ") for each in did)
        return bool(did), not ignores_input, groups[did], -num_raised, -number

    return max(range(len(outcomes)), key=rank)
