"""Runs commands on the code with files changed, each in a fresh scene inside the sandbox, several at once.

Does not know what a run proves: that is each kind's business (`proof.py` and `kinds/`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import sys
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path

from garzone.agent.evidence import Evidence, parse_evidence
from garzone.agent.recorder import Recorder
from garzone.agent.scene import Scene, Traces
from garzone.agent.target import is_protected, is_script
from garzone.agent.worktree import Repository, Worktree
from garzone.core.ports import Sandbox, SandboxLimits, SandboxResult, SandboxView
from garzone.core.task import Check

INSTALLED = (".venv", "venv", "node_modules")  # not tracked, but what a project's check runs with
# What tools keep below node_modules: vitest ends with an error where it cannot write its results there. The last three
# are vite's, and are made where it is installed; that costs a mount for every package.
CACHES, VITE_CACHES = (".cache", ".vite", ".vite-temp", ".vitest"), (".vite", ".vite-temp", ".vitest")
MAX_PINNED = 200  # mounts; the comparison after the run covers the rest
# V8 reserves 10 GiB of addresses, not of memory, for each WebAssembly memory; vitest has several
NODE_ADDRESS_BYTES = 64 << 30
MAX_OUT_BYTES = 64 << 20  # of what a harness script writes; more is not read


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a command: how it ended, what the tests recorded, what it left behind, what a harness wrote."""

    result: SandboxResult
    evidence: Evidence
    traces: Traces
    out: bytes = b""

    @property
    def passed(self) -> bool:
        """The command said so; whether it may be believed is another question."""
        return self.result.exit_code == 0 and not self.result.timed_out

    def as_check(self, command: str, before_exit_code: int | None = None) -> Check:
        """The run as a report shows it."""
        return Check(command, self.result.exit_code, self.result.duration_ms, before_exit_code)


@dataclass(slots=True)
class _Place:
    """A scene with the files its runs may write besides."""

    scene: Scene
    drawer: Path

    @property
    def record(self) -> Path:
        """Where the probe writes to: beside the drawer, so that a run cannot put another file in its place."""
        return self.drawer.parent / "record"


class Stage:
    """Runs commands for one task.

    Args:
        worktree: of the task; copies of it are what commands see.
        sandbox: where they run.
        tracked: the repository's files; those that decide what a check means cannot be written by a run.
        wall_s: the limit of one run where no other is given.
        width: how many runs may go on at once.
    """

    def __init__(
        self, worktree: Worktree, sandbox: Sandbox, tracked: Sequence[str], *, wall_s: float, width: int = 1
    ) -> None:
        self.repository: Repository = worktree.repository
        self.sandbox = sandbox
        self.wall_s = wall_s
        self._worktree = worktree
        self._protected = [name for name in tracked if is_protected(name)]
        has_node = any(name.rpartition("/")[2] == "package.json" for name in tracked)
        self._address_bytes = NODE_ADDRESS_BYTES if has_node else 0
        self._free: list[_Place] = []
        self._num_places = 0
        self._gate = asyncio.Semaphore(max(width, 1))

    @property
    def isolated(self) -> bool:
        """False when commands run without a sandbox."""
        return self.sandbox.isolated

    async def run(
        self,
        command: str,
        contents: Mapping[str, bytes] | None = None,
        *,
        wall_s: float | None = None,
        harness: Mapping[str, bytes] | None = None,
        environment: Mapping[str, str] | None = None,
        probed: bool = True,
        watched: Sequence[str] = (),
        visible: Sequence[Path] = (),
    ) -> Run:
        """Run a shell command on the code with some files' contents replaced or added.

        Args:
            command: as a person would type it in the task's directory.
            contents: path from the top level -> bytes.
            wall_s: limit in seconds.
            harness: our own files, name -> bytes, read-only for the command in `$GARZONE_HARNESS`. What is written to
                `$GARZONE_OUT` comes back as `Run.out`.
            environment: added to the command's.
            probed: whether Python records what its tests do.
            watched: files, from the top level, whose code is also watched for what a repair need not do
                (`probe/garzone_watch.py`, and `.cjs` for Node). That takes longer.
            visible: further places the command may read.
        """
        contents = contents or {}
        if watched:
            paths = os.pathsep.join(str(self.repository.top / name) for name in watched)
            watcher = files("garzone.agent") / "probe/garzone_watch.cjs"
            node = {"NODE_OPTIONS": f"--require={shlex.quote(str(watcher))}"} if any(map(is_script, watched)) else {}
            environment = {**(environment or {}), **node, "GARZONE_WATCH": paths}
        limit = wall_s or self.wall_s
        limits = SandboxLimits(wall_s=limit, cpu_s=max(int(limit * 2), 1), address_bytes=self._address_bytes)
        async with self._gate, self._place() as place:
            await asyncio.to_thread(place.scene.prepare, contents)
            async with Recorder(place.record) as recorder:
                view = await asyncio.to_thread(self._view, place, contents, harness or {}, environment or {}, probed)
                view = replace(view, read_only=(*view.read_only, *visible))
                result = await self.sandbox.run(command, place.scene.path, limits, view)
            traces = await asyncio.to_thread(place.scene.inspect)
            evidence = parse_evidence(bytes(recorder.raw))
            return Run(self._plain(result, place), evidence, traces, _head(place.drawer / "out"))

    @contextlib.asynccontextmanager
    async def _place(self) -> AsyncGenerator[_Place]:
        if self._free:
            place = self._free.pop()
        else:
            self._num_places += 1
            home = self._worktree.workshop / f"place{self._num_places}"
            (home / "drawer").mkdir(parents=True)
            (home / "drawer").chmod(0o777)
            place = _Place(Scene(self._worktree.path, home / "scene"), home / "drawer")
        yield place
        self._free.append(place)  # not after an exception: what broke off may have left anything

    def _view(
        self,
        place: _Place,
        contents: Mapping[str, bytes],
        harness: Mapping[str, bytes],
        environment: Mapping[str, str],
        probed: bool,
    ) -> SandboxView:
        out = place.drawer / "out"
        out.unlink(missing_ok=True)
        out.write_bytes(b"")
        out.chmod(0o666)
        shelf = place.drawer.parent / "harness"
        shelf.mkdir(exist_ok=True)
        for old in shelf.iterdir():
            old.unlink()
        for name, content in harness.items():
            (shelf / name).write_bytes(content)
            (shelf / name).chmod(0o644)
        pinned = [name for name in self._protected if name not in contents][:MAX_PINNED]
        top, prefix = self.repository.top, self.repository.prefix
        roots = list(dict.fromkeys([top / prefix, top]))
        installed = [root / name for root in roots for name in INSTALLED if (root / name).is_dir()]
        programs = [root / ("bin" if "venv" in root.name else ".bin") for root in installed]
        probe = Path(str(files("garzone.agent") / "probe"))
        variables = {"GARZONE_OUT": str(out), "GARZONE_HARNESS": str(shelf)}
        if probed:
            variables |= {"PYTHONPATH": str(probe), "GARZONE_EVIDENCE": str(place.record)}
        return SandboxView(
            appears_at=top,
            start_in=prefix,
            read_only=(probe, shelf, *installed),
            pinned=tuple(pinned),
            writable=(place.drawer, place.record),
            scratch=tuple(cache for root in installed if root.name == "node_modules" for cache in _caches(root)),
            path_first=tuple(root for root in programs if root.is_dir()),
            path_last=(Path(sys.prefix) / "bin",),
            environment={**variables, **environment},
        )

    def _plain(self, result: SandboxResult, place: _Place) -> SandboxResult:
        """The result with paths as a person would write them."""
        output = result.output
        for root in (place.scene.path, self.repository.top):
            output = output.replace(f"{root}/", "").replace(str(root), ".")
        return replace(result, output=output)


def _caches(modules: Path) -> list[Path]:
    """Where tools that are installed below a node_modules want to write."""
    has_vite = any((modules / name).is_dir() for name in ("vite", "vitest"))
    made = VITE_CACHES if has_vite else ()
    return [modules / name for name in CACHES if name in made or (modules / name).is_dir()]


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_OUT_BYTES)
    except OSError:
        return b""
