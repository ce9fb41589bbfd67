"""Numbers measured by tests, printed at the end of the run so that a person sees them without asking."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Number:
    name: str
    value: str
    goal: str


RECORDED: list[Number] = []


def record_number(name: str, value: object, goal: str = "") -> None:
    """Keep a measured number for the summary. `value` may be a float (printed with four significant digits)."""
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    RECORDED.append(Number(name, text, goal))
