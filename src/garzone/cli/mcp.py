"""`garzone mcp`: the MCP server as a command. Reads flags; stdin and stdout belong to the protocol."""

from __future__ import annotations

import asyncio

import click

from garzone import config, mcp_server
from garzone.tool import Choices


@click.command()
@click.option("--model", help="Model to use.  [default: from the configuration]")
@click.option("--backend", metavar="URL", help="Ollama or OpenAI-compatible server instead of the engine here.")
@click.option("--candidates", type=click.IntRange(1, 64), help="Attempts a round.")
@click.option("--timeout", type=click.FloatRange(1), help="Seconds a task may take in all.")
@click.option("--apply", is_flag=True, help="Put proved results into the working tree, where they apply cleanly.")
@click.option("--always", is_flag=True, help="Do also what the policy would leave to the coordinator.")
@click.option("--unsandboxed", is_flag=True, help="Run checks without a sandbox: they may do anything you may.")
def mcp(  # noqa: PLR0917 - click passes them by name
    model: str | None,
    backend: str | None,
    candidates: int | None,
    timeout: float | None,
    apply: bool,
    always: bool,
    unsandboxed: bool,
) -> None:
    """Serve the tool `delegate` to a coordinator, as an MCP server on stdin and stdout.

    Coordinators start it themselves; `garzone connect` configures them.
    """
    choices = Choices(model, backend, candidates, timeout, apply, always, unsandboxed)
    asyncio.run(mcp_server.serve(config.load(), choices))
