"""Runs one model: rows of tokens in, logits out, through steps captured once and replayed.

Does not tokenise, sample, or decide what to run and in which slot; one caller at a time.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tinygrad.dtype import dtypes
from tinygrad.tensor import Tensor
from tinygrad.uop.ops import UOp

from garzone.core.generation import KVCacheType
from garzone.engine import architecture
from garzone.engine.architecture.config import ModelConfig
from garzone.engine.architecture.decoder import Decoder, plan
from garzone.engine.device import open_device
from garzone.engine.footprint import KV_BYTES_PER_NUMBER, check_kv_cache
from garzone.engine.gguf import GGUFFile
from garzone.engine.kv_cache import KVCache, to_bytes
from garzone.engine.row import Row
from garzone.engine.scores import HostScores, Scores
from garzone.engine.weights import WeightDirectory
from garzone.kernels.cpu.offers import OFFERS as C_OFFERS
from garzone.kernels.cpu.offers import can_record, compile_ahead, new_caches, record
from garzone.kernels.cpu.program import Program as CpuProgram
from garzone.kernels.cpu.traffic import Traffic
from garzone.kernels.gpu.offers import can_batch
from garzone.kernels.gpu.program import Program as GpuProgram
from garzone.kernels.gpu.program import new_caches as new_gpu_caches
from garzone.kernels.launch import Captured, variables
from garzone.kernels.registry import Cache, Operation, Place, Registry, Step, default_registry, write

_log = logging.getLogger(__name__)

DEFAULT_CHUNK_TOKENS = 128
_SCORE_BYTES = 256 << 20  # attention scores of a chunk are (chunk, heads, num_ctx) float32; keep them below this
_DENSE_SHARE = 0.6  # of physical memory may hold unpacked weights; the rest is for the cache and everybody else


class ModelRunner:
    """A loaded model. Make one with `load`.

    What a row gives does not depend on what else is in its step: on the CPU's own kernels to the last bit, elsewhere
    within rounding.
    """

    def __init__(
        self, config: ModelConfig, decoder: Decoder, place: Place, registry: Registry, num_slots: int = 1
    ) -> None:
        self.config = config
        self.device = place.device
        self.chunk_tokens = place.chunk_tokens
        self.implementations = dict(registry.chosen)
        self.kv_cache = decoder.plan.layers[0].attention.kv_cache
        self._place = place
        self._decoder = decoder
        self._decode_apart = registry.decode_apart
        self._start, self._count = variables(config.num_ctx, place.chunk_tokens)
        self._tokens = Tensor.zeros(place.chunk_tokens, dtype=dtypes.int32, device=place.device).contiguous().realize()
        self._staged = np.zeros(place.chunk_tokens, np.int32)
        self._captured: dict[tuple[int, str], Captured] = {}
        self._program = None
        if can_record(registry.chosen):
            caches = new_caches(decoder.attentions, num_slots)
            self._cache = KVCache(config.num_ctx, num_slots, [caches])
            self._program = record(place, decoder.states, decoder.output, caches)
        elif can_batch(registry.chosen):
            caches = new_gpu_caches(decoder.attentions, num_slots)
            self._cache = KVCache(config.num_ctx, num_slots, [caches])
            self._program = GpuProgram(
                place, decoder.states, decoder.output, decoder.attentions, caches, vocab_size=config.vocab_size
            )
        else:
            banks = [[attention.new_cache() for attention in decoder.attentions] for _ in range(num_slots)]
            self._cache = KVCache(config.num_ctx, num_slots, banks)

    @classmethod
    def load(
        cls,
        path: Path,
        *,
        num_ctx: int,
        device: str = "",
        num_slots: int = 1,
        prefill_chunk: int = DEFAULT_CHUNK_TOKENS,
        dense_bytes: int | None = None,
        registry: Registry | None = None,
        kv_cache: KVCacheType = KVCacheType.F16,
    ) -> ModelRunner:
        """Read a GGUF file and put its weights on a device.

        Args:
            path: the file.
            num_ctx: tokens of context; capped at what the model was trained for.
            device: a tinygrad device (`CPU`, `CPU:X86`, `AMD`, `CUDA` ...), "" for the best one that works.
            num_slots: sequences that are kept at the same time, each with a cache of `num_ctx` rows.
            prefill_chunk: most rows of one step; lowered where long contexts would make its scores too large.
            dense_bytes: memory that unpacked weights may take; beyond it they stay packed. None: a share of what the
                machine has.
            registry: implementations to choose from.
            kv_cache: how keys and values are kept.

        Raises:
            Unsupported: they cannot be kept that way for this model.
            GGUFError: malformed, a tensor is missing, of the wrong shape, or not finite.
            UnsupportedModel: of an architecture or type that cannot be computed.
            DeviceUnavailable: no such device, or nothing to compile for it with.
        """
        with GGUFFile.open(path) as file:
            weights = WeightDirectory(file)
            vocab_size = weights.rows_of("token_embd.weight") if weights.has("token_embd.weight") else 0
            config = architecture.configure(file.metadata, vocab_size, num_ctx)
            check_kv_cache(file.metadata, kv_cache)
            planned = plan(config, weights, kv_cache)
            most = _SCORE_BYTES // (4 * config.num_heads * config.num_ctx)
            place = Place(
                device=open_device(device),
                num_ctx=config.num_ctx,
                chunk_tokens=max(1, min(prefill_chunk, config.num_ctx, most)),
                dense_bytes=_affordable_bytes() if dense_bytes is None else dense_bytes,
            )
            registry = registry or default_registry()
            if registry.offers_for(planned.output, place.device.partition(":")[0])[0] in C_OFFERS:
                compile_ahead(planned.ggml_types, kv_cache)
            decoder = Decoder(planned, registry, place)
        _warn_of_slow_kernels(registry, place.device)
        return cls(config, decoder, place, registry, num_slots)

    @property
    def _row_shape(self) -> tuple[int, ...]:
        """Of one row of a layer in `read_rows`, in elements of `_row_dtype`."""
        size = self.config.head_dim
        if self.kv_cache is KVCacheType.Q8_0:
            size = int(size * KV_BYTES_PER_NUMBER[self.kv_cache])
        return 2, self.config.num_kv_heads, size

    @property
    def _row_dtype(self) -> np.dtype[Any]:
        """What the elements of cached rows are."""
        if self.kv_cache is KVCacheType.Q8_0:
            return np.dtype(np.uint8)
        # only the portable kernels ever keep float32
        is_exact = self._cache.banks[0][0][0].dtype == dtypes.float32
        return np.dtype(np.float32 if is_exact else np.float16)

    @property
    def memory_bytes(self) -> int:
        """Bytes of weights, tables and cache on the device."""
        return self._place.memory_bytes

    @property
    def num_slots(self) -> int:
        """Sequences that are kept at the same time."""
        return self._cache.num_slots

    @property
    def is_batched(self) -> bool:
        """Whether rows of several slots are computed together; otherwise slot after slot, each captured apart."""
        return self._program is not None

    @property
    def row_bytes(self) -> int:
        """Bytes of one row in `read_rows`."""
        layers, _ = self._cache.locate(0)
        return len(layers) * math.prod(self._row_shape) * self._row_dtype.itemsize

    @property
    def num_valid(self) -> int:
        """`valid_rows(0)`, for callers that use one slot."""
        return self._cache.num_valid[0]

    def valid_rows(self, slot: int) -> int:
        """Rows of a slot that hold the tokens of the latest calls."""
        return self._cache.num_valid[slot]

    def step(self, rows: Sequence[Row]) -> np.ndarray:
        """Write rows of one or several slots, prompts and single tokens mixed; a row sees those before it in its slot.

        Args:
            rows: 1 to `chunk_tokens`. Those of one slot go to positions that follow one another, the first of which is
                at most `valid_rows(slot)`; rows from there on are overwritten.

        Returns:
            float32 (rows that want them, vocab_size): logits after those rows, in the order of `rows`.

        Raises:
            ValueError: too many or no rows, an id outside the vocabulary, or rows that cannot be written.
        """
        spans = self._check(rows)
        if self._program:
            logits = self._program.run(*_columns(rows))[:, : self.config.vocab_size].copy()
        else:
            logits = self._run_by_slot(rows, spans, "logits")
        self._note(spans)
        return logits

    def score(self, rows: Sequence[Row]) -> Sequence[Scores]:
        """As `step`, but logits stay where they were computed until somebody looks at them.

        A token is mostly chosen among the highest few, and a vocabulary is long to fetch from a card. They are good
        until the next call.
        """
        if not isinstance(self._program, GpuProgram):
            return [HostScores(logits) for logits in self.step(rows)]
        spans = self._check(rows)
        scores = self._program.score(*_columns(rows))
        self._note(spans)
        return scores

    def hidden(self, rows: Sequence[Row]) -> np.ndarray:
        """As `step`, but float32 (rows that want logits, hidden): the states after the model's last norm."""
        spans = self._check(rows)
        program = self._program
        x = program.run_to_states(*_columns(rows)) if program else self._run_by_slot(rows, spans, "states")
        self._note(spans)
        norm, eps = self._decoder.plan.output.norm, self._decoder.plan.output.norm_eps
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + np.float32(eps)) * norm

    def prefill(self, token_ids: Sequence[int], start: int, slot: int = 0) -> np.ndarray:
        """Write rows [start, start + n) of a slot; rows before `start` are used as they are.

        Args:
            token_ids: 1 to `chunk_tokens` ids.
            start: position of the first; at most `valid_rows(slot)`.
            slot: which sequence's.

        Returns:
            float32 (vocab_size,): logits after the last token.

        Raises:
            ValueError: as `step`.
        """
        last = len(token_ids) - 1
        return self.step([Row(slot, start + i, token_id, i == last) for i, token_id in enumerate(token_ids)])[0]

    def decode(self, token_id: int, position: int, slot: int = 0) -> np.ndarray:
        """Write row `position` and return the logits after it; otherwise as `prefill` with one token."""
        return self.step((Row(slot, position, token_id, True),))[0]

    def copy_rows(self, from_slot: int, to_slot: int, num_rows: int) -> None:
        """Make the first rows of a slot those of another; what it held is lost.

        Raises:
            ValueError: no such slot, or not that many rows hold anything.
        """
        self._cache.check(to_slot, 0, max(num_rows, 1))
        if num_rows and from_slot != to_slot:
            self._cache.check_valid(from_slot, 0, num_rows)
            (source, index), (target, to_index) = self._cache.locate(from_slot), self._cache.locate(to_slot)
            if isinstance(self._program, GpuProgram):
                self._program.copy_rows(from_slot, to_slot, num_rows)
            elif source is target:
                for attention, layer in zip(self._decoder.attentions, source, strict=True):
                    attention.copy_rows(layer, index, to_index, num_rows)
            else:
                for attention, layer, to_layer in zip(self._decoder.attentions, source, target, strict=True):
                    attention.write_rows(to_layer, to_index, 0, attention.read_rows(layer, index, 0, num_rows))
        self._cache.wrote(to_slot, 0, num_rows)

    def read_rows(self, slot: int, start: int, count: int) -> bytes:
        """Rows [start, start + count) of a slot, for `write_rows` of the same model on the same sort of device.

        Raises:
            ValueError: no such slot, or not all of them hold something.
        """
        self._cache.check_valid(slot, start, count)
        layers, index = self._cache.locate(slot)
        parts = zip(self._decoder.attentions, layers, strict=True)
        return to_bytes([attention.read_rows(layer, index, start, count) for attention, layer in parts])

    def write_rows(self, slot: int, start: int, count: int, data: bytes) -> None:
        """Put rows back that `read_rows` gave; those behind them are lost.

        Raises:
            ValueError: no such slot, a hole before `start`, or data of another size.
        """
        self._cache.check(slot, start, count)
        layers, index = self._cache.locate(slot)
        if len(data) != count * self.row_bytes:
            raise ValueError(f"{len(data)} bytes are not {count} rows of this model")
        rows = np.frombuffer(data, self._row_dtype).reshape(len(layers), count, *self._row_shape)
        for attention, layer, values in zip(self._decoder.attentions, layers, rows, strict=True):
            attention.write_rows(layer, index, start, values)
        self._cache.wrote(slot, start, count)

    def traffic(self, position: int) -> Traffic | None:
        """Bytes that decoding one token at that position moves, counted; None where they are not."""
        return self._program.traffic(position) if isinstance(self._program, CpuProgram) else None

    def read_weights_seconds(self) -> float | None:
        """How long a plain read of the weights takes here, the bound of decoding; None where it is not measured."""
        return self._program.read_weights_seconds() if isinstance(self._program, CpuProgram) else None

    def warm_up(self) -> None:
        """Compile and capture what a first answer needs. What slot 0 holds is lost."""
        self._cache.num_valid[0] = 0
        self.prefill((0,) * min(2, self.chunk_tokens, self.config.num_ctx), 0)
        self.decode(0, 0)
        self._cache.num_valid[0] = 0

    def prepare_more(self) -> bool:
        """Compile and capture one thing more that an answer may need; False when there is nothing left to prepare.

        For when nobody waits: it takes a second or, the first time on a machine, ten. No slot changes.
        """
        return isinstance(self._program, GpuProgram) and self._program.prepare_more()

    # ---- rows ----

    def _check(self, rows: Sequence[Row]) -> dict[int, tuple[int, int]]:
        """First position and number of rows of each slot."""
        if not 1 <= len(rows) <= self.chunk_tokens:
            raise ValueError(f"{len(rows)} rows given; one step takes 1 to {self.chunk_tokens} tokens")
        spans: dict[int, tuple[int, int]] = {}
        for row in rows:
            first, count = spans.get(row.slot, (row.position, 0))
            if row.position != first + count:
                raise ValueError(f"row {row.position} of slot {row.slot} does not follow row {first + count - 1}")
            if not 0 <= row.token_id < self.config.vocab_size:
                raise ValueError(f"token ids must be from 0 to {self.config.vocab_size - 1}")
            spans[row.slot] = (first, count + 1)
        for slot, (first, count) in spans.items():
            self._cache.check(slot, first, count)
        return spans

    def _note(self, spans: dict[int, tuple[int, int]]) -> None:
        for slot, (first, count) in spans.items():
            self._cache.wrote(slot, first, count)

    def _run_by_slot(self, rows: Sequence[Row], spans: dict[int, tuple[int, int]], kind: str) -> np.ndarray:
        """The rows of each slot in turn, each run of them ending where logits are wanted."""
        found: dict[Row, np.ndarray] = {}
        for slot in spans:
            for run in _runs([row for row in rows if row.slot == slot]):
                self._staged[: len(run)] = [row.token_id for row in run]
                write(self._tokens, self._staged)
                out = self._call(slot, kind, run[0].position, len(run)).numpy()
                if kind == "logits":
                    found[run[-1]] = out.reshape(-1)[: self.config.vocab_size].copy()
                else:
                    found[run[-1]] = out[len(run) - 1].copy()
        width = self.config.vocab_size if kind == "logits" else self.config.hidden
        wanted = [found[row] for row in rows if row.wants_logits]
        return np.stack(wanted) if wanted else np.zeros((0, width), np.float32)

    # ---- steps captured by tinygrad ----

    def _call(self, slot: int, kind: str, start: int, count: int) -> Tensor:
        caches, _ = self._cache.locate(slot)
        compute = self._decoder if kind == "logits" else self._decoder.states
        if count == 1 and self._decode_apart and kind == "logits":
            return self._capture(slot, "decode", compute, caches)(self._start.bind(start))
        return self._capture(slot, kind, compute, caches)(self._start.bind(start), self._count.bind(count))

    def _capture(
        self, slot: int, kind: str, compute: Callable[[Step, list[Cache]], Tensor], caches: list[Cache]
    ) -> Callable[..., Tensor]:
        """The step of one slot, captured at its first use: buffers are part of what is captured."""
        if (slot, kind) not in self._captured:
            rows = 1 if kind == "decode" else self.chunk_tokens

            def step(start: UOp, count: UOp | int = 1) -> Tensor:
                return compute(Step(rows, self._tokens, start, count), caches).realize()

            self._captured[slot, kind] = Captured(step)
        return self._captured[slot, kind]


def _warn_of_slow_kernels(registry: Registry, device: str) -> None:
    """Say once what has no kernels of its own on this device; whoever declined for another reason has said so."""
    if Operation.ATTENTION in registry.slow and Operation.LINEAR in registry.slow:
        _log.warning("there are no fast kernels for %s: the portable ones compute, slowly", device)
    elif types := sorted({ggml_type.name for types in registry.slow.values() for ggml_type in types}):
        _log.warning(
            "there are no fast kernels for weights of type %s on %s: the portable ones compute with them, slowly",
            ", ".join(types),
            device,
        )


def _columns(rows: Sequence[Row]) -> tuple[list[int], list[int], list[int], list[int]]:
    wanted = [index for index, row in enumerate(rows) if row.wants_logits]
    return [row.token_id for row in rows], [row.slot for row in rows], [row.position for row in rows], wanted


def _runs(rows: Sequence[Row]) -> Iterator[Sequence[Row]]:
    """Cuts rows after each that wants logits."""
    first = 0
    for index, row in enumerate(rows):
        if row.wants_logits or index == len(rows) - 1:
            yield rows[first : index + 1]
            first = index + 1


def _affordable_bytes() -> int:
    return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * _DENSE_SHARE)
