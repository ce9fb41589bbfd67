"""The benchmark compares the same work, and its parts run."""

from pathlib import Path

import pytest

from garzone.bench import scheduling
from garzone.cli.bench import scheduling as command
from garzone.testing import write_tiny_model


def test_the_edit_changes_three_lines_of_a_hundred_and_fifty() -> None:
    before = scheduling.source_file().splitlines()
    after = scheduling.with_three_changes(scheduling.source_file()).splitlines()
    assert len(before) == len(after) == scheduling.FILE_LINES
    assert len(set(before) - set(after)) == 2  # one changed, one gone
    assert len(set(after) - set(before)) == 2  # one changed, one new


def test_every_part_can_be_asked_for() -> None:
    (only,) = [option for option in command.params if option.name == "only"]
    assert list(only.type.choices) == list(scheduling.PARTS)  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.slow
def test_a_part_is_measured_on_a_model_and_says_what_it_compared(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path / "tiny.gguf", context_length=4096)
    report = scheduling.measure(path, device="CPU", rounds=1, only=("grammar",))
    (one,) = report.findings
    assert one.times == one.ours / one.peer > 0
    assert report.to_json()["findings"][0]["goal"] == ">= 0.95"
