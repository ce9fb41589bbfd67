"""Token ids are llama.cpp's: golden files made by tools/golden/tokens.py."""

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from garzone.engine.gguf import read_metadata
from garzone.text.pretokenizer import known_pre_types
from garzone.text.tokenizer import Tokenizer
from tests.text.vocabularies import REAL, metadata

GOLDEN = Path(__file__).parents[1] / "golden"
MODES = [(False, False), (False, True), (True, False), (True, True)]


@cache
def golden(name: str) -> dict[str, Any]:
    return json.loads((GOLDEN / name).read_text(encoding="utf-8"))


TEXTS: list[str] = [text for (text,) in golden("tokens.json")["texts"]]
GROUPS: dict[str, list[list[int]]] = golden("tokens.json")["byte_level"]


def check(tokenizer: Tokenizer, ids: list[list[int]], **mode: bool) -> None:
    for text, expected in zip(TEXTS, ids, strict=True):
        assert tokenizer.encode(text, **mode) == expected, ascii(text)


def facts(tokenizer: Tokenizer) -> dict[str, Any]:
    pieces = b"\0".join(map(tokenizer.token_bytes, range(tokenizer.vocab_size)))
    return {"eos_ids": sorted(tokenizer.eos_ids), "pieces_sha256": hashlib.sha256(pieces).hexdigest()}


def test_every_pre_type_has_golden_ids_and_most_differ() -> None:
    assert {name for names in GROUPS for name in names.split()} == known_pre_types()
    assert len(GROUPS) >= 20


@pytest.mark.parametrize("names", GROUPS, ids=lambda names: names.split()[0])
def test_text_is_split_as_the_pre_type_says(names: str) -> None:
    for name in names.split():
        vocabulary = {**golden("vocabularies.json")["byte_level"], "tokenizer.ggml.pre": name}
        check(Tokenizer.from_gguf(vocabulary), GROUPS[names])


@pytest.mark.parametrize("name", ["sentence_piece", "sentence_piece_inner"])
@pytest.mark.parametrize("prefix", [False, True], ids=["bare", "prefix"])
def test_sentence_pieces_join_as_in_llama_cpp(name: str, prefix: bool) -> None:
    vocabulary = {**golden("vocabularies.json")[name], "tokenizer.ggml.add_space_prefix": prefix}
    check(Tokenizer.from_gguf(vocabulary), golden("tokens.json")[f"{name} {'prefix' if prefix else 'bare'}"])


def test_special_tokens_of_phi3_swallow_the_blanks_after_them() -> None:
    vocabulary = {**golden("vocabularies.json")["sentence_piece"], "general.name": "Phi-3 mini"}
    check(Tokenizer.from_gguf(vocabulary), golden("tokens.json")["sentence_piece phi3"])


def test_smollm2_has_the_ids_ends_and_pieces_of_llama_cpp(smollm2_path: Path) -> None:
    tokenizer = Tokenizer.from_gguf(read_metadata(smollm2_path))
    expected = golden("tokens_smollm2.json")
    for add, parse in MODES:
        ids = expected[f"add_special={add} parse_special={parse}"]
        check(tokenizer, ids, add_special=add, parse_special=parse)
    ours = facts(tokenizer)
    assert ours == {key: expected[key] for key in ours}


@pytest.mark.network
@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_real_vocabularies_have_the_ids_and_ends_of_llama_cpp(name: str) -> None:
    tokenizer = Tokenizer.from_gguf(metadata(name))
    expected = golden("tokens_real.json")[name]
    for text, digests in zip(TEXTS, expected["digests"], strict=True):
        ours = [tokenizer.encode(text, add_special=add, parse_special=parse) for add, parse in MODES]
        assert [hashlib.sha256(" ".join(map(str, ids)).encode()).hexdigest()[:12] for ids in ours] == digests, text
    ours_facts = facts(tokenizer)
    assert ours_facts["eos_ids"] == expected["eos_ids"]
    if name != "command_r_plus":  # llama.cpp writes [UNK_BYTE_...] for its tokens that are not in the byte alphabet
        assert ours_facts["pieces_sha256"] == expected["pieces_sha256"]
