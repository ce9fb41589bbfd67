"""What an answer may look like, as masks over the vocabulary: JSON schema, regex, Lark, and edits of given files.

llguidance does the parsing. Does not sample, and does not decide where in an answer the grammar begins.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

import numpy as np
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper
from numpy.typing import NDArray

from garzone.core.errors import InvalidRequest
from garzone.core.generation import Grammar, GrammarKind

MAX_SOURCE_CHARS: Final = 4 << 20  # a grammar over some dozens of files; llguidance bounds what it makes of it itself
_SHOWN_ERROR_CHARS: Final = 300
# As in llama.cpp's JSON grammar: a small model that may write blanks for ever sometimes does.
_WHITESPACE: Final = r"( |\n[ \t]{0,20})?"


class Vocabulary(Protocol):
    """What is needed of a tokeniser."""

    @property
    def vocab_size(self) -> int: ...  # noqa: D102

    @property
    def bos_id(self) -> int | None: ...  # noqa: D102

    @property
    def eos_ids(self) -> frozenset[int]: ...  # noqa: D102

    @property
    def special_ids(self) -> frozenset[int]: ...  # noqa: D102

    def encode(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> list[int]: ...  # noqa: D102

    def token_bytes(self, token_id: int) -> bytes: ...  # noqa: D102


class _Shown:
    """A vocabulary as llguidance wants to see it."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        size = vocabulary.vocab_size
        self.eos_token_id = min(vocabulary.eos_ids, default=size - 1)
        self.bos_token_id = vocabulary.bos_id
        special = vocabulary.special_ids | vocabulary.eos_ids
        self.special_token_ids = sorted(special)
        self.tokens = [b"" if token_id in special else vocabulary.token_bytes(token_id) for token_id in range(size)]
        for token_id in special:  # llguidance tells these apart by a byte that no text has
            self.tokens[token_id] = b"\xff<%d>" % token_id
        self._vocabulary = vocabulary

    def __call__(self, text: str | bytes) -> list[int]:
        if isinstance(text, bytes):
            text = text.decode("utf-8")
        return self._vocabulary.encode(text, add_special=False, parse_special=False)


class GrammarCompiler:
    """Makes matchers for one vocabulary. Preparing the vocabulary takes some tenths of a second, at first use."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._tokenizer: LLTokenizer | None = None
        self._lock = threading.Lock()

    def compile(self, grammar: Grammar) -> TokenMatcher:
        """A matcher at the beginning of an answer.

        Raises:
            InvalidRequest: the grammar is malformed, or uses what llguidance does not have; says where.
        """
        if len(grammar.source) > MAX_SOURCE_CHARS:
            raise InvalidRequest(f"grammar: longer than {MAX_SOURCE_CHARS} characters")
        with self._lock:
            if self._tokenizer is None:
                wrapper = TokenizerWrapper(_Shown(self._vocabulary))
                eos_ids = sorted(self._vocabulary.eos_ids)
                self._tokenizer = LLTokenizer(wrapper, eos_token=eos_ids or None)
        try:
            matcher = LLMatcher(self._tokenizer, _source(grammar), log_level=0)
        except ValueError as error:
            raise InvalidRequest(f"{_field(grammar)}: {_short(str(error))}") from error
        if matcher.is_error():
            raise InvalidRequest(f"{_field(grammar)}: {_short(matcher.get_error())}")
        return TokenMatcher(matcher, self._vocabulary.vocab_size)


class TokenMatcher:
    """Where in its grammar an answer is. One thread at a time."""

    def __init__(self, matcher: LLMatcher, vocab_size: int) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size

    @property
    def is_complete(self) -> bool:
        """Whether the answer may end here."""
        return self._matcher.is_accepting()

    def mask(self) -> NDArray[np.bool_]:
        """Which tokens may come next, shape (vocab_size,). The end tokens are among them where the answer may end.

        Raises:
            InvalidRequest: the grammar turned out to be too complex at this point.
        """
        if self._matcher.is_stopped() and not self._matcher.is_accepting():
            raise InvalidRequest(f"grammar: {_short(self._matcher.get_error() or 'no token can come next')}")
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        if self._matcher.is_error():
            raise InvalidRequest(f"grammar: {_short(self._matcher.get_error())}")
        mask = np.unpackbits(bits, count=min(self._vocab_size, 8 * len(bits)), bitorder="little").view(np.bool_)
        return mask if len(mask) == self._vocab_size else np.pad(mask, (0, self._vocab_size - len(mask)))

    def masks(self, draft: Sequence[int]) -> list[NDArray[np.bool_]]:
        """The masks before the first token of a draft, and after each; all of its tokens have to be allowed."""
        masks = [self.mask()]
        taken = 0
        for token_id in draft:
            if not self._matcher.consume_token(token_id):
                raise ValueError(f"token {token_id} of a draft is not allowed where it stands")
            taken += 1
            masks.append(self.mask())
        if taken:
            self._matcher.rollback(taken)
        return masks

    def num_allowed(self, tokens: Sequence[int]) -> int:
        """How many of these tokens could come next, one after the other."""
        return self._matcher.validate_tokens(list(tokens)) if tokens else 0

    def accept(self, token_id: int) -> None:
        """That token came.

        Raises:
            ValueError: it was not allowed, which is the caller's bug.
        """
        if not self._matcher.consume_token(token_id):
            raise ValueError(f"token {token_id} is not allowed by the grammar: {_short(self._matcher.get_error())}")

    def forced(self) -> list[int]:
        """Tokens that have to come next, whatever the model says; often none."""
        return list(self._matcher.compute_ff_tokens())


def for_schema(schema: Mapping[str, Any]) -> Grammar:
    """The grammar of a JSON schema; {} stands for any JSON object, as clients mean it."""
    return Grammar(GrammarKind.JSON_SCHEMA, json.dumps(schema or {"type": "object"}))


def for_edits(*texts: str) -> Grammar:
    """Search-and-replace blocks whose SEARCH part can only be whole lines of a text, with line feeds between them.

    The form is that of Aider and of agent/search_replace.py:

        <<<<<<< SEARCH
        lines of the file
        =======
        lines in their place
        >>>>>>> REPLACE

    Args:
        texts: the file, or the parts of it that may be edited. SEARCH lies within one of them; blank lines alone are
            no place in a text, so they do not do unless there is nothing else.
    """
    rules, names = list[str](), list[str]()
    for number, text in enumerate(texts):
        lines = [line + "\n" for line in text.replace("\r\n", "\n").removesuffix("\n").split("\n")]
        chunks = json.dumps({"substring_chunks": lines}, ensure_ascii=True)
        rules.append(f"LINES{number}: %regex {chunks}")
        if text.strip():
            names.append(f"SEARCH{number}")
            rules.append(f"SEARCH{number}: LINES{number} & /(?s:.*)[^ \\t\\n](?s:.*)/")
        else:
            names.append(f"LINES{number}")
    # a line of the replacement is any that does not begin like the two markers
    return Grammar(
        GrammarKind.LARK,
        f"""start: block+
block: "<<<<<<< SEARCH\\n" search "=======\\n" replacement* ">>>>>>> REPLACE\\n"
search: {" | ".join(names)}
replacement: /[^>\\n][^\\n]*\\n/ | /\\n/ | /> ?[^>\\n][^\\n]*\\n/
"""
        + "\n".join(rules)
        + "\n",
    )


def _source(grammar: Grammar) -> str:
    if grammar.kind is GrammarKind.REGEX:
        return LLMatcher.grammar_from_regex(grammar.source)
    if grammar.kind is GrammarKind.LARK:
        return LLMatcher.grammar_from_lark(grammar.source)
    return LLMatcher.grammar_from_json_schema(grammar.source, overrides={"whitespace_pattern": _WHITESPACE})


def _field(grammar: Grammar) -> str:
    return "format" if grammar.kind is GrammarKind.JSON_SCHEMA else "grammar"


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _SHOWN_ERROR_CHARS else text[:_SHOWN_ERROR_CHARS] + " ..."
