"""Prices and baselines: dated, honest about failures, and about how little is saved against a cheap sub-agent."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from garzone.core.task import Verdict
from garzone.delegate import pricing
from garzone.delegate.pricing import CHEAP, COORDINATOR, Spent


def test_a_million_tokens_cost_what_the_list_says() -> None:
    assert COORDINATOR.usd(input_tokens=1e6) == 4
    assert COORDINATOR.usd(output_tokens=1e6) == 20
    assert COORDINATOR.usd(cached_tokens=1e6) == pytest.approx(0.4)
    assert (CHEAP.input, CHEAP.output) == (0.10, 0.50)


def test_tokens_are_estimated_at_four_characters_each_rounded_up() -> None:
    assert [pricing.estimate_tokens(text) for text in ("", "a", "abcd", "abcde")] == [0, 1, 1, 2]


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 2000), st.integers(0, 500), st.integers(0, 500))
def test_a_sub_agent_costs_more_tokens_and_less_money_than_doing_it_alone(
    file_tokens: int, patch_tokens: int, call: int, result: int
) -> None:
    spent = Spent(call, result)
    alone, sub_agent = pricing.baselines(file_tokens, patch_tokens, spent)
    assert sub_agent.tokens == alone.tokens + spent.tokens
    assert sub_agent.usd - spent.usd < alone.usd
    assert sub_agent.usd > spent.usd


def test_against_a_cheap_sub_agent_almost_no_fees_are_saved() -> None:
    spent = Spent(60, 100)
    alone, sub_agent = pricing.baselines(1000, 100, spent)
    saved_alone = pricing.net("proved", alone.usd, spent.usd)
    saved_sub_agent = pricing.net("proved", sub_agent.usd, spent.usd)
    assert 0 < saved_sub_agent < saved_alone / 10


@pytest.mark.parametrize("outcome", ["failed", "unproved", "error", "cancelled", "interrupted"])
def test_whatever_is_not_proved_is_booked_as_a_loss(outcome: str) -> None:
    assert pricing.net(outcome, 5200, 310) == -310
    assert pricing.net(Verdict.PROVED.value, 5200, 310) == 4890


def test_the_report_says_that_it_is_an_estimate_and_how_it_was_made() -> None:
    spent = Spent(60, 100)
    savings = pricing.savings(spent, pricing.baselines(1000, 0, spent), "4 characters a token")
    assert savings.estimated
    assert savings.coordinator_tokens_spent == 160
    assert set(savings.baseline_tokens) == {"alone", "cheap cloud sub-agent"}
    assert "4 characters a token" in savings.method


@pytest.mark.parametrize(
    ("model", "price"),
    [
        ("claude-opus-4-5-20251101", "Opus 4.5 to 5"),
        ("claude-opus-5-5", "Opus 5.5"),
        ("claude-sonnet-4-20250514", "Sonnet 3.5 to 4.6"),
        ("claude-3-5-sonnet-20241022", "Sonnet 3.5 to 4.6"),
        ("anthropic/claude-sonnet-5-5", "Sonnet 5.5"),
        ("claude-haiku-4-5-20251001", "Haiku 4.5"),
        ("claude-haiku-5-5@20261001", "Haiku 5.5"),
        ("claude-opus-4-20250514", None),  # it cost three times as much
        ("gpt-5", None),
        ("opus", None),
    ],
)
def test_a_models_price_is_found_by_its_identifier_or_not_at_all(model: str, price: str | None) -> None:
    found = pricing.price_of(model)
    assert (found.model if found else None) == price
