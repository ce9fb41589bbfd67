"""How long tasks take on a device: guessed, told by its roof, then learnt; and what the policy makes of it."""

from dataclasses import replace
from pathlib import Path

import pytest

from garzone.agent.worker import KINDS
from garzone.core.generation import ServedBy
from garzone.core.task import Route, TaskKind, TokenCount, Verdict
from garzone.delegate import pricing
from garzone.delegate.belief import History, Observation
from garzone.delegate.ledger import Ledger
from garzone.delegate.policy import DeviceFacts, FileFacts, TaskFacts, route
from garzone.delegate.run import decide
from garzone.delegate.speed import Expected, Pace, Timing
from tests.delegate.rows import PRICES, a_report, a_task

FACTS = TaskFacts(TaskKind.FIX, "off by one in paginate", repo="/r", model="m", files=(FileFacts("a.py", 2000),))
SLOW = [Timing("m", "CPU", 2000, 300, 900.0)] * 4
FAST = [Timing("m", "AMD", 2000, 300, 8.0)] * 4


def test_a_normal_logarithm_has_half_its_tasks_before_the_median() -> None:
    assert Expected(60, 0.8).probability_after(60) == pytest.approx(0.5)
    assert Expected(60, 0.8).probability_after(600) < 0.01
    assert Expected(60, 0.8).probability_after(6) > 0.99


def test_what_was_seen_on_a_device_counts_there_and_nowhere_else() -> None:
    pace = Pace.of([*SLOW, *FAST])
    slow, fast = pace.expect("m", "CPU", 2000), pace.expect("m", "AMD", 2000)
    assert slow.seconds > 300
    assert fast.seconds < 30
    assert pace.expect("m", "METAL", 2000).num_observed == 0
    assert pace.expect("another", "CPU", 2000).seconds == pace.expect("m", "METAL", 2000).seconds


def test_a_roof_tells_before_anything_was_seen_and_more_tasks_make_surer() -> None:
    guess, told = Pace().expect("m", "AMD", 2000), Pace().expect("m", "AMD", 2000, roof_tokens_per_s=170)
    assert told.spread < guess.spread
    assert told.seconds < Pace().expect("m", "CPU", 2000, roof_tokens_per_s=2).seconds
    assert Pace.of(FAST).expect("m", "AMD", 2000).spread < told.spread


def test_one_task_without_tokens_or_time_tells_nothing() -> None:
    pace = Pace.of([Timing("m", "CPU", 2000, 0, 900.0), Timing("m", "CPU", 2000, 300, 0.0)])
    assert pace.expect("m", "CPU", 2000) == Pace().expect("m", "CPU", 2000)


def test_the_same_task_goes_to_the_fast_device_and_not_to_the_slow_one() -> None:
    able = History.of([Observation("/r", "fix", "m", 2000, True)] * 10)
    pace = Pace.of([*SLOW, *FAST])
    fast = route(replace(FACTS, device=DeviceFacts("AMD")), able, pace)
    slow = route(replace(FACTS, device=DeviceFacts("CPU")), able, pace)
    assert (fast.route, slow.route) == (Route.LOCAL, Route.COORDINATOR)
    assert fast.expected_value_tokens > slow.expected_value_tokens
    assert "s on CPU" in slow.reason
    assert "faster device" in slow.suggestion[0]
    assert slow.success_probability < fast.success_probability, "what is not done in time is not proved"


def test_a_device_that_nothing_is_known_of_is_worth_a_little_less_than_one_known_to_be_fast() -> None:
    unknown = route(FACTS, History())
    known = route(replace(FACTS, device=DeviceFacts("AMD", 170.0)), History())
    assert unknown.route is known.route is Route.LOCAL
    assert unknown.expected_value_tokens < known.expected_value_tokens
    assert "a guess" in unknown.reason
    assert "a guess" not in known.reason


def test_a_shorter_deadline_makes_success_less_likely() -> None:
    device = DeviceFacts("CPU", 5.0)
    long, short = (route(replace(FACTS, device=device, timeout_s=limit), History()) for limit in (600.0, 60.0))
    assert short.success_probability < long.success_probability


def test_the_ledger_tells_devices_apart_and_does_not_blame_the_model_for_time(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.db")
    repo = tmp_path / "repo"
    repo.mkdir()
    (repo / "shop.py").write_text("x = 1\n" * 200)
    task = a_task(repo, timeout_s=600.0)

    def book(verdict: Verdict, device: str, seconds: float, backend: str | None = None) -> None:
        served = ServedBy("scripted", "", "tinygrad", device)
        row = ledger.begin(replace(task, backend=backend), pricing.Spent(40, 0), PRICES, size_bytes=1200, caller="cli")
        report = a_report(verdict, served_by=served, duration_ms=seconds * 1e3, tokens=TokenCount(900, 0, 300))
        ledger.finish(row, report, pricing.Spent(40, 60), [], size_bytes=1200)

    for _ in range(3):
        book(Verdict.PROVED, "AMD gfx1100", 8.0)
        book(Verdict.FAILED, "CPU", 599.0)
        book(Verdict.PROVED, "", 20.0, backend="http://127.0.0.1:8000")
    assert [seen.proved for seen in ledger.observations()] == [True] * 6
    assert {(timing.device, timing.seconds) for timing in ledger.timings()} == {
        ("AMD", 8.0),
        ("CPU", 599.0),
        ("http://127.0.0.1:8000", 20.0),
    }
    on = {name: decide(task, ledger, DeviceFacts(name)) for name in ("AMD", "CPU")}
    assert on["AMD"].route is Route.LOCAL
    assert on["CPU"].route is Route.COORDINATOR
    assert on["CPU"].expected_seconds > 10 * on["AMD"].expected_seconds
    assert task.kind in KINDS
