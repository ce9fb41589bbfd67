"""`garzone delegate` and `garzone route`: one task from the command line.

Reads flags, shows progress and the report; the walk of the task is `delegate.run`'s, the decision the policy's.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import shlex
import signal
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, cast

import click
from click.core import ParameterSource
from rich.console import Console
from rich.markup import escape

from garzone import config, wiring
from garzone.agent.events import Listener
from garzone.cli.progress import TaskProgress
from garzone.cli.report import plain_report, render_report
from garzone.core.errors import GarzoneError, ModelNotFound, UsageError
from garzone.core.task import Report, Route, Task, TaskKind, Verdict
from garzone.delegate.run import decide, new_task_id, require_possible, run


def _task_options(command: Callable[..., None]) -> Callable[..., None]:
    """The flags `delegate` and `route` share."""
    default = {field.name: field.default for field in dataclasses.fields(Task)}
    candidates, rounds, timeout_s = default["num_candidates"], default["max_rounds"], default["timeout_s"]
    option, whole = click.option, click.IntRange
    options = (
        click.argument("kind", type=click.Choice([kind.value for kind in TaskKind]), required=False),
        click.argument("instruction", default=""),
        option("--repo", type=click.Path(path_type=Path), default=".", help="The git repository.  [default: .]"),
        option("--file", "files", multiple=True, help="A file the task is about, relative to --repo; repeatable."),
        option("--check", help="Shell command that passes (exit code 0) when done.  [default: the project's own]"),
        option("--model", help="Model to use.  [default: from the configuration]"),
        option("--backend", metavar="URL", help="Ollama or OpenAI-compatible server instead of the engine here."),
        option("--candidates", type=whole(1, 64), default=candidates, show_default=True, help="Attempts a round."),
        option("--rounds", type=whole(1, 16), default=rounds, show_default=True, help="Later ones repair failures."),
        option(
            "--parallel", type=whole(1, 32), default=default["parallel"], show_default=True, help="Attempts at once."
        ),
        option("--max-tokens", type=whole(1), help="How much all attempts together may write.  [default: no limit]"),
        option("--timeout", type=click.FloatRange(1), default=timeout_s, show_default=True, help="Seconds in all."),
        option("--apply", is_flag=True, help="Put a proved result into the working tree, if it applies cleanly."),
        option("--unsandboxed", is_flag=True, help="Run the check without a sandbox: it may do anything you may."),
        option("--json", "as_json", is_flag=True, help="Print one JSON document."),
    )
    for decorate in reversed(options):
        command = decorate(command)
    return command


@click.command()
@_task_options
@click.option("--caller", default="cli", hidden=True, help="Who asks, for the ledger.")
@click.option("--resume", metavar="ID", help="Go on with a task that was killed; takes no other flags of a task.")
@click.pass_context
def delegate(ctx: click.Context, as_json: bool, caller: str, resume: str | None, **given: Any) -> None:
    r"""Hand one bounded task to a local model; get a proved result on a branch.

    \b
    fix        repair code; the check fails before and passes after
    implement  write what INSTRUCTION says into a new or existing --file; the check fails before and passes after
    complete   fill a place marked <fill>, or the body of a stub; the check notices what is missing
    refactor   change how code is written; the check and recorded calls show the same behaviour
    tests      write tests for --file; they pass, and notice at least 60 % of small faults put into the code
    docs       docstrings for --file, or a section of a .md file; names exist, examples are run
    translate  Python to TypeScript or JavaScript; compiles, and gives the same outputs
    review     findings on --file (several), or on a range of commits the instruction names (main..HEAD);
               bugs that a check shows happening are told from opinions

    Without --check the project's own test command is found and named in the report.

    Example: garzone delegate fix "take() adds instead of subtracting" --file inventory.py --check "pytest -q"

    Your working tree is not touched (see --apply). Exit code 0: proved; 1: not; 2: wrong usage; 3: something is missing
    here; 130: interrupted.
    """
    settings = config.load()
    task = _resumed(ctx, settings, resume) if resume else _task(settings, given)
    require_possible(task)
    errors = Console(stderr=True)
    errors.print(f"task {task.id}", style="dim", highlight=False)
    progress = TaskProgress(errors, num_candidates=task.num_candidates, max_rounds=task.max_rounds)

    def render(report: Report) -> str:
        if as_json:
            return json.dumps(report.to_json(), indent=2, ensure_ascii=False)
        return plain_report(task, report, generation_s=progress.generation_s)

    try:
        with progress:
            work = _delegate(settings, task, progress, caller=caller, call_text=_command_line(ctx), render=render)
            report = asyncio.run(work)
    except (GarzoneError, KeyboardInterrupt):
        if way_back := wiring.open_journals(settings).way_back(task):
            errors.print(way_back, style="dim", highlight=False)
        raise
    console = Console()
    if as_json or not console.is_terminal:
        click.echo(render(report))
    else:
        console.print(render_report(task, report, generation_s=progress.generation_s))
    ctx.exit(0 if report.verdict is Verdict.PROVED or _could_not_be_proved(task, report) else 1)


def _could_not_be_proved(task: Task, report: Report) -> bool:
    """Whether a result is unproved only because nothing could have proved it, and nobody asked for a check."""
    has_its_own = task.kind in (TaskKind.FIX, TaskKind.REFACTOR, TaskKind.TESTS)
    return report.verdict is Verdict.UNPROVED and not task.check and not has_its_own


@click.command()
@_task_options
def route(as_json: bool, **given: Any) -> None:
    """Say whether a task should be done locally or by the coordinator, and why. Runs nothing."""
    settings = config.load()
    task = _task(settings, given)
    device = wiring.device_facts(settings, task.model, task.backend)
    decision = decide(task, wiring.open_ledger(settings), device)
    if as_json:
        document = dataclasses.asdict(decision) | {"route": decision.route.value}
        click.echo(json.dumps(document, indent=2, ensure_ascii=False))
        return
    colour = "green" if decision.route is Route.LOCAL else "yellow"
    console = Console(soft_wrap=True)
    console.print(f"[bold {colour}]{decision.route.value}[/]  {escape(decision.reason)}", highlight=False)
    for number, line in enumerate(decision.suggestion, 1):
        head = f"{number}." if len(decision.suggestion) > 1 else "instead:"
        console.print(f"  {head} {escape(line)}", highlight=False)


async def _delegate(
    settings: config.Settings,
    task: Task,
    listener: Listener,
    *,
    caller: str,
    call_text: str,
    render: Callable[[Report], str],
) -> Report:
    ledger = wiring.open_ledger(settings)
    sandbox = wiring.open_sandbox(task.unsandboxed)
    generator = await wiring.open_generator(settings, task.backend)
    try:
        with terminated_as_interrupted():
            return await run(
                task,
                generator,
                sandbox,
                ledger,
                on_event=listener,
                caller=caller,
                call_text=call_text,
                render=render,
                counter=wiring.open_counter(settings, task.model),
                journals=wiring.open_journals(settings),
                device=wiring.device_facts(settings, task.model, task.backend),
            )
    except ModelNotFound as error:
        if "pull" in str(error):
            raise
        place = f"on {task.backend}" if task.backend else "here"
        tool = "ollama" if task.backend else "garzone"
        raise ModelNotFound(error.name, f"{place}; pull it with: {tool} pull {error.name}") from error
    finally:
        await generator.aclose()


@contextlib.contextmanager
def terminated_as_interrupted() -> Generator[None]:
    """Make SIGTERM end a task as Ctrl-C does: worktree and processes are cleaned up first."""
    loop, current = asyncio.get_running_loop(), asyncio.current_task()
    terminated = False

    def terminate() -> None:
        nonlocal terminated
        terminated = True
        if current:
            current.cancel()

    loop.add_signal_handler(signal.SIGTERM, terminate)
    try:
        yield
    except asyncio.CancelledError:
        if terminated:
            raise KeyboardInterrupt from None
        raise
    finally:
        loop.remove_signal_handler(signal.SIGTERM)


def _resumed(ctx: click.Context, settings: config.Settings, task_id: str) -> Task:
    """The task as it was given; flags that would change it are refused."""
    given = [
        parameter.opts[0] if isinstance(parameter, click.Option) else (parameter.name or "").upper()
        for parameter in ctx.command.params
        if parameter.name not in ("resume", "as_json", "caller")
        and ctx.get_parameter_source(parameter.name or "") is ParameterSource.COMMANDLINE
    ]
    if given:
        raise UsageError(f"--resume goes on with the task as it was: leave out {', '.join(given)}")
    return wiring.open_journals(settings).find(task_id)


def _task(settings: config.Settings, given: dict[str, Any]) -> Task:
    if given["kind"] is None:
        raise UsageError(f"which kind of task? One of: {', '.join(kind.value for kind in TaskKind)}")
    return Task(
        id=new_task_id(),
        kind=TaskKind(given["kind"]),
        instruction=given["instruction"],
        repo=given["repo"],
        files=given["files"],
        check=given["check"],
        model=given["model"] or settings.model,
        backend=given["backend"] or settings.backend,
        num_candidates=given["candidates"],
        max_rounds=given["rounds"],
        timeout_s=given["timeout"],
        parallel=given["parallel"],
        max_tokens=given["max_tokens"],
        apply=given["apply"],
        unsandboxed=given["unsandboxed"],
    )


def _command_line(ctx: click.Context) -> str:
    """The command as whoever called it wrote it, for what it cost them."""
    words = ["garzone", "delegate"]
    for parameter in ctx.command.params:
        if not parameter.name or ctx.get_parameter_source(parameter.name) is not ParameterSource.COMMANDLINE:
            continue
        value = ctx.params[parameter.name]
        values = cast(tuple[Any, ...], value if isinstance(value, tuple) else (value,))
        for one in values:
            if isinstance(parameter, click.Option):
                words.append(parameter.opts[0])
            if one is not True:
                words.append(str(one))
    return shlex.join(words)
