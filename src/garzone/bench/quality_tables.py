"""Adds up what `quality.py` recorded: rates with confidence intervals, where the time went.

Draws nothing: see `quality_plot.py`. A rate without an interval says little at these sizes, so there is none without.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from garzone.bench.quality import Outcome, Settings

Z_95 = 1.959964  # two-sided 95 % of the normal distribution


@dataclass(frozen=True, slots=True)
class Rate:
    """A share with its 95 % interval by Wilson's score method (Wilson 1927), which holds near 0 and 1, too."""

    count: int
    total: int

    @property
    def value(self) -> float:
        """The share itself; 0 of nothing is 0."""
        return self.count / self.total if self.total else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """Lower and upper bound."""
        if not self.total:
            return 0.0, 1.0
        n, p, z = self.total, self.value, Z_95
        centre = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
        return max(centre - half, 0.0), min(centre + half, 1.0)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.count}/{self.total} = {self.value:.1%} ({low:.1%} to {high:.1%})"


@dataclass(frozen=True, slots=True)
class Summary:
    """A run in figures."""

    settings: Settings
    num_tasks: int
    passed: Rate
    proved: Rate
    errors: int
    false_proofs: tuple[str, ...]
    num_candidates: int
    outcomes: dict[str, int]
    median_overhead_ms: float
    median_check_ms: float
    mean_score: float
    completion_tokens: int
    hours: float

    def to_json(self) -> dict[str, Any]:
        """A document for `--json`."""
        document = asdict(self)
        for name in ("passed", "proved"):
            rate: Rate = getattr(self, name)
            document[name] |= {"value": rate.value, "interval": rate.interval}
        return document


def summarise(settings: Settings, outcomes: Sequence[Outcome]) -> Summary:
    """Figures of a run. Overhead and check are medians over tasks of their means per candidate."""
    counts: dict[str, int] = {}
    for outcome in outcomes:
        for each in outcome.outcomes:
            word = each.rpartition(": ")[2]
            counts[word] = counts.get(word, 0) + 1
    tried = [each for each in outcomes if each.num_candidates and not each.error]
    return Summary(
        settings=settings,
        num_tasks=len(outcomes),
        passed=Rate(sum(each.passed for each in outcomes), len(outcomes)),
        proved=Rate(sum(each.verdict == "proved" for each in outcomes), len(outcomes)),
        errors=sum(bool(each.error) for each in outcomes),
        false_proofs=tuple(f"{each.id}: {what}" for each in outcomes for what in each.false_proofs),
        num_candidates=sum(each.num_candidates for each in outcomes),
        outcomes=dict(sorted(counts.items())),
        median_overhead_ms=median([each.overhead_ms / each.num_candidates for each in tried] or [0.0]),
        median_check_ms=median([each.check_ms / each.num_candidates for each in tried] or [0.0]),
        mean_score=sum(each.score for each in outcomes) / max(len(outcomes), 1),
        completion_tokens=sum(each.completion_tokens for each in outcomes),
        hours=sum(each.duration_ms for each in outcomes) / 3.6e6,
    )


def rows(summary: Summary) -> list[tuple[str, str]]:
    """What is printed."""
    mode = summary.settings.mode
    found = [("tasks", str(summary.num_tasks))]
    if mode == "saboteur":
        found.append(("hostile answers judged", str(summary.num_candidates)))
        found.append(("false proofs", str(len(summary.false_proofs))))
    else:
        found.append(("pass the suite's tests", str(summary.passed)))
        if mode != "alone":
            found.append(("proved by the worker", str(summary.proved)))
            found.append(("proved, but refused by the tests", str(len(summary.false_proofs))))
        if summary.settings.suite == "testgen_humaneval":
            found.append(("mean mutation score", f"{summary.mean_score:.1%}"))
        found.append(("candidates", str(summary.num_candidates)))
    if summary.outcomes:
        found.append(("what became of them", ", ".join(f"{n} {what}" for what, n in summary.outcomes.items())))
    if mode != "alone":
        found.append(("check, ms a candidate (median)", f"{summary.median_check_ms:.0f}"))
        # candidates at the same time share their time, so that nothing can be told apart
        if mode != "saboteur" and summary.settings.parallel == 1:
            found.append(("overhead, ms a candidate (median)", f"{summary.median_overhead_ms:.0f}"))
    if summary.errors:
        found.append(("tasks that ended with an error", str(summary.errors)))
    return found


def load(path: Path) -> tuple[Settings, list[Outcome]]:
    """A finished or unfinished record."""
    lines = path.read_text(encoding="utf-8").splitlines()
    head: dict[str, Any] = json.loads(lines[0])
    head.pop("garzone bench quality")
    return Settings(**head), [Outcome.from_json(json.loads(line)) for line in lines[1:]]
