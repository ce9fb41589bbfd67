"""The command line: one small file per command group, imported only when its command is called.

Turns exceptions into one line on stderr and an exit code (CONTRACT.md); decides nothing else.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from typing import Any

import click

from garzone import __version__
from garzone.core.errors import GarzoneError

# command -> (module under garzone.cli, attribute, first line of its help): help must not import the modules
COMMANDS: dict[str, tuple[str, str, str]] = {
    "serve": ("serve", "serve", "Run the API server."),
    "run": ("run", "run", "Chat with a model in the terminal, or get one answer."),
    "pull": ("models", "pull", "Fetch a model."),
    "list": ("models", "list_models", "Models on disk."),
    "show": ("models", "show", "What is known of a model."),
    "cp": ("models", "copy", "Give a model a second name."),
    "rm": ("models", "remove", "Delete models."),
    "create": ("models", "create", "Make a model from a Modelfile."),
    "fit": ("fit", "fit_command", "Say whether a model fits a device, at which context, how fast at best."),
    "ps": ("serve", "ps", "Models in the running server's memory."),
    "stop": ("serve", "stop", "Unload a model from the running server."),
    "delegate": ("delegate", "delegate", "Hand one bounded task to a local model; get a proved result."),
    "route": ("delegate", "route", "Say whether a task should be done locally, and why; runs nothing."),
    "savings": ("savings", "savings", "What delegating saved, net of failures."),
    "mcp": ("mcp", "mcp", "Serve the tool `delegate` to a coordinator, as an MCP server on stdio."),
    "connect": ("connect", "connect", "Put garzone into the hands of a coordinator: Claude Code, OpenClaw, Codex, ..."),
    "bench": ("bench", "bench", "Measure speed, quality, the server and delegation on this machine."),
    "doctor": ("doctor", "doctor", "Check device, compiler, sandbox and store."),
    "completion": ("completion", "completion", "Print what a shell needs to complete commands."),
}

# what other programs call, not people: left out of the help
HIDDEN = {
    "call": ("coordinators", "call"),
    "slash": ("coordinators", "slash"),
    "hook": ("coordinators", "hook"),
}


class LazyGroup(click.Group):
    """A group that imports a command's module when the command is called, so that `garzone --help` stays quick."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: D102
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: D102
        if cmd_name in HIDDEN:
            module, attribute = HIDDEN[cmd_name]
        elif cmd_name in COMMANDS:
            module, attribute, _ = COMMANDS[cmd_name]
        else:
            return None
        return getattr(importlib.import_module(f"garzone.cli.{module}"), attribute)

    def resolve_command(  # noqa: D102
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            near = difflib.get_close_matches(args[0], COMMANDS, 1)
            if not near:
                raise
            raise click.UsageError(f"{error.message} Did you mean {near[0]}?", ctx) from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: D102
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, _, summary) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="garzone")
def garzone() -> None:
    """A local coding agent: open models on your own GPU do bounded coding tasks and prove the result.

    Shell completion: eval "$(_GARZONE_COMPLETE=bash_source garzone)" (or zsh_source, fish_source).
    """


def main(arguments: list[str] | None = None) -> Any:
    """Entry point of the `garzone` script; never returns normally."""
    try:
        result = garzone.main(arguments, prog_name="garzone", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        sys.exit(130)
    except GarzoneError as error:
        click.echo(f"garzone: {error}", err=True)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output left; there is nobody to tell
        sys.exit(141)
    sys.exit(result if isinstance(result, int) else 0)  # click returns the code of ctx.exit(code)
