"""`complete`: the missing middle of a file, or the body of a stub.

Proved means: nothing but the hole changed, the result parses (and type-checks where the project does), and the check,
which failed with a trap in the hole, passes. Without a check that notices the trap nothing is proved; examples in the
docstring then choose among candidates, no more.
"""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Sequence

from garzone.agent.agreement import most_agreed
from garzone.agent.changes import Draft
from garzone.agent.context import Target
from garzone.agent.definitions import definitions_used
from garzone.agent.document import filling, going_on
from garzone.agent.edit import EditMiss, code_blocks
from garzone.agent.examples import Examples
from garzone.agent.forgotten import forgotten_imports
from garzone.agent.holes import MARK, Hole, fill, find_holes, lead_in, trapped
from garzone.agent.kinds import SMALL_TEMPERATURES, Attempt, Job, Material, Question, Setting, Style, drafted
from garzone.agent.kinds.asking import again, language_of, sentence, signature, user
from garzone.agent.kinds.before import run_check_before
from garzone.agent.kinds.fix import defines_target, read_code
from garzone.agent.prompts import fenced, render
from garzone.agent.proof import Trial, check_draft
from garzone.agent.stage import Run
from garzone.agent.syntax import definitions, is_source
from garzone.agent.target import functions, is_python, is_test, node_at, parse, split_lines
from garzone.core.errors import UsageError

# For a small model that writes a body. SmolLM2-135M going on with 36 easy stubs of our own, right answers: 74 of 324 up
# to 0.5, and 16 of 144 at 0.6 and 0.8. Told in words: 64 of 324 and 21 of 128.
GOING_ON_TEMPERATURES = (0.0, 0.0, 0.2, 0.3, 0.3, 0.4, 0.4, 0.5)
WORKED_FUNCTION = '''def count_words(text: str, limit: int) -> int:
    """Count the words of a text that are longer than a limit.

    >>> count_words("a bird in the sky", 3)
    1
    """
    count = 0
    for word in text.split():
        if len(word) > limit:
            count += 1
    return count


'''
UNREACHED = "the check passes with a trap in the hole, so it does not reach it"


async def open_complete(setting: Setting) -> Job:
    """Find the hole, and see whether the check notices it."""
    targets = _targets(setting)
    if not targets:
        where = ", ".join(setting.named) or "the repository"
        raise UsageError(
            f"{where} has no hole: mark the place with <fill> (also in a comment), or name a function whose body is "
            "`...`, `pass` or `raise NotImplementedError`"
        )
    target = targets[0]
    before, reached = await run_check_before(setting), False
    if before is not None:
        assert setting.check is not None
        trap = trapped(target.path, target.source.text, _hole(target))
        if trap is not None:
            # with the hole as it is the file may not even load, whatever the check looks at
            sprung = await setting.stage.run(setting.check, {target.path: target.source.encode(trap)})
            before, reached = sprung, not sprung.passed
    return Complete(setting, targets[:1], before, reached)


def _targets(setting: Setting) -> list[Target]:
    """Holes, those the instruction names first."""
    code = setting.code
    names = setting.named or [name for name in code.tracked if is_source(name) and not is_test(name)]
    words = set(re.findall(r"\w+", setting.task.instruction))
    found: list[tuple[bool, bool, Target]] = []
    for name in names:
        source = code.source(name)
        for hole in find_holes(name, source.text) if source else ():
            assert source is not None
            target = Target(name, code.content(name), source, hole.span, hole=(hole.start, hole.end))
            found.append((bool(hole.span and hole.span.name in words), not hole.is_body, target))
    return [target for *_, target in sorted(found, key=lambda item: (not item[0], not item[1]))]


def _hole(target: Target) -> Hole:
    holes = find_holes(target.path, target.source.text)
    return next(hole for hole in holes if (hole.start, hole.end) == target.hole)


class Complete(Job):
    """Asks for what is missing: by the model's own fill-in-the-middle where it has that, else in words."""

    def __init__(self, setting: Setting, targets: list[Target], before: Run | None, reached: bool) -> None:
        super().__init__(setting, targets, before)
        self._reached = reached
        self._examples = Examples(setting.stage)
        self._fills = "insert" in setting.capabilities

    def material(self, target: Target) -> Material:
        """What the function uses, and the tests that fail without it."""
        return Material(definitions=definitions_used(self.setting.code, target) if target.span else ())

    def styles(self, small: bool) -> tuple[Style, ...]:
        """Fill in the middle first and mostly, where the model has it."""
        if self._fills:
            return (Style.BARE, Style.BARE, Style.FULL, Style.BARE)
        (target, *_) = self.targets
        if small and not _hole(target).is_body:
            return (Style.AROUND, Style.BARE)  # they go on with a text better than they do what they are told
        if small and is_python(target.path):
            # each writes what the others do not: of 60 own stubs 19 in 16 answers, 18 with the full question instead
            return (Style.BARE, Style.BRIEF, Style.WORKED)
        return (Style.BRIEF, Style.FULL) if small else (Style.FULL, Style.BRIEF)

    def temperatures(self, small: bool) -> tuple[float, ...]:
        """Small models lose the thread early."""
        if not small or self._fills:
            return super().temperatures(small)
        return GOING_ON_TEMPERATURES if _hole(self.targets[0]).is_body else SMALL_TEMPERATURES

    def ask(self, target: Target, material: Material, style: Style) -> Question:
        """The text around the hole, as tokens of its own or as a stub in words."""
        hole, text = _hole(target), target.source.text
        if style is Style.BARE and self._fills:
            lead = ""
            if hole.is_body and hole.start == hole.end:
                last = text[text.rfind("\n", 0, hole.start) + 1 : hole.start]
                lead = "\n" + last[: len(last) - len(last.lstrip())]
            return Question(prompt=text[: hole.start] + lead, suffix=text[hole.end :])
        if style in (Style.BARE, Style.AROUND, Style.WORKED):
            return _going_on(target.path, text, hole, style)
        shown = text[: hole.start] + "<fill>" + text[hole.end :]
        if hole.span is not None:
            shown = shown if not hole.is_body else text
        return user(
            render(
                "complete" if style is Style.FULL else "complete_brief",
                instruction=sentence(self.task.instruction),
                path=target.path,
                language=language_of(target.path),
                function=hole.span.name if hole.span and hole.is_body else None,
                code=target.shown if hole.is_body and hole.span and style is not Style.FULL else shown,
                definitions=material.definitions,
            )
        )

    def ask_again(self, first: Question, target: Target, attempt: Attempt) -> Question:
        """The first prompt, the answer, and what was wrong; a model that only fills in is asked anew."""
        if not first.messages:
            return first
        return again(first, target, attempt, wanted="Write it again in one Markdown code block, corrected.")

    def read(self, target: Target, answer: str) -> Draft | EditMiss:
        """The file with the hole filled, and nothing else changed."""
        hole, text = _hole(target), target.source.text
        blocks = [block.code for block in code_blocks(answer) if block.code.strip()]
        if hole.is_body and hole.span is not None and (blocks or not self._fills):
            body = _body_in(target, answer)
            if isinstance(body, str):
                filled = _filled(target.path, text, hole, body)
                if filled is not None:
                    return drafted(target, filled)
        for code in blocks or [answer]:
            lines = code.rstrip().splitlines()
            # what was cut off, or ran on, is shortened until the file parses
            for end in range(len(lines), max(len(lines) - 40, 0), -1):
                piece = "\n".join(lines[:end])
                if hole.is_body and hole.span is not None and defines_target(target, fenced(piece)):
                    # the function's head would parse inside of the function as well, and hold nothing
                    body = _body_in(target, fenced(piece))
                    filled = _filled(target.path, text, hole, body) if isinstance(body, str) else None
                else:
                    filled = _filled(target.path, text, hole, piece)
                if filled is not None:
                    return drafted(target, filled)
        return EditMiss("With your text in the hole the file does not parse. Write only what is missing.")

    def enough(self, target: Target, answer: str) -> bool:
        """A closed code block is all that is needed; fill-in-the-middle ends by itself."""
        return super().enough(target, answer)

    def expected_text(self, target: Target) -> str:
        """A body is about as long as the functions around it; a marked hole is short."""
        return target.code[:1200] if target.span else ""

    def opening(self, target: Target) -> str | None:
        """The function's own first lines, where its whole body is asked for."""
        return signature(target) if _hole(target).is_body else ""

    def unchanged(self, draft: Draft) -> str | None:
        """Whether a stub was answered with a stub."""
        (edit,) = draft.edits
        before = find_holes(edit.path, edit.before)
        marked = not before[0].is_body
        gone = not MARK.search(edit.after) if marked else len(find_holes(edit.path, edit.after)) < len(before)
        return None if gone else "It is still missing: write the code itself, not a placeholder."

    async def prove(self, target: Target, draft: Draft) -> Trial:
        """The check, which failed with a trap in the hole; else the examples."""
        if self.before is not None:
            _, trial = await check_draft(self.setting.stage, self.check, draft, self.before)
            return trial if self._reached else trial.doubted(UNREACHED)
        trial = await self._examples.tried(draft, target.span)
        return trial.doubted("no check was given or found")

    async def prefer(self, drafts: Sequence[Draft], times: Sequence[int]) -> tuple[int, str]:
        """The one that does what most of the others do, on inputs like those that the docstring shows."""
        (target, *_) = self.targets
        if not is_python(target.path) or target.span is None or "." in target.span.qualname:
            return 0, ""
        programs, name = [draft.edits[0].after for draft in drafts], target.span.qualname
        found = await most_agreed(self.setting.stage, target.path, programs, names=(name,), times=times)
        if found is None:
            return 0, ""
        told = f"{len(drafts)} candidates are as good; {found.num_alike} of them do the same"
        return found.number, f"{told} on {found.num_inputs} inputs, and one of those was taken"

    def summary(self, target: Target, draft: Draft, trial: Trial, branch: str) -> str:
        """What was filled in, and what the check says."""
        place = f"Filled the hole in {target.label}; nothing else changed"
        if trial.proved:
            return f"{place}. `{self.check}` failed without it and passes now{trial.told}. Branch {branch}."
        return f"{place}. Unproved: {'; '.join(trial.doubts)[:200]}{trial.told}. Read branch {branch}."

    def failed_summary(self, num_candidates: int) -> str:
        """Where there was no check, the examples or the parser refused all."""
        if self.before is None:
            return f"No candidate of {num_candidates} could be put into the hole and agree with its examples"
        return super().failed_summary(num_candidates)


def _filled(path: str, text: str, hole: Hole, code: str) -> str | None:
    """The text with its hole filled; a body begins with the imports it forgot, since the file's head is no hole."""
    filled = fill(path, text, hole, code)
    if filled is None or not hole.is_body:
        return filled
    wanted = forgotten_imports(path, text, filled)
    return fill(path, text, hole, "\n".join([*wanted, textwrap.dedent(code.strip("\n"))])) or filled


def _going_on(path: str, text: str, hole: Hole, style: Style) -> Question:
    """The text before a hole, to go on with."""
    language, before, after = language_of(path), text[: hole.start], text[hole.end :]
    if hole.span is not None and hole.is_body:
        head = "".join(split_lines(before)[hole.span.def_line - 1 :])
        return going_on(before, head, language, worked=WORKED_FUNCTION if style is Style.WORKED else "")
    if hole.span is not None:  # the function says enough
        first = hole.span.first_line - 1
        after = "".join(split_lines(text)[before.count("\n") : hole.span.last_line])[
            len(before.rpartition("\n")[2]) + hole.end - hole.start :
        ]
        before = "".join(split_lines(before)[first:])
    return filling(before, after, language, shown=style is Style.AROUND)


def _lead_of(target: Target) -> set[str]:
    """The docstring and the imports that a stub begins with."""
    tree = parse(target.source.text)
    node = node_at(tree, target.span) if tree and target.span else None
    return {ast.dump(each) for each in lead_in(node)} if node else set()


def _body_in(target: Target, answer: str) -> str | EditMiss:
    """The body of the target in an answer that holds the whole function, without its docstring."""
    edited = read_code(target, answer)
    if isinstance(edited, EditMiss):
        return edited
    text = edited.edits[0].after
    assert target.span is not None
    if not is_python(target.path):
        raw = text.encode()
        found = [d for d in definitions(target.path, text) if d.span.qualname == target.span.qualname]
        return (
            raw[found[-1].body_start + 1 : found[-1].body_end - 1].decode("utf-8", "replace") if found else EditMiss("")
        )
    tree = parse(text)
    spans = [span for span in (functions(tree) if tree else ()) if span.qualname == target.span.qualname]
    node = node_at(tree, spans[-1]) if tree and spans else None
    if node is None:
        return EditMiss("The function is not in the answer.")
    body = node.body[1:] if ast.get_docstring(node, clean=False) is not None else node.body
    kept = _lead_of(target)
    while body and ast.dump(body[0]) in kept:  # stands before the hole already
        body = body[1:]
    if not body:
        return EditMiss("The function has no body.")
    lines = split_lines(text)[body[0].lineno - 1 : node.end_lineno]
    if body[0].lineno == node.lineno:
        lines[0] = lines[0][body[0].col_offset :]
    return textwrap.dedent("".join(lines))
