"""Java: one public class of static methods, compiled with a generated driver that calls it with literal inputs."""

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
from garzone.agent.syntax import root_of, text_of
from garzone.agent.translation import NOT_COMPILED, RUN, Function, Outcome, Toolchain, build_and_run, words
from garzone.agent.translation.types import Type

_IMPORT = re.compile(r"^\s*import\s+(?:static\s+)?([\w.]+(?:\.\*)?)\s*;", re.MULTILINE)
_ALLOWED = re.compile(r"java\.util\.(?!concurrent|logging|prefs|jar|zip|spi)[\w.*]+$|java\.(?:math|text)\.[\w*]+$")
_FORBIDDEN = re.compile(
    r"\bjava\s*\.\s*(?!util\b|math\b|text\b)\w+|\bSystem\s*\.\s*(?!arraycopy\b|lineSeparator\b)\w+|\b(?:Runtime|Thread|"
    r"ThreadLocal|ClassLoader|Process|ProcessBuilder|ProcessHandle|SecurityManager|Module|ServiceLoader|Unsafe)\b|"
    r"\bClass\s*[.<]|\bgetClass\b|\bnative\b|\.class\b|\bjavax?\s*\.\s*(?:lang|io|nio|net|security)\b|\bconcurrent\b|\\u"
)
_PLAIN = {"int": ("long", "Long"), "float": ("double", "Double"), "bool": ("boolean", "Boolean"),
          "str": ("String", "String")}  # fmt: skip
_WORDS = words(
    "abstract assert boolean break byte case catch char class const continue default do double else enum extends final "
    "finally float for goto if implements import instanceof int interface long native new package private protected "
    "public return short static super switch synchronized this throw throws transient try void volatile while"
)
_COMMAND = (
    'set -e; D=$(mktemp -d); mkdir "$D/out" "$D/src"; cp "$GARZONE_SOURCE" "$D/src/"; cp "$GARZONE_HARNESS/Drive.java" '
    '"$D/src/"; cd "$D"; javac -proc:none -nowarn -encoding UTF-8 -d out src/*.java '
    f"|| exit {NOT_COMPILED}; {RUN} java -Xss64m -XX:+UseSerialGC -cp out garzone_drive.Drive"
)


class Java(Toolchain):
    """`javac` and `java`, without libraries."""

    name, title, suffix = "java", "Java", ".java"

    def missing(self) -> str | None:
        """The compiler; a runtime alone does not do."""
        there = shutil.which("javac") and shutil.which("java")
        return None if there else "install a JDK, 11 or later (Debian: apt-get install default-jdk-headless)"

    def place(self, source: str) -> str:
        """A public class is in a file of its name."""
        place = PurePosixPath(source)
        name = "".join(part[:1].upper() + part[1:] for part in re.split(r"[\W_]+", place.stem)) or "Translated"
        return str(place.with_name(f"T{name}.java" if name[0].isdigit() else f"{name}.java"))

    def spelled(self, name: str) -> tuple[str, ...]:
        """Camel case, as Java is written."""
        first, *rest = [part for part in name.split("_") if part] or [name]
        camel = first + "".join(part[:1].upper() + part[1:] for part in rest)
        return (f"{camel}_" if camel in _WORDS else camel,)

    def signature(self, function: Function, place: str) -> str:
        """`public static String name(long a)`."""
        parameters = ", ".join(f"{spelled_type(kind)} {_named(name)}" for name, kind in function.parameters)
        assert function.result is not None
        return f"public static {spelled_type(function.result)} {self.spelled(function.name)[0]}({parameters})"

    def rules(self, place: str) -> str:
        """Where the methods are."""
        package = (
            f"Begin with `package {package_of(place)};`, then write" if package_of(place) else "Write no package; write"
        )
        return (
            f"{package} one `public class {PurePosixPath(place).stem}` with these static methods. Import from "
            "java.util what you need. Where Python raises an exception, throw one. Write no main."
        )

    def powers(self, edit: FileEdit) -> list[str]:
        """What does more than compute."""
        found = [f"the change imports {name}" for name in _IMPORT.findall(edit.after) if not _ALLOWED.match(name)]
        rest = _IMPORT.sub("", edit.after)
        found += [f"the change uses {' '.join(what.split())}" for what in _FORBIDDEN.findall(rest)]
        return list(dict.fromkeys([*new_powers(edit), *found]))

    def complaint(self, place: str, text: str) -> str | None:
        """One class at the top, of the file's name: another could stand for one of the library's."""
        root, name = root_of(place, text), PurePosixPath(place).stem
        kinds = ("class_declaration", "interface_declaration", "enum_declaration", "record_declaration",
                 "annotation_type_declaration")  # fmt: skip
        tops = [node for node in root.children if node.type in kinds] if root else []
        names = [text_of(found) for node in tops if (found := node.child_by_field_name("name"))]
        if names != [name]:
            return f"Write one top-level class, `public class {name}`, and put everything into it."
        package = re.search(r"^\s*package\s+([\w.]+)\s*;", text, re.MULTILINE)
        wanted = package_of(place)
        if (package[1] if package else "") != wanted:
            return f"Begin the file with `package {wanted};`." if wanted else "Leave out the package line."
        return None

    async def drive(self, stage: Stage, edit: FileEdit, functions: Sequence[Function], label: str) -> Outcome:
        """Compile both classes, run."""
        holder, package = PurePosixPath(edit.path).stem, package_of(edit.path)
        methods: list[str] = []
        listed: list[str] = []
        for function in functions:
            names: list[str] = []
            for case in function.cases:
                pairs = zip(function.parameters, case["arguments"], strict=True)
                given = ", ".join(f"({boxed(kind)}) {literal(kind, value)}" for (_, kind), value in pairs)
                names.append(f"Drive::c{len(methods)}")
                # the default package cannot be imported from, so the driver finds the method by reflection
                kinds = ", ".join(f"{raw(kind)}.class" for _, kind in function.parameters)
                methods.append(
                    f"    static Object c{len(methods)}() throws Throwable {{ return call("
                    f'"{self.spelled(function.name)[0]}", new Class<?>[] {{{kinds}}}, new Object[] {{{given}}}); }}'
                )
            listed.append(f'        CASES.put("{function.name}", new Case[] {{{", ".join(names)}}});')
        text = script("Drive.java").decode()
        text = text.replace("// METHODS", "\n".join(methods)).replace("// LISTED", "\n".join(listed))
        text = text.replace("HOLDER", f"{package}.{holder}" if package else holder)
        compiler = f"javac {PurePosixPath(edit.path).name}"
        files = {"Drive.java": text.encode()}
        return await build_and_run(stage, edit, command=_COMMAND, files=files, compiler=compiler, label=label)


def package_of(place: str) -> str:
    """The package a file in a source tree of Maven's layout is in; "" elsewhere."""
    folder = str(PurePosixPath(place).parent)
    found = re.search(r"(?:^|/)src/(?:main|test)/java/(.+)$", folder)
    return found[1].replace("/", ".") if found else ""


def _named(name: str) -> str:
    return f"{name}_" if name in _WORDS else name


def spelled_type(kind: Type) -> str:
    """A type as Java writes it."""
    return _PLAIN[kind.name][0] if kind.name in _PLAIN else boxed(kind)


def boxed(kind: Type) -> str:
    """A type as Java writes it where only objects may be."""
    match kind.name:
        case "list":
            return f"java.util.List<{boxed(kind.of)}>"
        case "dict":
            return f"java.util.Map<String, {boxed(kind.of)}>"
        case "optional":
            return boxed(kind.of)
        case _:
            return _PLAIN[kind.name][1]


def raw(kind: Type) -> str:
    """The class of a parameter at run time."""
    return spelled_type(kind).partition("<")[0]


def literal(kind: Type, value: Any) -> str:
    """A value as Java writes it."""
    match kind.name:
        case "optional":
            return "null" if value is None else literal(kind.of, value)
        case "list":
            items = ", ".join(f"({boxed(kind.of)}) {literal(kind.of, item)}" for item in value)
            return f"Drive.<{boxed(kind.of)}>list({items})"
        case "dict":
            pairs = "".join(f", {_text(key)}, {literal(kind.of, item)}" for key, item in value.items())
            return f"Drive.<{boxed(kind.of)}>map({boxed(kind.of).partition('<')[0]}.class{pairs})"
        case "bool":
            return "true" if value else "false"
        case "str":
            return _text(value)
        case "float":
            return f"({float(value)!r}d)"
        case _:
            return f"({value}L)"


def _text(value: str) -> str:
    """Octal for the control characters, since Java reads a Unicode escape before it reads the literal."""
    units = value.encode("utf-16-be", "surrogatepass")
    codes = [int.from_bytes(units[at : at + 2]) for at in range(0, len(units), 2)]
    return '"' + "".join(map(_unit, codes)) + '"'


def _unit(code: int) -> str:
    if code < 32 or code == 127:
        return f"\\{code:03o}"
    if code >= 128:
        return f"\\u{code:04x}"
    return {34: '\\"', 92: "\\\\"}.get(code) or chr(code)
