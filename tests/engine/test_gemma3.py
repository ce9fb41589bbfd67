"""Gemma 3's real weights: logits against the float64 reference and llama.cpp, a prompt longer than the window, text."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from garzone.engine.gguf import read_metadata
from garzone.engine.model_runner import ModelRunner
from garzone.engine.row import Row
from garzone.text.tokenizer import Tokenizer
from tests.engine.golden_logits import errors
from tests.numbers import record_number

pytestmark = pytest.mark.slow
GOLDEN = Path(__file__).parents[1] / "golden" / "gemma3.npz"


@pytest.fixture(scope="module")
def runner(gemma3_path: Path) -> ModelRunner:
    return ModelRunner.load(gemma3_path, num_ctx=1024, device="CPU", num_slots=2)


def last_logits(runner: ModelRunner, tokens: Sequence[int], slot: int = 0) -> np.ndarray:
    logits = np.zeros(0)
    for at in range(0, len(tokens), runner.chunk_tokens):
        logits = runner.prefill(tokens[at : at + runner.chunk_tokens], at, slot)
    return logits


def test_logits_are_as_near_the_float64_reference_as_llama_cpp_s(runner: ModelRunner) -> None:
    found = errors(GOLDEN, lambda tokens: last_logits(runner, tokens))
    record_number(f"Gemma 3 270M logits, {found.num_prompts} prompts: RMS error, ours", found.ours)
    record_number("Gemma 3 270M logits: RMS error, ours over llama.cpp's", found.ratio, "<= 1.10")
    record_number("Gemma 3 270M logits: cosine with llama.cpp's, all prompts", f"{found.cosine:.6f}", "> 0.999")
    assert found.num_prompts >= 20
    assert found.ratio <= 1.10
    assert found.cosine > 0.999


def test_behind_the_window_a_row_gives_the_same_alone_in_a_chunk_and_in_a_batch(runner: ModelRunner) -> None:
    tokens = [int(token) for token in np.random.default_rng(4).integers(1000, 200_000, 700)]
    whole = last_logits(runner, tokens)
    last_logits(runner, tokens[:-1])
    assert np.array_equal(runner.decode(tokens[-1], 699), whole)
    last_logits(runner, tokens[:600])
    last_logits(runner, tokens[:20], slot=1)
    rows = [Row(1, 20, tokens[20], True), *(Row(0, 600 + i, tokens[600 + i], i == 99) for i in range(100))]
    assert np.array_equal(runner.step(rows)[1], whole)


def test_it_goes_on_with_what_everybody_knows(runner: ModelRunner, gemma3_path: Path) -> None:
    tokenizer = Tokenizer.from_gguf(read_metadata(gemma3_path))
    tokens = tokenizer.encode("Monday, Tuesday, Wednesday,")
    for _ in range(4):
        tokens.append(int(last_logits(runner, tokens).argmax()))
    assert tokenizer.decode(tokens).endswith("Thursday, Friday,")
