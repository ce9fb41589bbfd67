"""Draws what the ledger saved over time, as PNG. Needs the `bench` extra; adds nothing up itself."""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from garzone.core.errors import UnavailableError
from garzone.delegate import pricing
from garzone.delegate.ledger import RUNNING, Entry
from garzone.delegate.totals import cumulative


def write_savings(entries: Sequence[Entry], document: dict[str, Any], directory: Path) -> None:
    """Write `savings.json` and `savings.png`: net tokens and USD against each baseline, task after task.

    Raises:
        UnavailableError: matplotlib is not installed.
    """
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "savings.json").write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    try:
        agg: Any = importlib.import_module("matplotlib.backends.backend_agg")
        drawing: Any = importlib.import_module("matplotlib.figure")
    except ImportError as error:
        raise UnavailableError("a plot needs matplotlib: pip install 'garzone[bench]'") from error
    times = [datetime.fromtimestamp(entry.started_at, UTC) for entry in entries if entry.outcome != RUNNING]
    figure: Any = drawing.Figure(figsize=(8, 6), layout="constrained")
    agg.FigureCanvasAgg(figure)
    panels: Any = figure.subplots(2, sharex=True)
    for axes, in_usd, label in zip(panels, (False, True), ("tokens", "USD"), strict=True):
        for name in (pricing.ALONE, pricing.SUB_AGENT):
            axes.step(times, cumulative(entries, name, in_usd=in_usd), where="post", label=f"against {name}")
        axes.axhline(0, color="grey", linewidth=0.8)
        axes.set_ylabel(f"net {label} saved")
        axes.legend()
    figure.suptitle("What delegating saved, failures taken off (how it was counted: savings.json)")
    figure.autofmt_xdate()
    figure.savefig(directory / "savings.png", dpi=130)
