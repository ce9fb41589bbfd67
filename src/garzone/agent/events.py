"""What the worker tells while it works, for progress bars and logs. Nobody has to listen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CheckFinished:
    """A check ended. `stage` is `before` or `candidate`."""

    stage: str
    command: str
    exit_code: int
    duration_ms: float


@dataclass(frozen=True, slots=True)
class CandidateStarted:
    """The model is asked for candidate `number` (from 1) of this task, for `target`; again after `AskedAgain`."""

    number: int
    round: int
    target: str
    temperature: float


@dataclass(frozen=True, slots=True)
class CandidateText:
    """A piece of what the model writes."""

    number: int
    text: str


@dataclass(frozen=True, slots=True)
class CandidateJudged:
    """What became of a candidate: `proved`, `unproved`, `failed`, or why it was not run at all."""

    number: int
    outcome: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class AskedAgain:
    """An answer held nothing to try (`unusable`, `duplicate`), and the model is asked once more for this candidate."""

    number: int
    outcome: str
    reason: str = ""


Event = CheckFinished | CandidateStarted | CandidateText | CandidateJudged | AskedAgain
Listener = Callable[[Event], None]
