"""Tokens of what a coordinator wrote and read: with a real vocabulary, or by a rule that says that it is one."""

from pathlib import Path

from garzone.delegate.counting import TokenCounter
from garzone.engine.gguf import read_metadata
from garzone.testing import write_tiny_model
from garzone.text.tokenizer import Tokenizer

TEXT = 'delegate(kind="fix", check="pytest -q") <|im_end|>'


async def test_a_real_vocabulary_counts_and_is_named(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path / "tiny.gguf")
    counter = TokenCounter(path, "tiny:latest")
    expected = Tokenizer.from_gguf(read_metadata(path)).encode(TEXT, add_special=False, parse_special=False)
    assert await counter.count(TEXT) == len(expected)
    assert await counter.count(TEXT, TEXT) == 2 * len(expected)
    assert counter.method == "the vocabulary of tiny:latest"


async def test_without_one_the_rule_of_thumb_counts_and_says_so() -> None:
    counter = TokenCounter()
    assert await counter.count("abcde") == 2
    assert counter.method == "4 characters a token"


async def test_a_file_that_cannot_be_read_leaves_the_rule(tmp_path: Path) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"GGUF nonsense")
    counter = TokenCounter(tmp_path / "broken.gguf", "broken")
    assert await counter.count("abcd") == 1
    assert counter.method == "4 characters a token"
