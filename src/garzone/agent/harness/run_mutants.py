"""Tries test files on mutants, each in a fork of one warm interpreter: run_mutants.py SPEC TESTS...

SPEC is a JSON file: {"path": file to replace, "mutants": [text, ...], "limit_s": seconds for one, "total_s": for all}.
To $GARZONE_OUT: {"clean": exit code on the code as it is, "codes": [exit code or null for no time, ...]}.
"""
# pyright: basic

import json
import os
import signal
import sys
import time


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
    until = time.monotonic() + limit_s
    while time.monotonic() < until:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
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
started = time.monotonic()
facts["clean"] = facts["clean"] or attempt(spec["path"], None, tests, spec["total_s"] / 2)
limit_s = 5 * (time.monotonic() - started) + spec["limit_s"]  # in proportion to what the tests take here and now
if facts["clean"] == 0:
    for text in spec["mutants"]:
        late = time.monotonic() - started > spec["total_s"]
        facts["codes"].append(None if late else attempt(spec["path"], text, tests, limit_s))
    # tests that fail by the clock, by chance or by what an earlier run left would seem to notice everything
    for _ in range(2):
        facts["clean"] = facts["clean"] or attempt(spec["path"], original, tests, spec["total_s"] / 2)
with open(os.environ["GARZONE_OUT"], "w") as out:
    json.dump(facts, out)
