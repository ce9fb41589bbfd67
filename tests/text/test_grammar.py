"""Masks let through what a grammar allows, and nothing else."""

import json
import random
import time
from pathlib import Path

import numpy as np
import pytest

from garzone.core.errors import InvalidRequest
from garzone.core.generation import Grammar, GrammarKind
from garzone.engine.gguf import read_metadata
from garzone.text.grammar import GrammarCompiler, TokenMatcher, for_edits, for_schema
from garzone.text.tokenizer import Tokenizer
from tests.numbers import record_number
from tests.text.vocabularies import metadata

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
FILE = 'def add(a, b):\n    return a - b\n\n\ndef twice(a):\n    """Ünïcode, and "quotes"."""\n    return a + a\n'


@pytest.fixture(scope="module")
def tokenizer(smollm2_path: Path) -> Tokenizer:
    return Tokenizer.from_gguf(read_metadata(smollm2_path))


@pytest.fixture(scope="module")
def compiler(tokenizer: Tokenizer) -> GrammarCompiler:
    return GrammarCompiler(tokenizer)


def accepted(matcher: TokenMatcher, tokenizer: Tokenizer, text: str) -> str:
    """As much of the text as the masks let through."""
    passed: list[int] = []
    for token_id in tokenizer.encode(text, add_special=False):
        if not matcher.mask()[token_id]:
            break
        matcher.accept(token_id)
        passed.append(token_id)
    return tokenizer.decode(passed)


@pytest.mark.parametrize("text", ['{"name": "Zoë", "age": 3}', '{"name":"","age":-1}'])
def test_what_matches_a_schema_passes_and_may_end(compiler: GrammarCompiler, tokenizer: Tokenizer, text: str) -> None:
    matcher = compiler.compile(for_schema(PERSON))
    assert not matcher.is_complete
    assert accepted(matcher, tokenizer, text) == text
    assert matcher.is_complete
    assert all(matcher.mask()[token_id] for token_id in tokenizer.eos_ids)


@pytest.mark.parametrize(
    ("text", "passed"), [('{"name": 3}', '{"name": '), ("Sure! Here", ""), ('{"age": 3, "x"', '{"')]
)
def test_what_does_not_is_stopped_at_the_first_wrong_token(
    compiler: GrammarCompiler, tokenizer: Tokenizer, text: str, passed: str
) -> None:
    matcher = compiler.compile(for_schema(PERSON))
    assert accepted(matcher, tokenizer, text).startswith(passed)
    assert not matcher.is_complete
    assert not any(matcher.mask()[token_id] for token_id in tokenizer.eos_ids)


def test_any_walk_through_the_masks_is_a_document_of_the_schema(
    compiler: GrammarCompiler, tokenizer: Tokenizer
) -> None:
    chance = random.Random(3)
    schema = {**PERSON, "properties": {"name": {"enum": ["Ada", "Bob"]}, "age": {"enum": [1, 22]}}}
    for _ in range(20):
        matcher, ids = compiler.compile(for_schema(schema)), list[int]()
        while not matcher.is_complete and len(ids) < 80:
            ids.append(int(chance.choice(np.flatnonzero(matcher.mask()))))
            matcher.accept(ids[-1])
        document = json.loads(tokenizer.decode(ids))
        assert document["name"] in ("Ada", "Bob")
        assert document["age"] in (1, 22)


def test_a_search_block_can_only_be_text_of_the_file(compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    lines = FILE.splitlines(keepends=True)
    right = (
        f"<<<<<<< SEARCH\n{lines[1]}=======\n    return a + b\n\n> quoted\n>>>>>>> REPLACE\n"
        f"<<<<<<< SEARCH\n{''.join(lines[4:7])}=======\n>>>>>>> REPLACE\n"
    )
    matcher = compiler.compile(for_edits(FILE))
    assert accepted(matcher, tokenizer, right) == right
    assert matcher.is_complete
    invented = "<<<<<<< SEARCH\n    return a * b\n"
    assert accepted(compiler.compile(for_edits(FILE)), tokenizer, invented) == "<<<<<<< SEARCH\n    return a"


def test_a_search_block_lies_in_one_of_the_parts_and_is_not_blank(
    compiler: GrammarCompiler, tokenizer: Tokenizer
) -> None:
    parts = ("a = 1\n\nb = 2\n", "c = 3\n")
    for search, passes in (("b = 2\n", True), ("c = 3\n", True), ("b = 2\nc = 3\n", False), ("\n", False), ("", False)):
        edit = f"<<<<<<< SEARCH\n{search}=======\nx\n>>>>>>> REPLACE\n"
        assert (accepted(compiler.compile(for_edits(*parts)), tokenizer, edit) == edit) is passes, search


@pytest.mark.parametrize("text", ["", "no newline at the end", "\n\n", "a\r\nb\r\n", 'x = "\\n{}"\n'])
def test_edits_of_any_file_have_a_grammar(compiler: GrammarCompiler, tokenizer: Tokenizer, text: str) -> None:
    first = (text.splitlines() or [""])[0]
    edit = f"<<<<<<< SEARCH\n{first}\n=======\nx\n>>>>>>> REPLACE\n"
    assert accepted(compiler.compile(for_edits(text)), tokenizer, edit) == edit


def test_masks_along_a_draft_are_those_of_one_token_after_the_other(
    compiler: GrammarCompiler, tokenizer: Tokenizer
) -> None:
    draft = tokenizer.encode('{"name": "Ada"', add_special=False)
    ahead = compiler.compile(for_schema(PERSON)).masks(draft)
    matcher = compiler.compile(for_schema(PERSON))
    assert matcher.num_allowed([*draft, *tokenizer.encode("]", add_special=False)]) == len(draft)
    for mask, token_id in zip(ahead, draft, strict=False):
        assert (mask == matcher.mask()).all()
        matcher.accept(token_id)
    assert (ahead[-1] == matcher.mask()).all()
    with pytest.raises(ValueError, match="not allowed"):
        compiler.compile(for_schema(PERSON)).masks(tokenizer.encode("x", add_special=False))


@pytest.mark.parametrize(
    ("grammar", "complaint"),
    [
        (Grammar(GrammarKind.REGEX, "(["), "grammar: .*unclosed character class"),
        (Grammar(GrammarKind.LARK, "start: nope"), "grammar: .*nope"),
        (Grammar(GrammarKind.JSON_SCHEMA, '{"type": "nonsense"}'), "format: .*nonsense"),
        (Grammar(GrammarKind.JSON_SCHEMA, "["), "format: "),
    ],
)
def test_a_grammar_that_is_none_says_where(compiler: GrammarCompiler, grammar: Grammar, complaint: str) -> None:
    with pytest.raises(InvalidRequest, match=complaint):
        compiler.compile(grammar)


def mask_us(compiler: GrammarCompiler, tokenizer: Tokenizer) -> float:
    """Median microseconds of a mask along a document and an edit."""
    times: list[float] = []
    for grammar, text in (
        (for_schema(PERSON), '{"name": "somebody with a long name", "age": 12345}'),
        (for_edits(FILE * 20), f"<<<<<<< SEARCH\n{FILE}=======\n{FILE}>>>>>>> REPLACE\n"),
    ):
        matcher = compiler.compile(grammar)
        for token_id in tokenizer.encode(text, add_special=False):
            started = time.perf_counter()
            matcher.mask()
            times.append(time.perf_counter() - started)
            matcher.accept(token_id)
    return sorted(times)[len(times) // 2] * 1e6


def test_a_mask_takes_less_than_a_millisecond(compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    taken = mask_us(compiler, tokenizer)
    record_number("grammar mask at 49k tokens, median us", taken)
    assert taken < 1000


@pytest.mark.network
def test_a_mask_takes_less_than_a_millisecond_at_150k_tokens() -> None:
    tokenizer = Tokenizer.from_gguf(metadata("qwen2_5"))
    taken = mask_us(GrammarCompiler(tokenizer), tokenizer)
    record_number("grammar mask at 152k tokens, median us", taken)
    assert taken < 1000
