"""Rows outlive their process, and none that is damaged, foreign or of other weights is ever believed."""

import logging
import os
from pathlib import Path

import pytest

from garzone.core.generation import FinishReason
from garzone.runner.row_store import MAGIC, SUFFIX
from tests.runner.desk import Desk
from tests.runner.stand_in import build
from tests.runner.test_batcher import answer, expected, raw

PROMPT = "the beginning that two processes share; " * 3
NUM_PROMPT = 1 + len(PROMPT)


def desk(folder: Path, key: str = "weights", num_slots: int = 2) -> Desk:
    return Desk(build(key=key, num_slots=num_slots), folder)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A folder with one sequence in it."""
    first = desk(tmp_path)
    text, _ = answer(first, raw(PROMPT, 4))
    assert text == expected(PROMPT, 4)
    assert first.batcher.save(10) == 1
    return tmp_path


def rows_file(folder: Path) -> Path:
    (path,) = folder.glob("*" + SUFFIX)
    return path


def test_a_new_process_goes_on_where_the_last_one_ended(saved: Path) -> None:
    text, end = answer(desk(saved), raw(PROMPT + "and on", 4))
    assert text == expected(PROMPT + "and on", 4)
    assert end.usage.cached_tokens == NUM_PROMPT


def test_only_the_owner_may_read_what_was_in_prompts(saved: Path) -> None:
    assert rows_file(saved).stat().st_mode & 0o077 == 0


def test_what_is_saved_already_is_not_written_again(saved: Path) -> None:
    before = rows_file(saved).stat().st_mtime_ns
    assert desk(saved).batcher.save(10) == 1
    assert rows_file(saved).stat().st_mtime_ns == before


def test_rows_of_other_weights_are_not_seen(saved: Path) -> None:
    text, end = answer(desk(saved, key="other weights"), raw(PROMPT, 4))
    assert (text, end.usage.cached_tokens) == (expected(PROMPT, 4), 0)


@pytest.mark.parametrize("at", ["rows", "tokens", "digest", "header", "magic", "truncated", "grown"])
def test_a_damaged_file_is_ignored_with_a_warning(saved: Path, at: str, caplog: pytest.LogCaptureFixture) -> None:
    path = rows_file(saved)
    raw_bytes = bytearray(path.read_bytes())
    header_end = raw_bytes.index(b"\n", len(MAGIC)) + 1
    where = {"magic": 3, "header": header_end - 9, "tokens": header_end + 40, "rows": len(raw_bytes) - 100}
    if at == "truncated":
        del raw_bytes[-5:]
    elif at == "grown":
        raw_bytes += b"more"
    else:
        raw_bytes[where.get(at, len(raw_bytes) - 1)] ^= 1
    path.write_bytes(raw_bytes)
    with caplog.at_level(logging.WARNING):
        new = desk(saved)
        text, end = answer(new, raw(PROMPT, 4))
    assert (text, end.usage.cached_tokens) == (expected(PROMPT, 4), 0)
    assert end.finish_reason is FinishReason.LENGTH
    assert path.name in caplog.text
    assert answer(new, raw(PROMPT, 4))[1].usage.cached_tokens == NUM_PROMPT - 1  # it is as good as new afterwards


def test_a_file_that_vanishes_or_changes_after_it_was_found_is_computed_again(saved: Path, tmp_path: Path) -> None:
    for change in (Path.unlink, lambda path: path.write_bytes(b"x" * path.stat().st_size)):
        new = desk(saved)
        change(rows_file(saved))
        two = [new.ask(raw(PROMPT, 4)), new.ask(raw(PROMPT + "!", 4))]
        new.work()
        assert [new.text(number) for number in two] == [expected(PROMPT, 4), expected(PROMPT + "!", 4)]
        for path in tmp_path.glob("*" + SUFFIX):
            path.unlink()
        new.batcher.save(10)
        for path in list(tmp_path.glob("*" + SUFFIX))[1:]:
            path.unlink()


def test_files_that_are_none_of_ours_are_left_alone(saved: Path, caplog: pytest.LogCaptureFixture) -> None:
    prefix = rows_file(saved).name.split("-")[0]
    foreign = saved / f"{prefix}-foreign{SUFFIX}"
    foreign.write_bytes(b"something else\n" * 100)
    (saved / "notes.txt").write_text("mine")
    with caplog.at_level(logging.WARNING):
        _, end = answer(desk(saved), raw(PROMPT, 4))
    assert end.usage.cached_tokens == NUM_PROMPT - 1
    assert "not a file of cached rows" in caplog.text
    assert (saved / "notes.txt").read_text() == "mine"


def test_no_time_means_nothing_is_written_and_nothing_breaks(tmp_path: Path) -> None:
    one = desk(tmp_path)
    answer(one, raw(PROMPT, 4))
    assert one.batcher.save(-1) == 0
    assert not list(tmp_path.glob("*" + SUFFIX))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "rows"
    folder.mkdir(mode=0o500)
    one = desk(folder)
    answer(one, raw(PROMPT, 4))
    assert one.batcher.save(10) == 0
    assert "could not be kept" in caplog.text


def test_a_conversation_that_lost_its_slot_comes_back_from_memory() -> None:
    one = Desk(build())
    answer(one, raw(PROMPT, 4))
    answer(one, raw("y" * 120, 4))
    text, end = answer(one, raw(PROMPT + "and on", 4))
    assert (text, end.usage.cached_tokens) == (expected(PROMPT + "and on", 4), NUM_PROMPT)
