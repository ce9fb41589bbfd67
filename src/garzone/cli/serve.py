"""`garzone serve`, and `ps` and `stop`, which talk to the server that is running."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import math
from datetime import UTC, datetime
from typing import Any, cast

import click
import httpx2
import rich
import uvicorn
from rich.table import Table

from garzone import config
from garzone.core.errors import BackendUnavailable, UnavailableError
from garzone.core.generation import KVCacheType
from garzone.engine.footprint import check_kv_cache
from garzone.server.listener import open_listener
from garzone.wiring import build_server, open_store

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")


@click.command()
@click.option("--host", help="Address to listen on.  [default: 127.0.0.1, or OLLAMA_HOST]")
@click.option("--port", type=click.IntRange(0, 65535), help="Port to listen on; 0 picks a free one.  [default: 11434]")
@click.option("--device", help="tinygrad device: AMD, CUDA, METAL, CPU.  [default: the best one here]")
@click.option("--model", help="Load this model at once instead of on the first request.")
@click.option("--draft-model", help="A small model that guesses ahead for those with the same vocabulary.")
@click.option(
    "--kv-cache",
    type=click.Choice(KVCacheType, case_sensitive=False),
    help="How keys and values are kept; q8_0 takes 47 % less memory.  [default: f16, or OLLAMA_KV_CACHE_TYPE]",
)
@click.option("--gateway", is_flag=True, help="Pass claude-* on to Anthropic, and answer small background calls here.")
def serve(
    *,
    host: str | None,
    port: int | None,
    device: str | None,
    model: str | None,
    draft_model: str | None,
    kv_cache: KVCacheType | None,
    gateway: bool,
) -> None:
    """Run the API server: the Ollama, OpenAI and Anthropic protocols on one port.

    --gateway: what is passed on, and what is not, are gateway_forward, gateway_local and gateway_background in
    config.toml (docs/delegation.md).
    """
    settings = config.load(host=host, port=port, device=device, draft_model=draft_model, kv_cache=kv_cache)
    for name in filter(None, (model, settings.draft_model)):
        # what is wrong is better known now than in the log
        check_kv_cache(open_store(settings).find(name).model_info, settings.kv_cache)
    listener = open_listener(settings.host, settings.port)
    address, bound_port = listener.getsockname()[:2]
    if not ipaddress.ip_address(address).is_loopback:
        _warn(address, has_key=bool(settings.api_key))
    shown = f"[{address}]" if ":" in address else address
    click.echo(f"garzone: listening on http://{shown}:{bound_port} (what it does: /ui)", err=True)
    app = build_server(settings, preload=model, gateway=gateway)
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            server_header=False,
            # What is still under way then is told so, as the last thing it hears (server/lifecycle.py).
            timeout_graceful_shutdown=max(1, math.ceil(settings.shutdown_grace_s)),
        )
    )
    with contextlib.closing(listener):
        server.run(sockets=[listener])


def _warn(address: str, *, has_key: bool) -> None:
    if has_key:
        said = f"garzone: listening on {address}: whoever has the API key can use, fetch and delete models"
        click.secho(said, fg="yellow", err=True)
        return
    click.secho(
        f"garzone: WARNING: listening on {address} without an API key: everyone who reaches this machine can use, "
        "fetch and delete its models. Set GARZONE_API_KEY (or api_key in config.toml), or listen on 127.0.0.1",
        fg="red",
        bold=True,
        err=True,
    )


@click.command()
@json_option
def ps(as_json: bool) -> None:
    """Show the models in the running server's memory."""
    models = _ask("GET", "/api/ps").get("models", [])
    if as_json:
        click.echo(json.dumps(models, indent=2))
        return
    table = Table("NAME", "ID", "SIZE", "PROCESSOR", "CONTEXT", "KV CACHE", "UNTIL", box=None)
    for model in models:
        digest = str(model.get("digest", "")).removeprefix("sha256:")[:12]
        table.add_row(
            model["name"],
            digest,
            f"{model.get('size', 0) / 1e9:.1f} GB",
            "100% GPU" if model.get("size_vram") else "100% CPU",
            str(model.get("context_length", "")),
            str(model.get("kv_cache_type", "")),
            _until(str(model.get("expires_at", ""))),
        )
    rich.print(table)


@click.command()
@click.argument("reference")
def stop(reference: str) -> None:
    """Unload a model from the running server."""
    loaded = {str(model["name"]) for model in _ask("GET", "/api/ps").get("models", [])}
    _ask("POST", "/api/generate", {"model": reference, "keep_alive": 0, "stream": False})  # knows every spelling
    still = {str(model["name"]) for model in _ask("GET", "/api/ps").get("models", [])}
    if gone := loaded - still:
        click.echo(f"unloaded {', '.join(sorted(gone))}")
    elif loaded:
        click.echo(
            f"{reference} was not in memory, or goes when it has answered; in memory: {', '.join(sorted(still))}"
        )
    else:
        click.echo(f"{reference} was not in memory")


def _ask(method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """One request to the server that should be running; its errors become ours."""
    settings = config.load()
    url = settings.server_url
    headers = {"authorization": f"Bearer {settings.api_key}"} if settings.api_key else {}
    try:
        response = httpx2.request(method, url + path, json=body, headers=headers, timeout=30, trust_env=False)
    except httpx2.TransportError as error:
        raise BackendUnavailable(f"no server answers at {url}; start one with: garzone serve") from error
    answer: Any = None
    with contextlib.suppress(ValueError):
        answer = response.json()
    document = cast(dict[str, Any], answer) if isinstance(answer, dict) else {}
    if response.status_code == 401:
        raise UnavailableError(f"{url} wants an API key; set GARZONE_API_KEY to the one it was started with")
    if response.is_error:
        raise UnavailableError(str(document.get("error") or f"{url}{path}: HTTP {response.status_code}"))
    return document


def _until(expires_at: str) -> str:
    try:
        left = datetime.fromisoformat(expires_at) - datetime.now(UTC)
    except ValueError:
        return ""
    return "for ever" if left.days > 365 else f"{max(0, round(left.total_seconds() / 60))} min"
