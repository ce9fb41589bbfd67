"""The form in which decode kernels read activations, and the kernels that write it.

Format, one row of K elements (K a multiple of 32) as uint32 words: K/4 words of int8 in natural order, then two words
for every group of 32: the scale as float32, and the sums of the group's two halves as int16 (low half first). An
element is its int8 times its group's scale; neighbouring groups may have been given the same one (``span``). The half
sums are what minima (Q4_K, Q5_1...) and offsets (Q6_K's -32, Q4_0's -8) need.

One scale for 32 elements serves every quant type, so that a tensor is quantised once whatever types read it; it is also
more accurate than llama.cpp's one scale for 256. It does not hold the dot products (``quants``) nor the loops
(``matvec``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from tinygrad.dtype import AddrSpace, dtypes
from tinygrad.uop.ops import AxisType, UOp

from garzone.kernels.gpu.intrinsics import LANES, Group, Intrinsics, described
from garzone.kernels.gpu.programs import remembered

GROUP = 32
_MOST_THREADS = 256
PER_THREAD = 4  # consecutive elements of a thread: one word of int8
Kernel = Callable[..., UOp]


def num_words(num_elements: int) -> int:
    """Words of one quantised row."""
    return num_elements // 4 + num_elements // GROUP * 2


@dataclass(frozen=True)
class Row:
    """One quantised row inside a buffer of them, as a kernel reads it."""

    buffer: UOp
    first_word: UOp | int
    num_elements: int

    def words(self, first: UOp, count: int) -> list[UOp]:
        """``count`` words of four int8 from number ``first`` on.

        Not from an element: its division would hide from renderers that the address is a multiple of 16.
        """
        start = first + self.first_word
        return [self.buffer[start + i].load() for i in range(count)]

    def groups(self, group: UOp, count: int) -> list[tuple[UOp, UOp]]:
        """Scale and packed half sums of ``count`` groups."""
        start = group * 2 + self.first_word + self.num_elements // 4
        words = [self.buffer[start + i].load() for i in range(2 * count)]
        return [(words[2 * i].bitcast(dtypes.float), words[2 * i + 1]) for i in range(count)]

    def floats(self, element: UOp, count: int) -> list[UOp]:
        """``count`` elements of a row that is float32, not quantised."""
        start = element + self.first_word
        return [self.buffer[start + i].load().bitcast(dtypes.float) for i in range(count)]


def half_sums(packed: UOp) -> tuple[UOp, UOp]:
    """The two int16 sums of a group as int32."""
    packed = packed.cast(dtypes.int)
    return (packed << 16) >> 16, packed >> 16


def group_sum(packed: UOp) -> UOp:
    """The sum over a whole group as int32."""
    low, high = half_sums(packed)
    return low + high


def silu(x: UOp) -> UOp:
    """X / (1 + exp(-x))."""
    return x / (1.0 + (x * -1.4426950408889634).exp2())


def threads_for(num_elements: int) -> int:
    """Threads of a workgroup that prepares a row: whole waves, and no more than have something to do."""
    threads = LANES
    while threads < _MOST_THREADS and threads * PER_THREAD < num_elements:
        threads *= 2
    return threads


def own_element(index: UOp, thread: UOp, num_elements: int, threads: int, span: int) -> UOp:
    """The first of the four elements of thread number ``index`` of a row.

    Threads beyond the row repeat its last span: they must take part in the exchanges, and store what is there anyway.
    """
    element = index * PER_THREAD
    if num_elements % (threads * PER_THREAD) == 0:
        return element
    return (element < num_elements).where(element, num_elements - span + (thread % (span // PER_THREAD)) * PER_THREAD)


def _total_of_squares(x: UOp, first: UOp, num_elements: int, group: Group) -> UOp:
    """Sum of squares of one row, by all threads of the workgroup."""
    step = UOp.range(-(-num_elements // group.num_threads), 0, AxisType.REDUCE)
    index = step * group.num_threads + group.thread
    inside = index < num_elements
    value = x[first + inside.where(index, 0)].load()
    partial = UOp.placeholder((1,), dtypes.float, 0, addrspace=AddrSpace.REG)
    partial = partial.after(partial.store(partial.const_like(0.0)))
    total = partial.after(step)[0].load() + inside.where(value * value, 0.0)
    partial = partial.after(partial[0].store(total).end(step))
    return group.sum_all(partial[0].load())


@remembered
def quantise(
    num_rows: int,
    num_elements: int,
    intrinsics: Intrinsics,
    *,
    source: str = "plain",
    epsilon: float = 0.0,
    output: str = "int8",
    first_row: UOp | int = 0,
    chosen: bool = False,
    span: int = GROUP,
) -> Kernel:
    """A kernel that prepares activations for a matrix product.

    Args:
        num_rows: tokens.
        num_elements: elements a token; a multiple of 32.
        intrinsics: of the renderer.
        source: ``plain``: (out, x); ``norm``: (out, x, weight), RMSNorm with ``epsilon``; ``swiglu``: (out, x), where a
            row of x is the gate's elements and then the up projection's, and silu(gate) * up is taken.
        epsilon: of RMSNorm.
        output: ``int8``: uint32 words in this module's format; ``half``: packed f16 for prefill, two in a word, of each
        four elements first 0 and 2, then 1 and 3 (the order in
            which weights come out of bytes, see ``gemm``);
            ``float``: float32, for weights that are floats themselves.
        first_row: the row of x that becomes row 0.
        chosen: the kernel's last argument is int32 [num_rows], which row of x becomes which.
        span: elements that share a scale in int8; a multiple of the format's groups, which then repeat it.
    """
    threads = threads_for(num_elements)
    slices = -(-num_elements // (threads * PER_THREAD))

    def kernel(out: UOp, x: UOp, *rest: UOp) -> UOp:
        part, row, thread = UOp.special(slices, "gidx0"), UOp.special(num_rows, "gidx1"), UOp.special(threads, "lidx0")
        group = Group(intrinsics, thread, threads)
        out, x = out.flatten(), x.flatten()
        element = own_element(part * threads + thread, thread, num_elements, threads, span)
        row_width = num_elements * 2 if source == "swiglu" else num_elements
        # A row that nobody asked for is named -1.
        taken = rest[-1].flatten()[row].load().maximum(0) if chosen else row + first_row
        first = taken * row_width
        values = [x[first + element + i].load() for i in range(PER_THREAD)]
        if source == "norm":
            total = _total_of_squares(x, first, num_elements, group)
            scale = (total * (1.0 / num_elements) + epsilon).rsqrt()
            weight = rest[0].flatten()
            values = [v * scale * weight[element + i].load() for i, v in enumerate(values)]
        elif source == "swiglu":
            values = [silu(v) * x[first + num_elements + element + i].load() for i, v in enumerate(values)]
        stores = store_as(output, Tile(out, row, element, values, num_elements, span), group)
        name = f"prepare_{source}_{output}{span}_{num_rows}_{num_elements}{'_chosen' if chosen else ''}"
        return UOp.group(*stores).sink(arg=described(name), tag=1)

    return kernel


class Tile(NamedTuple):
    """What one thread stores: four finished values from ``element`` of ``row`` on; rows are ``num_elements`` long.

    ``span`` neighbouring elements have one scale where they are stored as int8.
    """

    out: UOp
    row: UOp
    element: UOp
    values: list[UOp]
    num_elements: int
    span: int = GROUP


def store_as(output: str, tile: Tile, group: Group) -> list[UOp]:
    """Stores a tile in one of the three forms; see ``quantise``."""
    return _STORES[output](tile, group)


def _store_floats(tile: Tile, group: Group) -> list[UOp]:
    start = tile.row * tile.num_elements + tile.element
    return [tile.out[start + i].store(value) for i, value in enumerate(tile.values)]


def pack_halves(low: UOp, high: UOp) -> UOp:
    """Two floats rounded to f16 in one uint32."""
    bits = [v.cast(dtypes.half).bitcast(dtypes.uint16).cast(dtypes.uint32) for v in (low, high)]
    return bits[0] | (bits[1] << 16)


def _store_halves(tile: Tile, group: Group) -> list[UOp]:
    start = tile.row * (tile.num_elements // 2) + tile.element // 2
    words = [pack_halves(tile.values[i], tile.values[i + 2]) for i in range(2)]
    return [tile.out[start + i].store(word) for i, word in enumerate(words)]


def _store_int8(tile: Tile, group: Group) -> list[UOp]:
    out, row, element, values, num_elements, span = tile
    threads = GROUP // PER_THREAD
    largest = values[0].abs()
    for v in values[1:]:
        largest = largest.maximum(v.abs())
    largest = group.max(largest, span // PER_THREAD)
    inverse = (largest > 0).where(127.0 / largest, 0.0)
    rounded: list[UOp] = []
    for v in values:
        scaled = v * inverse
        rounded.append((scaled + (scaled < 0).where(-0.5, 0.5)).cast(dtypes.int))  # half away from zero, as ggml rounds
    word = None
    for i, q in enumerate(rounded):
        byte = (q & 255).cast(dtypes.uint32) << (8 * i)
        word = byte if word is None else word | byte
    assert word is not None
    total = rounded[0] + rounded[1] + rounded[2] + rounded[3]
    own = group.sum(total.cast(dtypes.float), threads // 2)
    other = group.exchange(own, threads // 2)
    in_low = (group.thread & (threads // 2)) < 1
    low, high = in_low.where(own, other).cast(dtypes.int), in_low.where(other, own).cast(dtypes.int)
    sums = ((low & 0xFFFF) | (high << 16)).cast(dtypes.uint32)
    start = row * num_words(num_elements)
    aux = start + num_elements // 4 + element // GROUP * 2
    # All eight threads of a group write the same scale and sums: cheaper than a branch.
    return [
        out[start + element // 4].store(word),
        out[aux].store((largest * (1.0 / 127.0)).bitcast(dtypes.uint32)),
        out[aux + 1].store(sums),
    ]


_STORES = {"int8": _store_int8, "half": _store_halves, "float": _store_floats}
