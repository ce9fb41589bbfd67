"""Runs several programs on the same inputs, each in a process of its own: agree.py SPEC.

SPEC is a JSON file: {"path": file the programs are texts of, "programs": [text, ...], "inputs": [[name, tuple], ...],
"names": [function whose docstring and annotations say what inputs it takes, ...]}.
To $GARZONE_OUT: {"outcomes": [[text, ...] or null for a program that could not be loaded or did not end, ...]}.
"""
# pyright: basic

import ast
import copy
import json
import os
import random
import signal
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from make_cases import is_unlike, rules_of, value_of, varied
from shown import calls_in, examples_of

MAX_INPUTS, VARIATIONS, CALL_S, PROGRAM_S = 32, 200, 0.3, 4.0
MAX_MADE, TRIES = 10, 60  # inputs from annotations alone


class Late(Exception):
    pass


def late(number, frame):
    raise Late


def shown(value):
    """A value as text in which order and rounding say nothing where they mean nothing."""
    if isinstance(value, float):
        return format(value, ".9g")
    if isinstance(value, (set, frozenset)):
        return "{%s}" % ", ".join(sorted(map(shown, value)))
    if isinstance(value, (list, tuple)):
        return "%s(%s)" % (type(value).__name__, ", ".join(map(shown, value)))
    if isinstance(value, dict):
        return "{%s}" % ", ".join("%s: %s" % (shown(k), shown(v)) for k, v in value.items())
    return repr(value)


def inputs_for(text, names):
    """What docstrings show of functions, and what annotations allow that breaks no rule of what is shown."""
    rng = random.Random(11)
    found = []
    for node in ast.parse(text).body:
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) or node.name not in names:
            continue
        words = ast.get_docstring(node) or ""
        in_prose = (call for line in words.splitlines() for call, _ in calls_in(line, node.name))
        shown_here = [*examples_of(words, node.name), *in_prose]
        rules, made = rules_of(shown_here), []
        for _ in range(TRIES):
            try:
                arguments = [value_of(each.annotation, rng) for each in [*node.args.posonlyargs, *node.args.args]]
            except (ValueError, SyntaxError, AttributeError):
                break
            if arguments and len(made) < MAX_MADE and not is_unlike(rules, arguments):
                made.append(arguments)
        found += [(node.name, tuple(arguments)) for arguments in shown_here + made if arguments]
    return found


def inputs_of(given):
    """The given inputs and others near them, the same every time."""
    if not given:
        return []
    rng = random.Random(7)
    found = {(name, repr(arguments)): (name, arguments) for name, arguments in given}
    for _ in range(VARIATIONS):
        if len(found) >= MAX_INPUTS:
            break
        name, arguments = rng.choice(given)
        other = list(copy.deepcopy(arguments))
        for _ in range(rng.choice([1, 1, 2])):
            at = rng.randrange(len(other))
            other[at] = varied(other[at], rng)
        found.setdefault((name, repr(tuple(other))), (name, tuple(other)))
    return list(found.values())


def outcomes_of(text, path, inputs):
    """What a program does with the inputs."""
    space = {"__name__": os.path.splitext(os.path.basename(path))[0], "__file__": path}
    exec(compile(text, path, "exec"), space)
    signal.signal(signal.SIGALRM, late)
    found = []
    for name, arguments in inputs:
        signal.setitimer(signal.ITIMER_REAL, CALL_S)
        try:
            found.append(shown(space[name](*copy.deepcopy(arguments)))[:2000])
        except Late:
            found.append("does not end")
        except Exception as error:  # what a program raises is what is compared
            found.append("raises " + type(error).__name__)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    return found


def apart(text, path, inputs):
    """The same in a process of its own; None where it does not come to an end."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setpgid(0, 0)
            null = os.open(os.devnull, os.O_RDWR)
            for stream in (0, 1, 2):
                os.dup2(null, stream)
            found = outcomes_of(text, path, inputs)
            with os.fdopen(writing, "w") as pipe:
                json.dump(found, pipe)
        except BaseException:  # a fork must end here whatever a program raises
            os._exit(70)
        os._exit(0)
    os.close(writing)
    os.set_blocking(reading, False)
    said, until, done = b"", time.monotonic() + PROGRAM_S, 0
    while time.monotonic() < until:
        try:
            piece = os.read(reading, 1 << 16)
            said += piece
            if not piece:
                break
        except BlockingIOError:
            time.sleep(0.005)
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGKILL)
    done, _ = os.waitpid(pid, 0)
    os.close(reading)
    try:
        return json.loads(said) if done else None
    except ValueError:
        return None


def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        spec = json.load(file)
    sys.path.insert(0, os.getcwd())
    given = [(name, ast.literal_eval(text)) for name, text in spec["inputs"]]
    inputs = inputs_of(given or inputs_for(spec["programs"][0], spec["names"]))
    outcomes = [apart(text, spec["path"], inputs) for text in spec["programs"]]
    with open(os.environ["GARZONE_OUT"], "w") as out:
        json.dump({"outcomes": outcomes}, out)


main()
