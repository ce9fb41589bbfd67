"""Tries test files on mutants, each in a fork of one warm interpreter: run_mutants.py SPEC TESTS...

SPEC is a JSON file: {"path": file to replace, "mutants": [text, ...], "limit_s": seconds for one, "total_s": for all}.
To $GARZONE_OUT: {"clean": exit code on the code as it is, "codes": [exit code or null for no time, ...]}.
Times are those a process ran or slept; while it waits for a processor that others use, its clock stands still.
"""
# pyright: basic

import json
import os
import signal
import sys
import time

STRETCH = 8  # however busy the machine, nothing takes longer than so many times its limit


class Spent:
    """Seconds that all attempts took so far, without those in which they stood in line for a processor."""

    seconds = 0.0


def waited_s(pid):
    """How long the main thread of a process stood in line; 0 where the system does not say."""
    try:
        with open(f"/proc/{pid}/schedstat") as file:
            return int(file.read().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0


def attempt(path, text, tests, limit_s):
    """The exit code of pytest on the tests with a file's text replaced; 124 when it did not end."""
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            os.setpgid(0, 0)
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            os.dup2(null, 2)
            if text is not None:
                with open(path, "w", encoding="utf-8", newline="") as file:
                    file.write(text)
            sys.path.insert(0, os.getcwd())
            code = int(pytest.main(["-q", "-x", "-p", "no:cacheprovider", *tests]))
        except BaseException:  # a fork must end here whatever a mutant raises
            code = 70
        os._exit(code)
    began, waiting, used = time.monotonic(), 0.0, 0.0
    while used < limit_s and time.monotonic() - began < STRETCH * limit_s:
        waiting = max(waiting, waited_s(pid))
        done, status = os.waitpid(pid, os.WNOHANG)
        used = time.monotonic() - began - waiting
        if done:
            Spent.seconds += used
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    Spent.seconds += used
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return 124


with open(sys.argv[1], encoding="utf-8") as file:
    spec = json.load(file)
tests = sys.argv[2:]
os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
sys.dont_write_bytecode = True
import pytest  # noqa: E402 - warm before the first fork

os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # most tests need none, and loading them takes longer than the tests
facts = {"clean": attempt(spec["path"], None, tests, spec["total_s"] / 2), "codes": []}
if facts["clean"] != 0:
    del os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"]
    try:
        from importlib.metadata import entry_points

        for plugin in entry_points(group="pytest11"):  # else every fork would import them anew
            plugin.load()
    except Exception:  # a plugin that cannot be loaded is the forks' own affair
        sys.stderr.write("plugins not warmed\n")
    facts["clean"] = attempt(spec["path"], None, tests, spec["total_s"] / 2)
with open(spec["path"], encoding="utf-8", newline="") as file:
    original = file.read()
Spent.seconds = 0.0
facts["clean"] = facts["clean"] or attempt(spec["path"], None, tests, spec["total_s"] / 2)
limit_s = 5 * Spent.seconds + spec["limit_s"]  # in proportion to what the tests take here and now
if facts["clean"] == 0:
    for text in spec["mutants"]:
        late = Spent.seconds > spec["total_s"]
        facts["codes"].append(None if late else attempt(spec["path"], text, tests, limit_s))
    # tests that fail by the clock, by chance or by what an earlier run left would seem to notice everything
    for _ in range(2):
        facts["clean"] = facts["clean"] or attempt(spec["path"], original, tests, spec["total_s"] / 2)
with open(os.environ["GARZONE_OUT"], "w") as out:
    json.dump(facts, out)
