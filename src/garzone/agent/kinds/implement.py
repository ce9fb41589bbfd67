"""`implement`: code from a description, in named or new files.

Proved means: the given check failed before and passes after. Without one, the model first writes tests from the
description; they choose among candidates and are shown in the report, but a verdict that only they support is
`unproved`: whoever writes both code and tests can be wrong twice in the same way.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from garzone.agent.agreement import most_agreed
from garzone.agent.changes import Draft
from garzone.agent.context import Target, choose_targets, failing_tests, focus_lines, trimmed_output
from garzone.agent.definitions import definitions_used
from garzone.agent.edit import EditMiss, code_blocks
from garzone.agent.evidence import Evidence
from garzone.agent.examples import Examples
from garzone.agent.holes import find_holes
from garzone.agent.kinds import SMALL_TEMPERATURES, Attempt, Job, Material, Question, Setting, Style
from garzone.agent.kinds.asking import again, language_of, sentence, signature, user
from garzone.agent.kinds.before import run_check_before
from garzone.agent.kinds.edits import ask_for_edits
from garzone.agent.kinds.fix import defines_target, read_code
from garzone.agent.prompts import fenced, render
from garzone.agent.proof import OUTPUT_CHARS, Trial, check_draft, failing_output
from garzone.agent.stage import Run
from garzone.agent.target import SourceText, is_protected, is_python, parse
from garzone.agent.testfiles import import_line, test_command
from garzone.agent.wanted import Wanted, wanted_of
from garzone.core.chat import Message, Role
from garzone.core.errors import RepositoryError, UsageError

SELF_WRITTEN = "only tests that the model wrote itself support it"
TESTS_TOKENS = 500
NAMES_GUESSED = 3  # in a new file of which nothing is known
# As long as a short function. Not blanks: tokenizers put a hundred of those into one token.
USUAL_FUNCTION = "    if value in items:\n        result[value] = items[value] + 1  # one more\n" * 8
# One question with its answer, so that a small model sees the form. SmolLM2-135M, 40 tasks at 0.3: 7 of 80 answers
# right with it, 5 of 80 without; the two together solve more tasks than either.
WORKED_INSTRUCTION = "Write a function to count the words of a text that are longer than a limit."
WORKED_EXAMPLE = "assert count_long_words('a bird in the sky', 3) == 1"
WORKED_ANSWER = """def count_long_words(text, limit):
    count = 0
    for word in text.split():
        if len(word) > limit:
            count += 1
    return count
"""


@dataclass(frozen=True, slots=True)
class _Own:
    """Tests the model wrote from the description."""

    path: str
    text: str
    command: str


async def open_implement(setting: Setting) -> Job:
    """See what is there, whether the check asks for something that is missing, and what to write."""
    if not setting.task.instruction.strip():
        raise UsageError("implement needs a description of what to write")
    before = await run_check_before(setting)
    targets = _targets(setting, before)
    own = None
    if before is None or before.passed:
        own = await _own_tests(setting, targets[0])
    return Implement(setting, targets, before, own)


def _targets(setting: Setting, before: Run | None) -> list[Target]:
    code = setting.code
    new = [new_target(name) for name in setting.new]
    if new:
        return new
    words = set(re.findall(r"\w+", setting.task.instruction))
    stubs: list[Target] = []
    for name in setting.named:
        source = code.source(name)
        if source is None:
            raise RepositoryError(f"{name} is not a text file in a known encoding")
        holes = [hole for hole in find_holes(name, source.text) if hole.span and hole.is_body]
        ordered = sorted(holes, key=lambda hole: bool(hole.span and hole.span.name not in words))
        stubs += [Target(name, code.content(name), source, hole.span) for hole in ordered]
        whole = Target(name, code.content(name), source, None)
        stubs += [whole] if len(holes) != 1 else []
    if stubs:
        return stubs[:2]
    if before is None or before.passed:
        raise UsageError("say where to write it: --file NEW_OR_EXISTING")
    return choose_targets(
        code, (), before.evidence, before.result.output, instruction=setting.task.instruction, check=setting.check or ""
    )


def new_target(path: str) -> Target:
    """A file that is not there yet."""
    return Target(path, b"", SourceText("", "utf-8"), None, is_new=True)


async def _own_tests(setting: Setting, target: Target) -> _Own | None:
    """Tests from the description, before any code is written; None where the model's cannot be used."""
    language = language_of(target.path)
    place = PurePosixPath(target.path)
    if language not in ("python", "javascript", "typescript"):
        return None
    name = (
        f"test_{place.stem}_from_description.py"
        if language == "python"
        else f"{place.stem}.description.test{place.suffix}"
    )
    path = str(place.with_name(name))
    command = test_command(setting.check, path, setting.stage.repository)
    if command is None:
        return None
    question = user(
        render(
            "implement_tests",
            instruction=sentence(setting.task.instruction),
            language=language,
            import_line=import_line(target.path, path, language),
            code=target.code,
        )
    )
    answer = await setting.ask(question, TESTS_TOKENS)
    blocks = [block.code for block in code_blocks(answer) if block.code.strip()]
    text = max(blocks, key=len) if blocks else ""
    usable = "assert" in text or "expect(" in text
    if not usable or (language == "python" and parse(text) is None):
        setting.notes.append("the model's own tests could not be used")
        return None
    line = import_line(target.path, path, language)
    if place.stem not in text:
        text = f"{line}\n{text}"
    return _Own(path, text, command)


class Implement(Job):
    """Asks for a function where a stub stands, else for the whole file."""

    def __init__(self, setting: Setting, targets: list[Target], before: Run | None, own: _Own | None) -> None:
        super().__init__(setting, targets, before)
        self._own = own
        self._examples = Examples(setting.stage)
        self._wanted = self._wanted_of(targets[0])
        self.written_tests = own.text if own else ""

    def _wanted_of(self, target: Target) -> Wanted:
        if not target.is_new or self.before is None or self.before.passed:
            return Wanted()
        tests = failing_tests(self.setting.code, self.before.evidence, self.before.result.output, self.check)
        return wanted_of(self.setting.code, tests, target.path)

    @property
    def _by_check(self) -> bool:
        return self.before is not None and not self.before.passed

    def material(self, target: Target) -> Material:
        """The tests it is to pass, and what they say now."""
        code, words = self.setting.code, set(re.findall(r"\w+", self.task.instruction))
        definitions = definitions_used(code, target)
        focus = focus_lines(code, target.path, Evidence(), "", words)
        if self.before is None or self.before.passed:
            return Material(definitions=definitions, focus=focus)
        output = trimmed_output(self.before.result.output, self.before.evidence, OUTPUT_CHARS)
        tests = failing_tests(self.setting.code, self.before.evidence, self.before.result.output, self.check)
        return Material(tests, output, definitions, focus=focus)

    def takes_edits(self, target: Target) -> bool:
        """What is there already may be long."""
        return not target.is_new

    def styles(self, small: bool) -> tuple[Style, ...]:
        """Small models are told the names that the tests want, where those are known."""
        return (Style.BRIEF, Style.WORKED) if small and self._wanted.names else super().styles(small)

    def temperatures(self, small: bool) -> tuple[float, ...]:
        """Small models lose the thread early."""
        return SMALL_TEMPERATURES if small else super().temperatures(small)

    def ask(self, target: Target, material: Material, style: Style) -> Question:
        """What is wanted, in which file, for which tests."""
        if style is Style.EDITS:
            return ask_for_edits(
                self.setting,
                target,
                material,
                instruction=sentence(self.task.instruction),
                goal="Add that to it.",
                test_words="The code must pass this test",
            )
        if self._wanted.names and target.is_new and style in (Style.BRIEF, Style.WORKED):
            return self._ask_by_name(style)
        return user(
            render(
                "implement",
                instruction=sentence(self.task.instruction),
                path=target.path,
                language=language_of(target.path),
                function=target.span.name if target.span else None,
                code=target.shown if target.span or not target.is_new else "",
                tests=material.tests if style is not Style.BARE else (),
                output=material.output if style is Style.FULL else "",
                definitions=material.definitions if style is Style.FULL else (),
            )
        )

    def _ask_by_name(self, style: Style) -> Question:
        """The names and how they are used, and nothing else."""
        instruction = self.task.instruction.strip()
        shown = [example for example in self._wanted.examples if example not in instruction]
        asked = _by_name(instruction if "\n" in instruction else sentence(instruction), self._wanted.names, shown)
        if style is not Style.WORKED:
            return user(asked)
        worked = _by_name(WORKED_INSTRUCTION, ("count_long_words",), (WORKED_EXAMPLE,))
        answer = Message.of(Role.ASSISTANT, fenced(WORKED_ANSWER, "python"))
        return Question((Message.of(Role.USER, worked), answer, Message.of(Role.USER, asked)))

    def ask_again(self, first: Question, target: Target, attempt: Attempt) -> Question:
        """The first prompt, the answer, and what was wrong with it."""
        what = f"function `{target.span.name}`" if target.span else "file"
        return again(
            first, target, attempt, wanted=f"Write the whole {what} again in one Markdown code block, corrected."
        )

    def read(self, target: Target, answer: str) -> Draft | EditMiss:
        """The file with the answer in its place."""
        return read_code(target, answer)

    def expected_text(self, target: Target) -> str:
        """The file as it is, and what will be added."""
        num_functions = 1 if target.span else len(self._wanted.names) or NAMES_GUESSED
        return target.code + num_functions * USUAL_FUNCTION

    def enough(self, target: Target, answer: str) -> bool:
        """A closed block that defines the target."""
        return defines_target(target, answer) if target.span else super().enough(target, answer)

    def opening(self, target: Target) -> str | None:
        """The function's own first lines, or the name that the tests want."""
        if target.is_new and is_python(target.path) and len(self._wanted.names) == 1:
            (name,) = self._wanted.names
            return "" if name[:1].isupper() else f"def {name}("
        return signature(target)

    async def prove(self, target: Target, draft: Draft) -> Trial:
        """The given check; else the model's own tests and what was there before, which prove nothing by themselves."""
        stage = self.setting.stage
        if self._by_check:
            assert self.before is not None
            _, trial = await check_draft(stage, self.check, draft, self.before, is_new=True)
            if any(is_protected(edit.path) and not edit.is_new for edit in draft.edits):
                return trial.doubted("it changes what the check means")
            return trial
        checks = ()
        if self.before is not None:
            _, trial = await check_draft(stage, self.check, draft, self.before)
            if not trial.passed:
                return trial
            checks = trial.checks
        trial = await self._examples.tried(draft, target.span)
        if not trial.passed:
            return trial
        if self._own is None:
            return Trial(True, (*trial.doubts, "nothing tests it"), checks=checks, told=trial.told)
        run = await stage.run(self._own.command, {**draft.contents, self._own.path: self._own.text.encode()})
        check = run.as_check(self._own.command)
        if not run.passed:
            return Trial(
                False, output=failing_output(run, stage.wall_s), num_failing=len(run.evidence.failed), checks=(check,)
            )
        return Trial(True, (*trial.doubts, SELF_WRITTEN), checks=(*checks, check), told=trial.told)

    async def prefer(self, drafts: Sequence[Draft], times: Sequence[int]) -> tuple[int, str]:
        """The one that does what most of the others do, on inputs near those of the tests."""
        paths = {edit.path for draft in drafts for edit in draft.edits}
        if len(paths) != 1 or not self._wanted.inputs:
            return 0, ""
        programs = [draft.edits[0].after for draft in drafts]
        found = await most_agreed(self.setting.stage, paths.pop(), programs, self._wanted.inputs, times=times)
        if found is None:
            return 0, ""
        told = f"{len(drafts)} candidates pass; {found.num_alike} of them do the same on {found.num_inputs} inputs"
        return found.number, f"{told}, and one of those was taken"

    def summary(self, target: Target, draft: Draft, trial: Trial, branch: str) -> str:
        """What was written, and what supports it."""
        done = "Wrote" if target.is_new else "Extended"
        if trial.proved:
            return f"{done} {target.label}: `{self.check}` failed before and passes now{trial.told}. Branch {branch}."
        return f"{done} {target.label}, unproved: {'; '.join(trial.doubts)[:220]}{trial.told}. Read branch {branch}."

    def failed_summary(self, num_candidates: int) -> str:
        """Which check refused all."""
        if self._by_check:
            return super().failed_summary(num_candidates)
        return f"No candidate of {num_candidates} passed the tests that were written from the description"

    def subject(self, target: Target) -> str:
        """The first line of the commit where the task has no instruction."""
        return f"write {target.label}"


def _by_name(instruction: str, names: Sequence[str], examples: Sequence[str]) -> str:
    what = "file" if len(names) > 1 else "class" if names[0][:1].isupper() else "function"
    given = {"instruction": instruction, "names": names, "what": what, "language": "python"}
    return render("implement_named", examples=list(examples), **given)
