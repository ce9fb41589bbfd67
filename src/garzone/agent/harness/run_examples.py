"""Runs the examples (`>>> ...`) of one file's docstrings: run_examples.py FILE [QUALNAME ...]; JSON to $GARZONE_OUT.

With GARZONE_LENIENT=1 in the environment examples are read as people mean them: a result is compared by its value,
`f(1) == 2` says that it is so, and what cannot run as it is written (it names what is not there) is left out.
"""
# pyright: basic

import ast
import doctest
import importlib
import json
import os
import sys


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


def main():
    lenient = os.environ.get("GARZONE_LENIENT") == "1"
    path, wanted = sys.argv[1], set(sys.argv[2:])
    facts = {"attempted": 0, "failed": 0, "functions": {}, "output": ""}
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
    facts["finished"] = True
    with open(os.environ["GARZONE_OUT"], "w") as out:
        json.dump(facts, out)


main()
