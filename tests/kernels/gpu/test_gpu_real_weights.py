"""A model of real weights on a card: against the float64 reference, llama.cpp's logits and the processor's answers.

An interpreter would take days for it: it needs GARZONE_TEST_DEVICE to name a device that is none.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from garzone.engine.model_runner import ModelRunner, Row
from tests.engine import golden_logits
from tests.kernels.gpu.oracle import DEVICE
from tests.numbers import record_number

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(DEVICE == "PYTHON", reason="needs a card; GARZONE_TEST_DEVICE names it"),
]
GOLDEN = Path(__file__).parents[2] / "golden" / "smollm2.npz"


@pytest.fixture(scope="module")
def card(smollm2_path: Path) -> ModelRunner:
    return ModelRunner.load(smollm2_path, num_ctx=2048, num_slots=4, device=DEVICE)


def prefill(runner: ModelRunner, tokens: Sequence[int]) -> np.ndarray:
    logits = np.zeros(0)
    for at in range(0, len(tokens), runner.chunk_tokens):
        logits = runner.prefill(list(tokens[at : at + runner.chunk_tokens]), at)
    return logits


def continued(runner: ModelRunner, tokens: Sequence[int], count: int) -> list[int]:
    """The greedy continuation, token by token."""
    found = [int(prefill(runner, tokens).argmax())]
    for at in range(count - 1):
        found.append(int(runner.decode(found[-1], len(tokens) + at).argmax()))
    return found


def test_every_operation_is_one_of_the_gpu_kernels(card: ModelRunner) -> None:
    assert card.is_batched
    assert all(name.startswith(f"{DEVICE} gpu") for name in card.implementations)


def test_logits_are_as_near_the_float64_reference_as_llama_cpp_s(card: ModelRunner) -> None:
    errors = golden_logits.errors(GOLDEN, lambda tokens: prefill(card, tokens))
    record_number(f"SmolLM2 on {DEVICE}, {errors.num_prompts} prompts: RMS logit error over llama.cpp's", errors.ratio)
    record_number(f"SmolLM2 on {DEVICE}: cosine with llama.cpp's, all prompts", errors.cosine)
    assert errors.ratio <= 1.10
    assert errors.cosine > 0.999


def test_a_prompt_gives_what_its_tokens_give_one_after_the_other(card: ModelRunner) -> None:
    tokens = next(tokens for tokens, *_ in golden_logits.prompts(GOLDEN) if len(tokens) > 70)
    whole = prefill(card, tokens)
    alone = [card.decode(token, at) for at, token in enumerate(tokens)][-1]
    spread = whole.std()
    # A prompt's products are of halves where there are matrix instructions, decode's of bytes.
    assert np.sqrt(((whole - alone) ** 2).mean()) < 0.06 * spread
    assert whole.argmax() == alone.argmax()


def test_a_row_does_not_depend_on_what_is_decoded_beside_it(card: ModelRunner) -> None:
    prompts = [tokens for tokens, *_ in golden_logits.prompts(GOLDEN)][: card.num_slots]
    alone = []
    for slot, tokens in enumerate(prompts):
        rows = [Row(slot, at, token, at == len(tokens) - 2) for at, token in enumerate(tokens[:-1])]
        for at in range(0, len(rows), card.chunk_tokens):
            card.step(rows[at : at + card.chunk_tokens])
        alone.append(card.step([Row(slot, len(tokens) - 1, tokens[-1], True)])[0])
    together = card.step([Row(slot, len(tokens) - 1, tokens[-1], True) for slot, tokens in enumerate(prompts)])
    for one, other in zip(alone, together, strict=True):
        assert np.sqrt(((one - other) ** 2).mean()) < 1e-3 * one.std()


def test_greedy_answers_are_those_of_the_processor(card: ModelRunner, smollm2_path: Path) -> None:
    processor = ModelRunner.load(smollm2_path, num_ctx=2048, device="CPU")
    prompts = [tokens for tokens, *_ in golden_logits.prompts(GOLDEN) if 10 < len(tokens) < 100][:6]
    same = sum(continued(card, tokens, 24) == continued(processor, tokens, 24) for tokens in prompts)
    record_number(f"SmolLM2 on {DEVICE}: greedy answers of 24 tokens like the processor's", f"{same} of {len(prompts)}")
    # Two of nearly the same probability may change places: products are summed in another order.
    assert same >= len(prompts) // 2
