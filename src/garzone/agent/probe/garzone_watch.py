"""Watches, from inside a Python process, what changed code does that a repair need not do. PYTEST_DONT_REWRITE.

Only for the second run of a candidate that would be proved: it costs time. Two things are written down, through a pipe
that nobody can unwrite: changed code that is entered by an operator of other code (`==`, `in`, truth, arithmetic), that
is, values that decide by themselves whether an assertion about them holds; and calls by changed code that reach out of
computing (files, processes, frames, the interpreter). An audit hook cannot be removed, and whoever would switch off the
profiler must call it first, which is one of the calls.
"""

# Runs in the project's Python, from 3.8 on; see sitecustomize.py.
# pyright: basic
# ruff: noqa: N806, PLC0415, SIM905, UP031

import os
import sys

# what deciding looks like in the bytecode of whoever asks: the prefixes of opcode names from 3.8 to 3.14
_OPERATORS = ("COMPARE_", "CONTAINS_", "UNARY_", "BINARY_", "INPLACE_", "POP_JUMP", "JUMP_IF", "TO_BOOL", "IS_OP")
_INPUTS = 8
_GENERATOR = 0x20 | 0x80 | 0x200  # CO_GENERATOR, CO_COROUTINE, CO_ASYNC_GENERATOR: being iterated is what they are for
_EVENTS = frozenset(
    "exec compile open os.chmod os.chown os.exec os.fork os.forkpty os.kill os.killpg os.link os.listdir os.mkdir "
    "os.posix_spawn os.putenv os.remove os.rename os.rmdir os.scandir os.spawn os.symlink os.system os.truncate "
    "os.unsetenv os.utime subprocess.Popen socket.__new__ socket.connect ctypes.dlopen ctypes.dlsym sys._getframe "
    "sys._current_frames sys.settrace sys.setprofile sys.addaudithook sys.excepthook sys.unraisablehook gc.get_objects "
    "gc.get_referrers gc.get_referents code.__new__ function.__new__ object.__setattr__ object.__delattr__ "
    "_thread.start_new_thread signal.pthread_kill pickle.find_class marshal.loads marshal.load marshal.dumps "
    "builtins.input cpython.run_command shutil.copyfile shutil.move shutil.rmtree tempfile.mkstemp".split()
)
_MODULES = frozenset(
    "posix nt gc _thread _signal _ctypes marshal _pickle _imp atexit faulthandler _socket _posixsubprocess _io sys "
    "_testcapi resource mmap fcntl".split()
)
_QUIET = frozenset("getsizeof intern getrecursionlimit getrefcount exc_info fspath getcwd StringIO BytesIO".split())
_BUILTINS = frozenset(
    "exec eval compile __import__ setattr delattr getattr globals locals vars open input breakpoint".split()
)


def install(descriptor_of, changed):
    """Begin.

    Args:
        descriptor_of: opens the record and gives its file descriptor.
        changed: the changed files' absolute paths.
    """
    import dis
    import threading
    from marshal import dumps

    files = frozenset(os.path.realpath(path) for path in changed) | frozenset(changed)
    write, close, getframe, opnames = os.write, os.close, sys._getframe, tuple(dis.opname)
    setprofile, Code, profiling = sys.setprofile, type(install.__code__), []
    seen, asking, ident = set(), set(), threading.get_ident
    inputs = {}
    inside = {}  # code object -> whether it is of a changed file; asking the name each time would be slow

    def is_changed(code):
        known = inside.get(code)
        if known is None:
            name = code.co_filename
            known = inside[code] = name in files or os.path.realpath(name) in files
        return known

    def say(what, detail):
        line = "%s %s" % (what, "".join(c if c.isalnum() or c in "._<>-" else "?" for c in str(detail))[:200])
        if line in seen:
            return
        seen.add(line)
        thread = ident()
        ours = thread not in asking
        asking.add(thread)  # what is done here is not done by the changed code
        descriptor = descriptor_of()
        if descriptor is not None:
            write(descriptor, ('{"kind": "watch", "event": "watch", "what": "%s"}\n' % line).encode())
            close(descriptor)
        if ours:
            asking.discard(thread)

    def by_operator(frame):
        code = frame.f_code.co_code
        at = frame.f_lasti
        return 0 <= at < len(code) and opnames[code[at]].startswith(_OPERATORS)

    def profile(frame, event, arg):
        if event == "call":
            code = frame.f_code
            if is_changed(code):
                caller = frame.f_back
                if caller is None or is_changed(caller.f_code):
                    return
                name = getattr(code, "co_qualname", code.co_name)
                if not code.co_name.startswith("__") and "<" not in code.co_name:
                    note_input(name, code, frame)
                # `abs(x)` and `float(x)` enter a method of x although the caller calls something else
                dunder = code.co_name.startswith("__") and code.co_name not in ("__init__", "__new__", "__post_init__")
                if (by_operator(caller) or dunder) and not code.co_flags & _GENERATOR:
                    say("decides", name)
        elif event == "c_call" and is_changed(frame.f_code):
            name, module = getattr(arg, "__name__", ""), getattr(arg, "__module__", None)
            if name not in _QUIET and (module in _MODULES or (module == "builtins" and name in _BUILTINS)):
                say("calls", "%s.%s" % (module, name))

    def note_input(name, code, frame):
        """One line for each different input of a function, up to a few: what was tried once proves little."""
        known = inputs.setdefault(name, set())
        if len(known) >= _INPUTS:
            return
        thread = ident()
        asking.add(thread)
        try:
            given = [
                frame.f_locals.get(each) for each in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount + 2]
            ]
            try:
                key = hash(dumps(given))
            except ValueError:
                key = len(known)  # not plain values: each call counts
        finally:
            asking.discard(thread)
        if key not in known:
            known.add(key)
            say("input", "%s_%d" % (name, len(known)))

    def audit(event, arguments):
        if event not in _EVENTS:
            return
        thread = ident()
        if thread in asking:
            return  # asking for a frame is an event as well
        asking.add(thread)
        try:
            frame = getframe(1)
            if event == "exec" and not profiling and isinstance(arguments[0], Code) and is_changed(arguments[0]):
                profiling.append(True)  # not before: it makes everything slow
                threading.setprofile(profile)
                setprofile(profile)
        except ValueError:
            return  # the interpreter itself, before any code runs
        finally:
            asking.discard(thread)
        while frame is not None:
            code = frame.f_code
            if code.co_filename.startswith("<frozen importlib"):
                return  # a module is being loaded; which ones a change may import is read from its text
            if is_changed(code):
                say("does", event)
                return
            if event in ("exec", "compile", "sys._getframe", "object.__setattr__"):
                return  # namedtuple, dataclass and the like do this on behalf of honest code
            frame = frame.f_back

    sys.addaudithook(audit)
