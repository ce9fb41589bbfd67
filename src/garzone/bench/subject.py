"""One side of a speed comparison: garzone's engine in a process of its own, driven over stdin and stdout.

Each line in is a JSON array `[operation, argument...]`, each line out its answer. `llama_cpp_subject.py` answers the
same lines for llama.cpp, so that the driver can take turns between the two. Decides nothing about what is measured.

    ["prefill", n]          seconds for a prompt of n tokens from an empty cache
    ["decode", p, n]        seconds of each of n decode steps, the first at position p
    ["memory"]              peak resident bytes of this process
    ["expected_memory"]     bytes of weights as packed and of the cache: what a process cannot do without
    ["traffic", p]          bytes a token at position p moves, and the least it could; null where nobody counts them
    ["read"]                seconds of a plain read of the weights; null where that is not measured
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

from garzone.engine.model_runner import ModelRunner

MAXRSS_UNIT = 1 if sys.platform == "darwin" else 1024  # getrusage(2): bytes on macOS, KiB on Linux


def prompt_tokens(count: int, vocab_size: int) -> list[int]:
    """Token ids that are the same on both sides, and that no cache of either can have seen as text."""
    return [(100 + 37 * index) % min(vocab_size, 40_000) for index in range(count)]


class Subject:
    """The engine behind the three operations."""

    def __init__(self, path: Path, num_ctx: int, device: str) -> None:
        self.runner = ModelRunner.load(path, num_ctx=num_ctx, device=device)
        self.runner.warm_up()
        self._filled: set[int] = set()

    def prefill(self, count: int) -> float:
        """Seconds until the logits after `count` prompt tokens are here, nothing compiled among them."""
        if count not in self._filled and not self.runner.device.startswith("CPU"):
            self._filled.add(count)
            self.prefill(count)  # steps of a card are captured at their first use
        tokens = prompt_tokens(count, self.runner.config.vocab_size)
        chunk = self.runner.chunk_tokens
        started = time.perf_counter()
        for start in range(0, count, chunk):
            self.runner.prefill(tokens[start : start + chunk], start)
        return time.perf_counter() - started

    def decode(self, position: int, count: int) -> list[float]:
        """Seconds of each of `count` steps; the cache before `position` is filled first, unmeasured."""
        self.prefill(position)
        times: list[float] = []
        token = 100
        for step in range(count):
            started = time.perf_counter()
            logits = self.runner.decode(token, position + step)
            token = int(logits.argmax())
            times.append(time.perf_counter() - started)
        return times

    def expected_memory(self) -> int:
        """Weights and cache on the device."""
        return self.runner.memory_bytes

    def traffic(self, position: int) -> list[int] | None:
        """Moved and least bytes."""
        traffic = self.runner.traffic(position)
        return [traffic.moved_bytes, traffic.least_bytes] if traffic else None

    def read(self) -> float | None:
        """Seconds, in this one try."""
        return self.runner.read_weights_seconds()

    @staticmethod
    def memory() -> int:
        """Peak resident bytes."""
        if sys.platform == "linux":  # ru_maxrss is inherited through exec: it may be that of whoever started this
            status = Path("/proc/self/status").read_text()
            return int(status.split("VmHWM:")[1].split()[0]) << 10
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * MAXRSS_UNIT


def main() -> None:
    """Answer lines until stdin closes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("path", type=Path)
    parser.add_argument("--num-ctx", type=int, default=2048)
    parser.add_argument("--device", default="")
    arguments = parser.parse_args()
    subject = Subject(arguments.path, arguments.num_ctx, arguments.device)
    answers = sys.stdout
    sys.stdout = sys.stderr  # whatever a library prints must not end up among the answers
    print(json.dumps({"ready": subject.runner.device}), file=answers, flush=True)
    for line in sys.stdin:
        operation, *parameters = json.loads(line)
        answer: Any = getattr(subject, operation)(*parameters)
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
