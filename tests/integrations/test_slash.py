"""What people write after /garzone, and what a prompt looks like that could be delegated."""

import pytest

from garzone.core.errors import UsageError
from garzone.core.task import TaskKind
from garzone.integrations.slash import parse_slash, suggested_kind


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ('fix "take() adds" --file a.py --check "pytest -q"',
         ["fix", "take() adds", "--file", "a.py", "--check", "pytest -q"]),
        ("fix take() adds --check pytest -q --apply", ["fix", "take() adds", "--check", "pytest -q", "--apply"]),
        ("fix it's off by one --file a.py b.py", ["fix", "it's off by one", "--file", "a.py", "--file", "b.py"]),
        ("docs", ["docs", ""]),
        ("fix x --check=make", ["fix", "x", "--check", "make"]),
    ],
)  # fmt: skip
def test_words_become_arguments_with_and_without_quotes(text: str, arguments: list[str]) -> None:
    assert parse_slash(text) == arguments


@pytest.mark.parametrize("text", ["", "   ", "paint it red", "--check x"])
def test_what_is_no_task_gets_the_usage(text: str) -> None:
    with pytest.raises(UsageError, match="/garzone KIND"):
        parse_slash(text)


@pytest.mark.parametrize(
    ("prompt", "kind"),
    [
        ("fix the off by one in paginate", TaskKind.FIX),
        ("please add unit tests for the parser", TaskKind.TESTS),
        ("rename total to amount in cart.py", TaskKind.REFACTOR),
        ("document the public functions of pager.py", TaskKind.DOCS),
        ("translate utils.py to TypeScript", TaskKind.TRANSLATE),
        ("should we fix the pager or rewrite it?", None),
        ("fix the pager and then add a test for it", None),
        ("what does this do?", None),
        ("fix " + "very long " * 100, None),
    ],
)
def test_only_one_bounded_task_is_seen_as_one(prompt: str, kind: TaskKind | None) -> None:
    assert suggested_kind(prompt) is kind
