"""Reads calls out of docstrings: those of examples (`>>> ...`), and those of prose such as `name([1, 2]) == 3`.

Gives what is written there; runs nothing.
"""
# pyright: basic

import ast
import doctest
import re

# what stands between a call and the value that it is said to have
SAYS = re.compile(
    r"[`'\"]?\s*(?:#\s*)?(?:=+>|-+>|→|➞|➜|⇒|={1,3}|:|(?:should|must|will|would)\s+(?:be|return|give|equal)|"
    r"(?:returns?|gives?|yields?|is|equals?|becomes)(?=\s))\s*(?P<value>\S.*)"
)
REMARK = re.compile(r",?\s+(?:because|since|as|but|and|or|while|\()|;|,\s+\w+\(")  # or the next call
WORDS = {"true": "True", "false": "False", "none": "None", "null": "None"}


def examples_of(docstring, name):
    """Arguments of literal calls in examples and in prose like `name([1, 2]) == 3`."""
    sources = []
    try:
        sources += [e.source for e in doctest.DocTestParser().get_examples(docstring or "")]
    except ValueError:
        pass
    sources += [line.strip().split("#")[0] for line in (docstring or "").splitlines() if name + "(" in line]
    for line in sources:
        source = line.strip().removeprefix(">>>").strip()
        for text in (source, source.split("==")[0].split("=>")[0].split("->")[0].split("➞")[0]):
            try:
                tree = ast.parse(text.strip())
            except (SyntaxError, ValueError):
                continue
            for node in ast.walk(tree):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name:
                    arguments = literal_arguments(node)
                    if arguments is not None:
                        yield arguments
            break


def claims_of(docstring, name):
    """What prose says of literal calls: pairs of arguments and a value. Examples are left to doctest."""
    for line in (docstring or "").splitlines():
        if not line.strip().startswith(">>>"):
            for arguments, rest in calls_in(line, name):
                said = SAYS.match(rest)
                value = said and value_in(said["value"])
                if value:
                    yield arguments, value[0]


def calls_in(line, name):
    """Literal calls in a line, as arguments, each with what comes behind it."""
    for found in re.finditer(rf"(?<![\w.]){re.escape(name)}\(", line):
        for end in (m.end() for m in re.finditer(r"\)", line) if m.end() > found.end()):
            try:
                node = ast.parse(line[found.start() : end], mode="eval").body
            except (SyntaxError, ValueError):
                continue
            arguments = literal_arguments(node) if isinstance(node, ast.Call) else None
            if arguments is not None:
                yield arguments, line[end:]
            break


def literal_arguments(call):
    """The arguments of a call by position; None where there are others."""
    if call.keywords:
        return None
    try:
        return [ast.literal_eval(argument) for argument in call.args]
    except (ValueError, TypeError):
        return None


def value_in(text):
    """The literal that a text begins with and that all of it is but for a remark, in a tuple; None for any other."""
    for part in (text, text.split("#")[0], REMARK.split(text)[0]):
        bare = part.strip().rstrip("`.,; ")
        try:
            return (ast.literal_eval(WORDS.get(bare.lower(), bare)),)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            continue
    return None
