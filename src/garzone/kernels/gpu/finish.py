"""What a decode product does with its sums: which rows a wave takes, and in which form their results are stored.

Each saves launches that would read the results again: a gate lets its partner through, a feed-forward's activations are
quantised for the next product, queries and keys are rotated and written into the cache. It does not multiply
(``matvec`` does).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from tinygrad.uop.ops import UOp

from garzone.kernels.gpu.activations import PER_THREAD, Tile, pack_halves, silu, store_as
from garzone.kernels.gpu.attention import Heads, place_of
from garzone.kernels.gpu.intrinsics import Group


def clamped(row: UOp, count: int) -> UOp:
    """The row itself, or the last one beyond it, which is then computed and stored twice, the same both times."""
    return (row < count).where(row, count - 1) if row.vmax >= count else row


class Sums(NamedTuple):
    """The finished sums of one token in one wave.

    Attributes:
        tile: number of the wave's tile of rows.
        token: row of the activations.
        is_token: False where the token is a repeated last one, None where that cannot be.
        totals: one for each row that ``Finish.rows`` named, in all lanes.
        group: the workgroup.
    """

    tile: UOp
    token: UOp
    is_token: UOp | None
    totals: list[UOp]
    group: Group


class Finish(Protocol):
    """See the module."""

    @property
    def suffix(self) -> str:
        """For the kernel's name."""
        ...

    @property
    def num_outs(self) -> int:
        """How many of the kernel's arguments, from the first on, are written."""
        ...

    def num_tiles(self, num_rows: int) -> int:
        """Waves that it takes when each has ``num_rows`` rows (and no other one works on them)."""
        ...

    def waves(self, num_rows: int) -> int:
        """How many neighbouring waves must be one workgroup."""
        ...

    def rows(self, tile: UOp, num_rows: int) -> list[UOp]:
        """The rows of weights of a tile."""
        ...

    def store(self, sums: Sums, outs: tuple[UOp, ...], rest: tuple[UOp, ...]) -> list[UOp]:
        """The stores of one token's results; ``rest`` are the kernel's arguments behind the activations."""
        ...


@dataclass(frozen=True)
class Destination:
    """Where a product's results go.

    Attributes:
        width: elements of a row of the output, which may hold several matrices' results side by side.
        offset: where in it this matrix's results begin.
        addends: how many float32 buffers are added: ``True`` for one of the output's shape (a residual), ``False`` for
            one row of ``width`` (a bias).
    """

    width: int
    offset: int = 0
    addends: tuple[bool, ...] = ()

    @property
    def suffix(self) -> str:
        """For a kernel's name."""
        return f"_{self.width}_{self.offset}" + "".join("_residual" if whole else "_bias" for whole in self.addends)

    def place(self, row: UOp | int, column: UOp) -> UOp:
        """Where in the output one result of a token's row goes."""
        return column + self.offset + row * self.width

    def add(self, row: UOp | int, column: UOp, value: UOp, addends: tuple[UOp, ...]) -> UOp:
        """A result with the addends."""
        for whole, addend in zip(self.addends, addends, strict=True):
            value = value + addend.flatten()[self.place(row, column) if whole else column + self.offset].load()
        return value


@dataclass(frozen=True)
class Floats:
    """Float32 results, one for each of ``num_results`` rows of weights.

    With ``gated`` the first half of the weights is a gate: there are half as many results, silu(gate) * the rest.
    """

    num_results: int
    destination: Destination
    gated: bool = False
    num_outs: int = 1

    @property
    def suffix(self) -> str:
        """See ``Finish``."""
        return ("_gated" if self.gated else "") + self.destination.suffix

    def _together(self, num_rows: int) -> int:
        return max(1, num_rows // 2) if self.gated else num_rows

    def num_tiles(self, num_rows: int) -> int:
        """See ``Finish``."""
        return -(-self.num_results // self._together(num_rows))

    def waves(self, num_rows: int) -> int:
        """See ``Finish``."""
        return 1

    def _results(self, tile: UOp, num_rows: int) -> list[UOp]:
        together = self._together(num_rows)
        return [clamped(tile * together + r, self.num_results) for r in range(together)]

    def rows(self, tile: UOp, num_rows: int) -> list[UOp]:
        """See ``Finish``."""
        results = self._results(tile, num_rows)
        return results + [r + self.num_results for r in results] if self.gated else results

    def store(self, sums: Sums, outs: tuple[UOp, ...], rest: tuple[UOp, ...]) -> list[UOp]:
        """See ``Finish``."""
        totals = _let_through(sums.totals) if self.gated else sums.totals
        results = self._results(sums.tile, len(sums.totals))
        stores: list[UOp] = []
        for result, total in zip(results, totals, strict=True):
            # Every lane stores: the same value, which is cheaper than a branch.
            place = self.destination.place(sums.token, result)
            value = self.destination.add(sums.token, result, total, rest)
            stores.append(outs[0][place if sums.is_token is None else place.valid(sums.is_token)].store(value))
        return stores


def _let_through(totals: list[UOp]) -> list[UOp]:
    half = len(totals) // 2
    return [silu(gate) * up for gate, up in zip(totals[:half], totals[half:], strict=True)]


@dataclass(frozen=True)
class GatedBytes:
    """silu(gate) * up of ``num_results`` pairs, stored as the next product reads it: int8, see ``activations``.

    The waves of a workgroup compute one span of results, which share a scale.
    """

    num_results: int
    span: int
    num_outs: int = 1

    @property
    def suffix(self) -> str:
        """See ``Finish``."""
        return f"_gated_int8_{self.span}"

    def num_tiles(self, num_rows: int) -> int:
        """See ``Finish``."""
        return self.num_results * 2 // num_rows

    def waves(self, num_rows: int) -> int:
        """See ``Finish``."""
        return self.span * 2 // num_rows

    def rows(self, tile: UOp, num_rows: int) -> list[UOp]:
        """See ``Finish``."""
        results = [tile * (num_rows // 2) + r for r in range(num_rows // 2)]
        return results + [r + self.num_results for r in results]

    def store(self, sums: Sums, outs: tuple[UOp, ...], rest: tuple[UOp, ...]) -> list[UOp]:
        """See ``Finish``."""
        values, group = _let_through(sums.totals), sums.group
        waves = self.waves(len(sums.totals))
        wave, lane = sums.tile % waves, group.thread % (self.span // PER_THREAD)
        # A token's exchange has memory of its own: nothing waits for the one before to be read.
        first = wave * len(values)
        shared = group.share(values[0], first, self.span)
        for i, value in enumerate(values[1:], 1):
            shared = shared.after(shared[first + i].store(value))
        own = [shared[lane * PER_THREAD + i].load() for i in range(PER_THREAD)]
        element = sums.tile // waves * self.span + lane * PER_THREAD
        return store_as("int8", Tile(outs[0], sums.token, element, own, self.num_results, self.span), group)


@dataclass(frozen=True)
class Rotated:
    """Queries, keys and values of ``heads``: rotated, rounded to f16, keys and values written into the cache.

    Written are queries, keys and values as ``attention.rotate_and_store`` does, those of them that the weights make:
    a kernel must use all its arguments (``written`` says which). Behind the activations it takes places, the table of
    cosines and sines if it ``turns`` any head, and the bias of all heads if there is one.

    Attributes:
        heads: the sizes.
        first_head: which of all heads (queries, keys, values, in this order) is the first row's.
        num_heads: how many the weights hold.
        has_bias: see above.
    """

    heads: Heads
    first_head: int
    num_heads: int
    has_bias: bool

    @property
    def written(self) -> list[int]:
        """Which of queries (0), keys (1) and values (2) the weights make."""
        begins = (0, self.heads.queries, self.heads.queries + self.heads.keys)
        sizes = (self.heads.queries, self.heads.keys, self.heads.keys)
        last = self.first_head + self.num_heads - 1
        return [i for i in range(3) if last >= begins[i] and self.first_head < begins[i] + sizes[i]]

    @property
    def turns(self) -> bool:
        """Whether any of the weights' heads is rotated: values are not."""
        return self.written != [2]

    @property
    def num_outs(self) -> int:
        """See ``Finish``."""
        return len(self.written)

    @staticmethod
    def fits(heads: Heads) -> bool:
        """Whether four rows always make two whole pairs and two whole words."""
        return heads.rotated % 4 == 0 and heads.size % 4 == 0

    @property
    def suffix(self) -> str:
        """See ``Finish``."""
        return f"_rotated_{self.first_head}_{self.num_heads}" + ("_bias" if self.has_bias else "")

    def num_tiles(self, num_rows: int) -> int:
        """See ``Finish``."""
        return self.num_heads * self.heads.size // 4

    def waves(self, num_rows: int) -> int:
        """See ``Finish``."""
        return 1

    def _elements(self, tile: UOp) -> tuple[UOp, UOp, UOp]:
        """Head, and where in it the tile's two words begin."""
        heads = self.heads
        head, quarter = tile // (heads.size // 4), tile % (heads.size // 4)
        if heads.adjacent:
            return head, quarter * 4, quarter * 4 + 2
        half = heads.rotated // 2
        inside = quarter * 2 < half
        first = inside.where(quarter * 2, quarter * 4)  # behind the rotated ones: rotated + 4 (quarter - half / 2)
        return head, first, inside.where(quarter * 2 + half, quarter * 4 + 2)

    def rows(self, tile: UOp, num_rows: int) -> list[UOp]:
        """See ``Finish``."""
        assert num_rows == 4, "two words make a tile"
        head, first, second = self._elements(tile)
        return [head * self.heads.size + start + i for start in (first, second) for i in range(2)]

    def store(self, sums: Sums, outs: tuple[UOp, ...], rest: tuple[UOp, ...]) -> list[UOp]:
        """See ``Finish``."""
        heads, places = self.heads, rest[0].flatten()
        own, first, second = self._elements(sums.tile)
        head, totals = own + self.first_head, sums.totals
        if self.has_bias:
            bias, base = rest[-1].flatten(), head * heads.size
            elements = [start + i for start in (first, second) for i in range(2)]
            totals = [total + bias[base + at].load() for total, at in zip(totals, elements, strict=True)]
        place = place_of(heads, places, sums.token)
        is_query, is_key = head < heads.queries, head < heads.queries + heads.keys
        turned = totals
        if self.turns:
            table = rest[1].flatten(), place.position * heads.rotated
            turned = self._turned(totals, first, second, table, is_key)
        scale = is_query.where(heads.query_scale, 1.0)
        stores: list[UOp] = []
        own_outs = dict(zip(self.written, outs, strict=True))
        for start, pair in ((first, turned[:2]), (second, turned[2:])):
            packed, word = pack_halves(pair[0] * scale, pair[1] * scale), start // 2
            if 0 in own_outs:
                query = (sums.token * heads.queries + is_query.where(head, 0)) * heads.words + word
                wanted = is_query if sums.is_token is None else is_query & sums.is_token
                stores.append(own_outs[0][query.valid(wanted)].store(packed))
            for which, begin, belongs in (
                (1, heads.queries, is_key & ~is_query),
                (2, heads.queries + heads.keys, ~is_key),
            ):
                if which in own_outs:
                    kv_head = (head - begin).maximum(0).minimum(heads.keys - 1)
                    wanted = belongs & place.is_real
                    stores.append(own_outs[which][heads.cached(place, kv_head, word).valid(wanted)].store(packed))
        return stores

    def _turned(self, totals: list[UOp], first: UOp, second: UOp, rope: tuple[UOp, UOp], is_turned: UOp) -> list[UOp]:
        """The four elements after rotation, or as they are where a head or an element is not rotated."""
        heads, (table, base) = self.heads, rope
        pairs = ((0, 1, first // 2), (2, 3, second // 2)) if heads.adjacent else ((0, 2, first), (1, 3, first + 1))
        turned = list(totals)
        for a, b, pair in pairs:
            inside = is_turned & (pair < heads.rotated // 2)
            at = base + inside.where(pair, 0) * 2
            cosine, sine = table[at].load(), table[at + 1].load()
            turned[a] = inside.where(totals[a] * cosine - totals[b] * sine, totals[a])
            turned[b] = inside.where(totals[a] * sine + totals[b] * cosine, totals[b])
        return turned
