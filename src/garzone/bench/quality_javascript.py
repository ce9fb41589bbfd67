"""A suite of faults in JavaScript, made from the TypeScript suite: its references without types, each with one fault.

The tests are the suite's own assertions, one `node:test` each. Made anew at every run; nothing of it is kept.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from garzone.agent.edit import code_blocks
from garzone.bench.quality_sabotage_js import CASE, mutants
from garzone.bench.quality_suites import JAVASCRIPT, BenchTask, Reference
from garzone.core.errors import UnavailableError

SOLUTION, TESTS = "solution.mjs", "solution.test.mjs"
_HEAD = "import test from 'node:test';\nimport assert from 'node:assert';\n"
_STRIP = (
    "const ts=require('typescript');const texts=JSON.parse(require('fs').readFileSync(0,'utf8'));"
    "const options={compilerOptions:{target:ts.ScriptTarget.ES2022,module:ts.ModuleKind.ESNext}};"
    "console.log(JSON.stringify(texts.map((text)=>ts.transpileModule(text,options).outputText)));"
)


def javascript_suite(
    tasks: Sequence[BenchTask], references: Mapping[str, Reference], node_path: Path | None
) -> tuple[list[BenchTask], dict[str, Reference]]:
    """Tasks and right answers, from those of the TypeScript suite.

    Raises:
        UnavailableError: node or its `typescript` is not there.
    """
    usable = [
        (task, cases)
        for task in tasks
        if (cases := cases_of(task)) and task.solution_path in references.get(task.id, Reference({})).files
    ]
    stripped = without_types([references[task.id].files[task.solution_path] for task, _ in usable], node_path)
    made: list[BenchTask] = []
    right: dict[str, Reference] = {}
    for (task, cases), plain in zip(usable, stripped, strict=True):
        name, code = task.entry_point, exported(plain, task.entry_point)
        chance = random.Random(hashlib.sha256(task.id.encode()).digest())  # noqa: S311 - repeatable, not secret
        fault = next(mutants(code, chance, 1), None)
        if fault is None:
            continue
        lines = [f"test('case {n}', () => assert.deepEqual({name}({a}), {v}));" for n, (a, v) in enumerate(cases)]
        head = f"{_HEAD}import {{ {name} }} from './{SOLUTION}';\n"
        changed = replace(
            task,
            suite=JAVASCRIPT,
            prompt=f"Fix the bug in {name}.",
            files={SOLUTION: fault},
            solution_path=SOLUTION,
            test_files={TESTS: head + "\n".join(lines) + "\n"},
            test_cmd=("node", "--test", TESTS),
            meta={**task.meta, "typescript": task},
        )
        made.append(changed)
        right[task.id] = Reference({SOLUTION: code}, tests=references[task.id].files[task.solution_path])
    return made, right


def cases_of(task: BenchTask) -> list[tuple[str, str]]:
    """Arguments and results of the suite's own assertions."""
    return [(m["arguments"], m["value"]) for text in task.test_files.values() for m in CASE.finditer(text)]


def exported(code: str, name: str) -> str:
    """The code with the function exported."""
    return re.sub(rf"^(?=(?:async )?function {re.escape(name)}\b)", "export ", code, count=1, flags=re.MULTILINE)


def without_types(texts: Sequence[str], node_path: Path | None) -> list[str]:
    """TypeScript as JavaScript."""
    node = shutil.which("node")
    if node is None or node_path is None:
        raise UnavailableError("this suite needs node, and --node-path where `typescript` is installed")
    environment = {"NODE_PATH": str(node_path), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(  # noqa: S603 - our own script, which compiles and does not run what it is given
        [node, "-e", _STRIP],
        input=json.dumps(list(texts)),
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise UnavailableError(f"typescript could not be used below {node_path}: {done.stderr.strip()[-200:]}")
    return json.loads(done.stdout)


def answers_without_types(answers: Sequence[str], name: str, node_path: Path | None) -> list[str]:
    """The code of answers in TypeScript, as JavaScript that exports the function."""
    codes = [block.code for answer in answers for block in code_blocks(answer)]
    return [exported(code, name) for code in without_types(codes, node_path)]
