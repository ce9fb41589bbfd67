"""What each coordinator is given: which parts, where, with which content. Writes nothing.

The formats are those of the programs' releases that docs/delegation.md names; each was tried with the real program
where that can be installed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from garzone import __version__, config
from garzone.config import ProgramDirs, Settings
from garzone.integrations.parts import Directory, Item, Member, Part, Table
from garzone.tool import DESCRIPTION, NAME, input_schema

SERVER = "garzone"
TASK_TIMEOUT_S = 900  # more than a task's own limit of 600 s, with loading the model
START_TIMEOUT_S = 30  # a cold start of Python on a busy machine


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the person chose: `suggest` has a hook point out what could be delegated; `apply` changes the tree."""

    suggest: bool = False
    apply: bool = False


@dataclass(frozen=True, slots=True)
class Program:
    """A coordinator. `after` says what to do once it is connected."""

    name: str
    title: str
    parts: Callable[[ProgramDirs, Settings, Wishes], list[Part]]
    after: str


def garzone_command() -> list[str]:
    """How another program starts this garzone: by its full path, since PATH is not the same everywhere."""
    script = Path(sys.executable).with_name("garzone")
    return [str(script)] if script.exists() else [sys.executable, "-m", "garzone"]


def _mcp(wishes: Wishes) -> list[str]:
    return [*garzone_command(), "mcp", *(["--apply"] if wishes.apply else [])]


def _shipped(folder: str) -> dict[str, bytes]:
    """The files of a plugin as the package has them."""
    found: dict[str, bytes] = {}

    def walk(directory: Traversable, prefix: str) -> None:
        for entry in directory.iterdir():
            if entry.is_dir():
                if entry.name != "__pycache__":
                    walk(entry, f"{prefix}{entry.name}/")
            else:
                found[prefix + entry.name] = entry.read_bytes()

    walk(resources.files("garzone.integrations").joinpath(folder), "")
    return found


def _document(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def _versioned(files: dict[str, bytes], name: str) -> None:
    files[name] = _document({**json.loads(files[name]), "version": __version__})


def claude_code(dirs: ProgramDirs, settings: Settings, wishes: Wishes) -> list[Part]:
    """A plugin in the skills directory, which Claude Code loads by itself as `garzone@skills-dir`."""
    del settings
    files = _shipped("claude_plugin")
    _versioned(files, ".claude-plugin/plugin.json")
    program, *arguments = _mcp(wishes)
    server = {"type": "stdio", "command": program, "args": arguments, "alwaysLoad": True}
    files[".mcp.json"] = _document({"mcpServers": {SERVER: server}})
    command = " ".join(map(_quoted, garzone_command()))
    script = files["hooks/prompt.sh"].replace(b"garzone hook", f"{command} hook".encode())
    if wishes.suggest:
        script = script.replace(b"suggest=no", b"suggest=yes")
    files["hooks/prompt.sh"] = script
    files["commands/garzone.md"] = files["commands/garzone.md"].replace(b"!`garzone ", f"!`{command} ".encode())
    return [Directory(dirs.claude / "skills" / SERVER, files)]


def openclaw(dirs: ProgramDirs, settings: Settings, wishes: Wishes) -> list[Part]:
    """A native plugin, linked from the configuration, and this garzone as a provider of models."""
    place = settings.home / "openclaw-plugin"
    config = dirs.openclaw_config
    provider: dict[str, Any] = {
        "api": "ollama",
        "baseUrl": settings.server_url,
        "apiKey": "ollama-local",
        "models": [],
    }
    return [
        Directory(place, _native_plugin("openclaw", wishes)),
        Item(config, ("plugins", "load", "paths"), str(place)),
        Member(config, ("plugins", "entries", SERVER), {"enabled": True}),
        Item(config, ("tools", "alsoAllow"), NAME),  # without it the tool is absent
        Member(config, ("models", "providers", SERVER), provider),
    ]


def clawdbot(dirs: ProgramDirs, settings: Settings, wishes: Wishes) -> list[Part]:
    """The older layout of the same: another manifest, another way to register, models through /v1."""
    place = settings.home / "clawdbot-plugin"
    config = dirs.clawdbot / "clawdbot.json"
    return [
        Directory(place, _native_plugin("clawdbot", wishes)),
        Item(config, ("plugins", "load", "paths"), str(place)),
        Member(config, ("plugins", "entries", SERVER), {"enabled": True}),
        Member(
            config,
            ("models", "providers", SERVER),
            {
                "api": "openai-completions",
                "baseUrl": f"{settings.server_url}/v1",
                "apiKey": "ollama-local",
                "models": [_clawdbot_model(settings)],
            },
        ),
    ]


def codex(dirs: ProgramDirs, settings: Settings, wishes: Wishes) -> list[Part]:
    """An MCP server in config.toml; Codex gives up on a tool after 60 s unless told otherwise.

    Unless a server is `required`, `codex exec` asks the model before the server has said which tools it has; and of the
    environment a server gets what is named.
    """
    del settings
    program, *arguments = _mcp(wishes)
    value = {
        "command": program,
        "args": arguments,
        "env_vars": list(config.VARIABLES),
        "required": True,
        "startup_timeout_sec": START_TIMEOUT_S,
        "tool_timeout_sec": TASK_TIMEOUT_S,
    }
    return [Table(dirs.codex / "config.toml", ("mcp_servers", SERVER), value)]


def opencode(dirs: ProgramDirs, settings: Settings, wishes: Wishes) -> list[Part]:
    """An MCP server in opencode.json (or .jsonc where that is what there is)."""
    del settings
    config = next((p for p in (dirs.opencode / n for n in ("opencode.jsonc", "opencode.json")) if p.exists()), None)
    value = {"type": "local", "command": _mcp(wishes), "enabled": True, "timeout": START_TIMEOUT_S * 1000}
    return [Member(config or dirs.opencode / "opencode.json", ("mcp", SERVER), value)]


PROGRAMS: dict[str, Program] = {
    program.name: program
    for program in (
        Program(
            "claude-code", "Claude Code", claude_code, "It is there in the next session (or after /reload-plugins)."
        ),
        Program("openclaw", "OpenClaw", openclaw, "Restart its gateway: openclaw gateway restart"),
        Program("clawdbot", "Clawdbot", clawdbot, "Restart its gateway: clawdbot gateway restart"),
        Program("codex", "Codex", codex, "It is there in the next session."),
        Program("opencode", "opencode", opencode, "It is there in the next session."),
    )
}


def _native_plugin(program: str, wishes: Wishes) -> dict[str, bytes]:
    files = _shipped("native_plugin") | _shipped(f"{program}_plugin")
    _versioned(files, "package.json")
    _versioned(files, f"{program}.plugin.json")
    document = {
        "name": NAME,
        "description": DESCRIPTION,
        "parameters": input_schema(),
        "command": garzone_command(),
        "apply": wishes.apply,
    }
    return files | {"tool.json": _document(document)}


def _clawdbot_model(settings: Settings) -> dict[str, Any]:
    return {
        "id": settings.model,
        "name": f"{settings.model} (garzone)",
        "reasoning": False,
        "input": ["text"],
        "cost": {"input": 0, "output": 0, "cacheRead": 0, "cacheWrite": 0},
        "contextWindow": settings.num_ctx,
        "maxTokens": settings.num_ctx // 2,
    }


def _quoted(word: str) -> str:
    return "'" + word.replace("'", "'\\''") + "'" if any(c in word for c in " '\"$`\\&;()<>|*?") else word
