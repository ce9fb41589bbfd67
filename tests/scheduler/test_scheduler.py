"""No slot leaks, nobody starves, and every token is computed exactly once, whatever comes and goes."""

import random
from collections.abc import Sequence as SequenceOf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from garzone.scheduler.scheduler import Batch, Part, Scheduler
from garzone.scheduler.sequence import Sequence
from garzone.scheduler.slots import SlotPool
from tests.scheduler.test_slots import Rows


class Guesser:
    """Guesses that are right now and then: token n + 1 follows n, but every fifth is wrong."""

    def __init__(self, tokens: list[int]) -> None:
        self.tokens = tokens

    def propose(self, max_tokens: int) -> tuple[SequenceOf[int], float]:
        last = self.tokens[-1]
        return [following(last + i) + (i % 5 == 4) for i in range(max_tokens)][:6], 0.8

    def extend(self, tokens: SequenceOf[int]) -> None:
        del tokens


def following(token: int) -> int:
    return token + 1


class Machine:
    """A scheduler, and an engine that checks what it is told to compute."""

    def __init__(self, num_slots: int, chunk_tokens: int, spare_rows: int = 200) -> None:
        self.pool = SlotPool(num_slots, row_bytes=1, spare_bytes=spare_rows)
        self.scheduler = Scheduler(self.pool, chunk_tokens)
        self.rows = Rows(num_slots)
        self.chunk_tokens = chunk_tokens
        self.live: dict[int, Sequence] = {}
        self.computed: dict[int, int] = {}

    def add(self, number: int, prompt: list[int], num_answer: int) -> None:
        sequence = Sequence(number, list(prompt), len(prompt) + num_answer)
        sequence.drafter = Guesser(sequence.tokens)
        self.live[number] = sequence
        self.computed[number] = 0
        self.scheduler.add(sequence)

    def cancel(self, number: int) -> None:
        del self.live[number]
        self.scheduler.finish(number)

    def step(self) -> Batch:
        batch = self.scheduler.schedule()
        assert batch.num_rows <= self.chunk_tokens
        self.rows.make(batch.moves)
        slots = [part.slot for part in batch.parts]
        assert len(slots) == len(set(slots)), "two sequences in one slot"
        for part in batch.parts:
            sequence = self.live[part.number]
            assert self.pool.owner(part.slot) == part.number
            assert part.start == sequence.num_computed
            assert self.rows.slots[part.slot][: part.start] == sequence.tokens[: part.start], "rows of other tokens"
            self.rows.slots[part.slot][part.start :] = part.tokens
            self._answer(part, sequence)
        return batch

    def _answer(self, part: Part, sequence: Sequence) -> None:
        chosen: list[int] = []
        if part.num_wanted:
            fed = [part.tokens[-part.num_wanted], *part.draft]
            for index, token in enumerate(fed):
                chosen.append(following(token))
                if index + 1 == len(fed) or fed[index + 1] != chosen[-1]:
                    break
        self.scheduler.update(part, chosen)
        self.computed[part.number] += sequence.num_computed - part.start
        if len(sequence.tokens) >= sequence.max_rows:
            self.cancel(part.number)


REQUESTS = st.lists(
    st.tuples(st.integers(0, 2), st.integers(1, 90), st.integers(1, 12), st.integers(0, 6), st.integers(0, 30)),
    min_size=1,
    max_size=10,
)


@settings(max_examples=150)
@given(st.integers(1, 4), st.integers(4, 40), REQUESTS)
def test_any_mixture_of_requests_is_answered_as_if_each_were_alone(
    num_slots: int, chunk_tokens: int, requests: list[tuple[int, int, int, int, int]]
) -> None:
    machine = Machine(num_slots, chunk_tokens)
    kept: dict[int, Sequence] = {}
    arrivals: dict[int, list[int]] = {}
    for number, request in enumerate(requests):
        arrivals.setdefault(request[3], []).append(number)
    cancelled: set[int] = set()
    for step in range(2000):
        for number in arrivals.pop(step, ()):
            base, length, num_answer, _, _ = requests[number]
            machine.add(number, [base * 1000 + i for i in range(length)], num_answer)
            kept[number] = machine.live[number]
        for number, request in enumerate(requests):
            if number in machine.live and request[4] == step and request[4] % 3 == 0:
                machine.cancel(number)
                cancelled.add(number)
        if not arrivals and not machine.scheduler.has_work:
            break
        machine.step()
    else:
        raise AssertionError("somebody never got an answer")
    assert machine.pool.num_free == num_slots, "a slot leaked"
    for number, sequence in kept.items():
        base, length, num_answer, _, _ = requests[number]
        if number not in cancelled:
            assert sequence.tokens == [base * 1000 + i for i in range(length + num_answer)]
            # the last token is never fed; what was not computed was there already
            assert machine.computed[number] + sequence.num_cached == length + num_answer - 1


@given(st.integers(2, 6), st.lists(st.integers(50, 400), min_size=1, max_size=5))
def test_a_long_prompt_never_holds_another_up_for_more_than_one_step(extra: int, lengths: list[int]) -> None:
    num_slots = len(lengths) + 1
    machine = Machine(num_slots, num_slots + extra)
    machine.add(0, [1, 2, 3], 500)
    while machine.live[0].num_pending > 1 or len(machine.live[0].tokens) == 3:
        machine.step()
    for number, length in enumerate(lengths, 1):
        machine.add(number, [number * 10_000 + i for i in range(length)], 4)
    while len(machine.live) > 1 and 0 in machine.live:
        before = {number: sequence.num_computed for number, sequence in machine.live.items()}
        machine.step()
        for number, sequence in machine.live.items():
            assert sequence.num_computed > before[number], "it stood still for a step"


def test_a_short_prompt_overtakes_a_long_one() -> None:
    machine = Machine(2, 32)
    machine.add(0, list(range(1000)), 2)
    machine.add(1, list(range(5000, 5020)), 2)
    for _ in range(3):
        machine.step()
    assert 1 not in machine.live
    assert 0 in machine.live


def test_slots_are_given_out_in_the_order_of_arrival() -> None:
    machine = Machine(1, 16)
    for number in range(4):
        machine.add(number, [number * 100 + i for i in range(20)], 3)
    order: list[int] = []
    while machine.scheduler.has_work:
        order += [part.number for part in machine.step().parts]
    assert order == sorted(order)


def test_candidates_of_one_prompt_share_its_prefill() -> None:
    machine = Machine(8, 64)
    prompt = list(range(300))
    for number in range(8):
        machine.add(number, prompt, 4)
    while machine.scheduler.has_work:
        machine.step()
    assert sum(machine.computed.values()) == 299 + 8 * (1 + 3)  # the prompt's last token is each one's own


def test_followers_of_one_that_was_cancelled_go_on_from_what_it_had() -> None:
    machine = Machine(3, 64)
    prompt = list(range(300))
    for number in range(3):
        machine.add(number, prompt, 4)
    machine.step()
    machine.step()
    machine.cancel(0)
    while machine.scheduler.has_work:
        machine.step()
    assert sum(machine.computed.values()) - machine.computed[0] == 299 - 128 + 2 * 4
    assert machine.computed[0] == 128


def test_cancelling_frees_the_slot_before_the_next_step() -> None:
    machine = Machine(1, 16)
    machine.add(0, list(range(100)), 4)
    machine.add(1, list(range(200, 220)), 1)
    machine.step()
    machine.cancel(0)
    assert [part.number for part in machine.step().parts] == [1]


def test_a_full_context_goes_on_with_its_beginning_and_its_later_half() -> None:
    sequence = Sequence(0, list(range(10)), 20)
    sequence.tokens += range(10, 20)
    sequence.num_computed = 19
    sequence.forget(4)
    assert sequence.tokens == [0, 1, 2, 3, *range(12, 20)]
    assert sequence.num_computed == 4


def test_choices_that_do_not_fit_the_rows_are_a_bug() -> None:
    machine = Machine(1, 16)
    machine.add(0, [1, 2, 3], 9)
    batch = machine.scheduler.schedule()
    with pytest.raises(ValueError, match="could be"):
        machine.scheduler.update(batch.parts[0], ())


def test_random_traffic_for_a_while() -> None:
    chance = random.Random(5)
    machine = Machine(4, 24, spare_rows=1000)
    for number in range(120):
        base = chance.randrange(4) * 1000
        machine.add(number, [base + i for i in range(chance.randrange(1, 120))], chance.randrange(1, 20))
        for _ in range(chance.randrange(4)):
            machine.step()
        if chance.random() < 0.2 and machine.live:
            machine.cancel(chance.choice(list(machine.live)))
    while machine.scheduler.has_work:
        machine.step()
    assert machine.pool.num_free == 4
