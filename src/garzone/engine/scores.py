"""The logits of a row as whoever chooses its next token sees them: mostly only the highest of them.

A vocabulary's worth of numbers stays where it was computed until somebody asks for all of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from garzone.kernels.highest import highest_ids


class Scores(Protocol):
    """Logits of one row, float32 over the vocabulary; good until the engine's next step."""

    @property
    def largest(self) -> float:
        """The highest; infinite or NaN where the logits are not numbers."""
        ...

    def all(self) -> NDArray[np.float32]:
        """All of them: (vocab,)."""
        ...

    def highest(self, count: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Ids of the `count` highest, ascending, and their logits; of equal ones the first."""
        ...


@dataclass(frozen=True, slots=True)
class HostScores:
    """Logits that lie in this process's memory."""

    logits: NDArray[np.float32]

    @property
    def largest(self) -> float:
        """As in Scores."""
        return float(self.logits.max())

    def all(self) -> NDArray[np.float32]:
        """As in Scores."""
        return self.logits

    def highest(self, count: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """As in Scores."""
        ids = np.array([self.logits.argmax()]) if count == 1 else highest_ids(self.logits, count)
        return ids, self.logits[ids]
