import logging
import time
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from garzone.core.errors import GGUFError, UnsupportedModel
from garzone.engine.gguf import read_metadata
from garzone.testing import tiny_vocabulary
from garzone.text.tokenizer import Tokenizer
from tests.text.test_tokenizer_golden import golden


@cache
def byte_level() -> Tokenizer:
    return Tokenizer.from_gguf({**golden("vocabularies.json")["byte_level"], "tokenizer.ggml.pre": "qwen2"})


@cache
def sentence_piece() -> Tokenizer:
    return Tokenizer.from_gguf(golden("vocabularies.json")["sentence_piece"])


def tiny(**changes: Any) -> Tokenizer:
    vocabulary = tiny_vocabulary()
    for key, value in changes.items():
        vocabulary["tokenizer." + key.replace("__", ".")] = value
    return Tokenizer.from_gguf({key: value for key, value in vocabulary.items() if value is not None})


anything = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)


@settings(deadline=None)
@given(text=anything)
def test_byte_level_text_comes_back_as_it_was(text: str) -> None:
    assert byte_level().decode(byte_level().encode(text, add_special=False)) == text


@settings(deadline=None)
@given(text=anything)
def test_sentence_piece_text_comes_back_as_it_was(text: str) -> None:
    text = text.replace("▁", "")  # the escape for a space cannot be told from one
    ids = sentence_piece().encode(text, parse_special=False)
    assert ids[0] == sentence_piece().bos_id
    assert sentence_piece().decode(ids) == text


@settings(deadline=None)
@given(left=anything, right=anything)
def test_a_special_token_parts_the_text_round_it(left: str, right: str) -> None:
    tokenizer = byte_level()
    (middle,) = tokenizer.encode("<|im_end|>", add_special=False)
    whole = tokenizer.encode(left + "<|im_end|>" + right, add_special=False)
    assert whole.count(middle) >= 1
    if "<" not in left + right and ">" not in left + right and "|" not in left + right:
        assert whole == [
            *tokenizer.encode(left, add_special=False), middle, *tokenizer.encode(right, add_special=False)
        ]  # fmt: skip


def test_control_tokens_are_text_unless_they_are_to_be_parsed() -> None:
    tokenizer = byte_level()
    assert len(tokenizer.encode("<|im_start|>", parse_special=True)) == 1
    assert len(tokenizer.encode("<|im_start|>", parse_special=False)) > 1
    assert len(tokenizer.encode("<|custom|>", parse_special=False)) == 1, "user-defined tokens always are"
    assert tokenizer.decode(tokenizer.encode("<|im_start|>", parse_special=False)) == "<|im_start|>"


def test_beginning_and_end_are_added_as_the_file_asks() -> None:
    both = tiny(ggml__add_bos_token=True, ggml__add_eos_token=True)
    assert both.encode("de") == [258, 256, 259]
    assert both.encode("de", add_special=False) == [256]
    assert tiny(ggml__add_bos_token=None).encode("de") == [256], "smollm does not begin texts by default"
    assert tiny(ggml__add_bos_token=None, ggml__pre="llama-bpe").encode("de") == [258, 256], "llama 3 does"
    with pytest.raises(GGUFError, match="bos_token_id"):
        tiny(ggml__add_bos_token=True, ggml__bos_token_id=None)


def test_control_tokens_have_their_text_as_bytes_and_unused_ones_none() -> None:
    tokenizer = tiny(ggml__token_type=[1] * 257 + [5] + [3] * 2)
    assert tokenizer.token_bytes(258) == b"<|im_start|>"
    assert tokenizer.token_bytes(257) == b""
    assert [tokenizer.token_bytes(index) for index in range(256)] == [bytes([byte]) for byte in range(256)]
    assert tokenizer.special_ids == {258, 259}
    for wrong in (-1, 260):
        with pytest.raises(IndexError):
            tokenizer.token_bytes(wrong)


def test_byte_tokens_of_sentence_piece_are_bytes() -> None:
    ids = sentence_piece().encode("🐘", add_special=False)
    assert [sentence_piece().token_bytes(index) for index in ids] == [b" ", b"\xf0", b"\x9f", b"\x90", b"\x98"]


def test_all_the_ends_of_a_generation_are_known_whatever_the_file_names() -> None:
    tokenizer = byte_level()
    tokens = tokenizer.vocabulary.tokens
    assert {tokens[index] for index in tokenizer.eos_ids} == {"<|endoftext|>", "<|im_end|>"}


def test_end_of_message_is_not_the_end_of_the_answer_in_gpt_oss() -> None:
    tokens = ["<|return|>", "<|call|>", "<|end|>", "<|channel|>"]
    vocabulary = {
        **tiny_vocabulary(),
        "tokenizer.ggml.tokens": [*tiny_vocabulary()["tokenizer.ggml.tokens"], *tokens],
        "tokenizer.ggml.token_type": [1] * 258 + [3] * 6,
    }
    tokenizer = Tokenizer.from_gguf(vocabulary)
    assert tokenizer.eos_ids == {259, 260, 261}
    assert not {262, 263} & tokenizer.special_ids, "what is between is shown"


def test_fill_in_the_middle_tokens_are_found_by_key_or_by_text() -> None:
    tokens = [*tiny_vocabulary()["tokenizer.ggml.tokens"], "<|fim_prefix|>", "<X>", "<|fim_pad|>"]
    tokenizer = tiny(
        ggml__tokens=tokens, ggml__token_type=[1] * 258 + [3] * 2 + [1] * 3, ggml__fim_suf_token_id=261
    )  # fmt: skip
    assert tokenizer.vocabulary.fim == {"fim_pre": 260, "fim_suf": 261, "fim_pad": 262}
    assert 262 in tokenizer.eos_ids
    assert 260 in tokenizer.special_ids, "control, whatever the converter wrote"


def test_unknown_pre_types_are_split_by_default_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        tokenizer = tiny(ggml__pre="brand-new")
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "brand-new" in caplog.text
    assert tokenizer.encode("a1 b", add_special=False) == tiny(ggml__pre="default").encode("a1 b", add_special=False)


@pytest.mark.parametrize("model", ["bert", "t5", "rwkv", "plamo2", 7])
def test_other_kinds_of_tokenizer_are_unsupported_by_name(model: Any) -> None:
    with pytest.raises(UnsupportedModel, match=str(model)):
        tiny(ggml__model=model)
    with pytest.raises(UnsupportedModel, match="superbpe"):
        tiny(ggml__pre="superbpe")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("ggml__model", None),
        ("ggml__tokens", None),
        ("ggml__tokens", []),
        ("ggml__tokens", "abc"),
        ("ggml__tokens", [1, 2]),
        ("ggml__merges", None),
        ("ggml__merges", [1]),
        ("ggml__token_type", [1]),
        ("ggml__token_type", 3),
        ("ggml__token_type", ["a"] * 300),
        ("ggml__token_type", [float("nan")] * 300),
    ],
)
def test_malformed_vocabularies_are_refused_by_key(key: str, value: Any) -> None:
    with pytest.raises(GGUFError, match=r"tokenizer\.ggml\."):
        tiny(**{key: value})


def test_merges_that_make_no_token_are_left_out() -> None:
    tokenizer = tiny(ggml__merges=["d e", "x y", "", "nospace", "r e"])
    assert tokenizer.encode("derexy", add_special=False) == [256, 257, ord("x"), ord("y")]


def test_lone_surrogates_count_as_replacement_characters() -> None:
    assert byte_level().encode("a\ud800b") == byte_level().encode("a\ufffdb")
    assert byte_level().encode("\ud83e\udd80") == byte_level().encode("🦀")


def test_a_megabyte_of_one_character_takes_linear_time() -> None:
    for tokenizer in (byte_level(), sentence_piece()):
        for character in "a \n~中":
            times: list[float] = []
            for size in (20_000, 80_000):
                start = time.process_time()
                tokenizer.encode(character * size)
                times.append(time.process_time() - start)
            assert times[1] < 8 * times[0] + 0.3, f"{character!r}: {times}"
    assert byte_level().decode(byte_level().encode(" " * 1_200_000)) == " " * 1_200_000


def test_building_and_encoding_smollm2_is_quick(smollm2_path: Path) -> None:
    metadata = read_metadata(smollm2_path)
    start = time.process_time()
    tokenizer = Tokenizer.from_gguf(metadata)
    built = time.process_time() - start
    text = (Path(__file__).read_text(encoding="utf-8") * 20)[:100_000]
    start = time.process_time()
    ids = tokenizer.encode(text)
    encoded = time.process_time() - start
    assert tokenizer.decode(ids) == text
    assert (built < 0.5, encoded < 0.5) == (True, True), (built, encoded)
