"""Compares what functions do before and after a change, on inputs recorded while the tests ran. Python only."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from garzone.agent.examples import python_of
from garzone.agent.harness import script
from garzone.agent.stage import Stage

REPLAY_S = 40.0
_RUNNER = re.compile(
    r"^(?P<settings>(?:\w+=\S+ )*)\S*?(?:python[\d.]* -m )?(?:\S*/)?(pytest|unittest)(?P<rest>(?: \S+)*)$"
)


@dataclass(frozen=True, slots=True)
class Difference:
    """One input on which a function does something else than before."""

    function: str
    arguments: str
    before: str
    after: str

    def __str__(self) -> str:
        was, now = self.before.partition(" leaving ")[0], self.after.partition(" leaving ")[0]
        if was == now:  # only what became of the arguments differs
            was, now = self.before, self.after
        return f"{self.function}{self.arguments} {was[:160]} before and {now[:160]} now"


@dataclass(frozen=True, slots=True)
class Comparison:
    """How many inputs were compared, of which functions, and where the outcomes differ."""

    compared: int
    functions: frozenset[str]
    differences: tuple[Difference, ...]


class Recorder:
    """Records once what the tests call in a file, then compares changed versions with the code as it is."""

    def __init__(self, stage: Stage, path: str) -> None:
        self._stage, self._path = stage, path
        self._calls: bytes | None = None
        self._before: dict[tuple[int, str, str, int], str] = {}

    async def record(self, check: str) -> bool:
        """Run the check and keep the calls; False where the command is not one that can be watched."""
        found = _RUNNER.match(check)
        if not found:
            return False
        module, rest = found[2], re.sub(r" -x\b", "", found["rest"])
        stage = self._stage
        command = (
            f'{found["settings"]}{python_of(stage)} "$GARZONE_HARNESS/record_calls.py" {self._shown} -m {module}{rest}'
        )
        files = {"record_calls.py": script("record_calls.py")}
        run = await stage.run(command, {}, harness=files, probed=False, wall_s=2 * stage.wall_s)
        if not run.out:
            return False
        self._calls = run.out
        # twice, so that what is different every time (clocks, random numbers) is left out
        first, second = await self._replay({}), await self._replay({})
        self._before = {key: said for key, said in first.items() if second.get(key) == said}
        return bool(self._before)

    @property
    def _shown(self) -> str:
        prefix = self._stage.repository.prefix
        return shlex.quote(self._path.removeprefix(f"{prefix}/") if prefix else self._path)

    @property
    def functions(self) -> frozenset[str]:
        """Functions of which calls were recorded."""
        return frozenset(name for _, name, _, _ in self._before)

    async def compare(
        self, contents: Mapping[str, bytes], gone: Sequence[str] = (), renamed: Mapping[str, str] | None = None
    ) -> Comparison:
        """Replay the calls on changed code.

        Args:
            contents: the change.
            gone: functions that the task lets disappear; they are not compared.
            renamed: old -> new name of those that are called otherwise now.
        """
        after = await self._replay(contents, renamed or {})
        keys = [key for key in self._before if key[1] not in gone]
        differences = [
            Difference(key[1], key[2], self._before[key], after.get(key, "could not be called"))
            for key in keys
            if after.get(key) != self._before[key]
        ]
        return Comparison(len(keys), frozenset(key[1] for key in keys), tuple(differences))

    async def _replay(
        self, contents: Mapping[str, bytes], renamed: Mapping[str, str] | None = None
    ) -> dict[tuple[int, str, str, int], str]:
        assert self._calls is not None
        files = {"replay_calls.py": script("replay_calls.py"), "calls": self._calls}
        command = f'{python_of(self._stage)} "$GARZONE_HARNESS/replay_calls.py" {self._shown} "$GARZONE_HARNESS/calls"'
        names = {"GARZONE_RENAMED": json.dumps(dict(renamed or {}))}
        run = await self._stage.run(command, contents, harness=files, probed=False, wall_s=REPLAY_S, environment=names)
        found: dict[tuple[int, str, str, int], str] = {}
        for number, name, arguments, said in _results(run.out):
            turn = 0
            while (number, name, arguments, turn) in found:
                turn += 1
            found[number, name, arguments, turn] = said
        return found


def _results(out: bytes) -> list[tuple[int, str, str, str]]:
    try:
        facts: Any = json.loads(out)
        listed = cast("list[list[Any]]", facts["results"])
        return [(int(n), str(name), str(arguments), str(said)) for n, name, arguments, said in listed]
    except (ValueError, KeyError, TypeError, RecursionError):
        return []
