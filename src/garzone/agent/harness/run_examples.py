"""Runs the examples (`>>> ...`) of one file's docstrings: run_examples.py FILE [QUALNAME ...]; JSON to $GARZONE_OUT."""
# pyright: basic

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


def main():
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
        found = doctest.DocTestFinder(exclude_empty=True).find(module, module.__name__)
        tests = [(test.name[len(module.__name__) + 1 :], test) for test in found]
    for name, test in tests:
        if not test.examples or (wanted and name not in wanted):
            continue
        said = []
        result = doctest.DocTestRunner(verbose=False, optionflags=doctest.NORMALIZE_WHITESPACE).run(
            test, out=said.append
        )
        facts["attempted"] += result.attempted
        facts["failed"] += result.failed
        facts["functions"][name] = [result.attempted, result.failed]
        facts["output"] += "".join(said)[:2000]
    facts["finished"] = True
    with open(os.environ["GARZONE_OUT"], "w") as out:
        json.dump(facts, out)


main()
