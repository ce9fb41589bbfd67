"""How a task has gone so far: candidates that failed, passed, were proved. Keeps account; says which is best."""

from __future__ import annotations

from dataclasses import dataclass, field

from garzone.agent.changes import Draft
from garzone.agent.context import Target
from garzone.agent.kinds import Attempt, Job
from garzone.agent.proof import Trial


@dataclass(slots=True)
class Failed:
    """A candidate that was not good enough, and what is needed to repair it."""

    target: Target
    attempt: Attempt
    num_failing: int
    draft: Draft | None = None


@dataclass(frozen=True, slots=True)
class Passed:
    """A candidate that passed; whether it is a proof says its trial."""

    target: Target
    draft: Draft
    trial: Trial


@dataclass(slots=True)
class Course:
    """How a task has gone so far."""

    job: Job
    targets: list[Target]
    num_candidates: int = 0
    num_rounds: int = 0
    num_malformed: int = 0
    failed: list[Failed] = field(default_factory=list[Failed])
    doubtful: list[Passed] = field(default_factory=list[Passed])
    proved: list[Passed] = field(default_factory=list[Passed])
    seen: set[str] = field(default_factory=set[str])
    outcomes: list[str] = field(default_factory=list[str])
    ended_by: str = ""  # "time" or "tokens" where the budget did

    @property
    def best(self) -> Passed | None:
        """The smallest proved change; else the least doubtful of those that passed."""
        if self.proved:
            return min(self.proved, key=lambda passed: passed.draft.num_changed_lines)
        return min(self.doubtful, key=lambda passed: len(passed.trial.doubts)) if self.doubtful else None

    @property
    def closest(self) -> Failed | None:
        """The failed candidate that failed least."""
        tried = [failed for failed in self.failed if failed.draft]
        return min(tried, key=lambda failed: failed.num_failing) if tried else None
