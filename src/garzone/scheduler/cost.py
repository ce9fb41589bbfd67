"""How long a step of so many rows takes, learnt from those that were run, and how far ahead it pays to guess. Pure.

Times decide only how much is computed at once, never what comes out.
"""

from __future__ import annotations

from typing import Final

# With the token before them they fill the tiles in which matrices are multiplied (kernels/cpu/csrc/linear.c).
DRAFT_LENGTHS: Final = (1, 3, 7, 15, 23, 31)
_WEIGHT: Final = 0.2  # of a new time against what was known
_OPTIMISM: Final = 0.01  # of a step: what an extra row is taken to cost before it was ever tried


class StepTimes:
    """A running mean of the time of a step, for step sizes by powers of two."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[float, float]] = {}  # size class -> (rows, ms)

    def observe(self, num_rows: int, duration_ms: float) -> None:
        """A step of so many rows took so long."""
        size = num_rows.bit_length()
        if size not in self._known:
            self._known[size] = (num_rows, duration_ms)
            return
        rows, known = self._known[size]
        # a step that was interrupted by something else says little about the next
        duration_ms = min(duration_ms, 2 * known)
        self._known[size] = (rows + _WEIGHT * (num_rows - rows), known + _WEIGHT * (duration_ms - known))

    def estimate(self, num_rows: int) -> float:
        """Milliseconds, read off a line between the nearest sizes tried; larger sizes are expected to be cheap."""
        points = sorted(self._known.values())
        if not points:
            return 1.0 + _OPTIMISM * num_rows
        below = [point for point in points if point[0] <= num_rows]
        above = [point for point in points if point[0] > num_rows]
        if below and above:
            (x0, y0), (x1, y1) = below[-1], above[0]
            return y0 + (y1 - y0) * (num_rows - x0) / (x1 - x0)
        x0, y0 = below[-1] if below else above[0]
        return max(y0 * (1 + _OPTIMISM * (num_rows - x0)), 0.1 * y0)


def expected_tokens(acceptance: float, length: int) -> float:
    """Tokens that a step with a guess of that length yields: those up to the first wrong one, which is replaced."""
    if acceptance >= 1.0:
        return length + 1.0
    return (1.0 - acceptance ** (length + 1)) / (1.0 - acceptance)


def draft_length(acceptance: float, max_length: int, num_rows: int, num_others: int, times: StepTimes) -> int:
    """How many guessed tokens to check in a step so that most tokens come out in a second.

    Args:
        acceptance: probability that a guessed token is right if those before it are.
        max_length: the most there can be.
        num_rows: rows of the step without this guess.
        num_others: tokens that the step yields for other sequences.
        times: what steps take.

    Returns:
        0 when guessing does not pay.
    """
    best, best_rate = 0, (num_others + 1.0) / times.estimate(num_rows)
    most = min(max_length, DRAFT_LENGTHS[-1])
    for length in sorted({*(length for length in DRAFT_LENGTHS if length < most), most}):
        rate = (num_others + expected_tokens(acceptance, length)) / times.estimate(num_rows + length)
        if rate > best_rate:
            best, best_rate = length, rate
    return best
