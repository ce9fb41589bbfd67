"""`garzone doctor --kernels`: what `garzone.bench.kernels` found on the device, line by line.

Computes nothing here: tensors stay in a process of their own.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any, Final

import click

from garzone.core.errors import DeviceUnavailable

COMMAND: Final = (sys.executable, "-m", "garzone.bench.kernels")
WRONG_EXIT: Final = 1


def check_kernels(device: str, *, as_json: bool, command: Sequence[str] = COMMAND) -> int:
    """Run the comparison and print each result as it comes; the exit code.

    Raises:
        DeviceUnavailable: it could not be run to its end.
    """
    about, ceiling, results = "", dict[str, Any](), list[dict[str, Any]]()
    for line in _lines((*command, "--device", device)):
        if "device" in line:
            about = str(line["device"])
        elif "kernel" in line:
            results.append(line)
        else:
            ceiling = line
        if not as_json:
            click.echo(_shown(line))
    wrong = [result for result in results if not result["correct"]]
    if as_json:
        document = {"ok": not wrong, "device": about, "ceiling": ceiling, "kernels": results}
        click.echo(json.dumps(document, indent=2))
    elif wrong:
        click.echo(
            f"{len(wrong)} of {len(results)} kernels are wrong on this device: do not trust it; please report this"
        )
    else:
        click.echo(f"all {len(results)} kernels agree with the reference")
    return WRONG_EXIT if wrong else 0


def _lines(command: Sequence[str]) -> Iterator[dict[str, Any]]:
    with tempfile.TemporaryFile("w+") as complaints:
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=complaints, text=True) as process:  # noqa: S603
            try:
                for line in process.stdout or ():
                    yield json.loads(line)
            except BaseException:
                process.kill()
                raise
        complaints.seek(0)
        said = complaints.read().strip()
    if process.returncode:
        reason = said.rpartition("\n")[2] or f"exit code {process.returncode}"
        raise DeviceUnavailable(f"the kernels could not be run: {reason}; try garzone doctor, or another --device")


def _shown(line: dict[str, Any]) -> str:
    if "device" in line:
        return f"device   {line['device']}"
    if "kernel" not in line:
        reads, integers, floats = line["read_gb_s"], line["integer_gops"], line["float_gops"]
        return "ceiling  " + ", ".join(
            f"{what} {value:.0f} {unit}" if value else f"{what} not measured"
            for what, value, unit in (
                ("reads", reads, "GB/s"),
                ("integers", integers, "GOPS"),
                ("floats", floats, "GFLOPS"),
            )
        )
    state = click.style("ok   ", fg="green") if line["correct"] else click.style("WRONG", fg="red")
    share = f"{line['share']:>5.0%} of the ceiling" if line["share"] else ""
    rate = f"{line['rate']:8.1f} {line['unit']:<6}" if line["rate"] else ""
    name = f"{line['kernel']:<18} {line['ggml_type']:<7} {line['implementation']:<16}"
    return f"{state}    {name} error {line['error']:.1e} (at most {line['tolerance']:.0e})  {rate} {share}"
