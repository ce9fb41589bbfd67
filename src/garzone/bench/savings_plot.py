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
    """Write `savings.json` and `savings.png`: net tokens against each baseline, task after task.

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
    figure: Any = drawing.Figure(figsize=(8, 4.5), layout="constrained")
    agg.FigureCanvasAgg(figure)
    axes: Any = figure.add_subplot()
    for name in (pricing.ALONE, pricing.SUB_AGENT):
        axes.step(times, cumulative(entries, name), where="post", label=f"against {name}")
    axes.axhline(0, color="grey", linewidth=0.8)
    axes.set_ylabel("net coordinator tokens saved, failures taken off")
    axes.set_title("What delegating saved (estimates are estimates: see savings.json)")
    axes.legend()
    figure.autofmt_xdate()
    figure.savefig(directory / "savings.png", dpi=130)
