"""Prints what every decode product costs on gfx1100, point by point of the bar: `python -m garzone.kernels.amd.count`.

Needs no card. It compiles and counts; the bar itself is in ``bar.py``. Exit code 1 when a type misses a point.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from garzone.kernels.amd.bar import Cost, cost
from garzone.kernels.gpu.matvec import QUANTS
from garzone.kernels.layouts import GGMLType

_COLUMNS = (
    "type",
    "rows",
    "bytes",
    "slots/bar",
    "vmem/bar",
    "b128/bar",
    "act.",
    "1/4",
    "div.",
    "dot4/bar",
    "VGPR",
    "waves",
    "B before wait",
    "KB a SIMD",
    "spills",
    "launch",
    "misses",
)


def _line(c: Cost) -> tuple[str, ...]:
    return (
        c.type,
        str(c.rows),
        str(c.block_bytes),
        f"{c.slots:.2f}/{c.slots_bar:.2f}",
        f"{c.memory:.2f}/{c.memory_bar:.2f}",
        f"{c.wide_loads}/{c.wide_loads_bar}",
        f"{c.activation_bytes:.0f}",
        str(c.quarter_rate),
        str(c.divergent),
        f"{c.dot4}/{c.dot4_bar}",
        str(c.vgprs),
        str(c.waves_per_simd),
        str(c.bytes_before_wait),
        str(c.bytes_in_flight >> 10),
        str(c.spills),
        str(c.waves),
        "; ".join(c.misses) or "-",
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table, or one JSON document; the exit code says whether all points are met."""
    parser = argparse.ArgumentParser(prog="python -m garzone.kernels.amd.count", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON document instead of a table")
    parser.add_argument("--rows", type=int, nargs="*", default=[4, 2], help="rows a wave (default: 4 2)")
    parser.add_argument("types", nargs="*", metavar="TYPE", help="such as Q4_K (default: all)")
    given = parser.parse_args(arguments)
    unknown = [name for name in given.types if name not in {quant.name for quant in QUANTS}]
    if unknown:
        parser.error(f"no kernels for {', '.join(unknown)}; there are {', '.join(quant.name for quant in QUANTS)}")
    types = [GGMLType[name] for name in given.types] or list(QUANTS)
    costs = [cost(ggml_type, rows) for ggml_type in types for rows in given.rows]
    if given.json:
        print(json.dumps([c.as_json() for c in costs]))
    else:
        lines = [_COLUMNS, *map(_line, costs)]
        widths = [max(len(line[i]) for line in lines) for i in range(len(_COLUMNS))]
        for line in lines:
            print("  ".join(cell.rjust(width) for cell, width in zip(line[:-1], widths[:-1], strict=True)), line[-1])
    return 1 if any(c.misses for c in costs) else 0


if __name__ == "__main__":
    sys.exit(main())
