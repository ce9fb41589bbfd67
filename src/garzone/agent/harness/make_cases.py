"""Makes inputs for functions of a file and records what comes of them: make_cases.py FILE NAME...

Inputs come from the examples of docstrings, from annotations, and from literals of the source, varied. To $GARZONE_OUT,
as JSON: {name: [{"arguments": [...], "result": ...} or {"arguments": [...], "raises": type}]}; only what JSON can hold
exactly, and only what comes out the same twice. "unlike" is true for inputs that break a rule which all examples of the
docstring keep (bits only, no element twice, equal lengths), and for those whose result is of another type than the
function says: what is asked of it there is not known. Inputs on which the source raises what it does not name itself
are left out.
"""
# pyright: basic

import ast
import copy
import importlib
import json
import math
import os
import random
import signal
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from shown import examples_of

MAX_CASES, MAX_SAFE, MAX_CHARS = 60, 2**53 - 1, 4000
INTS = [0, 1, 2, 3, 5, 7, 10, 12, 25, 100, -1, -3, -10]
FLOATS = [0.0, 1.0, 0.5, -2.5, 3.25, 10.125, 100.0]
STRINGS = ["", "a", "abc", "Hello World", "racecar", "a b c", "123", "Zz9", "aab", "one two  three"]
ANY = [0, 1, -2, 2.5, "a", "", True, None]


class Late(Exception):
    pass


def late(number, frame):
    raise Late


def load(path):
    path = os.path.abspath(path)
    folder, name = os.path.split(os.path.splitext(path)[0])
    parts = [name]
    while os.path.exists(os.path.join(folder, "__init__.py")):
        parts.insert(0, os.path.basename(folder))
        folder = os.path.dirname(folder)
    sys.path[:0] = [folder, os.getcwd()]
    return importlib.import_module(".".join(parts))


def value_of(node, rng, depth=0):
    """A value for an annotation; raises ValueError where it says nothing usable."""
    if node is None:
        raise ValueError
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return value_of(ast.parse(node.value, mode="eval").body, rng, depth)
    if isinstance(node, ast.Constant) and node.value is None:
        return None
    name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
    if name == "int":
        return rng.choice(INTS)
    if name == "float":
        return rng.choice(FLOATS)
    if name == "str":
        return rng.choice(STRINGS)
    if name == "bool":
        return rng.random() < 0.5
    if name in ("Any", "object"):
        return rng.choice(ANY)
    if name in ("list", "List", "Sequence", "Iterable"):
        return [rng.choice(INTS) for _ in range(rng.choice([0, 1, 2, 3, 5]))]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return value_of(rng.choice([node.left, node.right]), rng, depth)
    if isinstance(node, ast.Subscript):
        outer = node.value.id if isinstance(node.value, ast.Name) else getattr(node.value, "attr", "")
        inner = list(node.slice.elts) if isinstance(node.slice, ast.Tuple) else [node.slice]
        if outer in ("list", "List", "Sequence", "Iterable", "Collection"):
            size = rng.choice([0, 1, 2, 3, 5] if depth < 2 else [0, 1, 2])
            return [value_of(inner[0], rng, depth + 1) for _ in range(size)]
        if outer in ("tuple", "Tuple"):
            raise ValueError  # an argument that is a tuple in Python is something else in every language
        if outer in ("dict", "Dict", "Mapping"):
            size = rng.choice([0, 1, 2, 3])
            return {str(value_of(inner[0], rng, depth + 1)): value_of(inner[1], rng, depth + 1) for _ in range(size)}
        if outer == "Optional":
            return None if rng.random() < 0.3 else value_of(inner[0], rng, depth)
        if outer == "Union":
            return value_of(rng.choice(inner), rng, depth)
    raise ValueError


def varied(value, rng):
    """A value of the same shape that is a little different."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + rng.choice([-2, -1, 1, 2, 10])
    if isinstance(value, float):
        return value + rng.choice([-1.5, -0.25, 0.25, 1.5])
    if isinstance(value, str):
        if not value:
            return value
        at = rng.randrange(len(value))
        kind = rng.randrange(6)
        if kind == 0:
            return value[:at] + value[at + 1 :]
        if kind == 1:
            return value[:at] + rng.choice(value) + value[at:]
        if kind == 2:
            return value + " " + value
        if kind == 3:
            return value.upper()
        if kind == 4:
            return value[::-1]
        return value[: at + 1]
    if isinstance(value, list):
        return varied_list(value, rng)
    if isinstance(value, tuple):
        return tuple(varied_list(list(value), rng))
    if isinstance(value, (set, frozenset)):
        return set(varied_list(sorted(value, key=repr), rng))
    if isinstance(value, dict) and value:
        key = rng.choice(sorted(value, key=str))
        return {**value, key: varied(value[key], rng)}
    return value


def varied_list(value, rng):
    if not value:
        return value
    at = rng.randrange(len(value))
    kind = rng.randrange(5)
    if kind == 0:
        return value[:at] + value[at + 1 :]
    if kind == 1:
        return value + [copy.deepcopy(rng.choice(value))]
    if kind == 2:
        return value[::-1]
    return [*value[:at], varied(value[at], rng), *value[at + 1 :]]


def plain(value, inside=False):
    """The value as JSON holds it; raises ValueError for what it cannot hold exactly."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        if abs(value) > MAX_SAFE:
            raise ValueError
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError
        return value
    if isinstance(value, (list, tuple)):
        return [plain(v, True) for v in value]
    if isinstance(value, dict):
        if not all(isinstance(k, str) for k in value):
            raise ValueError
        return {k: plain(v, True) for k, v in value.items()}
    raise ValueError


def has_tuple(value):
    if isinstance(value, (list, dict)):
        return any(has_tuple(v) for v in (value.values() if isinstance(value, dict) else value))
    return isinstance(value, (tuple, set, frozenset))


def leaves(value):
    if isinstance(value, list):
        for item in value:
            yield from leaves(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from leaves(item)
    else:
        yield value


def lists_in(value):
    if isinstance(value, list):
        yield value
        for item in value:
            yield from lists_in(item)


def kind_of(value):
    return "number" if isinstance(value, (int, float)) and not isinstance(value, bool) else type(value).__name__


def rules_of(pool):
    """Rules that all examples keep, as predicates of arguments; few examples and plain values keep few rules."""
    rules = []
    width = min((len(arguments) for arguments in pool), default=0)
    for at in range(width):
        values = [arguments[at] for arguments in pool]
        kinds = {kind_of(leaf) for value in values for leaf in leaves(value)}
        if kinds:
            rules.append(lambda a, at=at, kinds=kinds: {kind_of(leaf) for leaf in leaves(a[at])} <= kinds)
        texts = [leaf for value in values for leaf in leaves(value) if isinstance(leaf, str)]
        letters = set("".join(texts))
        if texts and not any(is_blank(text) for text in texts):
            rules.append(lambda a, at=at: not any(isinstance(x, str) and is_blank(x) for x in leaves(a[at])))
        rules += [
            lambda a, at=at, is_odd=is_odd: not any(isinstance(x, str) and is_odd(x) for x in leaves(a[at]))
            for is_odd in (starts_blank, ends_blank, is_spaced)
            if texts and not any(map(is_odd, texts))
        ]
        if sum(map(len, texts)) >= 3 * len(letters) and letters and len(letters) <= 6:
            rules.append(
                lambda a, at=at, seen=letters: {c for x in leaves(a[at]) if isinstance(x, str) for c in x} <= seen
            )
        elif letters:  # no letters, no digits or no signs at all
            classes = {c.isalpha() + 2 * c.isdigit() + 4 * c.isspace() or c for c in letters}
            rules.append(
                lambda a, at=at, classes=classes: (
                    {
                        c.isalpha() + 2 * c.isdigit() + 4 * c.isspace() or c
                        for x in leaves(a[at])
                        if isinstance(x, str)
                        for c in x
                    }
                    <= classes
                )
            )
        found = [each for value in values for each in lists_in(value) if len(each) > 1]
        if len(found) > 1:
            rules += [
                lambda a, at=at, holds=holds: all(map(holds, lists_in(a[at])))
                for holds in (distinct, ordered, one_size)
                if all(map(holds, found))
            ]
        numbers = [x for value in values for x in leaves(value) if kind_of(x) == "number"]
        if len(numbers) > 1 and min(numbers) > 0:
            rules.append(lambda a, at=at: all(x > 0 for x in leaves(a[at]) if kind_of(x) == "number"))
        elif len(numbers) > 1 and min(numbers) == 0:
            rules.append(lambda a, at=at: all(x >= 0 for x in leaves(a[at]) if kind_of(x) == "number"))
        if len(numbers) > 2 and all(isinstance(x, int) for x in numbers):
            rules.append(lambda a, at=at: all(isinstance(x, int) for x in leaves(a[at]) if kind_of(x) == "number"))
        if len(values) > 1 and all(isinstance(value, (list, str, dict)) and value for value in values):
            rules.append(lambda a, at=at: len(a[at]) > 0)
        for other in range(at):
            pairs = [(arguments[other], arguments[at]) for arguments in pool]
            if len(pairs) > 1 and all(same_length(*pair) for pair in pairs):
                rules.append(lambda a, at=at, other=other: same_length(a[other], a[at]))
    return rules


def is_blank(text):
    return text != "" and not text.strip()


def starts_blank(text):
    return text[:1].isspace()


def ends_blank(text):
    return text[-1:].isspace()


def is_spaced(text):
    return "  " in text


def distinct(items):
    return len({repr(item) for item in items}) == len(items)


def ordered(items):
    try:
        return sorted(items) == items
    except TypeError:
        return False


def one_size(items):
    return all(isinstance(item, (list, str)) for item in items) and len({len(item) for item in items}) == 1


def same_length(one, other):
    return isinstance(one, (str, list)) and isinstance(other, (str, list)) and len(one) == len(other)


def contradicts(annotation, case):
    """Whether a result is of another type than the function says; whatever is not plain says nothing."""
    name = annotation.id if isinstance(annotation, ast.Name) else ""
    kinds = {"int": "number", "float": "number", "str": "str", "bool": "bool", "list": "list", "dict": "dict"}
    return name in kinds and "result" in case and kind_of(case["result"]) != kinds[name]


def is_unlike(rules, arguments):
    try:
        return not all(rule(arguments) for rule in rules)
    except (IndexError, TypeError):
        return True


def attempt(function, arguments, explicit):
    kept = json.dumps([plain(a) for a in arguments], sort_keys=True)
    if len(kept) > MAX_CHARS:
        raise ValueError
    outcomes = []
    for _ in range(2):
        signal.setitimer(signal.ITIMER_REAL, 1.0)
        try:
            outcomes.append({"result": plain(function(*copy.deepcopy(arguments)))})
        except Late:
            raise ValueError from None
        except ValueError as error:
            if not error.args and "ValueError" not in explicit:
                raise
            if "ValueError" not in explicit:
                raise ValueError from None
            outcomes.append({"raises": "ValueError"})
        except Exception as error:  # the translated code may raise anything; which is compared
            if type(error).__name__ not in explicit:
                raise ValueError from None
            outcomes.append({"raises": type(error).__name__})
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    if outcomes[0] != outcomes[1]:
        raise ValueError
    return {"arguments": json.loads(kept), **outcomes[0]}


def cases_of(function, node, source):
    rng = random.Random(20)
    explicit = {
        getattr(n.exc.func if isinstance(n.exc, ast.Call) else n.exc, "id", "")
        for n in ast.walk(node)
        if isinstance(n, ast.Raise) and n.exc
    }
    pool = list(examples_of(ast.get_docstring(node), node.name))
    pool = [arguments for arguments in pool if not any(has_tuple(a) for a in arguments)]
    literals = [n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, (int, str))]
    rules = rules_of(pool)
    tried, found = set(), []

    def consider(arguments):
        key = repr(arguments)
        if key in tried or len(found) >= MAX_CASES:
            return
        tried.add(key)
        try:
            case = attempt(function, arguments, explicit)
            unlike = is_unlike(rules, arguments) or contradicts(node.returns, case)
            found.append({**case, "unlike": True} if unlike else case)
        except (ValueError, RecursionError, TypeError):
            pass

    for arguments in pool:
        consider(arguments)
    taken = [*node.args.posonlyargs, *node.args.args]
    required = len(taken) - len(node.args.defaults)
    for turn in range(400):
        if len(found) >= MAX_CASES:
            break
        if pool and turn % 2:
            arguments = copy.deepcopy(rng.choice(pool))
            for _ in range(rng.choice([1, 1, 2, 3])):
                if arguments:
                    at = rng.randrange(len(arguments))
                    arguments[at] = varied(arguments[at], rng)
            consider(arguments)
            continue
        size = rng.randint(required, len(taken)) if len(taken) >= required else required
        try:
            arguments = [value_of(a.annotation, rng) for a in taken[:size]]
        except (ValueError, SyntaxError, AttributeError):
            continue
        if literals and rng.random() < 0.3 and arguments:
            literal = rng.choice(literals)
            for at, argument in enumerate(arguments):
                if type(argument) is type(literal):
                    arguments[at] = literal
        consider(arguments)
    return found


def main():
    signal.signal(signal.SIGALRM, late)
    path, names = sys.argv[1], sys.argv[2:]
    with open(path, encoding="utf-8") as file:
        source = file.read()
    tree = ast.parse(source)
    module = load(path)
    facts = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name in names:
            facts[node.name] = cases_of(getattr(module, node.name), node, source)
    with open(os.environ["GARZONE_OUT"], "w") as out:
        json.dump({"cases": facts}, out)


if __name__ == "__main__":
    main()
