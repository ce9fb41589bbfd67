"""No slot has two owners, and every row a sequence starts from was computed from its own tokens."""

from hypothesis import given
from hypothesis import strategies as st

from garzone.scheduler.slots import WORTH_KEEPING, Copy, Forget, Move, Restore, SetAside, SlotPool

SHORT = st.lists(st.integers(0, 1), min_size=1, max_size=4)
PROMPTS = st.builds(
    lambda base, count, rest: (base * count + rest)[:150], SHORT, st.integers(1, 60), st.lists(st.integers(0, 2))
).filter(bool)


class Rows:
    """An engine's rows as the tokens they were computed from."""

    def __init__(self, num_slots: int) -> None:
        self.slots: list[list[int]] = [[] for _ in range(num_slots)]
        self.spares: dict[int, list[int]] = {}

    def make(self, moves: tuple[Move, ...]) -> None:
        for move in moves:
            if isinstance(move, Copy):
                assert len(self.slots[move.source]) >= move.num_rows
                self.slots[move.target][: move.num_rows] = self.slots[move.source][: move.num_rows]
            elif isinstance(move, SetAside):
                assert len(self.slots[move.slot]) >= move.num_rows
                self.spares[move.spare] = self.slots[move.slot][: move.num_rows]
            elif isinstance(move, Restore):
                self.slots[move.slot][: move.num_rows] = self.spares[move.spare][: move.num_rows]
            else:
                assert isinstance(move, Forget)
                del self.spares[move.spare]


@given(
    st.integers(1, 3),
    st.integers(0, 300),
    st.lists(st.tuples(PROMPTS, st.lists(st.integers(0, 2), max_size=5), st.integers(0, 3)), max_size=30),
)
def test_rows_are_always_those_of_the_tokens_they_are_taken_for(
    num_slots: int, spare_rows: int, requests: list[tuple[list[int], list[int], int]]
) -> None:
    pool = SlotPool(num_slots, row_bytes=10, spare_bytes=10 * spare_rows)
    rows = Rows(num_slots)
    owned: list[tuple[int, int]] = []
    for number, (prompt, answer, lifetime) in enumerate(requests):
        for slot, until in list(owned):
            if until <= number:
                pool.release(slot)
                owned.remove((slot, until))
        claim = pool.claim(number, prompt)
        if claim is None:
            assert len(owned) == num_slots
            continue
        assert claim.slot not in [slot for slot, _ in owned]
        assert claim.num_cached < len(prompt)
        rows.make(claim.moves)
        assert rows.slots[claim.slot][: claim.num_cached] == prompt[: claim.num_cached]
        pool.wrote(claim.slot, claim.num_cached, prompt[claim.num_cached :] + answer)
        rows.slots[claim.slot] = prompt + answer
        owned.append((claim.slot, number + 1 + lifetime))
        assert pool.spare_bytes <= 10 * spare_rows
        assert pool.spare_bytes == 10 * sum(map(len, rows.spares.values()))
        assert pool.num_free == num_slots - len(owned)


def serve(pool: SlotPool, prompt: list[int], number: int = 0) -> int:
    """Answer a prompt alone; how many of its rows were there."""
    claim = pool.claim(number, prompt)
    assert claim is not None
    pool.wrote(claim.slot, claim.num_cached, prompt[claim.num_cached :])
    pool.release(claim.slot)
    return claim.num_cached


LONG, OTHER, TITLE = [1] * 200, [2] * 200, [3] * 50


def test_two_long_conversations_that_take_turns_in_two_slots_both_keep_their_rows() -> None:
    pool = SlotPool(2)
    for turn in range(1, 4):
        assert serve(pool, LONG + [4] * turn) == (0 if turn == 1 else 199 + turn)
        assert serve(pool, OTHER + [4] * turn) == (0 if turn == 1 else 199 + turn)


def test_a_third_one_sends_the_oldest_to_host_memory_and_not_into_oblivion() -> None:
    pool = SlotPool(2, row_bytes=1, spare_bytes=1000)
    serve(pool, LONG)
    serve(pool, OTHER)
    serve(pool, TITLE)
    assert pool.spare_bytes == 200
    assert serve(pool, LONG) == 199
    assert serve(pool, OTHER) == 199


def test_what_was_used_least_recently_goes_first_when_the_bytes_run_out() -> None:
    pool = SlotPool(1, row_bytes=1, spare_bytes=450)
    for prompt in (LONG, OTHER, [5] * 200, TITLE):
        serve(pool, prompt)
    assert serve(pool, LONG) == 0
    assert serve(pool, [5] * 200) == 199


def test_a_beginning_that_two_share_is_copied_and_the_first_keeps_its_rows() -> None:
    pool = SlotPool(2)
    serve(pool, LONG + OTHER)
    claim = pool.claim(1, LONG + TITLE)
    assert claim is not None
    assert claim.num_cached == 200
    assert isinstance(claim.moves[0], Copy)
    pool.release(claim.slot)
    assert serve(pool, LONG + OTHER) == 399


def test_few_rows_are_not_worth_keeping() -> None:
    pool = SlotPool(1, row_bytes=1, spare_bytes=1000)
    serve(pool, [1] * (WORTH_KEEPING - 1))
    serve(pool, OTHER)
    assert pool.spare_bytes == 0
