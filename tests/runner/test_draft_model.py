"""A smaller model guesses ahead: what it costs and what it guesses right decide how far, never what is answered."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from garzone.config import Settings
from garzone.core.generation import GenerateRequest, KVCacheType, ModelDetails, SamplingParams
from garzone.engine.drafter import PromptLookup
from garzone.engine.footprint import OVERHEAD_BYTES
from garzone.engine.row import Row
from garzone.engine.scores import HostScores
from garzone.runner.draft_model import LENGTHS, RETRY_TOKENS, DraftModel, ModelDrafts, vocabularies_differ
from garzone.runner.load_plan import DRAFT_SLOTS, plan_load
from garzone.runner.model import load_model
from garzone.runner.protocol import Load
from garzone.scheduler.cost import StepTimes
from tests.runner.desk import Desk
from tests.runner.stand_in import build

VOCAB = 1000


class Counting:
    """An engine after every token of which the next number comes; it notes what it computed."""

    def __init__(self, chunk_tokens: int = 8, num_slots: int = 2) -> None:
        self.num_slots, self.chunk_tokens = num_slots, chunk_tokens
        self.rows: list[Row] = []
        self._valid = [0] * num_slots

    def score(self, rows: Sequence[Row]) -> Sequence[HostScores]:
        assert len(rows) <= self.chunk_tokens
        for row in rows:
            assert row.position <= self._valid[row.slot]
            self._valid[row.slot] = row.position + 1
        self.rows += rows
        wanted = [(row.token_id + 1) % VOCAB for row in rows if row.wants_logits]
        return [HostScores(np.eye(VOCAB, dtype=np.float32)[token]) for token in wanted]


class Steps(StepTimes):
    """Steps that take 10 ms, and 2 more for each row."""

    def estimate(self, num_rows: int) -> float:
        return 10 + 2.0 * num_rows


def make(engine: Counting, prompt: Sequence[int], ms_per_token: float = 1.0, *, alone: bool = True) -> ModelDrafts:
    model = DraftModel(engine, 1000, VOCAB)  # pyright: ignore[reportArgumentType]  only what it uses is there
    model.ms_per_token = ms_per_token
    return ModelDrafts(PromptLookup(prompt), model, prompt, Steps(), lambda: alone)


def test_it_reads_the_prompt_a_chunk_at_a_time_and_then_guesses() -> None:
    engine = Counting()
    drafts = make(engine, list(range(20)))
    assert drafts.propose(4)[0] == ()  # 19 tokens to read before the last, 8 in a step
    assert drafts.propose(4)[0] == ()
    guess, acceptance = drafts.propose(4)
    assert guess
    assert guess == list(range(20, 20 + len(guess)))
    assert 0 < acceptance < 1


def test_only_what_is_new_is_read_and_wrong_guesses_are_written_over() -> None:
    engine = Counting()
    drafts = make(engine, [1, 2, 3])
    guess, _ = drafts.propose(8)
    assert guess[0] == 4
    drafts.extend([4, 30])  # its second guess was wrong
    engine.rows.clear()
    assert drafts.propose(8)[0][0] == 31
    assert engine.rows[0].position == 4  # the row of 30; those of 1 to 4 stand


def test_it_guesses_further_the_more_often_it_is_right() -> None:
    engine = Counting()
    drafts = make(engine, [1, 2, 3])
    first = drafts.propose(16)[0]
    for _ in range(8):
        guess = drafts.propose(16)[0]
        assert guess
        drafts.extend([*guess, guess[-1] + 1])
    last, acceptance = drafts.propose(16)
    assert len(last) > len(first)
    assert acceptance > 0.8


def test_guesses_that_do_not_pay_end_and_are_tried_again_later() -> None:
    engine = Counting()
    drafts = make(engine, [1, 2, 3])
    num_asked = 0
    for came in range(30, 60):
        num_asked += bool(drafts.propose(8)[0])
        drafts.extend([came * 7 % VOCAB])
    assert 0 < num_asked < 20
    engine.rows.clear()
    quiet = 0
    while not engine.rows and quiet < 2 * RETRY_TOKENS:
        drafts.propose(8)
        drafts.extend([quiet * 11 % VOCAB])
        quiet += 1
    assert 10 < quiet <= RETRY_TOKENS + 1


def test_a_draft_model_that_is_as_slow_as_the_model_is_not_asked() -> None:
    engine = Counting()
    drafts = make(engine, [1, 2, 3], ms_per_token=12.0)
    assert drafts.propose(8)[0] == ()
    assert not engine.rows


def test_it_is_not_asked_beside_others_nor_beyond_its_context() -> None:
    engine = Counting()
    assert make(engine, [1, 2, 3], alone=False).propose(8)[0] == ()
    model = DraftModel(engine, 3, VOCAB)  # pyright: ignore[reportArgumentType]
    drafts = ModelDrafts(PromptLookup([1, 2, 3]), model, [1, 2, 3], Steps(), lambda: True)
    assert drafts.propose(8)[0] == ()
    assert not engine.rows


def test_ids_that_only_fill_its_vocabulary_end_a_guess() -> None:
    engine = Counting()
    model = DraftModel(engine, 100, 6)  # pyright: ignore[reportArgumentType]
    assert model.read([1, 2, 3])
    assert model.guess([1, 2, 3], max(LENGTHS)) == [4, 5]


def test_texts_are_kept_in_slots_of_their_own() -> None:
    engine = Counting()
    model = DraftModel(engine, 100, VOCAB)  # pyright: ignore[reportArgumentType]
    one, other = [1, 2, 3, 4], [9, 8, 7, 6]
    model.guess(one, 1)
    model.guess(other, 1)
    engine.rows.clear()
    model.guess([*one, 5], 1)
    model.guess([*other, 5], 1)
    assert [row.position for row in engine.rows] == [4, 4]


@pytest.mark.parametrize(
    ("draft", "said"),
    [
        (["a", "b", "c"], ""),
        (["a", "b", "c", "<pad0>"], ""),
        (["a", "B", "c"], "its token 1 is 'B', the model's 'b'"),
        (["a", "b", "c"] + ["x"] * 600, "it has 603 tokens, the model 3"),
    ],
)
def test_vocabularies_are_compared(draft: list[str], said: str) -> None:
    assert vocabularies_differ(["a", "b", "c"], draft) == said


def test_the_answer_is_the_same_and_most_of_it_was_guessed() -> None:
    plain, helped = build(), build()
    helper = build()
    helped = replace(helped, draft_model=DraftModel(helper.engine, 256, helped.tokenizer.vocab_size))
    one = GenerateRequest("m", prompt="a b c d", raw=True, sampling=SamplingParams(temperature=0, max_tokens=60))
    desks = Desk(plain), Desk(helped)
    numbers = [desk.ask(replace(one, draft=desk is desks[1])) for desk in desks]
    for desk in desks:
        desk.work()
    assert desks[0].text(numbers[0]) == desks[1].text(numbers[1])
    assert desks[1].end(numbers[1]).usage.accepted_tokens > 20


def test_a_file_that_cannot_guess_for_a_model_is_left_out_and_said(smollm2_path: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(b"GGUF is not enough")
    model = load_model(Load(str(smollm2_path), 256, "CPU", draft_path=str(damaged)))
    assert model.draft_model is None
    assert "goes without the draft model" in model.note
    assert "damaged.gguf" in model.note
    twin = tmp_path / "twin.gguf"
    twin.symlink_to(smollm2_path)
    helped = load_model(Load(str(smollm2_path), 256, "CPU", draft_path=str(twin)))
    assert helped.draft_model is not None
    assert not helped.note
    assert helped.memory_bytes > 1.9 * model.memory_bytes


def test_the_memory_of_a_draft_model_is_planned_for(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, models_dir=tmp_path, num_ctx=4096, num_parallel=1)
    info = {
        "general.architecture": "llama",
        "llama.block_count": 4,
        "llama.attention.head_count": 8,
        "llama.attention.head_count_kv": 2,
        "llama.embedding_length": 512,
    }
    large = ModelDetails(name="large", path="/l", size_bytes=4 << 30, model_info=info)
    small = ModelDetails(name="small", path="/s", size_bytes=1 << 28, model_info=info)
    compact = plan_load(large, replace(settings, kv_cache=KVCacheType.Q8_0), draft=small)
    alone, helped = plan_load(large, settings), plan_load(large, settings, draft=small)
    cache = 4096 * 4 * 2 * 2 * 64 * 2  # tokens, layers, heads, keys and values, numbers, bytes
    assert helped.memory_bytes - alone.memory_bytes == (1 << 28) + DRAFT_SLOTS * cache + OVERHEAD_BYTES
    assert helped.memory_bytes - compact.memory_bytes == (1 + DRAFT_SLOTS) * cache * 15 // 32
