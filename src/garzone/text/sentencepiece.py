"""SentencePiece BPE as llama.cpp runs it: join the neighbours whose union is the best-scored token, until none is.

Knows only escaped text (spaces as U+2581) and ids; special tokens, prefixes and bytes of tokens are `tokenizer.py`'s.

Written out in Python, because the `tokenizers` package ranks pairs where llama.cpp scores unions: the two disagree on
runs such as "aaa". Words are remembered, so that text costs about as much as in the package.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from heapq import heapify, heappop, heappush
from typing import Final

SPACE: Final = "▁"
_WORDS: Final = re.compile(f"{SPACE}*[^{SPACE}]+|{SPACE}+")
_MAX_REMEMBERED: Final = 1 << 16
_LONGEST_REMEMBERED: Final = 48


class SentencePieceBPE:
    """Encodes escaped text.

    Args:
        ids: token text to id.
        scores: by id; higher joins first.
        unknown_id: stands for what has neither a token nor byte tokens; None drops it.
    """

    def __init__(self, ids: Mapping[str, int], scores: Sequence[float], unknown_id: int | None) -> None:
        self._ids = ids
        self._scores = scores
        self._unknown = [] if unknown_id is None else [unknown_id]
        self._longest = max(map(len, ids), default=0)
        self._remembered: dict[str, tuple[int, ...]] = {}
        # Where no token holds a space after something else, no union reaches across the start of a word.
        self._split = re.search(f"[^{SPACE}\0]{SPACE}", "\0".join(ids)) is None

    def encode(self, text: str) -> list[int]:
        """Token ids of escaped text."""
        if not self._split:
            return self._encode_word(text)
        output: list[int] = []
        remembered = self._remembered
        for word in _WORDS.findall(text):
            known = remembered.get(word)
            if known is None:
                known = tuple(self._encode_word(word))
                if len(word) <= _LONGEST_REMEMBERED:
                    if len(remembered) >= _MAX_REMEMBERED:
                        remembered.clear()
                    remembered[word] = known
            output += known
        return output

    def _encode_word(self, text: str) -> list[int]:
        # A linked list over characters: symbols[i] is None once it was joined to its left neighbour.
        symbols: list[str | None] = list(text)
        count = len(symbols)
        before = list(range(-1, count - 1))
        after = [*range(1, count), -1]
        ids, scores, longest = self._ids, self._scores, self._longest
        queue: list[tuple[float, int, int, str]] = []
        for left in range(count - 1):
            union = text[left : left + 2]
            token = ids.get(union)
            if token is not None:
                queue.append((-scores[token], left, left + 1, union))
        heapify(queue)
        while queue:
            _, left, right, union = heappop(queue)
            first, second = symbols[left], symbols[right]
            if first is None or second is None or len(first) + len(second) != len(union):
                continue
            symbols[left], symbols[right] = union, None
            far = after[left] = after[right]
            if far >= 0:
                before[far] = left
            for one, other in ((before[left], left), (left, far)):
                if one < 0 or other < 0:
                    continue
                a, b = symbols[one], symbols[other]
                if a is None or b is None or len(a) + len(b) > longest:
                    continue
                token = ids.get(a + b)
                if token is not None:
                    heappush(queue, (-scores[token], one, other, a + b))
        output: list[int] = []
        for symbol in symbols:
            if symbol is not None:
                token = ids.get(symbol)
                if token is None:
                    output += self._bytes(symbol)
                else:
                    output.append(token)
        return output

    def _bytes(self, symbol: str) -> list[int]:
        output: list[int] = []
        for byte in symbol.encode():
            token = self._ids.get(f"<0x{byte:02X}>")
            if token is None and byte < 0x80:
                token = self._ids.get(chr(byte))
            if token is None:
                return list(self._unknown)
            output.append(token)
        return output
