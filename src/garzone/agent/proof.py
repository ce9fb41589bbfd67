"""Runs the check on the code as it is and on candidates, always in a fresh scene, and says what each run shows.

Does not write candidates and does not choose among them.
"""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from garzone.agent.evidence import Evidence, contradictions, read_evidence
from garzone.agent.scene import Scene, Traces
from garzone.agent.target import is_protected
from garzone.agent.vet import objections
from garzone.agent.worktree import Repository, Worktree
from garzone.core.errors import CheckNotFound
from garzone.core.ports import Sandbox, SandboxLimits, SandboxResult, SandboxView

INSTALLED = (".venv", "venv", "node_modules")  # not tracked, but what a project's check runs with
MAX_PINNED = 200  # mounts; the comparison after the run covers the rest
NOT_FOUND, NOT_EXECUTABLE = 127, 126  # POSIX shells
PYTEST_USAGE, PYTEST_NO_TESTS = 4, 5  # pytest.ExitCode


@dataclass(frozen=True, slots=True)
class Run:
    """One run of the check: how it ended, what the tests recorded, what it left behind."""

    result: SandboxResult
    evidence: Evidence
    traces: Traces

    @property
    def passed(self) -> bool:
        """The command said so; whether it may be believed is another question."""
        return self.result.exit_code == 0 and not self.result.timed_out


@dataclass(frozen=True, slots=True)
class Trial:
    """A candidate's run. `doubts` say why a passing check proves nothing; none means it is a proof."""

    run: Run
    doubts: tuple[str, ...]

    @property
    def proved(self) -> bool:
        """The check passed and nothing stands against it."""
        return self.run.passed and not self.doubts


class Prover:
    """Runs one check for one task."""

    def __init__(self, worktree: Worktree, sandbox: Sandbox, check: str, wall_s: float, tracked: Sequence[str]) -> None:
        self._repository: Repository = worktree.repository
        self._sandbox = sandbox
        self._check = check
        self._limits = SandboxLimits(wall_s=wall_s, cpu_s=max(int(wall_s * 2), 1))
        self._scene = Scene(worktree.path, worktree.workshop / "scene")
        self._evidence = worktree.workshop / "evidence"
        self._evidence.mkdir(mode=0o777)
        self._protected = [name for name in tracked if is_protected(name)]

    async def before(self) -> Run:
        """The check on the code as it is.

        Raises:
            CheckNotFound: the command, or the module `python -m` names, is not there; or it runs no test at all.
        """
        run = await self._run(None, b"")
        self._must_exist(run)
        return run

    async def attempt(self, path: str, old: tuple[bytes, str], new: tuple[bytes, str], before: Run) -> Trial:
        """The check with one file changed.

        Args:
            path: the file, relative to the top level.
            old: its bytes and text at the commit.
            new: its bytes and text with the change.
            before: the run on the code as it is.
        """
        run = await self._run(path, new[0])
        doubts = [f"the change {what}" for what in objections(path, old[1], new[1])]
        if run.passed:
            doubts += contradictions(before.evidence, run.evidence, path)
            doubts += [f"the run changed {name}" for name in run.traces.changed[:3]]
            doubts += [f"the run created {name}" for name in run.traces.added if _steers(name)]
        if not self._sandbox.isolated:
            doubts.append("it ran without a sandbox")
        return Trial(run, tuple(doubts))

    async def _run(self, path: str | None, content: bytes) -> Run:
        self._scene.prepare(path, content)
        record = self._evidence / "record"
        record.write_bytes(b"")
        record.chmod(0o666)
        pinned = [name for name in self._protected if name != path][:MAX_PINNED]
        result = await self._sandbox.run(self._check, self._scene.path, self._limits, self._view(record, pinned))
        return Run(self._plain(result), read_evidence(record), self._scene.inspect())

    def _view(self, record: Path, pinned: Sequence[str]) -> SandboxView:
        top, prefix = self._repository.top, self._repository.prefix
        roots = list(dict.fromkeys([top / prefix, top]))
        installed = [root / name for root in roots for name in INSTALLED if (root / name).is_dir()]
        programs = [place / ("bin" if "venv" in place.name else ".bin") for place in installed]
        probe = Path(str(files("garzone.agent") / "probe"))
        return SandboxView(
            appears_at=top,
            start_in=prefix,
            read_only=(probe, *installed),
            pinned=tuple(pinned),
            writable=(self._evidence,),
            path_first=tuple(place for place in programs if place.is_dir()),
            path_last=(Path(sys.prefix) / "bin",),
            environment={"PYTHONPATH": str(probe), "GARZONE_EVIDENCE": str(record)},
        )

    def _plain(self, result: SandboxResult) -> SandboxResult:
        """The result with paths as a person would write them."""
        output = result.output
        for place in (self._scene.path, self._repository.top):
            output = output.replace(f"{place}/", "").replace(str(place), ".")
        return SandboxResult(result.exit_code, output, result.duration_ms, result.timed_out, result.output_truncated)

    def _must_exist(self, run: Run) -> None:
        code, output = run.result.exit_code, run.result.output
        last = output.strip().splitlines()[-1][:200] if output.strip() else "no output"
        if code in (NOT_FOUND, NOT_EXECUTABLE):
            raise CheckNotFound(f"check not found: `{self._check}` cannot be started ({last}); {self._advice()}")
        module = re.search(r"No module named '?([\w.]+)'?\s*$", output)
        if code != 0 and module and re.search(rf"-m\s+{re.escape(module[1])}\b", self._check):
            raise CheckNotFound(f"check not found: `{self._check}`: Python has no module {module[1]}; {self._advice()}")
        ran_nothing = not run.evidence.outcomes and "pytest" in self._check
        if ran_nothing and code == PYTEST_NO_TESTS:
            raise CheckNotFound(f"`{self._check}` runs no test, so it can prove nothing: name a check that does")
        if ran_nothing and code == PYTEST_USAGE:
            raise CheckNotFound(f"`{self._check}` is not understood by pytest: {last}")

    def _advice(self) -> str:
        try:
            word = shlex.split(self._check)[0]
        except (ValueError, IndexError):
            word = ""
        if word and shutil.which(word):
            return (
                f"{shutil.which(word)} exists, but the sandbox shows only the system, the toolchains on PATH and .venv"
            )
        return "install it, or name another with --check"


def _steers(name: str) -> bool:
    """Whether a file a run created could have steered the run itself."""
    return is_protected(name) and not any(
        part.startswith(".pytest_cache") or part == "__pycache__" for part in name.split("/")
    )
