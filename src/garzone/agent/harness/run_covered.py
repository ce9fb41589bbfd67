"""Runs a module with its lines counted: run_covered.py FILE -m MODULE ARGUMENTS...; lines of FILE to $GARZONE_OUT."""
# pyright: basic

import json
import os
import runpy
import sys
import threading

PATH = os.path.realpath(sys.argv[1])
LINES = set()
_PID = os.getpid()


ours = {}


def trace(frame, event, argument):
    name = frame.f_code.co_filename
    mine = ours.get(name)
    if mine is None:
        mine = ours[name] = os.path.realpath(name) == PATH
    return trace_line if mine else None


def trace_line(frame, event, argument):
    if event == "line":
        LINES.add(frame.f_lineno)
    return trace_line


def write():
    if os.getpid() == _PID:
        with open(os.environ["GARZONE_OUT"], "w") as out:
            json.dump({"lines": sorted(LINES)}, out)


module = sys.argv[3]
sys.argv = [module, *sys.argv[4:]]
sys.path.insert(0, os.getcwd())
threading.settrace(trace)
sys.settrace(trace)
try:
    runpy.run_module(module, run_name="__main__", alter_sys=True)
finally:
    sys.settrace(None)
    write()
