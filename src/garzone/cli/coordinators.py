"""Commands that coordinators' plugins call: `call` (the tool), `slash` (a person's words), `hook` (Claude Code's).

Hidden from the help. They print what is to be read and nothing else; what is wrong is a sentence, too.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import click

from garzone import config
from garzone.agent.events import CandidateJudged, CandidateStarted, CheckFinished, Event
from garzone.cli.delegate import terminated_as_interrupted
from garzone.core.errors import GarzoneError, UsageError
from garzone.delegate.run import SLASH
from garzone.integrations.slash import COMMAND, parse_slash, suggested_kind, suggestion
from garzone.tool import Choices, Delegator, shortened


@click.command(hidden=True)
@click.option("--caller", default="plugin", help="The plugin's name, for the ledger.")
@click.option("--apply", is_flag=True, help="Put proved results into the working tree.")
def call(caller: str, apply: bool) -> None:
    """Do one call of the tool `delegate`: its arguments as JSON on stdin, what the coordinator reads on stdout."""
    try:
        arguments: Any = json.load(sys.stdin)
        if not isinstance(arguments, dict):
            raise UsageError("the arguments must be a JSON object")
        text, exit_code = asyncio.run(_call(cast("dict[str, Any]", arguments), caller, Choices(apply=apply)))
    except ValueError as error:
        text, exit_code = shortened(f"not done: the arguments are not JSON: {error}"), 1
    except GarzoneError as error:
        text, exit_code = shortened(f"not done: {error}"), 1
    click.echo(text)
    sys.exit(exit_code)


async def _call(arguments: dict[str, Any], caller: str, choices: Choices) -> tuple[str, int]:
    """What the coordinator reads, and the exit code."""
    delegator = Delegator(config.load(), choices, caller)
    task = delegator.task(arguments)
    try:
        with terminated_as_interrupted():
            return await delegator.delegate(task, arguments, _tell), 0
    except GarzoneError as error:
        return delegator.not_done(task, error), 1
    finally:
        await delegator.aclose()


def _tell(event: Event) -> None:
    match event:
        case CheckFinished(stage="before"):
            click.echo("asking the model", err=True)
        case CandidateStarted():
            click.echo(f"candidate {event.number}: {event.target}", err=True)
        case CandidateJudged():
            click.echo(f"candidate {event.number}: {event.outcome}", err=True)
        case _:
            pass


@click.command(hidden=True)
@click.argument("text")
def slash(text: str) -> None:
    """Do what a person wrote after `/garzone`. Costs no coordinator anything."""
    click.echo(_slash(text, Path.cwd()))


def _slash(text: str, directory: Path) -> str:
    try:
        arguments = parse_slash(text)
    except UsageError as error:
        return str(error)
    command = [sys.executable, "-m", "garzone", "delegate", *arguments, "--caller", SLASH]
    done = subprocess.run(  # noqa: S603 - ourselves, in a process of its own: one task, one interpreter
        command, cwd=directory, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False
    )
    if done.stdout.strip():
        return done.stdout.strip()
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    return lines[-1] if lines else f"garzone ended with code {done.returncode} and said nothing"


@click.command(hidden=True)
@click.option("--suggest", is_flag=True, help="Also point out prompts that look like one bounded task.")
def hook(suggest: bool) -> None:
    """Answer Claude Code's UserPromptSubmit hook: `/garzone ...` is done here, before any model is asked."""
    try:
        told: Any = json.load(sys.stdin)
        prompt, directory = str(told["prompt"]), Path(str(told.get("cwd") or "."))
    except (ValueError, KeyError, TypeError, AttributeError):
        return  # not ours to judge: the prompt goes on as if there were no hook
    if found := COMMAND.match(prompt):
        answer: dict[str, Any] = {"decision": "block", "reason": _slash(found["rest"] or "", directory)}
        click.echo(json.dumps(answer | {"suppressOriginalPrompt": True}))
    elif suggest and (kind := suggested_kind(prompt)):
        output = {"hookEventName": "UserPromptSubmit", "additionalContext": suggestion(kind)}
        click.echo(json.dumps({"hookSpecificOutput": output}))
