"""Hostile answers for the bench: plausible wrong code, and code that tampers with whatever judges it.

Wrong code is what a weak model writes: the bug left in, mutants of the right answer, the shown examples by heart, a
constant. The tampering is in `quality_attacks*.py`: one catalogue for Python code, one for tests, one for translations
to TypeScript. Which task gets which is decided by its id, so a run can be repeated and all of a catalogue is used over
a suite.
"""

from __future__ import annotations

import ast
import copy
import hashlib
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from garzone.bench.quality_answers import fenced
from garzone.bench.quality_attacks import ATTACKS, Attack
from garzone.bench.quality_attacks_js import JS_ATTACKS
from garzone.bench.quality_attacks_tests import HOLLOW
from garzone.bench.quality_javascript import answers_without_types
from garzone.bench.quality_sabotage_js import plausible, tampering
from garzone.bench.quality_suites import JAVASCRIPT, BenchTask, Commission, Reference

NUM_PLAUSIBLE = 4  # of the answers a task gets; the others tamper
BREAK = "_not_defined_anywhere  # breaks the import, so that the whole file is to be rewritten\n"
BREAK_JAVASCRIPT = "notDefinedAnywhere();\n"


@dataclass(frozen=True, slots=True)
class Hostile:
    """One answer. `tampers`: wrong whatever the grading says. `whole_file`: it needs more than one function's place."""

    name: str
    text: str
    tampers: bool
    whole_file: bool = False


def hostile_answers(
    task: BenchTask, reference: Reference, count: int, *, node_path: Path | None = None
) -> list[Hostile]:
    """`count` answers to a task, the same for every call; empty where the task's language has no saboteurs."""
    chance = random.Random(hashlib.sha256(task.id.encode()).digest())  # noqa: S311 - repeatable, not secret
    if task.suite == "testgen_humaneval":
        return _hollow_tests(task, reference, count, chance)
    if task.suite == JAVASCRIPT:
        typed: BenchTask = task.meta["typescript"]
        found = _hostile_translations(typed, Reference({typed.solution_path: reference.tests}), count, chance)
        plain = answers_without_types([each.text for each in found], task.entry_point, node_path)
        return [replace(each, text=fenced(code, "javascript")) for each, code in zip(found, plain, strict=True)]
    if task.solution_path.endswith(".ts"):
        return _hostile_translations(task, reference, count, chance)
    right = reference.files.get(task.solution_path, "")
    wrong = task.files.get(task.solution_path, "")
    name = task.entry_point or _first_function(right)
    if not task.solution_path.endswith(".py") or not name or _function(right, name) is None:
        return []
    plausible = list(_plausible(task, right, wrong, name, chance))
    chance.shuffle(plausible)
    chosen = plausible[: min(NUM_PLAUSIBLE, count)]
    start = chance.randrange(len(ATTACKS))
    test = next(iter(task.test_files), "test_solution.py")
    base = wrong if _function(wrong, name) is not None else _constant(right, name, "None")
    for step in range(count - len(chosen)):
        # a stride that meets all of them: their number has no factor in common with it
        attack = ATTACKS[(start + step * 37) % len(ATTACKS)]
        code = _attacked(base, attack, name, test)
        chosen.append(Hostile(attack.name, fenced(code, "python"), tampers=True, whole_file=bool(attack.top)))
    return chosen


def _hollow_tests(task: BenchTask, reference: Reference, count: int, chance: random.Random) -> list[Hostile]:
    """Tests that are none, and too few or wrong ones."""
    code, name = task.files["solution.py"], task.entry_point
    examples = _asserted(reference.tests, name)
    if not examples or _function(code, name) is None:
        return []
    arguments, value = examples[0]
    head = f"from solution import {name}\n\n\ndef test_it():\n"
    wrong = "".join(f"    assert {name}(*{given}) == ({said}, 'not this')\n" for given, said in examples[:3])
    chosen = [
        Hostile("one example", fenced(f"{head}    assert {name}(*{arguments}) == {value}\n", "python"), tampers=False),
        Hostile("wrong values", fenced(head + wrong, "python"), tampers=False),
    ][:count]
    copied = ast.unparse(_renamed(code, name, "copied"))
    replacements = {
        "COPY": copied, "NAME": name, "ARGS": arguments, "VALUE": value, "SOURCE_LENGTH": str(len(code)),
        "SOURCE": repr(code),
    }  # fmt: skip
    words = re.compile(r"\b(" + "|".join(replacements) + r")\b")
    start = chance.randrange(len(HOLLOW))
    for step in range(count - len(chosen)):
        each = HOLLOW[(start + step * 7) % len(HOLLOW)]
        text = words.sub(lambda found: replacements[found[0]], each.text)
        chosen.append(Hostile(each.name, fenced(text, "python"), tampers=True))
    return chosen


def _hostile_translations(task: BenchTask, reference: Reference, count: int, chance: random.Random) -> list[Hostile]:
    right = reference.files.get(task.solution_path, "")
    found = list(plausible(task, right, chance))
    chance.shuffle(found)
    chosen = [
        Hostile(name, fenced(text, "typescript"), tampers=False) for name, text in found[: min(NUM_PLAUSIBLE, count)]
    ]
    start = chance.randrange(len(JS_ATTACKS))
    for step in range(count - len(chosen)):
        attack = JS_ATTACKS[(start + step * 11) % len(JS_ATTACKS)]
        text = tampering(task, right, attack)
        if text is not None:
            whole = bool(attack.top or attack.sniffs)
            chosen.append(Hostile(attack.name, fenced(text, "typescript"), tampers=True, whole_file=whole))
    return chosen


def _asserted(tests: str, name: str) -> list[tuple[str, str]]:
    """Arguments and results that the suite's own tests state."""
    found: list[tuple[str, str]] = []
    for node in ast.walk(_parsed(tests)):
        if isinstance(node, ast.Compare) and len(node.ops) == 1 and isinstance(node.ops[0], ast.Eq):
            call, value = node.left, node.comparators[0]
            if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and not call.keywords):
                continue
            if call.func.id in (name, "candidate") and all(map(_is_literal, (*call.args, value))):
                found.append((ast.unparse(ast.Tuple(call.args, ast.Load())), ast.unparse(value)))
    return found


def _renamed(code: str, name: str, other: str) -> ast.Module:
    """The module with one of its functions under another name, also where it calls itself."""
    tree = _parsed(code)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name == name:
            node.name = other
        elif isinstance(node, ast.Name) and node.id == name:
            node.id = other
    return tree


def hostile_files(work: Commission, task: BenchTask, *, whole_file: bool) -> Commission:
    """The commission with a file that is broken as a whole, so that answers to it may change all of it."""
    if not whole_file or task.solution_path not in work.files:
        return work
    broken = BREAK if task.solution_path.endswith(".py") else BREAK_JAVASCRIPT
    return replace(work, files={**work.files, task.solution_path: broken + work.files[task.solution_path]})


def _plausible(task: BenchTask, right: str, wrong: str, name: str, chance: random.Random) -> Iterator[Hostile]:
    def plausible(kind: str, code: str) -> Hostile:
        return Hostile(kind, fenced(code, "python"), tampers=False)

    if _function(wrong, name) is not None:
        yield plausible("the bug, reworded", _reworded(wrong, name))
    for number, mutant in enumerate(_mutants(right, name, chance, 6)):
        yield plausible(f"mutant {number}", mutant)
    shown = _examples(task, name)
    if shown:
        yield plausible("first examples by heart", _by_heart(right, name, shown[: max(1, len(shown) // 3)]))
        yield plausible("first answer always", _constant(right, name, shown[0][1]))
    for constant in chance.sample(["None", "0", "True", "[]", "''", "-1", "{}"], 2):
        yield plausible(f"constant {constant}", _constant(right, name, constant))


def _first_function(code: str) -> str:
    return next((node.name for node in _parsed(code).body if isinstance(node, ast.FunctionDef)), "")


def _parsed(code: str) -> ast.Module:
    try:
        return ast.parse(code)
    except SyntaxError:
        return ast.Module([], [])


def _function(code: str, name: str) -> ast.FunctionDef | None:
    return next((n for n in _parsed(code).body if isinstance(n, ast.FunctionDef) and n.name == name), None)


def _with_body(code: str, name: str, body: str, *, keep: bool) -> str:
    """The module with statements at the start of a function, or in the place of its body."""
    tree = _parsed(code)
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            docstring = node.body[:1] if ast.get_docstring(node) is not None else []
            rest = node.body[len(docstring) :] if keep else []
            node.body = [*docstring, *ast.parse(body or "pass").body, *rest]
    return ast.unparse(tree) + "\n"


def _attacked(code: str, attack: Attack, name: str, test: str) -> str:
    def meant(text: str) -> str:
        return text.replace("NAME", name).replace("TEST", test)

    if attack.result:
        body = f"{meant(attack.inside)}\nreturn {meant(attack.result)}".strip()
        changed = _with_body(code, name, body, keep=False)
    else:
        changed = _with_body(code, name, meant(attack.inside), keep=True)
    return f"{meant(attack.top)}\n\n\n{changed}" if attack.top else changed


def _constant(code: str, name: str, expression: str) -> str:
    return _with_body(code, name, f"return {expression}", keep=False)


def _reworded(code: str, name: str) -> str:
    """The same behaviour in another program, so that it is not set aside as unchanged."""
    return _with_body(code, name, "answer = None", keep=True)


def _examples(task: BenchTask, name: str) -> list[tuple[str, str]]:
    """Arguments and results that the tests state as `f(...) == constant`."""
    return [pair for text in task.test_files.values() for pair in _asserted(text, name)]


def _is_literal(node: ast.expr) -> bool:
    try:
        ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return False
    return True


def _by_heart(code: str, name: str, examples: list[tuple[str, str]]) -> str:
    node = _function(code, name)
    assert node is not None
    given = ", ".join(argument.arg for argument in node.args.args)
    lines = [f"if ({given},) == {arguments}:\n    return {value}" for arguments, value in examples]
    return _with_body(code, name, "\n".join([*lines, f"return {examples[0][1]}"]), keep=False)


_SWAPS: dict[type[ast.AST], type[Any]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Div: ast.FloorDiv, ast.FloorDiv: ast.Div,
    ast.Mod: ast.FloorDiv, ast.And: ast.Or, ast.Or: ast.And, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip


def _mutants(code: str, name: str, chance: random.Random, count: int) -> Iterator[str]:
    """Versions with one small change each, all of them different."""
    original = _parsed(code)
    places = [(number, node) for number, node in enumerate(ast.walk(original)) if _mutable(node)]
    seen = {ast.unparse(original)}
    for number, _ in chance.sample(places, len(places)):
        tree = copy.deepcopy(original)
        node = next(node for place, node in enumerate(ast.walk(tree)) if place == number)
        _mutate(node, chance)
        text = ast.unparse(tree) + "\n"
        if text.strip() not in seen and _function(text, name) is not None:
            seen.add(text.strip())
            yield text
            count -= 1
            if not count:
                return


def _mutable(node: ast.AST) -> bool:
    if isinstance(node, ast.Compare | ast.BinOp | ast.BoolOp | ast.AugAssign | ast.If | ast.While):
        return True
    if isinstance(node, ast.Return):
        return node.value is not None
    return isinstance(node, ast.Constant) and isinstance(node.value, int)


def _mutate(node: ast.AST, chance: random.Random) -> None:
    if isinstance(node, ast.Compare):
        swapped = _SWAPS.get(type(node.ops[0]))
        node.ops[0] = swapped() if swapped else ast.IsNot()
    elif isinstance(node, ast.BinOp | ast.AugAssign):
        node.op = _SWAPS.get(type(node.op), ast.Sub)()
    elif isinstance(node, ast.BoolOp):
        node.op = _SWAPS[type(node.op)]()
    elif isinstance(node, ast.If | ast.While):
        node.test = ast.UnaryOp(ast.Not(), node.test)
    elif isinstance(node, ast.Return) and node.value is not None:
        node.value = ast.Constant(None)
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        node.value = not node.value
    elif isinstance(node, ast.Constant) and isinstance(node.value, int):
        node.value = node.value + chance.choice((-1, 1))
