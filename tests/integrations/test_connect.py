"""`garzone connect`: writes, checks, removes and prints; what it did not write stays to the byte."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from garzone.cli.connect import connect
from garzone.core.errors import UsageError
from garzone.integrations.connect import Connections
from garzone.integrations.json5 import parse
from garzone.integrations.parts import Conflict, Directory, State
from garzone.integrations.programs import PROGRAMS

THEIRS = {
    "openclaw": (".openclaw/openclaw.json", "{\n  // mine\n  tools: {profile: 'coding', alsoAllow: ['web']},\n}\n"),
    "clawdbot": (".clawdbot/clawdbot.json", '{\n  "agents": {"list": [{"id": "main"}]} // one\n}\n'),
    "codex": (".codex/config.toml", '# mine\nmodel = "o5"\n\n[mcp_servers.other]\ncommand = "x"  # keep\n'),
    "opencode": (".config/opencode/opencode.jsonc", '{\n  "theme": "dark", // mine\n}\n'),
}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for variable in (
        "CLAUDE_CONFIG_DIR",
        "OPENCLAW_STATE_DIR",
        "OPENCLAW_CONFIG_PATH",
        "CODEX_HOME",
        "XDG_CONFIG_HOME",
    ):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GARZONE_HOME", str(tmp_path / "garzone"))
    return tmp_path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(connect, arguments)


def done(*arguments: str) -> str:
    result = run(*arguments)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == 0, result.output
    return result.output


def snapshot(home: Path) -> dict[str, bytes]:
    return {str(path.relative_to(home)): path.read_bytes() for path in home.rglob("*") if path.is_file()}


@pytest.mark.parametrize("program", list(PROGRAMS))
@pytest.mark.parametrize("had_configuration", [True, False])
def test_what_is_written_is_found_idempotent_and_taken_away_to_the_byte(
    program: str, had_configuration: bool, home: Path
) -> None:
    if had_configuration and program in THEIRS:
        name, text = THEIRS[program]
        (home / name).parent.mkdir(parents=True)
        (home / name).write_text(text)
    before = snapshot(home)
    assert run(program, "--check").exit_code == 1
    assert "written" in done(program)
    assert done(program, "--check")
    connected = snapshot(home)
    assert "unchanged" in done(program)
    assert snapshot(home) == connected
    assert "removed" in done(program, "--remove")
    assert snapshot(home) == before
    assert run(program, "--check").exit_code == 1


@pytest.mark.parametrize("program", list(PROGRAMS))
def test_print_writes_nothing_and_shows_all(program: str, home: Path) -> None:
    printed = done(program, "--print")
    assert snapshot(home) == {}
    assert "garzone" in printed
    assert sys.executable.rsplit("/", 1)[0] in printed  # the full path of this garzone


@pytest.mark.parametrize("program", list(THEIRS))
def test_comments_and_other_settings_stay(program: str, home: Path) -> None:
    name, text = THEIRS[program]
    (home / name).parent.mkdir(parents=True)
    (home / name).write_text(text)
    done(program)
    now = (home / name).read_text()
    assert all(word in now for word in text.replace(",", " ").replace("}", " ").replace("]", " ").split())
    assert (home / f"{name}.before-garzone").read_text() == text
    before: Any = tomllib.loads(text) if program == "codex" else parse(text).value
    after: Any = tomllib.loads(now) if program == "codex" else parse(now).value

    def contained(one: Any, other: Any) -> bool:
        if isinstance(one, dict):
            return all(key in other and contained(value, other[key]) for key, value in one.items())
        return all(item in other for item in one) if isinstance(one, list) else one == other

    assert contained(before, after)


def test_a_server_of_that_name_that_is_not_ours_is_left_and_named(home: Path) -> None:
    config = home / ".codex" / "config.toml"
    config.parent.mkdir()
    config.write_text('[mcp_servers.garzone]\ncommand = "something else"\n')
    result = run("codex")
    assert isinstance(result.exception, Conflict)
    assert "garzone did not write it" in str(result.exception)
    assert config.read_text() == '[mcp_servers.garzone]\ncommand = "something else"\n'
    assert "removed" not in done("codex", "--remove")
    assert config.read_text().startswith("[mcp_servers.garzone]")


def test_one_conflict_keeps_all_parts_from_being_written(home: Path) -> None:
    config = home / ".openclaw" / "openclaw.json"
    config.parent.mkdir()
    config.write_text("{models: {providers: {garzone: {api: 'ollama'}}}}")
    before = snapshot(home)
    assert isinstance(run("openclaw").exception, Conflict)
    assert snapshot(home) == before


def test_what_was_edited_since_is_neither_overwritten_nor_removed(home: Path) -> None:
    done("claude-code")
    skill = home / ".claude" / "skills" / "garzone" / "skills" / "delegate" / "SKILL.md"
    skill.write_text("my own words")
    assert isinstance(run("claude-code").exception, Conflict)
    result = run("claude-code", "--remove")
    assert isinstance(result.exception, UsageError)
    assert "changed since" in str(result.exception)
    assert skill.read_text() == "my own words"


def test_files_of_others_in_our_directory_stay(home: Path) -> None:
    done("claude-code")
    mine = home / ".claude" / "skills" / "garzone" / "notes.txt"
    mine.write_text("mine")
    done("claude-code", "--remove")
    assert [str(path.relative_to(home)) for path in home.rglob("*") if path.is_file()] == [str(mine.relative_to(home))]


def test_another_choice_replaces_what_was_written(home: Path) -> None:
    done("claude-code")
    script = home / ".claude" / "skills" / "garzone" / "hooks" / "prompt.sh"
    assert "suggest=no" in script.read_text()
    assert "written" in done("claude-code", "--suggest", "--apply")
    assert "suggest=yes" in script.read_text()
    server = json.loads((script.parent.parent / ".mcp.json").read_text())["mcpServers"]["garzone"]
    assert server["args"][-2:] == ["mcp", "--apply"]


@pytest.mark.parametrize(("program", "text"), [("openclaw", "{tools: "), ("codex", "model = ")])
def test_a_broken_file_is_named_and_left(program: str, text: str, home: Path) -> None:
    path = home / THEIRS[program][0]
    path.parent.mkdir()
    path.write_text(text)
    result = run(program)
    assert isinstance(result.exception, Conflict)
    assert str(path) in str(result.exception)
    assert "repair it" in str(result.exception)
    assert path.read_text() == text


def test_a_link_stays_one_and_the_mode_stays(home: Path) -> None:
    real = home / "dotfiles" / "openclaw.json"
    real.parent.mkdir()
    real.write_text("{}\n")
    real.chmod(0o600)
    (home / ".openclaw").mkdir()
    link = home / ".openclaw" / "openclaw.json"
    link.symlink_to(real)
    done("openclaw")
    assert link.is_symlink()
    assert "garzone" in real.read_text()
    assert real.stat().st_mode & 0o777 == 0o600


def test_a_directory_that_is_not_ours_is_refused(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    assert Directory(tmp_path / "there", {"a": b"x"}).look(None) is State.FOREIGN


def test_a_damaged_record_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "connections.json").write_text("{")
    with pytest.raises(Conflict, match="move it away"):
        Connections(tmp_path / "connections.json").of("codex")


def test_the_programs_own_variables_decide_where(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLAUDE_CONFIG_DIR", str(home / "elsewhere"))
    monkeypatch.setenv("OPENCLAW_CONFIG_PATH", str(home / "oc.json5"))
    done("claude-code")
    done("openclaw")
    assert (home / "elsewhere" / "skills" / "garzone" / ".mcp.json").exists()
    assert "garzone" in (home / "oc.json5").read_text()


# --- the hook and the slash command


def hook(prompt: object, *arguments: str, cwd: str = ".") -> dict[str, Any]:
    told = json.dumps({"hook_event_name": "UserPromptSubmit", "prompt": prompt, "cwd": cwd}, separators=(",", ":"))
    command = [sys.executable, "-m", "garzone", "hook", *arguments]
    answer = subprocess.run(command, input=told, capture_output=True, text=True, check=True, timeout=60).stdout
    return json.loads(answer) if answer else {}


def test_the_hook_answers_a_slash_command_itself_and_lets_all_else_pass(tmp_path: Path) -> None:
    answer = hook("/garzone paint it red", cwd=str(tmp_path))
    assert answer["decision"] == "block"
    assert "/garzone KIND" in answer["reason"]
    answer = hook('/garzone fix "it adds" --check "pytest -q"', cwd=str(tmp_path))
    assert "not a git repository" in answer["reason"]
    assert hook("/garzonella is a word") == {}
    assert hook("fix the off by one in paginate") == {}
    assert hook(7) == {}


def test_suggestions_are_opt_in_and_only_for_one_bounded_task(tmp_path: Path) -> None:
    told = hook("fix the off by one in paginate", "--suggest")["hookSpecificOutput"]["additionalContext"]
    assert "kind 'fix'" in told
    assert hook("should we fix the pager or rewrite it?", "--suggest") == {}
    assert hook("hello", "--suggest") == {}


def test_the_plugins_script_starts_python_only_for_its_own_command(home: Path, tmp_path: Path) -> None:
    done("claude-code")
    script = home / ".claude" / "skills" / "garzone" / "hooks" / "prompt.sh"
    calls = tmp_path / "calls"
    fake = tmp_path / "fake"
    fake.write_text(f"#!/bin/sh\necho called >> {calls}\ncat\n")
    fake.chmod(0o755)
    text = script.read_text()
    start = text.index("printf '%s' \"$told\" | ") + len("printf '%s' \"$told\" | ")
    command = text[start : text.index(" hook", start)]
    script.write_text(text.replace(command, str(fake)))
    for prompt, called in (("hello", False), ("/garzone fix", True)):
        told = json.dumps({"prompt": prompt}, separators=(",", ":"))
        run_script = ["sh", str(script)]
        assert subprocess.run(run_script, input=told, capture_output=True, text=True, check=True, env=dict(os.environ))
        assert calls.exists() is called
