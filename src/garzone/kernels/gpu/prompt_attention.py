"""Attention of a prompt's rows: a workgroup reads the cache once for all its rows and heads (flash attention).

Takes and leaves what ``attention.attend`` does; which of the two runs is ``heads``' business. Where there are 16x16x16
matrix products (RDNA3, ``gemm`` has the register layout) both products run on them, elsewhere on two-element dot
products; all else is shared.

A wave is 16 rows of one query head; a workgroup is the waves of neighbouring rows and of the query heads that share a
kv head. It walks over the positions that any of its rows sees, 32 at a time, of one slot after the other: keys and
values go through local memory, keys as they are, values turned so that two positions share a word. Scores are computed
as keys times queries, so that a lane holds scores of one row, 16 of the 32; the lane 16 away holds the others. The
results are values times weights, again with one row to a lane: a row's maximum and sum need one exchange, and no
factor ever goes to another lane.
"""

from __future__ import annotations

from dataclasses import dataclass

from tinygrad.dtype import AddrSpace, dtypes
from tinygrad.uop.ops import AxisType, UOp

from garzone.kernels.gpu.activations import Kernel, pack_halves
from garzone.kernels.gpu.attention import MASKED, MIN_WAVES, Heads, Place, place_of
from garzone.kernels.gpu.intrinsics import LANES, Group, Intrinsics, described, halves_of, special
from garzone.kernels.gpu.programs import remembered

ROWS = 16  # of a wave
_MOST_WAVES = 8  # of a workgroup
_STEP = LANES  # positions between two looks at the maximum
_TILES = _STEP // ROWS
_ELEMENTS = 8  # of a result tile in one lane
# Words between the rows of what is shared; four more than a row has, so that eight rows begin in different banks.
_PAD = 4
_TURNED = _STEP // 2 + _PAD
_WORDS = ROWS // 2  # of a lane's share of a matrix product's operand
_MOST_KEPT = 128  # elements of a query that stay in registers during the walk
_MOST_SPLITS = 16


@dataclass(frozen=True)
class Cut:
    """How the rows of a chunk are divided.

    Attributes:
        members: query heads of a workgroup; they share a kv head.
        tiles: tiles of 16 rows of a workgroup.
        splits: workgroups that share the positions.
    """

    members: int
    tiles: int
    splits: int

    @property
    def rows(self) -> int:
        """Rows of a workgroup, which share its reading of the cache."""
        return self.tiles * ROWS


def cut(heads: Heads, rows: int) -> Cut:
    """As many heads and rows together as a workgroup has waves, and enough splits for 1,000 waves."""
    tiles = -(-rows // ROWS)
    members = heads.together
    waves, steps = tiles * heads.queries, heads.positions // _STEP
    splits = max(1, min(-(-MIN_WAVES // waves), steps // 2, _MOST_SPLITS))
    return Cut(members, max(1, min(tiles, _MOST_WAVES // members)), splits)


def cache_bytes(heads: Heads, places: list[tuple[int, int]]) -> int:
    """Bytes of keys and values that one launch reads for rows at these places (slot, position).

    What ``attend`` reads for every row, this kernel reads once for the rows of a workgroup.
    """
    one = cut(heads, len(places))
    positions = 0
    for first in range(0, len(places), one.rows):
        reaches: dict[int, int] = {}
        for slot, position in places[first : first + one.rows]:
            reaches[max(slot, 0)] = max(reaches.get(max(slot, 0), 0), max(position, 0) + 1)
        positions += sum(-(-reach // _STEP) * _STEP for reach in reaches.values())
    return positions * (heads.queries // one.members) * heads.words * 4 * 2


@remembered
def attend_prompt(heads: Heads, rows: int, intrinsics: Intrinsics) -> Kernel:
    """A kernel for causal attention of many rows, each over its slot up to its own position.

    Arguments and results are those of ``attention.attend``, with the splits of ``cut``; every split is written.
    """
    one = cut(heads, rows)
    walk = _Walk(heads, rows, one, intrinsics)
    name = f"attend_prompt_{rows}_{heads.queries}_{heads.keys}_{heads.size}_s{one.splits}_w8"

    def kernel(parts: UOp, queries: UOp, keys: UOp, values: UOp, places: UOp) -> UOp:
        buffers = [b.flatten() for b in (queries, keys, values, places)]
        return UOp.group(*walk.stores(parts.flatten(), *buffers)).sink(arg=described(name), tag=1)

    return kernel


def _spread(index: UOp) -> UOp:
    """Which row of an operand a lane holds so that results come out as eight neighbours in each half of a wave."""
    return (index % 2) * _ELEMENTS + index // 2


class _Walk:
    """The kernel of one size."""

    def __init__(self, heads: Heads, rows: int, one: Cut, intrinsics: Intrinsics) -> None:
        self._heads, self._rows, self._cut, self._intrinsics = heads, rows, one, intrinsics
        self._waves = one.members * one.tiles
        self._stride = heads.words + _PAD

    def stores(self, parts: UOp, queries: UOp, keys: UOp, values: UOp, places: UOp) -> list[UOp]:
        """What the kernel stores, with everything that leads to it."""
        heads, one, size = self._heads, self._cut, self._heads.size
        self._lane = special(LANES, "lidx0")
        wave = special(self._waves, "lidx1") if self._waves > 1 else UOp.const(0, dtypes.int)
        first_head = special(heads.queries // one.members, "gidx0") * one.members
        split = special(one.splits, "gidx1")
        first_row = special(-(-self._rows // one.rows), "gidx2") * one.rows
        self._thread = wave * LANES + self._lane
        self._column, self._half = self._lane % ROWS, self._lane // ROWS
        self._group = Group(self._intrinsics, self._thread, self._waves * LANES)
        head = first_head + wave % one.members
        row = first_row + wave // one.members * ROWS + self._column
        is_row = row < self._rows
        safe_row = row.minimum(self._rows - 1)
        own = place_of(heads, places, safe_row)
        query = (safe_row * heads.queries + head) * heads.words
        kept = None
        if self._intrinsics.has_wmma and size <= _MOST_KEPT:
            kept = [queries[query + w].load() for w in range(heads.words)]

        # The weighted values, the largest score and the sum of weights of the lane's row.
        state = UOp.placeholder((size // 2 + 2,), dtypes.float, 0, addrspace=AddrSpace.REG)
        largest_at, sum_at = size // 2, size // 2 + 1
        state = state.after(
            UOp.group(*[state[i].store(0.0) for i in (*range(size // 2), sum_at)]),
            state[largest_at].store(UOp.const(MASKED, dtypes.float)),
        )
        trip, slot, step = self._trips(places, first_row, split)
        position = step * _STEP
        kv_head = first_head // (heads.queries // heads.keys)
        cache = heads.cached(Place(slot, position, is_row), kv_head, UOp.const(0, dtypes.int))
        shared_keys, shared_values = self._staged(keys, values, cache)
        before = state.after(trip)
        if kept is None:
            scores = self._scores(shared_keys, (queries, query), trip, places[first_row * 2 + 1].load())
        else:
            scores = self._products(shared_keys, kept)
        sees = [position + self._position(i) <= own.position for i in range(len(scores))]
        if heads.slots > 1:
            is_own = own.slot.eq(slot)
            sees = [one_sees & is_own for one_sees in sees]
        scores = [inside.where(score, MASKED) for inside, score in zip(sees, scores, strict=True)]
        highest = scores[0]
        for score in scores[1:]:
            highest = highest.maximum(score)
        largest = before[largest_at].load().maximum(highest.maximum(self._group.exchange(highest, ROWS)))
        shrink = (before[largest_at].load() - largest).exp2()
        weights = [inside.where((score - largest).exp2(), 0.0) for inside, score in zip(sees, scores, strict=True)]
        total = weights[0]
        for weight in weights[1:]:
            total = total + weight
        shrunk = [before[i].load() * shrink for i in range(size // 2)]
        results = self._weighted(shared_values, weights, shrunk)
        changes = [state[i].store(result) for i, result in enumerate(results)]
        changes += [state[largest_at].store(largest), state[sum_at].store(before[sum_at].load() * shrink + total)]
        state = state.after(UOp.group(*changes).end(trip))

        base = ((safe_row * heads.queries + head) * one.splits + split) * (size + 2)
        own_sum = state[sum_at].load()
        finished = [(size, state[largest_at].load()), (size + 1, own_sum + self._group.exchange(own_sum, ROWS))]
        stores = [parts[(base + at).valid(is_row)].store(value) for at, value in finished]
        for i in range(size // 2):
            element = i // _ELEMENTS * ROWS + self._half * _ELEMENTS + i % _ELEMENTS
            stores.append(parts[(base + element).valid(is_row)].store(state[i].load()))
        return stores

    def _position(self, index: int) -> UOp:
        """Of the lane's 16 scores in a step, which position number ``index`` is about."""
        return self._half * _ELEMENTS + (index // _ELEMENTS * ROWS + index % _ELEMENTS)

    def _trips(self, places: UOp, first_row: UOp, split: UOp) -> tuple[UOp, UOp, UOp]:
        """The loop over the split's share of what any row of the workgroup sees: its trip, the slot, the step there.

        One loop for all slots, one after the other: tinygrad 0.14.0 cannot order a loop whose end depends on another's
        trip.
        """
        heads, splits = self._heads, self._cut.splits
        reach = UOp.placeholder((heads.slots,), dtypes.int, 3, addrspace=AddrSpace.REG)
        reach = reach.after(UOp.group(*[reach[s].store(UOp.const(0, dtypes.int)) for s in range(heads.slots)]))
        row = UOp.range(self._cut.rows, 11, AxisType.REDUCE)
        place, before = place_of(heads, places, (first_row + row).minimum(self._rows - 1)), reach.after(row)
        stores: list[UOp] = []
        for s in range(heads.slots):
            seen = place.position + 1
            seen = place.slot.eq(s).where(seen, 0) if heads.slots > 1 else seen
            stores.append(reach[s].store(before[s].load().maximum(seen)))
        reach = reach.after(UOp.group(*stores).end(row))
        ends, offsets, end = [], [], UOp.const(0, dtypes.int)
        for s in range(heads.slots):
            steps = (reach[s].load().maximum(0).minimum(heads.positions) + (_STEP - 1)) // _STEP
            share = (steps + (splits - 1)) // splits
            begin = split * share
            offsets.append(begin - end)  # of the step behind the trip
            end = end + (steps - begin).minimum(share).maximum(0)
            ends.append(end)
        trip = UOp.range(end, 12, AxisType.REDUCE)
        slot, offset = UOp.const(heads.slots - 1, dtypes.int), offsets[-1]
        for s in reversed(range(heads.slots - 1)):
            slot = (trip < ends[s]).where(UOp.const(s, dtypes.int), slot)
            offset = (trip < ends[s]).where(offsets[s], offset)
        return trip, slot, (trip.cast(dtypes.int) + offset).maximum(0).minimum(heads.positions // _STEP - 1)

    def _staged(self, keys: UOp, values: UOp, cache: UOp) -> tuple[UOp, UOp]:
        """Keys and values of a step in local memory, loaded by all threads, four words at a time."""
        words, threads = self._heads.words, self._waves * LANES
        parts = words // 4
        shared_keys = UOp.placeholder((_STEP * self._stride,), dtypes.uint32, 1, addrspace=AddrSpace.LOCAL)
        shared_values = UOp.placeholder((self._heads.size * _TURNED,), dtypes.uint32, 2, addrspace=AddrSpace.LOCAL)
        stores: list[UOp] = []

        def units(count: int) -> list[UOp]:
            trips = [self._thread + i * threads for i in range(-(-count // threads))]
            if count % threads:  # threads that have none left do the last one again
                trips[-1] = trips[-1].minimum(count - 1)
            return trips

        for unit in units(_STEP * parts):
            position, part = unit // parts, unit % parts
            loaded = [keys[cache + position * words + part * 4 + j].load() for j in range(4)]
            at = position * self._stride + part * 4
            stores += [shared_keys[at + j].store(word) for j, word in enumerate(loaded)]
        for unit in units(_STEP // 2 * parts):
            pair, part = unit % (_STEP // 2), unit // (_STEP // 2)
            at = cache + pair * (2 * words) + part * 4
            first, second = ([values[at + i * words + j].load() for j in range(4)] for i in range(2))
            for j, (a, b) in enumerate(zip(first, second, strict=True)):
                turned = (a & 0xFFFF) | (b << 16), (a >> 16) | (b & 0xFFFF0000)
                for i, word in enumerate(turned):
                    stores.append(shared_values[(part * 8 + 2 * j + i) * _TURNED + pair].store(word))
        stored = UOp.group(*stores)
        return shared_keys.after(stored), shared_values.after(stored)

    def _scores(self, keys: UOp, query: tuple[UOp, UOp], trip: UOp, position: UOp) -> list[UOp]:
        """The lane's 16 scores; ``query`` is the buffer and where the lane's begins, too long for registers.

        ``position`` is any that was loaded, -1 or more: with it the loop's end is a number that the compiler does not
        know. It would take the loop apart and load the whole query at once.
        """
        (queries, at), step = query, 2 * _WORDS if self._intrinsics.has_wmma else 4
        scores = UOp.placeholder((_TILES * _ELEMENTS,), dtypes.float, 6, addrspace=AddrSpace.REG)
        scores = scores.after(scores.after(trip).store(scores.const_like(0.0)))
        chunk = UOp.range(self._heads.words // step + ((position + 1) >> 31), 14, AxisType.REDUCE)
        before, first = scores.after(chunk), chunk.cast(dtypes.int) * step
        totals = [before[i].load() for i in range(_TILES * _ELEMENTS)]
        words = [queries[at + first + w].load() for w in range(step)]
        totals = self._products(keys, words, first, totals)
        stores = [scores[i].store(total) for i, total in enumerate(totals)]
        scores = scores.after(UOp.group(*stores).end(chunk))
        return [scores[i].load() for i in range(_TILES * _ELEMENTS)]

    def _products(
        self, keys: UOp, query: list[UOp], first: UOp | int = 0, totals: list[UOp] | None = None
    ) -> list[UOp]:
        """Adds to the lane's scores what words of the query from ``first`` on and those of the keys make."""
        totals = totals or [UOp.const(0.0, dtypes.float)] * (_TILES * _ELEMENTS)
        found: list[UOp] = []
        if not self._intrinsics.has_wmma:
            for i, before in enumerate(totals):
                row, score = self._position(i) * self._stride + first, before
                for w, word in enumerate(query):
                    score = self._intrinsics.dot2(keys[row + w].load(), word, score)
                found.append(score)
            return found
        for tile in range(_TILES):
            total = totals[tile * _ELEMENTS : (tile + 1) * _ELEMENTS]
            row = (_spread(self._column) + tile * ROWS) * self._stride + first
            for w in range(0, len(query), _WORDS):
                key = [keys[row + w + j].load() for j in range(_WORDS)]
                total = _product(key, query[w : w + _WORDS], total)
            found += total
        return found

    def _weighted(self, values: UOp, weights: list[UOp], totals: list[UOp]) -> list[UOp]:
        """The lane's elements of the result: ``totals`` plus values times weights."""
        packed = [pack_halves(weights[i], weights[i + 1]) for i in range(0, len(weights), 2)]
        if not self._intrinsics.has_wmma:
            return self._plain_weighted(values, packed, totals)
        is_low, operands = self._half < 1, []
        for tile in range(_TILES):
            own = packed[tile * 4 : tile * 4 + 4]
            other = [self._group.exchange(w.bitcast(dtypes.float), ROWS).bitcast(dtypes.uint32) for w in own]
            low = [is_low.where(a, b) for a, b in zip(own, other, strict=True)]
            operands.append(low + [is_low.where(b, a) for a, b in zip(own, other, strict=True)])
        results: list[UOp] = []
        for first in range(0, self._heads.size, ROWS):
            row = (_spread(self._column) + first) * _TURNED
            at = first // 2
            total = totals[at : at + _ELEMENTS]
            for tile, operand in enumerate(operands):
                value = [values[row + tile * _WORDS + j].load() for j in range(_WORDS)]
                total = _product(value, operand, total)
            results += total
        return results

    def _plain_weighted(self, values: UOp, packed: list[UOp], totals: list[UOp]) -> list[UOp]:
        """Every lane stores its words of weights and reads those of its row four at a time."""
        width = _STEP // 2
        row = (self._thread // LANES * ROWS + self._column) * width
        shared = UOp.placeholder((self._waves * ROWS * width,), dtypes.uint32, 4, addrspace=AddrSpace.LOCAL)
        places = [row + i // 4 * 8 + self._half * 4 + i % 4 for i in range(len(packed))]
        shared = shared.after(UOp.group(*[shared[at].store(w) for at, w in zip(places, packed, strict=True)]))
        sums = UOp.placeholder((len(totals),), dtypes.float, 5, addrspace=AddrSpace.REG)
        sums = sums.after(UOp.group(*[sums[i].store(total) for i, total in enumerate(totals)]), shared)
        step = UOp.range(width // 4, 13, AxisType.REDUCE)
        before, first = sums.after(step), step.cast(dtypes.int) * 4
        weights = [shared[row + first + j].load() for j in range(4)]
        stores: list[UOp] = []
        for i in range(len(totals)):
            element = i // _ELEMENTS * ROWS + self._half * _ELEMENTS + i % _ELEMENTS
            total = before[i].load()
            for j, weight in enumerate(weights):
                total = self._intrinsics.dot2(values[element * _TURNED + first + j].load(), weight, total)
            stores.append(sums[i].store(total))
        sums = sums.after(UOp.group(*stores).end(step))
        return [sums[i].load() for i in range(len(totals))]


def _product(first: list[UOp], second: list[UOp], total: list[UOp]) -> list[UOp]:
    """One 16x16x16 product added to a tile."""
    left, right = (UOp.stack(*halves_of(words)) for words in (first, second))
    product = UOp.wmma(left, right, UOp.stack(*total), (ROWS, ROWS, ROWS), "AMD", LANES)
    return [product.index(UOp.const(i)) for i in range(_ELEMENTS)]
