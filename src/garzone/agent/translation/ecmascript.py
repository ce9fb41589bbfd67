"""JavaScript and TypeScript: compiled strictly where they have types, and run by node."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from garzone.agent.changes import FileEdit
from garzone.agent.examples import facts_of
from garzone.agent.harness import script
from garzone.agent.proof import new_powers
from garzone.agent.stage import Stage
from garzone.agent.syntax import tokens_without_comments
from garzone.agent.translation import Case, Function, Outcome, Toolchain, quoted, told, words
from garzone.core.task import Check

TSC_OPTIONS = "--noEmit --strict --target ES2022 --module commonjs --skipLibCheck --pretty false"
DRIVE_S, COMPILE_S = 30.0, 60.0
NO_NODE_TYPES = "it needs the types of node, which are not installed (@types/node), so it was neither compiled nor run"
_BUILT_IN = re.compile(r"Cannot find module '(?:node:\w+|assert|buffer|crypto|events|fs|os|path|url|util|zlib)'")
# What the realm of the comparison does not have and every other place does, or the other way round: code that looks for
# it may do there what it does nowhere else.
_SURROUNDINGS = words("""
    process require Buffer globalThis global setTimeout setInterval setImmediate clearTimeout queueMicrotask fetch
    performance crypto navigator URL TextEncoder TextDecoder AbortController atob btoa WebAssembly SharedArrayBuffer
    Deno Bun __dirname __filename prepareStackTrace captureStackTrace stack callee caller
""")
_PRINTING = re.compile(r"\bconsole\b(?!\s*\.\s*(?:log|info|warn|error|debug)\s*\()")
_UNCHECKED = re.compile(r"(?://|/\*)\s*@(ts-(?:nocheck|ignore|expect-error))")


class EcmaScript(Toolchain):
    """One of the two. `typescript` is the compiler's package, None where there is none."""

    typed = False

    def __init__(self, name: str, typescript: Path | None) -> None:
        self.name = name
        self.title = {"typescript": "TypeScript", "javascript": "JavaScript"}[name]
        self.suffix = {"typescript": ".ts", "javascript": ".js"}[name]
        self._typescript = typescript

    def missing(self) -> str | None:
        """Node; without TypeScript the translation is at least written."""
        return None if shutil.which("node") else "install Node.js 20 or later (node)"

    def spelled(self, name: str) -> tuple[str, ...]:
        """As it was, or in camel case."""
        return name, re.sub(r"_+(\w)", lambda found: found[1].upper(), name)

    def powers(self, edit: FileEdit) -> list[str]:
        """As for any change; constructors lead nowhere in the realm it runs in (`drive_js.cjs`)."""
        found = [what for what in new_powers(edit) if not re.search(r"\bconstructor\b|prototype", what)]
        if directive := _UNCHECKED.search(edit.after):
            found.append(f"it switches the compiler's checks off (@{directive[1]})")
        return found + _surroundings(edit)

    async def drive(self, stage: Stage, edit: FileEdit, functions: Sequence[Function], label: str) -> Outcome:
        """Compile TypeScript strictly, then call the functions."""
        typescript, checks, contents = self._typescript, list[Check](), {edit.path: edit.content}
        shown = quoted(stage, edit.path)
        visible = (typescript,) if typescript else ()
        if self.name == "typescript":
            if typescript is None:
                return Outcome(doubts=("typescript is not installed, so it was neither compiled nor run",))
            compiler = shlex.quote(str(typescript / "lib/tsc.js"))
            command = f"node {compiler} {TSC_OPTIONS} --moduleResolution node10 {shown}"
            run = await stage.run(command, contents, wall_s=COMPILE_S, probed=False, visible=visible)
            if "TS5107" in run.result.output or "TS6046" in run.result.output or "TS5108" in run.result.output:
                command = command.replace(" --moduleResolution node10", "")  # later compilers know it no more
                run = await stage.run(command, contents, wall_s=COMPILE_S, probed=False, visible=visible)
            checks.append(run.as_check(f"tsc --noEmit --strict {shown}"))
            if not run.passed and lacks_types_of_node(run.result.output):
                return Outcome(tuple(checks), doubts=(NO_NODE_TYPES,))
            if not run.passed:
                return Outcome(tuple(checks), complaint=run.result.output[:1200])
        given = {function.name: [case["arguments"] for case in function.cases] for function in functions}
        files = {name: script(name) for name in ("drive_js.cjs", "load_js.cjs")} | {
            "cases.json": json.dumps(given).encode()
        }
        loader = shlex.quote(str(typescript / "lib/typescript.js")) if typescript else "-"
        command = f'node "$GARZONE_HARNESS/drive_js.cjs" {shown} "$GARZONE_HARNESS/cases.json" {loader}'
        run = await stage.run(command, contents, wall_s=DRIVE_S, harness=files, probed=False, visible=visible)
        checks.append(run.as_check(label))
        results = cast("dict[str, list[Case]]", facts_of(run).get("results") or {})
        if not run.passed or (functions and not results):
            return Outcome(tuple(checks), complaint=told(run.result.output), run=run)
        return Outcome(tuple(checks), results, run=run)


def lacks_types_of_node(output: str) -> bool:
    """Whether nothing is wrong but that the compiler was not told what node has."""
    errors = re.findall(r"error (TS\d+): (.*)", output)
    return bool(errors) and all(
        code in ("TS2580", "TS2591") or (code == "TS2307" and _BUILT_IN.search(text)) for code, text in errors
    )


def _surroundings(edit: FileEdit) -> list[str]:
    """Where a text looks at the place it runs in, as phrases."""
    tokens = tokens_without_comments(edit.path, edit.after)
    seen = dict.fromkeys(token for token in tokens if token in _SURROUNDINGS)
    code = " ".join(tokens)
    if "this" in tokens and "class" not in tokens:
        seen["this"] = None
    if _PRINTING.search(code):
        seen["console"] = None
    return [f"the translation asks where it runs ({name})" for name in seen]
