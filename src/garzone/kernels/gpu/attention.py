"""Attention kernels: rotation and cache write, scores and weighted sum split over waves, putting the parts together.

The cache is float16, two elements in a uint32: keys and values both (slots, kv heads, positions, head_dim / 2). It does
not allocate (``heads`` does) and does not decide what runs: ``places`` says for every row which slot and which position
is its own.

A wave takes the query heads that share a kv head and walks over positions 32 at a time, or 16 where that leaves too few
waves. For the scores a lane is a position: it reads that position's key once for all heads, and the query comes through
scalar registers. For the weighted sum a lane is head_dim / 32 elements: it reads its share of the values one after the
other, and the weights come through local memory. The waves of a workgroup take neighbouring positions and put their
parts together in local memory, so that only one part of each workgroup goes through global memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import NamedTuple

from tinygrad.dtype import AddrSpace, dtypes
from tinygrad.uop.ops import AxisType, UOp

from garzone.kernels.gpu.activations import (
    GROUP,
    PER_THREAD,
    Kernel,
    Tile,
    own_element,
    pack_halves,
    store_as,
    threads_for,
)
from garzone.kernels.gpu.intrinsics import LANES, Group, Intrinsics, described, half_to_float, special
from garzone.kernels.gpu.programs import remembered

MASKED = -1e30  # exp2 of it is 0, and unlike -inf it survives a subtraction of itself
_LOG2_E = 1.4426950408889634
_MOST_HEADS = 8  # query heads of a wave; more would not leave registers for the key
MIN_WAVES = 1000
# Positions at which there shall be that many waves with something to do. From there on each only does more.
_REACH = 4096
_MOST_SPLITS = 256
_MOST_WAVES = 8  # of a workgroup
_SHARED_BYTES = 32 << 10  # of local memory for a workgroup: a compute unit, which has 64 KB, takes two of them
_STEPS_BETWEEN = 4  # positions whose weights are read from local memory at once


@dataclass(frozen=True)
class Share:
    """How the positions that one row sees are shared.

    A part costs (size + 2) * 4 bytes a head, written and read. With 128 positions a workgroup that is a ninth of what a
    7B model's workgroup reads of the cache; were each wave to write its own, it would be nine tenths.

    Attributes:
        step: positions that a wave looks at together, one a lane; with 16 of them each is in two lanes.
        waves: of a workgroup; they take neighbouring steps.
        splits: workgroups, each of which takes every ``splits``th piece of ``piece`` positions.
    """

    step: int
    waves: int
    splits: int

    @property
    def piece(self) -> int:
        """Positions of a workgroup's one trip."""
        return self.step * self.waves


@dataclass(frozen=True)
class Heads:
    """The sizes of one model's attention.

    Attributes:
        queries: query heads.
        keys: key and value heads; divides ``queries``.
        size: elements of a head; a multiple of 32 up to 256.
        positions: room of a slot in the cache, a multiple of 32.
        rotated: how many leading elements of a head are rotated.
        adjacent: whether elements (0, 1), (2, 3)... are rotated together, rather than (0, half), (1, half + 1)...
        slots: sequences that the cache holds.
    """

    queries: int
    keys: int
    size: int
    positions: int
    rotated: int
    adjacent: bool
    slots: int = 1

    @property
    def words(self) -> int:
        """Words of one head."""
        return self.size // 2

    @property
    def cache_words(self) -> int:
        """Words of the keys, or of the values, of one layer."""
        return self.slots * self.keys * self.positions * self.words

    @property
    def together(self) -> int:
        """Query heads that one wave serves."""
        group = self.queries // self.keys
        return max(n for n in range(1, _MOST_HEADS + 1) if group % n == 0)

    def share(self, rows: int) -> Share:
        """Enough waves to fill the card when the context is long."""
        tiles, reach = rows * self.queries // self.together, min(self.positions, _REACH)
        step = LANES if tiles * reach // LANES >= MIN_WAVES else LANES // 2
        most = min(_MOST_WAVES, _SHARED_BYTES // (self.together * (self.part + step) * 4), reach // step)
        waves = max(n for n in (1, 2, 4, 8) if n <= most)
        pieces = -(-reach // (step * waves))
        pieces_each = max(1, pieces * waves * tiles // MIN_WAVES)
        return Share(step, waves, min(-(-pieces // pieces_each), _MOST_SPLITS))

    @property
    def part(self) -> int:
        """Floats of one head's part: the unnormalised sum of values, the largest score, the sum of weights."""
        return self.size + 2

    @property
    def query_scale(self) -> float:
        """What queries are multiplied by before they are cached as f16: scores are then exponents of two."""
        return self.size**-0.5 * _LOG2_E

    def cached(self, place: Place, head: UOp, word: UOp) -> UOp:
        """Where in the cache a word of a kv head lies."""
        return ((place.slot * self.keys + head) * self.positions + place.position) * self.words + word


class Place(NamedTuple):
    """Where a row belongs: its slot, its position (0 where there is none), and whether it is a row at all."""

    slot: UOp
    position: UOp
    is_real: UOp


def place_of(heads: Heads, places: UOp, row: UOp) -> Place:
    """The place of a row.

    ``places`` is int32 [rows, 2]: slot and position, -1 for a row that only pads the batch.
    """
    position = places[row * 2 + 1].load()
    slot = places[row * 2].load().maximum(0).minimum(heads.slots - 1) if heads.slots > 1 else UOp.const(0, dtypes.int)
    return Place(slot, position.maximum(0).minimum(heads.positions - 1), position > -1)


@remembered
def rotate_and_store(
    heads: Heads, rows: int, intrinsics: Intrinsics | None = None, epsilon: float | None = None
) -> Kernel:
    """A kernel that rotates queries and keys and writes keys and values into the cache.

    With ``epsilon``, and then with ``intrinsics``, heads of queries and keys, of a multiple of 64 elements, are
    normalised before (RMSNorm): the arguments end with the weights of both, float32 [size].

    Arguments: (queries, keys, values, qkv, places, rope). queries: uint32 [rows, heads.queries, words], f16, already
    multiplied by ``query_scale``; keys, values: the cache; qkv: float32 [rows, (queries + 2 keys) * size]; places: see
    ``place_of``; rope: float32 [positions, rotated / 2, 2], cosine and sine. Padding is not written to the cache.
    """
    all_heads = heads.queries + 2 * heads.keys

    def kernel(*buffers: UOp) -> UOp:
        queries, keys, values, qkv, places, rope, *norms = buffers
        head, row = UOp.special(all_heads, "gidx0"), UOp.special(rows, "gidx1")
        word = UOp.special(heads.words, "lidx0")
        qkv, rope = qkv.flatten(), rope.flatten()
        base = (row * all_heads + head) * heads.size
        place = place_of(heads, places.flatten(), row)
        position, real = place.position, place.is_real
        is_query, is_key = head < heads.queries, head < heads.queries + heads.keys
        plain = [qkv[base + word * 2 + i].load() for i in range(2)]
        element: Callable[[UOp], UOp] = lambda index: qkv[base + index].load()  # noqa: E731
        if epsilon is not None and intrinsics is not None:
            group = Group(intrinsics, word, heads.words)
            squares = group.sum_all(plain[0] * plain[0] + plain[1] * plain[1])
            factor = (squares * (1.0 / heads.size) + epsilon).rsqrt()
            of_query, of_key = (norm.flatten() for norm in norms)
            weight: Callable[[UOp], UOp] = lambda i: is_query.where(of_query[i].load(), of_key[i].load())  # noqa: E731
            element = lambda index: qkv[base + index].load() * factor * weight(index)  # noqa: E731
        turned = [_rotated(heads, element, word * 2 + i, (rope, position * heads.rotated)) for i in range(2)]
        scale = is_query.where(heads.query_scale, 1.0)
        packed = pack_halves(*[is_key.where(t * scale, p) for t, p in zip(turned, plain, strict=True)])
        key_head = is_key.where(head - heads.queries, 0).maximum(0)
        value_head = (head - heads.queries - heads.keys).maximum(0)
        query_place = (row * heads.queries + is_query.where(head, 0)) * heads.words + word
        stores = (
            queries.flatten()[query_place.valid(is_query)].store(packed),
            keys.flatten()[heads.cached(place, key_head, word).valid(is_key & ~is_query & real)].store(packed),
            values.flatten()[heads.cached(place, value_head, word).valid(~is_key & real)].store(packed),
        )
        name = f"rotate_{rows}_{all_heads}_{heads.size}{'_normed' if norms else ''}"
        return UOp.group(*stores).sink(arg=described(name), tag=1)

    return kernel


def _rotated(heads: Heads, x: Callable[[UOp], UOp], element: UOp, rope: tuple[UOp, UOp]) -> UOp:
    """One element of a head after rotation; ``x`` gives those before, ``rope`` is table and place of the position."""
    factors, table = rope
    half = heads.rotated // 2
    inside = element < heads.rotated
    if heads.adjacent:
        pair = element // 2
        is_first = element % 2 < 1
        first, second = pair * 2, pair * 2 + 1
    else:
        is_first = element < half
        pair = is_first.where(element, element - half)
        first, second = pair, pair + half
    pair, first, second = (inside.where(i, 0) for i in (pair, first, second))
    a, b = x(first), x(second)
    cosine, sine = factors[table + pair * 2].load(), factors[table + pair * 2 + 1].load()
    turned = is_first.where(a * cosine - b * sine, a * sine + b * cosine)
    return inside.where(turned, x(element))


def part_floats(heads: Heads, rows: int, splits: int = 0) -> int:
    """Length of what ``attend`` writes: a part for every row, query head and split."""
    return rows * heads.queries * (splits or heads.share(rows).splits) * heads.part


@remembered
def attend(heads: Heads, rows: int, intrinsics: Intrinsics, *, share: Share | None = None) -> Kernel:
    """A kernel for causal attention of ``rows`` queries over the cache, each over its slot up to its own position.

    Arguments: (parts, queries, keys, values, places). parts: float32, see ``part_floats``: for every row, query head
    and split first the unnormalised sum of values, then the largest score, then the sum of weights. The rest as
    ``rotate_and_store`` left it.
    """
    together, words, each = heads.together, heads.words, heads.size // LANES
    tiles, share = heads.queries // together, share or heads.share(rows)
    step, waves, splits = share.step, share.waves, share.splits

    def kernel(parts: UOp, queries: UOp, keys: UOp, values: UOp, places: UOp) -> UOp:
        tile, split = special(tiles, "gidx0"), special(splits, "gidx1")
        row, lane = special(rows, "gidx2"), special(LANES, "lidx0")
        zero = UOp.const(0, dtypes.int)
        wave = special(waves, "lidx1") if waves > 1 else zero
        parts, queries, keys, values = (b.flatten() for b in (parts, queries, keys, values))
        group = Group(intrinsics, wave * LANES + lane, LANES * waves)
        first_head = tile * together
        place = place_of(heads, places.flatten(), row)
        cache = heads.cached(place._replace(position=zero), first_head // (heads.queries // heads.keys), zero)
        length = place.position + 1
        nothing = (places.flatten()[row * 2 + 1].load() + 1) >> 31  # 0 for every position and for padding, which is -1
        pieces = (length + (share.piece - 1)) // share.piece
        # The same for all waves of a workgroup, whose trips share barriers; one, all masked, where there is nothing.
        own_pieces = ((pieces + (splits - 1) - split) // splits).maximum(1)
        state = UOp.placeholder((together * (each + 2),), dtypes.float, 0, addrspace=AddrSpace.REG)
        state = state.after(
            UOp.group(*[state[h].store(UOp.const(MASKED, dtypes.float)) for h in range(together)]),
            UOp.group(*[state[i].store(0.0) for i in range(together, together * (each + 2))]),
        )
        place_in_step = lane % step if step < LANES else lane  # half a wave's lanes do what the other half does
        trip = UOp.range(own_pieces, 0, AxisType.REDUCE)
        before = state.after(trip)
        begin = (trip.cast(dtypes.int) * splits + split) * share.piece + wave * step
        position = begin + place_in_step
        inside = position < length
        at = cache + inside.where(position, 0) * words
        scores = _scores(heads, intrinsics, (keys, at), (queries, (row * heads.queries + first_head) * words))
        weights: list[UOp] = []
        shrinks: list[UOp] = []
        stores: list[UOp] = []
        for h, raw in enumerate(scores):
            score = inside.where(raw, MASKED)
            largest = before[h].load().maximum(group.max(score))
            shrink = (before[h].load() - largest).exp2()
            weight = inside.where((score - largest).exp2(), 0.0)
            stores += [
                state[h].store(largest),
                state[together + h].store(before[together + h].load() * shrink + weight),
            ]
            weights.append(weight)
            shrinks.append(shrink)
        own = wave * together * step
        shared = UOp.placeholder((waves * together * step,), dtypes.float, 1, addrspace=AddrSpace.LOCAL)
        shared = shared.after(
            UOp.group(*[shared[own + h * step + place_in_step].store(w) for h, w in enumerate(weights)])
        )
        sums = [before[together * 2 + i].load() * shrinks[i // each] for i in range(together * each)]
        sums = _add_values(heads, sums, (shared, own), (values, cache, lane), (begin, length, step, nothing))
        stores += [state[together * 2 + i].store(total) for i, total in enumerate(sums)]
        state = state.after(UOp.group(*stores).end(trip))
        found = [
            _Part(
                state[h].load(),
                group.sum(state[together + h].load()) * (step / LANES),  # each weight was added by LANES / step lanes
                [state[together * 2 + h * each + i].load() for i in range(each)],
            )
            for h in range(together)
        ]
        target = (parts, ((row * heads.queries + first_head) * splits + split) * heads.part, splits * heads.part)
        results = _put_together(heads, waves, found, target, (wave, lane))
        name = f"attend_{rows}_{heads.queries}_{heads.keys}_{heads.size}_s{splits}_{step}x{waves}_w12"
        return UOp.group(*results).sink(arg=described(name), tag=1)

    return kernel


class _Part(NamedTuple):
    """What a wave found for one head: the largest score, the sum of weights, the lane's elements of the values' sum."""

    largest: UOp
    total: UOp
    sums: list[UOp]


def _put_together(
    heads: Heads, waves: int, found: list[_Part], target: tuple[UOp, UOp, int], thread: tuple[UOp, UOp]
) -> list[UOp]:
    """Stores one part for each head, merged from those of the workgroup's waves, through local memory.

    ``target`` is the buffer, where the first head's part begins, and how far apart heads are; ``thread`` wave and lane.
    """
    (parts, first, stride), (wave, lane), each = target, thread, heads.size // LANES
    if waves == 1:
        results: list[UOp] = []
        for h, part in enumerate(found):
            results += _part_stores((parts, first + h * stride), heads, part, lane)
        return results
    shared = UOp.placeholder((waves * len(found) * heads.part,), dtypes.float, 4, addrspace=AddrSpace.LOCAL)
    stores: list[UOp] = []
    for h, part in enumerate(found):
        stores += _part_stores((shared, (wave * len(found) + h) * heads.part), heads, part, lane)
    shared = shared.after(UOp.group(*stores))
    results = []
    for h in range(0, len(found), waves):  # a head for each wave
        head = (h + wave).minimum(len(found) - 1)  # a wave without one does what the last one does
        bases = [(head + w * len(found)) * heads.part for w in range(waves)]
        maxima = [shared[base + heads.size].load() for base in bases]
        largest = reduce(lambda a, b: a.maximum(b), maxima)
        factors = [(maximum - largest).exp2() for maximum in maxima]
        total, *sums = [
            reduce(lambda a, b: a + b, [f * shared[base + at].load() for f, base in zip(factors, bases, strict=True)])
            for at in (heads.size + 1, *(lane * each + i for i in range(each)))
        ]
        results += _part_stores((parts, first + head * stride), heads, _Part(largest, total, sums), lane)
    return results


def _part_stores(target: tuple[UOp, UOp], heads: Heads, part: _Part, lane: UOp) -> list[UOp]:
    buffer, base = target
    at = [base + lane * (heads.size // LANES) + i for i in range(len(part.sums))]
    places = [*at, base + heads.size, base + heads.size + 1]
    values = [*part.sums, part.largest, part.total]
    return [buffer[place].store(value) for place, value in zip(places, values, strict=True)]


def _scores(heads: Heads, intrinsics: Intrinsics, key: tuple[UOp, UOp], query: tuple[UOp, UOp]) -> list[UOp]:
    """The products of the lane's key with every query head; buffers and where key and queries begin."""
    (keys, at), (queries, first), words, together = key, query, heads.words, heads.together
    # The queries' words are the same in every lane and live in scalar registers, of which there are about a hundred.
    step = 16 if together <= 3 else 8
    scores = UOp.placeholder((together,), dtypes.float, 3, addrspace=AddrSpace.REG)
    scores = scores.after(scores.after(at).store(scores.const_like(0.0)))
    chunk = UOp.range(words // step, 2, AxisType.REDUCE)
    before, chunk_start = scores.after(chunk), chunk.cast(dtypes.int) * step
    totals = [before[h].load() for h in range(together)]
    for w in range(step):
        k = keys[at + chunk_start + w].load()
        totals = [
            intrinsics.dot2(k, queries[first + h * words + chunk_start + w].load(), t) for h, t in enumerate(totals)
        ]
    scores = scores.after(UOp.group(*[scores[h].store(t) for h, t in enumerate(totals)]).end(chunk))
    return [scores[h].load() for h in range(together)]


def _add_values(
    heads: Heads,
    totals: list[UOp],
    weight: tuple[UOp, UOp],
    value: tuple[UOp, UOp, UOp],
    reach: tuple[UOp, UOp, int, UOp],
) -> list[UOp]:
    """The lane's elements of ``totals`` and of the sum of a step's values, weighted for every query head.

    ``weight`` is local memory and where the wave's own begins, ``value`` the buffer, where the kv head begins and the
    lane, ``reach`` the first position, how many there are, how many a step has, and a zero that compilers do not know
    as one: they would take the loop apart and need half as many registers again.
    """
    (shared, own), (values, cache, lane), (begin, length, step, nothing) = weight, value, reach
    words, each, together = heads.words, heads.size // LANES, heads.together
    sums = UOp.placeholder((together * each,), dtypes.float, 2, addrspace=AddrSpace.REG)
    sums = sums.after(UOp.group(*[sums.after(shared)[i].store(total) for i, total in enumerate(totals)]))
    chunk = UOp.range(step // _STEPS_BETWEEN + nothing, 1, AxisType.REDUCE)
    before, first = sums.after(chunk), chunk.cast(dtypes.int) * _STEPS_BETWEEN
    totals = [before[i].load() for i in range(together * each)]
    for p in range(_STEPS_BETWEEN):
        position = begin + first + p
        at = cache + (position < length).where(position, 0) * words
        elements = _elements(values, at, lane, each)
        for h in range(together):
            factor = shared[own + h * step + first + p].load()
            for i in range(each):
                totals[h * each + i] = totals[h * each + i] + factor * elements[i]
    stores = [sums[i].store(total) for i, total in enumerate(totals)]
    sums = sums.after(UOp.group(*stores).end(chunk))
    return [sums[i].load() for i in range(together * each)]


def _elements(values: UOp, at: UOp, lane: UOp, share: int) -> list[UOp]:
    """``share`` neighbouring elements of a row of values, as float32."""
    if share == 1:  # two lanes share a word
        word = values[at + lane // 2].load()
        return [(lane % 2 < 1).where(half_to_float(word, 0), half_to_float(word, 1))]
    found = [values[at + lane * (share // 2) + i].load() for i in range(share // 2)]
    return [half_to_float(word, i) for word in found for i in range(2)]


def gathers_all(heads: Heads, rows: int, splits: int = 0) -> bool:
    """Whether ``gather_parts`` of these reads every part, whatever the rows' positions, and is not given places.

    A kernel must use all its arguments (``launch``).
    """
    return splits > 0 or heads.share(rows).splits == 1


@remembered
def gather_parts(
    heads: Heads, rows: int, intrinsics: Intrinsics, *, splits: int = 0, output: str = "float", span: int = GROUP
) -> Kernel:
    """A kernel that puts the splits' parts together: (out, parts, places), without places where ``gathers_all``.

    ``output`` and ``span`` are those of ``activations.quantise``: the result is stored in the form that the next
    product reads, without a launch of its own. ``splits``: how many there are, all of them written; by default those of
    ``attend``, which writes no more than a row's position asks for.
    """
    all_written, stride, count = splits > 0, heads.part, heads.queries * heads.size
    share = heads.share(rows)
    splits = splits or share.splits
    threads = threads_for(count)

    def kernel(out: UOp, parts: UOp, *places: UOp) -> UOp:
        slice_, row = UOp.special(-(-count // (threads * PER_THREAD)), "gidx0"), UOp.special(rows, "gidx1")
        thread = UOp.special(threads, "lidx0")
        out, parts = out.flatten(), parts.flatten()
        element = own_element(slice_ * threads + thread, thread, count, threads, span)
        at = (row * heads.queries + element // heads.size) * splits * stride
        inside = element % heads.size
        used = UOp.const(splits, dtypes.int)
        if places:  # the splits behind these had nothing to do
            used = (place_of(heads, places[0].flatten(), row).position + share.piece) // share.piece
        state = UOp.placeholder((2 + PER_THREAD,), dtypes.float, 0, addrspace=AddrSpace.REG)
        state = state.after(
            state[0].store(UOp.const(MASKED, dtypes.float)), *[state[i].store(0.0) for i in range(1, 2 + PER_THREAD)]
        )
        split = UOp.range(used.minimum(splits), 0, AxisType.REDUCE)
        before = state.after(split)
        base = at + split * stride
        largest = before[0].load().maximum(parts[base + heads.size].load())
        old, new = (before[0].load() - largest).exp2(), (parts[base + heads.size].load() - largest).exp2()
        found = [parts[base + heads.size + 1].load(), *[parts[base + inside + i].load() for i in range(PER_THREAD)]]
        stores = [state[i + 1].store(before[i + 1].load() * old + value * new) for i, value in enumerate(found)]
        state = state.after(UOp.group(state[0].store(largest), *stores).end(split))
        values = [state[i + 2].load() / state[1].load() for i in range(PER_THREAD)]
        group = Group(intrinsics, thread, threads)
        results = store_as(output, Tile(out, row, element, values, count, span), group)
        name = f"gather_{output}{span}_{rows}_{heads.queries}_{heads.size}_s{splits}{'_all' * all_written}"
        return UOp.group(*results).sink(arg=described(name), tag=1)

    return kernel
