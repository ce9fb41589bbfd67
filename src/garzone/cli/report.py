"""Writes a report for people: what came of a task, where it lies, how to take it over. Prints nothing."""

from __future__ import annotations

import io
import shlex

from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from garzone.core.task import Report, Task, Verdict
from garzone.delegate.pricing import ALONE

PLAIN_WIDTH = 2000  # wider than any line
_MARK = {Verdict.PROVED: ("green", "✔"), Verdict.UNPROVED: ("yellow", "?"), Verdict.FAILED: ("red", "✘")}


def render_report(task: Task, report: Report, *, generation_s: float = 0.0) -> RenderableType:
    """A report as a person reads it.

    Args:
        task: what was asked; says whether the repository is elsewhere.
        report: what came of it.
        generation_s: how long the model wrote, for the tokens per second; 0 when not known.
    """
    colour, mark = _MARK[report.verdict]
    head = Text.from_markup(f"[bold {colour}]{mark} {report.verdict.value}[/]  {escape(report.summary)}")
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for change in report.files:
        table.add_row("file", f"{escape(change.path)}  [green]+{change.added}[/] [red]-{change.removed}[/]")
    for check in report.checks:
        before = "" if check.before_exit_code is None else f"exit {check.before_exit_code} before, "
        table.add_row(
            "check", f"{escape(check.command)}  ({before}{check.exit_code} now, {check.duration_ms / 1000:.1f} s)"
        )
    for finding in report.findings:
        status = "[red]seen[/]" if finding.seen else "[dim]opinion[/]"
        said = f"{finding.path}:{finding.line}  {finding.reason}"
        said += f"  -> {finding.suggestion}" if finding.suggestion else ""
        table.add_row(finding.severity, f"{status}  {escape(said)}")
    if report.proof:
        told = (f"{name.replace('_', ' ')} {value}" for name, value in report.proof.items() if value not in ([], {}))
        table.add_row("proof", escape("; ".join(told)))
    if report.written_tests:
        table.add_row("tests", escape(f"written by the model for itself:\n{report.written_tests.strip()}"))
    table.add_row("tried", _effort(report, generation_s))
    if served := report.served_by:
        where = ", ".join(filter(None, (served.backend, served.device)))
        table.add_row("by", escape(f"{served.model}  ({where})" + (f"  {served.digest[:19]}" if served.digest else "")))
    if report.post_mortem:
        table.add_row("why not", escape(report.post_mortem))
    if report.branch:
        _add_branch(table, task, report)
    if report.savings:
        alone = report.savings.baseline_tokens.get(ALONE, 0)
        estimated = " (estimated)" if report.savings.estimated else ""
        table.add_row(
            "cost", f"{report.savings.coordinator_tokens_spent} coordinator tokens; doing it alone: {alone}{estimated}"
        )
    if not report.sandboxed:
        table.add_row("note", "[yellow]the check ran without a sandbox[/]")
    for note in report.notes:
        table.add_row("note", escape(note))
    return Group(head, Padding(table, (0, 0, 0, 2)))


def plain_report(task: Task, report: Report, *, generation_s: float = 0.0) -> str:
    """The same for a program or a file: no colour, nothing folded, no spaces at the end of lines."""
    text = io.StringIO()
    console = Console(file=text, width=PLAIN_WIDTH, color_system=None)
    console.print(render_report(task, report, generation_s=generation_s))
    return "\n".join(line.rstrip() for line in text.getvalue().rstrip().splitlines())


def tokens_per_second(report: Report, generation_s: float) -> float:
    """How fast the model wrote; 0.0 when not known."""
    return report.tokens.completion / generation_s if generation_s > 0 else 0.0


def _effort(report: Report, generation_s: float) -> str:
    tokens = report.tokens
    rounds = f" in {report.num_rounds} rounds" if report.num_rounds > 1 else ""
    speed = tokens_per_second(report, generation_s)
    parts = [
        f"{report.num_candidates} candidate{'s' if report.num_candidates != 1 else ''}{rounds}"
        + (f", {report.num_malformed} malformed" if report.num_malformed else "")
        + (f", {report.num_asked_again} asked again" if report.num_asked_again else ""),
        f"{tokens.prompt} tokens read ({tokens.cached} cached), {tokens.completion} written"
        + (f" at {speed:.0f} tok/s" if speed else ""),
        f"{report.duration_ms / 1000:.1f} s",
    ]
    return "; ".join(parts)


def _add_branch(table: Table, task: Task, report: Report) -> None:
    branch = shlex.quote(report.branch or "")
    git = "git" if str(task.repo) == "." else f"git -C {shlex.quote(str(task.repo))}"
    table.add_row("branch", escape(branch))
    table.add_row("look", escape(f"{git} diff HEAD...{branch}"))
    if report.applied:
        table.add_row("applied", "[green]to your working tree; not committed[/]")
    elif report.verdict is Verdict.PROVED:
        table.add_row("take over", escape(f"{git} merge {branch}"))
    table.add_row("drop", escape(f"{git} branch -D {branch}"))
