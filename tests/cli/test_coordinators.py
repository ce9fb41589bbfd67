"""What plugins call: `garzone call` does one call of the tool, `garzone slash` what a person wrote."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from garzone.cli.coordinators import call, slash
from garzone.delegate.ledger import Ledger
from garzone.delegate.run import RESULT_CHARS
from tests.agent.repositories import CHECK, FIXED_PAGINATE, block, make_repository
from tests.server.conftest import app_of, running, scripted


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GARZONE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("GARZONE_MODEL", "scripted")
    return tmp_path / "home"


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    return make_repository(tmp_path / "repo")


def run_call(arguments: object) -> Result:
    return CliRunner().invoke(call, ["--caller", "openclaw"], input=json.dumps(arguments))


def test_a_call_is_done_and_booked_under_the_plugins_name(
    repo: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(app_of(scripted(block(FIXED_PAGINATE)))) as url:
        monkeypatch.setenv("GARZONE_BACKEND", url)
        arguments = {"kind": "fix", "task": "paginate skips the first page", "check": CHECK, "cwd": str(repo)}
        result = run_call(arguments)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("proved: ")
    assert len(result.stdout.strip()) < RESULT_CHARS
    assert "candidate 1" in result.stderr  # its progress
    (entry,) = Ledger(home / "ledger.db").entries()
    assert (entry.caller, entry.outcome) == ("openclaw", "proved")
    assert entry.spent_tokens > 40


def test_a_call_that_does_not_pay_asks_no_model(repo: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GARZONE_BACKEND", "http://127.0.0.1:9")
    result = run_call({"kind": "fix", "task": "should we rewrite it?", "check": CHECK, "cwd": str(repo)})
    assert result.exit_code == 0
    assert result.stdout.startswith("declined, nothing was run")
    assert [entry.outcome for entry in Ledger(home / "ledger.db").entries()] == ["declined"]


@pytest.mark.parametrize("arguments", [[], {"kind": "paint"}, {"kind": "fix", "files": 3}])
def test_what_is_wrong_is_a_sentence_and_exit_code_1(arguments: object) -> None:
    result = run_call(arguments)
    assert result.exit_code == 1
    assert result.stdout.startswith("not done: ")
    assert "Traceback" not in result.output


def test_arguments_that_are_no_json_are_said(home: Path) -> None:
    result = CliRunner().invoke(call, [], input="{")
    assert result.exit_code == 1
    assert "not JSON" in result.stdout


def test_a_slash_command_costs_no_coordinator_anything(repo: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(repo)
    with running(app_of(scripted(block(FIXED_PAGINATE)))) as url:
        monkeypatch.setenv("GARZONE_BACKEND", url)
        result = CliRunner().invoke(slash, [f'fix "paginate skips the first page" --check "{CHECK}"'])
    assert "proved" in result.stdout, result.output
    (entry,) = Ledger(home / "ledger.db").entries()
    assert (entry.caller, entry.spent_tokens, entry.spent_usd) == ("slash", 0, 0)


def test_a_slash_command_that_is_none_says_how_one_looks() -> None:
    assert "/garzone KIND" in CliRunner().invoke(slash, ["paint it red"]).stdout
