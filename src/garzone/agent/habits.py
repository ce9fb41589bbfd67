"""Reads how code looks in a repository: what its formatter is told, what its guides say. Text in, text out.

What a guide says is shown to the model as data: it decides neither task nor files nor check. Does not look at code.
"""

from __future__ import annotations

import configparser
import fnmatch
import json
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, cast

from garzone.agent.context import CodeBase
from garzone.agent.target import is_python, is_script

GUIDES = ("AGENTS.md", "CLAUDE.md", "CONTRIBUTING.md", ".github/CONTRIBUTING.md", "docs/CONTRIBUTING.md")
GUIDE_CHARS = 1200  # about 300 tokens; a guide is a help, and the code is what the room is for
_AS_WRITTEN = "skip-string-normalization"
_OF_STYLE = re.compile(
    r"style|convention|format|naming|docstring|comment|code|test|lint|rules|guideline", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class Habits:
    """`text` is what a model is shown, "" for nothing; `left_out` says what of it is not."""

    text: str = ""
    left_out: str = ""


def habits_of(code: CodeBase, path: str) -> Habits:
    """How a file of the repository shall look."""
    settings = list(dict.fromkeys(_settings(code, path)))
    lines = [f"{', '.join(settings)}."] if settings else []
    left_out = ""
    for guide in _guides(code, path):
        source = code.source(guide)
        said = _of_style(source.text) if source else ""
        if not said:
            continue
        shown = _cut(said, GUIDE_CHARS)
        lines.append(f"{guide} says:\n{shown}")
        left_out = f"all of {guide}" if source and len(shown) < len(source.text.strip()) else ""
        break
    return Habits("\n".join(lines), left_out)


def _guides(code: CodeBase, path: str) -> Iterator[str]:
    """Guides from the file's folder upwards: the nearest is meant first."""
    for folder in PurePosixPath(path).parents:
        for name in GUIDES:
            guide = str(folder / name)
            if guide in code.tracked:
                yield guide


def _of_style(text: str) -> str:
    """The sections of a guide that are about code; the whole where it has no headings."""
    sections = re.split(r"(?m)^(?=#{1,6} )", text.strip())
    chosen = [section.strip() for section in sections if _OF_STYLE.search(section.partition("\n")[0])]
    if not chosen:
        return text.strip() if len(sections) == 1 else ""
    return "\n\n".join(dict.fromkeys(chosen))


def _cut(text: str, max_chars: int) -> str:
    if len(text) <= max_chars:
        return text
    kept = text[:max_chars].rpartition("\n")[0] or text[:max_chars]
    return f"{kept}\n[...]"


def _settings(code: CodeBase, path: str) -> Iterator[str]:
    """What formatters are told, as phrases."""
    tables = [_editorconfig(code, path)]
    if is_python(path):
        tool = _table(_toml(code, "pyproject.toml").get("tool"))
        ruff, black = _table(tool.get("ruff")), _table(tool.get("black"))
        own = _toml(code, "ruff.toml") or _toml(code, ".ruff.toml") or ruff
        style = _table(own.get("format"))
        tables.append({
            "width": own.get("line-length") or black.get("line-length"),
            "quotes": style.get("quote-style") or ("double" if black and not black.get(_AS_WRITTEN) else None),
            "indent": style.get("indent-style"),
            "docstrings": _table(_table(own.get("lint")).get("pydocstyle")).get("convention"),
        })  # fmt: skip
    elif is_script(path):
        own = _json(code, ".prettierrc") or _json(code, ".prettierrc.json")
        own = own or _table(_json(code, "package.json").get("prettier"))
        semi, single = own.get("semi"), own.get("singleQuote")
        tables.append({
            "width": own.get("printWidth"),
            "quotes": ("single" if single else "double") if isinstance(single, bool) else None,
            "size": own.get("tabWidth"),
            "indent": "tab" if own.get("useTabs") else None,
            "more": f"with{'' if semi else 'out'} semicolons" if isinstance(semi, bool) else None,
        })  # fmt: skip
    elif path.endswith(".rs"):
        own = _toml(code, "rustfmt.toml") or _toml(code, ".rustfmt.toml")
        tables.append({"width": own.get("max_width"), "size": own.get("tab_spaces")})
    found: dict[str, Any] = {}
    for table in tables:
        found |= {key: value for key, value in table.items() if value}
    if width := found.get("width"):
        yield f"lines of at most {width} characters"
    if quotes := found.get("quotes"):
        yield f"{quotes} quotes"
    if found.get("indent") == "tab":
        yield "indented with tabs"
    elif size := found.get("size"):
        yield f"indented with {size} spaces"
    if found.get("docstrings"):
        yield f"docstrings in the {found['docstrings']} style"
    if found.get("more"):
        yield str(found["more"])


def _editorconfig(code: CodeBase, path: str) -> dict[str, Any]:
    """What .editorconfig of the top says for a file."""
    source = code.source(".editorconfig")
    if source is None:
        return {}
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    try:
        parser.read_string("[*top*]\n" + source.text)
    except configparser.Error:
        return {}
    said: dict[str, str] = {}
    for pattern in parser.sections():
        # {a,b} is the only thing of its patterns that fnmatch does not know
        choices = re.sub(r"\{([^}]*)\}", lambda m: "\0" + m[1] + "\0", pattern).split("\0")
        alone = (
            [choices[0] + each + "".join(choices[2:]) for each in choices[1].split(",")]
            if len(choices) > 1
            else choices
        )
        if any(fnmatch.fnmatch(PurePosixPath(path).name, each) or fnmatch.fnmatch(path, each) for each in alone):
            said |= dict(parser.items(pattern))
    width = said.get("max_line_length")
    return {
        "width": width if width and width.isdigit() else None,
        "size": said.get("indent_size") if said.get("indent_size", "").isdigit() else None,
        "indent": said.get("indent_style"),
    }


def _toml(code: CodeBase, name: str) -> dict[str, Any]:
    source = code.source(name)
    try:
        return tomllib.loads(source.text) if source else {}
    except tomllib.TOMLDecodeError:
        return {}


def _json(code: CodeBase, name: str) -> dict[str, Any]:
    source = code.source(name)
    try:
        return _table(json.loads(source.text)) if source else {}
    except (ValueError, RecursionError):
        return {}


def _table(value: object) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}
