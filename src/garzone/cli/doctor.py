"""`garzone doctor`: tries what garzone needs on this machine, and says what to do about what is missing.

Tries rather than looks: code runs on the device and in the sandbox, a file is written. Nothing is repaired.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal, cast

import click
import httpx2

from garzone import config
from garzone.config import Settings
from garzone.core.errors import GarzoneError, SandboxUnavailable
from garzone.core.ports import SandboxLimits
from garzone.store.catalog import Store
from garzone.store.details import human_bytes

PROBE_TIMEOUT_S: Final = 90.0  # a first compile takes seconds; a driver that hangs, for ever
ENVIRONMENT_EXIT: Final = 3
COMPILERS: Final = ("clang", "gcc", "cc")
LOW_SPACE_BYTES: Final = 10 << 30  # a 7B model at four bits has 4.7 GB

# Runs in a process of its own: importing tensors takes seconds, and a broken driver may hang or crash whoever asks it.
_DEVICE_PROBE: Final = """
import json, sys
from tinygrad import Device, Tensor
name = sys.argv[1] or Device.DEFAULT
total = (Tensor([1.0, 2.0, 3.0], device=name) * 2).sum().item()
found = list(dict.fromkeys([name.split(":")[0], *Device.get_available_devices()]))
arch = str(getattr(Device[name], "arch", "") or "")
print(json.dumps({"device": name, "total": total, "arch": arch, "found": found}))
"""

State = Literal["ok", "missing", "note"]
_COLOURS: Final[dict[State, str]] = {"ok": "green", "missing": "red", "note": "yellow"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was tried. `missing` means garzone cannot do its main job; a `note` costs something else."""

    name: str
    state: State
    detail: str
    advice: str = ""


@click.command()
@click.option("--device", help="tinygrad device to try: AMD, CUDA, METAL, CPU.  [default: the best one here]")
@click.option(
    "--kernels", is_flag=True, help="Instead, compare every kernel with the reference, and time it (about a minute)."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def doctor(device: str | None, kernels: bool, as_json: bool) -> None:
    """Check device, compiler, sandbox and store; say what to do about what is missing.

    With --kernels: exit code 1 if a kernel computes something else than the reference, 3 if the device cannot be used.
    """
    settings = config.load(device=device)
    if kernels:
        from garzone.cli.doctor_kernels import check_kernels  # noqa: PLC0415 - seldom wanted

        sys.exit(check_kernels(settings.device, as_json=as_json))
    checks: Sequence[Callable[[], Finding]] = (
        lambda: check_device(settings.device),
        check_compiler,
        check_sandbox,
        lambda: check_store(settings.models_dir),
        lambda: check_models(settings),
        lambda: check_server(settings),
    )
    findings: list[Finding] = []
    for check in checks:
        findings.append(check())
        if not as_json:
            _print(findings[-1])
    healthy = all(finding.state != "missing" for finding in findings)
    if as_json:
        click.echo(json.dumps({"ok": healthy, "checks": [asdict(finding) for finding in findings]}, indent=2))
    if not healthy:
        sys.exit(ENVIRONMENT_EXIT)


def check_device(
    device: str, *, python: str = sys.executable, probe: str = _DEVICE_PROBE, timeout_s: float = PROBE_TIMEOUT_S
) -> Finding:
    """Run a small computation on the device, in another process."""
    advice = "choose another with --device or GARZONE_DEVICE; CPU always works, slowly, once there is a C compiler"
    shown = device or "the default device"
    started = time.monotonic()
    try:
        done = subprocess.run(  # noqa: S603 - our own interpreter and program
            [python, "-c", probe, device], capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired:
        return Finding("device", "missing", f"{shown} did not answer within {timeout_s:.0f} s", advice)
    except OSError as error:
        return Finding("device", "missing", f"{python} cannot be run: {error.strerror}", "install garzone again")
    answer: dict[str, Any] = {}
    if done.returncode == 0:
        try:
            parsed: object = json.loads(done.stdout.strip().rpartition("\n")[2])
            answer = cast("dict[str, Any]", parsed) if isinstance(parsed, dict) else {}
        except ValueError:
            pass  # said below, with the rest of what it printed
    if not answer:
        said = (done.stderr or done.stdout).strip().rpartition("\n")[2][:300]
        return Finding("device", "missing", f"{shown} cannot be used: {said or f'exit {done.returncode}'}", advice)
    if answer["total"] != 12.0:
        return Finding("device", "missing", f"{answer['device']} computes nonsense (2+4+6 = {answer['total']})", advice)
    name = " ".join(part for part in (answer["device"], answer["arch"]) if part)
    detail = f"{name} computes ({time.monotonic() - started:.1f} s to start)"
    if answer["found"] == ["CPU"]:
        return Finding("device", "note", f"{detail}; no GPU was found", "small models only, until there is a GPU")
    return Finding("device", "ok", detail)


def check_compiler(compilers: Sequence[str] = COMPILERS) -> Finding:
    """Compile and run a C program."""
    advice = "install clang (Debian: apt install clang; macOS: xcode-select --install)"
    found = next((path for path in map(shutil.which, compilers) if path), None)
    if found is None:
        return Finding("compiler", "missing", f"none of {', '.join(compilers)} is here", advice)
    with tempfile.TemporaryDirectory() as directory:
        source, program = Path(directory) / "try.c", Path(directory) / "try"
        source.write_text("int main(void) { return 42; }\n")
        try:
            made = subprocess.run(  # noqa: S603 - a compiler of this machine on our own file
                [found, "-O2", str(source), "-o", str(program)], capture_output=True, text=True, timeout=60, check=False
            )
            if made.returncode:
                said = made.stderr.strip().partition("\n")[0]
                return Finding("compiler", "missing", f"{found} does not compile: {said}", advice)
            ran = subprocess.run([str(program)], timeout=10, check=False)  # noqa: S603
        except (OSError, subprocess.TimeoutExpired) as error:
            return Finding("compiler", "missing", f"{found} does not work: {error}", advice)
    if ran.returncode != 42:
        return Finding("compiler", "missing", f"what {found} makes does not run here (exit {ran.returncode})", advice)
    return Finding("compiler", "ok", found)


def check_sandbox() -> Finding:
    """Run `true` in the sandbox that tasks get."""
    from garzone.agent.sandbox import open_sandbox  # noqa: PLC0415 - opening it is what is being tried

    try:
        sandbox = open_sandbox()
        with tempfile.TemporaryDirectory() as directory:
            result = asyncio.run(sandbox.run("true", Path(directory), SandboxLimits(wall_s=20.0)))
    except SandboxUnavailable as error:
        return Finding("sandbox", "missing", str(error), "or accept the risk, task by task, with --unsandboxed")
    if result.exit_code != 0:
        said = result.output.strip()[:200]
        return Finding("sandbox", "missing", f"`true` fails in it with exit code {result.exit_code}: {said}", "")
    return Finding("sandbox", "ok", f"commands run isolated ({result.duration_ms:.0f} ms to start)")


def check_store(models_dir: Path) -> Finding:
    """Write a file where models are kept."""
    advice = "set OLLAMA_MODELS to a directory you may write to"
    existing = next(each for each in (models_dir, *models_dir.parents) if each.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            free = shutil.disk_usage(existing).free
    except OSError as error:
        return Finding("store", "missing", f"{existing} cannot be written to: {error.strerror}", advice)
    detail = f"{models_dir}{'' if existing == models_dir else ' (made by the first pull)'}, {human_bytes(free)} free"
    if free < LOW_SPACE_BYTES:
        return Finding(
            "store", "note", detail, "a 7B model takes 5 GB: make room, or set OLLAMA_MODELS to another disk"
        )
    return Finding("store", "ok", detail)


def check_models(settings: Settings) -> Finding:
    """See which models are here, and whether the default one is."""
    models = [model.name for model in Store(settings.models_dir).list_models()]
    if not models:
        return Finding("models", "note", "none yet", f"garzone pull {settings.model}, or a small one: smollm2:135m")
    listing = ", ".join(models[:5]) + (f" and {len(models) - 5} more" if len(models) > 5 else "")
    try:
        Store(settings.models_dir).find(settings.model)
    except GarzoneError as error:
        return Finding(
            "models", "note", f"{listing}; the default model cannot be used: {error}", "or set GARZONE_MODEL"
        )
    return Finding("models", "ok", listing)


def check_server(settings: Settings) -> Finding:
    """Ask the server for its version."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)  # noqa: S104 - read, not bound
    url = f"http://{f'[{host}]' if ':' in host else host}:{settings.port}"
    try:
        response = httpx2.get(f"{url}/api/version", timeout=5, trust_env=False)
        answer: object = response.json()
    except httpx2.TransportError:
        return Finding("server", "note", f"nothing answers at {url}", "start it where it is wanted: garzone serve")
    except ValueError:
        answer = None
    version = cast("dict[str, Any]", answer).get("version") if isinstance(answer, dict) else None
    if not isinstance(version, str):
        return Finding("server", "note", f"something else answers at {url}", "give garzone another port: OLLAMA_HOST")
    return Finding("server", "ok", f"{url} answers, version {version}")


def _print(finding: Finding) -> None:
    state = click.style(f"{finding.state:<7}", fg=_COLOURS[finding.state])
    click.echo(f"{state}  {finding.name:<8}  {finding.detail}")
    if finding.advice and finding.state != "ok":
        click.echo(f"{'':19}{finding.advice}")
