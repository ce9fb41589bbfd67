"""A task, what came of it, and the report a coordinator reads. Not how a task is done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from garzone.core.generation import ServedBy

SUMMARY_CHARS = 400  # what a coordinator reads of a report (CONTRACT.md)
POST_MORTEM_CHARS = 400


class TaskKind(Enum):
    """What may be delegated. Each kind has its own proof."""

    COMPLETE = "complete"
    FIX = "fix"
    REFACTOR = "refactor"
    TESTS = "tests"
    DOCS = "docs"
    TRANSLATE = "translate"
    REVIEW = "review"
    IMPLEMENT = "implement"


class Verdict(Enum):
    """What was observed. PROVED only when a check that says something ran in the sandbox and passed on the result."""

    PROVED = "proved"
    UNPROVED = "unproved"
    FAILED = "failed"


class Route(Enum):
    """Who should do a task."""

    LOCAL = "local"
    COORDINATOR = "coordinator"


@dataclass(frozen=True, slots=True)
class Task:
    """One bounded piece of work on one repository.

    `files` are paths relative to `repo`. `check` is a shell command whose exit code 0 means good; None means find
    the project's own, or do without. `backend` None is the embedded engine, otherwise a URL. `timeout_s` bounds the
    whole task, `check_timeout_s` one run of the check. `parallel` candidates are written and tried at the same time.
    An answer that holds nothing to try is followed by another one, at most `num_candidates` times a round.
    `max_tokens` bounds what all candidates together may write (None: only the time does).
    """

    id: str
    kind: TaskKind
    instruction: str
    repo: Path
    files: tuple[str, ...] = ()
    check: str | None = None
    model: str = ""
    backend: str | None = None
    num_candidates: int = 4
    max_rounds: int = 2
    timeout_s: float = 600.0
    check_timeout_s: float = 60.0
    apply: bool = False
    unsandboxed: bool = False
    parallel: int = 4
    max_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class FileChange:
    """How many lines of one file the patch adds and removes."""

    path: str
    added: int
    removed: int


@dataclass(frozen=True, slots=True)
class Check:
    """A check as it ran on the result, and the exit code it gave before the change (None: it did not run before)."""

    command: str
    exit_code: int
    duration_ms: float
    before_exit_code: int | None = None


@dataclass(frozen=True, slots=True)
class TokenCount:
    """Tokens of all candidates of a task. `prompt` includes `cached`."""

    prompt: int = 0
    cached: int = 0
    completion: int = 0

    def __add__(self, other: TokenCount) -> TokenCount:
        return TokenCount(self.prompt + other.prompt, self.cached + other.cached, self.completion + other.completion)


@dataclass(frozen=True, slots=True)
class Savings:
    """What the coordinator spent on this delegation and what each baseline would have spent, in tokens."""

    coordinator_tokens_spent: int = 0
    baseline_tokens: Mapping[str, int] = field(default_factory=dict[str, int])
    estimated: bool = True
    method: str = ""


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding of a review.

    `severity` is `high`, `medium` or `low`; `line` counts from 1 and `quote` is what stands there. `seen` is True when
    a check in the sandbox showed the claimed bug happening (`check` is its code); otherwise the finding is an opinion.
    """

    severity: str
    path: str
    line: int
    quote: str
    reason: str
    suggestion: str = ""
    seen: bool = False
    check: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """What came of a task. `to_json` is the contract; fields are only ever added.

    `applied` is True when the patch is in the user's working tree, because it was asked for. `num_malformed` counts
    answers that could not be applied, `num_asked_again` those that held nothing to try (malformed, or a repetition) and
    were followed by another one for the same candidate. `proof` is what the kind's proof measured (a mutation score,
    how many inputs were compared), `findings` are a review's, `written_tests` is the text of tests that the model wrote
    for itself.
    """

    task_id: str
    kind: TaskKind
    verdict: Verdict
    summary: str
    files: tuple[FileChange, ...] = ()
    branch: str | None = None
    patch: str = ""
    checks: tuple[Check, ...] = ()
    num_candidates: int = 0
    num_rounds: int = 0
    tokens: TokenCount = field(default_factory=TokenCount)
    served_by: ServedBy | None = None
    duration_ms: float = 0.0
    post_mortem: str | None = None
    savings: Savings | None = None
    sandboxed: bool = True
    applied: bool = False
    notes: tuple[str, ...] = ()
    num_malformed: int = 0
    num_asked_again: int = 0
    proof: Mapping[str, Any] = field(default_factory=dict[str, Any])
    findings: tuple[Finding, ...] = ()
    written_tests: str = ""

    def to_json(self) -> dict[str, Any]:
        """The document `garzone delegate --json` prints (CONTRACT.md, Report)."""
        served = self.served_by
        savings = self.savings
        return {
            "id": self.task_id,
            "verdict": self.verdict.value,
            "kind": self.kind.value,
            "summary": self.summary,
            "files": [{"path": f.path, "added": f.added, "removed": f.removed} for f in self.files],
            "branch": self.branch,
            "patch": self.patch,
            "checks": [
                {
                    "command": c.command,
                    "exit_code": c.exit_code,
                    "duration_ms": round(c.duration_ms),
                    "before_exit_code": c.before_exit_code,
                }
                for c in self.checks
            ],
            "candidates": self.num_candidates,
            "rounds": self.num_rounds,
            "tokens": {
                "prompt": self.tokens.prompt,
                "cached": self.tokens.cached,
                "completion": self.tokens.completion,
            },
            "served_by": served
            and {
                "model": served.model,
                "digest": served.digest,
                "backend": served.backend,
                "device": served.device,
            },
            "duration_ms": round(self.duration_ms),
            "post_mortem": self.post_mortem,
            "savings": savings
            and {
                "coordinator_tokens_spent": savings.coordinator_tokens_spent,
                "baseline_tokens": dict(savings.baseline_tokens),
                "estimated": savings.estimated,
                "method": savings.method,
            },
            "sandboxed": self.sandboxed,
            "applied": self.applied,
            "notes": list(self.notes),
            "malformed": self.num_malformed,
            "asked_again": self.num_asked_again,
            "proof": dict(self.proof),
            "findings": [
                {
                    "severity": finding.severity,
                    "path": finding.path,
                    "line": finding.line,
                    "quote": finding.quote,
                    "reason": finding.reason,
                    "suggestion": finding.suggestion,
                    "status": "seen" if finding.seen else "opinion",
                    "check": finding.check,
                }
                for finding in self.findings
            ],
            "written_tests": self.written_tests,
        }


@dataclass(frozen=True, slots=True)
class TaskSummary:
    """A delegated task in one line. `outcome` is a verdict, or `running`, `error`, `cancelled`, `interrupted`."""

    id: str
    kind: str
    repo: str
    model: str
    outcome: str
    started_at: float
    completion_tokens: int
    coordinator_tokens_spent: int
