"""Turns texts into vectors, a chunk of rows at a time, in a slot of its own."""

from __future__ import annotations

import time

import numpy as np

from garzone.core.errors import ContextOverflow, GenerationFailed, InvalidRequest
from garzone.core.generation import Embeddings, Pooling
from garzone.engine.row import Row
from garzone.runner.model import Model
from garzone.runner.protocol import Embed, Embedded
from garzone.runner.row_store import RowStore
from garzone.scheduler.slots import SlotPool


class EmbeddingJob:
    """The texts of one request. Uses no cached rows: the state of every token is needed."""

    def __init__(self, model: Model, message: Embed, pool: SlotPool, rows: RowStore) -> None:
        self.number = message.id
        self._model = model
        self._message = message
        self._pool = pool
        self._rows = rows
        self._pooling = message.pooling or model.pooling
        self._slot: int | None = None
        self._texts: list[list[int]] | None = None
        self._vectors: list[tuple[float, ...]] = []
        self._sum: np.ndarray | None = None
        self._done = 0
        self._started = time.perf_counter()

    def step(self) -> Embedded | None:
        """Compute one chunk; the answer once all texts are done. Does nothing while every slot is taken.

        Raises:
            InvalidRequest, ContextOverflow, Unsupported: what is asked for cannot be done.
            GenerationFailed: the engine computed nonsense.
        """
        if self._texts is None:
            self._texts = self._tokenise()
        if self._slot is None:
            claim = self._pool.claim(-1 - self.number, self._texts[0][:1])  # one token: no rows are looked for
            if claim is None:
                return None
            self._slot = claim.slot
            self._rows.make(claim.moves)
        self._chunk(self._texts[len(self._vectors)])
        if len(self._vectors) < len(self._texts):
            return None
        self.close()
        embed_ms = (time.perf_counter() - self._started) * 1e3
        num_tokens = tuple(map(len, self._texts))
        return Embedded(self.number, Embeddings(tuple(self._vectors), num_tokens, embed_ms=embed_ms))

    def close(self) -> None:
        """Give the slot back."""
        if self._slot is not None:
            self._pool.release(self._slot)
            self._slot = None

    def _tokenise(self) -> list[list[int]]:
        most = self._model.context_tokens
        texts: list[list[int]] = []
        if not self._message.inputs:
            raise InvalidRequest("input: no texts to embed")
        for index, text in enumerate(self._message.inputs):
            tokens = self._model.tokenizer.encode(text)
            if not tokens:
                raise InvalidRequest(f"input: text {index} is empty")
            if len(tokens) > most:
                if not self._message.truncate:
                    raise ContextOverflow(len(tokens), most)
                tokens = tokens[:most]
            texts.append(tokens)
        return texts

    def _chunk(self, tokens: list[int]) -> None:
        assert self._slot is not None
        engine, start = self._model.engine, self._done
        chunk = tokens[start : start + engine.chunk_tokens]
        mean = self._pooling is Pooling.MEAN
        wanted = [mean or start + index == len(tokens) - 1 for index in range(len(chunk))]
        rows = [Row(self._slot, start + index, token, wanted[index]) for index, token in enumerate(chunk)]
        states = np.asarray(engine.hidden(rows), np.float64)
        self._pool.wrote(self._slot, start, chunk)
        total = states.sum(axis=0)
        if self._sum is not None:
            total += self._sum
        self._sum = total
        self._done += len(chunk)
        if self._done < len(tokens):
            return
        self._vectors.append(self._finished(total / len(tokens) if mean else total))
        self._sum, self._done = None, 0

    def _finished(self, vector: np.ndarray) -> tuple[float, ...]:
        """The vector, cut to the dimensions that were asked for, and of length 1 unless it is wanted as it is."""
        dimensions = self._message.dimensions
        if dimensions is not None:
            if not 0 < dimensions <= len(vector):
                raise InvalidRequest(f"dimensions: must be from 1 to {len(vector)}, not {dimensions}")
            vector = vector[:dimensions]
        length = float(np.linalg.norm(vector))
        if not np.isfinite(length) or length == 0.0:
            raise GenerationFailed(f"the model computed a vector of length {length}; try garzone doctor")
        return tuple((vector / length if self._message.unit_length else vector).tolist())
