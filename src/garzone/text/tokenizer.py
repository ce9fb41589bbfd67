"""Text to token ids and back, by the vocabulary of a GGUF file, with the ids llama.cpp gives.

Does not read files (it takes their metadata), render chat templates, or stream (see `detokenizer.py`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final, Protocol

import tokenizers
from tokenizers import models

from garzone.core.errors import GGUFError, UnsupportedModel
from garzone.text.pretokenizer import pre_tokenizer
from garzone.text.sentencepiece import SPACE, SentencePieceBPE
from garzone.text.vocabulary import (
    PARSED_TYPES,
    PREFIX,
    SPECIAL_TYPES,
    TokenType,
    Vocabulary,
    numbers,
    read_vocabulary,
)

# The regex engine gives up (and aborts the process's thread) after ten million steps of backtracking. A run of spaces
# costs one step a character, so pieces of this many characters are safe; no context holds one.
_LONGEST_PIECE: Final = 1 << 20
_BLANKS: Final = " \t\n\v\f\r"


def _byte_alphabet() -> dict[str, int]:
    """The characters that stand for bytes in GPT-2's byte-level BPE."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


_BYTE_OF: Final = _byte_alphabet()
_BYTE_TOKEN: Final = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class _Encoder(Protocol):
    """Turns text without special tokens into ids."""

    def encode(self, text: str) -> list[int]: ...

    def token_bytes(self, token: str) -> bytes: ...


class Tokenizer:
    """A vocabulary at work. Thread-safe; costs a few hundred milliseconds to build, so build one a model.

    Attributes:
        vocabulary: tokens, types, and the ids that mean something.
    """

    def __init__(
        self, vocabulary: Vocabulary, encoder: _Encoder, *, space_prefix: bool, stripped_after: frozenset[int]
    ) -> None:
        self.vocabulary = vocabulary
        self._encoder = encoder
        self._space_prefix = space_prefix
        self._stripped_after = stripped_after
        self._special_ids = frozenset(index for index, kind in enumerate(vocabulary.types) if kind in SPECIAL_TYPES)
        parsed = [
            (token, index, vocabulary.types[index] in SPECIAL_TYPES)
            for index, token in enumerate(vocabulary.tokens)
            if vocabulary.types[index] in PARSED_TYPES
        ]
        self._parsed = sorted(parsed, key=lambda entry: -len(entry[0].encode(errors="surrogatepass")))

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any]) -> Tokenizer:
        """Build it from the metadata of a GGUF file.

        Raises:
            GGUFError: the vocabulary is missing or malformed; names the key.
            UnsupportedModel: it is of a kind that cannot be run here.
        """
        model = metadata.get(PREFIX + "model")
        if model == "gpt2":
            return cls._byte_level(metadata)
        if model == "llama":
            return cls._sentence_piece(metadata)
        if model is None:
            raise GGUFError(f"{PREFIX}model is missing: the file has no vocabulary")
        raise UnsupportedModel(
            f"{PREFIX}model is {model!r}; only gpt2 (byte-level BPE) and llama (SentencePiece BPE) are supported"
        )

    @classmethod
    def _byte_level(cls, metadata: Mapping[str, Any]) -> Tokenizer:
        pre = pre_tokenizer(str(metadata.get(PREFIX + "pre", "default")))
        vocabulary = read_vocabulary(metadata, add_bos=pre.adds_bos)
        merges = metadata.get(PREFIX + "merges")
        if not isinstance(merges, list):
            raise GGUFError(f"{PREFIX}merges is missing: a byte-level vocabulary cannot be used without")
        ids = dict(vocabulary.ids)
        pairs: list[tuple[str, str]] = []
        for merge in merges:  # pyright: ignore[reportUnknownVariableType]
            if not isinstance(merge, str):
                raise GGUFError(f"{PREFIX}merges must be an array of strings")
            cut = merge.find(" ", 1)
            left, right = merge[:cut], merge[cut + 1 :]
            if cut > 0 and left in ids and right in ids and left + right in ids:
                pairs.append((left, right))
        tokenizer = tokenizers.Tokenizer(models.BPE(ids, pairs, ignore_merges=pre.ignores_merges))
        tokenizer.pre_tokenizer = pre.build()
        return cls(vocabulary, _ByteLevel(tokenizer), space_prefix=False, stripped_after=frozenset())

    @classmethod
    def _sentence_piece(cls, metadata: Mapping[str, Any]) -> Tokenizer:
        vocabulary = read_vocabulary(metadata, add_bos=True, bos_id=1, eos_id=2)
        count = len(vocabulary.tokens)
        scores = numbers(metadata, PREFIX + "scores", count) or [0.0] * count
        return cls(
            vocabulary,
            _SentencePiece(SentencePieceBPE(vocabulary.ids, scores, vocabulary.unknown_id)),
            space_prefix=bool(metadata.get(PREFIX + "add_space_prefix", True)),
            stripped_after=_stripped_after(vocabulary, str(metadata.get("general.name", ""))),
        )

    @property
    def vocab_size(self) -> int:
        """Ids are below this."""
        return len(self.vocabulary.tokens)

    @property
    def bos_id(self) -> int | None:
        """The token that begins a text, where the model has one."""
        return self.vocabulary.bos_id

    @property
    def eos_ids(self) -> frozenset[int]:
        """All tokens that end an answer."""
        return self.vocabulary.eos_ids

    @property
    def special_ids(self) -> frozenset[int]:
        """Control and unknown tokens: not text that a person wrote, parsed only where `parse_special` allows."""
        return self._special_ids

    def encode(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> list[int]:
        """Token ids of `text`.

        Args:
            text: any text; lone surrogates count as U+FFFD.
            add_special: put the beginning and end tokens round it that the vocabulary asks for.
            parse_special: read the text of control tokens as those tokens. User-defined tokens are always read.
        """
        vocabulary = self.vocabulary
        output: list[int] = []
        if add_special and vocabulary.add_bos and vocabulary.bos_id is not None:
            output.append(vocabulary.bos_id)
        after_special = True
        for fragment in self._fragments(_without_surrogates(text), parse_special):
            if isinstance(fragment, int):
                output.append(fragment)
                after_special = True
                continue
            piece = " " + fragment if self._space_prefix and after_special else fragment
            for start in range(0, len(piece), _LONGEST_PIECE):
                output += self._encoder.encode(piece[start : start + _LONGEST_PIECE])
            after_special = False
        if add_special and vocabulary.add_eos and vocabulary.eos_id is not None:
            output.append(vocabulary.eos_id)
        return output

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes a token stands for: its text for control and user-defined tokens, nothing for unused ones.

        Raises:
            IndexError: no such token.
        """
        if not 0 <= token_id < len(self.vocabulary.tokens):
            raise IndexError(f"token {token_id} is not in a vocabulary of {len(self.vocabulary.tokens)}")
        token, kind = self.vocabulary.tokens[token_id], self.vocabulary.types[token_id]
        if kind in PARSED_TYPES:
            return token.encode(errors="replace")
        if kind == TokenType.BYTE:
            match = _BYTE_TOKEN.fullmatch(token)
            return bytes([int(match[1], 16)]) if match else token.encode(errors="replace")
        return self._encoder.token_bytes(token) if kind == TokenType.NORMAL else b""

    def decode(self, ids: Iterable[int]) -> str:
        """The text of a whole sequence; bytes that are not UTF-8 become U+FFFD. Undoes the space put in front."""
        rest = list(ids)
        if self.vocabulary.add_bos and rest and rest[0] == self.vocabulary.bos_id:
            rest = rest[1:]
        text = b"".join(map(self.token_bytes, rest)).decode(errors="replace")
        return text.removeprefix(" ") if self._space_prefix else text

    def _fragments(self, text: str, parse_special: bool) -> list[str | int]:
        """Text and special tokens in turn. As in llama.cpp, longer tokens are looked for first, in all of the text."""
        fragments: list[str | int] = [text] if text else []
        present = set(text)
        for token, index, is_special in self._parsed:
            if (is_special and not parse_special) or token[0] not in present or token not in text:
                continue
            strips = index in self._stripped_after
            parted: list[str | int] = []
            for fragment in fragments:
                if isinstance(fragment, int):
                    parted.append(fragment)
                else:
                    parted += _parted(fragment, token, index, strips)
            fragments = parted
        return fragments


def _parted(text: str, token: str, index: int, strips: bool) -> list[str | int]:
    """`text` with every `token` in it replaced by `index`. With `strips`, a token takes the blanks after it along."""
    found: list[str | int] = []
    while True:
        # All at once, unless blanks fall away, which may themselves be the next token.
        head, *tail = text.split(token, 1 if strips else -1)
        if head:
            found.append(head)
        if not strips:
            for part in tail:
                found += [index, part] if part else [index]
            return found
        if not tail:
            return found
        found.append(index)
        text = tail[0].lstrip(_BLANKS)


class _ByteLevel:
    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        self._tokenizer = tokenizer

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def token_bytes(self, token: str) -> bytes:
        values = [_BYTE_OF.get(character, -1) for character in token]
        return token.encode(errors="replace") if -1 in values else bytes(values)


class _SentencePiece:
    def __init__(self, model: SentencePieceBPE) -> None:
        self._model = model

    def encode(self, text: str) -> list[int]:
        return self._model.encode(text.replace(" ", SPACE))

    def token_bytes(self, token: str) -> bytes:
        return token.replace(SPACE, " ").encode(errors="replace")


def _stripped_after(vocabulary: Vocabulary, model_name: str) -> frozenset[int]:
    """Phi-3's special tokens swallow the blanks that follow them; no key says so, so llama.cpp goes by the name."""
    if not any(name in model_name.lower() for name in ("phi-3", "phi3")):
        return frozenset()
    kept = {"<unk>", "<s>", "<|endoftext|>"}
    return frozenset(
        index
        for index, (token, kind) in enumerate(zip(vocabulary.tokens, vocabulary.types, strict=True))
        if kind in PARSED_TYPES and token not in kept
    )


def _without_surrogates(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text
