"""Counts the tokens of what a coordinator wrote and read, with a real vocabulary where one lies on this machine.

A coordinator's own vocabulary is not public: the count is made with a local model's and says whose. Finds no models.
"""

from __future__ import annotations

import asyncio
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from garzone.delegate.pricing import CHARS_PER_TOKEN, estimate_tokens

if TYPE_CHECKING:
    from garzone.text.tokenizer import Tokenizer

MAX_VOCABULARIES = 2  # tens of megabytes each


class TokenCounter:
    """Counts with the vocabulary of the GGUF file at `path`, or by a rule of thumb without one.

    `method` says how, in a few words for the ledger; it is settled by the first count.
    """

    def __init__(self, path: Path | None = None, name: str = "") -> None:
        self._path = path
        self._name = name
        self.method = f"{CHARS_PER_TOKEN} characters a token"

    async def count(self, *texts: str) -> int:
        """Tokens of all texts together. Never fails: a file that cannot be read leaves the rule of thumb."""
        return await asyncio.to_thread(self._count, texts)

    def _count(self, texts: tuple[str, ...]) -> int:
        if self._path is not None:
            try:
                vocabulary = _vocabulary(self._path)
            except Exception:  # noqa: BLE001 - whatever is wrong with the file: the worker says it, a count may be rough
                self._path = None
            else:
                self.method = f"the vocabulary of {self._name}"
                return sum(len(vocabulary.encode(text, add_special=False, parse_special=False)) for text in texts)
        return sum(map(estimate_tokens, texts))


@lru_cache(maxsize=MAX_VOCABULARIES)
def _vocabulary(path: Path) -> Tokenizer:
    from garzone.engine.gguf import read_metadata  # noqa: PLC0415 - only who counts pays for the import
    from garzone.text.tokenizer import Tokenizer  # noqa: PLC0415

    return Tokenizer.from_gguf(read_metadata(path))
