"""What tokens cost, as of when, and what a task would have cost otherwise. Pure; keeps nothing.

What is an estimate says so, and how it was made. Prices are dated, never fetched.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from garzone.core.task import Savings, Verdict

PRICE_DATE = "2026-11"
PRICE_SOURCE = "Anthropic's list prices as of 2026-11, USD per million tokens"
CHARS_PER_TOKEN = 4  # the rule of thumb used throughout; English and code lie between 3 and 5
ALONE = "alone"
SUB_AGENT = "cheap cloud sub-agent"

# What a coordinator does when it repairs something itself: read the files, run the check, edit, run the check again.
ALONE_TURNS = 4
TURN_OUTPUT_TOKENS = 120  # a tool call and the sentence before it
CHECK_OUTPUT_TOKENS = 300  # a short failing test run as the coordinator reads it, twice
CONTEXT_TOKENS = 20_000  # what every turn reads again from the prompt cache: system prompt, tools, conversation

ALONE_METHOD = (
    f"alone = estimated: reading the files, {ALONE_TURNS} turns of {TURN_OUTPUT_TOKENS} tokens, two check outputs of "
    f"{CHECK_OUTPUT_TOKENS} and writing the patch; the sub-agent does the same and costs the coordinator the same call "
    "and result."
)
CACHE_WRITE = 1.25  # times the input price, for the five-minute cache that coordinators use
CACHE_LIFE_S = 300.0  # after which what was written there has to be written again


def method(counted_by: str) -> str:
    """How the numbers of a task were found, in one sentence for the ledger and the report."""
    return f"spent = the call and the result text, counted by {counted_by}; {ALONE_METHOD}"


@dataclass(frozen=True, slots=True)
class Price:
    """List price of a model in USD per million tokens. `cache_read` is what reading a cached prompt costs."""

    model: str
    input: float
    output: float

    @property
    def cache_read(self) -> float:
        """A tenth of the input price: the upper end of what is charged."""
        return self.input / 10

    def usd(
        self,
        *,
        input_tokens: float = 0,
        output_tokens: float = 0,
        cached_tokens: float = 0,
        cache_write_tokens: float = 0,
    ) -> float:
        """What so many tokens cost. `cached_tokens` were read from the cache."""
        fresh = (input_tokens + CACHE_WRITE * cache_write_tokens) * self.input
        return (fresh + output_tokens * self.output + cached_tokens * self.cache_read) / 1e6


PRICES: dict[str, Price] = {
    price.model: price
    for price in (
        Price("Opus 5.5", 4, 20),
        Price("Opus 4.5 to 5", 5, 25),
        Price("Sonnet 5.5", 2, 10),
        Price("Sonnet 3.5 to 4.6", 3, 15),
        Price("Haiku 4.5", 1, 5),
        Price("Haiku 5.5", 0.10, 0.50),
    )
}
# From which version on a family has which price; identifiers are like `claude-opus-4-5-20251101`
_FAMILIES = (
    ("opus", 5.5, "Opus 5.5"),
    ("opus", 4.5, "Opus 4.5 to 5"),
    ("sonnet", 5.5, "Sonnet 5.5"),
    ("sonnet", 3.5, "Sonnet 3.5 to 4.6"),
    ("haiku", 5.5, "Haiku 5.5"),
    ("haiku", 4.5, "Haiku 4.5"),
)
COORDINATOR = PRICES["Opus 5.5"]
CHEAP = PRICES["Haiku 5.5"]


@dataclass(frozen=True, slots=True)
class Spent:
    """What a delegation cost the coordinator: the call it wrote, the result it read, one more turn.

    No turn where a person asked and no coordinator was in between.
    """

    call_tokens: int
    result_tokens: int
    num_turns: int = 1

    @property
    def tokens(self) -> int:
        """Fresh tokens; the cached context of the extra turn is in `usd` only."""
        return self.call_tokens + self.result_tokens

    @property
    def usd(self) -> float:
        """At the coordinator's price, the cache reads of the extra turn included."""
        return COORDINATOR.usd(
            input_tokens=self.result_tokens,
            output_tokens=self.call_tokens,
            cached_tokens=self.num_turns * CONTEXT_TOKENS,
        )


@dataclass(frozen=True, slots=True)
class Billed:
    """What a coordinator's transcript says one delegation used, as the API reported it.

    `call_output_tokens` is the part of the calling message that is this call; the other counts are the input side of
    the `num_turns` requests that carried its result (input, written to the cache, read from the cache). `usd` is None
    for a model whose price is not known.
    """

    source: str
    session: str
    at: str
    model: str
    call_output_tokens: int
    input_tokens: int
    cache_write_tokens: int
    cache_read_tokens: int
    num_turns: int
    usd: float | None
    price_date: str = PRICE_DATE

    @property
    def fresh_tokens(self) -> int:
        """Tokens that were not read from the cache."""
        return self.call_output_tokens + self.input_tokens + self.cache_write_tokens


@dataclass(frozen=True, slots=True)
class Baseline:
    """What one alternative would have cost: fresh tokens that somebody bills, and their price."""

    name: str
    model: str
    tokens: int
    usd: float
    price_date: str = PRICE_DATE


def estimate_tokens(text: str) -> int:
    """Tokens of a text by the stated rule, rounded up."""
    return -(-len(text) // CHARS_PER_TOKEN)


def price_of(model: str) -> Price | None:
    """The price of a model by its identifier; None for one that is not in the table."""
    for family, oldest, name in _FAMILIES:
        if family not in model.lower():
            continue
        found = re.search(rf"{family}-(\d)(?:-(\d)(?!\d))?|(\d)-(\d)-{family}", model.lower())
        if not found:
            continue
        major, minor = (found[1], found[2]) if found[1] else (found[3], found[4])
        if float(f"{major}.{minor or 0}") >= oldest:
            return PRICES[name]
    return None


def baselines(file_tokens: int, patch_tokens: int, spent: Spent) -> tuple[Baseline, Baseline]:
    """What the same work would have cost without garzone.

    Args:
        file_tokens: tokens of the files somebody had to read.
        patch_tokens: tokens of the change that was needed; 0 where it is not known.
        spent: what this delegation cost; a sub-agent needs the same call and result.

    Returns:
        The coordinator doing it alone, and a cheap cloud sub-agent doing it.
    """
    read = file_tokens + 2 * CHECK_OUTPUT_TOKENS
    written = patch_tokens + ALONE_TURNS * TURN_OUTPUT_TOKENS
    alone_usd = COORDINATOR.usd(
        input_tokens=read, output_tokens=written, cached_tokens=ALONE_TURNS * (CONTEXT_TOKENS + read / 2)
    )
    worker_usd = CHEAP.usd(
        input_tokens=read, output_tokens=written, cached_tokens=ALONE_TURNS * (CONTEXT_TOKENS + read) / 2
    )
    return (
        Baseline(ALONE, COORDINATOR.model, read + written, alone_usd),
        Baseline(SUB_AGENT, CHEAP.model, read + written + spent.tokens, worker_usd + spent.usd),
    )


def savings(spent: Spent, alternatives: tuple[Baseline, ...], counted_by: str) -> Savings:
    """The part of a report that says what it cost and what it is compared with."""
    return Savings(spent.tokens, {b.name: b.tokens for b in alternatives}, estimated=True, method=method(counted_by))


def net(outcome: str, baseline: float, spent: float) -> float:
    """What a delegation saved against a baseline. Only what was proved replaces the work; all else is a loss.

    An unproved result has to be looked at, a failed one done again: both are booked as what they cost.
    """
    return baseline - spent if outcome == Verdict.PROVED.value else -spent
