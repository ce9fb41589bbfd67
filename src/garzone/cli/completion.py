"""`garzone completion`: what a shell needs to complete commands, options and names of models."""

from __future__ import annotations

from pathlib import PurePath

import click
from click.shell_completion import get_completion_class

from garzone.core.errors import UsageError

SHELLS = ("bash", "zsh", "fish")
_WHERE = {
    "bash": 'eval "$(garzone completion bash)" in ~/.bashrc',
    "zsh": 'eval "$(garzone completion zsh)" in ~/.zshrc',
    "fish": "garzone completion fish > ~/.config/fish/completions/garzone.fish",
}


@click.command()
@click.argument("shell", required=False, envvar="SHELL", metavar="[bash|zsh|fish]")
@click.pass_context
def completion(ctx: click.Context, shell: str | None) -> None:
    """Print the completion script of SHELL (bash, zsh or fish; the one you are in, if not given).

    For good: eval "$(garzone completion bash)" in ~/.bashrc, likewise for zsh; for fish, write the output to
    ~/.config/fish/completions/garzone.fish.
    """
    name = PurePath(shell or "").name  # what shells say of themselves is a path
    if name not in SHELLS:
        raise UsageError(f"which shell? garzone completion {'|'.join(SHELLS)}")
    found = get_completion_class(name)
    assert found is not None
    click.echo(found(ctx.find_root().command, {}, "garzone", "_GARZONE_COMPLETE").source())
    click.echo(f"to keep it: {_WHERE[name]}", err=True)
