import inspect

from garzone.core import errors


def test_the_tree_in_the_docstring_is_the_tree_in_the_code() -> None:
    drawn: list[tuple[str, str]] = []
    stack: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        name = line.split()[0] if line.startswith("    ") and line.strip() else ""
        if not name or not name[0].isupper():
            continue
        indent = len(line) - len(line.lstrip())
        while stack and stack[-1][0] >= indent:
            stack.pop()
        drawn.append((name, stack[-1][1] if stack else "Exception"))
        stack.append((indent, name))
    classes = [c for _, c in inspect.getmembers(errors, inspect.isclass) if c.__module__ == errors.__name__]
    assert sorted(drawn) == sorted((c.__name__, c.__bases__[0].__name__) for c in classes)


def test_exit_codes_follow_the_contract() -> None:
    assert errors.InvalidRequest("x").exit_code == 2
    assert errors.ModelNotFound("x").exit_code == 3
    assert errors.GGUFError("x").exit_code == 3
    assert errors.RunnerCrashed("x").exit_code == 1


def test_messages_that_clients_match_on_keep_their_wording() -> None:
    assert str(errors.ModelNotFound("x")) == "model 'x' not found"
    assert str(errors.ContextOverflow(9000, 8192)) == "prompt is too long: 9000 tokens > 8192 maximum context length"
