"""What waits for a processor has not used its time."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from garzone.agent import sandbox as sandbox_module
from garzone.agent.queueing import Queueing
from garzone.agent.sandbox import UnsandboxedRunner
from garzone.core.ports import SandboxLimits

linux = pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="Linux says how long threads wait")


def proc(root: Path, delays: dict[str, int], children: dict[str, str], ran: int = 5) -> Path:
    for pid, delay in delays.items():
        task = root / pid / "task" / pid
        task.mkdir(parents=True, exist_ok=True)
        (task / "schedstat").write_text(f"{ran} {delay} 1\n")
        (task / "children").write_text(children.get(pid, ""))
    return root


def test_the_longest_waiting_of_the_whole_tree_counts_once(tmp_path: Path) -> None:
    root = proc(tmp_path, {"10": 0, "11": 2_000_000_000, "12": 1_000_000_000, "99": 90_000_000_000}, {"10": "11 12 "})
    queueing = Queueing(10, root)
    assert queueing.sample(5.0) == 2.0
    proc(tmp_path, {"11": 2_500_000_000, "12": 2_000_000_000}, {})
    assert queueing.sample(5.0) == 1.0
    assert queueing.sample(5.0) == 0.0


def test_waiting_for_each_other_is_none(tmp_path: Path) -> None:
    busy = int(3e9 * (os.cpu_count() or 1) / 2)
    root = proc(tmp_path, {"10": 9_000_000_000, "11": 9_000_000_000}, {"10": "11"}, ran=busy)
    assert Queueing(10, root).sample(3.0) == 0.0
    assert 1.9 < Queueing(10, root).sample(5.0) < 2.1  # others had the machine for two seconds of five


def test_nothing_is_known_of_what_has_ended_or_of_a_system_that_does_not_say(tmp_path: Path) -> None:
    assert Queueing(10, tmp_path).sample(1.0) == 0.0
    (proc(tmp_path, {"10": 7}, {}) / "10/task/10/schedstat").write_text("nothing")
    assert Queueing(10, tmp_path).sample(1.0) == 0.0


@pytest.fixture
def crowd() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Three processes that all want the same processor."""
    cpu = min(os.sched_getaffinity(0))
    code = f"import os; os.sched_setaffinity(0, {{{cpu}}})\nwhile True: pass"
    processes = [subprocess.Popen([sys.executable, "-S", "-c", code]) for _ in range(3)]
    yield processes
    for process in processes:
        process.kill()
        process.wait()


@linux
def test_a_process_in_a_crowd_is_seen_to_wait(crowd: list[subprocess.Popen[bytes]]) -> None:
    queueing = [Queueing(process.pid) for process in crowd]
    waited, until = [0.0] * len(crowd), time.monotonic() + 20
    while sum(each > 0.1 for each in waited) < 2 and time.monotonic() < until:
        time.sleep(0.1)
        waited = [so_far + each.sample(0.1) for so_far, each in zip(waited, queueing, strict=True)]
    assert sum(each > 0.1 for each in waited) >= 2


@pytest.mark.parametrize(("waited_s", "killed"), [(1.0, False), (0.0, True)])
def test_a_command_that_waits_for_a_processor_is_not_out_of_time(
    waited_s: float, killed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandbox_module.Queueing, "sample", lambda _, passed_s: min(waited_s, passed_s))
    limits = SandboxLimits(wall_s=0.2)
    result = asyncio.run(UnsandboxedRunner().run("sleep 0.8; echo done", tmp_path, limits))
    assert (result.timed_out, "done" in result.output) == (killed, not killed)


def test_waiting_has_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox_module.Queueing, "sample", lambda _, passed_s: passed_s)
    assert asyncio.run(UnsandboxedRunner().run("sleep 50", tmp_path, SandboxLimits(wall_s=0.1))).timed_out
