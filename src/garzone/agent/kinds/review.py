"""`review`: findings on files, or on what a range of commits changed in them; nothing is changed.

A finding that quotes no line of what was shown is dropped. One that claims a bug may come with a failing check; the
check is run, and only a crash in the reviewed code itself (an index, a key, a name, a division, endless recursion) on
arguments the check gives shows a bug without believing the model's expectation. Such a finding is `seen`, all others
are marked as opinion. Proved means: at least one bug was seen, and every finding that claims one was. A review of
opinions is `unproved`, which is no fault of it.
"""

from __future__ import annotations

import asyncio
import re
import textwrap
from dataclasses import dataclass, replace

from garzone.agent.changes import Draft
from garzone.agent.context import Target
from garzone.agent.edit import EditMiss, code_blocks
from garzone.agent.kinds import Attempt, Job, Material, Question, Setting, Style
from garzone.agent.kinds.asking import again, language_of, sentence, user
from garzone.agent.prompts import render
from garzone.agent.proof import Trial
from garzone.agent.revisions import is_range, patches, spoken_range
from garzone.agent.stage import Run
from garzone.agent.syntax import is_source
from garzone.agent.target import is_python, is_test, parse
from garzone.agent.testfiles import module_name, test_command
from garzone.agent.vet import objections
from garzone.core.errors import RepositoryError, UsageError
from garzone.core.task import Check, Finding

SEVERITIES = ("high", "medium", "low")
MAX_FINDINGS = 20
ANSWER_TOKENS, CHARS_PER_TOKEN = 2200, 3  # what findings and the question take; code has fewer characters a token
CHECK_FILE = "test_garzone_finding.py"
# what code should not die of; TypeError, ValueError and AssertionError may as well be the check's own doing
CRASHES = ("IndexError", "KeyError", "ZeroDivisionError", "UnboundLocalError", "NameError", "RecursionError")
CHECK_S = 10.0


async def open_review(setting: Setting) -> Job:
    """See what is to be read."""
    revisions = spoken_range(setting.task.instruction)
    # with files named, something like 0..10 may be about the code
    if revisions and (not setting.named or is_range(setting.stage.repository, revisions)):
        changed = await _changed(setting, revisions)
        return Review(setting, _fitting(setting, changed), revisions)
    code = setting.code
    names = [name for name in setting.named if code.source(name)]
    if not names:
        words = set(re.findall(r"\w+", setting.task.instruction))
        sources = [name for name in code.tracked if is_source(name) and not is_test(name)]
        names = [name for name in sources if any(span.name in words for span in code.spans(name))][:1]
        names = names or (sources if len(sources) == 1 else [])
    if not names:
        raise UsageError("say what to review: --file PATH, or a range of commits in the instruction (main..HEAD)")
    subjects: list[_Subject] = []
    for name in names:
        source = code.source(name)
        if source is None:
            raise RepositoryError(f"{name} is not a text file in a known encoding")
        subjects.append(_Subject(Target(name, code.content(name), source, None), source.text))
    return Review(setting, _fitting(setting, subjects))


@dataclass(frozen=True, slots=True)
class _Subject:
    """What is read of one file: `text` is shown, and of its lines only `lines` (None: all) may be quoted."""

    target: Target
    text: str
    lines: frozenset[int] | None = None

    @property
    def path(self) -> str:
        return self.target.path


async def _changed(setting: Setting, revisions: str) -> list[_Subject]:
    """The files that a range of commits changed.

    Raises:
        UsageError: there is no such change, or nothing in it that can be read.
    """
    found: list[_Subject] = []
    for patch in await asyncio.to_thread(patches, setting.stage.repository, revisions, setting.named):
        source = setting.code.source(patch.path) if patch.path in setting.code.tracked else None
        if source is not None:
            target = Target(patch.path, setting.code.content(patch.path), source, None)
            found.append(_Subject(target, patch.text, patch.lines))
    if not found:
        among = f" in {', '.join(setting.named)}" if setting.named else ""
        raise UsageError(f"{revisions} changes no text file{among} that is still there")
    return found


def _fitting(setting: Setting, subjects: list[_Subject]) -> list[_Subject]:
    """As many as one prompt can hold, the first in any case; the report names the others."""
    room = CHARS_PER_TOKEN * (setting.context_tokens - ANSWER_TOKENS)
    kept = subjects[:1]
    for subject in subjects[1:]:
        if sum(len(each.text) for each in (*kept, subject)) <= room:
            kept.append(subject)
    if left := [each.path for each in subjects if each not in kept]:
        more = f" and {len(left) - 5} more" if len(left) > 5 else ""
        setting.notes.append(f"not looked at, because the model's context is full: {', '.join(left[:5])}{more}")
    return kept


class Review(Job):
    """Asks for findings in a form that can be read."""

    def __init__(self, setting: Setting, subjects: list[_Subject], revisions: str = "") -> None:
        super().__init__(setting, [subjects[0].target])
        self._subjects = subjects
        self._revisions = revisions
        self._dropped = 0

    @property
    def check(self) -> str:
        """What is run: the findings' own checks."""
        return "the checks of the findings"

    def styles(self, small: bool) -> tuple[Style, ...]:
        """One way of asking."""
        return (Style.FULL,)

    def ask(self, target: Target, material: Material, style: Style) -> Question:
        """The code, and how findings look."""
        modules = [module_name(each.path, self.setting.code.tracked) for each in self._subjects if is_python(each.path)]
        return user(
            render(
                "review",
                instruction=sentence(self.task.instruction),
                files=[(each.path, language_of(each.path), each.text) for each in self._subjects],
                is_change=bool(self._revisions),
                module=next(iter(modules), ""),
            )
        )

    def ask_again(self, first: Question, target: Target, attempt: Attempt) -> Question:
        """What could not be read, or did not happen."""
        return again(first, target, attempt, complaint="The checks say:", wanted="Write the findings again, corrected.")

    def expected_text(self, target: Target) -> str:
        """Some findings."""
        return " " * 3000

    def enough(self, target: Target, answer: str) -> bool:
        """A block ends a finding, not the review."""
        return False

    def read(self, target: Target, answer: str) -> Draft | EditMiss:
        """Findings whose quoted line exists; the others are dropped and counted."""
        found = parse_findings(answer, target.path if len(self._subjects) == 1 else "")
        kept = [placed for finding in found if (placed := self._placed(finding))]
        self._dropped += len(found) - len(kept)
        if re.search(r"^\W*no findings\b", answer, re.IGNORECASE | re.MULTILINE) and not found:
            return Draft(findings=(Finding("low", target.path, 0, "", "no findings"),))
        if not found:
            return EditMiss("No finding could be read. Begin each with `### high`, `### medium` or `### low`.")
        if not kept:
            return EditMiss("No finding quotes a line of the code. Copy the line after `Line:` exactly as it stands.")
        return Draft(findings=tuple(kept[:MAX_FINDINGS]))

    def _placed(self, finding: Finding) -> Finding | None:
        """The finding in the file it names, or else in the only one that has the line it quotes."""
        named = [each for each in self._subjects if finding.path and is_same_path(each.path, finding.path)]
        places = [
            placed
            for each in named or ([] if finding.path else self._subjects)
            if (placed := _placed(replace(finding, path=each.path), each.target.code, each.lines))
        ]
        return places[0] if len(places) == 1 else None

    async def prove(self, target: Target, draft: Draft) -> Trial:
        """Run the checks that findings bring along."""
        found = [finding for finding in draft.findings if finding.line]
        judged: list[Finding] = []
        checks: list[Check] = []
        unseen = 0
        for finding in found:
            if not finding.check or not is_python(finding.path):
                judged.append(finding)
                continue
            run = await self._tried(finding)
            if run is not None and _shows_a_crash(run, finding.path):
                judged.append(replace(finding, seen=True))
                checks.append(run.as_check(f"{CHECK_FILE} for line {finding.line}"))
            else:
                unseen += 1
                judged.append(finding)
        seen = sum(finding.seen for finding in judged)
        doubts: list[str] = []
        if not seen:
            doubts.append("opinions only: no check shows a bug happening")
        elif unseen:
            doubts.append(f"{unseen} of the bugs it claims could not be seen")
        if not self.setting.stage.isolated:
            doubts.append("it ran without a sandbox")
        facts = {"findings": len(judged), "seen": seen, "dropped": self._dropped}
        return Trial(True, tuple(doubts), checks=tuple(checks), facts=facts, findings=tuple(judged))

    async def _tried(self, finding: Finding) -> Run | None:
        """A run of a finding's check; None where it cannot be run or does more than call the code."""
        module = module_name(finding.path, self.setting.code.tracked)
        own = re.compile(rf"newly imports (?:\S+ from )?(?:{re.escape(module)}|pytest)\b.*|newly defines test_\w*")
        if parse(finding.check) is None or [w for w in objections(CHECK_FILE, "", finding.check) if not own.match(w)]:
            return None
        text = finding.check
        if "def test" not in text:
            text = "def test_finding():\n" + textwrap.indent(text, "    ")
        if not re.search(rf"\b(?:from|import) {re.escape(module)}\b", text):
            text = f"from {module} import *\n\n\n{text}"
        prefix = self.setting.stage.repository.prefix
        path = f"{prefix}/{CHECK_FILE}" if prefix else CHECK_FILE
        command = test_command(None, path, self.setting.stage.repository)
        if command is None:
            return None
        return await self.setting.stage.run(command, {path: text.encode()}, wall_s=CHECK_S)

    def summary(self, target: Target, draft: Draft, trial: Trial, branch: str) -> str:
        """How many findings, and which were seen."""
        seen = [finding for finding in trial.findings if finding.seen]
        paths = [each.path for each in self._subjects]
        several = len(paths) > 1
        place = f"{', '.join(paths[:4])}{f' and {len(paths) - 4} more' if len(paths) > 4 else ''}"
        place = f"{self._revisions} ({place})" if self._revisions else place
        if not trial.findings:
            return f"Reviewed {place}: no findings, which proves nothing."
        counts = f"{len(trial.findings)} finding{'s' if len(trial.findings) != 1 else ''}"
        ordered = sorted(trial.findings, key=lambda f: (not f.seen, SEVERITIES.index(f.severity)))
        head = f"Reviewed {place}: {counts}, {len(seen)} seen happening, the rest opinion."
        told = (
            f"{f.severity}, {f'{f.path} ' * several}line {f.line}{' (seen)' if f.seen else ''}: {f.reason[:120]}"
            for f in ordered
        )
        return f"{head} {'; '.join(told)}"

    def failed_summary(self, num_candidates: int) -> str:
        """Nothing readable."""
        return f"No answer of {num_candidates} held a finding that quotes a line of {self.targets[0].path}"


def parse_findings(answer: str, path: str) -> list[Finding]:
    """Findings as they are asked for: a heading with the severity, then `Line:`, `Problem:`, `Suggestion:`, a check.

    Where there are several files, `File:` comes first; `path` is the file of the findings that name none.
    """
    found: list[Finding] = []
    pieces = re.split(r"^#{2,4}\s*\W*(high|medium|low)\b[^\n]*$", answer, flags=re.MULTILINE | re.IGNORECASE)
    for severity, body in zip(pieces[1::2], pieces[2::2], strict=False):
        blocks = [block for block in code_blocks(body) if block.closed and block.code.strip()]
        prose = body
        for block in blocks:
            prose = prose.replace(block.code, "")
        quote = _field(prose, "Line")
        reason = _field(prose, "Problem") or _field(prose, "Reason")
        if quote is None or reason is None:
            continue
        check = next((block.code for block in blocks if "assert" in block.code or "def test" in block.code), "")
        quote = quote.strip().strip("`*").strip()
        number = re.match(r"(\d+)\s*[:|.)]\s*", quote)
        line = int(number[1]) if number else 0
        quoted = quote[number.end() :] if number else quote
        shown = quoted.strip().strip("`").strip()
        suggestion = _one_line(_field(prose, "Suggestion") or "")
        where = (_field(prose, "File") or "").strip().strip("`*").strip() or path
        found.append(Finding(severity.lower(), where, line, shown, _one_line(reason), suggestion, check=check))
    return found


def _one_line(text: str) -> str:
    return " ".join(text.split())[:600]


def _field(text: str, name: str) -> str | None:
    match = re.search(
        rf"^\W*{name}\W*:\W{{0,3}}[ \t]*(.+?)(?=^\W*(?:File|Line|Problem|Reason|Suggestion|Check)\W*:|^[`~]{{3}}|\Z)",
        text, re.MULTILINE | re.DOTALL | re.IGNORECASE,
    )  # fmt: skip
    return match[1].strip() if match else None


def is_same_path(path: str, said: str) -> bool:
    """Whether a path is what a model calls it, perhaps by its last parts only."""
    said = said.removeprefix("./").removeprefix("b/")
    return path == said or path.endswith(f"/{said}")


def _placed(finding: Finding, code: str, among: frozenset[int] | None = None) -> Finding | None:
    """The finding at the line it quotes, which must exist; near the line it names where the quote occurs twice.

    Where only some lines were shown, as part of a change, it must be one of them; a `+` before it is the change's.
    """
    wanted = " ".join(finding.quote.split())
    if len(wanted) < 2:
        return None
    spellings = {wanted} if among is None else {wanted, " ".join(wanted.removeprefix("+").split())}
    lines = [" ".join(line.split()) for line in code.splitlines()]
    matches = [
        number
        for number, line in enumerate(lines, 1)
        if line and line in spellings and (among is None or number in among)
    ]
    if not matches:
        return None
    line = min(matches, key=lambda number: abs(number - finding.line)) if finding.line else matches[0]
    return replace(finding, line=line, quote=code.splitlines()[line - 1].strip())


def _shows_a_crash(run: Run, path: str) -> bool:
    """Whether a check died in the reviewed file of something that code should not die of."""
    if run.result.timed_out:
        return False  # it may be the check that does not end
    for failure in run.evidence.failures:
        if not failure.trace or not failure.message.lstrip().startswith(CRASHES):
            continue
        place, _ = failure.trace[-1]
        if place == path or place.endswith(f"/{path}"):
            return True
    return False
