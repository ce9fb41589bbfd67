"""Reads what functions of a Python source take and give, from their text and recorded calls, or what is in the way."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from typing import Any

from garzone.agent.translation import Case, Function
from garzone.agent.translation.types import NONE, Type, of_annotation, settled


def functions_of(tree: ast.Module, cases: Mapping[str, Sequence[Case]], names: Sequence[str]) -> list[Function]:
    """The functions a translation is compared in, each with types or with what stands in the way."""
    nodes = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    return [_function(nodes[name], list(cases.get(name, ()))) for name in names if name in nodes]


def _function(node: ast.FunctionDef, cases: list[Case]) -> Function:
    taken = [*node.args.posonlyargs, *node.args.args]
    if node.args.vararg or node.args.kwarg or node.args.kwonlyargs:
        return Function(
            node.name, tuple(cases), obstacle="it takes a varying number of arguments, or some by name only"
        )
    filled = [case for case in (_filled(node, case) for case in cases) if case is not None]
    parameters: list[tuple[str, Type]] = []
    for at, argument in enumerate(taken):
        kind = settled(of_annotation(argument.annotation), [case["arguments"][at] for case in filled])
        if kind is None or kind == NONE:
            return Function(
                node.name, tuple(cases), obstacle=f"its argument {argument.arg} is {_shown(argument.annotation)}"
            )
        parameters.append((argument.arg, kind))
    results = [case["result"] for case in filled if "result" in case]
    result = settled(of_annotation(node.returns), results)
    if result is None or result == NONE:
        return Function(node.name, tuple(cases), obstacle=f"its result is {_shown(node.returns)}")
    return Function(node.name, tuple(filled), tuple(parameters), result)


def _shown(annotation: ast.expr | None) -> str:
    named = f"`{ast.unparse(annotation)}`" if annotation is not None else "not annotated, and no example tells its type"
    return f"{named}, which is no plain data of one type" if annotation is not None else named


def _filled(node: ast.FunctionDef, case: Case) -> Case | None:
    """A call with the defaults of arguments it leaves out; None where a default is no plain value."""
    taken, defaults = [*node.args.posonlyargs, *node.args.args], node.args.defaults
    arguments: list[Any] = list(case["arguments"])
    while len(arguments) < len(taken):
        at = len(arguments) - (len(taken) - len(defaults))
        try:
            value = ast.literal_eval(defaults[at]) if at >= 0 else ...
        except (ValueError, TypeError, SyntaxError):
            return None
        if not isinstance(value, bool | int | float | str | list | dict | None):
            return None
        arguments.append(value)
    return {**case, "arguments": arguments}
