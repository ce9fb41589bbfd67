"""Runs the examples that docstrings and Markdown show (`>>> ...`), and says what came of them."""

from __future__ import annotations

import ast
import json
import re
import shlex
import sys
from dataclasses import dataclass, field
from typing import Any, cast

from garzone.agent.changes import Draft, FileEdit
from garzone.agent.harness import script
from garzone.agent.proof import Trial, new_powers, trace_doubts
from garzone.agent.stage import Run, Stage
from garzone.agent.target import Span, functions, is_python, node_at, parse

EXAMPLES_S = 20.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """How examples ended. `functions` maps a qualified name to how many ran and how many of them failed.

    `claims` are how many statements of prose (`f([1]) -> 2`) were tried and how many do not hold, `claims_output` is
    what came instead.
    """

    run: Run
    attempted: int = 0
    failed: int = 0
    functions: dict[str, tuple[int, int]] = field(default_factory=dict[str, tuple[int, int]])
    output: str = ""
    finished: bool = False
    claims: tuple[int, int] = (0, 0)
    claims_output: str = ""


def python_of(stage: Stage) -> str:
    """The interpreter of the project, as the sandbox sees it; ours where it has none of its own."""
    top, prefix = stage.repository.top, stage.repository.prefix
    for root in (top / prefix, top):
        for name in (".venv", "venv"):
            if (root / name / "bin/python").exists():
                return "python"
    return shlex.quote(sys.executable)


class Examples:
    """Runs examples of drafts on a stage."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage

    async def run(self, draft: Draft, path: str, names: tuple[str, ...] = (), *, lenient: bool = False) -> Outcome:
        """Run the examples of one file.

        Args:
            draft: the edits.
            path: a Python or Markdown file, relative to the top level.
            names: functions by qualified name; none means all.
            lenient: whether examples are read as people mean them (values compared, `f(1) == 2` taken as a claim, what
                cannot run as written left out), because somebody else wrote them for readers.
        """
        prefix = self._stage.repository.prefix
        shown = path.removeprefix(f"{prefix}/") if prefix else path
        words = " ".join(shlex.quote(word) for word in (shown, *names))
        command = f'{python_of(self._stage)} "$GARZONE_HARNESS/run_examples.py" {words}'
        files = {name: script(name) for name in ("run_examples.py", "shown.py")}
        run = await self._stage.run(
            command,
            draft.contents,
            wall_s=EXAMPLES_S,
            harness=files,
            probed=False,
            environment={"GARZONE_LENIENT": "1"} if lenient else None,
        )
        facts = facts_of(run)
        counted = cast("dict[str, list[int]]", facts.get("functions") or {})
        claims = cast("list[int]", facts.get("claims") or [0, 0])
        functions = {name: (int(pair[0]), int(pair[1])) for name, pair in counted.items()}
        return Outcome(
            run,
            int(facts.get("attempted") or 0),
            int(facts.get("failed") or 0),
            functions,
            _complaints(str(facts.get("output") or "")),
            bool(facts.get("finished")) and run.passed,
            (int(claims[0]), int(claims[1])),
            str(facts.get("claims_output") or "").strip(),
        )

    async def tried(self, draft: Draft, span: Span | None) -> Trial:
        """Whether a draft's file loads and agrees with the examples it shows; proves nothing by itself."""
        doubts = [what for edit in draft.edits for what in new_powers(edit)]
        (edit, *_) = draft.edits
        if not is_python(edit.path):
            return Trial(True, tuple(doubts))
        names = (span.qualname,) if span else _changed(edit)
        outcome = await self.run(draft, edit.path, names, lenient=True)
        if not outcome.finished:
            return Trial(
                False, output=f"The file cannot be loaded:\n{outcome.run.result.output[-800:]}", num_failing=100
            )
        doubts += trace_doubts(outcome.run)
        if outcome.failed:
            return Trial(False, output=outcome.output, num_failing=outcome.failed)
        num_claims, num_broken = outcome.claims
        if num_broken:  # prose may be meant otherwise, so this refuses nothing
            doubts.append(f"{num_broken} of {num_claims} statements of the docstring do not hold")
        num_held = outcome.attempted + num_claims - num_broken
        told = f" ({num_held} examples agree)" if num_held else ""
        return Trial(True, tuple(doubts), outcome.claims_output, num_broken, told=told, facts={"examples": num_held})


def _changed(edit: FileEdit) -> tuple[str, ...]:
    """Functions that a change wrote or wrote anew: examples of others may have been wrong before. None means all."""
    was, now = parse(edit.before), parse(edit.after)
    if edit.is_new or was is None or now is None:
        return ()
    before = {span.qualname: ast.dump(node) for span in functions(was) if (node := node_at(was, span))}
    after = {span.qualname: ast.dump(node) for span in functions(now) if (node := node_at(now, span))}
    return tuple(name for name, text in after.items() if before.get(name) != text)


def facts_of(run: Run) -> dict[str, Any]:
    """The JSON object a harness wrote; empty where it did not come so far."""
    try:
        facts: object = json.loads(run.out)
    except (ValueError, RecursionError):
        return {}
    return cast("dict[str, Any]", facts) if isinstance(facts, dict) else {}


def _complaints(output: str) -> str:
    """What doctest says without its rulers."""
    return re.sub(r"^\*{10,}\n(?:File .*\n)?", "", output, flags=re.MULTILINE).strip()[:1500]
