"""Go: a package of its own, built with a generated main that calls it with literal inputs."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

from garzone.agent.changes import FileEdit
from garzone.agent.proof import new_powers
from garzone.agent.stage import Stage
from garzone.agent.translation import NOT_COMPILED, RUN, Function, Outcome, Toolchain, build_and_run, escaped, words
from garzone.agent.translation.types import Type

_IMPORTS = frozenset({
    "bytes", "cmp", "container/heap", "container/list", "errors", "fmt", "maps", "math", "math/big", "math/bits",
    "math/cmplx", "regexp", "slices", "sort", "strconv", "strings", "unicode", "unicode/utf8", "unicode/utf16",
})  # fmt: skip
_IMPORT = re.compile(r"^import\s+(?:\(([^)]*)\)|(?:[\w.]+\s+)?(\"[^\"]+\"))", re.MULTILINE)
_PLAIN = {"int": "int64", "float": "float64", "str": "string", "bool": "bool"}
_WORDS = words(
    "break case chan const continue default defer else fallthrough for func go goto if import interface map package "
    "range return select struct switch type var len cap append copy string int bool error nil true false"
)
_MAIN = """package main

import (
	"encoding/json"
	"fmt"
	"os"

	translated "translated/%(package)s"
)

func some[T any](value T) *T { return &value }

func try(call func() any) (found map[string]any) {
	defer func() {
		if problem := recover(); problem != nil {
			found = map[string]any{"throws": fmt.Sprint(problem)}
		}
	}()
	value := call()
	if _, err := json.Marshal(value); err != nil {
		return map[string]any{"result": map[string]string{"special": err.Error()}}
	}
	return map[string]any{"result": value}
}

func main() {
	results := map[string][]map[string]any{}
%(calls)s
	text, err := json.Marshal(map[string]any{"results": results})
	if err == nil {
		err = os.WriteFile(os.Getenv("GARZONE_OUT"), text, 0o666)
	}
	if err != nil {
		panic(err)
	}
}
"""
# the cache is the sandbox's own and new each time: nothing a translation does can stay
_COMMAND = (
    'set -e; D=$(mktemp -d); mkdir "$D/%(package)s"; cp "$GARZONE_SOURCE" "$D/%(package)s/"; '
    'cp "$GARZONE_HARNESS/main.go" "$GARZONE_HARNESS/go.mod" "$D/"; cd "$D"; '
    'export GOCACHE="$D/cache" GOPATH="$D/path" GOFLAGS=-mod=mod GOPROXY=off GO111MODULE=on CGO_ENABLED=0; '
    "export GOTOOLCHAIN=local; "
    f"go build -o run . || exit {NOT_COMPILED}; {RUN} ./run"
)


class Go(Toolchain):
    """`go build`, without modules of others."""

    name, title, suffix = "go", "Go", ".go"

    def missing(self) -> str | None:
        """The compiler, 1.18 or later (the driver is generic)."""
        return None if shutil.which("go") else "install Go 1.18 or later (Debian: apt-get install golang-go)"

    def spelled(self, name: str) -> tuple[str, ...]:
        """Others see only what begins with a capital letter."""
        return ("".join(part[:1].upper() + part[1:] for part in name.split("_")),)

    def signature(self, function: Function, place: str) -> str:
        """`func Name(a int64) string`."""
        parameters = ", ".join(f"{_named(name)} {spelled_type(kind)}" for name, kind in function.parameters)
        assert function.result is not None
        return f"func {self.spelled(function.name)[0]}({parameters}) {spelled_type(function.result)}"

    def rules(self, place: str) -> str:
        """What Go has no other way for."""
        return (
            f"Begin with `package {package_of(place)}`. A `*T` is nil for None. Where Python raises an exception, "
            "panic. Write no main."
        )

    def powers(self, edit: FileEdit) -> list[str]:
        """Imports beyond those that compute."""
        found = [f"the change imports {name}" for name in _imported(edit.after) if name not in _IMPORTS]
        return [*new_powers(edit), *found, *(["the change uses a directive"] if "//go:" in edit.after else [])]

    def complaint(self, place: str, text: str) -> str | None:
        """The package must be the one it is called by."""
        found = re.search(r"^package\s+(\w+)", text, re.MULTILINE)
        wanted = package_of(place)
        return None if found and found[1] == wanted else f"Begin the file with `package {wanted}`."

    async def drive(self, stage: Stage, edit: FileEdit, functions: Sequence[Function], label: str) -> Outcome:
        """Build both packages, run."""
        package = package_of(edit.path)
        calls: list[str] = []
        for function in functions:
            name = self.spelled(function.name)[0]
            for case in function.cases:
                pairs = zip(function.parameters, case["arguments"], strict=True)
                given = ", ".join(literal(kind, value) for (_, kind), value in pairs)
                calls.append(
                    f'\tresults["{function.name}"] = append(results["{function.name}"], '
                    f"try(func() any {{ return translated.{name}({given}) }}))"
                )
        main = _MAIN % {"package": package, "calls": "\n".join(calls)}
        files = {"main.go": main.encode(), "go.mod": b"module translated\n\ngo 1.18\n"}
        command = _COMMAND % {"package": package}
        compiler = f"go build {PurePosixPath(edit.path).name}"
        return await build_and_run(stage, edit, command=command, files=files, compiler=compiler, label=label)


def package_of(place: str) -> str:
    """The package a file is: its stem, as an identifier that is no word of the language, nor `main`."""
    stem = re.sub(r"\W|_", "", PurePosixPath(place).stem).lower() or "translated"
    return f"{stem}pkg" if stem in _WORDS or stem in ("main", "translated") or stem[0].isdigit() else stem


def _imported(text: str) -> list[str]:
    return [name for found in _IMPORT.finditer(text) for name in re.findall(r'"([^"]+)"', found[1] or found[2])]


def _named(name: str) -> str:
    return f"{name}_" if name in _WORDS else name


def spelled_type(kind: Type) -> str:
    """A type as Go writes it."""
    match kind.name:
        case "list":
            return f"[]{spelled_type(kind.of)}"
        case "dict":
            return f"map[string]{spelled_type(kind.of)}"
        case "optional":
            return f"*{spelled_type(kind.of)}"
        case _:
            return _PLAIN[kind.name]


def literal(kind: Type, value: Any) -> str:
    """A value as Go writes it."""
    match kind.name:
        case "optional":
            return f"({spelled_type(kind)})(nil)" if value is None else f"some({literal(kind.of, value)})"
        case "list":
            return f"{spelled_type(kind)}{{{', '.join(literal(kind.of, item) for item in value)}}}"
        case "dict":
            pairs = (f"{_text(key)}: {literal(kind.of, item)}" for key, item in value.items())
            return f"{spelled_type(kind)}{{{', '.join(pairs)}}}"
        case "bool":
            return "true" if value else "false"
        case "str":
            return _text(value)
        case "float":
            return f"float64({float(value)!r})"
        case _:
            return f"int64({value})"


def _text(value: str) -> str:
    return escaped(value, wide="\\U{0:08x}")
