"""How a task has gone so far: candidates that failed, passed, were proved. Keeps account; says which is best."""

from __future__ import annotations

from collections import Counter
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
    num_asked_again: int = 0
    failed: list[Failed] = field(default_factory=list[Failed])
    doubtful: list[Passed] = field(default_factory=list[Passed])
    proved: list[Passed] = field(default_factory=list[Passed])
    seen: Counter[str] = field(default_factory=Counter[str])  # how often each program was written
    outcomes: list[str] = field(default_factory=list[str])
    ended_by: str = ""  # "time" or "tokens" where the budget did
    preferred: Passed | None = None  # of the least doubtful

    @property
    def best(self) -> Passed | None:
        """The smallest proved change; else the least doubtful of those that passed."""
        if self.proved:
            return min(self.proved, key=lambda passed: passed.draft.num_changed_lines)
        return self.preferred or next(iter(self.least_doubtful), None)

    @property
    def least_doubtful(self) -> list[Passed]:
        """Those that passed without a proof and with the fewest doubts, in the order they were tried.

        Of as many doubts, that weighs less of which less is wrong.
        """

        def weight(passed: Passed) -> tuple[int, int]:
            return len(passed.trial.doubts), max(passed.trial.num_failing, 0)

        least = min(map(weight, self.doubtful), default=None)
        return [passed for passed in self.doubtful if weight(passed) == least]

    def has_passed(self, draft: Draft) -> bool:
        """Whether the same program is among those that passed."""
        return any(passed.draft.key == draft.key for passed in (*self.proved, *self.doubtful))

    @property
    def closest(self) -> Failed | None:
        """The failed candidate that failed least."""
        tried = [failed for failed in self.failed if failed.draft]
        return min(tried, key=lambda failed: failed.num_failing) if tried else None
