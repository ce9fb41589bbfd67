"""Runs one model: tokens in, logits out, through steps captured once and replayed.

Does not tokenise, sample, or decide what to run; one slot, one caller at a time.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from tinygrad.dtype import dtypes
from tinygrad.engine.jit import TinyJit
from tinygrad.helpers import Context
from tinygrad.tensor import Tensor
from tinygrad.uop.ops import UOp

from garzone.engine import architecture
from garzone.engine.architecture.config import ModelConfig
from garzone.engine.architecture.decoder import Decoder, plan
from garzone.engine.device import open_device
from garzone.engine.gguf import GGUFFile
from garzone.engine.kv_cache import KVCache
from garzone.engine.weights import WeightDirectory
from garzone.kernels.cpu.offers import can_record, record
from garzone.kernels.launch import variables
from garzone.kernels.registry import Place, Registry, Step, default_registry, write

DEFAULT_CHUNK_TOKENS = 128
_SCORE_BYTES = 256 << 20  # attention scores of a chunk are (chunk, heads, num_ctx) float32; keep them below this
_DENSE_SHARE = 0.6  # of physical memory may hold unpacked weights; the rest is for the cache and everybody else


class ModelRunner:
    """A loaded model. Make one with `load`."""

    def __init__(self, config: ModelConfig, decoder: Decoder, place: Place, registry: Registry) -> None:
        self.config = config
        self.device = place.device
        self.chunk_tokens = place.chunk_tokens
        self.implementations = dict(registry.chosen)
        self._place = place
        self._decoder = decoder
        self._cache = KVCache(config.num_ctx, decoder.new_caches)
        self._program = record(place, decoder, self._cache.layers) if can_record(registry.chosen) else None
        self._start, self._count = variables(config.num_ctx, place.chunk_tokens)
        self._tokens = Tensor.zeros(place.chunk_tokens, dtype=dtypes.int32, device=place.device).contiguous().realize()
        self._staged = np.zeros(place.chunk_tokens, np.int32)
        self._prefill = _captured(self._prefill_step)
        self._decode = _captured(self._decode_step) if registry.decode_apart else None

    @classmethod
    def load(
        cls,
        path: Path,
        *,
        num_ctx: int,
        device: str = "",
        prefill_chunk: int = DEFAULT_CHUNK_TOKENS,
        dense_bytes: int | None = None,
        registry: Registry | None = None,
    ) -> ModelRunner:
        """Read a GGUF file and put its weights on a device.

        Args:
            path: the file.
            num_ctx: tokens of context; capped at what the model was trained for.
            device: a tinygrad device (`CPU`, `CPU:X86`, `AMD`, `CUDA` ...), "" for the best one that works.
            prefill_chunk: most tokens of one prefill call; lowered where long contexts would make its scores too large.
            dense_bytes: memory that unpacked weights may take; beyond it they stay packed. None: a share of what the
                machine has.
            registry: implementations to choose from.

        Raises:
            GGUFError: malformed, a tensor is missing, of the wrong shape, or not finite.
            UnsupportedModel: of an architecture or type that cannot be computed.
            DeviceUnavailable: no such device, or nothing to compile for it with.
        """
        with GGUFFile.open(path) as file:
            weights = WeightDirectory(file)
            vocab_size = weights.rows_of("token_embd.weight") if weights.has("token_embd.weight") else 0
            config = architecture.configure(file.metadata, vocab_size, num_ctx)
            planned = plan(config, weights)
            most = _SCORE_BYTES // (4 * config.num_heads * config.num_ctx)
            place = Place(
                device=open_device(device),
                num_ctx=config.num_ctx,
                chunk_tokens=max(1, min(prefill_chunk, config.num_ctx, most)),
                dense_bytes=_affordable_bytes() if dense_bytes is None else dense_bytes,
            )
            registry = registry or default_registry()
            decoder = Decoder(planned, registry, place)
        return cls(config, decoder, place, registry)

    @property
    def memory_bytes(self) -> int:
        """Bytes of weights, tables and cache on the device."""
        return self._place.memory_bytes

    @property
    def num_valid(self) -> int:
        """Rows of the cache that hold the tokens of the latest calls."""
        return self._cache.num_valid

    def prefill(self, token_ids: Sequence[int], start: int) -> np.ndarray:
        """Write rows [start, start + n) of the cache; rows before `start` are used as they are.

        Args:
            token_ids: 1 to `chunk_tokens` ids.
            start: position of the first; at most `num_valid`.

        Returns:
            float32 (vocab_size,): logits after the last token.

        Raises:
            ValueError: too many or no tokens, an id outside the vocabulary, or rows that cannot be written.
        """
        if not 1 <= len(token_ids) <= self.chunk_tokens:
            raise ValueError(f"{len(token_ids)} tokens given; one call takes 1 to {self.chunk_tokens}")
        self._check(token_ids, start)
        if self._program:
            row = self._program.run(token_ids, start)
        else:
            self._stage(token_ids)
            row = self._prefill(self._start.bind(start), self._count.bind(len(token_ids))).numpy()
        return self._finish(row, start, len(token_ids))

    def decode(self, token_id: int, position: int) -> np.ndarray:
        """Write row `position` and return the logits after it; otherwise as `prefill` with one token."""
        if self._decode is None or self._program:
            return self.prefill((token_id,), position)
        self._check((token_id,), position)
        self._stage((token_id,))
        return self._finish(self._decode(self._start.bind(position)).numpy(), position, 1)

    def warm_up(self) -> None:
        """Compile and capture both paths. What the cache holds is lost."""
        self._cache.num_valid = 0
        self.prefill((0,), 0)
        self.decode(0, 0)
        self._cache.num_valid = 0

    def _decode_step(self, start: UOp) -> Tensor:
        return self._decoder(Step(1, self._tokens, start, 1), self._cache.layers).realize()

    def _prefill_step(self, start: UOp, count: UOp) -> Tensor:
        step = Step(self.chunk_tokens, self._tokens, start, count)
        return self._decoder(step, self._cache.layers).realize()

    def _check(self, token_ids: Sequence[int], start: int) -> None:
        self._cache.check(start, len(token_ids))
        if min(token_ids) < 0 or max(token_ids) >= self.config.vocab_size:
            raise ValueError(f"token ids must be from 0 to {self.config.vocab_size - 1}")

    def _stage(self, token_ids: Sequence[int]) -> None:
        self._staged[: len(token_ids)] = token_ids
        write(self._tokens, self._staged)

    def _finish(self, logits: np.ndarray, start: int, count: int) -> np.ndarray:
        self._cache.wrote(start, count)
        return logits.reshape(-1)[: self.config.vocab_size].copy()


def _captured(step: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The step as a TinyJit that is captured at its first call already.

    TinyJit would run the first call eagerly, which lowers everything once more and tells it nothing.
    """
    jit = TinyJit(step)
    jit.cnt = 1

    def call(*variables: UOp) -> Tensor:
        # No worker processes: they take as long to start as they save, and would outlive a killed runner.
        with Context(PARALLEL=0):
            return jit(*variables)

    return call


def _affordable_bytes() -> int:
    return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * _DENSE_SHARE)
