"""`garzone connect`: gives a coordinator the tool, or takes it away again. Shows; `integrations` does."""

from __future__ import annotations

import json
import sys

import click
from rich.console import Console
from rich.markup import escape

from garzone import config
from garzone.core.errors import UsageError
from garzone.integrations import connect as connecting
from garzone.integrations.connect import Connections, Finding
from garzone.integrations.parts import State
from garzone.integrations.programs import PROGRAMS, Wishes

_COLOURS = {State.WRITTEN: "green", State.ABSENT: "dim", State.OUTDATED: "yellow"}


@click.command()
@click.argument("program", type=click.Choice(list(PROGRAMS)), metavar="PROGRAM")
@click.option("--check", "action", flag_value="check", help="Say what is there. Exit code 1 if anything is missing.")
@click.option("--remove", "action", flag_value="remove", help="Take away what was written.")
@click.option("--print", "action", flag_value="print", help="Print what would be written, to do it by hand.")
@click.option("--suggest", is_flag=True, help="Claude Code: a hook that points out prompts that could be delegated.")
@click.option("--apply", is_flag=True, help="Proved results go into the working tree, where they apply cleanly.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def connect(program: str, action: str | None, suggest: bool, apply: bool, as_json: bool) -> None:
    """Give a coordinator the tool `delegate`. Without a flag: write its configuration.

    PROGRAM is claude-code, openclaw, clawdbot, codex or opencode.

    Touches only what it wrote itself; a file that is changed is copied to NAME.before-garzone first.
    """
    chosen = PROGRAMS[program]
    settings = config.load()
    connections = Connections(settings.home / "connections.json")
    parts = chosen.parts(config.program_dirs(), settings, Wishes(suggest, apply))
    if action == "print":
        click.echo("\n".join(part.shown() for part in parts), nl=False)
        return
    done = {"check": connecting.check, "remove": connecting.disconnect, None: connecting.connect}[action]
    before = done(program, parts, connections)
    after = before if action == "check" else connecting.check(program, parts, connections)
    if as_json:
        document = {"program": program, "parts": [{"part": f.part, "state": f.state.value} for f in after]}
        click.echo(json.dumps(document, indent=2))
    else:
        _show(action, before, after)
    left = [finding.part for finding in after if finding.state is State.EDITED]
    if action == "check":
        sys.exit(0 if all(finding.state is State.WRITTEN for finding in after) else 1)
    if action == "remove" and left:
        raise UsageError(f"left in place, because it was changed since it was written: {', '.join(left)}")
    if action is None and not as_json:
        Console(stderr=True).print(f"{chosen.title} is connected. {chosen.after}", highlight=False)


def _show(action: str | None, before: list[Finding], after: list[Finding]) -> None:
    console = Console(soft_wrap=True)
    for was, now in zip(before, after, strict=True):
        if action == "check":
            word = now.state.value
        elif action == "remove":
            word = "removed" if now.state is State.ABSENT and was.state is not State.ABSENT else now.state.value
        else:
            word = "unchanged" if was.state is State.WRITTEN else "written"
        colour = _COLOURS.get(now.state, "red")
        console.print(f"[{colour}]{word}[/]  {escape(now.part)}", highlight=False)
