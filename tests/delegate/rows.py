"""Small tasks and reports for the ledger's tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from garzone.core.generation import ServedBy
from garzone.core.task import Check, FileChange, Report, Task, TaskKind, TokenCount, Verdict
from garzone.delegate import pricing
from garzone.delegate.ledger import Ledger, Prices

PRICES = Prices("Opus 5.5", "2026-11", "counted by hand", estimated=True)


def a_task(repo: Path = Path("/nowhere"), **fields: Any) -> Task:
    base: dict[str, Any] = {
        "id": "ab12cd34",
        "kind": TaskKind.FIX,
        "instruction": "take() adds",
        "files": ("shop.py",),
        "check": "pytest -q",
        "model": "scripted",
    }
    return Task(repo=repo, **{**base, **fields})


def a_report(verdict: Verdict = Verdict.PROVED, **fields: Any) -> Report:
    base: dict[str, Any] = {
        "summary": "Rewrote take in shop.py.",
        "files": (FileChange("shop.py", 1, 1),),
        "branch": "garzone/fix-ab12cd34",
        "patch": "-    a + b\n+    a - b\n",
        "checks": (Check("pytest -q", 0, 812.0, 1),),
        "num_candidates": 2,
        "num_rounds": 1,
        "tokens": TokenCount(900, 700, 210),
        "served_by": ServedBy("scripted", "sha256:" + "0" * 64, "tinygrad", "CPU"),
        "duration_ms": 9120.0,
    }
    return Report("ab12cd34", TaskKind.FIX, verdict, **{**base, **fields})


def book(ledger: Ledger, verdict: Verdict = Verdict.PROVED, *, task: Task | None = None, size_bytes: int = 1200) -> int:
    """A whole row, begun and finished."""
    report = a_report(verdict)
    row = ledger.begin(task or a_task(), pricing.Spent(40, 0), PRICES, size_bytes=size_bytes, caller="cli")
    spent = pricing.Spent(40, 60)
    ledger.finish(row, report, spent, pricing.baselines(size_bytes // 4, 20, spent), size_bytes=size_bytes)
    return row
