"""Draws what `garzone bench speed` measured. Needs matplotlib, the `bench` extra."""
# pyright: basic, reportMissingImports=false

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from garzone.bench.speed import SpeedReport
from garzone.core.errors import UnavailableError


def check() -> None:
    """To be called before minutes are spent on measuring what could not be drawn.

    Raises:
        UnavailableError: matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise UnavailableError("plots need matplotlib: pip install 'garzone[bench]'")


def draw(report: SpeedReport, target: Path) -> None:
    """Tokens a second of each side, a panel for each figure, with our ratio to the fastest peer.

    Raises:
        UnavailableError: matplotlib is not installed.
    """
    check()
    from matplotlib.figure import Figure  # noqa: PLC0415 - an extra, slow to import; pyplot would ask for a display

    rates = [measure for measure in report.measures if measure.unit == "tok/s"]
    sides = max((len(measure.values) for measure in rates), default=1)
    figure = Figure(figsize=(6.5, len(rates) * (0.32 * sides + 0.75) + 0.5), layout="constrained")
    panels = figure.subplots(len(rates) or 1, 1, squeeze=False)[:, 0]
    for axes, measure in zip(panels, rates, strict=False):
        names, values = list(measure.values), list(measure.values.values())
        bars = axes.barh(names, values, color=["#2f6f9f"] + ["#9aa5b1"] * (len(names) - 1))
        axes.bar_label(bars, [f" {value:,.{1 if value < 100 else 0}f}" for value in values], fontsize=8)
        axes.set_xlim(0, 1.12 * max(values))
        axes.invert_yaxis()  # we come first
        ratio = f": {min(measure.ratio.values()):.2f} times the peer" if measure.ratio else ""
        axes.set_title(measure.name + ratio, fontsize=9, loc="left")
        axes.tick_params(labelsize=8)
    panels[-1].set_xlabel("tokens a second", fontsize=8)
    figure.suptitle(f"{report.model}, {report.threads} threads", fontsize=10)
    figure.savefig(target, dpi=150)
