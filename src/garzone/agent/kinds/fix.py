"""`fix`: the check fails, the model rewrites a function or a file, and the same check passes.

Proved means: the check failed before and passes after, in a fresh copy with nothing else changed, with each failing
test seen to pass and none lost (`evidence.py`), by a change that takes no new powers (`vet.py`).
"""

from __future__ import annotations

import re

from garzone.agent.changes import Draft
from garzone.agent.checks import narrowed
from garzone.agent.context import Target, choose_targets, failing_tests, focus_lines, trimmed_output
from garzone.agent.definitions import definitions_used
from garzone.agent.edit import EditMiss, code_blocks, replace_file, replace_function
from garzone.agent.edit_syntax import replace_definition, replace_text
from garzone.agent.events import CheckFinished
from garzone.agent.forgotten import with_imports
from garzone.agent.kinds import Attempt, Job, Material, Question, Setting, Settled, Style, drafted
from garzone.agent.kinds.asking import again, language_of, signature, user
from garzone.agent.kinds.edits import ask_for_edits
from garzone.agent.prompts import render
from garzone.agent.proof import OUTPUT_CHARS, Trial, check_as_it_is, check_draft
from garzone.agent.search_replace import apply_blocks, holds_blocks
from garzone.agent.stage import Run
from garzone.agent.target import is_python
from garzone.core.errors import UsageError
from garzone.core.task import Verdict

SLOW_CHECK_MS = 2000.0
NO_INSTRUCTION = "Repair the code so that the failing check passes."


async def open_fix(setting: Setting) -> Job | Settled:
    """Run the check, and see what it leads to."""
    check = required_check(setting, "a check that fails now and passes when done")
    before = await check_as_it_is(setting.stage, check)
    setting.tell(CheckFinished("before", check, before.result.exit_code, before.result.duration_ms))
    if before.passed:
        return Settled(
            Verdict.FAILED,
            f"The check already passes: `{check}` gives exit code 0 on the code as it is. No change.",
            "A fix needs a check that fails now. Name one that shows the fault.",
            (before.as_check(check),),
        )
    targets = choose_targets(
        setting.code,
        setting.named,
        before.evidence,
        before.result.output,
        instruction=setting.task.instruction,
        check=check,
    )
    return Fix(setting, targets, before)


def required_check(setting: Setting, what: str) -> str:
    """The task's check.

    Raises:
        UsageError: there is none; says what is needed.
    """
    if setting.check is None:
        raise UsageError(
            f"{setting.task.kind.value} needs {what}, and the repository shows none that could be found: "
            "--check 'pytest -q'"
        )
    return setting.check


class Fix(Job):
    """Asks for the whole function where one can be told, else for the whole file."""

    before: Run

    def __init__(self, setting: Setting, targets: list[Target], before: Run) -> None:
        super().__init__(setting, targets, before)
        output = trimmed_output(before.result.output, before.evidence, 4 * OUTPUT_CHARS)
        if before.result.timed_out:
            output += f"\n(killed after {setting.stage.wall_s:.0f} s: it did not end)"
        tests = failing_tests(setting.code, before.evidence, before.result.output, self.check)
        self._material = Material(tests, output)
        self._called = {name for test in tests[:3] for name in re.findall(r"\b([A-Za-z_]\w+)\(", test.code)}
        # where the whole takes long, most candidates are refused by the tests that failed alone
        slow = before.result.duration_ms > SLOW_CHECK_MS
        paths = list(dict.fromkeys(test.path for test in tests))
        self._quick = narrowed(self.check, paths, setting.stage.repository.prefix) if slow else None

    def material(self, target: Target) -> Material:
        """The failing tests, what they say, and what the target uses."""
        code, words = self.setting.code, set(re.findall(r"\w+", self.task.instruction))
        focus = focus_lines(code, target.path, self.before.evidence, self.before.result.output, words | self._called)
        return Material(self._material.tests, self._material.output, definitions_used(code, target), focus=focus)

    def takes_edits(self, target: Target) -> bool:
        """A repair is small as a rule."""
        return True

    def ask(self, target: Target, material: Material, style: Style) -> Question:
        """The first prompt."""
        if style is Style.EDITS:
            instruction = self.task.instruction.strip() or NO_INSTRUCTION
            goal = "It has a bug. Find it and repair it."
            return ask_for_edits(self.setting, target, material, instruction=instruction, goal=goal)
        return user(
            render(
                {Style.FULL: "fix", Style.BRIEF: "fix_brief", Style.BARE: "fix_bare"}[style],
                instruction=self.task.instruction.strip() or NO_INSTRUCTION,
                path=target.path,
                language=language_of(target.path),
                function=target.span.name if target.span else None,
                code=target.shown,
                tests=material.tests,
                output=material.output,
                definitions=material.definitions,
            )
        )

    def ask_again(self, first: Question, target: Target, attempt: Attempt) -> Question:
        """The first prompt, the answer, and what was wrong with it."""
        what = f"function `{target.span.name}`" if target.span else "file"
        return again(
            first,
            target,
            attempt,
            wanted=f"Write the whole corrected {what} again in one Markdown code block, with the bug repaired.",
        )

    def read(self, target: Target, answer: str) -> Draft | EditMiss:
        """The file with the answer in place of the target."""
        return read_code(target, answer)

    def enough(self, target: Target, answer: str) -> bool:
        """True once a code block is closed that defines the target."""
        return defines_target(target, answer)

    def opening(self, target: Target) -> str | None:
        """The function's own first lines."""
        return signature(target)

    def unchanged(self, draft: Draft) -> str | None:
        """Whether the bug is still there, letter for letter."""
        same = all(edit.changes_nothing for edit in draft.edits)
        return "Your code is the same as the code with the bug. Change it." if same else None

    async def prove(self, target: Target, draft: Draft) -> Trial:
        """The check passes, having failed before."""
        _, trial = await check_draft(self.setting.stage, self.check, draft, self.before, quick=self._quick)
        return trial

    def summary(self, target: Target, draft: Draft, trial: Trial, branch: str) -> str:
        """What was rewritten, and how the check ended."""
        place = f"Rewrote {target.label}"
        if trial.proved:
            return f"{place}: `{self.check}` failed before and passes now{trial.told}. Branch {branch}."
        return f"{place}: `{self.check}` passes, but unproved: {'; '.join(trial.doubts)[:200]}. Read branch {branch}."

    def subject(self, target: Target) -> str:
        """The first line of the commit where the task has no instruction."""
        return f"repair {target.label}"


def read_code(target: Target, answer: str, may_lose: set[str] | None = None) -> Draft | EditMiss:
    """The target's file with the answer's code in the place of the target, or with its blocks applied.

    Args:
        target: what was asked for.
        answer: what the model wrote.
        may_lose: public names that search-and-replace blocks may take away.
    """
    text, path = target.source.text, target.path
    if not target.is_new and holds_blocks(answer) and not holds_blocks(text):
        edited = apply_blocks(path, text, target.span, answer, may_lose)
    elif target.span:
        python = is_python(path)
        edited = (
            replace_function(text, target.span, answer)
            if python
            else replace_definition(path, text, target.span, answer)
        )
    else:
        edited = replace_file(text, path, answer) if is_python(path) else replace_text(path, text, answer)
    if isinstance(edited, EditMiss):
        return edited
    return drafted(target, with_imports(path, text, edited.text))


def defines_target(target: Target, answer: str) -> bool:
    """Whether a closed code block of an unfinished answer defines the target."""
    name = target.span.name if target.span else None
    return any(
        block.closed and (name is None or re.search(_defining(target.path, name), block.code))
        for block in code_blocks(answer)
    )


def _defining(path: str, name: str) -> str:
    """A pattern that a definition of `name` matches; for other languages than Python its mere mention."""
    return rf"\bdef\s+{re.escape(name)}\b" if is_python(path) else rf"\b{re.escape(name.lstrip('#'))}\b"
