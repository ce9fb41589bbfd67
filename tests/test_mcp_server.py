"""The MCP server with the official client, in both eras of the protocol, in process and as a command on stdio."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import mcp_types as types
import pytest
from mcp import Client, StdioServerParameters

from garzone import config
from garzone.core.errors import BackendUnavailable
from garzone.core.generation import GenerateRequest, ServedBy
from garzone.core.task import Report, TaskKind, Verdict
from garzone.delegate.ledger import Ledger
from garzone.delegate.run import RESULT_CHARS, result_text
from garzone.engine.gguf import read_metadata
from garzone.mcp_server import DelegateServer, tool
from garzone.text.tokenizer import Tokenizer
from garzone.tool import DESCRIPTION, Choices, input_schema
from tests.agent.repositories import CHECK, FIXED_PAGINATE, block, git, make_repository
from tests.numbers import record_number
from tests.server.conftest import app_of, running, scripted

ERAS = ("legacy", "2026-07-28")
CALL = {"kind": "fix", "task": "paginate skips the first page", "files": ["pager.py"], "check": CHECK}
RIGHT, WRONG = block(FIXED_PAGINATE), block(FIXED_PAGINATE.replace("page - 1", "page - 3"))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GARZONE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("GARZONE_MODEL", "scripted")
    monkeypatch.delenv("GARZONE_BACKEND", raising=False)
    return tmp_path / "home"


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    return make_repository(tmp_path / "repo")


@asynccontextmanager
async def connected(url: str, mode: str = "2026-07-28", **choices: Any) -> AsyncGenerator[Client]:
    server = DelegateServer(config.load(), Choices(backend=url, candidates=1, **choices))
    async with Client(server.protocol, mode=mode) as client:
        try:
            yield client
        finally:
            await server.aclose()


def text_of(result: types.CallToolResult) -> str:
    (content,) = result.content
    assert isinstance(content, types.TextContent)
    return content.text


# --- what a coordinator pays for


def test_schema_and_description_stay_below_350_tokens_and_carry_nothing_useless(smollm2_path: Path) -> None:
    sent = json.dumps({"name": tool().name, "description": DESCRIPTION, "input_schema": input_schema()})
    counted = len(Tokenizer.from_gguf(read_metadata(smollm2_path)).encode(sent, add_special=False))
    record_number("delegate tool: schema and description, tokens (smollm2's vocabulary)", counted, "at most 350")
    assert counted <= 350
    assert '"title"' not in sent
    assert '"default"' not in sent


def test_there_is_room_for_every_kind_there_will_be(smollm2_path: Path) -> None:
    schema = input_schema()
    schema["properties"]["kind"]["enum"] = [kind.value for kind in TaskKind]
    sent = json.dumps({"name": tool().name, "description": DESCRIPTION, "input_schema": schema})
    assert len(Tokenizer.from_gguf(read_metadata(smollm2_path)).encode(sent, add_special=False)) <= 350


@pytest.mark.parametrize("verdict", list(Verdict))
def test_a_result_is_short_and_keeps_verdict_branch_and_who_did_it(verdict: Verdict) -> None:
    for length in (10, 200, 340, 400):
        report = Report(
            "ab12cd34",
            TaskKind.FIX,
            verdict,
            summary="s" * length + (" Branch garzone/fix-ab12cd34." if length > 300 else ""),
            branch="garzone/fix-ab12cd34",
            post_mortem="p" * 400,
            served_by=ServedBy("qwen2.5-coder:7b", backend="tinygrad", device="AMD gfx1100"),
        )
        text = result_text(report)
        assert len(text) < RESULT_CHARS
        assert text.startswith(f"{verdict.value}: ")
        assert "garzone/fix-ab12cd34" in text
        assert "[garzone ab12cd34, qwen2.5-coder:7b on AMD gfx1100]" in text


# --- the protocol


@pytest.mark.parametrize("mode", ERAS)
async def test_one_tool_is_listed_and_marked_to_be_loaded_directly(mode: str, home: Path) -> None:
    async with connected("http://127.0.0.1:9", mode) as client:
        (listed,) = (await client.list_tools()).tools
    assert listed.name == "delegate"
    assert listed.meta == {"anthropic/alwaysLoad": True}
    assert listed.title is None
    assert listed.output_schema is None


@pytest.mark.parametrize("mode", ERAS)
async def test_a_task_is_done_proved_and_booked(mode: str, home: Path, repo: Path) -> None:
    heard: list[tuple[float, float | None, str | None]] = []

    async def hear(progress: float, total: float | None, message: str | None) -> None:
        heard.append((progress, total, message))

    with running(app_of(scripted(RIGHT))) as url:
        async with connected(url, mode) as client:
            result = await client.call_tool("delegate", CALL | {"cwd": str(repo)}, progress_callback=hear)
    text = text_of(result)
    assert not result.is_error
    assert text.startswith("proved: ")
    assert len(text) < RESULT_CHARS
    (branch,) = git(repo, "branch", "--list", "garzone/*").split()
    assert branch in text
    assert git(repo, "status", "--porcelain") == ""
    values = [progress for progress, _, _ in heard]
    assert values == sorted(set(values))
    assert any(message and "candidate 1" in message for _, _, message in heard)
    (entry,) = await asyncio.to_thread(Ledger(home / "ledger.db").entries)
    assert (entry.outcome, entry.caller) == ("proved", "mcp")
    assert entry.task_id in text


async def test_absolute_paths_inside_the_repository_are_understood(home: Path, repo: Path) -> None:
    with running(app_of(scripted(RIGHT))) as url:
        async with connected(url) as client:
            arguments = CALL | {"cwd": str(repo), "files": [str(repo / "pager.py")]}
            assert text_of(await client.call_tool("delegate", arguments)).startswith("proved")


async def test_without_cwd_the_servers_own_directory_is_the_repository(
    home: Path, repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(repo)
    with running(app_of(scripted(RIGHT))) as url:
        async with connected(url) as client:
            assert text_of(await client.call_tool("delegate", CALL)).startswith("proved")


async def test_what_failed_comes_back_with_a_post_mortem_and_is_a_loss(home: Path, repo: Path) -> None:
    with running(app_of(scripted(WRONG))) as url:
        async with connected(url) as client:
            text = text_of(await client.call_tool("delegate", CALL | {"cwd": str(repo)}))
    assert text.startswith("failed: ")
    assert "Still fails" in text
    (entry,) = await asyncio.to_thread(Ledger(home / "ledger.db").entries)
    assert entry.outcome == "failed"
    assert entry.spent_tokens > 0


async def test_what_does_not_pay_is_declined_at_once_with_what_to_do_instead(home: Path, repo: Path) -> None:
    async with connected("http://127.0.0.1:9") as client:  # nobody there: nothing may be asked of a model
        arguments = CALL | {"task": "fix the pager, then add a test for it", "cwd": str(repo)}
        result = await client.call_tool("delegate", arguments)
        question = await client.call_tool("delegate", CALL | {"task": "should we use pages?", "cwd": str(repo)})
    assert not result.is_error
    assert text_of(result).startswith("declined, nothing was run: 2 tasks in one")
    assert "fix the pager; add a test for it" in text_of(result)
    assert "decide first" in text_of(question)
    entries = await asyncio.to_thread(Ledger(home / "ledger.db").entries)
    assert [entry.outcome for entry in entries] == ["declined", "declined"]
    assert all(entry.spent_tokens > 20 for entry in entries)


async def test_who_starts_the_server_may_have_everything_done_and_applied(home: Path, repo: Path) -> None:
    with running(app_of(scripted(RIGHT))) as url:
        async with connected(url, always=True, apply=True) as client:
            arguments = CALL | {"task": "should paginate skip the first page?", "cwd": str(repo)}
            text = text_of(await client.call_tool("delegate", arguments))
    assert text.startswith("proved")
    assert "Applied to the working tree" in text
    assert "(page - 1)" in (repo / "pager.py").read_text()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"kind": "paint"}, "kind must be one of: "),
        ({"kind": None}, "kind must be one of"),
        ({"check": "no-such-command --now"}, "no-such-command"),
        ({"files": ["missing.py"]}, "missing.py"),
        ({"files": [1]}, "files must be a list of paths"),
        ({"task": 7}, "task must be a string"),
        ({"repository": "."}, "unknown argument 'repository'; there are: kind, task, files, check, cwd"),
        ({"cwd": "/nowhere/at/all"}, "/nowhere/at/all"),
    ],
)
async def test_what_is_wrong_is_said_shortly(changes: dict[str, Any], says: str, home: Path, repo: Path) -> None:
    with running(app_of(scripted(RIGHT))) as url:
        async with connected(url, always=True) as client:
            result = await client.call_tool("delegate", {**CALL, "cwd": str(repo), **changes})
    assert result.is_error
    text = text_of(result)
    assert says in text
    assert len(text) < RESULT_CHARS
    assert "Traceback" not in text


async def test_a_backend_that_is_not_there_is_an_error_with_what_to_do(home: Path, repo: Path) -> None:
    async with connected("http://127.0.0.1:9") as client:
        result = await client.call_tool("delegate", CALL | {"cwd": str(repo)})
    assert result.is_error
    assert "127.0.0.1:9" in text_of(result)


async def test_a_task_that_broke_off_says_how_to_go_on_with_it(home: Path, repo: Path) -> None:
    with running(app_of(scripted(WRONG, BackendUnavailable("pulled the plug " * 40)))) as url:
        server = DelegateServer(config.load(), Choices(backend=url, candidates=2))
        async with Client(server.protocol, mode=ERAS[1]) as client:
            result = await client.call_tool("delegate", CALL | {"cwd": str(repo)})
            await server.aclose()
    assert result.is_error
    text = text_of(result)
    assert text.startswith("not done:")
    assert len(text) < RESULT_CHARS
    (journal,) = (home / "tasks").glob("*.jsonl")
    assert text.endswith(f"garzone delegate --resume {journal.stem} goes on with it")


@pytest.mark.parametrize("mode", ERAS)
async def test_cancelling_a_call_ends_the_worker_and_leaves_nothing_behind(mode: str, home: Path, repo: Path) -> None:
    asked = asyncio.Event()
    loop = asyncio.get_running_loop()

    def answer(request: GenerateRequest) -> str:
        loop.call_soon_threadsafe(asked.set)
        return WRONG

    check = f"sleep 30; {CHECK}"  # far longer than the test may take: only a kill ends it in time
    with running(app_of(scripted(answer))) as url:
        async with connected(url, mode) as client:
            call = asyncio.create_task(client.call_tool("delegate", CALL | {"cwd": str(repo), "check": check}))
            for _ in range(400):
                await asyncio.sleep(0.05)
                if git(repo, "worktree", "list").count("\n"):
                    break
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            outcomes: list[str] = []
            for _ in range(200):
                outcomes = [e.outcome for e in await asyncio.to_thread(Ledger(home / "ledger.db").entries)]
                if outcomes == ["cancelled"]:
                    break
                await asyncio.sleep(0.05)
            assert outcomes == ["cancelled"]
    assert git(repo, "worktree", "list").count("\n") == 0
    assert git(repo, "branch", "--list", "garzone/*") == ""


# --- as a command


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "garzone", "mcp", "--candidates", "1", *arguments]


@pytest.mark.parametrize("mode", ERAS)
async def test_garzone_mcp_on_stdio_does_the_same(mode: str, home: Path, repo: Path) -> None:
    with running(app_of(scripted(RIGHT))) as url:
        program, *arguments = command("--backend", url)
        parameters = StdioServerParameters(command=program, args=arguments, env=dict(os.environ), cwd=repo)
        async with Client(parameters, mode=mode) as client:
            (listed,) = (await client.list_tools()).tools
            text = text_of(await client.call_tool("delegate", CALL))
    assert listed.name == "delegate"
    assert text.startswith("proved")


@pytest.mark.parametrize("how", ["sigterm", "sigint", "closed stdin"])
def test_ending_the_server_ends_the_task_it_is_at(how: str, home: Path, repo: Path) -> None:
    with running(app_of(scripted(WRONG))) as url:
        process = subprocess.Popen(
            command("--backend", url), cwd=repo, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert process.stdin
        assert process.stdout
        initialize = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}
        call = {"name": "delegate", "arguments": CALL | {"check": f"sleep 30; {CHECK}"}, "_meta": {"progressToken": 1}}
        for number, (method, params) in enumerate([("initialize", initialize), ("tools/call", call)], 1):
            message = {"jsonrpc": "2.0", "id": number, "method": method, "params": params}
            process.stdin.write(json.dumps(message).encode() + b"\n")
            process.stdin.flush()
            process.stdout.readline()  # the answer to the first, the first progress of the second
            if number == 1:
                process.stdin.write(b'{"jsonrpc":"2.0","method":"notifications/initialized"}\n')
        for _ in range(400):
            if git(repo, "worktree", "list").count("\n"):
                break
            subprocess.run(["sleep", "0.05"], check=True)
        if how == "closed stdin":
            process.stdin.close()
        else:
            process.send_signal(signal.SIGTERM if how == "sigterm" else signal.SIGINT)
        assert process.wait(20) == 0, process.stderr and process.stderr.read().decode()
        process.stdout.close()
        assert process.stderr
        assert b"Traceback" not in process.stderr.read()
        process.stderr.close()
    assert git(repo, "worktree", "list").count("\n") == 0
    (entry,) = Ledger(home / "ledger.db").entries()
    assert entry.outcome == "cancelled"
