"""The seam between a model and the code that computes it: what an operation is, and who offers it on which device.

Says what has to be computed, and picks the best implementation on offer; computes nothing itself.

A model is built from three operations: EMBED, LINEAR (with what usually surrounds it: norm before, gate or residual
after) and ATTENTION (rotation, KV cache, softmax). Each place in the model asks `Registry.build` once, with its packed
weights; what comes back is a function on tensors, called while the JIT captures a step. An implementation keeps the
weights in whatever layout it likes, and is free to fuse.

A step handles `rows` token rows, of which only the first `count` are real.
Implementations may leave any garbage in the rows behind them.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final, Protocol, cast

import numpy as np
from tinygrad.device import Buffer
from tinygrad.dtype import _from_np_dtype  # pyright: ignore[reportPrivateUsage]
from tinygrad.tensor import Tensor
from tinygrad.uop.ops import UOp

from garzone.core.generation import KVCacheType
from garzone.kernels.layouts import GGMLType

_log = logging.getLogger(__name__)


class Operation(Enum):
    """The three things a dense decoder is made of."""

    EMBED = "embed"
    LINEAR = "linear"
    ATTENTION = "attention"


class RopePairs(Enum):
    """Which elements of a head are rotated together: (0, 1), (2, 3) ... or (0, half), (1, half + 1) ..."""

    ADJACENT = "adjacent"
    HALVES = "halves"


class Gate(Enum):
    """What the first half of a gated feed-forward goes through: x * sigmoid(x), or GELU's approximation by tanh."""

    SILU = "silu"
    GELU = "gelu"


def _keep() -> None:
    pass


@dataclass(frozen=True)
class Matrix:
    """A weight matrix as the file has it. `read` gives the packed bytes, row after row, without copying.

    `let_go` gives back the memory that reading them has taken so far; they can still be read.
    """

    name: str
    ggml_type: GGMLType
    rows: int
    columns: int
    read: Callable[[], np.ndarray]
    let_go: Callable[[], None] = _keep


@dataclass(frozen=True)
class EmbedSpec:
    """Rows of a table, times `scale`: tokens (rows,) int32 -> (rows, columns) float32."""

    table: Matrix
    scale: float = 1.0

    @property
    def matrices(self) -> tuple[Matrix, ...]:
        """What decides which implementation can be used."""
        return (self.table,)


@dataclass(frozen=True)
class LinearSpec:
    """`y = residual + post_norm(act(norm(x) @ W.T + bias))`, with only the parts that are asked for.

    The rows of `matrices` are stacked (q, k, v). `norm` is the weight of an RMS norm of the input, `post_norm` of
    one of the result, both with `norm_eps`. With `gated` there are two matrices, gate and up, and
    y = gate(x @ gate.T) * (x @ up.T). With `last_row` only the last real row is computed, and the result is
    (1, rows of W); there it may be padded with more columns.
    """

    matrices: tuple[Matrix, ...]
    norm: np.ndarray | None = None
    norm_eps: float = 0.0
    bias: np.ndarray | None = None
    gated: bool = False
    residual: bool = False
    last_row: bool = False
    gate: Gate = Gate.SILU
    post_norm: np.ndarray | None = None

    @property
    def columns(self) -> int:
        """Elements of an input row."""
        return self.matrices[0].columns

    @property
    def out_columns(self) -> int:
        """Elements of an output row."""
        return self.matrices[0].rows if self.gated else sum(matrix.rows for matrix in self.matrices)


@dataclass(frozen=True)
class AttentionSpec:
    """Causal attention over a KV cache with rotary positions.

    Input rows hold q (num_heads * head_dim), k and v (num_kv_heads * head_dim each). `rope` is (num_ctx, dims / 2, 2):
    cosine and sine; the first `dims` elements of a head are rotated, the rest pass. With `exact_cache` (models in
    float32) keys and values are kept as float32 rather than float16. With `kv_cache` Q8_0 they are rounded when
    they are written, keys after rotation: each 32 elements of a head to bytes, the largest of them over 127 as factor.

    `q_norm` and `k_norm` (head_dim,) are weights of an RMS norm of each head before it is rotated. `window` is how many
    positions a row sees, its own included; 0 for all. Scores are multiplied by `scale`, or by head_dim ** -0.5.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope: np.ndarray
    rope_pairs: RopePairs
    exact_cache: bool = False
    matrices: tuple[Matrix, ...] = ()
    q_norm: np.ndarray | None = None
    k_norm: np.ndarray | None = None
    norm_eps: float = 0.0
    window: int = 0
    scale: float | None = None
    kv_cache: KVCacheType = KVCacheType.F16

    @property
    def score_scale(self) -> float:
        """What scores are multiplied by."""
        return self.head_dim**-0.5 if self.scale is None else self.scale

    @property
    def rope_dims(self) -> int:
        """How many elements of a head are rotated."""
        return 2 * self.rope.shape[1]


Spec = EmbedSpec | LinearSpec | AttentionSpec


@dataclass
class Place:
    """Where operations are built: the device, the sizes every operation shares, and what they may share of memory.

    `shared` lets implementations reuse tensors (a tied embedding, a rope table); its keys are theirs to choose.
    `dense_bytes` is how much may still be spent on unpacked weights; `memory_bytes` counts what was allocated.
    """

    device: str
    num_ctx: int
    chunk_tokens: int
    dense_bytes: int
    memory_bytes: int = 0
    shared: dict[Any, Any] = field(default_factory=dict[Any, Any])

    def warn_once(self, message: str) -> None:
        """Log what whoever waits for a slow model should know, once for all places that say the same."""
        if self.shared.setdefault(("warned", message), self) is self:
            self.shared["warned", message] = None
            _log.warning(message)

    def made_of(self, array: np.ndarray, kind: str, make: Callable[[], Any]) -> Any:
        """What `make` makes of that very array, made once: layers share tables that are too large to be compared."""
        found = self.shared.get((kind, id(array)))
        if found is None or found[0]() is not array:
            found = self.shared[kind, id(array)] = (weakref.ref(array), make())
        return found[1]

    def upload(self, array: np.ndarray) -> Tensor:
        """The array as a realised tensor on the device."""
        tensor = Tensor.empty(*array.shape, dtype=_from_np_dtype(array.dtype), device=self.device)
        write(tensor, array)
        self.memory_bytes += int(array.nbytes)
        return tensor


def write(tensor: Tensor, array: np.ndarray, at: int = 0) -> None:
    """Copy the array's bytes over those of a tensor that is a buffer of its own, from byte ``at`` on.

    `Tensor(array).realize()` and `Buffer.copy_from` schedule and compile a copy: 10 ms and 0.5 ms, where this takes as
    long as the bytes do.
    """
    buffer = cast(Buffer, tensor.uop.base.buffer).ensure_allocated()
    data = np.require(array, requirements=("C", "W")).reshape(-1).view(np.uint8)  # drivers want it writable
    buffer.allocator._copyin(_part(buffer, data.nbytes, at), data.data)  # pyright: ignore[reportPrivateUsage]


def read(tensor: Tensor, array: np.ndarray, at: int = 0) -> None:
    """Copy bytes of a tensor that is a buffer of its own, from byte ``at`` on, over the array's."""
    buffer = cast(Buffer, tensor.uop.base.buffer)
    view = array.reshape(-1).view(np.uint8)
    buffer.allocator._copyout(view.data, _part(buffer, view.nbytes, at))  # pyright: ignore[reportPrivateUsage]


def _part(buffer: Buffer, nbytes: int, at: int) -> object:
    """The driver's name of some bytes of a buffer."""
    whole = buffer._buf  # pyright: ignore[reportPrivateUsage]
    if nbytes == buffer.nbytes:
        return whole
    return buffer.allocator._offset(whole, nbytes, at)  # pyright: ignore[reportPrivateUsage]


@dataclass(frozen=True)
class Step:
    """One call of the captured function. `start` is the position of the first row; both variables are bound.

    `rows` is the leading dimension of every activation. In a decode captured apart it is 1, and `count` the number 1.
    """

    rows: int
    tokens: Tensor
    start: UOp | int
    count: UOp | int


class EmbedFunction(Protocol):
    """What EMBED is built into."""

    def __call__(self, step: Step) -> Tensor:
        """(rows, columns) float32."""
        ...


class LinearFunction(Protocol):
    """What LINEAR is built into."""

    def __call__(self, x: Tensor, step: Step, residual: Tensor | None = None) -> Tensor:
        """(rows, out_columns) float32."""
        ...


Cache = tuple[Tensor, ...]


class AttentionFunction(Protocol):
    """What ATTENTION is built into. The layout of the cache is its own business."""

    def new_cache(self) -> Cache:
        """The realised tensors of one layer's keys and values; whatever is in them must be finite."""
        ...

    def read_rows(self, cache: Cache, slot: int, start: int, count: int) -> np.ndarray:
        """Rows [start, start + count) of a slot as (count, 2, num_kv_heads, ...): keys, rotated, and values.

        Of the cache's own type: head_dim elements of float16 or float32, or of Q8_0 the bytes of blocks as GGUF files
        have them. Caches made by `new_cache()` have one slot, 0.
        """
        ...

    def copy_rows(self, cache: Cache, from_slot: int, to_slot: int, num_rows: int) -> None:
        """Make the first rows of a slot those of another slot of the same cache."""
        ...

    def write_rows(self, cache: Cache, slot: int, start: int, rows: np.ndarray) -> None:
        """Put rows back that `read_rows` gave."""
        ...

    def __call__(self, qkv: Tensor, cache: Cache, step: Step) -> tuple[Tensor, Cache]:
        """Rotate, write rows [start, start + count) of the cache, attend: (rows, num_heads * head_dim) float32.

        The cache tensors that come back are the given ones after the write; go on with those.
        """
        ...


class Builder(Protocol):
    """Turns a spec into a function, uploading weights as it likes. Returns None to decline this one."""

    def __call__(self, spec: Any, place: Place) -> Any:
        """An EmbedFunction, LinearFunction or AttentionFunction, as the spec is; or None."""
        ...


@dataclass(frozen=True)
class Offer:
    """An implementation: for which operation, on which device ("" for any), of which types (empty for any).

    With `decodes_apart` it does better when one row is known to be one: decode is then captured as a step of its own,
    with `rows` 1 and `count` the number 1. Otherwise one captured step serves both, which halves the time to start.
    """

    name: str
    operation: Operation
    build: Builder
    device: str = ""
    ggml_types: frozenset[GGMLType] = frozenset()
    rank: int = 0
    decodes_apart: bool = False

    def fits(self, operation: Operation, device: str, ggml_types: frozenset[GGMLType]) -> bool:
        """Whether it is worth asking."""
        return (
            self.operation is operation
            and self.device in ("", device)
            and (not self.ggml_types or ggml_types <= self.ggml_types)
        )


_OPERATION_OF: Final = {
    EmbedSpec: Operation.EMBED,
    LinearSpec: Operation.LINEAR,
    AttentionSpec: Operation.ATTENTION,
}


class Registry:
    """All implementations on offer. The highest rank that fits and does not decline is taken.

    `chosen` counts, by implementation, the places that were built with it; `decode_apart` says whether one of them
    wants decode to be captured apart. `slow` has the operations, and weight types, for which there was nothing to
    choose from but what runs everywhere.
    """

    def __init__(self, offers: tuple[Offer, ...] = ()) -> None:
        self._offers = list(offers)
        self.chosen: dict[str, int] = {}
        self.decode_apart = False
        self.slow: dict[Operation, set[GGMLType]] = {}

    def register(self, offer: Offer) -> None:
        """Add an implementation."""
        self._offers.append(offer)

    def offers_for(self, spec: Spec, device: str) -> list[Offer]:
        """Those worth asking, best first. `device` is a tinygrad device name, without an index."""
        types = frozenset(matrix.ggml_type for matrix in spec.matrices)
        fitting = [offer for offer in self._offers if offer.fits(_OPERATION_OF[type(spec)], device, types)]
        return sorted(fitting, key=lambda offer: -offer.rank)

    def build(self, spec: Spec, place: Place) -> Any:
        """The function for this place of the model.

        Raises:
            LookupError: nobody offers it; cannot happen with the portable implementation registered.
        """
        offers = self.offers_for(spec, place.device.partition(":")[0])
        if all(offer.rank == 0 for offer in offers):
            types = {matrix.ggml_type for matrix in spec.matrices}
            self.slow.setdefault(_OPERATION_OF[type(spec)], set()).update(types)
        for offer in offers:
            function = offer.build(spec, place)
            if function is not None:
                self.chosen[offer.name] = self.chosen.get(offer.name, 0) + 1
                self.decode_apart |= offer.decodes_apart
                return function
        raise LookupError(f"nothing on {place.device} computes {type(spec).__name__}")


def default_registry() -> Registry:
    """Everything this package offers: the portable implementation, and what devices add to it."""
    from garzone.kernels import portable  # noqa: PLC0415 - they import this module
    from garzone.kernels.cpu import offers  # noqa: PLC0415
    from garzone.kernels.gpu import offers as gpu  # noqa: PLC0415

    return Registry((*portable.OFFERS, *offers.OFFERS, *gpu.offers()))
