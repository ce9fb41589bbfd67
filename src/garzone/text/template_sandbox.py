"""A Jinja environment for templates that came with a download: no way out, and bounds on time, text and numbers.

Knows nothing of chat: `chat_template.py` says what templates are given and what their errors mean.

Jinja's sandbox keeps code from objects it should not see, but lets it loop and grow for ever. Here every loop step and
macro call is counted, and whatever multiplies text is measured first. What remains is arithmetic inside one step on
values of bounded size.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Final, cast

from jinja2 import nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import FILTERS  # pyright: ignore[reportUnknownVariableType]
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_SOURCE_CHARS: Final = 1 << 20
MAX_CHARS: Final = 1 << 25  # a context of a million tokens is some four million characters
MAX_STEPS: Final = 1_000_000  # a conversation of a thousand turns takes some ten thousand
MAX_SECONDS: Final = 5.0
_MAX_BITS: Final = 4096
_MAX_WIDTH: Final = 10_000
_MAX_DEPTH: Final = 100
_CHARS_PER_ELEMENT: Final = 64  # so that half a million elements are too many: walking more takes seconds

# What published templates use, less what multiplies (center, format, batch, slice, sum, wordwrap, ...).
_FILTERS: Final = frozenset(
    {
        "abs", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first", "float", "groupby", "int",
        "items", "last", "length", "list", "lower", "map", "max", "min", "reject", "rejectattr", "reverse", "round",
        "safe", "select", "selectattr", "sort", "string", "striptags", "title", "trim", "unique", "upper",
    }
)  # fmt: skip
_JINJA_FILTERS: Final = cast("dict[str, Any]", FILTERS)
_STEP, _CONCAT = " step", " concat"  # names that no template can spell
_PADDING: Final = frozenset({"center", "ljust", "rjust", "zfill", "expandtabs"})
# Widths of four digits, or taken from an argument, in `%` formats and in those of `str.format`.
_WIDE_PERCENT: Final = re.compile(r"%(?:\([^)]*\))?[-+ #0-9.]*(?:[0-9]{4}|\*)")
_WIDE_BRACES: Final = re.compile(r":[^{}]*(?:[0-9]{4}|\{)")


class TemplateLimit(SecurityError):
    """The template wants more time or room than any prompt needs."""


@dataclass(slots=True)
class Budget:
    """What one rendering may still use."""

    deadline: float = field(default_factory=lambda: time.monotonic() + MAX_SECONDS)
    steps: int = MAX_STEPS
    chars: int = MAX_CHARS

    def step(self) -> str:
        """Count a loop step or a call."""
        self.steps -= 1
        if self.steps < 0:
            raise TemplateLimit(f"more than {MAX_STEPS} loop steps")
        if time.monotonic() > self.deadline:
            raise TemplateLimit(f"more than {MAX_SECONDS:.0f} seconds")
        return ""

    def write(self, piece: str) -> str:
        """Count output."""
        self.chars -= len(piece)
        if self.chars < 0:
            raise TemplateLimit(f"more than {MAX_CHARS} characters of output")
        return piece


BUDGET: Final[ContextVar[Budget]] = ContextVar("budget")


def check_size(size: int) -> None:
    """Raise TemplateLimit for text or lists larger than any prompt."""
    if size > MAX_CHARS:
        raise TemplateLimit(f"a value of {size} characters or elements")


def measure(value: Any) -> int:
    """About how many characters `value` takes when written out.

    Raises:
        TemplateLimit: more than any prompt has room for; lists may hold other lists twice, and so on.
    """
    if not isinstance(value, list | tuple | dict):
        return len(value) if isinstance(value, str) else _CHARS_PER_ELEMENT
    left = MAX_CHARS
    stack: list[tuple[Any, int]] = [(value, 0)]
    while stack:
        item, depth = stack.pop()
        left -= len(item) + 2 if isinstance(item, str) else _CHARS_PER_ELEMENT
        if left < 0 or depth > _MAX_DEPTH:
            raise TemplateLimit("a nested value larger or deeper than any message")
        if isinstance(item, dict):
            entries = cast("dict[Any, Any]", item)
            check_size((2 * len(entries) + len(stack)) * _CHARS_PER_ELEMENT)
            stack += [(part, depth + 1) for pair in entries.items() for part in pair]
        elif isinstance(item, list | tuple):
            elements = cast("list[Any]", item)
            check_size((len(elements) + len(stack)) * _CHARS_PER_ELEMENT)
            stack += [(part, depth + 1) for part in elements]
    return MAX_CHARS - left


def _text(value: Any) -> str:
    measure(value)
    text = str(value)
    check_size(len(text))
    return text


def _tojson(
    value: Any,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
    ensure_ascii: bool = False,
) -> str:
    """As transformers writes it: not escaped for HTML."""
    measure(value)
    if indent is not None and not 0 <= indent <= 16:
        raise TemplateLimit(f"JSON indented by {indent}")
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _join(values: Iterable[Any], d: str = "", attribute: str | int | None = None) -> str:
    if attribute is not None:
        raise TemplateLimit("join by attribute is not offered; use map first")
    pieces: list[str] = []
    size = 0
    for value in values:
        BUDGET.get().step()
        pieces.append(_text(value))
        size += len(pieces[-1]) + len(d)
        check_size(size)
    return d.join(pieces)


def _replace(text: Any, old: str, new: str, count: int | None = None) -> str:
    text = _text(text)
    check_size(len(text) + text.count(old) * len(new))
    return text.replace(old, new, -1 if count is None else count)


def _indent(text: Any, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    text = _text(text)
    step = len(width) if isinstance(width, str) else max(width, 0)
    check_size(step + len(text) + text.count("\n") * step)
    return _JINJA_FILTERS["indent"](text, width, first, blank)


def _step(nothing: str) -> str:
    BUDGET.get().step()
    return nothing


def _concat(*values: Any) -> str:
    pieces = [_text(value) for value in values]
    check_size(sum(map(len, pieces)))
    return "".join(pieces)


@pass_context
def _finalize(_context: Context, value: Any) -> Any:
    # Taking the context keeps Jinja from computing constant expressions while it compiles, where nothing is counted.
    measure(value)
    return value


class _Generation(Extension):
    """`{% generation %}` marks what the model wrote, for training; here its content is simply shown."""

    tags: set[str] = {"generation"}  # noqa: RUF012  as the base class declares it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The statements between the tags."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class TemplateSandbox(ImmutableSandboxedEnvironment):
    """Parses and renders as transformers does (trim_blocks, lstrip_blocks, loop controls, its tojson), in bounds."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[loopcontrols, _Generation],
            optimized=False,
            finalize=_finalize,
        )
        ours: dict[str, Any] = {
            "tojson": _tojson, "join": _join, "replace": _replace, "indent": _indent, "string": _text,
            _STEP: _step, _CONCAT: _concat,
        }  # fmt: skip
        self.filters = {name: _JINJA_FILTERS[name] for name in _FILTERS} | ours
        del cast("dict[str, Any]", self.globals)["lipsum"]  # pyright: ignore[reportUnknownMemberType]

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        for concat in list(tree.find_all(nodes.Concat)):
            # In place: whoever points at the node now points at one whose only part measures before it joins.
            first, *others = concat.nodes
            concat.nodes = [_filter(_CONCAT, first, others)]
        for looped in list(tree.find_all((nodes.For, nodes.Macro, nodes.CallBlock))):
            counted = _filter(_STEP, nodes.Const("", lineno=looped.lineno), [])
            looped.body.insert(0, nodes.ExprStmt(counted, lineno=looped.lineno))
        tree.set_environment(self)
        return tree

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Arithmetic, after a look at what would come of it."""
        if operator == "+" and isinstance(left, str | list | tuple) and isinstance(right, str | list | tuple):
            check_size(len(cast("str", left)) + len(cast("str", right)))
        elif operator == "*":
            if isinstance(left, int) and isinstance(right, str | list | tuple | bytes):
                check_size(len(cast("str", right)) * max(left, 0))
            if isinstance(right, int) and isinstance(left, str | list | tuple | bytes):
                check_size(len(cast("str", left)) * max(right, 0))
            if isinstance(left, int) and isinstance(right, int):
                _check_bits(left.bit_length() + right.bit_length())
        elif operator == "**":
            if isinstance(left, int) and isinstance(right, int):
                _check_bits(left.bit_length() * abs(right))
        elif operator == "%" and isinstance(left, str):
            _check_format(left, _WIDE_PERCENT, left.count("%"), right)
        return super().call_binop(context, operator, left, right)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """`str.format` and `format_map`, after a look at what would come of them."""
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None
        text: str = value.__self__

        def checked(*args: Any, **kwargs: Any) -> str:
            _check_format(text, _WIDE_BRACES, text.count("{"), [*args, *kwargs.values()])
            return wrapped(*args, **kwargs)

        return checked

    def call(self, context: Context, obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Calls, after a look at what would come of them."""
        owner = getattr(obj, "__self__", None)
        if isinstance(owner, str | bytes):
            args = _checked_arguments(owner, obj.__name__, args)
        return super().call(context, obj, *args, **kwargs)


def _checked_arguments(owner: str | bytes, method: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
    if method in _PADDING and any(isinstance(arg, int) and arg > _MAX_WIDTH for arg in args):
        raise TemplateLimit(f"{method} to more than {_MAX_WIDTH} characters")
    if method == "replace" and len(args) >= 2:
        found = cast("str", owner).count(args[0])
        check_size(len(owner) + found * len(args[1]))
    if method == "join" and args:
        pieces: list[Any] = []
        size = 0
        for piece in args[0]:
            pieces.append(piece)
            size += len(owner) + (len(piece) if isinstance(piece, str | bytes) else 0)
            check_size(size)
        return (pieces,)
    if method == "translate":
        raise TemplateLimit("translate is not offered")
    return args


def _check_format(text: str, wide: re.Pattern[str], fields: int, values: Any) -> None:
    if wide.search(text):
        raise TemplateLimit("a wide number format")
    check_size(len(text) + fields * measure(values))


def _check_bits(bits: int) -> None:
    if bits > _MAX_BITS:
        raise TemplateLimit(f"a number of {bits} bits")


def _filter(name: str, value: nodes.Expr, arguments: list[nodes.Expr]) -> nodes.Filter:
    # Filters compile to plain calls; a call of a method would go through `call` and cost ten times as much.
    return nodes.Filter(value, name, arguments, [], None, None, lineno=value.lineno)


def bounded(pieces: Callable[[], Iterator[str]]) -> str:
    """Run a rendering under a fresh budget and join what it writes."""
    budget = Budget()
    token = BUDGET.set(budget)
    try:
        return "".join(budget.write(piece) for piece in pieces())
    finally:
        BUDGET.reset(token)
