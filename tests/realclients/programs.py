"""The clients that are programs, each in a real exchange: a question, or a word that only a tool of theirs can find."""

import json
import os
import secrets
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.realclients import install
from tests.realclients.model import CAPITAL

TIMEOUT_S = 240  # openclaw takes a minute of CPU to start
QUESTION = "What is the capital of France?"
TASK = "What is in secret.txt?"


@dataclass(frozen=True)
class World:
    """Where garzone answers, and a folder that belongs to one client; `secret` is in its secret.txt."""

    url: str
    folder: Path
    secret: str

    @classmethod
    def make(cls, url: str, folder: Path) -> "World":
        secret = f"SECRET-{secrets.token_hex(4)}"
        for name in ("project", "home"):
            (folder / name).mkdir(parents=True)
        (folder / "project" / "secret.txt").write_text(secret + "\n")
        return cls(url, folder, secret)

    @property
    def project(self) -> Path:
        return self.folder / "project"

    @property
    def home(self) -> Path:
        return self.folder / "home"

    def run(self, *command: object, **environment: str) -> str:
        """What a program prints, run in the project with a home of its own."""
        kept = {name: os.environ[name] for name in ("LANG", "TERM", "TMPDIR") if name in os.environ}
        given = {"HOME": str(self.home), "PATH": f"{install.node24()}:{os.environ['PATH']}", "NO_COLOR": "1"}
        done = subprocess.run(
            [str(part) for part in command],
            cwd=self.project,
            env={**kept, **given, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        assert done.returncode == 0, f"exit {done.returncode}: {done.stdout[-800:]}"
        return done.stdout

    def expect(self, words: str, output: str) -> None:
        assert words in output, f"{words!r} is not in what it printed: {output[-800:]}"


def claude(world: World) -> None:
    program = install.npm("@anthropic-ai/claude-code", "claude")
    environment = {"ANTHROPIC_BASE_URL": world.url, "ANTHROPIC_AUTH_TOKEN": "ollama"}
    flags = ("--allowedTools", "Bash,Read", "--output-format", "json")
    output = world.run(program, "-p", TASK, "--model", "scripted", *flags, **environment)
    told = json.loads(next(line for line in output.splitlines() if line.startswith("{")))  # behind what stderr says
    world.expect(f"The secret is {world.secret}.", told["result"])
    assert told["num_turns"] == 2, told
    # without --model it asks for a claude-* name
    world.expect(CAPITAL, world.run(program, "-p", QUESTION, **environment))


def codex(world: World) -> None:
    program = install.npm("@openai/codex", "codex")
    home = world.home / "codex"
    home.mkdir()
    provider = f'[model_providers.garzone]\nname = "garzone"\nbase_url = "{world.url}/v1"\nwire_api = "responses"\n'
    (home / "config.toml").write_text(f'model = "scripted"\nmodel_provider = "garzone"\n{provider}')
    flags = ("--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox")
    output = world.run(program, "exec", *flags, TASK, CODEX_HOME=str(home))
    world.expect(f"The secret is {world.secret}.", output)


def codex_oss(world: World) -> None:
    """Its own way to Ollama: version, tags, then responses."""
    program = install.npm("@openai/codex", "codex")
    home = world.home / "codex"
    home.mkdir()
    flags = ("--oss", "--local-provider", "ollama", "--skip-git-repo-check", "-m", "scripted:latest")
    base = {"CODEX_HOME": str(home), "CODEX_OSS_BASE_URL": f"{world.url}/v1"}
    output = world.run(program, "exec", *flags, "--dangerously-bypass-approvals-and-sandbox", TASK, **base)
    world.expect(f"The secret is {world.secret}.", output)


def opencode(world: World) -> None:
    program = install.npm("opencode-ai", "opencode")
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "name": "garzone",
        "options": {"baseURL": f"{world.url}/v1"},
        "models": {"scripted": {"name": "scripted", "tool_call": True}},
    }
    settings = {"provider": {"garzone": provider}, "permission": "allow", "autoupdate": False, "share": "disabled"}
    (world.project / "opencode.json").write_text(json.dumps(settings))
    world.expect(f"The secret is {world.secret}.", world.run(program, "run", "-m", "garzone/scripted", TASK))


def openclaw(world: World) -> None:
    program = install.npm("openclaw", "openclaw")
    settings = {"models": {"providers": {"ollama": {"api": "ollama", "baseUrl": world.url, "models": []}}}}
    file = world.home / "openclaw.json5"
    file.write_text(json.dumps(settings))
    flags = ("--config", file, "--model", "ollama/scripted", "--cwd", world.project, "--json")
    environment = {"OPENCLAW_STATE_DIR": str(world.home / "state"), "OLLAMA_API_KEY": "x"}
    output = world.run(install.node24() / "node", program, "agent", "exec", TASK, *flags, **environment)
    world.expect(f"The secret is {world.secret}.", output)


def aider(world: World) -> None:
    program = install.pypi("aider-chat", "aider")
    flags = ("--yes", "--no-git", "--no-show-model-warnings", "--no-check-update", "--no-analytics")
    task = ("--message", "EDIT-TASK: say good morning", "greeting.py")
    for model, environment in (
        ("ollama_chat/scripted", {"OLLAMA_API_BASE": world.url}),
        ("openai/scripted", {"OPENAI_API_BASE": f"{world.url}/v1", "OPENAI_API_KEY": "any"}),
    ):
        file = world.project / "greeting.py"
        file.write_text('print("hello")\n')
        world.run(program, "--model", model, *flags, *task, **environment, LITELLM_LOCAL_MODEL_COST_MAP="True")
        world.expect("good morning", file.read_text())


_OLLAMA_JS = """
import { Ollama } from %s
const client = new Ollama({ host: process.argv[2] })
const messages = [{ role: 'user', content: 'What is the capital of France?' }]
const whole = await client.chat({ model: 'scripted', messages })
let streamed = ''
const parts = await client.chat({ model: 'scripted', messages, stream: true })
for await (const part of parts) streamed += part.message.content
const tools = [{ type: 'function', function: { name: 'read_file', description: 'Reads a file.',
  parameters: { type: 'object', properties: { path: { type: 'string' } } } } }]
const asked = [{ role: 'user', content: 'What is in secret.txt?' }]
const called = await client.chat({ model: 'scripted', messages: asked, tools })
const told = await client.chat({ model: 'scripted', tools, messages: [...asked, called.message,
  { role: 'tool', tool_name: 'read_file', content: process.argv[3] }] })
const made = await client.generate({ model: 'scripted', prompt: 'hi' })
const vectors = await client.embed({ model: 'scripted', input: ['a', 'b'] })
const models = await client.list()
const shown = await client.show({ model: 'scripted' })
let missing = ''
try { await client.chat({ model: 'nope', messages }) } catch (error) { missing = error.message }
console.log(JSON.stringify({ whole: whole.message.content, streamed, call: called.message.tool_calls,
  told: told.message.content, made: made.response, vectors: vectors.embeddings.length,
  models: models.models.map(model => model.name), capabilities: shown.capabilities, missing }))
"""


def ollama_js(world: World) -> None:
    package = install.npm("ollama", "")
    entry = json.loads((package / "package.json").read_text()).get("module") or "dist/index.mjs"
    script = world.project / "client.mjs"
    script.write_text(_OLLAMA_JS % json.dumps(str(package / entry)))
    said = json.loads(world.run(install.node24() / "node", script, world.url, world.secret))
    (call,) = said.pop("call")
    assert call["function"] == {"index": 0, "name": "read_file", "arguments": {"path": "secret.txt"}}, call
    expected = {
        "whole": CAPITAL,
        "streamed": CAPITAL,
        "told": f"The secret is {world.secret}.",
        "made": CAPITAL,
        "vectors": 2,
        "models": ["scripted:latest"],
        "capabilities": ["completion", "tools", "insert"],
        "missing": "model 'nope' not found",
    }
    assert said == expected, said


DRIVERS: Mapping[str, Callable[[World], None]] = {
    "ollama (JavaScript)": ollama_js,
    "aider": aider,
    "claude (Claude Code)": claude,
    "codex": codex,
    "codex --oss": codex_oss,
    "opencode": opencode,
    "openclaw": openclaw,
}
