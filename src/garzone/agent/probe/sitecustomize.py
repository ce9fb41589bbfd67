"""Says from inside a Python process which tests ran and how they ended. PYTEST_DONT_REWRITE.

Loaded by every Python the check starts (its directory is first on PYTHONPATH, read-only), whatever its version from 3.6
on; imports nothing of garzone and decides nothing. One JSON line a fact goes to the file GARZONE_EVIDENCE names. Why
this is evidence and not proof is told in `vet.py`.
"""

# Runs in the project's Python, which may be an old one without annotations as we write them, and must not disturb it.
# pyright: basic
# ruff: noqa: PTH100, PTH113, PTH120, PTH123, UP031, PLC0415, PLW0603, S102

import json
import os
import sys

_EVIDENCE = os.environ.get("GARZONE_EVIDENCE", "")
_HERE = os.path.dirname(os.path.abspath(__file__))
_write, _open, _close, _set_blocking = os.write, os.open, os.close, os.set_blocking
_dumps, _pid = json.dumps, os.getpid


def _opened():
    try:
        # opening a pipe that nobody reads would wait for ever: whoever started the check was killed
        descriptor = _open(_EVIDENCE, os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK)
    except OSError:
        return None  # the check runs somewhere without it: then there is no evidence, and the reader knows what to do
    _set_blocking(descriptor, True)  # what is written must not get lost where the pipe is full for a moment
    return descriptor


def _record(**fact):
    fact["pid"] = _pid()
    line = _line(fact)
    # a pipe takes lines of up to 4 KiB in one piece (PIPE_BUF), whoever else writes
    while len(line) > 4000 and (fact.get("trace") or fact.get("message")):
        fact["trace"] = fact.get("trace", [])[-(len(fact.get("trace", [])) // 2) :] if fact.get("trace") else []
        fact["message"] = fact.get("message", "")[-(len(fact.get("message", "")) // 2) :]
        if len(fact["trace"]) <= 1 and len(fact["message"]) <= 1:
            fact["trace"], fact["message"] = [], ""
        line = _line(fact)
    out = _opened()
    if out is None:
        return
    try:
        _write(out, line)
    finally:
        _close(out)


def _line(fact):
    return (_dumps(fact) + "\n").encode("utf-8", "replace")


# --- pytest: this module is its plugin, by the name `garzone_probe`


def pytest_configure(config):
    """Keep the plugin out of what the tests themselves start."""
    rest = [name for name in os.environ.get("PYTEST_PLUGINS", "").split(",") if name not in ("", "garzone_probe")]
    if rest:
        os.environ["PYTEST_PLUGINS"] = ",".join(rest)
    else:
        os.environ.pop("PYTEST_PLUGINS", None)
    if not hasattr(config, "workerinput"):
        _record(kind="pytest", event="start")


def pytest_collectreport(report):
    """A module that cannot be collected is a failure of its own."""
    if report.failed:
        _record(kind="pytest", event="test", id="collect:" + report.nodeid, outcome="failed", **_failure(report))


def pytest_runtest_logreport(report):
    """Every failure of a phase, and the outcome of the call."""
    if report.failed:
        _record(kind="pytest", event="test", id=report.nodeid, outcome="failed", **_failure(report))
    elif report.when == "call" or report.skipped:
        _record(kind="pytest", event="test", id=report.nodeid, outcome=report.outcome)


def pytest_sessionfinish(session, exitstatus):
    """The session came to its end by itself."""
    if not hasattr(session.config, "workerinput"):
        _record(kind="pytest", event="end", code=int(exitstatus))


def _failure(report):
    trace, message = [], ""
    longrepr = getattr(report, "longrepr", None)
    for entry in getattr(getattr(longrepr, "reprtraceback", None), "reprentries", None) or []:
        place = getattr(entry, "reprfileloc", None)
        if place is not None:
            trace.append([str(place.path), int(place.lineno)])
    crash = getattr(longrepr, "reprcrash", None)
    if crash is not None:
        message = str(crash.message)
    return {"trace": trace[-30:], "message": (message or str(longrepr))[-2000:]}


# --- unittest: results are watched from the moment the module is imported


class _UnittestWatcher:
    """A finder that steps aside for one module and adds to what the others find."""

    def find_spec(self, name, path=None, target=None):
        if name != "unittest.result":
            return None
        sys.meta_path.remove(self)
        from importlib.util import find_spec

        spec = find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            _watch(module.TestResult)

        spec.loader.exec_module = exec_module
        return spec


def _watch(result_class):
    def watched(name, outcome):
        original = getattr(result_class, name)

        def method(self, test, *rest):
            _record(kind="unittest", event="test", id=test.id(), outcome=outcome, **_raised(rest))
            return original(self, test, *rest)

        setattr(result_class, name, method)

    for name, outcome in (
        ("addSuccess", "passed"),
        ("addFailure", "failed"),
        ("addError", "failed"),
        ("addSkip", "skipped"),
        ("addExpectedFailure", "skipped"),
        ("addUnexpectedSuccess", "failed"),
    ):
        watched(name, outcome)
    add_sub, start, stop = result_class.addSubTest, result_class.startTestRun, result_class.stopTestRun

    def add_sub_test(self, test, subtest, err):
        if err is not None:
            _record(kind="unittest", event="test", id=test.id(), outcome="failed", **_raised((err,)))
        return add_sub(self, test, subtest, err)

    def start_run(self):
        _record(kind="unittest", event="start")
        return start(self)

    def stop_run(self):
        _record(kind="unittest", event="end", code=0 if self.wasSuccessful() else 1)
        return stop(self)

    result_class.addSubTest, result_class.startTestRun, result_class.stopTestRun = add_sub_test, start_run, stop_run


def _raised(rest):
    error = rest[0] if rest and isinstance(rest[0], tuple) and len(rest[0]) == 3 else None
    if error is None:
        return {}
    return {
        "trace": _frames(error[2]),
        "message": "%s: %s" % (getattr(error[0], "__name__", ""), str(error[1])[-2000:]),
    }


def _frames(trace):
    frames = []
    while trace is not None:
        frames.append([trace.tb_frame.f_code.co_filename, trace.tb_lineno])
        trace = trace.tb_next
    return frames[-30:]


# --- scripts: `python test_x.py` must come to its end, or say where it left off


class _Script:
    """Importer and loader of the one script this interpreter was started for.

    CPython asks `sys.path_hooks` about the script's path, as it must for a directory or an archive with a __main__, and
    runs what it gets through runpy (Modules/main.c, pymain_run_python).
    """

    def __init__(self, path):
        self.path = path

    def __call__(self, path):
        if os.path.abspath(path) != os.path.abspath(self.path):
            raise ImportError
        self.path = path  # since 3.9 absolute
        sys.path_hooks.remove(self)
        return self

    def find_spec(self, name, target=None):
        if name != "__main__":
            return None
        from importlib.machinery import ModuleSpec

        spec = ModuleSpec(name, self, origin=self.path)  # pyright: ignore[reportArgumentType] - it is one in effect
        spec.has_location = True
        return spec

    def create_module(self, spec):
        return None

    def get_code(self, name):
        sys.path[0] = os.path.dirname(os.path.realpath(self.path))
        sys.path_importer_cache.pop(self.path, None)
        return compile("import garzone_probe\ngarzone_probe.run_script(globals())", "<garzone>", "exec")


def run_script(namespace):
    """Run the script as `__main__`, and record how it ended."""
    path = _SCRIPT.path if _SCRIPT else ""
    namespace.pop("garzone_probe", None)
    namespace.update(__file__=path, __spec__=None, __package__=None, __cached__=None)
    with open(path, "rb") as file:
        source = file.read()
    _record(kind="script", event="start", id=path)
    try:
        exec(compile(source, path, "exec"), namespace)
    except SystemExit as left:
        _record(kind="script", event="end", id=path, code=_code(left.code), trace=_frames(left.__traceback__)[1:])
        raise
    except BaseException as error:  # a script may end by anything; it is written down
        failure = {
            "trace": _frames(error.__traceback__)[1:],
            "message": "%s: %s" % (type(error).__name__, str(error)[-2000:]),
        }
        _record(kind="script", event="test", id=path, outcome="failed", **failure)
        raise
    _record(kind="script", event="end", id=path, code=0, trace=[])


def _code(code):
    return 0 if code is None else code if isinstance(code, int) else 1


def _arguments():
    if hasattr(sys, "orig_argv"):
        return sys.orig_argv
    try:  # before 3.10
        with open("/proc/self/cmdline", "rb") as file:
            return [part.decode("utf-8", "surrogateescape") for part in file.read().split(b"\0")[:-1]]
    except OSError:
        return []


def _script_of(arguments):
    rest = iter(arguments[1:])
    for argument in rest:
        if argument in ("-W", "-X", "--check-hash-based-pycs"):
            next(rest, None)
        elif not argument.startswith("-"):
            return argument if argument.endswith(".py") and os.path.isfile(argument) else None
        elif argument.startswith("--") or "c" in argument or "m" in argument or argument == "-":
            return None
    return None


def _install():
    global _SCRIPT
    sys.modules["garzone_probe"] = sys.modules[__name__]
    names = [name for name in os.environ.get("PYTEST_PLUGINS", "").split(",") if name and name != "garzone_probe"]
    os.environ["PYTEST_PLUGINS"] = ",".join([*names, "garzone_probe"])
    sys.meta_path.insert(0, _UnittestWatcher())
    watched = [path for path in os.environ.get("GARZONE_WATCH", "").split(os.pathsep) if path]
    if watched and hasattr(sys, "addaudithook"):
        import garzone_watch

        garzone_watch.install(_opened, watched)
        del sys.modules["garzone_watch"]
        _record(kind="watch", event="watching")
    script = _script_of(_arguments())
    if script is not None:
        _SCRIPT = _Script(script)
        sys.path_hooks.insert(0, _SCRIPT)


def _next_sitecustomize():
    """Run the one this one hides: distributions and virtual environments have their own."""
    from importlib.machinery import PathFinder

    spec = PathFinder.find_spec(
        "sitecustomize", [entry for entry in sys.path if os.path.abspath(entry or ".") != _HERE]
    )
    if spec is not None and spec.loader is not None:
        from importlib.util import module_from_spec

        spec.loader.exec_module(module_from_spec(spec))


_SCRIPT = None
if _EVIDENCE:
    _install()
_next_sitecustomize()
