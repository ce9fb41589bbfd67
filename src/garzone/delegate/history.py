"""The ledger as others show it: recent tasks in one line each, and the totals. Implements `core.ports.TaskHistory`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from garzone.core.task import TaskSummary
from garzone.delegate.ledger import Ledger
from garzone.delegate.totals import total


class LedgerHistory:
    """What one ledger has. Opens it for every call, and never creates it."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def recent(self, limit: int) -> list[TaskSummary]:
        """The latest tasks, the newest first. Raises LedgerError."""
        return [
            TaskSummary(
                id=entry.task_id,
                kind=entry.kind,
                repo=entry.repo,
                model=entry.model,
                outcome=entry.outcome,
                started_at=entry.started_at,
                completion_tokens=entry.completion_tokens,
                coordinator_tokens_spent=entry.coordinator_tokens_spent,
            )
            for entry in self._ledger.entries()[: -limit - 1 : -1]
        ]

    def savings(self) -> Mapping[str, Any]:
        """Totals over everything. Raises LedgerError."""
        return total(self._ledger.entries()).to_json()
