"""Draws what `garzone bench quality` recorded. Needs matplotlib, the `bench` extra."""
# pyright: basic, reportMissingImports=false

from __future__ import annotations

from pathlib import Path

from garzone.bench.quality_tables import load, summarise
from garzone.core.errors import UnavailableError


def draw(directory: Path, target: Path) -> None:
    """Every record of a directory as a bar with its interval, grouped by suite.

    Raises:
        UnavailableError: matplotlib is not installed.
    """
    try:
        import matplotlib.pyplot as plt  # noqa: PLC0415 - an extra, and slow to import
    except ImportError as error:
        raise UnavailableError("plots need matplotlib: pip install 'garzone[bench]'") from error
    summaries = [summarise(*load(path)) for path in sorted(directory.glob("*.jsonl"))]
    shown = [each for each in summaries if each.settings.mode in ("alone", "worker", "oracle") and each.num_tasks]
    figure, axes = plt.subplots(figsize=(8, 0.5 * max(len(shown), 1) + 1.2), layout="constrained")
    colours = {"alone": "#9aa5b1", "worker": "#2f6f9f", "oracle": "#d9a441"}
    for place, each in enumerate(shown):
        low, high = each.passed.interval
        value = each.passed.value
        axes.barh(place, value, color=colours[each.settings.mode])
        axes.errorbar(value, place, xerr=[[max(value - low, 0)], [max(high - value, 0)]], color="black", capsize=3)
    labels = [f"{each.settings.suite}\n{each.settings.model} {each.settings.mode}".strip() for each in shown]
    axes.set_yticks(range(len(shown)), labels, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xlabel("share of tasks that pass the suite's tests, with 95 % interval")
    figure.savefig(target, dpi=150)
    plt.close(figure)
