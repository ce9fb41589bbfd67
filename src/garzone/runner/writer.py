"""Writes one answer: from logits to tokens to text, until something ends it. Knows no slots and no other requests."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from garzone.core.errors import GenerationFailed
from garzone.core.generation import ChosenToken, FinishReason, SamplingParams, TokenLogprob
from garzone.engine.sampler import log_softmax, most_probable
from garzone.engine.scores import Scores
from garzone.runner.gate import GatedMatcher
from garzone.runner.model import Model
from garzone.runner.stop_strings import StopMatcher


@dataclass(frozen=True, slots=True)
class Written:
    """What a step added: the tokens, the text that may be shown, and why the answer ended if it did."""

    tokens: list[int]
    text: str
    finish_reason: FinishReason | None = None
    logprobs: tuple[ChosenToken, ...] = ()


@dataclass(eq=False)
class Writer:
    """The state of one answer.

    Attributes:
        model: what it is written with.
        sampling: how tokens are chosen; `max_tokens` is the most of them, whatever else limits it.
        prompt: penalties look at it.
        keep_special: the text of control tokens is part of the answer.
        matcher: the grammar, if there is one.
        num_logprobs: alternatives to tell of each token; None for nothing at all.
        tokens: of the answer so far.
    """

    model: Model
    sampling: SamplingParams
    prompt: Sequence[int]
    keep_special: bool = False
    matcher: GatedMatcher | None = None
    num_logprobs: int | None = None
    tokens: list[int] = field(default_factory=list[int])
    drafted: int = 0
    accepted: int = 0

    def __post_init__(self) -> None:
        self._sampler = self.model.new_sampler(self.sampling, self.prompt)
        self._text = self.model.new_detokenizer()
        self._stops = StopMatcher(self.sampling.stop)
        self._hidden = frozenset[int]() if self.keep_special else self.model.tokenizer.special_ids
        self._masks: Future[list[NDArray[np.bool_]] | None] | None = None

    @property
    def stop(self) -> str | None:
        """The stop string that ended the answer, if one did."""
        return self._stops.matched

    def prepare(self, draft: Sequence[int], executor: Executor) -> None:
        """Compute the masks for the step that is about to run, while it runs."""
        if self.matcher is not None and self.matcher.constrains:
            self._masks = executor.submit(self.matcher.masks, draft)

    def take(self, scores: Sequence[Scores], draft: Sequence[int]) -> Written:
        """Choose tokens as long as the draft was right.

        A guess counts as right when it is the very token that would have been chosen without it, so drafting changes
        neither the distribution nor, with the same seed, the answer.

        Args:
            scores: 1 + len(draft) rows.
            draft: the tokens whose rows were computed beyond the last one.

        Raises:
            GenerationFailed: the logits are no numbers.
            InvalidRequest: the grammar is too complex at this point.
        """
        masks = self._masks.result() if self._masks is not None else None
        self._masks = None
        self.drafted += len(draft)
        taken: list[int] = []
        logprobs: list[ChosenToken] = []
        pieces: list[str] = []
        reason: FinishReason | None = None
        for index, row in enumerate(scores):
            _check(row)
            token_id = self._sampler.choose(row, masks[index] if masks else None)
            taken.append(token_id)
            self.tokens.append(token_id)
            self._sampler.accept(token_id)
            if self.num_logprobs is not None:
                logprobs.append(self._logprob(row.all(), token_id, self.num_logprobs))
            reason = self._write(token_id, pieces)
            begins = (
                self.matcher is not None
                and token_id not in self.model.tokenizer.eos_ids
                and self.matcher.accept(token_id)
            )
            if reason is not None or begins or index >= len(draft) or draft[index] != token_id:
                break
            self.accepted += 1
        return Written(taken, "".join(pieces), reason, tuple(logprobs))

    def _write(self, token_id: int, pieces: list[str]) -> FinishReason | None:
        """Add a token's text to what may be shown; why the answer ends with it, if it does."""
        if token_id in self.model.tokenizer.eos_ids:
            pieces.append(self._stops.push(self._text.finish()) + self._stops.finish())
            return FinishReason.STOP
        if token_id not in self._hidden:
            pieces.append(self._stops.push(self._text.push(token_id)))
        if self._stops.matched is not None:
            return FinishReason.STOP
        if len(self.tokens) == self.sampling.max_tokens:
            pieces.append(self._stops.push(self._text.finish()) + self._stops.finish())
            return FinishReason.LENGTH
        return None

    def _logprob(self, logits: NDArray[np.float32], token_id: int, count: int) -> ChosenToken:
        logarithms = log_softmax(logits)

        def of(token_id: int) -> TokenLogprob:
            raw = self.model.tokenizer.token_bytes(token_id)
            return TokenLogprob(raw.decode(errors="replace"), token_id, float(logarithms[token_id]), raw)

        return ChosenToken(of(token_id), tuple(of(int(other)) for other in most_probable(logits, count)))


def _check(row: Scores) -> None:
    """A NaN anywhere makes the maximum NaN; a model that overflowed must not look like one that rambles."""
    highest = row.largest
    if not np.isfinite(highest):
        raise GenerationFailed(
            f"the model computed {highest} instead of scores; the file may be damaged, or a kernel wrong here; "
            "try garzone doctor"
        )
