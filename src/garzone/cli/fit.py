"""`garzone fit`: will a model fit a device, at which context, how fast at best. Prints; decides nothing."""

from __future__ import annotations

import json
from dataclasses import replace

import click

from garzone import config
from garzone.core.errors import UsageError
from garzone.core.generation import KVCacheType
from garzone.engine import devices
from garzone.engine.devices import Device
from garzone.store.details import human_bytes, human_number
from garzone.store.fit import CONTEXT_STEP, Fit, fit
from garzone.wiring import open_store

KINDS = ("AMD", "CUDA", "NV", "METAL", "CPU", "HIP")
DOES_NOT_FIT_EXIT = 1


@click.command(name="fit")
@click.argument("reference")
@click.option(
    "--device", help="A card by name (7900xt, rtx 4090, m3 max), or AMD, CUDA, METAL, CPU.  [default: what is here]"
)
@click.option(
    "--kv-cache",
    type=click.Choice(KVCacheType, case_sensitive=False),
    help="How keys and values would be kept.  [default: f16, or OLLAMA_KV_CACHE_TYPE]",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def fit_command(reference: str, device: str | None, kv_cache: KVCacheType | None, as_json: bool) -> None:
    """Say whether a model fits a device: weights, cache, largest context, and the most tokens a second it could give.

    Works from a name without downloading the weights. Exit code 1 when it does not fit.
    """
    settings = config.load(kv_cache=kv_cache)
    found = fit(reference, find_device(device or settings.device), open_store(settings), settings.kv_cache)
    if as_json:
        click.echo(json.dumps(found.document(), indent=2))
    else:
        _print(found)
    if found.fits is False:
        raise click.exceptions.Exit(DOES_NOT_FIT_EXIT)


def find_device(asked: str) -> Device:
    """The device of that name, or the one in this machine.

    Raises:
        UsageError: nobody knows it.
    """
    if asked.partition(":")[0].upper() in ("", *KINDS):
        found = devices.detect(asked)
    else:
        known = devices.find(asked)
        if known is None:
            names = ", ".join(device.name for device in devices.KNOWN)
            raise UsageError(f"no device called {asked!r} is known; known are {', '.join(KINDS)}, {names}")
        found = known
    if found.kind == "CPU" and not found.bandwidth:
        return replace(found, bandwidth=devices.measured_cpu_bandwidth(), source="measured here, just now")
    return found


def _print(found: Fit) -> None:
    device, taken = found.device, found.footprint
    rows = [
        ("model", f"{found.model}  {human_number(found.parameters)}, mostly {found.quantization}"
                  + ("" if found.is_here else ", not here yet")),
        ("device", f"{device.name}  {_known(device.memory_bytes)}, {device.bandwidth / 1e9:.0f} GB/s ({device.source})"
                   if device.bandwidth else f"{device.name}  {_known(device.memory_bytes)}, bandwidth unknown"),
        ("weights", human_bytes(taken.weights_bytes)),
        (
            f"cache per {CONTEXT_STEP // 1000}k tokens",
            f"{human_bytes(taken.kv_bytes_per_token * CONTEXT_STEP)} ({found.kv_cache.value})",
        ),
        ("trained context", f"{taken.context_length:,} tokens"),
    ]  # fmt: skip
    if found.largest_context is None:
        rows.append(("largest context", "unknown: the device does not say how much memory it has"))
    elif found.largest_context == 0:
        missing = taken.total_bytes(1) - device.usable_bytes
        rows.append(("largest context", f"none: {human_bytes(missing)} too little memory; try a smaller quantization"))
    else:
        whole = found.largest_context >= taken.context_length > 0
        rows.append(("largest context", f"{found.largest_context:,} tokens" + (" (all of it)" if whole else "")))
    if found.tokens_per_s_roof is not None:
        rows.append(
            ("roof", f"{found.tokens_per_s_roof:.0f} tok/s for one answer: bandwidth over bytes read for a token")
        )
    for name, value in rows:
        click.echo(f"{name:<22}{value}")


def _known(memory_bytes: int) -> str:
    return f"{memory_bytes / (1 << 30):.0f} GiB" if memory_bytes else "memory unknown"
