"""Rust: a module, built with a generated main that calls it with literal inputs."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

from garzone.agent.changes import FileEdit
from garzone.agent.harness import script
from garzone.agent.proof import new_powers
from garzone.agent.stage import Stage
from garzone.agent.translation import NOT_COMPILED, RUN, Function, Outcome, Toolchain, build_and_run, escaped, words
from garzone.agent.translation.types import Type

_MODULES = words(
    "array ascii borrow boxed char cmp collections convert default f32 f64 fmt hash i128 i16 i32 i64 i8 isize iter "
    "marker num ops option primitive rc result slice str string u128 u16 u32 u64 u8 usize vec cell error"
)
_FORBIDDEN = re.compile(
    r"\b(?:unsafe|extern|macro_rules|include|include_str|include_bytes|option_env|asm|static\s+mut|fs|process|env|net|"
    r"io|thread|ffi|intrinsics|catch_unwind|set_hook|panicking)\b|#!?\[\s*(?!derive\b|allow\b|must_use\b|inline\b|test\b|"
    r"cfg\(test\))\w*"
)
_PLAIN = {"int": "i64", "float": "f64", "str": "String", "bool": "bool"}
_WORDS = words(
    "as break const continue crate dyn else enum extern false fn for if impl in let loop match mod move mut pub ref "
    "return self static struct super trait true type unsafe use where while async await box final macro try"
)
_COMMAND = (
    'set -e; D=$(mktemp -d); cp "$GARZONE_SOURCE" "$D/translated.rs"; cp "$GARZONE_HARNESS/main.rs" "$D/"; cd "$D"; '
    f"rustc --edition 2021 -A warnings -C overflow-checks=on -C debuginfo=0 -o run main.rs || exit {NOT_COMPILED}; "
    f"{RUN} ./run"
)


class Rust(Toolchain):
    """`rustc`, without crates. Integers that overflow panic."""

    name, title, suffix = "rust", "Rust", ".rs"

    def missing(self) -> str | None:
        """The compiler."""
        return None if shutil.which("rustc") else "install Rust 1.63 or later (Debian: apt-get install rustc)"

    def spelled(self, name: str) -> tuple[str, ...]:
        """As it was."""
        return (name,)

    def signature(self, function: Function, place: str) -> str:
        """`pub fn name(a: i64) -> String`."""
        parameters = ", ".join(f"{_named(name)}: {spelled_type(kind)}" for name, kind in function.parameters)
        assert function.result is not None
        return f"pub fn {function.name}({parameters}) -> {spelled_type(function.result)}"

    def rules(self, place: str) -> str:
        """What Rust has no other way for."""
        return "Use only the standard library. Where Python raises an exception, panic. Write no main."

    def powers(self, edit: FileEdit) -> list[str]:
        """What does more than compute."""
        found = [f"the change uses {' '.join(what.split())}" for what in _FORBIDDEN.findall(edit.after)]
        roots = re.findall(r"\b(?:std|core|alloc)\s*::\s*(\w+)", edit.after)
        grouped = re.findall(r"\b(?:std|core|alloc)\s*::\s*\{", edit.after)
        found += [f"the change uses std::{name}" for name in roots if name not in _MODULES and name != "mem"]
        found += ["the change imports groups of std, which are not read"] if grouped else []
        return list(dict.fromkeys([*new_powers(edit), *found]))

    async def drive(self, stage: Stage, edit: FileEdit, functions: Sequence[Function], label: str) -> Outcome:
        """Build both files, run."""
        calls: list[str] = []
        for function in functions:
            calls.append(f'    open(&mut out, "{function.name}");')
            for case in function.cases:
                pairs = zip(function.parameters, case["arguments"], strict=True)
                given = ", ".join(literal(kind, value) for (_, kind), value in pairs)
                calls.append(f"    case(&mut out, || translated::{function.name}({given}));")
        main = script("drive_rust.rs").decode().replace("// CALLS", "\n".join(calls))
        compiler = f"rustc --edition 2021 {PurePosixPath(edit.path).name}"
        files = {"main.rs": main.encode()}
        return await build_and_run(stage, edit, command=_COMMAND, files=files, compiler=compiler, label=label)


def _named(name: str) -> str:
    return f"{name}_" if name in _WORDS else name


def spelled_type(kind: Type) -> str:
    """A type as Rust writes it."""
    match kind.name:
        case "list":
            return f"Vec<{spelled_type(kind.of)}>"
        case "dict":
            return f"std::collections::HashMap<String, {spelled_type(kind.of)}>"
        case "optional":
            return f"Option<{spelled_type(kind.of)}>"
        case _:
            return _PLAIN[kind.name]


def literal(kind: Type, value: Any) -> str:
    """A value as Rust writes it."""
    match kind.name:
        case "optional":
            return f"None::<{spelled_type(kind.of)}>" if value is None else f"Some({literal(kind.of, value)})"
        case "list":
            items = ", ".join(literal(kind.of, item) for item in value)
            return f"vec![{items}]" if value else f"Vec::<{spelled_type(kind.of)}>::new()"
        case "dict":
            pairs = ", ".join(f"({_text(key)}, {literal(kind.of, item)})" for key, item in value.items())
            return f"std::collections::HashMap::<String, {spelled_type(kind.of)}>::from([{pairs}])"
        case "bool":
            return "true" if value else "false"
        case "str":
            return _text(value)
        case "float":
            return f"({float(value)!r}f64)"
        case _:
            return f"({value}i64)"


def _text(value: str) -> str:
    return escaped(value, wide="\\u{{{0:x}}}") + ".to_string()"
