"""Speed of the engine on this machine, next to llama.cpp when an interpreter with `llama-cpp-python` is given.

Both sides live at the same time in processes of their own and take turns, so that a machine that slows down slows
both; what is reported is the median of each and the ratio of the medians. Draws nothing: see `speed_plot.py`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Final

from garzone.core.errors import UnavailableError

DECODE_STEPS: Final = 32  # per turn; short enough that both sides see the same weather
FIRST_TOKENS: Final = 8  # the prompt whose first token a start is timed to
PEER: Final = "llama.cpp"
OURS: Final = "garzone"
# What issue "Kernels" asks for on two cores; a ratio is against the faster of the peer's settings.
PREFILL_RATIO, SMALL_DECODE_RATIO, LARGE_DECODE_RATIO = 1.5, 2.5, 1.7
LARGE_BYTES: Final = 1 << 30
WARM_START_S, COLD_START_S, SPARE_BYTES, TRAFFIC_RATIO, ROOF_SHARE = 4.0, 20.0, 400e6, 1.10, 0.8


@dataclass(frozen=True, slots=True)
class Measure:
    """One figure. `values` has a median per side; `ratio` is how many times better we are than each peer.

    `goal` says what is asked for in words, `met` whether it is; both None where nothing is, or no peer was there.
    """

    name: str
    unit: str
    values: dict[str, float]
    ratio: dict[str, float] = field(default_factory=dict[str, float])
    goal: str | None = None
    met: bool | None = None


@dataclass(frozen=True, slots=True)
class SpeedReport:
    """All figures of a run and what they were measured on."""

    model: str
    weight_bytes: int
    machine: str
    threads: int
    rounds: int
    load_before: float
    measures: tuple[Measure, ...]

    def to_json(self) -> dict[str, Any]:
        """A document for `--json` and for the plots."""
        return asdict(self)


class Side:
    """A subject process, asked one thing at a time."""

    def __init__(self, name: str, command: Sequence[str], environment: dict[str, str] | None = None) -> None:
        self.name = name
        self.started = time.perf_counter()
        self.process = subprocess.Popen(  # noqa: S603 - our own subjects, by the interpreter the user named
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.about = str(self._answer()["ready"])

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


@dataclass(frozen=True, slots=True)
class Comparison:
    """What is measured and how.

    `peer_python` is an interpreter with `llama-cpp-python`; `attentions` are the settings of its flash attention that
    are measured, 0 and 1.
    """

    path: Path
    device: str = ""
    num_ctx: int = 2048
    prefill_tokens: int = 512
    positions: tuple[int, ...] = (50, 1000)
    rounds: int = 5
    threads: int | None = None
    peer_python: str | None = None
    attentions: tuple[int, ...] = (0, 1)

    @property
    def large(self) -> bool:
        """Whether the goals of a 7B model are its own."""
        return self.path.stat().st_size > LARGE_BYTES

    def sides(self) -> Iterator[tuple[str, list[str]]]:
        """Name and command of each."""
        common = [str(self.path), "--num-ctx", str(self.num_ctx)]
        yield OURS, [sys.executable, "-m", "garzone.bench.subject", *common, "--device", self.device]
        if self.peer_python:
            script = str(Path(__file__).with_name("llama_cpp_subject.py"))
            threads = self.threads or num_threads()
            for flash in self.attentions:
                command = [self.peer_python, script, *common, "--threads", str(threads)]
                yield f"{PEER} fa={flash}", [*command, "--flash-attention", str(flash)]


def num_threads() -> int:
    """As many as this process may use: what our own kernels take."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_peer(python: str) -> None:
    """See that an interpreter has llama-cpp-python.

    Raises:
        UnavailableError: it has not, or is none; says how to get one.
    """
    advice = (
        'python -m venv llama && CMAKE_ARGS="-DGGML_NATIVE=ON" llama/bin/pip install --no-binary llama-cpp-python '
        "llama-cpp-python, then --peer-python llama/bin/python"
    )
    try:
        done = subprocess.run([python, "-c", "import llama_cpp"], capture_output=True, text=True, check=False)  # noqa: S603
    except OSError as error:
        raise UnavailableError(f"{python} cannot be run ({error.strerror}); {advice}") from error
    if done.returncode:
        raise UnavailableError(f"{python} has no llama-cpp-python; {advice}")


def measure(comparison: Comparison, progress: Callable[[str], None] = lambda _: None) -> SpeedReport:
    """Run the comparison; `progress` is told what is being done.

    Raises:
        UnavailableError: a side could not be started.
    """
    load_before = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    measures = list(_starts(comparison, progress))
    progress("loading")
    with _running(comparison) as sides:
        ours = sides[0]
        count = comparison.prefill_tokens

        def prefill(side: Side) -> list[float]:
            return [side.ask("prefill", count) / count]

        def turns(name: str) -> Iterator[int]:
            for turn in range(comparison.rounds):
                progress(f"{name}, round {turn + 1} of {comparison.rounds}")
                yield turn

        measures.append(_rate(f"prefill {count}", sides, turns("prefill"), PREFILL_RATIO, prefill))
        goal = LARGE_DECODE_RATIO if comparison.large else SMALL_DECODE_RATIO
        for position in comparison.positions:

            def decode(side: Side, position: int = position) -> list[float]:
                return side.ask("decode", position, DECODE_STEPS)[1:]

            measures.append(_rate(f"decode at {position}", sides, turns(f"decode at {position}"), goal, decode))
        measures += _counted(ours, comparison, measures, progress)
        peak = {side.name: side.ask("memory") / 1e6 for side in sides}
        allowed = (ours.ask("expected_memory") + SPARE_BYTES) / 1e6
        measures.append(
            Measure(
                "peak memory",
                "MB",
                peak,
                _ratios(peak, smaller_is_better=True),
                f"at most {allowed:.0f} MB: weights, cache and 400",
                peak[OURS] <= allowed,
            )
        )
        about = ours.about
    threads = comparison.threads or num_threads()
    size = comparison.path.stat().st_size
    return SpeedReport(comparison.path.name, size, about, threads, comparison.rounds, load_before, tuple(measures))


@contextmanager
def _running(comparison: Comparison) -> Generator[list[Side]]:
    sides: list[Side] = []
    try:
        for name, command in comparison.sides():
            sides.append(Side(name, command))
        yield sides
    finally:
        for side in sides:
            side.close()


def _starts(comparison: Comparison, progress: Callable[[str], None]) -> Iterator[Measure]:
    """From the start of a process to its first token, one process after the other."""
    with tempfile.TemporaryDirectory() as empty:
        # our compiled kernels and tinygrad's are kept there; the second start finds what the first has made
        environment = {**os.environ, "GARZONE_HOME": empty, "CACHEDB": str(Path(empty) / "tinygrad.db")}
        found: dict[str, dict[str, float]] = {"cold": {}, "warm": {}}
        for kind in ("cold", "warm"):
            for name, command in comparison.sides():
                if kind == "cold" and name != OURS:
                    continue  # compiled when it was installed
                progress(f"{kind} start of {name}")
                side = Side(name, command, environment if name == OURS else None)
                try:
                    side.ask("prefill", FIRST_TOKENS)
                    found[kind][name] = time.perf_counter() - side.started
                finally:
                    side.close()
    for kind, limit in (("cold", COLD_START_S), ("warm", WARM_START_S)):
        label = "empty" if kind == "cold" else "warm"
        ours = found[kind][OURS]
        applies = not comparison.large
        yield Measure(
            f"start to first token, {label} kernel cache",
            "s",
            found[kind],
            _ratios(found[kind], smaller_is_better=True),
            f"at most {limit:.0f} s" if applies else None,
            ours <= limit if applies else None,
        )


def _counted(
    ours: Side, comparison: Comparison, measures: Sequence[Measure], progress: Callable[[str], None]
) -> Iterator[Measure]:
    """Bytes a token moves, and how near its time comes to a plain read of them."""
    progress("reading weights")
    reads = [seconds for seconds in (ours.ask("read") for _ in range(2 * comparison.rounds)) if seconds]
    for position in comparison.positions:
        traffic = ours.ask("traffic", position)
        if not traffic:
            continue
        moved, least = traffic
        ratio = moved / least
        name = f"bytes moved over least, at {position}"
        yield Measure(name, "x", {OURS: ratio}, {}, f"at most {TRAFFIC_RATIO:.2f}", ratio <= TRAFFIC_RATIO)
        decode = next((m for m in measures if m.name == f"decode at {position}"), None)
        if reads and decode and comparison.large:
            # tokens a second that a plain read of as many bytes would allow
            share = decode.values[OURS] * median(reads)
            name = f"share of a plain read of the weights, at {position}"
            yield Measure(name, "x", {OURS: share}, {}, f"at least {ROOF_SHARE:.2f}", share >= ROOF_SHARE)


def _rate(
    name: str, sides: Sequence[Side], turns: Iterator[int], goal: float, ask: Callable[[Side], list[float]]
) -> Measure:
    """Tokens a second from seconds a token, each side in turn."""
    seconds: dict[str, list[float]] = {side.name: [] for side in sides}
    for _ in turns:
        for side in sides:
            seconds[side.name] += ask(side)
    rates = {side: 1 / median(values) for side, values in seconds.items()}
    ratios = _ratios(rates, smaller_is_better=False)
    met = min(ratios.values()) >= goal if ratios else None
    return Measure(name, "tok/s", rates, ratios, f"at least {goal} times {PEER}" if ratios else None, met)


def _ratios(values: dict[str, float], *, smaller_is_better: bool) -> dict[str, float]:
    ours, *peers = values.items()
    return {peer: value / ours[1] if smaller_is_better else ours[1] / value for peer, value in peers}
