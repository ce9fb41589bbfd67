"""`garzone run`: one answer, or a conversation in the terminal."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import sys
from collections.abc import AsyncGenerator
from dataclasses import replace

import click
import httpx2

from garzone import config
from garzone.core.chat import Message, Role
from garzone.core.errors import UnavailableError, UsageError
from garzone.core.generation import Delta, FinishReason, GenerateRequest, SamplingParams, Usage
from garzone.core.ports import TextGenerator
from garzone.wiring import open_generator

PROBE_TIMEOUT_S = 0.5  # a server on this machine answers /api/version in a millisecond, or is not there


@click.command()
@click.argument("reference")
@click.argument("prompt", required=False)
@click.option("--system", help="Instructions that come before the conversation.")
@click.option("--temperature", type=click.FloatRange(0, 2), help="0 always gives the likeliest answer.")
@click.option("--seed", type=int, help="The same seed gives the same answer.")
@click.option("--num-ctx", type=click.IntRange(1), help="Context in tokens.")
@click.option("--max-tokens", type=click.IntRange(1), help="Longest answer in tokens.")
@click.option("--verbose", is_flag=True, help="Print counts and speed to stderr after each answer.")
def run(  # noqa: PLR0917 - click passes them by name
    reference: str,
    prompt: str | None,
    system: str | None,
    temperature: float | None,
    seed: int | None,
    num_ctx: int | None,
    max_tokens: int | None,
    verbose: bool,
) -> None:
    """Chat with a model in the terminal, or answer PROMPT (and what is piped in).

    A running server is used if there is one; otherwise the model is loaded here. Ctrl-C stops an answer, Ctrl-D leaves.
    """
    sampling = SamplingParams(seed=seed, max_tokens=max_tokens)
    if temperature is not None:
        sampling = replace(sampling, temperature=temperature)
    first = (Message.of(Role.SYSTEM, system),) if system else ()
    request = GenerateRequest(model=reference, messages=first, sampling=sampling, num_ctx=num_ctx)
    if not sys.stdin.isatty():
        piped = sys.stdin.read()
        prompt = "\n\n".join(part for part in (prompt, piped.strip()) if part)
        if not prompt:
            raise UsageError("nothing to answer: give a PROMPT, or pipe one in")
    with asyncio.Runner() as runner:
        generator = runner.run(open_generator(_with_running_server(config.load())))
        try:
            if prompt:
                _answer(runner, generator, request, prompt, verbose)
            else:
                _converse(runner, generator, request, verbose)
        finally:
            runner.run(generator.aclose())


def _with_running_server(settings: config.Settings) -> config.Settings:
    """The settings with the server that should be running here as backend, if one is."""
    if settings.backend:
        return settings
    url = settings.server_url
    headers = {"authorization": f"Bearer {settings.api_key}"} if settings.api_key else {}
    with contextlib.suppress(httpx2.TransportError):
        found = httpx2.get(f"{url}/api/version", headers=headers, timeout=PROBE_TIMEOUT_S, trust_env=False)
        if found.status_code == 401:
            raise UnavailableError(f"{url} wants an API key; set GARZONE_API_KEY to the one it was started with")
        if found.is_success:
            return replace(settings, backend=url, backend_key=settings.api_key)
    return settings


def _answer(
    runner: asyncio.Runner, generator: TextGenerator, request: GenerateRequest, prompt: str, verbose: bool
) -> GenerateRequest:
    """Print the answer to `prompt` as it comes; the request with both added."""
    asked = replace(request, messages=(*request.messages, Message.of(Role.USER, prompt)))
    text, usage = runner.run(_print_stream(generator.generate(asked)))
    if verbose and usage:
        seconds = usage.decode_ms / 1000
        speed = f", {usage.completion_tokens / seconds:.1f} tok/s" if seconds else ""
        click.echo(
            f"prompt {usage.prompt_tokens} tokens ({usage.cached_tokens} cached, {usage.prefill_ms:.0f} ms), "
            f"answer {usage.completion_tokens} tokens{speed}",
            err=True,
        )
    return replace(asked, messages=(*asked.messages, Message.of(Role.ASSISTANT, text)))


async def _print_stream(stream: AsyncGenerator[Delta]) -> tuple[str, Usage | None]:
    pieces: list[str] = []
    usage = None
    async with contextlib.aclosing(stream):
        async for delta in stream:
            if delta.thinking:
                click.secho(delta.thinking, dim=True, err=True, nl=False)
            click.echo(delta.text, nl=False)
            sys.stdout.flush()
            pieces.append(delta.text)
            usage = delta.usage or usage
            if delta.finish_reason is FinishReason.LENGTH:
                click.secho(" [cut off: the longest answer allowed]", dim=True, err=True, nl=False)
    click.echo()
    return "".join(pieces), usage


def _converse(runner: asyncio.Runner, generator: TextGenerator, request: GenerateRequest, verbose: bool) -> None:
    with contextlib.suppress(ImportError):
        importlib.import_module("readline")  # gives input() line editing and history, where the platform has it
    while True:
        try:
            prompt = input(">>> ").strip()
        except EOFError:
            click.echo()
            return
        if prompt in ("/bye", "/exit", "/quit"):
            return
        if not prompt:
            continue
        try:
            request = _answer(runner, generator, request, prompt, verbose)
        except KeyboardInterrupt:
            click.echo("\n[stopped]")
