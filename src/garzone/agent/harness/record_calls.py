"""Records calls of a file's functions while tests run: record_calls.py FILE -m MODULE ARGUMENTS...

To $GARZONE_OUT, as pickle: {"calls": [(qualname, arguments as pickle)]}, arguments as they were when the call began.
"""
# pyright: basic

import os
import pickle
import runpy
import sys
import threading

PATH = os.path.realpath(sys.argv[1])
PER_FUNCTION, MAX_BYTES = 40, 1 << 16
_PID = os.getpid()
calls, counts, seen = [], {}, set()
busy = threading.local()


ours = {}


def watch(frame, event, argument):
    if event != "call":
        return
    code = frame.f_code
    mine = ours.get(code.co_filename)
    if mine is None:
        mine = ours[code.co_filename] = os.path.realpath(code.co_filename) == PATH
    if not mine or getattr(busy, "on", False):
        return
    name = getattr(code, "co_qualname", code.co_name)
    if "<" in name or counts.get(name, 0) >= PER_FUNCTION or (code.co_flags & 0x20 and frame.f_lasti > 0):
        return
    busy.on = True
    try:
        local = frame.f_locals
        names = code.co_varnames[: code.co_argcount]
        keywords = code.co_varnames[code.co_argcount : code.co_argcount + code.co_kwonlyargcount]
        at = code.co_argcount + code.co_kwonlyargcount
        positional = [local[n] for n in names]
        if code.co_flags & 0x04:
            positional += local[code.co_varnames[at]]
            at += 1
        named = {n: local[n] for n in keywords}
        if code.co_flags & 0x08:
            named.update(local[code.co_varnames[at]])
        packed = pickle.dumps((positional, named))
        if len(packed) <= MAX_BYTES and (name, packed) not in seen:
            seen.add((name, packed))
            counts[name] = counts.get(name, 0) + 1
            calls.append((name, code.co_firstlineno, packed))
    except Exception:  # pickling runs the project's own code
        counts[name] = counts.get(name, 0)  # an argument that cannot be kept: this call is not compared
    finally:
        busy.on = False


module = sys.argv[3]
sys.argv = [module, *sys.argv[4:]]
sys.path.insert(0, os.getcwd())
threading.setprofile(watch)
sys.setprofile(watch)
try:
    runpy.run_module(module, run_name="__main__", alter_sys=True)
finally:
    sys.setprofile(None)
    threading.setprofile(None)
    if os.getpid() == _PID:
        with open(os.environ["GARZONE_OUT"], "wb") as out:
            pickle.dump(calls, out)
