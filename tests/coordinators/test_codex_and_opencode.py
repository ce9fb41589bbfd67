"""The real Codex and opencode, connected by `garzone connect`, hand a real bug over; their own model is scripted.

That model is served by garzone, too, in the dialect each of them speaks.
"""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from garzone.core.chat import Role
from garzone.core.generation import GenerateRequest
from tests.coordinators.world import CHECK, CODE, INSTRUCTION, World
from tests.numbers import record_number
from tests.realclients import install
from tests.realclients.model import ScriptedModel
from tests.realclients.server import app_of
from tests.server.conftest import running

pytestmark = [pytest.mark.coordinators, pytest.mark.timeout(600)]


def coordinator(request: GenerateRequest) -> str:
    """Calls the tool of garzone's that it was offered, and repeats what came of it."""
    if results := [message.text for message in request.messages if message.role is Role.TOOL]:
        return f"It says: {results[-1]}"
    names = [tool.name for tool in request.tools if tool.name.endswith("delegate")]
    if not names:  # titles and the like
        return "A title"
    arguments = {"kind": "fix", "task": INSTRUCTION, "files": [CODE], "check": CHECK}
    return f"<tool_call>\n{json.dumps({'name': names[0], 'arguments': arguments})}\n</tool_call>"


@contextmanager
def served() -> Iterator[tuple[str, ScriptedModel]]:
    model = ScriptedModel(coordinator)
    with running(app_of(model)) as url:
        yield url, model


def run(world: World, *command: object, **environment: str) -> str:
    done = subprocess.run(
        [str(word) for word in command],
        cwd=world.project,
        env={**world.environment, "PATH": f"{install.node24()}:{world.environment['PATH']}", **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def told(world: World, model: ScriptedModel, output: str, program: str) -> None:
    """The verdict reached the coordinator's answer, the repair is on its branch, and the row is booked."""
    offered = sorted({tool.name for request in model.requests for tool in request.tools})
    assert "It says: " in output, f"{output[-2000:]}\noffered: {offered}"
    assert "proved" in output
    branch = world.branch()
    assert branch in output
    assert world.tests_pass_on(branch)
    turns = [request for request in model.requests if any(t.name.endswith("delegate") for t in request.tools)]
    record_number(f"{program}: turns of the coordinator for one delegated bug", len(turns), "2")
    assert len(turns) == 2
    assert json.loads(world.garzone("savings", "--json"))["outcomes"] == {"proved": 1}


def test_codex_delegates_a_real_bug_over_mcp(world: World) -> None:
    config = world.home / ".codex" / "config.toml"
    config.parent.mkdir()
    with served() as (url, model):
        own = (
            'model = "scripted"  # mine\nmodel_provider = "local"\n\n[model_providers.local]\nname = "local"\n'
            f'base_url = "{url}/v1"\nwire_api = "responses"\n'
        )
        config.write_text(own)
        world.garzone("connect", "codex")
        world.garzone("connect", "codex", "--check")
        codex = install.npm("@openai/codex", "codex")
        assert "garzone" in run(world, codex, "mcp", "list")
        flags = ("--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox")
        output = run(world, codex, "exec", *flags, INSTRUCTION)
    told(world, model, output, "Codex")
    world.garzone("connect", "codex", "--remove")
    assert config.read_text().startswith(own)
    assert "garzone" not in config.read_text()


def test_opencode_delegates_a_real_bug_over_mcp(world: World) -> None:
    config = world.home / ".config" / "opencode" / "opencode.json"
    config.parent.mkdir(parents=True)
    with served() as (url, model):
        provider = {
            "npm": "@ai-sdk/openai-compatible",
            "options": {"baseURL": f"{url}/v1"},
            "models": {"scripted": {"name": "scripted", "tool_call": True}},
        }
        mine = {"provider": {"local": provider}, "permission": "allow", "autoupdate": False}
        own = json.dumps({"$schema": "https://opencode.ai/config.json", **mine}, indent=2)  # it adds that itself
        config.write_text(own)
        world.garzone("connect", "opencode")
        opencode = install.npm("opencode-ai", "opencode")
        assert "garzone" in run(world, opencode, "mcp", "list")
        output = run(world, opencode, "run", "-m", "local/scripted", INSTRUCTION)
    told(world, model, output, "opencode")
    world.garzone("connect", "opencode", "--remove")
    assert config.read_text() == own
