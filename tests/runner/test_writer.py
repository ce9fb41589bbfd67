"""Guessing changes how many tokens a step yields, and nothing about which."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from garzone.core.generation import FinishReason, SamplingParams
from garzone.engine.sampler import Sampler
from garzone.engine.scores import HostScores
from garzone.runner.writer import Writer
from tests.runner.stand_in import build

SEEDS = 1500
TABLE = np.random.default_rng(3).normal(size=(258, 258)).astype(np.float32) * 1.5
TABLE[:, 4:] = -30.0  # four tokens, so that three of them in a row have 64 outcomes
PARAMS = SamplingParams(temperature=1.0, top_k=0, top_p=0.95, max_tokens=3)


def written(seed: int, draft: Sequence[int], params: SamplingParams = PARAMS) -> tuple[int, ...]:
    """Tokens of an answer by a model whose logits depend on the last token; guessed from `draft` where given."""
    model = replace(build(), new_sampler=Sampler)
    writer = Writer(model, replace(params, seed=seed), [0])
    while True:
        last = writer.tokens[-1] if writer.tokens else 0
        guess = list(draft[len(writer.tokens) : (params.max_tokens or 0) - 1])
        if writer.take([HostScores(row) for row in TABLE[[last, *guess]]], guess).finish_reason is not None:
            return tuple(writer.tokens)


@pytest.mark.parametrize("draft", [(0, 0, 0), (3, 1, 2), (2, 2, 0)])
def test_sampled_text_with_guesses_is_that_of_the_same_seed_without(draft: tuple[int, ...]) -> None:
    for params in (PARAMS, replace(PARAMS, repeat_penalty=1.3, presence_penalty=0.5, typical_p=0.9, min_p=0.02)):
        for seed in range(200):
            assert written(seed, draft, params) == written(seed, (), params)


def test_sampled_text_with_guesses_has_the_distribution_of_sampled_text_without() -> None:
    """Of different seeds, so that this says something of its own: a chi-square test of two samples."""
    plain = Counter(written(seed, ()) for seed in range(SEEDS))
    common = plain.most_common(1)[0][0]
    for draft in (common, (3, 1, 2)):
        guessed = Counter(written(seed + 10_000_000, draft) for seed in range(SEEDS))
        outcomes = sorted(set(plain) | set(guessed))
        counts = np.array([[side[outcome] for outcome in outcomes] for side in (plain, guessed)], float)
        expected = counts.sum(0) / 2
        likely = expected >= 5
        chi2 = float((((counts[:, likely] - expected[likely]) ** 2) / expected[likely]).sum())
        degrees = int(likely.sum()) - 1
        assert degrees >= 6
        assert chi2 < degrees + 4 * (2 * degrees) ** 0.5  # seeds are fixed: it passes always or never


def test_an_answer_ends_inside_a_guess_where_it_would_have_ended_without() -> None:
    model = build()
    logits = np.full((4, 258), -1.0, np.float32)
    for index, token in enumerate(b"ab" + bytes([0]) + b"c"):
        logits[index, token] = 1.0
    logits[2] = -1.0
    logits[2, 257] = 1.0  # the end
    writer = Writer(model, SamplingParams(temperature=0), [0])
    done = writer.take([HostScores(row) for row in logits], list(b"abc"))
    assert (done.tokens, done.text, done.finish_reason) == ([*b"ab", 257], "ab", FinishReason.STOP)
    assert (writer.drafted, writer.accepted) == (3, 2)
