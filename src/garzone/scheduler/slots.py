"""Who owns which slot, what rows each still holds, and which of them a new sequence can start from. Pure.

Decides what is copied, set aside and forgotten, as Moves for the runner to make; moves nothing itself, and does not
decide who runs.

Rows live in two places: in the engine's slots, and set aside in host memory (`spares`) within a byte budget. Both are
found by the longest shared beginning; what was used least recently goes first.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from garzone.scheduler.prefix_tree import PrefixTree, common_prefix

WORTH_KEEPING: Final = 32  # rows; computing fewer again is quicker than looking after them
_LOSS_SHARE: Final = 4  # rows are continued in place when at most a quarter of what is shared would be lost by it


@dataclass(frozen=True, slots=True)
class Copy:
    """The first `num_rows` rows of one slot into another."""

    source: int
    target: int
    num_rows: int


@dataclass(frozen=True, slots=True)
class SetAside:
    """The first `num_rows` rows of a slot into host memory, as spare number `spare`."""

    slot: int
    spare: int
    num_rows: int


@dataclass(frozen=True, slots=True)
class Restore:
    """The first `num_rows` rows of a spare into a slot."""

    spare: int
    slot: int
    num_rows: int


@dataclass(frozen=True, slots=True)
class Forget:
    """A spare that is no longer needed."""

    spare: int


Move = Copy | SetAside | Restore | Forget


@dataclass(frozen=True, slots=True)
class Claim:
    """A slot for a sequence whose first `num_cached` rows are right once `moves` were made, in order."""

    slot: int
    num_cached: int
    moves: tuple[Move, ...]


@dataclass(eq=False)
class _Slot:
    owner: int | None = None
    tokens: list[int] = field(default_factory=list[int])  # what its rows were computed from
    used: int = 0


@dataclass(eq=False)
class _Spare:
    tokens: tuple[int, ...]
    used: int


_Place = tuple[str, int]


class SlotPool:
    """All slots of one engine, and what was set aside of them."""

    def __init__(self, num_slots: int, *, row_bytes: int = 0, spare_bytes: int = 0) -> None:
        """Make an empty pool.

        Args:
            num_slots: slots of the engine.
            row_bytes: bytes of one row in host memory; 0 sets nothing aside.
            spare_bytes: the most that may be set aside.
        """
        self._slots = [_Slot() for _ in range(num_slots)]
        self._spares: dict[int, _Spare] = {}
        self._tree: PrefixTree[_Place] = PrefixTree()  # of idle slots and spares; owned slots change too often
        self._row_bytes = row_bytes
        self._spare_rows = spare_bytes // row_bytes if row_bytes else 0
        self._clock = 0
        self._next_spare = 0

    @property
    def num_free(self) -> int:
        """Slots that nobody owns."""
        return sum(slot.owner is None for slot in self._slots)

    @property
    def spare_bytes(self) -> int:
        """Bytes set aside now."""
        return self._row_bytes * sum(len(spare.tokens) for spare in self._spares.values())

    def owner(self, slot: int) -> int | None:
        """The sequence that owns a slot."""
        return self._slots[slot].owner

    def claim(self, owner: int, prompt: Sequence[int]) -> Claim | None:
        """A slot for a sequence, with as many of its rows as are there already; None when all are owned.

        At least the prompt's last token stays to be computed, since its logits are wanted.
        """
        if not self.num_free:
            return None
        length, source = self._best(prompt)
        length = min(length, len(prompt) - 1)
        source = source if length else None
        target = self._target(source, length)
        moves: list[Move] = []
        if source == ("slot", target) and self._loses_little(target, length):
            self._tree.remove(("slot", target))
        elif source == ("slot", target):
            moves += self._vacate(target, keep=None)  # the rows are set aside, and those that are shared stay, too
        else:
            moves += self._vacate(target, keep=source)
            if source is not None:
                kind, number = source
                moves.append(Copy(number, target, length) if kind == "slot" else Restore(number, target, length))
                self._touch(source)
        slot = self._slots[target]
        slot.owner, slot.tokens = owner, list(prompt[:length])
        return Claim(target, length, tuple(moves))

    def share(self, slot: int, prompt: Sequence[int]) -> Copy | None:
        """A copy into an owned slot of rows of its prompt that another has got further with by now."""
        mine = self._slots[slot]
        length, source = self._best(prompt, but=slot)
        length = min(length, len(prompt) - 1)
        if source is None or source[0] != "slot" or length <= len(mine.tokens):
            return None
        self._touch(source)
        mine.tokens = list(prompt[:length])
        return Copy(source[1], slot, length)

    def wrote(self, slot: int, start: int, tokens: Sequence[int]) -> None:
        """Rows from `start` on were computed from these tokens; those behind them are no longer right."""
        rows = self._slots[slot].tokens
        if self._slots[slot].owner is None or start > len(rows):
            raise ValueError(f"row {start} of slot {slot} cannot have been written: {len(rows)} rows are there")
        rows[start:] = tokens

    def release(self, slot: int) -> None:
        """Its owner is done; the rows stay for who can use them."""
        released = self._slots[slot]
        if released.owner is None:
            raise ValueError(f"slot {slot} has no owner")
        released.owner = None
        if released.tokens:
            self._tree.insert(("slot", slot), released.tokens)
            self._touch(("slot", slot))

    def adopt(self, tokens: Sequence[int]) -> int | None:
        """Take in a sequence whose rows the runner has on disk, as a spare; its number, or None if it does not fit."""
        if not 0 < len(tokens) <= self._spare_rows - sum(len(spare.tokens) for spare in self._spares.values()):
            return None
        number = self._add_spare(tokens)
        self._spares[number].used = 0  # older than all that was used since
        return number

    def discard(self, spare: int) -> None:
        """A spare turned out to be unusable."""
        if self._spares.pop(spare, None) is not None:
            self._tree.remove(("spare", spare))

    def kept(self) -> list[tuple[tuple[int, ...], Move | int]]:
        """What is worth saving, most recently used first.

        Returns:
            The tokens of each sequence, and either its spare's number or the move that would set its slot aside.
        """
        found: list[tuple[int, tuple[int, ...], Move | int]] = [
            (spare.used, spare.tokens, number) for number, spare in self._spares.items()
        ]
        found += [
            (slot.used, tuple(slot.tokens), SetAside(index, -1, len(slot.tokens)))
            for index, slot in enumerate(self._slots)
            if slot.owner is None and len(slot.tokens) >= WORTH_KEEPING
        ]
        found.sort(key=lambda entry: -entry[0])
        return [(tokens, place) for _, tokens, place in found]

    # --- what to use, and what to lose

    def _best(self, prompt: Sequence[int], but: int | None = None) -> tuple[int, _Place | None]:
        """The longest shared beginning, and where; slots before spares, those in use before idle ones."""
        length, places = self._tree.longest(prompt)
        best: _Place | None = min(places, key=lambda place: (place[0] == "spare", -self._used(place)), default=None)
        for index, slot in enumerate(self._slots):
            if slot.owner is None or index == but or len(slot.tokens) < length:
                continue
            shared = common_prefix(slot.tokens, prompt)
            if shared and shared >= length:
                length, best = shared, ("slot", index)
        return length, best

    def _target(self, source: _Place | None, length: int) -> int:
        """The free slot to take: the source itself where little is lost by it, else the one whose rows matter least."""
        free = [index for index, slot in enumerate(self._slots) if slot.owner is None]
        if source is not None and source[0] == "slot" and source[1] in free:
            if self._loses_little(source[1], length) or len(free) == 1:
                return source[1]
            if length >= WORTH_KEEPING:
                free.remove(source[1])
        return min(free, key=lambda index: (self._is_worth_keeping(index), self._slots[index].used))

    def _loses_little(self, slot: int, length: int) -> bool:
        """Whether little is lost when a slot is continued behind so many rows."""
        return (len(self._slots[slot].tokens) - length) * _LOSS_SHARE <= length or not self._is_worth_keeping(slot)

    def _is_worth_keeping(self, slot: int) -> bool:
        """Whether losing a slot's rows loses anything that no other place has."""
        tokens = self._slots[slot].tokens
        if len(tokens) < WORTH_KEEPING:
            return False
        length, places = self._tree.longest(tokens)
        return length < len(tokens) or places == [("slot", slot)]

    def _vacate(self, slot: int, keep: _Place | None) -> Iterable[Move]:
        """Set a free slot's rows aside if they are worth it and there is room; `keep` is needed in a moment."""
        tokens = self._slots[slot].tokens
        place = ("slot", slot)
        moves: list[Move] = []
        worth = self._is_worth_keeping(slot)
        if place in self._tree:
            self._tree.remove(place)
        if not worth or len(tokens) > self._spare_rows:
            return moves
        # what this one begins with is kept along with it
        shorter = [
            number
            for number, spare in self._spares.items()
            if keep != ("spare", number) and tuple(tokens[: len(spare.tokens)]) == spare.tokens
        ]
        moves += [self._forget(number) for number in shorter]
        while self._spare_rows < len(tokens) + sum(len(spare.tokens) for spare in self._spares.values()):
            others = [number for number in self._spares if keep != ("spare", number)]
            if not others:
                return moves
            moves.append(self._forget(min(others, key=lambda number: self._spares[number].used)))
        used = self._slots[slot].used
        number = self._add_spare(tokens)
        self._spares[number].used = used
        moves.append(SetAside(slot, number, len(tokens)))
        return moves

    def _add_spare(self, tokens: Sequence[int]) -> int:
        number = self._next_spare
        self._next_spare += 1
        self._spares[number] = _Spare(tuple(tokens), 0)
        self._tree.insert(("spare", number), tokens)
        return number

    def _forget(self, number: int) -> Forget:
        del self._spares[number]
        self._tree.remove(("spare", number))
        return Forget(number)

    def _touch(self, place: _Place) -> None:
        self._clock += 1
        kind, number = place
        if kind == "slot":
            self._slots[number].used = self._clock
        else:
            self._spares[number].used = self._clock

    def _used(self, place: _Place) -> int:
        kind, number = place
        return self._slots[number].used if kind == "slot" else self._spares[number].used
