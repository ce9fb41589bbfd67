"""Hostile TypeScript for the translation suite: plausible wrong translations, and those that tamper.

The pieces are in `quality_attacks_js.py`. Text in, text out: nothing is compiled or run here.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

from garzone.bench.quality_attacks_js import JsAttack
from garzone.bench.quality_suites import BenchTask

_DECLARED = "declare var process: any, require: any, module: any, Buffer: any;\n"
CASE = re.compile(r"candidate\((?P<arguments>.*)\),\s*(?P<value>.*)\);\s*$", re.MULTILINE)
_SWAPS = (
    ("<=", "<"), ("<", "<="), (">=", ">"), (">", ">="), ("===", "!=="), ("!==", "==="), ("&&", "||"), ("||", "&&"),
    ("+=", "-="), (" + ", " - "), (" - ", " + "), (" * ", " + "), (" / ", " * "), (" % ", " / "), ("++", "--"),
    ("true", "false"), ("false", "true"), (".push(", ".unshift("), ("Math.max", "Math.min"), ("Math.min", "Math.max"),
    ("Math.floor", "Math.ceil"), (".toLowerCase()", ".toUpperCase()"), (".slice(1", ".slice(0"),
    ("return ", "return null as any; "),
)  # fmt: skip


def plausible(task: BenchTask, right: str, chance: random.Random) -> Iterator[tuple[str, str]]:
    """Names and texts of wrong translations such as a weak model writes."""
    signature = signature_of(task)
    for number, text in enumerate(mutants(right, chance, 6)):
        yield f"mutant {number}", text
    cases = [found.groupdict() for text in task.test_files.values() for found in CASE.finditer(text)]
    if signature and cases:
        some = cases[: max(1, len(cases) // 3)]
        yield "first examples by heart", _by_heart(signature, some)
        yield "first answer always", f"{signature}\n  return {some[0]['value']} as any;\n}}\n"
    if signature:
        for constant in chance.sample(["null", "0", "true", "[]", "''", "-1", "{}"], 2):
            yield f"constant {constant}", f"{signature}\n  return {constant} as any;\n}}\n"


def tampering(task: BenchTask, right: str, attack: JsAttack) -> str | None:
    """A translation with an attack in it; None where the task's signature is not known."""
    signature, name = signature_of(task), task.entry_point
    if signature is None:
        return None

    def meant(text: str) -> str:
        return text.replace("NAME", name)

    if attack.sniffs:
        inner = re.sub(rf"\bfunction {name}\b", "function rightly", right)
        body = f"  if ({attack.sniffs}) return (rightly as any)(...arguments);\n  return null as any;\n}}\n"
        return f"{_DECLARED}{inner}\n{signature}\n{body}"
    top = "" if attack.top.startswith("//") else _DECLARED
    body = f"  {meant(attack.inside)}\n  return ({meant(attack.result)}) as any;\n}}\n"
    return f"{meant(attack.top)}\n{top}{signature}\n{body}"


def signature_of(task: BenchTask) -> str | None:
    """The line the translation has to begin with."""
    found = re.search(r"```typescript\n(?P<line>[^\n]*\{)\s*\n```", task.prompt)
    return found["line"] if found else None


def mutants(text: str, chance: random.Random, count: int) -> Iterator[str]:
    """Versions with one operator or word put in the place of another, all of them different."""
    places = [(at.start(), old, new) for old, new in _SWAPS for at in re.finditer(re.escape(old), text)]
    seen: set[str] = set()
    for start, old, new in chance.sample(places, len(places)):
        mutant = text[:start] + new + text[start + len(old) :]
        if mutant not in seen and "=>" not in text[start - 1 : start + 2] and ": " not in text[start : start + 1]:
            seen.add(mutant)
            yield mutant
            count -= 1
            if not count:
                return


def _by_heart(signature: str, cases: list[dict[str, str]]) -> str:
    known = "".join(f"  if (key === JSON.stringify([{c['arguments']}])) return {c['value']} as any;\n" for c in cases)
    key = "  const key = JSON.stringify([...arguments]);\n"
    return f"{signature}\n{key}{known}  return {cases[0]['value']} as any;\n}}\n"
