"""`garzone bench delegation`: shows the numbers of `bench.delegation`."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from garzone import config, wiring
from garzone.bench import delegation
from garzone.bench.delegation import DelegationReport


def measure(streams: int, success_rate: float, model: str | None, out: Path | None, as_json: bool) -> None:
    """Measure, show, and exit with code 1 if a number misses its goal."""
    settings = config.load()
    counter = wiring.open_counter(settings, model or settings.model)

    def count(text: str) -> int:
        return asyncio.run(counter.count(text))

    count("")  # settles how it counts
    with Console(stderr=True).status("simulating"):
        report = delegation.measure(count, counter.method, num_streams=streams, success_rate=success_rate)
    document = json.dumps(report.to_json(), indent=2)
    if out:
        out.mkdir(parents=True, exist_ok=True)
        (out / "delegation.json").write_text(document + "\n")
    if as_json:
        click.echo(document)
    else:
        _show(Console(width=None if Console().is_terminal else 120), report)
    if any(number.ok is False for number in report.numbers):
        raise click.exceptions.Exit(1)


def _show(console: Console, report: DelegationReport) -> None:
    table = Table("", "measured", "goal", "", box=None)
    for number in report.numbers:
        value = f"{number.value:.3f}" if number.value < 10 and number.value % 1 else f"{number.value:g}"
        table.add_row(number.name, f"{value} {number.unit}", number.goal, "ok" if number.ok else "MISSED")
    console.print(table)
    console.print(f"tokens counted by {report.counted_by}\n", highlight=False)
    table = Table("simulated streams of 2,000", "regret ratio", "worst", "calibration", "worst", "of optimum missed", "delegated", box=None)  # fmt: skip  # noqa: E501
    for stream in report.streams:
        ratios = (stream.regret_ratio, stream.worst_regret_ratio)
        errors = (stream.calibration_error, stream.worst_calibration_error)
        cells = [f"{value:.3f}" for value in (*ratios, *errors)]
        table.add_row(stream.name, *cells, f"{stream.missed:.1%}", f"{stream.delegated:.0%}")
    console.print(table)
    console.print()
    table = Table("cost against alone: tasks", "bytes each", "one by one", "with the session", "in one message", "with the session", box=None)  # fmt: skip  # noqa: E501
    together = {(batch.num_tasks, batch.file_tokens): batch for batch in report.batches if batch.together}
    for batch in report.batches:
        if not batch.together:
            other = together[batch.num_tasks, batch.file_tokens]
            ratios = (batch.ratio, batch.whole_ratio, other.ratio, other.whole_ratio)
            table.add_row(str(batch.num_tasks), f"{batch.file_tokens * 4:,}", *(f"{ratio:.2f}" for ratio in ratios))
    console.print(table)
