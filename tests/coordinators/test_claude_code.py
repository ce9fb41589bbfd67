"""The real Claude Code against a scripted Anthropic endpoint: what it sends and spends, with and without garzone."""

import json
import subprocess
from typing import Any

import pytest

from tests.coordinators.endpoint import Blocks, Endpoint, call, scripted_anthropic, text
from tests.coordinators.programs import claude
from tests.coordinators.world import CHECK, CODE, INSTRUCTION, REPAIR, Spending, World, results_of
from tests.numbers import record_number

pytestmark = pytest.mark.coordinators
TOOL = "mcp__plugin_garzone_garzone__delegate"


def claude_code(world: World, endpoint: Endpoint, *arguments: str, timeout: float = 400) -> dict[str, Any]:
    """One headless run in the project; what it printed as JSON."""
    environment = {
        **world.environment,
        "ANTHROPIC_BASE_URL": endpoint.url,
        "ANTHROPIC_API_KEY": "scripted",
        "DISABLE_AUTOUPDATER": "1",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "MCP_TIMEOUT": "120000",
        "CLAUDE_CODE_MCP_STARTUP_WAIT_MS": "120000",  # a busy machine may need longer than the usual 5 s
    }
    done = subprocess.run(
        [str(claude()), *arguments, "--output-format", "json"],
        cwd=world.project,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def delegating(document: dict[str, Any]) -> Blocks:
    """A coordinator that hands the bug over and repeats the verdict."""
    if results := results_of(document):
        return text(f"It says: {results[-1]}")
    assert TOOL in [tool["name"] for tool in document.get("tools", [])], "the tool is not in the first request"
    return call(TOOL, kind="fix", task=INSTRUCTION, files=[CODE], check=CHECK)


def alone(document: dict[str, Any]) -> Blocks:
    """A coordinator that repairs the bug itself: check, read, edit, check."""
    steps = (
        call("Bash", command=CHECK, description="Run the tests"),
        call("Read", file_path=f"{{cwd}}/{CODE}"),
        call("Edit", file_path=f"{{cwd}}/{CODE}", old_string=REPAIR[0], new_string=REPAIR[1]),
        call("Bash", command=CHECK, description="Run the tests again"),
    )
    done = len(results_of(document))
    return steps[done] if done < len(steps) else text("Repaired: the tests pass.")


def test_the_plugin_is_valid_and_costs_less_than_60_tokens_always_on(world: World) -> None:
    world.garzone("connect", "claude-code")
    plugin = world.home / ".claude" / "skills" / "garzone"
    for arguments in (("validate", str(plugin)), ("validate", "--strict", str(plugin))):
        command = [str(claude()), "plugin", *arguments]
        done = subprocess.run(command, env=world.environment, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "Validation passed" in done.stdout
    command = [str(claude()), "plugin", "details", "garzone@skills-dir"]
    done = subprocess.run(command, env=world.environment, capture_output=True, text=True, timeout=60, check=True)
    always_on = next(line for line in done.stdout.splitlines() if "Always-on:" in line)
    number = int("".join(c for c in always_on.split("tok")[0] if c.isdigit()))
    record_number(
        "Claude Code: skill and command, tokens always on (as `claude plugin details` counts)", number, "< 60"
    )
    assert number < 60


def test_the_coordinator_delegates_a_real_bug_and_its_answer_carries_the_verdict(world: World) -> None:
    world.garzone("connect", "claude-code")
    with scripted_anthropic(delegating) as endpoint:
        answer = claude_code(world, endpoint, "-p", INSTRUCTION, "--allowedTools", TOOL)
    assert "It says: proved" in answer["result"]
    branch = world.branch()
    assert branch in answer["result"]
    assert world.tests_pass_on(branch)
    assert len(endpoint.messages) == 2  # the call, and the turn that reads the result
    spending = Spending.of(endpoint)
    call_and_result = len(json.dumps(endpoint.messages[1].document["messages"][-2:]))
    record_number("Claude Code, delegating: requests", spending.requests)
    record_number("Claude Code, delegating: request bytes in all", spending.bytes)
    record_number(
        "Claude Code, delegating: bytes after the first request that were not in it", spending.later_fresh_bytes
    )
    record_number("Claude Code: call and result as they stand in the conversation, tokens (bytes / 4)",
                  call_and_result / 4, "at most 300")  # fmt: skip
    record_number("Claude Code: extra turns per delegation", len(endpoint.messages) - 1, "1")
    assert call_and_result / 4 <= 300

    saved = json.loads(world.garzone("savings", "--reconcile", "--json"))
    assert saved["outcomes"] == {"proved": 1}
    assert saved["billed_tasks"] == 1


def test_the_same_bug_without_delegation_costs_more(world: World) -> None:
    def script(document: dict[str, Any]) -> Blocks:
        return json.loads(json.dumps(alone(document)).replace("{cwd}", str(world.project)))

    with scripted_anthropic(script) as endpoint:
        answer = claude_code(world, endpoint, "-p", INSTRUCTION, "--allowedTools", "Bash,Read,Edit")
    assert "Repaired" in answer["result"]
    assert world.tests_pass()
    spending = Spending.of(endpoint)
    record_number("Claude Code, alone: requests", spending.requests)
    record_number("Claude Code, alone: request bytes in all", spending.bytes)
    record_number("Claude Code, alone: bytes after the first request that were not in it", spending.later_fresh_bytes)
    assert spending.requests == 5


def test_the_slash_command_costs_the_coordinator_nothing(world: World) -> None:
    world.garzone("connect", "claude-code")
    with scripted_anthropic(delegating) as endpoint:
        prompt = f'/garzone fix "{INSTRUCTION}" --file {CODE} --check "{CHECK}"'
        answer = claude_code(world, endpoint, "-p", prompt)
    assert "proved" in answer["result"]
    assert world.tests_pass_on(world.branch())
    record_number("Claude Code, /garzone: requests to the coordinator's model", len(endpoint.requests), "0")
    assert endpoint.requests == []


def test_what_the_policy_declines_comes_back_at_once(world: World) -> None:
    def script(document: dict[str, Any]) -> Blocks:
        if results := results_of(document):
            return text(f"It says: {results[-1]}")
        return call(TOOL, kind="fix", task="should we store the stock in Redis or Postgres?", check=CHECK)

    world.garzone("connect", "claude-code")
    with scripted_anthropic(script) as endpoint:
        answer = claude_code(world, endpoint, "-p", "decide", "--allowedTools", TOOL)
    assert "declined, nothing was run" in answer["result"]
    assert world.branches() == []
