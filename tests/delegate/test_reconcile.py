"""Transcripts of the real programs (recorded, cut to what is read) turn estimates into what was billed."""

import contextlib
import json
import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from garzone.core.task import Verdict
from garzone.delegate import pricing
from garzone.delegate.ledger import Ledger
from garzone.delegate.reconcile import reconcile
from garzone.delegate.totals import total
from garzone.delegate.transcripts import bills
from tests.delegate.rows import a_task, book

RESULT = "proved: Rewrote take in shop.py. Branch garzone/fix-ab12cd34. [garzone ab12cd34, scripted on CPU]"
ARGUMENTS = {"kind": "fix", "task": "take() adds", "files": ["shop.py"], "check": "pytest -q"}


def claude_code(*, with_result: bool = True, model: str = "claude-opus-5-5") -> list[str]:
    """Lines as Claude Code 2.1.332 writes them: one a content block, the usage of the whole message in each."""
    first = {"input_tokens": 3, "cache_creation_input_tokens": 12_500, "cache_read_input_tokens": 0}
    second = {"input_tokens": 3, "cache_creation_input_tokens": 130, "cache_read_input_tokens": 12_500}
    name = "mcp__plugin_garzone_garzone__delegate"
    text = {"type": "text", "text": "x" * len(json.dumps(ARGUMENTS))}  # as long as the call: half of the message
    call = {"type": "tool_use", "id": "toolu_1", "name": name, "input": ARGUMENTS}

    def answer(id: str, block: dict[str, Any], usage: dict[str, int], output: int) -> dict[str, Any]:
        message = {"id": id, "role": "assistant", "model": model, "content": [block]}
        return {
            "type": "assistant",
            "sessionId": "s1",
            "timestamp": "2026-11-25T20:22:04Z",
            "message": {**message, "usage": {**usage, "output_tokens": output}},
        }

    content = [{"tool_use_id": "toolu_1", "type": "tool_result", "content": [{"type": "text", "text": RESULT}]}]
    events: list[dict[str, Any]] = [
        {"type": "user", "message": {"role": "user", "content": "fix it"}},
        answer("msg_1", text, first, 1),
        answer("msg_1", call, first, 80),
        {"type": "user", "message": {"role": "user", "content": content}},
        answer("msg_2", {"type": "text", "text": "Done."}, second, 9),
    ]
    return [json.dumps(event) for event in (events if with_result else events[:3])]


def openclaw() -> list[str]:
    """Events as OpenClaw 2026.9.6 and Clawdbot keep them."""

    def message(id: str, **fields: Any) -> dict[str, Any]:
        return {"type": "message", "id": id, "timestamp": "2026-11-25T20:58:50Z", "message": fields}

    call = {"type": "toolCall", "id": "toolu_1", "name": "delegate", "arguments": ARGUMENTS}
    answer = {"role": "assistant", "model": "claude-sonnet-4-5"}
    first = {"input": 3, "output": 31, "cacheRead": 0, "cacheWrite": 9384}
    second = {"input": 3, "output": 12, "cacheRead": 9384, "cacheWrite": 201}
    events = [
        {"type": "session", "version": 4, "id": "s2"},
        message("m0", role="user", content="fix it"),
        message("m1", **answer, content=[call], usage=first),
        message("m2", role="toolResult", toolCallId="toolu_1", content=[{"type": "text", "text": RESULT}]),
        message("m3", **answer, content=[{"type": "text", "text": "Done."}], usage=second),
    ]
    return [json.dumps(event) for event in events]


def test_claude_codes_transcript_says_what_call_and_extra_turn_were_billed() -> None:
    (bill,) = bills(claude_code(), source="claude-code").values()
    assert bill.call_output_tokens == 40  # half of the message's 80: the other half was talk
    assert (bill.input_tokens, bill.cache_write_tokens, bill.cache_read_tokens) == (3, 130, 12_500)
    assert bill.num_turns == 1
    assert bill.session == "s1"
    opus = pricing.PRICES["Opus 5.5"]
    expected = opus.usd(input_tokens=3, output_tokens=40, cached_tokens=12_500, cache_write_tokens=130)
    assert bill.usd == pytest.approx(expected)
    assert bill.fresh_tokens == 173


def test_openclaws_events_are_read_likewise() -> None:
    bill = bills(openclaw(), source="openclaw", session="s2")["ab12cd34"]
    assert (bill.call_output_tokens, bill.input_tokens, bill.cache_write_tokens, bill.cache_read_tokens) == (
        31,
        3,
        201,
        9384,
    )
    assert bill.model == "claude-sonnet-4-5"
    assert bill.usd is not None


def test_a_call_that_has_no_result_yet_is_no_bill() -> None:
    assert bills(claude_code(with_result=False), source="claude-code") == {}


def test_a_model_without_a_price_has_tokens_but_no_amount() -> None:
    (bill,) = bills(claude_code(model="some-model-9"), source="claude-code").values()
    assert bill.usd is None
    assert bill.fresh_tokens == 173


def test_two_results_in_one_request_share_the_turn() -> None:
    lines = claude_code()
    two = json.loads(lines[3])
    two["message"]["content"].append({"tool_use_id": "toolu_9", "type": "tool_result", "content": "something else"})
    lines[3] = json.dumps(two)
    (bill,) = bills(lines, source="claude-code").values()
    assert bill.cache_write_tokens == 65


@settings(deadline=None)
@given(st.lists(st.sampled_from([*claude_code(), *openclaw(), "", "{", '{"message": 3}', '{"message": {"usage": 1}}'])))
def test_any_mixture_of_lines_is_read_without_complaint(lines: list[str]) -> None:
    for bill in bills(lines, source="x").values():
        assert bill.fresh_tokens >= 0


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "home" / "ledger.db")


def write(path: Path, lines: Iterable[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path


def test_reconciling_replaces_the_estimate_and_twice_is_as_once(ledger: Ledger, tmp_path: Path) -> None:
    book(ledger)
    book(ledger, Verdict.FAILED, task=a_task(id="ffffffff"))
    write(tmp_path / "projects" / "-p" / "s1.jsonl", claude_code())
    write(tmp_path / "projects" / "-p" / "other.jsonl", ['{"message": {"role": "user", "content": "hello"}}'])
    for _ in range(2):
        found = reconcile(ledger, {"claude-code": tmp_path / "projects", "openclaw": tmp_path / "nowhere"})
        assert (found.num_files, found.num_tasks, found.num_in_ledger) == (1, 1, 2)
    first, second = ledger.entries()
    assert first.billed is not None
    assert first.spent_tokens == 173
    assert first.spent_usd != first.coordinator_usd
    assert second.billed is None
    assert second.spent_tokens == 100
    totals = total(ledger.entries())
    assert totals.num_billed == 1
    assert totals.spent_tokens == 273


def test_openclaws_database_is_read_and_left_as_it_is(ledger: Ledger, tmp_path: Path) -> None:
    book(ledger)
    database = tmp_path / "agents" / "main" / "agent" / "openclaw-agent.sqlite"
    database.parent.mkdir(parents=True)
    with contextlib.closing(sqlite3.connect(database)) as connection:
        connection.execute(
            "CREATE TABLE transcript_events (session_id TEXT, seq INTEGER, event_json TEXT, event_zstd BLOB)"
        )
        rows = [("s2", number, line, None) for number, line in enumerate(openclaw())]
        connection.executemany("INSERT INTO transcript_events VALUES (?, ?, ?, ?)", rows)
        connection.commit()
    before = database.read_bytes()
    assert reconcile(ledger, {"openclaw": tmp_path / "agents"}).num_tasks == 1
    assert database.read_bytes() == before
    (entry,) = ledger.entries()
    assert entry.billed is not None
    assert entry.billed.session == "s2"


def test_a_database_that_is_none_and_a_task_that_is_not_ours_do_not_matter(ledger: Ledger, tmp_path: Path) -> None:
    book(ledger, task=a_task(id="00000000"))
    (tmp_path / "agents").mkdir()
    (tmp_path / "agents" / "openclaw-agent.sqlite").write_text("not a database" * 100)
    write(tmp_path / "agents" / "s.jsonl", openclaw())
    assert reconcile(ledger, {"openclaw": tmp_path / "agents"}).num_tasks == 0


def test_an_empty_ledger_reads_nothing(ledger: Ledger, tmp_path: Path) -> None:
    write(tmp_path / "s1.jsonl", claude_code())
    assert reconcile(ledger, {"claude-code": tmp_path}).num_files == 0
