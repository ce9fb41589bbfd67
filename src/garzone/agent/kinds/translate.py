"""`translate`: a Python file into another language; TypeScript, JavaScript, Go, Rust, Java.

Proved means: it compiles (TypeScript under `--strict`) and gives the same outputs as the source on inputs that were
generated and recorded from the source: at least ten a function. An exception that the source raises by name must be
raised there, too. An input unlike all that the source's examples show proves nothing against a translation: where only
such differ, the result is unproved and the report names one.
"""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from garzone.agent.changes import Draft
from garzone.agent.context import Target
from garzone.agent.edit import EditMiss, code_blocks
from garzone.agent.edit_syntax import replace_text
from garzone.agent.events import CheckFinished
from garzone.agent.examples import facts_of, python_of
from garzone.agent.harness import script
from garzone.agent.kinds import Attempt, Job, Material, Question, Setting, Style, drafted
from garzone.agent.kinds.asking import again, language_of, sentence, user
from garzone.agent.kinds.implement import new_target
from garzone.agent.node import find_typescript
from garzone.agent.prompts import render
from garzone.agent.proof import Trial, trace_doubts
from garzone.agent.syntax import definitions
from garzone.agent.target import SourceText, is_python, is_test, parse
from garzone.agent.translation import Case, Function, Toolchain, local
from garzone.agent.translation.compare import differences
from garzone.agent.translation.ecmascript import EcmaScript
from garzone.agent.translation.go import Go
from garzone.agent.translation.java import Java
from garzone.agent.translation.rust import Rust
from garzone.agent.translation.signatures import functions_of
from garzone.core.errors import RepositoryError, UnavailableError, UsageError

MIN_CASES = 10  # fewer say little
CASES_S = 60.0
LANGUAGES = ("typescript", "javascript", "go", "rust", "java")
NOT_YET = ("c", "c++", "c#", "kotlin", "swift", "ruby", "php", "scala", "perl", "haskell")


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is translated, to where, and what the source does with inputs."""

    source_path: str
    text: str
    toolchain: Toolchain
    functions: tuple[Function, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The functions that others may call."""
        return tuple(function.name for function in self.functions)

    @property
    def comparable(self) -> list[Function]:
        """The functions whose arguments and results the other language can be given."""
        return [function for function in self.functions if not (self.toolchain.typed and function.obstacle)]


async def open_translate(setting: Setting) -> Job:
    """Record what the source does, and say where the translation goes."""
    code = setting.code
    sources = [name for name in setting.named if is_python(name) and not is_test(name)]
    if not sources:
        raise UsageError("say which Python file to translate: --file PATH (only Python can be translated)")
    source = code.source(sources[0])
    tree = parse(source.text) if source else None
    if source is None or tree is None:
        raise RepositoryError(f"{sources[0]} is not Python that can be parsed")
    others = [name for name in (*setting.new, *setting.named) if name not in sources]
    toolchain = _toolchain(setting, _language(setting.task.instruction, others))
    place = others[0] if others else toolchain.place(sources[0])
    if place in code.tracked and place not in setting.named:
        raise UsageError(f"{place} exists: name it with --file to replace it, or name another file")
    words = set(re.findall(r"\w+", setting.task.instruction))
    public = [n.name for n in tree.body if isinstance(n, ast.FunctionDef) and not n.name.startswith("_")]
    names = [name for name in public if name in words] or public
    if not names:
        raise UsageError(f"{sources[0]} has no public function whose translation could be compared")
    cases = await _recorded(setting, sources[0], names)
    functions = functions_of(tree, cases, names)
    if not toolchain.typed:
        functions = [Function(name, tuple(cases.get(name, ()))) for name in names]
    elif all(function.obstacle for function in functions):
        why = "; ".join(f"{function.name}: {function.obstacle}" for function in functions[:3])
        raise UsageError(
            f"no function of {sources[0]} has types that {toolchain.title} shares with Python ({why}): annotate them "
            "with int, float, str, bool, list, dict[str, ...] or Optional"
        )
    target = _target(setting, place)
    return Translate(setting, target, _Plan(sources[0], source.text, toolchain, tuple(functions)))


def _language(instruction: str, files: list[str]) -> str:
    for name in files:
        if (language := language_of(name)) in LANGUAGES:
            return language
    words = instruction.lower()
    spoken = {name: found.start() for name in (*LANGUAGES, *NOT_YET) if (found := _spoken(name, words))}
    # "Go" is a word of its own: it means the language where nothing else is named, or after "to" or "into"
    if "go" in spoken and not re.search(r"\b(?:to|into|in) go\b", words) and len(spoken) > 1:
        del spoken["go"]
    wanted = min(spoken, key=spoken.__getitem__, default="")
    if wanted in LANGUAGES:
        return wanted
    if wanted or any(language_of(name) for name in files):
        raise UsageError(
            f"garzone cannot translate to {wanted or language_of(files[0])} yet; it can: {', '.join(LANGUAGES)}"
        )
    return "typescript"


def _spoken(name: str, words: str) -> re.Match[str] | None:
    return re.search(rf"(?<![\w+#]){re.escape(name)}(?![\w+#])", words)


def _toolchain(setting: Setting, language: str) -> Toolchain:
    """What compiles and runs a language here.

    Raises:
        UnavailableError: it is not installed; says what to install.
    """
    typescript = find_typescript(setting.stage.repository) if language == "typescript" else None
    if language == "typescript" and typescript is None:
        setting.notes.append("typescript was not found (node_modules, NODE_PATH, tsc on PATH): nothing can be compiled")
    typed = {"go": Go, "rust": Rust, "java": Java}
    toolchain = typed[language]() if language in typed else EcmaScript(language, typescript)
    if missing := toolchain.missing():
        raise UnavailableError(f"a translation to {toolchain.title} could not be run here: {missing}")
    return toolchain


def _target(setting: Setting, place: str) -> Target:
    if place not in setting.code.tracked:
        return new_target(place)
    source = setting.code.source(place) or SourceText("", "utf-8")
    return Target(place, setting.code.content(place), source, None)


async def _recorded(setting: Setting, path: str, names: Sequence[str]) -> dict[str, list[Case]]:
    stage = setting.stage
    shown = local(stage, path)
    words = " ".join(shlex.quote(word) for word in (shown, *names))
    command = f'{python_of(stage)} "$GARZONE_HARNESS/make_cases.py" {words}'
    files = {name: script(name) for name in ("make_cases.py", "shown.py")}
    run = await stage.run(command, {}, wall_s=CASES_S, harness=files, probed=False)
    setting.tell(CheckFinished("before", f"record {shown}", run.result.exit_code, run.result.duration_ms))
    found = cast("dict[str, list[Case]]", facts_of(run).get("cases") or {})
    if not run.passed:
        last = run.result.output.strip().splitlines()[-1:] or ["no output"]
        setting.notes.append(f"{path} could not be loaded to record what it does: {last[0][:160]}")
    return found


class Translate(Job):
    """Asks for a whole file."""

    def __init__(self, setting: Setting, target: Target, plan: _Plan) -> None:
        super().__init__(setting, [target])
        self._plan = plan

    @property
    def check(self) -> str:
        """What is run."""
        total = sum(len(function.cases) for function in self._plan.comparable)
        return f"{self._plan.source_path} and its translation on {total} inputs"

    def styles(self, small: bool) -> tuple[Style, ...]:
        """One way of asking."""
        return (Style.FULL,)

    def ask(self, target: Target, material: Material, style: Style) -> Question:
        """The source, and what must be kept."""
        toolchain = self._plan.toolchain
        return user(
            render(
                "translate",
                instruction=sentence(self.task.instruction),
                path=self._plan.source_path,
                new_path=target.path,
                language=toolchain.title,
                fence=toolchain.name,
                code=self._plan.text,
                names=self._plan.names,
                signatures=self._signatures(target),
                rules=toolchain.rules(target.path),
            )
        )

    def _signatures(self, target: Target) -> list[str]:
        toolchain = self._plan.toolchain
        return [toolchain.signature(f, target.path) for f in self._plan.comparable] if toolchain.typed else []

    def ask_again(self, first: Question, target: Target, attempt: Attempt) -> Question:
        """Where the two differ."""
        return again(
            first,
            target,
            attempt,
            complaint="That is not the same yet:",
            wanted="Write the whole file again in one Markdown code block, corrected.",
        )

    def expected_text(self, target: Target) -> str:
        """About as long as the source, in languages that say more than Python longer."""
        return self._plan.text * (2 if self._plan.toolchain.typed else 1) + " " * 400

    def read(self, target: Target, answer: str) -> Draft | EditMiss:
        """The new file."""
        toolchain = self._plan.toolchain
        blocks = [block for block in code_blocks(answer) if block.info.lower() not in ("python", "py")]
        if not blocks and code_blocks(answer):
            return EditMiss(f"Write {toolchain.title}, not Python.")
        edited = replace_text(target.path, "", answer)
        if isinstance(edited, EditMiss):
            return edited
        if complaint := toolchain.complaint(target.path, edited.text):
            return EditMiss(complaint)
        have = {d.span.name for d in definitions(target.path, edited.text)} | set(re.findall(r"\w+", edited.text))
        missing = [name for name in self._plan.names if not have & set(toolchain.spelled(name))]
        if missing:
            wanted = ", ".join(toolchain.spelled(name)[0] for name in missing[:4])
            return EditMiss(f"The translation has no {wanted}. Keep the names.")
        return drafted(target, edited.text)

    async def prove(self, target: Target, draft: Draft) -> Trial:
        """Compile it, then compare."""
        plan, stage = self._plan, self.setting.stage
        (edit,) = draft.edits
        outcome = await plan.toolchain.drive(stage, edit, plan.comparable, self.check)
        doubts = [*plan.toolchain.powers(edit), *outcome.doubts]
        if outcome.complaint:
            return Trial(False, output=outcome.complaint, num_failing=900, checks=outcome.checks)
        if outcome.results is None:
            return Trial(True, tuple(doubts), checks=outcome.checks)
        wrong, unlike = list[str](), list[str]()
        for function in plan.comparable:
            these, those = differences(function, outcome.results.get(function.name, []))
            wrong += these
            unlike += those
        if wrong:
            said = "\n".join([*wrong, *unlike][:4])
            if plan.toolchain.typed and "is not there" in said:
                said += "\nDeclare exactly:\n" + "\n".join(self._signatures(target))
            return Trial(False, output=said, num_failing=len(wrong), checks=outcome.checks)
        doubts += self._left_open(unlike)
        if outcome.run is not None:
            doubts += trace_doubts(outcome.run)
        if not stage.isolated:
            doubts.append("it ran without a sandbox")
        compared = {function.name: len(function.cases) for function in plan.comparable}
        total = sum(compared.values())
        strictly = ", compiles strictly" if plan.toolchain.name == "typescript" else ", compiles" * plan.toolchain.typed
        told = f"same outputs on {total - len(unlike)} inputs{strictly}"
        facts = {"inputs_compared": compared, "differences_beyond_the_examples": len(unlike)}
        # told to the model as well: what is unlike the examples may be meant all the same
        output = "\n".join(unlike[:3])
        return Trial(True, tuple(doubts), output=output, checks=outcome.checks, told=told, facts=facts)

    def _left_open(self, unlike: list[str]) -> list[str]:
        """What the comparison does not say."""
        plan = self._plan
        found = [f"{f.name} cannot be compared: {f.obstacle}" for f in plan.functions if f not in plan.comparable]
        few = [f for f in plan.comparable if len(f.cases) < MIN_CASES]
        if few:
            found.append(f"{few[0].name} was compared on {len(few[0].cases)} inputs, and {MIN_CASES} are wanted")
        if unlike:
            found.append(f"on {len(unlike)} inputs unlike those of the examples it differs: {unlike[0]}")
        return found

    def summary(self, target: Target, draft: Draft, trial: Trial, branch: str) -> str:
        """What was translated, and on what it is the same."""
        place = f"Translated {', '.join(self._plan.names[:3])} of {self._plan.source_path} to {target.path}"
        if trial.proved:
            return f"{place}: {trial.told}. Branch {branch}."
        told = f": {trial.told}" if trial.told else ""
        return f"{place}{told}; unproved: {'; '.join(trial.doubts)[:200]}. Read branch {branch}."

    def failed_summary(self, num_candidates: int) -> str:
        """Nothing was the same."""
        return f"No candidate of {num_candidates} compiles and does what {self._plan.source_path} does"
