"""The numbers of delegating: what a coordinator spends on it, how well the policy decides, what a batch costs.

From recorded transcripts of the real Claude Code and from simulated streams; asks no model. Draws nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, cast

from garzone.bench import delegation_cost, policy_streams
from garzone.tool import DESCRIPTION, NAME, input_schema

TYPICAL_TASKS, TYPICAL_BYTES = 10, 8_000  # the batch that is held against the goal; all others are shown, too


@dataclass(frozen=True, slots=True)
class Number:
    """One figure and its goal. `ok` is None where there is none."""

    name: str
    value: float
    unit: str
    goal: str = ""
    ok: bool | None = None

    def to_json(self) -> dict[str, Any]:
        """A document for `--json`."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class DelegationReport:
    """All figures, the streams and batches behind them, and how tokens were counted."""

    numbers: tuple[Number, ...]
    streams: tuple[policy_streams.Summary, ...]
    batches: tuple[delegation_cost.Batch, ...]
    counted_by: str

    def to_json(self) -> dict[str, Any]:
        """A document for `--json`."""
        return {
            "numbers": [number.to_json() for number in self.numbers],
            "streams": [stream.to_json() for stream in self.streams],
            "batches": [batch.to_json() for batch in self.batches],
            "tokens_counted_by": self.counted_by,
        }


def measure(
    count: Callable[[str], int], counted_by: str, *, num_streams: int = 10, success_rate: float = 0.7
) -> DelegationReport:
    """Everything.

    Args:
        count: tokens of a text.
        counted_by: whose count that is.
        num_streams: simulated streams of each sort.
        success_rate: of the worker, in the batches.
    """
    call, result = recorded_call()
    schema = count(json.dumps({"name": NAME, "description": DESCRIPTION, "input_schema": input_schema()}))
    streams = policy_streams.measure(num_streams)
    batches = delegation_cost.measure(success_rate)
    personal = streams[0]
    _, delegating = delegation_cost.recorded()
    numbers = [
        _at_most("tool schema and description", schema, "tokens", 350),
        _at_most("call and result of one delegation, recorded", count(call) + count(result), "tokens", 300),
        _at_most("the same as the recorded conversation grew by it", _growth(delegating), "tokens, bytes / 4", 300),
        _at_most("extra coordinator turns per delegation", len(delegating.extra), "turns", 1),
        _at_most("policy: regret / the better fixed policy's, median", personal.regret_ratio, "", 0.10),
        _at_most("policy: the same, worst stream", personal.worst_regret_ratio, "", 0.10),
        _at_most("policy: calibration error after 500, worst stream", personal.worst_calibration_error, "", 0.05),
    ]
    for batch in batches:
        if batch.num_tasks == TYPICAL_TASKS and batch.file_tokens * 4 == TYPICAL_BYTES:
            how = "in one message" if batch.together else "one by one"
            name = f"cost of {batch.num_tasks} tasks about {TYPICAL_BYTES:,} bytes, {how}, against alone"
            numbers.append(_at_most(name, batch.ratio, "times", 0.40))
    return DelegationReport(tuple(numbers), tuple(streams), tuple(batches), counted_by)


def recorded_call() -> tuple[str, str]:
    """What the recorded coordinator wrote as the call, and read as the result."""
    call = result = ""
    for line in delegation_cost.recorded_lines("delegating"):
        content: Any = json.loads(line)["message"]["content"]
        for block in cast("list[dict[str, Any]]", content) if isinstance(content, list) else []:
            if block["type"] == "tool_use":
                call = json.dumps({"name": block["name"], "input": block["input"]}, ensure_ascii=False)
            elif block["type"] == "tool_result":
                result = "".join(part["text"] for part in block["content"])
    return call, result


def _growth(delegating: delegation_cost.Transcript) -> int:
    return delegating.answer.new_tokens + delegating.extra[0].output_tokens


def _at_most(name: str, value: float, unit: str, goal: float) -> Number:
    return Number(name, value, unit, f"at most {goal:g}", value <= goal)
