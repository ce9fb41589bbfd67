"""Tasks in languages whose toolchain is on this machine, with the real compiler inside the sandbox."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from garzone.agent.sandbox import open_sandbox
from garzone.agent.worker import run_task
from garzone.core.task import TaskKind, Verdict
from garzone.testing import ScriptedGenerator
from tests.agent.repositories import fix_task, git, make_repository

pytestmark = pytest.mark.slow

RUST = {
    "Cargo.toml": '[package]\nname = "pages"\nversion = "0.1.0"\nedition = "2021"\n',
    "src/lib.rs": "/// Pages.\npub fn pages(items: usize, size: usize) -> usize {\n    items / size\n}\n",
    "tests/pages.rs": "use pages::pages;\n\n#[test]\nfn rounds_up() {\n    assert_eq!(pages(5, 2), 3);\n"
    "    assert_eq!(pages(4, 2), 2);\n    assert_eq!(pages(0, 3), 0);\n}\n",
}
RIGHT = "```rust\npub fn pages(items: usize, size: usize) -> usize {\n    items.div_ceil(size)\n}\n```"
WRONG = "```rust\nfn pages(items: usize, size: usize) -> usize {\n    items / size + 1\n}\n```"
EXITS = "```rust\npub fn pages(items: usize, size: usize) -> usize {\n    std::process::exit(0)\n}\n```"
needs_cargo = pytest.mark.skipif(shutil.which("cargo") is None, reason="cargo is not installed")
needs_java = pytest.mark.skipif(shutil.which("javac") is None, reason="javac is not installed")


@needs_cargo
async def test_a_rust_function_is_repaired_with_the_check_that_cargo_is(tmp_path: Path) -> None:
    repo = make_repository(tmp_path / "r", RUST)
    task = fix_task(repo, None, num_candidates=3, check_timeout_s=120.0)
    report = await run_task(task, ScriptedGenerator([EXITS, WRONG, RIGHT]), open_sandbox())
    assert report.verdict is Verdict.PROVED, report
    assert report.checks[0].command == "cargo test --quiet --offline"
    assert "items.div_ceil(size)" in git(repo, "show", f"{report.branch}:src/lib.rs")
    assert [change.path for change in report.files] == ["src/lib.rs"]


@needs_cargo
async def test_rust_is_implemented_and_tested(tmp_path: Path) -> None:
    stub = {**RUST, "src/lib.rs": "pub fn pages(items: usize, size: usize) -> usize {\n    todo!()\n}\n"}
    repo = make_repository(tmp_path / "r", stub)
    task = replace(
        fix_task(repo, None, num_candidates=2, check_timeout_s=120.0),
        kind=TaskKind.IMPLEMENT,
        instruction="pages, rounded up",
        files=("src/lib.rs",),
    )
    report = await run_task(task, ScriptedGenerator([WRONG, RIGHT]), open_sandbox())
    assert report.verdict is Verdict.PROVED, report
    fixed = {**RUST, "src/lib.rs": RUST["src/lib.rs"].replace("items / size", "items.div_ceil(size)")}
    code = make_repository(tmp_path / "t", {name: text for name, text in fixed.items() if "tests/" not in name})
    tests = replace(task, kind=TaskKind.TESTS, instruction="", repo=code)
    report = await run_task(tests, ScriptedGenerator([f"```rust\n{RUST['tests/pages.rs']}```"]), open_sandbox())
    assert report.files[0].path == "tests/lib.rs"
    assert report.proof.get("mutants", 0) >= 0
    assert report.verdict in (Verdict.PROVED, Verdict.UNPROVED), report


@needs_java
async def test_a_java_method_is_repaired(tmp_path: Path) -> None:
    files = {
        "Pages.java": "public class Pages {\n  public static int pages(int items, int size) {\n"
        "    return items / size;\n  }\n}\n",
        "PagesTest.java": "public class PagesTest {\n  public static void main(String[] a) {\n"
        "    if (Pages.pages(5, 2) != 3) throw new AssertionError(Pages.pages(5, 2));\n"
        "    if (Pages.pages(4, 2) != 2) throw new AssertionError(Pages.pages(4, 2));\n  }\n}\n",
    }
    repo = make_repository(tmp_path / "r", files)
    check = "javac -d /tmp/out *.java && java -cp /tmp/out PagesTest"
    right = "```java\npublic static int pages(int items, int size) {\n  return (items + size - 1) / size;\n}\n```"
    exits = "```java\npublic static int pages(int items, int size) {\n  System.exit(0);\n  return 0;\n}\n```"
    task = replace(fix_task(repo, check, num_candidates=2, check_timeout_s=120.0), instruction="pages rounds down")
    report = await run_task(task, ScriptedGenerator([exits, right]), open_sandbox())
    assert report.verdict is Verdict.PROVED, report
    assert "(items + size - 1) / size" in git(repo, "show", f"{report.branch}:Pages.java")
