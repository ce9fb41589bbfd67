"""Compares what the tests said before a change with what they say after it: objections, or none.

Reads what `probe/sitecustomize.py` recorded; runs nothing. An exit code of 0 alone proves little: a process that ends
early has it too. Where the check runs Python tests, every test that failed must be seen passing, every test that passed
must be seen passing again, and the run must have come to its own end.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import CodeType
from typing import Any, cast

MIN_INPUTS = 3  # of a function written anew; one or two examples are passed as well by an answer that holds just them
MAX_EVIDENCE_BYTES = 32 << 20  # a hundred thousand tests; more is not read


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a test failed: its message, and the places the trace went through, outermost first."""

    test: str
    message: str
    trace: tuple[tuple[str, int], ...] = ()

    @property
    def is_script(self) -> bool:
        """Whether a whole script failed, whose message alone says little."""
        return _is_script(self.test)


@dataclass(frozen=True, slots=True)
class Evidence:
    """What was recorded of one run. `outcomes`: test id -> `passed`, `failed` or `skipped`; the worst one counts.

    `watched` says that the run was a watched one (`probe/garzone_watch.py`), `seen` what changed code did in it that
    says something: `decides Name.__eq__`, `calls posix.write`, `does open`, `ends process.exit`, `changes Object.is`.
    """

    outcomes: Mapping[str, str] = field(default_factory=dict[str, str])
    failures: tuple[Failure, ...] = ()
    num_started: int = 0
    num_ended: int = 0
    exits: tuple[tuple[str, ...], ...] = ()
    runners: frozenset[str] = frozenset()
    watched: bool = False
    seen: frozenset[str] = frozenset()

    @property
    def present(self) -> bool:
        """Whether anything was recorded at all."""
        return self.num_started > 0 or bool(self.outcomes)

    @property
    def passed(self) -> frozenset[str]:
        """Tests that passed and did not fail in another phase."""
        return frozenset(name for name, outcome in self.outcomes.items() if outcome == "passed")

    @property
    def failed(self) -> frozenset[str]:
        """Tests that failed, and modules that could not be collected (`collect:...`)."""
        return frozenset(name for name, outcome in self.outcomes.items() if outcome == "failed")


_RANK = {"failed": 2, "skipped": 1, "passed": 0}


def parse_evidence(raw: bytes) -> Evidence:
    """What was recorded. Lines that make no sense are left out."""
    outcomes: dict[str, str] = {}
    failures: dict[str, Failure] = {}
    exits: list[tuple[str, ...]] = []
    started = ended = 0
    runners: set[str] = set()
    watched = False
    seen: set[str] = set()
    for line in raw.splitlines():
        fact = _fact(line)
        event = fact.get("event")
        if event == "start":
            started += 1
            runners.add(str(fact.get("kind", "")))
        elif event == "end":
            ended += 1
            exits.append(tuple(place for place, _ in _trace(fact)))
        elif event == "watching":
            watched = True
        elif event == "watch":
            seen.add(str(fact.get("what", "")))
        elif event == "test":
            name, outcome = str(fact.get("id", "")), str(fact.get("outcome", ""))
            if outcome in _RANK and _RANK[outcome] >= _RANK.get(outcomes.get(name, ""), -1):
                outcomes[name] = outcome
            if outcome == "failed":
                failures.setdefault(name, Failure(name, str(fact.get("message", "")), _trace(fact)))
    return Evidence(
        outcomes, tuple(failures.values()), started, ended, tuple(exits), frozenset(runners), watched, frozenset(seen)
    )


def contradictions(before: Evidence, after: Evidence, changed_file: str) -> list[str]:
    """What stands against believing an exit code of 0 after a change, as phrases; none means nothing does.

    Args:
        before: of the run that failed.
        after: of the run with the change.
        changed_file: path of the changed file; exits that passed through it count as early.
    """
    if not before.present:
        return []  # not a Python check, or one that hides from the probe: only the exit code speaks
    found: list[str] = []
    if after.num_started < min(before.num_started, 1) or not after.present:
        return ["the tests that ran before did not start"]
    if after.num_ended < after.num_started:
        found.append("the run broke off before its end")
    if after.failed:
        found.append(f"{_some(after.failed)} failed although the exit code is 0")
    if vanished := before.passed - after.passed:
        found.append(f"{_some(vanished)} passed before and did not now")
    were_failing = {name for name in before.failed if not name.startswith("collect:")} - _scripts(before)
    if unseen := were_failing - after.passed:
        found.append(f"{_some(unseen)} failed before and was not seen to pass")
    tests_counted = before.runners & {"pytest", "unittest"}
    if tests_counted and not after.passed:
        found.append("no test was seen to pass")
    if any(_same_file(place, changed_file) for trace in after.exits for place in trace):
        found.append("the program was ended from inside the changed file")
    return found


def suspicions(watched: Evidence, before: str, usual: frozenset[str] = frozenset()) -> list[str]:
    """What changed code did under observation that a repair need not do, as phrases.

    Args:
        watched: of a watched run with the change.
        before: the changed files' text before. What functions in it decide, and what it names itself, is the
            repository's own business: that a change makes more use of it is seen in its text (`vet.py`).
        usual: what was seen when the same check ran on the code as it was.
    """
    functions, words = functions_in(before), frozenset(re.findall(r"\w+", before))
    found: list[str] = []
    for what in sorted(watched.seen - usual):
        verb, _, name = what.partition(" ")
        plain = name.rpartition(".")[2]
        if verb == "input":
            continue
        if verb == "decides":
            if name not in functions and (plain == "<lambda>" or plain not in functions):
                found.append(f"a value it returns decides comparisons by itself ({name})")
        elif verb in ("ends", "changes") or (plain not in words and name.partition(".")[0] not in words):
            found.append(f"the change {what} while the tests run")
    return found


_TOTALS = (
    re.compile(r"^(?:\u2139|#) tests (\d+)\s*$", re.MULTILINE),  # node --test: spec and TAP
    re.compile(r"^\s*Tests\s.*\((\d+)\)\s*$", re.MULTILINE),  # vitest
    re.compile(r"^Tests:\s.*?(\d+) total\s*$", re.MULTILINE),  # jest
)


def num_tests(output: str) -> int | None:
    """How many tests a runner of JavaScript says it ran; None where it says nothing that is known."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", output)
    totals = [int(found[-1]) for pattern in _TOTALS if (found := pattern.findall(plain))]
    return totals[0] if totals else None


def fewer_tests(before: str, after: str) -> list[str]:
    """Whether a runner of JavaScript counts fewer tests than before, as a phrase."""
    was, now = num_tests(before), num_tests(after)
    if was is None or (now is not None and now >= was):
        return []
    return [f"the runner counted {was} test{'s' if was != 1 else ''} before and {now or 'none'} now"]


def too_few_inputs(watched: Evidence, before: str) -> list[str]:
    """Whether functions that a change wrote anew were tried on too few inputs to tell an answer known by heart.

    Only what is entered from outside of the changed files counts; a repaired function has the tests it failed.
    """
    known = functions_in(_without_stubs(before))
    tried: dict[str, int] = {}
    for what in watched.seen:
        verb, _, name = what.partition(" ")
        if verb == "input":
            function, _, number = name.rpartition("_")
            tried[function] = max(tried.get(function, 0), int(number) if number.isdigit() else 0)
    new = {name: count for name, count in tried.items() if name not in known and name.rpartition(".")[2] not in known}
    if not new or max(new.values()) >= MIN_INPUTS:
        return []
    most = max(new, key=new.__getitem__)
    times = "one input" if new[most] == 1 else f"{new[most]} inputs"
    return [f"the check tries {most} on {times} only, which an answer known by heart passes, too"]


def _without_stubs(text: str) -> str:
    """Source without the functions that say nothing: what stands in their place is new."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ""
    for parent in ast.walk(tree):
        body = getattr(parent, "body", None)
        if isinstance(body, list):
            kept = [node for node in cast("list[ast.stmt]", body) if not _is_stub(node)]
            cast(Any, parent).body = kept or [ast.Pass()]
    return ast.unparse(ast.fix_missing_locations(tree))


def _is_stub(node: ast.stmt) -> bool:
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return False
    body = [each for each in node.body if not isinstance(each, ast.Import | ast.ImportFrom)]
    return bool(body) and all(
        isinstance(each, ast.Pass | ast.Raise) or (isinstance(each, ast.Expr) and isinstance(each.value, ast.Constant))
        for each in body
    )


def functions_in(text: str) -> frozenset[str]:
    """Names and qualified names of all functions in Python source, nested ones and lambdas as the compiler has them."""
    try:
        pending = [compile(text, "<before>", "exec", dont_inherit=True)]
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return frozenset()
    found: set[str] = set()
    while pending:
        code = pending.pop()
        found |= {code.co_name, code.co_qualname}
        pending += [inner for inner in code.co_consts if isinstance(inner, CodeType)]
    return frozenset(found)


def _scripts(evidence: Evidence) -> set[str]:
    """Ids of scripts: they have an end, not an outcome."""
    return {name for name in evidence.outcomes if _is_script(name)}


def _is_script(name: str) -> bool:
    return name.endswith(".py") and "::" not in name and not name.startswith("collect:")


def _same_file(place: str, changed: str) -> bool:
    return place == changed or place.endswith(f"/{changed}")


def _some(names: frozenset[str] | set[str]) -> str:
    first = min(names)
    return first if len(names) == 1 else f"{first} and {len(names) - 1} more"


def _fact(line: bytes) -> dict[str, Any]:
    try:
        fact: object = json.loads(line)
    except (ValueError, RecursionError):
        return {}  # written by something else
    return cast("dict[str, Any]", fact) if isinstance(fact, dict) else {}


def _trace(fact: Mapping[str, Any]) -> tuple[tuple[str, int], ...]:
    trace: Any = fact.get("trace")
    try:
        return tuple((str(place), int(line)) for place, line in trace or ())
    except (TypeError, ValueError):
        return ()
