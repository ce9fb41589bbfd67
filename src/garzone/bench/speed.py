"""Speed of the engine on this machine, next to llama.cpp when an interpreter with `llama-cpp-python` is given.

Both sides live at the same time in processes of their own and take turns, so that a machine that slows down slows
both; what is reported is the median of each and the ratio of the medians. Draws nothing: see `garzone bench speed`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from garzone.core.errors import UnavailableError

DECODE_STEPS = 32  # per turn; short enough that both sides see the same weather


@dataclass(frozen=True, slots=True)
class Measure:
    """One figure. `values` has a median per side; `ratio` is how many times faster we are than each peer."""

    name: str
    unit: str
    values: dict[str, float]
    ratio: dict[str, float]


@dataclass(frozen=True, slots=True)
class SpeedReport:
    """All figures of a run and what they were measured on."""

    model: str
    weight_bytes: int
    machine: str
    threads: int
    measures: tuple[Measure, ...]

    def to_json(self) -> dict[str, Any]:
        """A document for `--json` and for the plots."""
        return asdict(self)


class Side:
    """A subject process, asked one thing at a time."""

    def __init__(self, name: str, command: Sequence[str], environment: dict[str, str] | None = None) -> None:
        self.name = name
        started = time.perf_counter()
        self.process = subprocess.Popen(  # noqa: S603 - our own subjects, by the interpreter the user named
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.about = str(self._answer()["ready"])
        self.ready_s = time.perf_counter() - started

    def _answer(self) -> Any:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise UnavailableError(f"{self.name}: the process ended (exit code {self.process.wait()}); see above")
        return json.loads(line)

    def ask(self, *operation: Any) -> Any:
        """Send one operation and wait for its answer."""
        assert self.process.stdin
        self.process.stdin.write(json.dumps(operation) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """End the process."""
        if self.process.stdin:
            self.process.stdin.close()
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()


def measure(
    path: Path,
    *,
    device: str = "",
    num_ctx: int = 2048,
    prefill_tokens: int = 512,
    positions: Sequence[int] = (50, 1000),
    rounds: int = 5,
    threads: int | None = None,
    peer_python: str | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> SpeedReport:
    """Run the comparison.

    Args:
        path: the GGUF file.
        device: a tinygrad device, "" for the best one here.
        num_ctx: context in tokens of both sides.
        prefill_tokens: length of the prompt whose prefill is timed.
        positions: where decoding starts.
        rounds: turns each side takes at each figure.
        threads: of the peer; None for as many as there are cores.
        peer_python: an interpreter with `llama-cpp-python`; both its attention settings are measured.
        progress: told what is being done.

    Raises:
        UnavailableError: a side could not be started.
    """
    threads = threads or os.cpu_count() or 1
    progress("loading")
    ours = [sys.executable, "-m", "garzone.bench.subject", str(path), "--num-ctx", str(num_ctx), "--device", device]
    sides = [Side("garzone", ours)]
    try:
        if peer_python:
            script = str(Path(__file__).with_name("llama_cpp_subject.py"))
            for flash in (0, 1):
                command = [peer_python, script, str(path), "--num-ctx", str(num_ctx), "--threads", str(threads)]
                sides.append(Side(f"llama.cpp fa={flash}", [*command, "--flash-attention", str(flash)]))
        measures = [
            _rate(
                f"prefill {prefill_tokens}",
                sides,
                rounds,
                progress,
                lambda side: [side.ask("prefill", prefill_tokens) / prefill_tokens],
            )
        ]
        for position in positions:

            def decode(side: Side, position: int = position) -> list[float]:
                return side.ask("decode", position, DECODE_STEPS)[1:]

            measures.append(_rate(f"decode at {position}", sides, rounds, progress, decode))
        ready = {side.name: side.ready_s for side in sides}
        measures.append(Measure("process start to ready", "s", ready, _ratios(ready, smaller_is_better=True)))
        peak = {side.name: side.ask("memory") / 1e6 for side in sides}
        measures.append(Measure("peak memory", "MB", peak, _ratios(peak, smaller_is_better=True)))
    finally:
        for side in sides:
            side.close()
    return SpeedReport(path.name, path.stat().st_size, sides[0].about, threads, tuple(measures))


def _rate(
    name: str, sides: Sequence[Side], rounds: int, progress: Callable[[str], None], ask: Callable[[Side], list[float]]
) -> Measure:
    """Tokens a second from seconds a token, each side in turn."""
    seconds: dict[str, list[float]] = {side.name: [] for side in sides}
    for turn in range(rounds):
        progress(f"{name}, round {turn + 1} of {rounds}")
        for side in sides:
            seconds[side.name] += ask(side)
    rates = {side: 1 / median(values) for side, values in seconds.items()}
    return Measure(name, "tok/s", rates, _ratios(rates, smaller_is_better=False))


def _ratios(values: dict[str, float], *, smaller_is_better: bool) -> dict[str, float]:
    ours, *peers = values.items()
    return {peer: value / ours[1] if smaller_is_better else ours[1] / value for peer, value in peers}
