"""JavaScript and TypeScript: where the compiler lies, and the examples of doc comments, evaluated in the sandbox."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from pathlib import Path

from garzone.agent.examples import EXAMPLES_S, facts_of
from garzone.agent.harness import script
from garzone.agent.stage import Run, Stage
from garzone.agent.worktree import Repository

_EXAMPLE = re.compile(
    r"^\s*\*?\s*(?P<call>[^\n*].*?);?\s*//\s*(?:=>|->|returns?:?)\s*(?P<value>.+?);?\s*$", re.MULTILINE
)


def find_typescript(repository: Repository) -> Path | None:
    """Where the compiler's package lies, as the sandbox sees it."""
    top, prefix = repository.top, repository.prefix
    places = [top / prefix / "node_modules", top / "node_modules"]
    places += [Path(entry) for entry in os.environ.get("NODE_PATH", "").split(os.pathsep) if entry.startswith("/")]
    places += [Path("/usr/lib/node_modules"), Path("/usr/local/lib/node_modules")]
    for place in places:
        if (place / "typescript/lib/typescript.js").is_file():
            return place / "typescript"
    tsc = shutil.which("tsc")
    package = Path(tsc).resolve().parent.parent if tsc else None
    return package if package and (package / "lib/typescript.js").is_file() else None


def examples_in(comment: str) -> list[tuple[str, str]]:
    """Examples of a doc comment, `call(...) // => value`, as pairs."""
    return [(found["call"].strip(), found["value"].strip()) for found in _EXAMPLE.finditer(comment)]


async def wrong_examples(
    stage: Stage, path: str, text: bytes, names: list[str], examples: list[tuple[str, str]]
) -> tuple[Run, list[str] | None]:
    """Evaluate examples against a file; the run, and what is not true (None where it did not come so far).

    Args:
        stage: where.
        path: the file, from the top level.
        text: its content.
        names: functions that examples may call.
        examples: expression and expected value.
    """
    prefix = stage.repository.prefix
    shown = shlex.quote(path.removeprefix(f"{prefix}/") if prefix else path)
    typescript = find_typescript(stage.repository) if re.search(r"\.[cm]?tsx?$", path) else None
    spec = json.dumps({"names": names, "examples": examples}).encode()
    files = {name: script(name) for name in ("js_examples.cjs", "load_js.cjs")} | {"spec.json": spec}
    loader = shlex.quote(str(typescript / "lib/typescript.js")) if typescript else "-"
    command = f'node "$GARZONE_HARNESS/js_examples.cjs" {shown} "$GARZONE_HARNESS/spec.json" {loader}'
    visible = (typescript,) if typescript else ()
    run = await stage.run(command, {path: text}, wall_s=EXAMPLES_S, harness=files, probed=False, visible=visible)
    facts = facts_of(run)
    wrong: list[str] = facts.get("wrong") or []
    return run, wrong if run.passed and facts.get("finished") else None
