"""What the next step computes: schedule() -> Batch; update() with what came of it. Pure.

Does not run, sample or time anything.

Fairness: in every step, every sequence that has a slot moves on. Each one that is being decoded gets its row; the
others share the rest of the step's rows equally, and what one does not need goes to the next. So a prompt of any length
holds another up for no more than the one step that is under way, and a short prompt overtakes a long one. A sequence
that another is computing a beginning for waits for it and moves on when that is there. Slots are given out in the
order of arrival.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

from garzone.scheduler.cost import StepTimes, draft_length
from garzone.scheduler.prefix_tree import common_prefix
from garzone.scheduler.sequence import Sequence
from garzone.scheduler.slots import WORTH_KEEPING, Move, SlotPool


@dataclass(frozen=True, slots=True)
class Part:
    """Rows of one sequence: `tokens` at positions from `start` on. Logits are wanted after the last `num_wanted`.

    All but the first of those were guessed.
    """

    number: int
    slot: int
    start: int
    tokens: tuple[int, ...]
    num_wanted: int

    @property
    def draft(self) -> tuple[int, ...]:
        """The guessed tokens."""
        return self.tokens[len(self.tokens) - self.num_wanted + 1 :] if self.num_wanted else ()


@dataclass(frozen=True, slots=True)
class Batch:
    """One step: first the moves, in order, then the rows of all parts at once."""

    moves: tuple[Move, ...] = ()
    parts: tuple[Part, ...] = ()

    @property
    def num_rows(self) -> int:
        """Rows of the step."""
        return sum(len(part.tokens) for part in self.parts)


class Scheduler:
    """Sequences that wait and run. Each `schedule` is followed by one `update` for every part that wanted logits."""

    def __init__(self, pool: SlotPool, chunk_tokens: int, times: StepTimes | None = None) -> None:
        """Start with nothing to do.

        Args:
            pool: the slots.
            chunk_tokens: the most rows of one step; as many as there are slots at least.
            times: what steps take, for the length of drafts.
        """
        self.pool = pool
        self._budget = chunk_tokens
        self._times = times or StepTimes()
        self._waiting: deque[Sequence] = deque()
        self._running: dict[int, Sequence] = {}  # in the order in which they got their slots

    @property
    def has_work(self) -> bool:
        """Whether there is anything to compute."""
        return bool(self._waiting or self._running)

    @property
    def num_running(self) -> int:
        """Sequences that have a slot."""
        return len(self._running)

    def add(self, sequence: Sequence) -> None:
        """A request arrived."""
        self._waiting.append(sequence)

    def finish(self, number: int) -> None:
        """A sequence has ended or is no longer wanted: its slot is free at once, its rows stay for others."""
        sequence = self._running.pop(number, None)
        if sequence is None:
            self._waiting = deque(waiting for waiting in self._waiting if waiting.number != number)
        else:
            assert sequence.slot is not None
            self.pool.release(sequence.slot)

    def restart(self, number: int) -> None:
        """The rows a sequence was to start from could not be had: it computes all of them."""
        sequence = self._running.get(number)
        if sequence is not None:
            assert sequence.slot is not None
            self.pool.wrote(sequence.slot, 0, ())
            sequence.num_computed = sequence.num_cached = 0

    def forget(self, number: int, num_keep: int) -> None:
        """A sequence's context is full: it goes on with its first `num_keep` tokens and the later half of the rest."""
        sequence = self._running[number]
        assert sequence.slot is not None
        sequence.forget(num_keep)
        self.pool.wrote(sequence.slot, sequence.num_computed, ())

    def schedule(self) -> Batch:
        """The next step; without parts when there is nothing to do."""
        moves = self._admit()
        decoding = [sequence for sequence in self._running.values() if sequence.is_decoding]
        prefilling = [sequence for sequence in self._running.values() if not sequence.is_decoding]
        prefilling = [sequence for sequence in prefilling if not self._follows(sequence, moves)]
        shares = _shares([sequence.num_pending for sequence in prefilling], self._budget - len(decoding))
        parts: list[Part] = []
        for sequence, share in zip(prefilling, shares, strict=True):
            parts.append(self._part(sequence, sequence.tokens[sequence.num_computed :][:share]))
        num_rows = sum(shares) + len(decoding)
        for sequence in decoding:
            draft = self._draft(sequence, self._budget - num_rows, num_rows, len(decoding) - 1)
            num_rows += len(draft)
            parts.append(self._part(sequence, [sequence.tokens[-1], *draft], 1 + len(draft)))
        return Batch(tuple(moves), tuple(parts))

    def update(self, part: Part, chosen: SequenceOf[int] = ()) -> None:
        """A part was computed.

        Args:
            part: of the latest Batch.
            chosen: the tokens that come next: as many of the draft as were right and one more; empty for a part that
                wanted no logits.
        """
        sequence = self._running.get(part.number)
        if sequence is None:
            return  # it was finished in between
        if part.num_wanted and not 1 <= len(chosen) <= part.num_wanted:
            raise ValueError(f"{len(chosen)} tokens chosen where 1 to {part.num_wanted} could be")
        num_right = len(part.tokens) - max(part.num_wanted, 1) + max(len(chosen), 1)
        rows = part.tokens[:num_right]
        if len(chosen) > 1 and tuple(chosen[:-1]) != part.draft[: len(chosen) - 1]:
            raise ValueError("tokens were chosen that are not those whose rows were computed")
        self.pool.wrote(part.slot, part.start, rows)
        sequence.num_computed = part.start + len(rows)
        sequence.tokens += chosen
        if chosen and sequence.drafter is not None:
            sequence.drafter.extend(chosen)

    # --- the parts of a step

    def _admit(self) -> list[Move]:
        moves: list[Move] = []
        while self._waiting and self.pool.num_free and len(self._running) < self._budget:
            sequence = self._waiting.popleft()
            claim = self.pool.claim(sequence.number, sequence.tokens)
            assert claim is not None
            sequence.slot = claim.slot
            sequence.num_computed = sequence.num_cached = claim.num_cached
            sequence.leader = self._leader_of(sequence)
            self._running[sequence.number] = sequence
            moves += claim.moves
        return moves

    def _leader_of(self, sequence: Sequence) -> tuple[int, int] | None:
        """The sequence that got its slot earlier and will compute most of what this one needs, too."""
        best: tuple[int, int] | None = None
        needed = sequence.num_computed + WORTH_KEEPING
        for other in self._running.values():
            if other.number == sequence.number:
                break
            shared = min(common_prefix(other.tokens, sequence.tokens), len(sequence.tokens) - 1)
            if shared >= needed and shared > other.num_computed:
                best, needed = (other.number, shared), shared + 1
        return best

    def _follows(self, sequence: Sequence, moves: list[Move]) -> bool:
        """Whether a sequence lets its leader go first; copies what the leader has when that is all it can give."""
        while sequence.leader is not None:
            number, shared = sequence.leader
            leader = self._running.get(number)
            if leader is not None and leader.num_computed < shared:
                return True
            assert sequence.slot is not None
            copy = self.pool.share(sequence.slot, sequence.tokens)
            if copy is not None:
                sequence.num_cached += copy.num_rows - sequence.num_computed
                sequence.num_computed = copy.num_rows
                moves.append(copy)
            sequence.leader = self._leader_of(sequence) if leader is None else None
        return False

    def _part(self, sequence: Sequence, tokens: SequenceOf[int], num_wanted: int = 0) -> Part:
        assert sequence.slot is not None
        if not num_wanted and len(tokens) == sequence.num_pending:
            num_wanted = 1
        return Part(sequence.number, sequence.slot, sequence.num_computed, tuple(tokens), num_wanted)

    def _draft(self, sequence: Sequence, limit: int, num_rows: int, num_others: int) -> SequenceOf[int]:
        limit = min(limit, sequence.max_rows - len(sequence.tokens) - 1)
        if sequence.drafter is None or limit < 1:
            return ()
        guess, acceptance = sequence.drafter.propose(limit)
        length = draft_length(acceptance, len(guess), num_rows, num_others, self._times) if guess else 0
        return guess[:length]


def _shares(wanted: SequenceOf[int], budget: int) -> list[int]:
    """Parts of a budget, as equal as can be; nobody gets more than was wanted, and nothing is left over needlessly."""
    shares = [0] * len(wanted)
    left = budget
    # who wants least is served first: what remains is shared by the others
    for rank, index in enumerate(sorted(range(len(wanted)), key=lambda index: wanted[index])):
        shares[index] = min(wanted[index], left // (len(wanted) - rank))
        left -= shares[index]
    for index, share in enumerate(shares):  # what did not divide goes to who came first
        extra = min(left, wanted[index] - share)
        shares[index] += extra
        left -= extra
    return shares
