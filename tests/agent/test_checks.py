from __future__ import annotations

from pathlib import Path

import pytest

from garzone.agent.checks import find_check, find_type_check, narrowed

UNIT = "import unittest\n\n\nclass T(unittest.TestCase):\n    def test_a(self):\n        pass\n"
PLAIN = "def test_a():\n    pass\n"


@pytest.mark.parametrize(
    ("files", "command"),
    [
        ({"test_a.py": PLAIN}, "pytest -q"),
        ({"tests/test_a.py": UNIT, "pyproject.toml": "[tool.pytest.ini_options]\n"}, "pytest -q"),
        ({"test_a.py": UNIT}, "python3 -m unittest -q"),
        ({"tests/test_a.py": UNIT}, "python3 -m unittest discover -q -s tests"),
        ({"tests/test_a.py": UNIT, "tests/__init__.py": ""}, "python3 -m unittest discover -q -s tests -t ."),
        ({"package.json": '{"scripts": {"test": "node --test"}}'}, "npm --silent test"),
        ({"package.json": '{"scripts": {"test": "echo \\"Error: no test specified\\""}}'}, None),
        ({"package.json": '{"devDependencies": {"vitest": "3"}}'}, "npx --no-install vitest run --no-cache"),
        ({"package.json": '{"scripts": {"test": "tsc && vitest run"}}'}, "npm --silent test -- --no-cache"),
        ({"package.json": "{}", "jest.config.js": ""}, "npx --no-install jest"),
        ({"a.mjs": "", "a.test.mjs": ""}, "node --test"),
        ({"Cargo.toml": "", "src/lib.rs": ""}, "cargo test --quiet --offline"),
        ({"go.mod": "", "a_test.go": ""}, "go test ./..."),
        ({"pom.xml": ""}, "mvn -q -o test"),
        ({"Makefile": "test: all\n\ttrue\n"}, "make test"),
        ({"Makefile": "test := x\n"}, None),
        ({"a.py": "", "package.json": "not json", "pyproject.toml": "not [toml"}, None),
    ],
)
def test_the_projects_own_check_is_found(tmp_path: Path, files: dict[str, str], command: str | None) -> None:
    found = find_check(list(files), lambda name: files[name].encode(), tmp_path)
    assert (found.command if found else None) == command


def test_a_check_above_the_tasks_directory_is_run_from_there(tmp_path: Path) -> None:
    files = {"package.json": '{"scripts": {"test": "x"}}', "lib/deep/a.js": ""}
    found = find_check(list(files), lambda name: files[name].encode(), tmp_path, "lib/deep")
    assert found is not None
    assert found.command == "cd ../.. && npm --silent test"


def test_checks_are_narrowed_where_the_command_tells_how() -> None:
    tests = ["tests/test_b.py", "tests/test_a.py"]
    assert narrowed("pytest -q", tests) == "pytest -q tests/test_a.py tests/test_b.py"
    assert narrowed("X=1 /x/python -m pytest -q -x -p no:cacheprovider", ["lib/a b.py"], "lib") == (
        "X=1 /x/python -m pytest -q -x -p no:cacheprovider 'a b.py'"
    )
    assert narrowed("node --test", ["a.test.mjs"]) == "node --test a.test.mjs"
    assert narrowed("npm --silent test", ["a.test.ts"]) == "npm --silent test -- a.test.ts"
    for check in ("make test", "pytest -q tests/test_c.py", "pytest -q; true"):
        assert narrowed(check, tests) is None
    assert narrowed("pytest -q", []) is None
    assert narrowed("pytest -q", tests, "lib") is None


def test_a_type_check_is_used_only_where_it_is_configured_and_installed(tmp_path: Path) -> None:
    (tmp_path / "node_modules/.bin").mkdir(parents=True)
    (tmp_path / "node_modules/.bin/tsc").touch()
    files = {"tsconfig.json": "{}", "a.ts": "", "a.py": ""}

    def found(changed: str, *names: str) -> str | None:
        return find_type_check(names, lambda name: files[name].encode(), tmp_path, "", [changed])

    assert found("a.ts", *files) == "tsc --noEmit --pretty false"
    assert found("a.ts", "a.ts") is None
    assert found("a.py", *files) is None
