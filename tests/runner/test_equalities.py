"""On real weights, whatever is saved: the tokens are those of computing everything, alone, from nothing.

The CPU's kernels sum a row the same way whatever else is in the step, so these are equalities of tokens, not bounds.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from garzone.core.generation import FinishReason, GenerateRequest, KVCacheType, Pooling, SamplingParams, Usage
from garzone.engine.row import Row
from garzone.runner.draft_model import DraftModel
from garzone.runner.model import Engine, Model, load_model
from garzone.runner.protocol import Load
from tests.runner.desk import Desk
from tests.runner.test_batcher import embed

SOURCE = Path(__file__).parents[2] / "src" / "garzone" / "scheduler" / "cost.py"
GREEDY = SamplingParams(temperature=0, max_tokens=12)
SEEDED = SamplingParams(temperature=0.9, seed=11, max_tokens=12)


@pytest.fixture(scope="module")
def model(smollm2_path: Path) -> Iterator[Model]:
    yield load_model(Load(str(smollm2_path), 1024, "CPU", num_slots=4, digest="sha256:smollm2"))


@pytest.fixture(scope="module")
def prompt() -> str:
    return SOURCE.read_text(encoding="utf-8")[:800]


def request(prompt: str, sampling: SamplingParams = GREEDY, **fields: object) -> GenerateRequest:
    return replace(GenerateRequest("m", prompt=prompt, raw=True, sampling=sampling, draft=False), **fields)


def answers(desk: Desk, *requests: GenerateRequest) -> list[tuple[str, Usage]]:
    numbers = [desk.ask(one) for one in requests]
    desk.work()
    return [(desk.text(number), desk.end(number).usage) for number in numbers]


class Chunked:
    """An engine that takes fewer rows a step."""

    def __init__(self, engine: Engine, chunk_tokens: int) -> None:
        self._engine = engine
        self.chunk_tokens = chunk_tokens

    def __getattr__(self, name: str) -> object:
        return getattr(self._engine, name)


def cold(model: Model, one: GenerateRequest) -> str:
    return answers(Desk(model), one)[0][0]


@pytest.mark.parametrize("sampling", [GREEDY, SEEDED], ids=["greedy", "seeded"])
def test_in_small_chunks_batched_cached_and_drafted_as_from_nothing_and_alone(
    model: Model, prompt: str, sampling: SamplingParams
) -> None:
    requests = [
        request(prompt, sampling),
        request(prompt[:600] + "\n\n# Another one\ndef", sampling),
        request("Once upon a time", sampling),
        request(prompt, sampling),
    ]
    alone = [cold(model, one) for one in requests[:3]]
    alone.append(alone[0])
    assert len(set(alone)) == 3
    small = replace(model, engine=Chunked(model.engine, 13))
    assert cold(small, requests[0]) == alone[0]
    together = Desk(model)
    found = answers(together, *requests)
    assert [text for text, _ in found] == alone
    assert sum(usage.cached_tokens for _, usage in found) > 250  # the second and the fourth began with the first's
    again = answers(together, *requests)
    assert [text for text, _ in again] == alone
    assert all(usage.cached_tokens == usage.prompt_tokens - 1 for _, usage in again)
    drafted = answers(together, *(replace(one, draft=True, prediction=alone[0]) for one in requests))
    assert [text for text, _ in drafted] == alone
    assert sum(usage.accepted_tokens for _, usage in drafted) > 12


@pytest.mark.parametrize("sampling", [GREEDY, SEEDED], ids=["greedy", "seeded"])
def test_restored_from_disk_as_from_nothing(
    model: Model, prompt: str, sampling: SamplingParams, tmp_path: Path
) -> None:
    first = Desk(model, tmp_path)
    text, usage = answers(first, request(prompt, sampling))[0]
    assert first.batcher.save(10) == 1
    for slot in range(model.engine.num_slots):  # what a new process would find in its slots
        model.engine.score([Row(slot, 0, 1)])
    second, restored = answers(Desk(model, tmp_path), request(prompt, sampling))[0]
    assert second == text
    assert restored.cached_tokens == usage.prompt_tokens - 1


def test_rows_in_bytes_are_not_taken_for_halves_and_change_no_text_either(
    model: Model, smollm2_path: Path, prompt: str, tmp_path: Path
) -> None:
    halves = Desk(model, tmp_path)
    answers(halves, request(prompt))
    assert halves.batcher.save(10) == 1
    load = Load(str(smollm2_path), 1024, "CPU", num_slots=4, digest="sha256:smollm2", kv_cache=KVCacheType.Q8_0)
    compact = load_model(load)
    requests = [request(prompt), request(prompt, SEEDED), request(prompt[:300] + "\n\n# Another\ndef")]
    first = Desk(compact, tmp_path)
    alone, usage = answers(first, requests[0])[0]
    assert usage.cached_tokens == 0
    assert first.batcher.save(10) == 1
    texts = [alone, *(cold(compact, one) for one in requests[1:])]
    small = replace(compact, engine=Chunked(compact.engine, 13))
    drafts = (replace(one, draft=True, prediction=alone) for one in requests)
    together = answers(Desk(small), *drafts)
    assert [text for text, _ in together] == texts
    assert together[0][1].accepted_tokens > 4
    for slot in range(compact.engine.num_slots):  # what a new process would find in its slots
        compact.engine.score([Row(slot, 0, 1)])
    restored, usage = answers(Desk(compact, tmp_path), requests[0])[0]
    assert (restored, usage.cached_tokens) == (alone, usage.prompt_tokens - 1)


def test_a_file_that_is_repeated_with_changes_is_mostly_guessed_right(model: Model) -> None:
    lines = SOURCE.read_text(encoding="utf-8").splitlines(keepends=True)[16:36]
    said = "".join(lines)
    prompt = f"Repeat this:\n```\n{said}```\nOnce more:\n```\n"
    one = request(prompt, replace(GREEDY, max_tokens=100))
    (plain, _), (drafted, usage) = answers(Desk(model), one, replace(one, draft=True, prediction=said))
    assert drafted == plain
    assert usage.completion_tokens == 100
    assert usage.accepted_tokens > 50


def test_a_schema_is_kept_by_the_real_model(model: Model) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}, "rank": {"type": "integer"}},
        "required": ["city", "rank"],
        "additionalProperties": False,
    }
    one = request("The capital of France as JSON: ", replace(GREEDY, max_tokens=60), output_schema=schema, draft=True)
    desk = Desk(model)
    number = desk.ask(one)
    desk.work()
    assert desk.end(number).finish_reason is FinishReason.STOP
    assert set(json.loads(desk.text(number))) == {"city", "rank"}


def test_like_texts_have_like_vectors(model: Model) -> None:
    texts = ("The cat sat on the mat.", "A cat is sitting on a mat.", "def parse(header: bytes) -> int:")
    for pooling in Pooling:
        vectors = np.array(embed(Desk(model), *texts, pooling=pooling).embeddings.vectors)
        assert vectors.shape == (3, 576)
        likeness = vectors @ vectors.T
        assert likeness[0, 1] > likeness[0, 2]
        again = np.array(
            embed(Desk(replace(model, engine=Chunked(model.engine, 4))), *texts, pooling=pooling).embeddings.vectors
        )
        np.testing.assert_allclose(again, vectors, atol=1e-6)


def test_a_draft_model_guesses_and_the_text_is_that_of_the_model_alone(
    model: Model, smollm2_path: Path, prompt: str
) -> None:
    # The same weights guess for themselves here: whatever is not looked up is guessed right.
    helper = load_model(Load(str(smollm2_path), 1024, "CPU", num_slots=1)).engine
    for sampling in (GREEDY, SEEDED):
        # a new one each time: its first guess is made whatever guessing costs
        helped = replace(model, draft_model=DraftModel(helper, 1024, model.tokenizer.vocab_size))
        one = request(prompt[:200], sampling)
        text, usage = answers(Desk(helped), replace(one, draft=True))[0]
        assert text == cold(model, one)
        assert usage.drafted_tokens > 0
        assert usage.accepted_tokens > 0 or sampling is SEEDED
