"""`refactor`: the same behaviour in better code.

Proved means: the check passes before and after; public names and signatures are as before unless the task names them;
and behaviour is equal on the inputs that were recorded while the tests ran, and on variations of them (Python). Where
calls cannot be recorded (other languages, checks that cannot be watched), the check must notice at least 60 % of the
mutants of what was changed, for otherwise its passing says little.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from typing import Any

from garzone.agent.adequacy import kill_with_command
from garzone.agent.behaviour import Recorder
from garzone.agent.changes import Draft, FileEdit
from garzone.agent.classes import owners
from garzone.agent.context import Target, focus_lines
from garzone.agent.definitions import definitions_used
from garzone.agent.edit import EditMiss
from garzone.agent.events import CheckFinished
from garzone.agent.evidence import Evidence
from garzone.agent.kinds import Attempt, Job, Material, Question, Setting, Settled, Style
from garzone.agent.kinds.asking import again, language_of, sentence, user
from garzone.agent.kinds.edits import ask_for_edits
from garzone.agent.kinds.fix import defines_target, read_code, required_check
from garzone.agent.member_renames import rename_member
from garzone.agent.mutants import mutants_of
from garzone.agent.prompts import render
from garzone.agent.proof import Trial, check_as_it_is, check_draft, failing_output, new_powers
from garzone.agent.renames import mentions, rename_elsewhere
from garzone.agent.search_replace import holds_blocks
from garzone.agent.stage import Run
from garzone.agent.surface import surface, surface_changes
from garzone.agent.syntax import definitions, is_source
from garzone.agent.target import Span, functions, is_protected, is_python, node_at, parse
from garzone.core.errors import RepositoryError, UsageError
from garzone.core.task import Verdict

PROVED_SCORE = 0.6
GOAL = "Refactor it: the code must do exactly what it does now, for all inputs."
_RENAME = re.compile(
    r"\brename\s+(?:the\s+)?(?:method|attribute|field|property|function|class|variable)?\s*"
    r"[`'\"]?(?:(?P<owner>\w+)\.)?(?P<old>\w+)(?:\(\))?[`'\"]?\s+(?:to|into|as)\s+[`'\"]?(?:\w+\.)?(?P<new>\w+)",
    re.IGNORECASE,
)
_STRUCTURAL = re.compile(
    r"\b(?:rename|extract|inline|move|split|merge|class|module|file|everywhere|all)\b", re.IGNORECASE
)


async def open_refactor(setting: Setting) -> Job | Settled:
    """Run the check, record what the tests call, and choose what to rewrite."""
    check = required_check(setting, "a check that passes now")
    before = await check_as_it_is(setting.stage, check)
    setting.tell(CheckFinished("before", check, before.result.exit_code, before.result.duration_ms))
    if not before.passed:
        said = failing_output(before, setting.stage.wall_s, 200)
        return Settled(
            Verdict.FAILED,
            f"The check fails already: `{check}` gives exit code {before.result.exit_code} as it is. No change.",
            f"A refactoring needs a check that passes now. It says: {said[:250]}",
            (before.as_check(check),),
        )
    targets = _targets(setting)
    recorder = None
    if is_python(targets[0].path):
        recorder = Recorder(setting.stage, targets[0].path)
        if not await recorder.record(check):
            recorder = None
    return Refactor(setting, targets, before, recorder)


def _targets(setting: Setting) -> list[Target]:
    code = setting.code
    words = set(re.findall(r"\w+", setting.task.instruction))
    names = [name for name in setting.named if not is_protected(name)] or list(setting.named)
    if not names:
        sources = [name for name in code.tracked if is_source(name) and not is_protected(name)]
        names = [name for name in sources if any(span.name in words for span in code.spans(name))]
    if not names:
        raise UsageError("say which file to refactor: --file PATH, or name a function of the repository")
    path = names[0]
    source = code.source(path)
    if source is None:
        raise RepositoryError(f"{path} is not a text file in a known encoding")
    spoken = [span for span in code.spans(path) if span.name in words]
    whole = Target(path, code.content(path), source, None)
    parts = [Target(path, code.content(path), source, span) for span in spoken or code.spans(path)[:1]]
    structural = bool(_STRUCTURAL.search(setting.task.instruction))
    if structural or not spoken:
        return [whole, *parts][:2]
    return [*parts, whole][:2]


class Refactor(Job):
    """Asks for the whole function, or for the whole file where more than one function is meant."""

    before: Run

    def __init__(self, setting: Setting, targets: list[Target], before: Run, recorder: Recorder | None) -> None:
        super().__init__(setting, targets, before)
        self._recorder = recorder
        self._words = set(re.findall(r"\w+", setting.task.instruction))
        self._renames = [found.group("owner", "old", "new") for found in _RENAME.finditer(setting.task.instruction)]
        self._open: dict[str, list[str]] = {}  # by draft: where it cannot be told whether a renamed member is meant

    def material(self, target: Target) -> Material:
        """What the target uses."""
        code = self.setting.code
        focus = focus_lines(code, target.path, Evidence(), "", self._words)
        return Material(definitions=definitions_used(code, target), focus=focus)

    def takes_edits(self, target: Target) -> bool:
        """What a refactoring changes of a long file is a part of it as a rule."""
        return True

    def styles(self, small: bool) -> tuple[Style, ...]:
        """What it uses may help or distract."""
        return (Style.BRIEF, Style.FULL) if small else (Style.FULL, Style.BRIEF)

    def ask(self, target: Target, material: Material, style: Style) -> Question:
        """What is wanted, of which code."""
        if style is Style.EDITS:
            instruction = sentence(self.task.instruction) or "Simplify it."
            return ask_for_edits(self.setting, target, material, instruction=instruction, goal=GOAL)
        return user(
            render(
                "refactor",
                instruction=sentence(self.task.instruction) or "Simplify it.",
                path=target.path,
                language=language_of(target.path),
                function=target.span.name if target.span else None,
                code=target.shown,
                definitions=material.definitions if style is Style.FULL else (),
            )
        )

    def ask_again(self, first: Question, target: Target, attempt: Attempt) -> Question:
        """What behaves otherwise now."""
        what = f"function `{target.span.name}`" if target.span else "file"
        return again(
            first,
            target,
            attempt,
            complaint="That changes what the code does:",
            wanted=f"Write the whole {what} again in one Markdown code block, with the behaviour it had.",
        )

    def read(self, target: Target, answer: str) -> Draft | EditMiss:
        """The file with the answer in place of the target."""
        renamed = self._renamed()
        if target.span is None and renamed and not holds_blocks(answer):
            draft = _read_whole(target, answer, renamed)
        else:
            draft = read_code(target, answer, may_lose=renamed)
        return draft if isinstance(draft, EditMiss) else self._everywhere(draft)

    def _everywhere(self, draft: Draft) -> Draft:
        """The draft, with names that the task renames renamed in the other files that use them."""
        (edit,) = draft.edits
        if not is_python(edit.path):
            return draft
        was, now = surface(edit.path, edit.before), surface(edit.path, edit.after)
        edits: dict[str, FileEdit] = {}
        left_open: list[str] = []
        for owner, old, new in self._renames:
            if old in was and owner not in was:  # of the module, which may be named as well
                if old in now or new in was or new not in now:
                    continue
                for other in rename_elsewhere(self.setting.code, edit.path, old, new, edits):
                    edits[other.path] = other
            elif member := _member_renamed(edit, owner, old, new):
                done = rename_member(self.setting.code, (edit.path, member), old, new, edits)
                edits = {other.path: other for other in done.edits}
                left_open += [f"{member}.{old}: {place}" for place in done.open]
            else:
                continue
            if left := mentions(self.setting.code, old, {edit.path, *edits}):
                self._note(
                    f"{', '.join(left[:4])} also {'speaks' if len(left) == 1 else 'speak'} of {old}: left as it is"
                )
        whole = Draft((edit, *edits.values()))
        self._open[whole.key] = left_open
        return whole

    def _note(self, text: str) -> None:
        if text not in self.setting.notes:
            self.setting.notes.append(text)

    def _renamed(self) -> set[str]:
        return self._words if _STRUCTURAL.search(self.task.instruction) else set()

    def enough(self, target: Target, answer: str) -> bool:
        """A closed block that defines the target."""
        return defines_target(target, answer)

    async def prove(self, target: Target, draft: Draft) -> Trial:
        """Surface, check, behaviour: the cheapest first."""
        edit = draft.edits[0]
        named = self._renamed()
        if changed := surface_changes(edit.path, edit.before, edit.after, named):
            return Trial(False, output="\n".join(changed), num_failing=len(changed))
        stage = self.setting.stage

        def powers(each: FileEdit) -> Sequence[str]:
            # what was renamed elsewhere was written here, not by the model
            return new_powers(each) if each.path == edit.path else ()

        _, trial = await check_draft(stage, self.check, draft, self.before, powers=powers)
        if not trial.passed:
            return trial
        if left := self._open.get(draft.key):
            more = f" and {len(left) - 3} more" if len(left) > 3 else ""
            trial = trial.doubted(f"whether these mean what was renamed cannot be told: {', '.join(left[:3])}{more}")
        touched = _touched(edit.path, edit.before, edit.after)
        if self._recorder is not None:
            renamed = {old: new for _, old, new in self._renames}
            gone = [n for n in touched if _tail(n) in named - renamed.keys()]
            comparison = await self._recorder.compare(draft.contents, gone, renamed)
            if comparison.differences:
                said = "\n".join(map(str, comparison.differences[:3]))
                return Trial(False, output=said, num_failing=len(comparison.differences), checks=trial.checks)
            seen = comparison.functions
            unseen = [n for n in touched if n not in seen and _tail(n) not in {_tail(s) for s in seen}]
            if not seen or (unseen and len(unseen) == len(touched)):
                trial = trial.doubted("no recorded call reaches what was changed")
            told = f"{trial.told}, equal on {comparison.compared} recorded and varied inputs"
            facts = {"inputs_compared": comparison.compared, "functions_compared": sorted(seen)}
            return _with(trial, told, facts)
        spans = [span for span in self.setting.code.spans(edit.path) if span.qualname in touched]
        mutants = mutants_of(edit.path, edit.before, spans)
        kills = await kill_with_command(stage, edit.path, mutants, self.check, {})
        if kills.score < PROVED_SCORE:
            trial = trial.doubted(
                f"the check notices only {len(kills.killed)} of {kills.tried} mutants of what was changed"
            )
        told = f"{trial.told}, a check that notices {len(kills.killed)} of {kills.tried} mutants"
        return _with(trial, told, {"mutation_score": round(kills.score, 3), "mutants": kills.tried})

    def summary(self, target: Target, draft: Draft, trial: Trial, branch: str) -> str:
        """What was rewritten, and what says that it does the same."""
        place = f"Refactored {target.label}"
        if len(draft.edits) > 1:
            others = ", ".join(edit.path for edit in draft.edits[1:4])
            place += f" and renamed in {len(draft.edits) - 1} more ({others})"
        if trial.proved:
            return f"{place}: `{self.check}` passes before and after{trial.told}. Branch {branch}."
        return f"{place}: `{self.check}` passes, but unproved: {'; '.join(trial.doubts)[:200]}. Read branch {branch}."

    def failed_summary(self, num_candidates: int) -> str:
        """Nothing kept the behaviour."""
        return f"No candidate of {num_candidates} keeps the behaviour that `{self.check}` and its recorded calls show"


def _member_renamed(edit: FileEdit, owner: str | None, old: str, new: str) -> str:
    """The class of a file whose member has another name after an edit; "" where that is none, or not one."""
    was, now = parse(edit.before), parse(edit.after)
    if was is None or now is None:
        return ""
    had, has = owners(was, old), owners(now, new)
    found = [name for name in had if name in has and name not in owners(now, old) and name not in owners(was, new)]
    found = [name for name in found if owner in (None, name)]
    return found[0] if len(found) == 1 else ""


def _with(trial: Trial, told: str, facts: Mapping[str, Any]) -> Trial:
    return Trial(True, trial.doubts, num_failing=0, checks=trial.checks, told=told, facts=facts)


def _tail(name: str) -> str:
    return name.rpartition(".")[2]


def _read_whole(target: Target, answer: str, renamed: set[str]) -> Draft | EditMiss:
    """A whole file in which names that the task speaks of may be gone."""
    draft = read_code(target, answer)
    if not isinstance(draft, EditMiss) or "leaves out" not in draft.reason:
        return draft
    missing = set(re.findall(r"\w+", draft.reason.partition("leaves out")[2].partition(".")[0]))
    if not missing <= renamed:
        return draft
    alike = Target(target.path, target.content, type(target.source)("", target.source.encoding), None)
    loose = read_code(alike, answer)
    if isinstance(loose, EditMiss):
        return loose
    (edit,) = loose.edits
    return Draft((type(edit)(edit.path, target.source.text, edit.after, edit.content),))


def _touched(path: str, before: str, after: str) -> list[str]:
    """Functions of the file before the change whose code is not the same after it."""
    was, now = _bodies(path, before), _bodies(path, after)
    return [name for name, body in was.items() if now.get(name) != body]


def _bodies(path: str, text: str) -> dict[str, str]:
    if not is_python(path):
        raw = text.encode()
        return {d.span.qualname: raw[d.start : d.end].decode("utf-8", "replace") for d in definitions(path, text)}

    tree = parse(text)
    spans: list[Span] = functions(tree) if tree else []
    nodes = {span.qualname: node_at(tree, span) for span in spans} if tree else {}
    return {name: ast.dump(node) for name, node in nodes.items() if node}
