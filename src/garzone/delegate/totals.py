"""Adds up the ledger: what was spent, what it stands against, net of failures. Pure; opens and prints nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from garzone.delegate import pricing
from garzone.delegate.ledger import RUNNING, Entry


@dataclass(frozen=True, slots=True)
class Net:
    """One baseline over some tasks.

    `tokens` and `usd` are what it would have cost for the tasks that were proved; the `net_` figures have everything
    that was spent, also on failures, taken off. Negative: delegating was a loss.
    """

    name: str
    tokens: int
    usd: float
    net_tokens: int
    net_usd: float


@dataclass(frozen=True, slots=True)
class Totals:
    """Some tasks added up. `outcomes` counts them; running tasks are counted there and nowhere else."""

    label: tuple[str, ...]
    outcomes: dict[str, int]
    local_tokens: int
    spent_tokens: int
    spent_usd: float
    nets: tuple[Net, ...]
    num_estimated: int
    price_dates: tuple[str, ...]
    prompt_tokens: int = 0
    num_billed: int = 0
    energy_joules: float | None = None
    counted_by: tuple[str, ...] = ()

    @property
    def num_tasks(self) -> int:
        """All of them, running ones included."""
        return sum(self.outcomes.values())

    def to_json(self) -> dict[str, Any]:
        """As `garzone savings --json` prints it."""
        return {
            "tasks": self.num_tasks,
            "outcomes": self.outcomes,
            "local_prompt_tokens": self.prompt_tokens,
            "local_completion_tokens": self.local_tokens,
            "energy_joules": self.energy_joules and round(self.energy_joules, 1),
            "coordinator_tokens_spent": self.spent_tokens,
            "coordinator_usd_spent": round(self.spent_usd, 6),
            "baselines": {
                net.name: {
                    "tokens": net.tokens,
                    "usd": round(net.usd, 6),
                    "net_tokens": net.net_tokens,
                    "net_usd": round(net.net_usd, 6),
                }
                for net in self.nets
            },
            "estimated_tasks": self.num_estimated,
            "billed_tasks": self.num_billed,
            "price_dates": list(self.price_dates),
            "tokens_counted_by": list(self.counted_by),
        }


def total(entries: Iterable[Entry], label: tuple[str, ...] = ()) -> Totals:
    """Add up tasks."""
    everything = list(entries)
    ended = [entry for entry in everything if entry.outcome != RUNNING]
    names = sorted({name for entry in ended for name in entry.baseline_tokens} | {pricing.ALONE, pricing.SUB_AGENT})
    return Totals(
        label=label,
        outcomes=dict(sorted(Counter(entry.outcome for entry in everything).items())),
        local_tokens=sum(entry.completion_tokens for entry in ended),
        spent_tokens=sum(entry.spent_tokens for entry in ended),
        spent_usd=sum(entry.spent_usd for entry in ended),
        nets=tuple(_net(name, ended) for name in names),
        num_estimated=sum(entry.estimated for entry in ended),
        price_dates=tuple(sorted({entry.price_date for entry in ended})),
        prompt_tokens=sum(entry.prompt_tokens for entry in ended),
        num_billed=sum(entry.billed is not None for entry in ended),
        energy_joules=sum(told) if (told := [e.energy_joules for e in ended if e.energy_joules is not None]) else None,
        counted_by=tuple(sorted({entry.counted_by for entry in ended if entry.counted_by})),
    )


def by(entries: Iterable[Entry], key: Callable[[Entry], tuple[str, ...]]) -> list[Totals]:
    """Add up tasks in groups, the largest group first."""
    groups: dict[tuple[str, ...], list[Entry]] = {}
    for entry in entries:
        groups.setdefault(key(entry), []).append(entry)
    return sorted((total(members, label) for label, members in groups.items()), key=lambda t: (-t.num_tasks, t.label))


def cumulative(entries: Iterable[Entry], baseline: str, *, in_usd: bool = False) -> list[float]:
    """Net tokens (or USD) against a baseline after each task that ended, the oldest first."""
    ended = [entry for entry in entries if entry.outcome != RUNNING]
    if in_usd:
        return list(accumulate(pricing.net(e.outcome, e.baseline_usd.get(baseline, 0.0), e.spent_usd) for e in ended))
    return list(accumulate(pricing.net(e.outcome, e.baseline_tokens.get(baseline, 0), e.spent_tokens) for e in ended))


def _net(name: str, ended: list[Entry]) -> Net:
    proved = [entry for entry in ended if entry.outcome == "proved"]
    return Net(
        name,
        sum(entry.baseline_tokens.get(name, 0) for entry in proved),
        sum(entry.baseline_usd.get(name, 0.0) for entry in proved),
        round(sum(pricing.net(e.outcome, e.baseline_tokens.get(name, 0), e.spent_tokens) for e in ended)),
        sum(pricing.net(e.outcome, e.baseline_usd.get(name, 0.0), e.spent_usd) for e in ended),
    )
