"""`garzone savings`: what the ledger adds up to. Reads and shows; the sums are `delegate.totals`'s."""

from __future__ import annotations

import json
import re
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from garzone import config, wiring
from garzone.core.errors import UsageError
from garzone.delegate import pricing
from garzone.delegate.ledger import Ledger
from garzone.delegate.reconcile import reconcile as reconcile_ledger
from garzone.delegate.totals import Totals, by, cumulative, total

BAR_CELLS = 24
_UNITS_S = {"h": 3600, "d": 86400, "w": 7 * 86400}


@click.command()
@click.option("--since", metavar="D", help="Only tasks since: 12h, 7d, 4w, or a date (2026-11-01).")
@click.option("--reconcile", is_flag=True, help="First read coordinators' transcripts for what was really billed.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Also write savings.png and .json here.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def savings(since: str | None, reconcile: bool, out: Path | None, as_json: bool) -> None:
    """Show what delegating saved, net of failures, against each alternative.

    --reconcile reads Claude Code's, OpenClaw's and Clawdbot's transcripts on this machine, and changes none of them.
    """
    settings = config.load()
    start = parse_since(since, time.time()) if since else 0.0
    ledger = wiring.open_ledger(settings)
    if reconcile:
        _reconcile(ledger)
    entries = ledger.entries(start)
    everything = total(entries)
    groups = by(entries, lambda entry: (entry.model, entry.kind))
    if as_json or out:
        document: dict[str, Any] = {
            "since": since,
            **everything.to_json(),
            "groups": [{"model": t.label[0], "kind": t.label[1], **t.to_json()} for t in groups],
            "estimated": True,
            "method": _method(everything),
            "price_source": pricing.PRICE_SOURCE,
        }
        if out:
            from garzone.bench.savings_plot import write_savings  # noqa: PLC0415 - needs the bench extra

            write_savings(entries, document, out)
        if as_json:
            click.echo(json.dumps(document, indent=2, ensure_ascii=False))
            return
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)
    if not entries:
        span = f" since {since}" if since else ""
        console.print(f"No task in the ledger{span} ({settings.ledger_path}). Tasks are booked by: garzone delegate")
        return
    _show(console, everything, groups)
    _show_course(console, cumulative(entries, pricing.ALONE))
    _show_method(console, everything)


def _method(everything: Totals) -> str:
    return pricing.method(" or ".join(everything.counted_by) or "4 characters a token")


def _reconcile(ledger: Ledger) -> None:
    dirs = config.program_dirs()
    places = {
        "claude-code": dirs.claude / "projects",
        "openclaw": dirs.openclaw / "agents",
        "clawdbot": dirs.clawdbot / "agents",
    }
    found = reconcile_ledger(ledger, places)
    Console(stderr=True).print(
        f"found {found.num_tasks} of {found.num_in_ledger} tasks in {found.num_files} transcripts", highlight=False
    )


def parse_since(text: str, now: float) -> float:
    """Seconds since the epoch of `12h`, `7d`, `4w` ago, or of an ISO date in local time.

    Raises:
        UsageError: neither.
    """
    if match := re.fullmatch(r"(\d{1,6})([hdw])", text.strip()):
        return now - int(match[1]) * _UNITS_S[match[2]]
    try:
        return datetime.fromisoformat(text.strip()).timestamp()
    except ValueError as error:
        raise UsageError(f"--since {text!r}: give a span (12h, 7d, 4w) or a date (2026-11-01)") from error


def _show(console: Console, everything: Totals, groups: list[Totals]) -> None:
    outcomes = ", ".join(f"{number} {name}" for name, number in everything.outcomes.items())
    console.print(f"[bold]{everything.num_tasks} tasks[/]: {outcomes}", highlight=False)
    console.print(
        f"the coordinator spent {everything.spent_tokens:,} tokens (${everything.spent_usd:.4f}) on them; "
        f"the local models wrote {everything.local_tokens:,}",
        highlight=False,
    )
    table = Table(box=None, pad_edge=False)
    for heading, justify in (("AGAINST", "left"), ("TOKENS", "right"), ("USD", "right"), ("NET TOKENS", "right"), ("NET USD", "right")):  # fmt: skip  # noqa: E501
        table.add_column(heading, justify=justify)  # type: ignore[arg-type]
    for net in everything.nets:
        table.add_row(
            net.name, f"{net.tokens:,}", f"{net.usd:.4f}", _signed(net.net_tokens, ","), _signed(net.net_usd, ".4f")
        )
    console.print()
    console.print(table)
    console.print()
    largest = max((abs(_alone(t)) for t in groups), default=0) or 1
    detail = Table(box=None, pad_edge=False)
    for heading in ("MODEL", "KIND"):
        detail.add_column(heading)
    for heading in ("TASKS", "PROVED", "NET TOKENS"):
        detail.add_column(heading, justify="right")
    detail.add_column("AGAINST DOING IT ALONE")
    for group in groups:
        net = _alone(group)
        detail.add_row(
            escape(group.label[0]),
            group.label[1],
            str(group.num_tasks),
            str(group.outcomes.get("proved", 0)),
            _signed(net, ","),
            f"[{'green' if net >= 0 else 'red'}]{bar(abs(net) / largest)}[/]",
        )
    console.print(detail)
    console.print()


def _show_course(console: Console, course: list[float]) -> None:
    """What was saved so far, task after task."""
    if len(course) > 1:
        ends = f"{course[0]:+,.0f} to {course[-1]:+,.0f} tokens"
        console.print(f"net against doing it alone, task after task: {sparkline(course)}  {ends}", highlight=False)
        console.print()


def _show_method(console: Console, everything: Totals) -> None:
    billed = f"{everything.num_billed} as billed, the rest " if everything.num_billed else ""
    energy = f"Energy of the device: {everything.energy_joules:,.0f} J. " if everything.energy_joules else ""
    console.print(
        f"[dim]{everything.num_tasks} tasks, {billed}estimated: {escape(_method(everything))} "
        f"Only proved tasks count as saved; all else is booked as a loss. {energy}{escape(pricing.PRICE_SOURCE)}: "
        f"coordinator {pricing.COORDINATOR.model}, sub-agent {pricing.CHEAP.model}.[/]",
        highlight=False,
    )


def sparkline(values: list[float], cells: int = 48) -> str:
    """A line of so many cells at most; each shows the last value of its share."""
    step = max(1, -(-len(values) // cells))
    shown = [values[min(at + step, len(values)) - 1] for at in range(0, len(values), step)]
    low, high = min(shown), max(shown)
    return "".join("▁▂▃▄▅▆▇█"[round((value - low) / ((high - low) or 1) * 7)] for value in shown)


def bar(share: float, cells: int = BAR_CELLS) -> str:
    """A bar of `share` (0 to 1) of so many cells, in eighths of a cell; never empty for something."""
    eighths = max(round(share * cells * 8), 1 if share > 0 else 0)
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()


def _alone(totals: Totals) -> int:
    return next((net.net_tokens for net in totals.nets if net.name == pricing.ALONE), 0)


def _signed(value: float, spec: str) -> str:
    colour = "green" if value > 0 else "red" if value < 0 else "dim"
    return f"[{colour}]{value:+{spec}}[/]"
