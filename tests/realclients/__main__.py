"""`make e2e-clients`: drive every client and print who passed. Exit 1 if one that could be installed failed.

Names on the command line choose clients; `--record FOLDER` keeps the requests that each of them sent.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.realclients import programs, python_clients
from tests.realclients.install import NotInstallable

ROOT = Path(__file__).parents[2]


@contextmanager
def server(record: Path | None) -> Iterator[str]:
    """A server in a process of its own, on a port of its own: some clients are slow, and none may meet another."""
    command = [sys.executable, "-m", "tests.realclients.server"]
    command += ["--record", str(record)] if record else []
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.terminate()
        process.wait(20)


def drive(name: str, folder: Path, record: Path | None) -> None:
    """One client. Raises what went wrong."""
    with server(record) as url:
        if name in programs.DRIVERS:
            programs.DRIVERS[name](programs.World.make(url, folder))
            return
        command = [sys.executable, "-m", "tests.realclients.python_clients", name, url]
        done = subprocess.run(
            command, cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=240, check=False
        )
        assert done.returncode == 0, done.stderr.strip().splitlines()[-1:]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.realclients", description=__doc__)
    names = [*python_clients.DRIVERS, *programs.DRIVERS]
    parser.add_argument("names", nargs="*", help=f"which ones: {', '.join(names)}")
    parser.add_argument("--record", type=Path)
    arguments = parser.parse_args()
    console = Console(width=140)
    table = Table("client", "result", "seconds", "what happened", box=None)
    num_failed = 0
    for name in arguments.names or names:
        started = time.perf_counter()
        result, what = "passed", ""
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            try:
                drive(name, Path(folder), arguments.record and arguments.record / re.sub(r"\W+", "-", name).strip("-"))
            except NotInstallable as error:
                result, what = "not installable here", str(error)
            except Exception as error:  # noqa: BLE001  every kind of failure belongs into the table
                result, what = "FAILED", f"{type(error).__name__}: {error}"[:1000]
                num_failed += 1
        seconds = f"{time.perf_counter() - started:.1f}"
        console.print(f"{name}: {result} {what}", style="red" if result == "FAILED" else None, markup=False)
        table.add_row(name, result, seconds, what[:80])
    console.print(table)
    return int(bool(num_failed))


if __name__ == "__main__":
    sys.exit(main())
