"""`garzone bench`: measurements of this machine."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import rich
from rich.console import Console
from rich.table import Table

from garzone import config
from garzone.bench import speed as speed_bench
from garzone.bench import speed_plot, synthetic
from garzone.bench.quality_suites import SUITES
from garzone.wiring import open_store


@click.group()
def bench() -> None:
    """Measure speed and quality on this machine."""


@bench.command()
@click.argument("reference")
@click.option("--peer", type=click.Choice([speed_bench.PEER]), help="Measure this in turns with garzone.")
@click.option("--peer-python", help="The Python that has llama-cpp-python.  [default: this one]")
@click.option(
    "--peer-attention",
    type=click.Choice(["plain", "flash", "both"]),
    default="both",
    show_default=True,
    help="llama.cpp's attention; with both, the faster one counts.",
)
@click.option("--device", help="tinygrad device.  [default: the best one here]")
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(1), help="Turns each side takes.")
@click.option("--position", "positions", multiple=True, type=click.IntRange(1), help="Decode from here; repeatable.")
@click.option("--prefill", default=512, show_default=True, type=click.IntRange(1), help="Prompt tokens to time.")
@click.option("--num-ctx", default=2048, show_default=True, type=click.IntRange(64), help="Context in tokens.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Also write speed.json here.")
@click.option("--plot", is_flag=True, help="Also draw speed.png in --out (needs the `bench` extra).")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def speed(  # noqa: PLR0917 - click passes them by name
    reference: str,
    peer: str | None,
    peer_python: str | None,
    peer_attention: str,
    device: str | None,
    rounds: int,
    positions: tuple[int, ...],
    prefill: int,
    num_ctx: int,
    out: Path | None,
    plot: bool,
    as_json: bool,
) -> None:
    """Speed, memory and start of a model, next to llama.cpp with --peer llama.cpp.

    REFERENCE is a model, or synthetic:qwen2.5-coder-7b for random weights of that shape (4.7 GB in the cache).
    """
    if plot and not out:
        raise click.UsageError("--plot draws into --out: give both")
    if plot:
        speed_plot.check()
    settings = config.load(device=device)
    if peer or peer_python:
        peer_python = peer_python or sys.executable
        speed_bench.check_peer(peer_python)
    console = Console(stderr=True)
    with console.status("starting") as status:
        if synthetic.is_synthetic(reference):
            path = synthetic.fetch(reference, settings.cache_dir, status.update)
        else:
            path = Path(open_store(settings).find(reference).path)
        comparison = speed_bench.Comparison(
            path,
            device=settings.device,
            num_ctx=num_ctx,
            prefill_tokens=prefill,
            positions=positions or (50, 1000),
            rounds=rounds,
            peer_python=peer_python,
            attentions={"plain": (0,), "flash": (1,), "both": (0, 1)}[peer_attention],
        )
        longest = max(prefill, *(position + speed_bench.DECODE_STEPS for position in comparison.positions))
        if longest > num_ctx:
            raise click.UsageError(f"--num-ctx {num_ctx} is too small: {longest} tokens are needed")
        report = speed_bench.measure(comparison, status.update)
    document = json.dumps(report.to_json(), indent=2)
    if out:
        out.mkdir(parents=True, exist_ok=True)
        (out / "speed.json").write_text(document + "\n")
        if plot:
            speed_plot.draw(report, out / "speed.png")
    if as_json:
        click.echo(document)
        return
    sides = max((measure.values for measure in report.measures), key=len)
    table = Table("", *sides, "times better", "goal", "", box=None)
    for measure in report.measures:
        digits = 2 if measure.unit in {"x", "s"} else 1
        cells = [f"{value:.{digits}f} {measure.unit}" for value in measure.values.values()]
        cells += [""] * (len(sides) - len(cells))  # we come first
        ratios = ", ".join(f"{ratio:.2f}" for ratio in measure.ratio.values())
        met = {None: "", True: "[green]met[/]", False: "[red]missed[/]"}[measure.met]
        table.add_row(measure.name, *cells, ratios, measure.goal or "", met)
    rich.print(
        f"{report.model}, {report.weight_bytes / 1e6:.0f} MB, on {report.machine}, {report.threads} threads, "
        f"medians of {report.rounds} rounds, load before {report.load_before:.1f}"
    )
    rich.print(table)


@bench.command()
@click.argument("reference")
@click.option("--peer-python", help="A Python that has llama-cpp-python: measure llama.cpp in turns with garzone.")
@click.option("--device", help="tinygrad device.  [default: the best one here]")
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1), help="Turns each side takes.")
@click.option(
    "--only",
    multiple=True,
    type=click.Choice(["candidates", "concurrent", "edit", "prefix", "grammar"]),
    help="Only this comparison; repeatable.",
)
@click.option("--num-ctx", default=4096, show_default=True, type=click.IntRange(4096), help="Context in tokens.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Also write scheduling.json here.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def scheduling(  # noqa: PLR0917 - click passes them by name
    reference: str,
    peer_python: str | None,
    device: str | None,
    rounds: int,
    only: tuple[str, ...],
    num_ctx: int,
    out: Path | None,
    as_json: bool,
) -> None:
    """What batching, drafts, kept prefixes and grammars do to a model's speed, next to llama.cpp if it is given."""
    from garzone.bench import scheduling as scheduling_bench  # noqa: PLC0415 - it loads the engine

    settings = config.load(device=device)
    path = Path(open_store(settings).find(reference).path)
    with Console(stderr=True).status("starting") as status:
        report = scheduling_bench.measure(
            path,
            device=settings.device,
            num_ctx=num_ctx,
            rounds=rounds,
            peer_python=peer_python,
            only=only,
            progress=status.update,
        )
    document = json.dumps(report.to_json(), indent=2)
    if out:
        out.mkdir(parents=True, exist_ok=True)
        (out / "scheduling.json").write_text(document + "\n")
    if as_json:
        click.echo(document)
        return
    table = Table("", "ours", "against", "times better", "goal", "", box=None)
    for one in report.findings:
        ours, peer = f"{one.ours:.1f} {one.unit}", f"{one.peer:.1f} {one.unit}"
        table.add_row(one.name, ours, peer, f"{one.times:.2f}", one.goal, one.note)
    rich.print(f"{report.model} on {report.machine}" + (f", next to {report.peer}" if report.peer else ""))
    rich.print(table)


@bench.command()
@click.option(
    "--data",
    required=True,
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Directory of the suites.",
)
@click.option("--suite", required=True, type=click.Choice(SUITES), help="Which suite.")
@click.option("--model", help="Model to measure.  [default: from the configuration]")
@click.option("--backend", metavar="URL", help="Ollama or OpenAI-compatible server instead of the engine here.")
@click.option("--alone", "mode", flag_value="alone", help="One greedy answer, without the worker.")
@click.option("--oracle", "mode", flag_value="oracle", help="Reference answers instead of a model's.")
@click.option("--saboteur", "mode", flag_value="saboteur", help="Hostile answers instead of a model's.")
@click.option("--limit", type=click.IntRange(1), help="Only so many tasks: the first ones, or with --seed a sample.")
@click.option("--seed", type=int, help="Decides the sample.")
@click.option("--skip", default=0, type=click.IntRange(0), help="Leave out the first so many of these tasks.")
@click.option("--candidates", default=8, show_default=True, type=click.IntRange(1, 64), help="Attempts a round.")
@click.option("--rounds", default=2, show_default=True, type=click.IntRange(1, 16), help="Later ones repair failures.")
@click.option("--hostile", default=8, show_default=True, type=click.IntRange(1), help="Hostile answers a task.")
@click.option("--timeout", default=600.0, show_default=True, type=click.FloatRange(1), help="Seconds a task.")
@click.option("--parallel", default=4, show_default=True, type=click.IntRange(1), help="Candidates at the same time.")
@click.option("--jobs", default=1, show_default=True, type=click.IntRange(1), help="Tasks at the same time.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Record here; a stopped run goes on.")
@click.option("--plot", is_flag=True, help="Also draw every record in --out (needs the `bench` extra).")
@click.option(
    "--node-path", envvar="NODE_PATH", type=click.Path(path_type=Path), help="Where `typescript` is installed."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def quality(**given: Any) -> None:
    """How many tasks of a suite are done right, by the worker or without it.

    Example: garzone bench quality --data suites --suite humanevalfix_python --model smollm2:135m --out results

    Exit code 1: an answer was `proved` that the suite's own tests refuse.
    """
    from garzone.cli.bench_quality import measure  # noqa: PLC0415 - much that `bench speed` does not need

    measure(given)


@bench.command(name="server")
@click.option("--clients", default=200, show_default=True, type=click.IntRange(1), help="Streams at the same time.")
@click.option("--requests", default=10_000, show_default=True, type=click.IntRange(40), help="For memory to stay flat.")
@click.option(
    "--pull-mb", default=512, show_default=True, type=click.IntRange(0), help="Size of the model that is pulled."
)
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Also write server.json here.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def server_command(clients: int, requests: int, pull_mb: int, out: Path | None, as_json: bool) -> None:
    """What the server adds to the engine, whether many clients get their own answers, and how fast it pulls.

    Exit code 1: a number misses its goal.
    """
    from garzone.bench import server as server_bench  # noqa: PLC0415 - much that `bench speed` does not need

    console = Console(stderr=True)
    with console.status("starting") as status:
        numbers = server_bench.measure(
            num_clients=clients, num_requests=requests, pull_mebibytes=pull_mb, progress=status.update
        )
    document = json.dumps([asdict(number) for number in numbers], indent=2)
    if out:
        out.mkdir(parents=True, exist_ok=True)
        (out / "server.json").write_text(document + "\n")
    if as_json:
        click.echo(document)
    else:
        table = Table("", "measured", "goal", "", box=None)
        for number in numbers:
            verdict = "" if number.ok is None else "ok" if number.ok else "MISSED"
            table.add_row(number.name, f"{number.value:.1f} {number.unit}", number.goal, verdict)
        rich.print(table)
    if any(number.ok is False for number in numbers):
        raise click.exceptions.Exit(1)


@bench.command()
@click.option(
    "--streams", default=10, show_default=True, type=click.IntRange(1), help="Simulated streams of each sort."
)
@click.option("--success-rate", default=0.7, show_default=True, type=click.FloatRange(0, 1), help="Of the worker.")
@click.option("--model", help="Count tokens with this model's vocabulary.  [default: from the configuration]")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Also write delegation.json here.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def delegation(streams: int, success_rate: float, model: str | None, out: Path | None, as_json: bool) -> None:
    """What delegating costs a coordinator, how well the policy decides, and what a batch saves.

    Asks no model: from recorded transcripts of the real Claude Code, and simulated streams of 2,000 tasks each.
    Exit code 1: a number misses its goal.
    """
    from garzone.cli.bench_delegation import measure  # noqa: PLC0415 - much that `bench speed` does not need

    measure(streams, success_rate, model, out, as_json)
