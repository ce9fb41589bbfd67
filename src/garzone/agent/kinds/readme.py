"""`docs` of a Markdown file: a section is added, nothing that stands there is touched.

Proved means: what the section names exists in the repository, and its Python examples ran to their end (`>>>` examples:
with what they show), at least one of them. Commands for a shell are not run; a section with some is `unproved`.
"""

from __future__ import annotations

import doctest
import re
import shlex

from garzone.agent.changes import Draft
from garzone.agent.context import Target
from garzone.agent.edit import EditMiss, code_blocks
from garzone.agent.examples import EXAMPLES_S, Examples, python_of
from garzone.agent.kinds import Attempt, Job, Material, Question, Setting, Style, drafted
from garzone.agent.kinds.asking import again, sentence, user
from garzone.agent.prompts import render
from garzone.agent.proof import Trial, trace_doubts
from garzone.agent.syntax import is_source, names_in
from garzone.agent.target import SourceText, is_python, is_test, parse
from garzone.agent.testfiles import module_name
from garzone.agent.vet import objections
from garzone.core.errors import UsageError
from garzone.core.task import Check

SECTION_CHARS = 1600
MAX_SHOWN_CHARS = 6000  # of the code a section is about


def readme_target(setting: Setting) -> Target | None:
    """The Markdown file the task names, there or not yet."""
    for name in (*setting.named, *setting.new):
        if name.endswith(".md"):
            source = setting.code.source(name)
            content = setting.code.content(name) if source else b""
            return Target(name, content, source or SourceText("", "utf-8"), None, is_new=source is None)
    return None


class Readme(Job):
    """Asks for one section."""

    def __init__(self, setting: Setting, target: Target) -> None:
        super().__init__(setting, [target])
        if not setting.task.instruction.strip():
            raise UsageError(f"say what the section of {target.path} shall be about")
        code = setting.code
        words = set(re.findall(r"[\w.]+", setting.task.instruction))
        named = [name for name in setting.named if is_source(name)]
        sources = [name for name in code.tracked if is_source(name) and not is_test(name)]
        self._about = named or [n for n in sources if words & {n, *(s.name for s in code.spans(n))}] or sources[:1]
        self._examples = Examples(setting.stage)

    @property
    def check(self) -> str:
        """What is run."""
        return "the examples of the section"

    def styles(self, small: bool) -> tuple[Style, ...]:
        """One way of asking."""
        return (Style.FULL,)

    def ask(self, target: Target, material: Material, style: Style) -> Question:
        """The code it is about, and what is wanted."""
        shown: list[tuple[str, str]] = []
        room = MAX_SHOWN_CHARS
        for name in self._about:
            source = self.setting.code.source(name)
            if source and len(source.text) <= room:
                shown.append((name, source.text))
                room -= len(source.text)
        modules = [module_name(name, self.setting.code.tracked) for name, _ in shown if is_python(name)]
        return user(
            render(
                "readme", instruction=sentence(self.task.instruction), path=target.path, files=shown, modules=modules
            )
        )

    def ask_again(self, first: Question, target: Target, attempt: Attempt) -> Question:
        """What was not true."""
        return again(first, target, attempt, wanted="Write the whole section again, corrected.")

    def expected_text(self, target: Target) -> str:
        """A section."""
        return " " * SECTION_CHARS

    def enough(self, target: Target, answer: str) -> bool:
        """Fences in a section end nothing."""
        return False

    def read(self, target: Target, answer: str) -> Draft | EditMiss:
        """The file with the section at its end."""
        section = _section(answer)
        if not re.search(r"^#{1,4} \S", section, re.MULTILINE):
            return EditMiss("The section needs a heading: begin with `## `.")
        old = target.source.text
        heading = re.search(r"^#{1,4} (.+)$", section, re.MULTILINE)
        if heading and re.search(rf"^#+ {re.escape(heading[1].strip())}\s*$", old, re.MULTILINE):
            return EditMiss(f"The file already has a section {heading[1]!r}: use another heading.")
        return drafted(target, f"{old.rstrip()}\n\n{section}\n" if old.strip() else f"{section}\n")

    def unchanged(self, draft: Draft) -> str | None:
        """A section is always new."""
        return None

    async def prove(self, target: Target, draft: Draft) -> Trial:
        """Names exist, examples run."""
        (edit,) = draft.edits
        section = edit.after[len(edit.before.rstrip()) :] if edit.before.strip() else edit.after
        if untrue := self._untrue(section):
            return Trial(False, output="\n".join(untrue), num_failing=len(untrue))
        doubts: list[str] = []
        ran = 0
        checks: list[Check] = []
        stage = self.setting.stage
        for block in code_blocks(section):
            if block.info not in ("python", "py", "pycon"):
                if block.info not in ("", "text", "json", "toml", "yaml"):
                    doubts.append(f"its {block.info} example was not run")
                continue
            doubts += self._powers(block.code)
            if ">>>" not in block.code:
                run = await stage.run(
                    f'{python_of(stage)} "$GARZONE_HARNESS/example.py"',
                    draft.contents,
                    wall_s=EXAMPLES_S,
                    harness={"example.py": f"import os, sys\nsys.path.insert(0, os.getcwd())\n{block.code}".encode()},
                    probed=False,
                )
                checks.append(run.as_check(f"{shlex.quote(target.path)}: python example"))
                if not run.passed:
                    return Trial(
                        False, output=f"The example does not run:\n{run.result.output[-600:]}", checks=tuple(checks)
                    )
                doubts += trace_doubts(run)
                ran += 1
        if ">>>" in section:
            outcome = await self._examples.run(Draft((edit,)), edit.path)
            checks.append(outcome.run.as_check(self.check))
            if not outcome.finished or outcome.failed:
                said = outcome.output or outcome.run.result.output[-600:]
                return Trial(False, output=said, num_failing=outcome.failed or 1, checks=tuple(checks))
            ran += outcome.attempted
        if not ran:
            doubts.append("no example shows that its words are true")
        if not stage.isolated:
            doubts.append("it ran without a sandbox")
        told = f"nothing else changed, all names exist, {ran} example{'s' if ran != 1 else ''} ran"
        return Trial(True, tuple(dict.fromkeys(doubts)), checks=tuple(checks), told=told, facts={"examples": ran})

    def _powers(self, block: str) -> list[str]:
        """What an example does besides using the code it is about, as phrases."""
        sources = [block]
        if ">>>" in block:
            try:
                examples = doctest.DocTestParser().get_examples(block)
            except ValueError:
                return ["an example cannot be read"]
            sources = [example.source for example in examples]
            if any(example.options for example in examples):
                return ["an example has a directive"]
        allowed = {module_name(name, self.setting.code.tracked).partition(".")[0] for name in self._about}
        found: list[str] = []
        for what in (what for source in sources for what in objections("example.py", "", source)):
            imported = re.match(r"newly imports (?:\S+ from )?(\w+)", what)
            if not imported or imported[1] not in allowed:
                found.append(f"an example {what}")
        return found

    def _untrue(self, section: str) -> list[str]:
        """Functions and files in backticks that are not there, as sentences."""
        code = self.setting.code
        prose = section
        for block in code_blocks(section):
            prose = prose.replace(block.code, "")
        known: set[str] = set()
        for name in [n for n in code.tracked if is_source(n)][:400]:
            source = code.source(name)
            if source:
                known |= set(names_in(name, source.text))
        called = re.findall(r"`(?:\w+\.)*(\w+)\([^`]*\)`", prose)
        paths = re.findall(r"`([\w./\-]+/[\w.\-]+\.\w+|[\w\-]+\.(?:py|js|ts|go|rs|java|toml|md))`", prose)
        found = [f"nothing is called {name}()" for name in called if name not in known]
        found += [f"there is no file {path}" for path in paths if code.resolve(path) is None]
        for block in code_blocks(section):
            if block.info in ("python", "py") and ">>>" not in block.code and parse(block.code) is None:
                found.append("a Python example does not parse")
        return found

    def summary(self, target: Target, draft: Draft, trial: Trial, branch: str) -> str:
        """What was added, and what supports it."""
        if trial.proved:
            return f"Added a section to {target.path}: {trial.told}. Branch {branch}."
        doubts = "; ".join(trial.doubts)[:200]
        return f"Added a section to {target.path}: {trial.told}; unproved: {doubts}. Read branch {branch}."

    def failed_summary(self, num_candidates: int) -> str:
        """Nothing true was said."""
        return f"No candidate of {num_candidates} wrote a section whose names and examples are true"


def _section(answer: str) -> str:
    """The section in an answer: what stands in a Markdown fence up to the last one, else all of it."""
    opened = re.search(r"^(`{3,})(?:markdown|md)\s*\n", answer, re.MULTILINE)
    if not opened:
        start = re.search(r"^#{1,4} \S", answer, re.MULTILINE)
        return answer[start.start() :].strip() if start else answer.strip()
    rest = answer[opened.end() :]
    closing = list(re.finditer(rf"^`{{{len(opened[1])},}}\s*$", rest, re.MULTILINE))
    return (rest[: closing[-1].start()] if closing else rest).strip()
