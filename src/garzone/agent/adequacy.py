"""How much a check notices: how many mutants it kills, which lines it reaches. Runs on the stage; judges nothing."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from garzone.agent.examples import facts_of, python_of
from garzone.agent.harness import script
from garzone.agent.mutants import Mutant
from garzone.agent.stage import Stage
from garzone.agent.target import is_python

MUTANT_S, ALL_MUTANTS_S = 2.0, 60.0
NOT_ENDED = 124  # what `run_mutants.py` says of tests that it had to stop
_TROUBLE = {0: "", NOT_ENDED: "there was not time enough to run the tests again"}
MAX_SLOW_MUTANTS = 16  # where every mutant costs a run of the command


@dataclass(frozen=True, slots=True)
class Kills:
    """Which mutants were noticed. `tried` leaves out those there was no time for.

    `trouble` says why the tests could not even be relied on with the code as it is; "" where they could.
    """

    killed: tuple[Mutant, ...]
    survived: tuple[Mutant, ...]
    trouble: str = ""

    @property
    def tried(self) -> int:
        """How many were tried."""
        return len(self.killed) + len(self.survived)

    @property
    def score(self) -> float:
        """Share that was noticed; 0 where nothing was tried."""
        return len(self.killed) / self.tried if self.tried else 0.0


async def kill_with_tests(
    stage: Stage, path: str, mutants: Sequence[Mutant], tests: Sequence[str], contents: Mapping[str, bytes]
) -> Kills:
    """Run Python test files with pytest on mutants of a file, all in one warm interpreter.

    Args:
        stage: where.
        path: the mutated file, from the top level.
        mutants: its wrong versions.
        tests: test files, from the top level.
        contents: files that are added or replaced besides.
    """
    prefix = stage.repository.prefix

    def shown(name: str) -> str:
        return name.removeprefix(f"{prefix}/") if prefix else name

    spec = {
        "path": shown(path),
        "mutants": [mutant.text for mutant in mutants],
        "limit_s": MUTANT_S,
        "total_s": ALL_MUTANTS_S,
    }
    files = {"run_mutants.py": script("run_mutants.py"), "spec.json": json.dumps(spec).encode()}
    names = " ".join(shlex.quote(shown(name)) for name in tests)
    python = python_of(stage)
    command = f'{python} "$GARZONE_HARNESS/run_mutants.py" "$GARZONE_HARNESS/spec.json" {names}'
    run = await stage.run(command, contents, wall_s=ALL_MUTANTS_S + 20, harness=files, probed=False)
    facts = facts_of(run)
    codes: list[int | None] = facts.get("codes") or []
    pairs = [(m, code) for m, code in zip(mutants, codes, strict=False) if code is not None]
    return Kills(
        tuple(m for m, code in pairs if code != 0),
        tuple(m for m, code in pairs if code == 0),
        _TROUBLE.get(facts.get("clean", NOT_ENDED), "the tests do not pass twice"),
    )


async def kill_with_command(
    stage: Stage, path: str, mutants: Sequence[Mutant], command: str, contents: Mapping[str, bytes]
) -> Kills:
    """Run a command on mutants of a file, a run each, several at once."""
    step = max(len(mutants) / MAX_SLOW_MUTANTS, 1.0)
    chosen = [mutants[int(i * step)] for i in range(min(len(mutants), MAX_SLOW_MUTANTS))]
    runs = await asyncio.gather(
        *(
            stage.run(command, {**contents, path: mutant.text.encode()}, wall_s=min(stage.wall_s, 20.0), probed=False)
            for mutant in chosen
        )
    )
    pairs = list(zip(chosen, runs, strict=True))
    return Kills(tuple(m for m, run in pairs if not run.passed), tuple(m for m, run in pairs if run.passed))


_PYTEST = re.compile(r"^(?P<settings>(?:\w+=\S+ )*)(?:\S*python[\d.]* -m )?(?:\S*/)?pytest(?P<rest>(?: \S+)*)$")
_UNITTEST = re.compile(r"^(?P<settings>(?:\w+=\S+ )*)\S*python[\d.]* -m unittest(?P<rest>(?: \S+)*)$")


async def lines_reached(stage: Stage, path: str, command: str, contents: Mapping[str, bytes]) -> set[int] | None:
    """Lines of a Python file that a command reaches; None where the command is not one that can be watched."""
    if not is_python(path):
        return None
    for pattern, module in ((_PYTEST, "pytest"), (_UNITTEST, "unittest")):
        if found := pattern.match(command):
            prefix = stage.repository.prefix
            shown = path.removeprefix(f"{prefix}/") if prefix else path
            rest = re.sub(r" -x\b", "", found["rest"])
            start = f'{found["settings"]}{python_of(stage)} "$GARZONE_HARNESS/run_covered.py"'
            watched = f"{start} {shlex.quote(shown)} -m {module}{rest}"
            files = {"run_covered.py": script("run_covered.py")}
            run = await stage.run(watched, contents, harness=files, probed=False)
            lines: list[int] | None = facts_of(run).get("lines")
            return set(lines) if lines is not None else None
    return None
