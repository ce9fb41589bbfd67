"""Draws what `garzone bench speed` measured. Needs matplotlib, the `bench` extra."""
# pyright: basic, reportMissingImports=false

from __future__ import annotations

from pathlib import Path

from garzone.bench.speed import SpeedReport
from garzone.core.errors import UnavailableError


def draw(report: SpeedReport, target: Path) -> None:
    """Tokens a second of each side, a panel for each figure, with our ratio to the fastest peer.

    Raises:
        UnavailableError: matplotlib is not installed.
    """
    try:
        import matplotlib.pyplot as plt  # noqa: PLC0415 - an extra, and slow to import
    except ImportError as error:
        raise UnavailableError("plots need matplotlib: pip install 'garzone[bench]'") from error
    rates = [measure for measure in report.measures if measure.unit == "tok/s"]
    figure, panels = plt.subplots(1, len(rates), figsize=(3 * len(rates), 3.2), layout="constrained", squeeze=False)
    for axes, measure in zip(panels[0], rates, strict=True):
        names, values = list(measure.values), list(measure.values.values())
        bars = axes.bar(names, values, color=["#2f6f9f"] + ["#9aa5b1"] * (len(names) - 1))
        axes.bar_label(bars, fmt="%.0f", fontsize=8)
        ratio = f"\n{min(measure.ratio.values()):.2f} times the peer" if measure.ratio else ""
        axes.set_title(measure.name + ratio, fontsize=9)
        axes.tick_params(axis="x", labelsize=7)
        axes.set_ylabel("tokens a second", fontsize=8)
    figure.suptitle(f"{report.model}, {report.threads} threads", fontsize=10)
    figure.savefig(target, dpi=150)
    plt.close(figure)
