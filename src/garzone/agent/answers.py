"""Asks the model: fits prompts into its context, streams answers, stops when there is enough, counts tokens.

Does not judge what comes back.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from garzone.agent.context import Target
from garzone.agent.events import CandidateText, Listener
from garzone.agent.kinds import Attempt, Kind, Material, Style
from garzone.core.chat import Message
from garzone.core.errors import ContextTooSmall, Overloaded
from garzone.core.generation import GenerateRequest, ModelDetails, SamplingParams, Usage
from garzone.core.ports import TextGenerator
from garzone.core.task import Task, TokenCount

DEFAULT_CONTEXT_TOKENS = 4096  # where a backend does not know; Ollama's own default
# More costs memory and prefill time on a user's card, and one bounded task does not need it. Always asked for
# explicitly, because a backend's default can be so small that quality suffers (EVIDENCE: 71.4 to 51.9 with 2k).
MAX_CONTEXT_TOKENS = 8192
TEMPLATE_TOKENS = 48  # what a chat template puts around a few messages, system turn included
MIN_ANSWER_TOKENS = 192
SMALL_PARAMETERS = 1e9  # measured at 135M (kinds.Style); from 1.5B on, failing tests are known to help (EVIDENCE)
RETRY_DELAYS_S = (0.5, 2.0, 5.0)  # for a queue that is full for a moment


@dataclass(frozen=True, slots=True)
class Budget:
    """What a task may use of a model. `small` models are asked in fewer words."""

    model: str
    context_tokens: int
    small: bool = False

    @classmethod
    def of(cls, task: Task, details: ModelDetails) -> Budget:
        """The model's context, within what a bounded task needs."""
        available = details.context_tokens or DEFAULT_CONTEXT_TOKENS
        size = num_parameters(details)
        small = size is not None and size < SMALL_PARAMETERS
        return cls(task.model or details.name, min(available, MAX_CONTEXT_TOKENS), small)


def num_parameters(details: ModelDetails) -> float | None:
    """How large a model is, from what its metadata or else its name says (`134.52M`, `qwen2.5-coder:7b`)."""
    for text in (details.parameter_size, details.name):
        if found := re.search(r"(?<![\w.])(\d+(?:\.\d+)?)\s?([MmBb])(?![a-zA-Z])", text):
            return float(found[1]) * (1e6 if found[2] in "Mm" else 1e9)
    return None


@dataclass(frozen=True, slots=True)
class Prompt:
    """A first prompt that fits, with the room its answer gets."""

    messages: tuple[Message, ...]
    num_tokens: int
    answer_tokens: int


@dataclass(frozen=True, slots=True)
class Asked:
    """What a candidate is asked for. `target` is one that `Writer.prepare` returned.

    `attempt` is an earlier answer to repair; where it does not fit the context any more, the first prompt is used.
    """

    target: Target
    temperature: float
    style: Style
    attempt: Attempt | None = None


class Writer:
    """Lets one model write candidates for one task."""

    def __init__(self, generator: TextGenerator, kind: Kind, budget: Budget, tell: Listener) -> None:
        self.kind = kind
        self.tokens = TokenCount()
        self.notes: list[str] = []
        self._generator = generator
        self._budget = budget
        self._tell = tell
        self._prompts: dict[tuple[str, Style], Prompt] = {}

    @property
    def styles(self) -> tuple[Style, ...]:
        """How this model is asked, candidate after candidate, over and over."""
        full, brief, bare = Style.FULL, Style.BRIEF, Style.BARE
        return (bare, brief, full, bare) if self._budget.small else (full, full, brief, full)

    async def prepare(self, task: Task, targets: list[Target], materials: Sequence[Material]) -> list[Target]:
        """Make the first prompts, and leave out targets that do not fit.

        Returns:
            The targets that fit, in their order.

        Raises:
            ContextTooSmall: none does.
        """
        misfits: list[ContextTooSmall] = []
        fitting: list[Target] = []
        for target, material in zip(targets, materials, strict=True):
            try:
                for style in Style:
                    self._prompts[target.label, style] = await self._fitted(task, target, material, style)
                fitting.append(target)
            except ContextTooSmall as misfit:
                misfits.append(misfit)
        if not fitting:
            raise min(misfits, key=lambda misfit: misfit.needed_tokens)
        return fitting

    async def _fitted(self, task: Task, target: Target, material: Material, style: Style) -> Prompt:
        needed = 0
        # a rewritten function is about as long as it was; twice that leaves room for a changed mind and some prose
        answer_tokens = max(2 * await self._count(target.code) + 64, MIN_ANSWER_TOKENS)
        for less, left_out in _ever_less(material):
            messages = self.kind.ask(task, target, less, style)
            num_tokens = await self._count_all(messages)
            needed = num_tokens + answer_tokens
            if needed <= self._budget.context_tokens:
                if left_out:
                    self.notes.append(
                        f"to fit {self._budget.context_tokens} tokens, the model was not shown {left_out}"
                    )
                return Prompt(messages, num_tokens, answer_tokens)
        raise ContextTooSmall(needed, self._budget.context_tokens, self._budget.model)

    async def write(self, number: int, asked: Asked) -> str:
        """One answer. Ends as soon as it holds a complete candidate.

        Args:
            number: of the candidate, from 1; also the seed, so that a task can be repeated.
            asked: for what, and how.
        """
        target, temperature = asked.target, asked.temperature
        prompt = self._prompts[target.label, asked.style]
        messages, num_tokens = prompt.messages, prompt.num_tokens
        if asked.attempt is not None:
            again = self.kind.ask_again(messages, target, asked.attempt)
            num_again = await self._count_all(again)
            if num_again + prompt.answer_tokens <= self._budget.context_tokens:
                messages, num_tokens = again, num_again
        request = GenerateRequest(
            model=self._budget.model,
            messages=messages,
            sampling=SamplingParams(
                temperature=temperature, top_k=40, top_p=0.95, seed=number, max_tokens=prompt.answer_tokens
            ),
            num_ctx=self._budget.context_tokens,
            think=False,
            truncate=False,
        )
        for delay_s in RETRY_DELAYS_S:
            try:
                return await self._stream(number, target, request, num_tokens)
            except Overloaded:
                await asyncio.sleep(delay_s)
        return await self._stream(number, target, request, num_tokens)

    async def _stream(self, number: int, target: Target, request: GenerateRequest, num_tokens: int) -> str:
        text, usage = "", None
        stream = self._generator.generate(request)
        async with contextlib.aclosing(stream):
            async for delta in stream:
                usage = delta.usage or usage
                if delta.text:
                    text += delta.text
                    self._tell(CandidateText(number, delta.text))
                    # a closing fence is looked for only where one may just have been written
                    may_close = not delta.finish_reason and (
                        "`" in delta.text or "~" in delta.text or "\n" in delta.text
                    )
                    if may_close and self.kind.complete(target, text):
                        break
        if usage is None:  # broken off by us: the backend never told
            usage = Usage(prompt_tokens=num_tokens, completion_tokens=await self._count(text))
        self.tokens += TokenCount(usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens)
        return text

    async def _count(self, text: str) -> int:
        return await self._generator.count_tokens(self._budget.model, text)

    async def _count_all(self, messages: Sequence[Message]) -> int:
        return await self._count("\n".join(message.text for message in messages)) + TEMPLATE_TOKENS


def _ever_less(material: Material) -> Iterator[tuple[Material, str]]:
    """Material cut down step by step, with what each step leaves out."""
    yield material, ""
    short = replace(material, tests=material.tests[:1], output=_shortened(material.output, 1200))
    yield short, "all failing tests and all of their output"
    yield replace(short, definitions=()), "what the code uses, nor all failing tests and their output"
    yield (
        replace(short, definitions=(), output=_shortened(material.output, 400)),
        "what the code uses, nor most of the failing output",
    )
    yield Material(output=_shortened(material.output, 300)), "the failing tests, nor what the code uses"
    yield Material(), "the failing tests and their output"


def _shortened(text: str, max_chars: int) -> str:
    return text if len(text) <= max_chars else text[: max_chars // 2] + "\n[...]\n" + text[-max_chars // 2 :]
