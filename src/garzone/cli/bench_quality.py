"""`garzone bench quality`: flags to settings, progress to the terminal, figures to a table or a document."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import rich
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from garzone import config, wiring
from garzone.bench.quality import Bench, Outcome, Record, Settings
from garzone.bench.quality_javascript import javascript_suite
from garzone.bench.quality_plot import draw
from garzone.bench.quality_suites import JAVASCRIPT, BenchTask, Reference, load_references, load_tasks, sample
from garzone.bench.quality_tables import Summary, rows, summarise
from garzone.core.errors import UsageError


def measure(given: dict[str, Any]) -> None:
    """Run the bench as the flags say, and print what came of it.

    Raises:
        UsageError: flags that do not go together, or a directory without the suite.
        SystemExit: 1 where an answer was proved that the grading refuses.
    """
    out: Path | None = given["out"]
    if given["plot"] and out is None:
        raise UsageError("--plot draws the records in --out: name a directory")
    settings = config.load()
    chosen = Settings(
        suite=given["suite"],
        mode=given["mode"] or "worker",
        model=given["model"] or settings.model,
        num_candidates=given["candidates"],
        max_rounds=given["rounds"],
        timeout_s=given["timeout"],
        hostile_per_task=given["hostile"],
        parallel=given["parallel"],
    )
    tasks, references = _suite(given, chosen)
    record = Record(out / chosen.file_name if out else None, chosen)
    tell = _Progress(chosen, tasks, record)

    async def run() -> list[Outcome]:
        sandbox = wiring.open_sandbox()
        async with contextlib.AsyncExitStack() as stack:
            generator = None
            if chosen.mode in ("worker", "alone"):
                generator = await wiring.open_generator(settings, given["backend"])
                stack.push_async_callback(generator.aclose)
            bench = Bench(chosen, references, sandbox, generator, node_path=given["node_path"])
            return await bench.run(tasks, record, jobs=given["jobs"], tell=tell)

    with tell.bar:
        outcomes = asyncio.run(run())
    summary = summarise(chosen, outcomes)
    _print(summary, outcomes, as_json=given["as_json"])
    if given["plot"] and out is not None:
        draw(out, out / "quality.png")
    if summary.false_proofs:
        raise SystemExit(1)


def _suite(given: dict[str, Any], chosen: Settings) -> tuple[list[BenchTask], dict[str, Reference]]:
    """The tasks that were asked for, and their right answers where something needs them."""
    data, chosen_by = given["data"], {name: given[name] for name in ("limit", "seed", "skip")}
    if chosen.suite == JAVASCRIPT:
        typed = load_tasks(data, "humaneval_ts")
        tasks, references = javascript_suite(typed, load_references(data, "humaneval_ts"), given["node_path"])
        return sample(tasks, **chosen_by), references
    tasks = load_tasks(data, chosen.suite, **chosen_by)
    needs_references = chosen.mode in ("oracle", "saboteur") or chosen.suite == "testgen_humaneval"
    return tasks, load_references(data, chosen.suite) if needs_references else {}


class _Progress:
    """A bar on a terminal, a line a task elsewhere."""

    def __init__(self, settings: Settings, tasks: Sequence[BenchTask], record: Record) -> None:
        self._record = record
        self._total = len(tasks)
        self._console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.bar = Progress(
            *columns,
            TextColumn("{task.fields[so_far]}"),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        done = sum(task.id in record.outcomes for task in tasks)
        self._row = self.bar.add_task(f"{settings.suite} {settings.mode}", total=len(tasks), completed=done, so_far="")

    def __call__(self, outcome: Outcome) -> None:
        outcomes = self._record.outcomes
        self.bar.update(self._row, advance=1, so_far=f"{sum(each.passed for each in outcomes.values())} right")
        if not self._console.is_terminal:
            word = outcome.error or f"{outcome.verdict}, {'right' if outcome.passed else 'wrong'}"
            click.echo(f"{len(outcomes)}/{self._total} {outcome.id}: {word}", err=True)


def _print(summary: Summary, outcomes: list[Outcome], *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(summary.to_json(), indent=2))
        return
    settings = summary.settings
    who = settings.model if settings.mode in ("worker", "alone") else settings.mode
    table = Table(title=f"{settings.suite}: {who}, {settings.mode}", box=None, show_header=False, title_justify="left")
    for name, value in rows(summary):
        table.add_row(name, value)
    rich.print(table)
    for false in summary.false_proofs:
        rich.print(f"[bold red]false proof[/] {false}")
    for outcome in [each for each in outcomes if each.error][:5]:
        rich.print(f"[yellow]error[/] {outcome.id}: {outcome.error}")
