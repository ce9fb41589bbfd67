"""Says what a run of the task's check shows: whether it can be used at all, and whether a change is proved by it.

Runs it through the stage; does not write candidates and does not choose among them.
"""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from garzone.agent.changes import Draft, FileEdit
from garzone.agent.context import trimmed_output
from garzone.agent.evidence import contradictions, fewer_tests, suspicions, too_few_inputs
from garzone.agent.stage import Run, Stage
from garzone.agent.target import is_protected, is_python, is_script
from garzone.agent.vet import objections
from garzone.core.errors import CheckNotFound
from garzone.core.task import Check, Finding

NOT_FOUND, NOT_EXECUTABLE = 127, 126  # POSIX shells
PYTEST_USAGE, PYTEST_NO_TESTS = 4, 5  # pytest.ExitCode
OUTPUT_CHARS = 1500  # of a failing output, for the next prompt
WATCH_FACTOR = 4.0  # being watched slows code that calls much down two- to threefold
HOPELESS = 1 << 20  # `num_failing` of what could not even be tried

Objections = Callable[[FileEdit], Sequence[str]]


@dataclass(frozen=True, slots=True)
class Trial:
    """What a candidate's proof came to.

    `doubts` say why what passed proves nothing; none means it is a proof. `output` is what the model is told when it
    did not pass, `num_failing` orders failures (less is closer) and what passed with as many doubts. `told` is a phrase
    for the report, `facts` what was measured, `findings` those of a review that are left, `draft` what passed where
    that is less than was written.
    """

    passed: bool
    doubts: tuple[str, ...] = ()
    output: str = ""
    num_failing: int = 0
    checks: tuple[Check, ...] = ()
    told: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])
    findings: tuple[Finding, ...] = ()
    draft: Draft | None = None

    @property
    def proved(self) -> bool:
        """It passed and nothing stands against it."""
        return self.passed and not self.doubts

    def doubted(self, *doubts: str) -> Trial:
        """The same with more doubts."""
        return replace(self, doubts=(*self.doubts, *doubts))


def new_powers(edit: FileEdit) -> list[str]:
    """What a change newly can do, as phrases (`vet.py`)."""
    found = [f"the change {what}" for what in objections(edit.path, edit.before, edit.after)]
    if edit.path.endswith(".rs") and _inline_tests(edit.before) != _inline_tests(edit.after):
        found.append("the change touches the tests in the same file")
    return found


def _inline_tests(text: str) -> str:
    """The part of a Rust file from its first unit test on."""
    first = re.search(r"#\[(?:cfg\(test\)|test)\]", text)
    return text[first.start() :].strip() if first else ""


async def check_as_it_is(stage: Stage, check: str) -> Run:
    """The check on the code as it is.

    Raises:
        CheckNotFound: the command, or the module `python -m` names, is not there; or it runs no test at all.
    """
    run = await stage.run(check)
    must_exist(run, check)
    return run


async def check_draft(
    stage: Stage,
    check: str,
    draft: Draft,
    before: Run,
    *,
    powers: Objections = new_powers,
    quick: str | None = None,
    is_new: bool = False,
) -> tuple[Run, Trial]:
    """The check with a draft's edits, and what that shows.

    Args:
        stage: where it runs.
        check: the command.
        draft: the candidate.
        before: the run of the same command on the code as it is.
        powers: what stands against an edit whatever the run says.
        quick: the same check for the tests that failed only; where it fails, the whole is not run.
        is_new: the draft writes functions that did nothing before, so the check must try them on several inputs.
    """
    if quick is not None:
        run = await stage.run(quick, draft.contents)
        if not run.passed:
            return run, judge_run(stage, quick, draft, before, run, powers=powers)
    run = await stage.run(check, draft.contents)
    trial = judge_run(stage, check, draft, before, run, powers=powers)
    if trial.proved and (run.evidence.present or any(is_script(edit.path) for edit in draft.edits)):
        trial = await watched(stage, check, draft, trial, is_new=is_new)
    return run, trial


async def watched(stage: Stage, check: str, draft: Draft, trial: Trial, *, is_new: bool = False) -> Trial:
    """Run a check that passed a second time, with what changed under observation; the trial with what that showed.

    Python and what Node runs can be observed. A check that changes these and cannot be observed proves nothing.

    The second run is a proof of its own: what passes by chance seldom does so twice.
    """
    edits = [edit for edit in draft.edits if _can_be_watched(edit.path) and not is_protected(edit.path)]
    if not edits:
        return trial
    paths = [edit.path for edit in edits]
    run = await stage.run(check, draft.contents, wall_s=WATCH_FACTOR * stage.wall_s, watched=paths)
    trial = replace(trial, checks=(*trial.checks, run.as_check(check, trial.checks[0].before_exit_code)))
    if not run.passed:
        why = "did not end" if run.result.timed_out else f"ended with {run.result.exit_code}"
        return trial.doubted(f"the check passed once and {why} when it ran again under observation")
    if not run.evidence.watched and any(is_script(path) for path in paths):
        return trial.doubted("the check could not be observed, so nothing says that its runner was left alone")
    before = "\n".join(edit.before for edit in edits)
    found = suspicions(run.evidence, before)  # none from a Python before 3.8: as much as was seen before
    if found:
        usual = await stage.run(check, wall_s=WATCH_FACTOR * stage.wall_s, watched=paths)
        found = suspicions(run.evidence, before, usual.evidence.seen)
    if is_new:
        found += too_few_inputs(run.evidence, before)
    return trial.doubted(*found)


def _can_be_watched(path: str) -> bool:
    return is_python(path) or is_script(path)


def judge_run(
    stage: Stage, check: str, draft: Draft, before: Run, run: Run, *, powers: Objections = new_powers
) -> Trial:
    """What a run of the check with a draft's edits shows, given the run without them."""
    doubts = [what for edit in draft.edits for what in powers(edit)]
    if run.passed:
        for edit in draft.edits:
            doubts += contradictions(before.evidence, run.evidence, edit.path)
            doubts += fewer_tests(before.result.output, run.result.output) if is_script(edit.path) else []
        doubts += trace_doubts(run)
    if not stage.isolated:
        doubts.append("it ran without a sandbox")
    num_failing = len(run.evidence.failed) + (10 if run.result.timed_out else 0) - len(run.evidence.passed)
    return Trial(
        run.passed,
        tuple(dict.fromkeys(doubts)),
        output="" if run.passed else failing_output(run, stage.wall_s),
        num_failing=num_failing,
        checks=(run.as_check(check, before.result.exit_code),),
        told=what_passed(run),
    )


def trace_doubts(run: Run) -> list[str]:
    """What a run did to files that it should not have."""
    return [
        *(f"the run changed {name}" for name in run.traces.changed[:3]),
        *(f"the run created {name}" for name in run.traces.added if _steers(name)),
    ]


def failing_output(run: Run, wall_s: float, max_chars: int = OUTPUT_CHARS) -> str:
    """What a failing run says, in few words."""
    output = trimmed_output(run.result.output, run.evidence, max_chars)
    if run.result.timed_out:
        output += f"\n(killed after {wall_s:.0f} s: it did not end)"
    return output


def what_passed(run: Run) -> str:
    """How many tests were seen passing, as a phrase in parentheses; "" where none were seen at all."""
    num_passed = len(run.evidence.passed)
    return f" ({num_passed} test{'s' if num_passed != 1 else ''} seen passing)" if num_passed else ""


def must_exist(run: Run, check: str) -> None:
    """Refuse a check that says nothing: one that cannot be started, or runs no test.

    Raises:
        CheckNotFound: with what to do.
    """
    code, output = run.result.exit_code, run.result.output
    last = output.strip().splitlines()[-1][:200] if output.strip() else "no output"
    if code in (NOT_FOUND, NOT_EXECUTABLE):
        raise CheckNotFound(f"check not found: `{check}` cannot be started ({last}); {_advice(check)}")
    module = re.search(r"No module named '?([\w.]+)'?\s*$", output)
    if code != 0 and module and re.search(rf"-m\s+{re.escape(module[1])}\b", check):
        raise CheckNotFound(f"check not found: `{check}`: Python has no module {module[1]}; {_advice(check)}")
    ran_nothing = not run.evidence.outcomes and "pytest" in check
    if ran_nothing and code == PYTEST_NO_TESTS:
        raise CheckNotFound(f"`{check}` runs no test, so it can prove nothing: name a check that does")
    if ran_nothing and code == PYTEST_USAGE:
        raise CheckNotFound(f"`{check}` is not understood by pytest: {last}")


def _advice(check: str) -> str:
    try:
        word = shlex.split(check)[0]
    except (ValueError, IndexError):
        word = ""
    if word and shutil.which(word):
        return f"{shutil.which(word)} exists, but the sandbox shows only the system, the toolchains on PATH and .venv"
    return "install it, or name another with --check"


def _steers(name: str) -> bool:
    """Whether a file a run created could have steered the run itself."""
    return is_protected(name) and not any(
        part.startswith(".pytest_cache") or part == "__pycache__" for part in name.split("/")
    )
