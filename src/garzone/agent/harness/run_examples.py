"""Runs the examples (`>>> ...`) of one file's docstrings: run_examples.py FILE [QUALNAME ...]; JSON to $GARZONE_OUT.

With GARZONE_LENIENT=1 in the environment examples are read as people mean them: a result is compared by its value,
`f(1) == 2` says that it is so, and what cannot run as it is written (it names what is not there) is left out. Then
"claims" counts what prose says of literal calls (`f([1]) -> 2`), which is less certain to be meant so.
"""
# pyright: basic

import ast
import doctest
import importlib
import json
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from shown import claims_of

MAX_CLAIMS = 20


def load(path):
    """Import a file as the module its packages say it is."""
    path = os.path.abspath(path)
    folder, name = os.path.dirname(path), os.path.splitext(os.path.basename(path))[0]
    parts = [name] if name != "__init__" else []
    while os.path.exists(os.path.join(folder, "__init__.py")):
        parts.insert(0, os.path.basename(folder))
        folder = os.path.dirname(folder)
    sys.path[:0] = [folder, os.getcwd()]
    return importlib.import_module(".".join(parts))


class Meant(doctest.OutputChecker):
    """Compares values where both sides are some."""

    def check_output(self, want, got, optionflags):  # noqa: D102
        if super().check_output(want, got, optionflags):
            return True
        if not want.strip():
            return got.strip() == "True"
        try:
            return ast.literal_eval(want.strip()) == ast.literal_eval(got.strip())
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            return False


class Lenient(doctest.DocTestRunner):
    """Counts for itself: what names something that is not there says nothing."""

    def __init__(self, **options):
        super().__init__(checker=Meant(), **options)
        self.num_run = self.num_failed = 0

    def report_success(self, out, test, example, got):  # noqa: D102
        self.num_run += 1

    def report_failure(self, out, test, example, got):  # noqa: D102
        self.num_run += 1
        self.num_failed += 1
        super().report_failure(out, test, example, got)

    def report_unexpected_exception(self, out, test, example, exc_info):  # noqa: D102
        if issubclass(exc_info[0], NameError) and not issubclass(exc_info[0], UnboundLocalError):
            trace = exc_info[2]
            while trace.tb_next is not None:
                trace = trace.tb_next
            if trace.tb_frame.f_code.co_filename.startswith("<doctest "):
                return
        self.num_run += 1
        self.num_failed += 1
        super().report_unexpected_exception(out, test, example, exc_info)


def tests_of(module, lenient):
    if not lenient:
        return doctest.DocTestFinder(exclude_empty=True).find(module, module.__name__)

    class Parser(doctest.DocTestParser):
        def get_doctest(self, string, *rest):
            try:
                return super().get_doctest(string, *rest)
            except ValueError:  # indented in a way that is no example
                return super().get_doctest("", *rest)

    return doctest.DocTestFinder(exclude_empty=True, parser=Parser()).find(module, module.__name__)


def claimed(module, name, said):
    """How many claims of a function's docstring were tried, and how many of them do not hold."""
    function, counted = getattr(module, name, None), [0, 0]
    if function is None:  # a method, which needs an object
        return counted
    for arguments, value in list(claims_of(function.__doc__, name))[:MAX_CLAIMS]:
        call = "%s(%s)" % (name, ", ".join(map(repr, arguments)))
        try:
            got = function(*arguments)
            holds = bool(got == value) and isinstance(got, bool) == isinstance(value, bool)
            text = repr(got)[:200]
        except Exception as error:  # whatever it raises is not the value
            holds, text = False, "%s: %s" % (type(error).__name__, str(error)[:150])
        counted[0] += 1
        if not holds:
            counted[1] += 1
            said.append("The docstring says %s is %r.\nGot: %s\n" % (call, value, text))
    return counted


def main():
    lenient = os.environ.get("GARZONE_LENIENT") == "1"
    path, wanted = sys.argv[1], set(sys.argv[2:])
    facts = {"attempted": 0, "failed": 0, "functions": {}, "output": "", "claims": [0, 0], "claims_output": ""}
    if path.endswith(".md"):
        with open(path, encoding="utf-8") as file:
            text = "".join("\n" if line.startswith("```") else line for line in file)
        test = doctest.DocTestParser().get_doctest(text, {"__name__": "__main__"}, path, path, 0)
        sys.path.insert(0, os.getcwd())
        tests = [(path, test)]
    else:
        module = load(path)
        found = tests_of(module, lenient)
        tests = [(test.name[len(module.__name__) + 1 :], test) for test in found]
    for name, test in tests:
        if not test.examples or (wanted and name not in wanted):
            continue
        said = []
        runner = (Lenient if lenient else doctest.DocTestRunner)(
            verbose=False, optionflags=doctest.NORMALIZE_WHITESPACE
        )
        result = runner.run(test, out=said.append)
        counted = (
            (runner.num_run, runner.num_failed) if isinstance(runner, Lenient) else (result.attempted, result.failed)
        )
        facts["attempted"] += counted[0]
        facts["failed"] += counted[1]
        facts["functions"][name] = list(counted)
        facts["output"] += "".join(said)[:2000]
    if lenient and not path.endswith(".md"):
        said = []
        counts = [claimed(module, name, said) for name in sorted(wanted)]
        facts["claims"] = [sum(column) for column in zip(*counts)] or [0, 0]
        facts["claims_output"] = "".join(said)[:1000]
    facts["finished"] = True
    with open(os.environ["GARZONE_OUT"], "w") as out:
        json.dump(facts, out)


main()
