"""`docs`: docstrings and comments of code, or a section of a Markdown file.

Proved means: the program is the same but for docstrings and comments; every parameter, return value and exception
named exists; and for each piece of code that was documented at least one example calls it, shows a result, and was
seen to be true. Words that no example supports stay `unproved`, for no program can read them.
"""

from __future__ import annotations

import ast
import re
import textwrap
from pathlib import PurePosixPath

from garzone.agent.changes import Draft, FileEdit
from garzone.agent.context import Target
from garzone.agent.docstrings import (
    bare,
    docstrings_in,
    documented,
    example_doubts,
    put_in,
    unseen_exceptions,
    untrue_names,
)
from garzone.agent.edit import EditMiss, code_blocks
from garzone.agent.edit_syntax import comment_for
from garzone.agent.examples import Examples, Outcome
from garzone.agent.kinds import Attempt, Job, Material, Question, Setting, Style, drafted
from garzone.agent.kinds.asking import again, language_of, sentence, user
from garzone.agent.kinds.fix import read_code
from garzone.agent.kinds.readme import Readme, readme_target
from garzone.agent.node import examples_in, wrong_examples
from garzone.agent.prompts import render
from garzone.agent.proof import Trial, trace_doubts
from garzone.agent.syntax import definitions, is_source, tokens_without_comments
from garzone.agent.target import SourceText, is_python, is_test, parse
from garzone.agent.vet import objections
from garzone.core.errors import RepositoryError, UsageError

NOT_EXECUTED = "its examples are not executed in this language"


async def open_docs(setting: Setting) -> Job:
    """Find what lacks words."""
    code = setting.code
    if target := readme_target(setting):
        return Readme(setting, target)
    words = set(re.findall(r"\w+", setting.task.instruction))
    names = [name for name in setting.named if is_source(name)]
    if not names:
        sources = [name for name in code.tracked if is_source(name) and not is_test(name)]
        names = [name for name in sources if any(span.name in words for span in code.spans(name))][:1]
    if not names:
        raise UsageError("say what to document: --file SOURCE, or --file README.md")
    source = code.source(names[0])
    if source is None:
        raise RepositoryError(f"{names[0]} is not a text file in a known encoding")
    wanted = _wanted(names[0], source, words)
    if not wanted:
        raise UsageError(f"{names[0]} has nothing that could be documented")
    spans = [span for span in code.spans(names[0]) if span.qualname in wanted]
    targets = [Target(names[0], code.content(names[0]), source, span) for span in spans]
    whole = Target(names[0], code.content(names[0]), source, None)
    return Docs(setting, targets[:1] if len(wanted) == 1 and targets else [whole, *targets[:1]], wanted)


def _wanted(path: str, source: SourceText, words: set[str]) -> list[str]:
    """Qualified names to document: those the instruction names, else what is public and lacks words, else all."""
    if not is_python(path):
        found = definitions(path, source.text)
        public = [d for d in found if d.public] or found
        lacking = [d for d in public if comment_for(path, source.text, d) is None]
        return [d.span.qualname for d in [d for d in found if d.span.name in words] or lacking or public]
    tree = parse(source.text)
    if tree is None:
        return []
    things = [(name, node) for name, node in documented(tree) if name]
    named = [name for name, _ in things if name.rpartition(".")[2] in words]
    public = [(n, node) for n, node in things if not n.rpartition(".")[2].startswith("_")]
    lacking = [name for name, node in public if ast.get_docstring(node) is None]
    return named or lacking or [name for name, _ in public]


class Docs(Job):
    """Asks for a function or a file with words, and takes only the words."""

    def __init__(self, setting: Setting, targets: list[Target], wanted: list[str]) -> None:
        super().__init__(setting, targets)
        self._wanted = wanted
        self._examples = Examples(setting.stage)

    @property
    def check(self) -> str:
        """What is run: the examples."""
        return "the examples of the documentation"

    def styles(self, small: bool) -> tuple[Style, ...]:
        """There is little to leave out."""
        return (Style.BRIEF, Style.FULL) if small else (Style.FULL,)

    def ask(self, target: Target, material: Material, style: Style) -> Question:
        """The code, and what is to be said of it."""
        return user(
            render(
                "docs" if style is Style.FULL else "docs_brief",
                instruction=sentence(self.task.instruction),
                path=target.path,
                language=language_of(target.path),
                function=target.span.name if target.span else None,
                code=target.shown,
                names=self._wanted[:12],
            )
        )

    def ask_again(self, first: Question, target: Target, attempt: Attempt) -> Question:
        """What was not true."""
        return again(
            first,
            target,
            attempt,
            complaint="The code is right, but what you wrote about it is not:",
            wanted="Write it again in one Markdown code block, with true documentation and true examples.",
        )

    def expected_text(self, target: Target) -> str:
        """The code, and about as much again."""
        return target.code + " " * 800

    def read(self, target: Target, answer: str) -> Draft | EditMiss:
        """The file with the answer's words, and its own code."""
        text = target.source.text
        edited = read_code(target, answer)
        if not isinstance(edited, EditMiss):
            after = edited.edits[0].after
            if after != text and same_but_for_words(target.path, text, after):
                return edited
        new = self._transplanted(target, answer)
        if new is None or new == text:
            return EditMiss("There is no documentation for it in your answer. Write the code again with docstrings.")
        return drafted(target, new)

    def _transplanted(self, target: Target, answer: str) -> str | None:
        """The words of an answer put into the code as it is, where the answer changed the code."""
        text = target.source.text
        blocks = [block.code for block in code_blocks(answer.replace("\r\n", "\n")) if block.code.strip()] or [answer]
        for block in blocks:
            code = textwrap.dedent(block)
            if not is_python(target.path):
                moved = _moved_comments(target.path, text, code, self._wanted)
                if moved != text:
                    return moved
                continue
            found = docstrings_in(code)
            alone = parse(code)
            if target.span and alone and len(alone.body) == 1 and "" in found:
                found = {target.span.qualname: found[""]}
            for name in self._wanted:
                doc = found.get(name) or found.get(name.rpartition(".")[2])
                text = (put_in(text, name, doc) or text) if doc else text
            if text != target.source.text:
                return text
        return None

    def unchanged(self, draft: Draft) -> str | None:
        """Words are all that may change, so that only the text tells."""
        same = all(edit.before == edit.after for edit in draft.edits)
        return "There is no new documentation in your answer." if same else None

    async def prove(self, target: Target, draft: Draft) -> Trial:
        """The program is the same, the names exist, the examples are true."""
        (edit,) = draft.edits
        if not same_but_for_words(edit.path, edit.before, edit.after):
            return Trial(False, output="The code itself was changed. Change only docstrings and comments.")
        if not is_python(edit.path):
            return await self._other(edit)
        before, after = docstrings_in(edit.before), docstrings_in(edit.after)
        new = {name: doc for name, doc in after.items() if before.get(name) != doc}
        lost = [name for name in before if name not in after]
        tree = parse(edit.after)
        assert tree is not None
        nodes = dict(documented(tree))
        untrue = [what for name, doc in new.items() for what in untrue_names(nodes[name], doc, tree)]
        if lost:
            untrue.append(f"the docstring of {lost[0] or 'the module'} is gone")
        if untrue:
            return Trial(False, output="\n".join(untrue), num_failing=len(untrue))
        outcome = await self._examples.run(draft, edit.path)
        if (failing := self._failing(outcome)) is not None:
            return failing
        module = PurePosixPath(edit.path).stem
        doubts = [what for name, doc in new.items() if name for what in example_doubts(name, doc, module)]
        doubts += [f"nothing in {n} raises {e}" for n, doc in new.items() for e in unseen_exceptions(nodes[n], doc)]
        doubts += [f"{name} is still without a docstring" for name in self._wanted if name not in after][:2]
        doubts += trace_doubts(outcome.run)
        if not new:
            doubts.append("only comments changed, which nothing can check")
        if not self.setting.stage.isolated:
            doubts.append("it ran without a sandbox")
        num = sum(outcome.functions.get(name, (0, 0))[0] for name in new)
        check = outcome.run.as_check(self.check)
        facts = {"documented": sorted(new), "examples": num}
        told = f"the code is unchanged, all names exist, {num} example{'s' if num != 1 else ''} ran true"
        return Trial(True, tuple(dict.fromkeys(doubts)), checks=(check,), told=told, facts=facts)

    def _failing(self, outcome: Outcome) -> Trial | None:
        check = outcome.run.as_check(self.check)
        if not outcome.finished:
            return Trial(
                False, output=f"The file cannot be loaded:\n{outcome.run.result.output[-600:]}", checks=(check,)
            )
        ours = {name: pair for name, pair in outcome.functions.items() if pair[1]}
        if ours:
            return Trial(False, output=outcome.output, num_failing=outcome.failed, checks=(check,))
        return None

    async def _other(self, edit: FileEdit) -> Trial:
        """Other languages: names in `@param` and the like exist; in JavaScript and TypeScript the examples are true."""
        path, after = edit.path, edit.after
        known = definitions(path, after)
        untrue: list[str] = []
        examples: list[tuple[str, str]] = []
        doubts: list[str] = []
        for d in known:
            words = comment_for(path, after, d) or ""
            have = set(re.findall(r"\w+", d.signature))
            named = re.findall(r"@param\s+(?:\{[^}]*\}\s*)?\[?(\w+)", words)
            untrue += [f"{d.span.name} has no parameter {name}" for name in named if name not in have]
            if d.span.qualname in self._wanted:
                own = [pair for pair in examples_in(words) if re.search(rf"\b{re.escape(d.span.name)}\s*\(", pair[0])]
                examples += own
                if not own:
                    doubts.append(f"no example shows that the words about {d.span.name} are true")
        if untrue:
            return Trial(False, output="\n".join(untrue), num_failing=len(untrue))
        told = "the code is unchanged, all parameters named exist"
        if language_of(path) not in ("javascript", "typescript"):
            return Trial(True, (NOT_EXECUTED,), told=told)
        if not examples:
            return Trial(True, tuple(doubts) or (NOT_EXECUTED,), told=told)
        doubts += [f"an example {what}" for what in objections(path, "", "\n".join(map(" ".join, examples)))]
        names = [d.span.name for d in known if "." not in d.span.qualname]
        run, wrong = await wrong_examples(self.setting.stage, path, edit.content, names, examples)
        check = run.as_check(self.check)
        if wrong is None:
            doubts.append("its examples could not be run")
        elif wrong:
            return Trial(False, output="\n".join(wrong[:5]), num_failing=len(wrong), checks=(check,))
        doubts += trace_doubts(run)
        if not self.setting.stage.isolated:
            doubts.append("it ran without a sandbox")
        told = f"{told}, {len(examples)} example{'s' if len(examples) != 1 else ''} ran true"
        return Trial(True, tuple(doubts), checks=(check,), told=told, facts={"examples": len(examples)})

    def summary(self, target: Target, draft: Draft, trial: Trial, branch: str) -> str:
        """What was documented, and what supports it."""
        place = f"Documented {', '.join(self._wanted[:3])}{' ...' if len(self._wanted) > 3 else ''} in {target.path}"
        if trial.proved:
            return f"{place}: {trial.told}. Branch {branch}."
        return f"{place}: {trial.told}; unproved: {'; '.join(trial.doubts)[:200]}. Read branch {branch}."

    def failed_summary(self, num_candidates: int) -> str:
        """Nothing true was said."""
        return f"No candidate of {num_candidates} documented {self._wanted[0]} truly"


def same_but_for_words(path: str, before: str, after: str) -> bool:
    """Whether two texts are the same program apart from docstrings and comments."""
    if is_python(path):
        return bare(before) is not None and bare(before) == bare(after)
    return tokens_without_comments(path, before) == tokens_without_comments(path, after)


def _moved_comments(path: str, text: str, code: str, wanted: list[str]) -> str:
    """The text with the comments that stand above the same functions in `code`."""
    for name in reversed(wanted):
        ours = next((d for d in definitions(path, text) if d.span.qualname == name), None)
        theirs = [d for d in definitions(path, code) if d.span.name == name.rpartition(".")[2]]
        words = comment_for(path, code, theirs[-1]) if theirs else None
        if ours is None or words is None or comment_for(path, text, ours) is not None:
            continue
        lines = text.splitlines(keepends=True)
        line = lines[ours.span.first_line - 1]
        margin = line[: len(line) - len(line.lstrip())]
        block = [margin + row + "\n" if row.strip() else "\n" for row in textwrap.dedent(words).splitlines()]
        lines[ours.span.first_line - 1 : ours.span.first_line - 1] = block
        text = "".join(lines)
    return text
