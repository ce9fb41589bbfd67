"""Calls functions of a file with recorded arguments and variations of them: replay_calls.py FILE CALLS.

To $GARZONE_OUT, as JSON: a list of [qualname, shown arguments, what came of it], the same order every time.
"""
# pyright: basic

import copy
import importlib
import json
import os
import pickle
import signal
import sys

MAX_TEXT, VARIATIONS = 2000, 6


def load(path):
    path = os.path.abspath(path)
    folder, name = os.path.split(os.path.splitext(path)[0])
    parts = [name]
    while os.path.exists(os.path.join(folder, "__init__.py")):
        parts.insert(0, os.path.basename(folder))
        folder = os.path.dirname(folder)
    sys.path[:0] = [folder, os.getcwd()]
    return importlib.import_module(".".join(parts))


def shown(value, depth=0):
    """A value as text that does not hold addresses, and orders what has no order."""
    if depth > 8:
        return "..."
    if isinstance(value, (bool, int, float, complex, str, bytes, type(None))):
        return repr(value)
    if isinstance(value, (list, tuple)):
        inner = ", ".join(shown(v, depth + 1) for v in list(value)[:200])
        return "%s(%s)" % (type(value).__name__, inner)
    if isinstance(value, (set, frozenset)):
        return "%s{%s}" % (type(value).__name__, ", ".join(sorted(shown(v, depth + 1) for v in list(value)[:200])))
    if isinstance(value, dict):
        pairs = ["%s: %s" % (shown(k, depth + 1), shown(v, depth + 1)) for k, v in list(value.items())[:200]]
        return "%s{%s}" % (type(value).__name__, ", ".join(pairs))
    if isinstance(value, BaseException):
        return "%s(%s)" % (type(value).__name__, shown(value.args, depth + 1))
    if hasattr(value, "__next__"):
        taken = []
        for item in value:
            taken.append(shown(item, depth + 1))
            if len(taken) >= 50:
                break
        return "iterator(%s)" % ", ".join(taken)
    if callable(value):
        return "callable %s" % getattr(value, "__qualname__", type(value).__name__)
    state = getattr(value, "__dict__", None)
    if state is not None:
        return "%s(%s)" % (type(value).__qualname__, shown(state, depth + 1))
    text = repr(value)
    return type(value).__qualname__ if " at 0x" in text else text


def varied(arguments):
    """The same arguments with one plain value changed at a time; types stay."""
    for index, value in enumerate(arguments):
        for other in others(value):
            yield [*arguments[:index], other, *arguments[index + 1 :]]


def others(value):
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1, value - 1, 0, -value]
    if isinstance(value, float):
        return [value + 0.5, 0.0, -value]
    if isinstance(value, str):
        return ["", value + value, value[::-1], value.upper()]
    if isinstance(value, list):
        return [[], value[:1], value[::-1], value + value]
    if isinstance(value, tuple):
        return [value[::-1]]
    if isinstance(value, dict):
        return [{}] if value else []
    return []


class Late(Exception):
    pass


def late(number, frame):
    raise Late


def outcome(function, positional, named):
    positional, named = copy.deepcopy(positional), copy.deepcopy(named)
    signal.setitimer(signal.ITIMER_REAL, 1.0)
    try:
        result = function(*positional, **named)
        if hasattr(result, "__await__"):
            import asyncio

            result = asyncio.run(result)
        said = "returns " + shown(result)
    except Late:
        return "does not end"
    except Exception as error:  # what the code raises is what is compared
        said = "raises " + type(error).__name__
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return (said + " leaving " + shown(positional) + shown(named))[:MAX_TEXT]


def find(module, name):
    value = module
    for part in name.split("."):
        value = value.__dict__[part] if isinstance(value, type) and part in value.__dict__ else getattr(value, part)
    return value


def main():
    signal.signal(signal.SIGALRM, late)
    module = load(sys.argv[1])
    sys.stdout = open(os.devnull, "w")
    with open(sys.argv[2], "rb") as file:
        calls = pickle.load(file)
    renamed = json.loads(os.environ.get("GARZONE_RENAMED") or "{}")
    results = []
    for number, (name, _line, packed) in enumerate(calls):
        try:
            function = find(module, ".".join(renamed.get(part, part) for part in name.split(".")))
            positional, named = pickle.loads(packed)
        except Exception as error:  # importing and unpickling run the project's own code
            results.append([number, name, "", "is gone: " + type(error).__name__])
            continue
        function = getattr(function, "__func__", function)
        if isinstance(function, property):
            function = function.fget
        if not callable(function):
            continue
        results.append([number, name, shown(positional)[:300], outcome(function, positional, named)])
        for other, _ in zip(varied(positional), range(VARIATIONS)):
            results.append([number, name, shown(other)[:300], outcome(function, other, named)])
    with open(os.environ["GARZONE_OUT"], "w") as out:
        json.dump({"results": results}, out)


main()
