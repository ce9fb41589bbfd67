"""`tests`: a test file for code that is taken as right.

Proved means: the tests pass on the code as it is, fail on at least 60 % of its mutants, reach lines (or kill mutants)
that the tests which were there did not, look at the code only by calling it, and do not repeat it.
"""

from __future__ import annotations

import ast
import posixpath
import re
from dataclasses import replace
from pathlib import PurePosixPath

from garzone.agent.adequacy import Kills, kill_with_command, kill_with_tests, lines_reached
from garzone.agent.changes import Draft, FileEdit
from garzone.agent.context import Target
from garzone.agent.edit import EditMiss, code_blocks
from garzone.agent.evidence import too_few_inputs
from garzone.agent.forgotten import with_imports
from garzone.agent.kinds import Attempt, Job, Material, Question, Setting, Style
from garzone.agent.kinds.asking import again, language_of, sentence, user
from garzone.agent.mutants import Mutant, mutants_of
from garzone.agent.prompts import render
from garzone.agent.proof import WATCH_FACTOR, Trial, failing_output, trace_doubts, what_passed
from garzone.agent.stage import Run
from garzone.agent.syntax import definitions, first_error, is_source, num_errors
from garzone.agent.target import Function, SourceText, Span, functions, is_python, is_test, node_at, parse, split_lines
from garzone.agent.testfiles import import_line, module_name, new_test_path, test_command
from garzone.agent.vet import objections
from garzone.core.errors import RepositoryError, UsageError

PROVED_SCORE = 0.6
REPEATED = 0.5  # share of the code's statements that a test may also hold
_OF_A_TEST = re.compile(
    r"newly uses (?:(?:test|it|describe|expect)\s*[.(]|node:(?:test|assert)|(?:from|import|require\s*\()\s*['\"]assert)"
)
_ALLOWED_IMPORTS = (
    "pytest",
    "unittest",
    "math",
    "re",
    "json",
    "datetime",
    "decimal",
    "fractions",
    "collections",
    "itertools",
)


async def open_tests(setting: Setting) -> Job:
    """Find what to test, where the tests go, and what runs them."""
    code = setting.code
    subjects = [name for name in setting.named if not is_test(name)]
    if not subjects:
        words = set(re.findall(r"\w+", setting.task.instruction))
        sources = [name for name in code.tracked if is_source(name) and not is_test(name)]
        subjects = [name for name in sources if any(span.name in words for span in code.spans(name))]
    if not subjects:
        raise UsageError("say which file to test: --file PATH (and --file NEW_TEST_FILE where the tests shall go)")
    subject = subjects[0]
    source = code.source(subject)
    if source is None or not is_source(subject):
        raise RepositoryError(f"{subject} is not source code that garzone reads")
    place = next(iter((*setting.new, *(name for name in setting.named if is_test(name)))), None)
    place = place or new_test_path(subject, code.tracked)
    command = test_command(setting.check, place, setting.stage.repository)
    if command is None:
        raise UsageError(
            f"how {place} would be run is not known: name a check that takes test files, like --check pytest"
        )
    there = code.source(place) if place in code.tracked else None
    target = Target(
        place,
        code.content(place) if there else b"",
        there or SourceText("", "utf-8"),
        None,
        is_new=there is None,
    )
    spans = _spans(setting, subject)
    mutants = mutants_of(subject, source.text, spans)
    if not mutants:
        raise UsageError(f"{subject} has no code whose tests could be judged")
    return WriteTests(setting, target, subject, spans=spans, mutants=mutants, command=command)


def _spans(setting: Setting, subject: str) -> list[Span]:
    """The functions to test: those the instruction names, else all."""
    words = set(re.findall(r"\w+", setting.task.instruction))
    spans = setting.code.spans(subject)
    return [span for span in spans if span.name in words] or spans


class WriteTests(Job):
    """Asks for a whole test file."""

    def __init__(
        self, setting: Setting, target: Target, subject: str, *, spans: list[Span], mutants: list[Mutant], command: str
    ) -> None:
        super().__init__(setting, [target])
        source = setting.code.source(subject)
        assert source is not None
        self._subject, self._text, self._spans, self._mutants = subject, source.text, spans, mutants
        self._command = command
        self._reached_before: set[int] | None = None
        self._killed_before: Kills | None = None

    @property
    def check(self) -> str:
        """What runs the new tests."""
        return self._command

    def material(self, target: Target) -> Material:
        """An existing test file of the repository, for its habits."""
        if not target.is_new:
            return Material(conventions=target.code[:1500])
        others = [
            name
            for name in self.setting.code.tracked
            if is_test(name) and name.endswith(PurePosixPath(target.path).suffix)
        ]
        # the nearest: most folders in common, and the most alike in name
        others.sort(key=lambda name: -len(posixpath.commonprefix([name, target.path])))
        source = self.setting.code.source(others[0]) if others else None
        return Material(conventions=source.text[:800] if source else "")

    def styles(self, small: bool) -> tuple[Style, ...]:
        """Habits of the repository distract small models."""
        return (Style.BRIEF,) if small else (Style.FULL, Style.BRIEF)

    def ask(self, target: Target, material: Material, style: Style) -> Question:
        """The code, and how its tests shall look."""
        language = language_of(self._subject)
        return user(
            render(
                "tests",
                instruction=sentence(self.task.instruction),
                path=self._subject,
                test_path=target.path,
                language=language,
                code=self._text,
                names=[span.qualname for span in self._spans][:12],
                runner=_runner(self._command, language),
                import_line=self._import_line(target),
                conventions=material.conventions if style is Style.FULL else "",
            )
        )

    def _import_line(self, target: Target) -> str:
        language = language_of(self._subject)
        names = list(dict.fromkeys(span.qualname.partition(".")[0] for span in self._spans))
        return import_line(self._subject, target.path, language, names[:12], self.setting.code.tracked)

    def ask_again(self, first: Question, target: Target, attempt: Attempt) -> Question:
        """What the tests said of code that is taken as right."""
        return again(
            first,
            target,
            attempt,
            complaint="The code is right, but these tests say:",
            wanted="Write the whole test file again in one Markdown code block, corrected.",
        )

    def expected_text(self, target: Target) -> str:
        """Tests are about twice as long as what they test."""
        return target.code + 2 * self._text[:3000]

    def read(self, target: Target, answer: str) -> Draft | EditMiss:
        """The test file; it must parse, test something, and import what it tests."""
        blocks = [block.code for block in code_blocks(answer.replace("\r\n", "\n")) if block.code.strip()]
        text = max(blocks, key=len) if blocks else ""
        if not text:
            return EditMiss("There was no code block in the answer.")
        python = is_python(target.path)
        if python and parse(text) is None:
            text = _parsing_part(text)
            if not text:
                return EditMiss("The test file is not valid Python.")
        if not python and num_errors(target.path, text):
            return EditMiss(f"The test file does not parse: {first_error(target.path, text)}.")
        if not re.search(r"\bassert|\bexpect\(|\.raises\(|\bt\.(?:Error|Fatal)", text):
            return EditMiss("The test file asserts nothing.")
        if python:
            text = _as_tests(_without_copies(text, {span.name for span in self._spans}))
        if python and not _imports(text, module_name(self._subject, self.setting.code.tracked)):
            text = f"{self._import_line(target)}\n\n\n{text}"
        text = with_imports(target.path, target.source.text, text, also=("pytest", "unittest"))
        if not target.is_new:
            missing = _test_names(target.code) - _test_names(text)
            if missing:
                return EditMiss(
                    f"The test file leaves out {', '.join(sorted(missing)[:4])}. Keep the tests that are there."
                )
        edit = FileEdit(target.path, target.source.text, text, text.encode(), target.is_new)
        return Draft((edit,))

    def opening(self, target: Target) -> str | None:
        """The import of what is tested."""
        return f"{self._import_line(target)}\n" if target.is_new else ""

    async def prove(self, target: Target, draft: Draft) -> Trial:
        """Pass on the code, fail on its mutants, reach something new."""
        stage = self.setting.stage
        run = await stage.run(self._command, draft.contents)
        dropped = 0
        if not run.passed and (kept := _without_failing(draft, run)):
            again_run = await stage.run(self._command, kept[0].contents)
            if again_run.passed:
                draft, dropped, run = kept[0], kept[1], again_run
        check = run.as_check(self._command)
        if not run.passed:
            failing = max(len(run.evidence.failed), 1)
            return Trial(False, output=failing_output(run, stage.wall_s), num_failing=failing, checks=(check,))
        (edit,) = draft.edits
        doubts = [*_powers(edit, self._subject), *trace_doubts(run)]
        if not stage.isolated:
            doubts.append("it ran without a sandbox")
        if is_python(target.path) and not run.evidence.passed:
            doubts.append("no test was seen to pass")
        if share := _repeated(self._subject, self._text, self._spans, edit.after):
            doubts.append(f"it repeats {share:.0%} of the code it tests")
        kills = await self._kills(target, draft)
        if kills.trouble:
            doubts.append(kills.trouble)
        elif kills.score < PROVED_SCORE:
            doubts.append(f"it notices {len(kills.killed)} of {kills.tried} mutants, and {PROVED_SCORE:.0%} are wanted")
        news, what_is_new = await self._news(draft, kills)
        if not news:
            doubts.append("it reaches nothing that the tests which were there did not")
        if not doubts:
            doubts += await self._too_few_inputs(draft)
        facts = {
            "mutation_score": round(kills.score, 3),
            "mutants": kills.tried,
            "killed": len(kills.killed),
            "survived": [f"line {m.line}: {m.what}" for m in kills.survived[:10]],
            "new": what_is_new,
        }
        if dropped:
            facts["tests_dropped"] = dropped
        left_out = f", {dropped} failing left out" if dropped else ""
        told = f"{what_passed(run)}, {len(kills.killed)} of {kills.tried} mutants noticed, {what_is_new}{left_out}"
        return Trial(True, tuple(doubts), checks=(check,), told=told, facts=facts, draft=draft)

    async def _kills(self, target: Target, draft: Draft) -> Kills:
        stage = self.setting.stage
        if is_python(target.path) and "pytest" in self._command:
            return await kill_with_tests(stage, self._subject, self._mutants, [target.path], draft.contents)
        return await kill_with_command(stage, self._subject, self._mutants, self._command, draft.contents)

    async def _too_few_inputs(self, draft: Draft) -> list[str]:
        """Whether Python code is tried on one or two inputs only: a single one may notice most mutants by chance."""
        stage = self.setting.stage
        if not is_python(self._subject):
            return []
        run = await stage.run(
            self._command, draft.contents, wall_s=WATCH_FACTOR * stage.wall_s, watched=[self._subject]
        )
        return too_few_inputs(run.evidence, "") if run.passed else ["the tests do not pass under observation"]

    async def _news(self, draft: Draft, kills: Kills) -> tuple[bool, str]:
        """Whether the new tests see what the old ones did not, and what."""
        check, stage = self.setting.check, self.setting.stage
        old_tests = [name for name in self.setting.code.tracked if is_test(name) and is_source(name)]
        if check is None or not old_tests:
            return True, "the first tests of it"
        reached = await lines_reached(stage, self._subject, self._command, draft.contents)
        if reached is not None:
            if self._reached_before is None:
                self._reached_before = await lines_reached(stage, self._subject, check, {})
            if self._reached_before is not None:
                wanted = {n for span in self._spans for n in range(span.def_line + 1, span.last_line + 1)}
                new = (reached - self._reached_before) & wanted
                if new:
                    return True, f"{len(new)} lines reached for the first time"
        # every line may have been reached before and hardly been looked at
        if self._killed_before is None:
            self._killed_before = await kill_with_command(stage, self._subject, self._mutants, check, {})
        missed = {mutant.text for mutant in self._killed_before.survived}
        first = [mutant for mutant in kills.killed if mutant.text in missed]
        return bool(first), f"{len(first)} mutants noticed for the first time"

    def summary(self, target: Target, draft: Draft, trial: Trial, branch: str) -> str:
        """What was written, and how much it notices."""
        place = f"Wrote {target.path} for {self._subject}"
        if trial.proved:
            return f"{place}: passes{trial.told}. Branch {branch}."
        return f"{place}: passes, but unproved: {'; '.join(trial.doubts)[:220]}. Read branch {branch}."

    def failed_summary(self, num_candidates: int) -> str:
        """Tests that do not pass on the code are of no use."""
        return f"No test file of {num_candidates} passes on {self._subject} as it is"

    def subject(self, target: Target) -> str:
        """The first line of the commit where the task has no instruction."""
        return f"test {self._subject}"


def _runner(command: str, language: str) -> str:
    if language == "python":
        return "pytest" if "pytest" in command else "unittest"
    return next((name for name in ("vitest", "jest") if name in command), "node:test")


def _imports(text: str, module: str) -> bool:
    return bool(re.search(rf"^\s*(?:from|import)\s+{re.escape(module)}\b", text, re.MULTILINE))


def _parsing_part(text: str) -> str:
    """The longest beginning of a cut-off file that parses; "" where little is left."""
    lines = text.splitlines()
    for end in range(len(lines) - 1, len(lines) // 3, -1):
        part = "\n".join(lines[:end]) + "\n"
        if parse(part):
            return part
    return ""


def _without_copies(text: str, names: set[str]) -> str:
    """A test file without definitions of what it should import: models like to write them out again."""
    tree = parse(text)
    lines = split_lines(text)
    for node in reversed(tree.body if tree else []):
        if isinstance(node, Function | ast.ClassDef) and node.name in names and not node.name.startswith("test"):
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            del lines[first - 1 : node.end_lineno]
    return "".join(lines)


def _as_tests(text: str) -> str:
    """Bare assertions at the top of a file as tests, one each, so that each can be judged by itself."""
    tree = parse(text)
    if tree is None or any(isinstance(n, Function) and n.name.startswith("test") for n in ast.walk(tree)):
        return text
    lines = split_lines(text)
    number = 0
    for node in [n for n in tree.body if isinstance(n, ast.Assert)]:
        number += 1
        at = node.lineno - 1
        lines[at] = f"\n\ndef test_case_{number}():\n    {lines[at]}"
        for row in range(node.lineno, node.end_lineno or node.lineno):
            lines[row] = f"    {lines[row]}"
    result = "".join(lines)
    return result if number and parse(result) else text


def _test_names(text: str) -> set[str]:
    tree = parse(text)
    return {n.name for n in ast.walk(tree) if isinstance(n, Function) and n.name.startswith("test")} if tree else set()


def _without_failing(draft: Draft, run: Run) -> tuple[Draft, int] | None:
    """The draft without the tests that failed, and how many those are; None where nothing would be left."""
    (edit,) = draft.edits
    failed = {name.rpartition("::")[2].partition("[")[0].rpartition(".")[2] for name in run.evidence.failed}
    if not is_python(edit.path) or not edit.is_new or not run.evidence.passed or not failed:
        return None
    tree = parse(edit.after)
    lines = split_lines(edit.after)
    dropped = 0
    for span in reversed(functions(tree) if tree else []):
        if span.name in failed:
            del lines[span.first_line - 1 : span.last_line]
            dropped += 1
    text = "".join(lines)
    if not dropped or parse(text) is None or not _test_names(text):
        return None
    return Draft((replace(edit, after=text, content=text.encode()),)), dropped


# what pytest hands out that reads the code or the runner, or puts something else in the code's place
_POWERFUL_FIXTURES = frozenset(("request", "pytestconfig", "pytester", "testdir", "tmp_path_factory", "tmpdir_factory"))
_POWERFUL_ATTRIBUTES = frozenset(
    ("setattr", "delattr", "setitem", "syspath_prepend", "read_text", "read_bytes", "cwd", "rootpath", "rootdir")
) | {"getrepr", "add_marker"}


def _runner_powers(text: str) -> list[str]:
    """Ways to the code's text, and to the runner, that lead through what the runner itself gives to tests."""
    tree = parse(text)
    found: list[str] = []
    for node in ast.walk(tree) if tree else ():
        if isinstance(node, Function):
            taken = {a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)}
            found += [f"the test file takes the fixture {name}" for name in sorted(taken & _POWERFUL_FIXTURES)]
        elif isinstance(node, ast.Attribute) and node.attr in _POWERFUL_ATTRIBUTES:
            found.append(f"the test file newly uses .{node.attr}")
    return found


def _powers(edit: FileEdit, subject: str) -> list[str]:
    """What a test file may do besides calling the code: nothing that reads, patches or ends."""
    module = PurePosixPath(subject).stem
    found = [what for what in _runner_powers(edit.after) if what not in _runner_powers(edit.before)]
    for what in objections(edit.path, edit.before, edit.after):
        imported = re.fullmatch(r"newly imports (\S+)(?: from (\S+))?", what)
        source = (imported[2] or imported[1]) if imported else ""
        allowed = (
            source.partition(".")[0] in _ALLOWED_IMPORTS
            or source.rpartition(".")[2] == module
            or source.endswith(module)
        )
        if imported and allowed and "mock" not in what:
            continue
        used = re.fullmatch(r"newly uses (\S+)(?: \((\S+)\))?", what)
        of_runner = used and (used[2] or used[1]).partition(".")[0] in ("pytest", "unittest") and "mock" not in what
        if used and of_runner and not re.search(r"skip|xfail|exit|fail$|monkeypatch|main", used[1]):
            continue
        if what.startswith("newly defines test_"):
            continue
        if not is_python(edit.path) and re.match(_OF_A_TEST, what):
            continue
        found.append(f"the test file {what}")
    return found


def _repeated(path: str, code: str, spans: list[Span], tests: str) -> float:
    """Share of the code's statements that the tests hold too; 0 below what may be chance."""
    if not is_python(path):
        bodies = {
            line.strip()
            for d in definitions(path, code)
            for line in code.splitlines()[d.span.def_line : d.span.last_line]
        }
        wanted = {line for line in bodies if len(line) > 12}
        said = {line.strip() for line in tests.splitlines()}
        share = len(wanted & said) / len(wanted) if len(wanted) >= 3 else 0.0
        return share if share >= REPEATED else 0.0
    tree, test_tree = parse(code), parse(tests)
    if tree is None or test_tree is None:
        return 0.0
    held = {_shape(node) for node in ast.walk(test_tree) if isinstance(node, ast.stmt | ast.comprehension)}
    statements: list[str] = []
    for span in spans:
        node = node_at(tree, span)
        body = [n for n in ast.walk(node) if isinstance(n, ast.stmt) and n is not node] if node else []
        statements += [_shape(n) for n in body if len(ast.dump(n)) > 80 and not _is_docstring(n)]
    if len(statements) < 2:
        return 0.0
    share = sum(dump in held for dump in statements) / len(statements)
    return share if share >= REPEATED else 0.0


def _shape(node: ast.AST) -> str:
    """A statement as text, whatever its variables are called: renaming them is no work of one's own."""
    return re.sub(r"Name\(id='\w+'", "Name(id='_'", ast.dump(node))


def _is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
