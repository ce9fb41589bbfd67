"""Applies answers to files of languages that tree-sitter reads: one definition, or the whole file. Text in, text out.

The counterpart of `edit.py`, which does the same for Python with its own parser. Nothing is guessed: what cannot be
read for certain is an `EditMiss`, whose reason becomes part of the next prompt.
"""

from __future__ import annotations

import re
import textwrap

from garzone.agent.edit import MAX_ANSWER_CHARS, Edited, EditMiss, code_blocks, in_style_of
from garzone.agent.syntax import Definition, comment_above, definitions, first_error, is_source, num_errors
from garzone.agent.target import Span, split_lines

_IMPORT = re.compile(r"^(?:import\s.+|(?:const|let|var)\s.+=\s*require\(.+\);?|use\s.+;)$")


def replace_definition(path: str, text: str, span: Span, answer: str) -> Edited | EditMiss:
    """Put the answer's version of one function or method in the place of the old one.

    Accepts it alone, in its class, among other code, or in a whole file. Imports that the file lacks are added above.
    """
    if len(answer) > MAX_ANSWER_CHARS:
        return EditMiss("The answer was far too long. Write only the one function.")
    old = next((d for d in definitions(path, text) if d.span == span), None)
    if old is None:
        return EditMiss(f"The file has no function {span.qualname} that could be replaced.")
    blocks = [block.code for block in code_blocks(answer.replace("\r\n", "\n")) if block.code.strip()]
    reasons: list[str] = []
    for block in blocks or [answer]:
        code = textwrap.dedent(block).strip("\n") + "\n"
        found, within = _find(path, code, span)
        if found is None:
            reasons.append(first_error(path, code) or f"The code block does not define {span.name}. Keep that name.")
            continue
        new = within.encode()[found.start : found.end].decode("utf-8", "replace")
        result = _spliced(path, text, old, new, code)
        if num_errors(path, result) > num_errors(path, text):
            reasons.append(f"The function does not fit into the file: {first_error(path, result)}.")
            continue
        return Edited(result)
    return EditMiss(reasons[0] if reasons else "There was no code block in the answer.")


def _find(path: str, code: str, span: Span) -> tuple[Definition | None, str]:
    """The target in an answer, and the text in which it was found: a bare method is read inside a class."""
    for within in (code, f"class {_holder(span)} {{\n{code}\n}}\n", f"impl {_holder(span)} {{\n{code}\n}}\n"):
        found = [d for d in definitions(path, within) if d.span.name == span.name]
        exact = [d for d in found if d.span.qualname == span.qualname]
        if (chosen := (exact or found)[-1:]) and not (within is not code and num_errors(path, within)):
            return chosen[0], within
    return None, code


def _holder(span: Span) -> str:
    return span.qualname.rpartition(".")[0].rpartition(".")[2] or "Holder"


def _spliced(path: str, text: str, old: Definition, new: str, code: str) -> str:
    raw = text.encode()
    line_start = raw.rfind(b"\n", 0, old.start) + 1
    before = raw[line_start : old.start].decode("utf-8", "replace")
    indent = before if not before.strip() else ""
    was_exported = re.match(r"(export\s+(?:default\s+)?|pub(?:\([^)]*\))?\s+|public\s+)", old.signature)
    if was_exported and not re.match(r"export\b|pub\b|public\b", new):
        new = was_exported[1] + new  # models show the function without what makes it visible
    first, *rest = textwrap.dedent(" " * _margin(new) + new).splitlines()
    shifted = "\n".join([first, *(indent + line if line.strip() else "" for line in rest)])
    newline = "\r\n" if b"\r\n" in raw[:4096] else "\n"
    shifted = shifted.replace("\n", newline)
    result = raw[: old.start] + shifted.encode() + raw[old.end :]
    return _with_imports(result.decode("utf-8", "replace"), code, newline)


def _margin(code: str) -> int:
    """How far the lines after the first are moved in; the first one's own margin is lost when it is cut out."""
    last = code.splitlines()[-1] if code else ""
    return len(last) - len(last.lstrip())


def _with_imports(text: str, code: str, newline: str) -> str:
    lines = split_lines(text)
    have = {line.strip() for line in lines}
    new = [line.strip() for line in code.splitlines() if _IMPORT.match(line.strip()) and line.strip() not in have]
    if not new:
        return text
    at = max((i + 1 for i, line in enumerate(lines[:200]) if _IMPORT.match(line.strip())), default=0)
    if at == 0 and lines and (lines[0].startswith(("#!", "package ", '"use strict"', "'use strict'"))):
        at = 1
    return "".join([*lines[:at], *(line + newline for line in new), *lines[at:]])


def replace_text(path: str, text: str, answer: str) -> Edited | EditMiss:
    """Put the answer's code block in the place of a whole file that is not Python; it may be new (`text` is "")."""
    if len(answer) > MAX_ANSWER_CHARS:
        return EditMiss("The answer was far too long. Write the file once.")
    whole = [block for block in code_blocks(answer.replace("\r\n", "\n")) if block.closed and block.code.strip()]
    if not whole:
        return EditMiss("The answer has no complete code block. Put the whole file into one Markdown code block.")
    code = max(whole, key=lambda block: len(block.code)).code
    if is_source(path):
        if num_errors(path, code) > num_errors(path, text):
            return EditMiss(f"The code block does not parse: {first_error(path, code)}.")
        had = {d.span.qualname for d in definitions(path, text) if d.public}
        if missing := sorted(had - {d.span.qualname for d in definitions(path, code)}):
            return EditMiss(f"The code block leaves out {', '.join(missing[:5])}. Write the whole file.")
    return Edited(in_style_of(text, code))


def comment_for(path: str, text: str, definition: Definition) -> str | None:
    """The comment directly above a definition; None where there is none."""
    found = comment_above(path, text, definition)
    return "".join(split_lines(text)[found[0] - 1 : found[1]]) if found else None
