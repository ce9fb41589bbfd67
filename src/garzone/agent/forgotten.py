"""Adds what an answer forgot to import: modules of Python's own library, and names that only one of them can mean.

Models that are asked for a function seldom write the imports it needs, and the right answer fails for want of one line.
Only modules that can do no more than compute are added (`vet.HARMLESS_MODULES`); what it comes to is vetted and proved
like everything else. Text in, text out.
"""

from __future__ import annotations

import ast
import importlib

from garzone.agent.changes import FileEdit
from garzone.agent.filters import new_undefined_names
from garzone.agent.target import parse, split_lines
from garzone.agent.vet import HARMLESS_MODULES

# Names that are taken for a member of a module, where they are used without one. Not every member: a missing `count`
# is a function of the model's own rather than that of itertools.
_MEMBERS = {
    "abc": "ABC abstractmethod",
    "bisect": "bisect bisect_left bisect_right insort",
    "collections": "ChainMap Counter OrderedDict defaultdict deque namedtuple",
    "copy": "copy deepcopy",
    "dataclasses": "dataclass field",
    "datetime": "timedelta timezone",
    "decimal": "Decimal ROUND_HALF_UP",
    "enum": "Enum IntEnum auto",
    "fractions": "Fraction",
    "functools": "cache cached_property cmp_to_key lru_cache partial reduce total_ordering",
    "heapq": "heapify heappop heappush heappushpop heapreplace merge nlargest nsmallest",
    "itertools": """accumulate chain combinations combinations_with_replacement cycle dropwhile groupby islice pairwise
        permutations product starmap takewhile zip_longest""",
    "math": """ceil comb cos factorial floor fsum gcd hypot inf isclose isqrt lcm log log10 log2 perm pi prod radians
        sin sqrt tan trunc""",
    "operator": "attrgetter itemgetter",
    "random": "choice randint shuffle",
    "statistics": "mean median mode stdev variance",
    "string": "ascii_letters ascii_lowercase ascii_uppercase digits punctuation",
    "typing": """Any Callable Deque Dict FrozenSet Generator Generic Iterable Iterator List Literal Mapping NamedTuple
        Optional Protocol Sequence Set Tuple Type TypeVar Union""",
}
_MODULE_OF = {name: module for module, names in _MEMBERS.items() for name in names.split()}


def forgotten_imports(path: str, before: str, after: str, *, also: tuple[str, ...] = ()) -> tuple[str, ...]:
    """The imports that a new text of a file lacks, one statement each; none where other names are missing as well.

    Args:
        path: of the file; only Python is looked at.
        before: its text; what is missing there already stays as it is.
        after: its new text.
        also: modules that may be imported besides the harmless ones of Python's own library.
    """
    missing = new_undefined_names(FileEdit(path, before, after, b""))
    tree = parse(after) if missing else None
    if tree is None:
        return ()
    modules: list[str] = []
    members: dict[str, list[str]] = {}
    for name in sorted(missing):
        if _is_module(tree, name, also):
            modules.append(name)
        elif name in _MODULE_OF:
            members.setdefault(_MODULE_OF[name], []).append(name)
        else:
            return ()
    return (
        *(f"import {module}" for module in modules),
        *(f"from {module} import {', '.join(names)}" for module, names in members.items()),
    )


def with_imports(path: str, before: str, after: str, *, also: tuple[str, ...] = ()) -> str:
    """The new text of a file with what it forgot to import, behind the imports it has."""
    wanted = forgotten_imports(path, before, after, also=also)
    tree = parse(after) if wanted else None
    if tree is None:
        return after
    lines = split_lines(after)
    newline = "\r\n" if "\r\n" in after else "\n"
    at, imports = 0, False
    for node, after_it in zip(tree.body, [*tree.body[1:], None], strict=True):
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and node is tree.body[0]
        shares_line = after_it is not None and after_it.lineno == node.end_lineno
        if shares_line or not (docstring or isinstance(node, ast.Import | ast.ImportFrom)):
            break
        at, imports = node.end_lineno or 0, not docstring
    gap = [] if imports or not at else [newline]  # below a docstring
    rest = [] if imports or not lines[at:] or not lines[at].strip() else [newline, newline]
    if at and not lines[at - 1].endswith("\n"):
        gap = [newline, *gap]
    return "".join([*lines[:at], *gap, *(line + newline for line in wanted), *rest, *lines[at:]])


def _is_module(tree: ast.Module, name: str, also: tuple[str, ...]) -> bool:
    """Whether a name is used as a module of that name could be, and only so."""
    if name not in HARMLESS_MODULES and name not in also:
        return False
    uses = [node for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id == name]
    members = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.value in uses]
    if not uses or len(members) != len(uses):
        return False
    if name in also:
        return True
    module = importlib.import_module(name)
    return all(hasattr(module, node.attr) for node in members)
