"""Chooses the next token from logits: penalties, filters, temperature, and a seeded draw.

Does not see text: stop strings are others' business, and of a grammar it sees the mask.

The order is llama.cpp's default chain, which Ollama's runner keeps: penalties, the grammar's mask, top_k, typical_p,
top_p, min_p, then temperature and the draw (`common_params_sampling.samplers` in llama.cpp's common/common.h,
without DRY and XTC, which are off there by default). Filters therefore see the probabilities at temperature 1.

One number is drawn for each token and nothing else is random, so the choices of a request depend on its seed and its
logits only: not on what else is computed with it, nor on whether its tokens were guessed before.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Sequence
from typing import Final

import numpy as np

from garzone.core.generation import SamplingParams
from garzone.engine.scores import Scores
from garzone.kernels.highest import highest_ids

GREEDY_BELOW: Final = 1e-6  # dividing by less would overflow, and greedy is the limit anyway
_SORTED_AT_MOST: Final = 2048  # more candidates than this are first thinned out by a histogram
_BINS_PER_NAT: Final = 16
_NUM_BINS: Final = 512  # 32 nats deep: what lies deeper has no probability to speak of


class Sampler:
    """The choices of one request. `history` is the prompt, which penalties count too, as in llama.cpp."""

    def __init__(self, params: SamplingParams, history: Sequence[int] = ()) -> None:
        self.params = params
        self._random = np.random.default_rng(params.seed)
        last = params.repeat_last_n
        self._penalises = last != 0 and (
            params.repeat_penalty != 1.0 or params.presence_penalty != 0.0 or params.frequency_penalty != 0.0
        )
        window = list(history)[-last:] if last > 0 else list(history)
        self._window: deque[int] = deque(window if self._penalises else (), maxlen=last if last > 0 else None)
        self._counts = Counter(self._window)

    def accept(self, token_id: int) -> None:
        """Note that the token was taken, for the penalties of the next ones."""
        if not self._penalises:
            return
        if len(self._window) == self._window.maxlen:
            oldest = self._window[0]
            self._counts[oldest] -= 1
            if not self._counts[oldest]:
                del self._counts[oldest]
        self._window.append(token_id)
        self._counts[token_id] += 1

    def choose(self, scores: Scores, mask: np.ndarray | None = None) -> int:
        """As `sample`, from a row that may lie on a device: no more of it is fetched than the choice depends on."""
        count = self._num_considered()
        if not count or mask is not None or self._counts:
            return self.sample(scores.all(), mask)
        ids, logits = scores.highest(count)
        return int(ids[self.sample(logits)])

    def _num_considered(self) -> int:
        """So many of the highest logits decide; 0 for all of them."""
        params = self.params
        return 1 if params.temperature < GREEDY_BELOW else max(params.top_k, 0)

    def sample(self, logits: np.ndarray, mask: np.ndarray | None = None) -> int:
        """A token id drawn from float32 logits (vocab,), which are left as they are. Does not record it.

        Where `mask` (bool, (vocab,)) is false, nothing is chosen. Logits of -inf are never chosen; if all of them are,
        or one is not a number, the result is what argmax says.
        """
        params = self.params
        logits = self._penalised(logits)
        greedy = params.temperature < GREEDY_BELOW or params.top_k == 1
        if mask is not None:
            best = int(np.argmax(logits))
            if greedy and mask[best]:  # as a rule the model wants what the grammar allows: no copy is needed
                return best
            logits = np.where(mask, logits, np.float32(-np.inf))
        if greedy:
            return int(np.argmax(logits))
        highest = float(logits.max())
        if not np.isfinite(highest):  # not numbers, or everything masked: there is no distribution to draw from
            return int(np.argmax(logits))
        candidates = self._survivors(logits, highest)
        weights = np.exp((logits[candidates] - highest) / np.float64(params.temperature))
        cumulative = np.cumsum(weights)
        drawn = np.searchsorted(cumulative, self._random.random() * cumulative[-1], side="right")
        return int(candidates[min(int(drawn), len(candidates) - 1)])

    def _penalised(self, logits: np.ndarray) -> np.ndarray:
        """llama.cpp's `llama_sampler_penalties_apply`: divide what is positive, multiply what is negative."""
        if not self._counts:
            return logits
        params = self.params
        seen = np.fromiter(self._counts, np.int64, len(self._counts))
        counts = np.fromiter(self._counts.values(), np.float32, len(self._counts))
        inside = seen < len(logits)
        seen, counts = seen[inside], counts[inside]
        changed = logits.astype(np.float32, copy=True)
        values = changed[seen]
        values = np.where(values <= 0, values * params.repeat_penalty, values / params.repeat_penalty)
        changed[seen] = values - counts * params.frequency_penalty - params.presence_penalty
        return changed

    def _survivors(self, logits: np.ndarray, highest: float) -> np.ndarray:
        """Token ids that pass top_k, typical_p, top_p and min_p. Never empty.

        Each filter but typical_p keeps a prefix of the tokens sorted by probability, and min_p is relative to the
        highest, so they can be applied in any order as long as top_p measures against everything that top_k left. That
        saves sorting a vocabulary.
        """
        params, size = self.params, len(logits)
        if 0 < params.top_k < size:
            candidates = highest_ids(logits, params.top_k)
            logits = logits[candidates]
        else:
            candidates = np.arange(size)
        if params.typical_p < 1.0:
            typical = _typical(logits, params.typical_p)
            candidates, logits = candidates[typical], logits[typical]
            highest = float(logits.max())
        nucleus = params.top_p < 1.0
        total = float(np.exp(logits - np.float32(highest)).sum(dtype=np.float64)) if nucleus else 0.0
        if params.min_p > 0.0:
            passed = np.flatnonzero(logits >= highest + math.log(min(params.min_p, 1.0)))
            candidates, logits = candidates[passed], logits[passed]
        if not nucleus:
            return candidates
        if len(candidates) > _SORTED_AT_MOST:
            passed = np.flatnonzero(logits >= highest - _depth(logits, highest, params.top_p * total))
            candidates, logits = candidates[passed], logits[passed]
        order = np.argsort(-logits, kind="stable")
        cumulative = np.cumsum(np.exp(logits[order] - highest, dtype=np.float64))
        keep = int(np.searchsorted(cumulative, params.top_p * total)) + 1
        return candidates[order[: max(keep, 1)]]


def _typical(logits: np.ndarray, mass: float) -> np.ndarray:
    """Indices, ascending, of the tokens whose surprise is nearest to the expected one, up to that much probability.

    Locally typical sampling (Meister and others 2022), as llama.cpp's `llama_sampler_typical_apply`.
    """
    logarithms = log_softmax(logits)
    probabilities = np.exp(logarithms)
    possible = probabilities > 0
    entropy = -float((probabilities[possible] * logarithms[possible]).sum())
    order = np.argsort(np.abs(-logarithms - entropy), kind="stable")
    cumulative = np.cumsum(probabilities[order])
    keep = int(np.searchsorted(cumulative, mass, side="right")) + 1
    return np.sort(order[:keep])


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Natural logarithms of the probabilities, float64, of logits as they are."""
    shifted = logits.astype(np.float64) - float(logits.max())
    return shifted - math.log(float(np.exp(shifted).sum()))


def most_probable(logits: np.ndarray, count: int) -> np.ndarray:
    """Ids of the highest logits, best first."""
    count = min(count, len(logits))
    if not count:
        return np.zeros(0, np.int64)
    best = highest_ids(logits, count)
    return best[np.argsort(-logits[best], kind="stable")]


def _depth(logits: np.ndarray, highest: float, mass: float) -> float:
    """How far below the highest logit one has to go to collect that much probability, rounded up."""
    below = (highest - logits) * np.float32(_BINS_PER_NAT)
    bins = np.minimum(below, np.float32(_NUM_BINS - 1)).astype(np.int64)
    collected = np.cumsum(np.bincount(bins, np.exp(logits - np.float32(highest)), _NUM_BINS))
    last = int(np.searchsorted(collected, mass * (1 + 1e-5))) + 1  # float32 sums may fall short by a little
    return last / _BINS_PER_NAT if last < _NUM_BINS else math.inf
