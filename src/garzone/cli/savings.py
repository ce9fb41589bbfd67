"""`garzone savings`: what the ledger adds up to. Reads and shows; the sums are `delegate.totals`'s."""

from __future__ import annotations

import json
import re
import time
from datetime import datetime

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from garzone import config, wiring
from garzone.core.errors import UsageError
from garzone.delegate import pricing
from garzone.delegate.totals import Totals, by, total

BAR_CELLS = 24
_UNITS_S = {"h": 3600, "d": 86400, "w": 7 * 86400}


@click.command()
@click.option("--since", metavar="D", help="Only tasks since: 12h, 7d, 4w, or a date (2026-11-01).")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def savings(since: str | None, as_json: bool) -> None:
    """Show what delegating saved, net of failures, against each alternative."""
    settings = config.load()
    start = parse_since(since, time.time()) if since else 0.0
    entries = wiring.open_ledger(settings).entries(start)
    everything = total(entries)
    groups = by(entries, lambda entry: (entry.model, entry.kind))
    if as_json:
        document = {
            "since": since,
            **everything.to_json(),
            "groups": [{"model": t.label[0], "kind": t.label[1], **t.to_json()} for t in groups],
            "estimated": True,
            "method": _method(everything),
            "price_source": pricing.PRICE_SOURCE,
        }
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


def _method(everything: Totals) -> str:
    return pricing.method(" or ".join(everything.counted_by) or "4 characters a token")


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
    console.print(
        f"[dim]{everything.num_estimated} of {everything.num_tasks} tasks are estimated: {escape(_method(everything))} "
        f"Only proved tasks count as saved; all else is booked as a loss. {escape(pricing.PRICE_SOURCE)}: "
        f"coordinator {pricing.COORDINATOR.model}, sub-agent {pricing.CHEAP.model}.[/]",
        highlight=False,
    )


def bar(share: float, cells: int = BAR_CELLS) -> str:
    """A bar of `share` (0 to 1) of so many cells, in eighths of a cell; never empty for something."""
    eighths = max(round(share * cells * 8), 1 if share > 0 else 0)
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()


def _alone(totals: Totals) -> int:
    return next((net.net_tokens for net in totals.nets if net.name == pricing.ALONE), 0)


def _signed(value: float, spec: str) -> str:
    colour = "green" if value > 0 else "red" if value < 0 else "dim"
    return f"[{colour}]{value:+{spec}}[/]"
