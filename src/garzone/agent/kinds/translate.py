"""`translate`: a Python file into another language; TypeScript and JavaScript.

Proved means: it compiles (`tsc --noEmit --strict` for TypeScript) and gives the same outputs as the source on inputs
that were generated and recorded from the source: at least ten a function. An exception that the source raises by name
must be thrown, too.
"""

from __future__ import annotations

import ast
import json
import math
import re
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, cast

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
from garzone.agent.proof import Trial, new_powers, trace_doubts
from garzone.agent.syntax import names_in
from garzone.agent.target import SourceText, is_python, is_test, parse
from garzone.core.errors import RepositoryError, UnavailableError, UsageError
from garzone.core.task import Check

TSC_OPTIONS = "--noEmit --strict --target ES2022 --module commonjs --skipLibCheck --pretty false"
MIN_CASES = 10  # fewer say little
TOLERANCE = 1e-9  # relative; both sides compute in IEEE doubles, but may add in another order
CASES_S, DRIVE_S, COMPILE_S = 60.0, 30.0, 60.0
SUFFIXES = {"typescript": ".ts", "javascript": ".js"}
NOT_YET = ("go", "rust", "java", "c", "c++", "kotlin", "swift", "ruby")

Case = dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is translated: `names` are the functions others may call, `cases` what the source does with inputs."""

    source_path: str
    text: str
    language: str
    names: tuple[str, ...]
    cases: dict[str, list[Case]]
    typescript: Path | None


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
    language = _language(setting.task.instruction, others)
    place = others[0] if others else str(PurePosixPath(sources[0]).with_suffix(SUFFIXES[language]))
    if place in code.tracked and place not in setting.named:
        raise UsageError(f"{place} exists: name it with --file to replace it, or name another file")
    words = set(re.findall(r"\w+", setting.task.instruction))
    functions = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    public = [name for name in functions if not name.startswith("_")]
    names = tuple([name for name in public if name in words] or public)
    if not names:
        raise UsageError(f"{sources[0]} has no public function whose translation could be compared")
    typescript = find_typescript(setting.stage.repository) if language == "typescript" else None
    if language == "typescript" and typescript is None:
        setting.notes.append("typescript was not found (node_modules, NODE_PATH, tsc on PATH): nothing can be compiled")
    if shutil.which("node") is None:
        raise UnavailableError("node is not installed, so a translation could not be run: install Node.js 20 or later")
    cases = await _recorded(setting, sources[0], names)
    target = _target(setting, place)
    return Translate(setting, target, _Plan(sources[0], source.text, language, names, cases, typescript))


def _language(instruction: str, files: list[str]) -> str:
    for name in files:
        if (language := language_of(name)) in SUFFIXES:
            return language
    words = instruction.lower()
    for language in SUFFIXES:
        if language in words:
            return language
    wanted = next((name for name in NOT_YET if re.search(rf"(?<![\w+]){re.escape(name)}(?![\w+])", words)), None)
    if wanted or any(language_of(name) for name in files):
        raise UsageError(
            f"garzone cannot translate to {wanted or language_of(files[0])} yet; it can: {', '.join(SUFFIXES)}"
        )
    return "typescript"


def _target(setting: Setting, place: str) -> Target:
    if place not in setting.code.tracked:
        return new_target(place)
    source = setting.code.source(place) or SourceText("", "utf-8")
    return Target(place, setting.code.content(place), source, None)


async def _recorded(setting: Setting, path: str, names: tuple[str, ...]) -> dict[str, list[Case]]:
    stage = setting.stage
    prefix = stage.repository.prefix
    shown = path.removeprefix(f"{prefix}/") if prefix else path
    words = " ".join(shlex.quote(word) for word in (shown, *names))
    command = f'{python_of(stage)} "$GARZONE_HARNESS/make_cases.py" {words}'
    run = await stage.run(command, {}, wall_s=CASES_S, harness={"make_cases.py": script("make_cases.py")}, probed=False)
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
        return f"{self._plan.source_path} and its translation on {sum(map(len, self._plan.cases.values()))} inputs"

    def styles(self, small: bool) -> tuple[Style, ...]:
        """One way of asking."""
        return (Style.FULL,)

    def ask(self, target: Target, material: Material, style: Style) -> Question:
        """The source, and what must be kept."""
        return user(
            render(
                "translate",
                instruction=sentence(self.task.instruction),
                path=self._plan.source_path,
                new_path=target.path,
                language={"typescript": "TypeScript", "javascript": "JavaScript"}[self._plan.language],
                fence=self._plan.language,
                code=self._plan.text,
                names=self._plan.names,
            )
        )

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
        """About as long as the source."""
        return self._plan.text + " " * 400

    def read(self, target: Target, answer: str) -> Draft | EditMiss:
        """The new file."""
        blocks = [block for block in code_blocks(answer) if block.info.lower() not in ("python", "py")]
        if not blocks and code_blocks(answer):
            return EditMiss(f"Write {self._plan.language}, not Python.")
        edited = replace_text(target.path, "", answer)
        if isinstance(edited, EditMiss):
            return edited
        have = set(names_in(target.path, edited.text))
        camel = {name: re.sub(r"_+(\w)", lambda found: found[1].upper(), name) for name in self._plan.names}
        missing = [name for name in self._plan.names if name not in have and camel[name] not in have]
        if missing:
            return EditMiss(f"The translation has no {', '.join(missing[:4])}. Keep the names.")
        return drafted(target, edited.text)

    async def prove(self, target: Target, draft: Draft) -> Trial:
        """Compile it, then compare."""
        plan, stage = self._plan, self.setting.stage
        (edit,) = draft.edits
        doubts = [what for what in new_powers(edit) if not re.search(r"\bconstructor\b|prototype", what)]
        checks: list[Check] = []
        prefix = stage.repository.prefix
        shown = shlex.quote(target.path.removeprefix(f"{prefix}/") if prefix else target.path)
        visible = (plan.typescript,) if plan.typescript else ()
        if plan.language == "typescript":
            if plan.typescript is None:
                return Trial(True, (*doubts, "typescript is not installed, so it was neither compiled nor run"))
            compiler = shlex.quote(str(plan.typescript / "lib/tsc.js"))
            command = f"node {compiler} {TSC_OPTIONS} --moduleResolution node10 {shown}"
            run = await stage.run(command, draft.contents, wall_s=COMPILE_S, probed=False, visible=visible)
            if "TS5107" in run.result.output or "TS6046" in run.result.output or "TS5108" in run.result.output:
                command = command.replace(" --moduleResolution node10", "")  # later compilers know it no more
                run = await stage.run(command, draft.contents, wall_s=COMPILE_S, probed=False, visible=visible)
            checks.append(run.as_check(f"tsc --noEmit --strict {shown}"))
            if not run.passed:
                return Trial(False, output=run.result.output[:1200], num_failing=1000, checks=tuple(checks))
        given = {name: [case["arguments"] for case in cases] for name, cases in plan.cases.items()}
        files = {name: script(name) for name in ("drive_js.cjs", "load_js.cjs")} | {
            "cases.json": json.dumps(given).encode()
        }
        loader = shlex.quote(str(plan.typescript / "lib/typescript.js")) if plan.typescript else "-"
        command = f'node "$GARZONE_HARNESS/drive_js.cjs" {shown} "$GARZONE_HARNESS/cases.json" {loader}'
        run = await stage.run(command, draft.contents, wall_s=DRIVE_S, harness=files, probed=False, visible=visible)
        checks.append(run.as_check(self.check))
        results = cast("dict[str, list[Case]]", facts_of(run).get("results") or {})
        if not run.passed or (plan.cases and not results):
            return Trial(False, output=_told(run.result.output), num_failing=900, checks=tuple(checks))
        differences = [
            text for name, cases in plan.cases.items() for text in _differences(name, cases, results.get(name, []))
        ]
        if differences:
            said = "\n".join(differences[:4])
            return Trial(False, output=said, num_failing=len(differences), checks=tuple(checks))
        compared = {name: len(plan.cases.get(name, [])) for name in plan.names}
        few = [f"{name} was compared on {count} inputs" for name, count in compared.items() if count < MIN_CASES]
        doubts += [f"{few[0]}, and {MIN_CASES} are wanted"] if few else []
        doubts += trace_doubts(run)
        if not stage.isolated:
            doubts.append("it ran without a sandbox")
        total = sum(compared.values())
        told = f"same outputs on {total} inputs" + (", compiles strictly" if plan.language == "typescript" else "")
        return Trial(True, tuple(doubts), checks=tuple(checks), told=told, facts={"inputs_compared": compared})

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


def _told(output: str) -> str:
    """What node says, without where it keeps itself."""
    lines = [line for line in output.splitlines() if line.strip() and "node:internal" not in line]
    return "It cannot be run:\n" + "\n".join(lines[:8])[:800]


def _differences(name: str, cases: list[Case], results: list[Case]) -> list[str]:
    found: list[str] = []
    for number, case in enumerate(cases):
        result = results[number] if number < len(results) else {"missing": True}
        call = f"{name}({', '.join(json.dumps(a, ensure_ascii=False) for a in case['arguments'])[:200]})"
        if result.get("missing"):
            return [f"{name} is not there or no function"]
        if "raises" in case:
            if "throws" not in result:
                instead = json.dumps(result.get("result"))[:120]
                found.append(f"{call} must throw ({case['raises']} in Python), and gives {instead}")
        elif "throws" in result:
            found.append(f"{call} throws {result['throws']}, and must give {json.dumps(case['result'])[:120]}")
        elif not same_value(case["result"], result.get("result")):
            wanted, given = json.dumps(case["result"])[:160], json.dumps(result.get("result"))[:160]
            found.append(f"{call} must give {wanted}, and gives {given}")
    return found


def same_value(wanted: Any, given: Any) -> bool:
    """Whether two values that came through JSON are equal, numbers within rounding."""
    if isinstance(wanted, bool) or isinstance(given, bool) or wanted is None or given is None:
        return wanted is given
    if isinstance(wanted, int | float) and isinstance(given, int | float):
        return math.isclose(wanted, given, rel_tol=TOLERANCE, abs_tol=1e-12)
    if isinstance(wanted, list) and isinstance(given, list):
        ours, theirs = cast("list[Any]", wanted), cast("list[Any]", given)
        return len(ours) == len(theirs) and all(same_value(a, b) for a, b in zip(ours, theirs, strict=True))
    if isinstance(wanted, dict) and isinstance(given, dict):
        mine, other = cast("dict[str, Any]", wanted), cast("dict[str, Any]", given)
        return mine.keys() == other.keys() and all(same_value(mine[key], other[key]) for key in mine)
    return bool(wanted == given)
