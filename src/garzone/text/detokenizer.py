"""Token ids, one at a time, to text that never ends inside a character.

Does not stop at end tokens or hide control tokens: who pushes an id wants its text.
"""

from __future__ import annotations

import codecs
from typing import Protocol


class TokenBytes(Protocol):
    """What is needed of a tokeniser."""

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes a token stands for."""
        ...


class Detokenizer:
    """Joins the bytes of tokens to UTF-8. However a text is cut into tokens, the pieces join to the same text.

    Bytes that cannot be UTF-8 become U+FFFD as soon as that is certain; bytes that may still become a character wait.
    """

    def __init__(self, tokenizer: TokenBytes) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """The text that is whole with this token; often empty inside a character."""
        return self._decoder.decode(self._tokenizer.token_bytes(token_id))

    def finish(self) -> str:
        """What is left: a U+FFFD for a character that never became whole. Starts afresh."""
        left = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return left
