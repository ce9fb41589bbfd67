"""The real OpenClaw against a scripted Anthropic endpoint: native plugin, slash command, provider."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.coordinators.endpoint import Blocks, Endpoint, call, scripted_anthropic, text
from tests.coordinators.programs import node, openclaw
from tests.coordinators.world import CHECK, CODE, INSTRUCTION, REPAIR, Spending, World, results_of
from tests.numbers import record_number

pytestmark = [pytest.mark.coordinators, pytest.mark.timeout(900)]


def run_openclaw(world: World, *arguments: str, timeout: float = 600) -> subprocess.CompletedProcess[str]:
    environment = world.environment | {
        "ANTHROPIC_API_KEY": "scripted",
        "OLLAMA_API_KEY": "ollama-local",
        "PATH": f"{node()}:{world.environment['PATH']}",
    }
    return subprocess.run(
        [*openclaw(), *arguments],
        cwd=world.project,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def configure(world: World, endpoint: Endpoint | None) -> Path:
    """The person's own configuration, with a comment; the coordinator's model is the endpoint."""
    config = world.home / ".openclaw" / "openclaw.json"
    config.parent.mkdir(exist_ok=True)
    url = endpoint.url if endpoint else "http://127.0.0.1:9"
    provider = f'{{api: "anthropic-messages", baseUrl: "{url}", apiKey: "scripted", models: []}}'
    config.write_text(f"{{\n  // mine\n  models: {{providers: {{anthropic: {provider}}}}},\n}}\n")
    return config


def agent(world: World, endpoint: Endpoint, *arguments: str) -> dict[str, Any]:
    model = ("--model", "anthropic/claude-sonnet-4-5", "--cwd", str(world.project), "--json")
    done = run_openclaw(world, "agent", "exec", INSTRUCTION, *model, *arguments)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return json.loads(done.stdout)


def delegating(document: dict[str, Any]) -> Blocks:
    if results := results_of(document):
        return text(f"It says: {results[-1]}")
    assert "delegate" in [tool["name"] for tool in document["tools"]], "the tool is not in the first request"
    return call("delegate", kind="fix", task=INSTRUCTION, files=[CODE], check=CHECK)


def test_the_coordinator_delegates_a_real_bug_and_its_answer_carries_the_verdict(world: World) -> None:
    with scripted_anthropic(delegating) as endpoint:
        configure(world, endpoint)
        world.garzone("connect", "openclaw")
        answer = agent(world, endpoint)
    assert "It says: proved" in answer["final"]
    branch = world.branch()
    assert branch in answer["final"]
    assert world.tests_pass_on(branch)
    spending = Spending.of(endpoint)
    assert spending.requests == 2
    record_number("OpenClaw, delegating: requests", spending.requests)
    record_number("OpenClaw, delegating: request bytes in all", spending.bytes)
    record_number("OpenClaw, delegating: bytes after the first request that were not in it", spending.later_fresh_bytes)
    record_number("OpenClaw, delegating: input tokens (bytes / 4)", round(spending.bytes / 4))
    saved = json.loads(world.garzone("savings", "--json"))
    assert saved["outcomes"] == {"proved": 1}


def test_the_same_bug_without_delegation_costs_more(world: World) -> None:
    def script(document: dict[str, Any]) -> Blocks:
        steps = (
            call("exec", command=CHECK),
            call("read", path=str(world.project / CODE)),
            call("edit", path=str(world.project / CODE), edits=[{"oldText": REPAIR[0], "newText": REPAIR[1]}]),
            call("exec", command=CHECK),
        )
        done = len(results_of(document))
        return steps[done] if done < len(steps) else text("Repaired: the tests pass.")

    with scripted_anthropic(script) as endpoint:
        configure(world, endpoint)
        answer = agent(world, endpoint)
    assert "Repaired" in answer["final"]
    assert world.tests_pass(), [results_of(request.document)[-1:] for request in endpoint.messages]
    spending = Spending.of(endpoint)
    record_number("OpenClaw, alone: requests", spending.requests)
    record_number("OpenClaw, alone: request bytes in all", spending.bytes)
    record_number("OpenClaw, alone: bytes after the first request that were not in it", spending.later_fresh_bytes)
    assert spending.requests == 5


def test_the_plugin_loads_and_the_slash_command_and_provider_are_there(world: World) -> None:
    config = configure(world, None)
    before = config.read_text()
    world.garzone("connect", "openclaw")
    assert "// mine" in config.read_text()
    done = run_openclaw(world, "plugins", "inspect", "garzone", "--runtime", "--json")
    assert done.returncode == 0, done.stderr
    plugin = json.loads(done.stdout[done.stdout.index("{") :])["plugin"]
    assert plugin["status"] == "loaded"
    assert plugin["toolNames"] == ["delegate"]
    assert plugin["commands"] == ["garzone"]
    checked = run_openclaw(world, "config", "validate")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    world.garzone("connect", "openclaw", "--remove")
    if "lastTouchedVersion" not in config.read_text():  # OpenClaw itself may have rewritten it meanwhile
        assert config.read_text() == before
    assert "garzone" not in config.read_text()
