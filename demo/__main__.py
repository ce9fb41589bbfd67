"""`python -m demo`: fetch a 98 MB model, let it repair three small repositories, print what came of each.

Real inference through the public API; nothing is canned. The samples are copied; the copies stay, to be looked at.
Exit code 0: at least two of three repairs were proved; 1: fewer; 3: something is missing here.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.syntax import Syntax

from garzone import Garzone, config, wiring
from garzone.cli.progress import TaskProgress
from garzone.cli.report import plain_report, render_report, tokens_per_second
from garzone.core.errors import GarzoneError, ModelNotFound
from garzone.core.task import Report, Task, TaskKind, Verdict

MODEL = "smollm2:135m"
SAMPLES = Path(__file__).parent / "samples"
CANDIDATES = 8
ENOUGH = 2


@dataclass(frozen=True)
class Sample:
    """A repository with a bug, and what somebody who met the bug would say."""

    name: str
    file: str
    instruction: str


ALL = (
    Sample("inventory", "inventory.py", "remaining() must be the stock minus what was sold"),
    Sample("pager", "pager.py", "count_pages() never returns more than 1"),
    Sample("textstats", "textstats.py", "find_max() returns the smallest number"),
)


async def repair_all(console: Console, errors: Console, directory: Path) -> list[Report]:
    """Repair a copy of every sample and print each report as it comes."""
    reports: list[Report] = []
    async with Garzone(model=MODEL) as garzone:
        for number, sample in enumerate(ALL, 1):
            repository = directory / sample.name
            make_repository(SAMPLES / sample.name, repository)
            console.rule(f"{number} of {len(ALL)}: {sample.name}", style="dim")
            console.print(f"[bold]{sample.instruction}[/]   check: pytest -q", highlight=False)
            with TaskProgress(errors, num_candidates=CANDIDATES, max_rounds=2) as progress:
                report = await garzone.delegate(
                    "fix",
                    sample.instruction,
                    repo=repository,
                    files=[sample.file],
                    check="pytest -q",
                    candidates=CANDIDATES,
                    on_event=progress,
                )
            task = Task(report.task_id, TaskKind.FIX, sample.instruction, repository)
            if report.verdict is Verdict.PROVED:
                console.print(Syntax(report.patch, "diff", background_color="default"))
            if console.is_terminal:
                console.print(render_report(task, report, generation_s=progress.generation_s))
            else:
                print(plain_report(task, report, generation_s=progress.generation_s), flush=True)
            speed = tokens_per_second(report, progress.generation_s)
            console.print(f"{speed:.1f} tok/s\n" if speed else "", highlight=False)
            reports.append(report)
    return reports


def make_repository(source: Path, destination: Path) -> None:
    """A fresh git repository with one commit of a sample."""
    shutil.copytree(source, destination, ignore=shutil.ignore_patterns("__pycache__", ".pytest_cache"))
    git = ["git", "-C", str(destination), "-c", "user.name=garzone", "-c", "user.email=demo@garzone.invalid"]
    for arguments in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "A module with a bug"]):
        subprocess.run([*git, *arguments], check=True)  # noqa: S603 - our own words


def ensure_model() -> None:
    """Pull the model unless it is here, exactly as a person would.

    Raises:
        ModelNotFound: it could not be pulled; `garzone pull` has said why.
    """
    with contextlib.suppress(ModelNotFound):
        wiring.open_store(config.load()).find(MODEL)
        return
    command = [sys.executable, "-m", "garzone", "pull", MODEL]
    if subprocess.run(command, check=False).returncode:  # noqa: S603 - our own words
        raise ModelNotFound(MODEL, "and pulling it failed (see above)")


def main() -> int:
    """Run the demo; returns the exit code."""
    console, errors = Console(), Console(stderr=True)
    if not console.is_terminal:
        console = Console(width=120)
    started = time.monotonic()
    try:
        if importlib.util.find_spec("pytest") is None:
            errors.print("demo: the samples' checks need pytest: run `make demo`, which installs it")
            return 3
        ensure_model()
        directory = Path(tempfile.mkdtemp(prefix="garzone-demo-"))
        reports = asyncio.run(repair_all(console, errors, directory))
    except KeyboardInterrupt:
        errors.print("interrupted")
        return 130
    except GarzoneError as error:
        errors.print(f"demo: {error}", markup=False)
        return error.exit_code
    num_proved = sum(report.verdict is Verdict.PROVED for report in reports)
    took_s = time.monotonic() - started
    console.print(
        f"took {took_s:.0f} s; the repositories are in {directory}; what it saved: garzone savings", highlight=False
    )
    console.print(f"{num_proved} of {len(ALL)} proved", style="bold green" if num_proved >= ENOUGH else "bold red")
    return 0 if num_proved >= ENOUGH else 1


if __name__ == "__main__":
    sys.exit(main())
