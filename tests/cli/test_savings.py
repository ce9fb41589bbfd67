"""`garzone savings`: the ledger added up, failures as losses, every estimate marked."""

import contextlib
import importlib.util
import json
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from garzone.cli import garzone
from garzone.cli.savings import BAR_CELLS, bar, parse_since, sparkline
from garzone.core.errors import UnavailableError, UsageError
from garzone.core.task import Verdict
from garzone.delegate import pricing
from garzone.delegate.ledger import Ledger
from garzone.delegate.totals import total
from tests.delegate.rows import PRICES, a_task, book
from tests.delegate.test_reconcile import claude_code


@pytest.fixture
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ledger:
    monkeypatch.setenv("GARZONE_HOME", str(tmp_path))
    return Ledger(tmp_path / "ledger.db")


def savings(*arguments: str) -> Result:
    result = CliRunner().invoke(garzone, ["savings", *arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def document(*arguments: str) -> dict[str, Any]:
    return json.loads(savings("--json", *arguments).stdout)


def test_an_empty_ledger_says_so_and_is_not_made(ledger: Ledger) -> None:
    assert "No task in the ledger" in savings().stdout
    assert document()["tasks"] == 0
    assert not ledger.path.exists()


def test_totals_are_net_of_failures_against_each_baseline(ledger: Ledger) -> None:
    for verdict in (Verdict.PROVED, Verdict.PROVED, Verdict.FAILED, Verdict.UNPROVED):
        book(ledger, verdict)
    totals = document()
    one = pricing.baselines(300, 20, pricing.Spent(40, 60))
    assert totals["outcomes"] == {"failed": 1, "proved": 2, "unproved": 1}
    assert totals["coordinator_tokens_spent"] == 400
    for other in one:
        figures = totals["baselines"][other.name]
        assert figures["tokens"] == 2 * other.tokens
        assert figures["net_tokens"] == 2 * other.tokens - 400
        assert figures["net_usd"] == pytest.approx(2 * other.usd - 4 * pricing.Spent(40, 60).usd, abs=1e-5)
    assert totals["estimated"] is True
    assert totals["estimated_tasks"] == 4
    assert totals["price_dates"] == ["2026-11"]


def test_failures_alone_are_a_loss(ledger: Ledger) -> None:
    book(ledger, Verdict.FAILED)
    assert document()["baselines"]["alone"]["net_tokens"] == -100
    assert "-100" in savings().stdout


def test_a_killed_task_is_booked_with_what_its_call_cost(ledger: Ledger) -> None:
    ledger.begin(a_task(), pricing.Spent(40, 0), PRICES, size_bytes=0, caller="cli")
    assert document()["outcomes"] == {"running": 1}
    assert document()["coordinator_tokens_spent"] == 0  # not yet over
    with contextlib.closing(__import__("sqlite3").connect(ledger.path)) as connection:
        connection.execute("UPDATE tasks SET deadline_at = 0")
        connection.commit()
    assert document()["outcomes"] == {"interrupted": 1}
    assert document()["baselines"]["alone"]["net_tokens"] == -40


def test_people_see_both_baselines_every_model_and_that_it_is_an_estimate(ledger: Ledger) -> None:
    book(ledger)
    book(ledger, Verdict.FAILED, task=a_task(model="other"))
    shown = savings().stdout
    assert "cheap cloud sub-agent" in shown
    assert "alone" in shown
    assert "scripted" in shown
    assert "█" in shown
    assert "estimated" in shown
    assert "2026-11" in shown


def test_since_takes_spans_and_dates(ledger: Ledger) -> None:
    book(ledger)
    assert document("--since", "1h")["tasks"] == 1
    assert document("--since", "2999-01-01")["tasks"] == 0
    assert parse_since("2d", 1_000_000.0) == 1_000_000.0 - 172800
    assert parse_since("2026-11-01", time.time()) == datetime(2026, 11, 1).timestamp()
    with pytest.raises(UsageError, match="12h, 7d, 4w"):
        parse_since("yesterday", time.time())


def test_totals_of_nothing_are_zero() -> None:
    nothing = total([])
    assert nothing.num_tasks == 0
    assert all(net.net_tokens == 0 for net in nothing.nets)


def test_a_bar_is_as_long_as_its_share_and_never_empty_for_something() -> None:
    assert bar(1.0) == "█" * BAR_CELLS
    assert bar(0.0) == ""
    assert bar(1e-9) == "▏"
    assert len(bar(0.5)) == BAR_CELLS // 2


def test_reconcile_reads_the_transcripts_of_this_user(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    book(ledger)
    monkeypatch.setenv("HOME", str(tmp_path))
    for variable in ("CLAUDE_CONFIG_DIR", "OPENCLAW_STATE_DIR", "CLAWDBOT_STATE_DIR"):
        monkeypatch.delenv(variable, raising=False)
    transcript = tmp_path / ".claude" / "projects" / "-p" / "s1.jsonl"
    transcript.parent.mkdir(parents=True)
    transcript.write_text("\n".join(claude_code()))
    assert document()["billed_tasks"] == 0
    totals = document("--reconcile")
    assert totals["billed_tasks"] == 1
    assert totals["coordinator_tokens_spent"] == 173
    assert "1 as billed" in savings().stdout


def test_the_course_is_shown_and_says_where_it_ends(ledger: Ledger) -> None:
    for verdict in (Verdict.PROVED, Verdict.FAILED, Verdict.PROVED):
        book(ledger, verdict)
    shown = savings().stdout
    assert "task after task" in shown
    assert "█" in shown
    assert sparkline([0.0, 1.0, 2.0]) == "▁▅█"
    assert len(sparkline(list(map(float, range(1000))))) <= 48
    assert sparkline([5.0, 5.0]) == "▁▁"


def test_a_plot_is_written_or_said_to_need_the_extra(ledger: Ledger, tmp_path: Path) -> None:
    book(ledger)
    result = CliRunner().invoke(garzone, ["savings", "--out", str(tmp_path / "out")])
    assert json.loads((tmp_path / "out" / "savings.json").read_text())["tasks"] == 1
    if importlib.util.find_spec("matplotlib"):
        assert (tmp_path / "out" / "savings.png").read_bytes().startswith(b"\x89PNG")
    else:
        assert isinstance(result.exception, UnavailableError)
        assert "garzone[bench]" in str(result.exception)
