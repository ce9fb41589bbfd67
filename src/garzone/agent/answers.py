"""Asks the model: fits prompts into its context, streams answers, stops when there is enough, counts tokens.

Does not judge what comes back.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

from garzone.agent.context import Target
from garzone.agent.document import as_document
from garzone.agent.events import CandidateText, Listener
from garzone.agent.excerpts import STEPS, excerpt
from garzone.agent.habits import habits_of
from garzone.agent.kinds import Attempt, Job, Material, Question, Style
from garzone.agent.kinds.asking import language_of, preceded
from garzone.agent.search_replace import is_finished
from garzone.core.errors import BackendUnavailable, ContextTooSmall, GenerationFailed, Overloaded
from garzone.core.generation import GenerateRequest, ModelDetails, SamplingParams, Usage
from garzone.core.ports import TextGenerator
from garzone.core.task import Task, TokenCount

DEFAULT_CONTEXT_TOKENS = 4096  # where a backend does not know; Ollama's own default
# More costs memory and prefill time on a user's card, and one bounded task does not need it. Always asked for
# explicitly, because a backend's default can be so small that quality suffers (EVIDENCE: 71.4 to 51.9 with 2k).
MAX_CONTEXT_TOKENS = 8192
TEMPLATE_TOKENS = 48  # what a chat template puts around a few messages, system turn included
MIN_ANSWER_TOKENS = 192
EDITS_TOKENS = 1024  # some blocks; EDITS_SHARE of a smaller context
EDITS_SHARE = 0.25
SEEDS_APART = 10_000  # more than a task has candidates
SMALL_PARAMETERS = 1e9  # measured at 135M (kinds.Style); from 1.5B on, failing tests are known to help (EVIDENCE)
Enough = Callable[[str], bool]  # whether an unfinished answer already holds all that is needed
RETRY_DELAYS_S = (0.5, 2.0, 5.0)  # for a queue that is full for a moment


@dataclass(frozen=True, slots=True)
class Budget:
    """What a task may use of a model. `small` ones are asked in fewer words, `is_base` ones go on with a document."""

    model: str
    context_tokens: int
    small: bool = False
    is_base: bool = False

    @classmethod
    def of(cls, task: Task, details: ModelDetails) -> Budget:
        """The model's context, within what a bounded task needs."""
        available = details.context_tokens or DEFAULT_CONTEXT_TOKENS
        size = num_parameters(details)
        small = size is not None and size < SMALL_PARAMETERS
        return cls(task.model or details.name, min(available, MAX_CONTEXT_TOKENS), small, details.is_base)


def num_parameters(details: ModelDetails) -> float | None:
    """How large a model is, from what its metadata or else its name says (`134.52M`, `qwen2.5-coder:7b`)."""
    for text in (details.parameter_size, details.name):
        if found := re.search(r"(?<![\w.])(\d+(?:\.\d+)?)\s?([MmBb])(?![a-zA-Z])", text):
            return float(found[1]) * (1e6 if found[2] in "Mm" else 1e9)
    return None


@dataclass(frozen=True, slots=True)
class Prompt:
    """A first prompt that fits, with the room its answer gets."""

    question: Question
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

    def __init__(self, generator: TextGenerator, budget: Budget, tell: Listener) -> None:
        self._opened: Job | None = None
        self.tokens = TokenCount()
        self.notes: list[str] = []
        self._generator = generator
        self._budget = budget
        self._tell = tell
        self._prompts: dict[tuple[str, Style], Prompt] = {}

    @property
    def _job(self) -> Job:
        assert self._opened is not None, "prepare comes first"
        return self._opened

    def styles(self, target: Target) -> tuple[Style, ...]:
        """How this model is asked for a target, candidate after candidate, over and over."""
        if (target.label, Style.EDITS) in self._prompts:
            return (Style.EDITS,)
        return self._job.styles(self._budget.small)

    @property
    def small(self) -> bool:
        """Whether the model is one of those that are asked in fewer words."""
        return self._budget.small

    async def prepare(self, job: Job) -> list[Target]:
        """Make the first prompts of a job's targets, and leave out targets that do not fit.

        A target is asked for as a whole where that fits, else as edits where its kind takes them.

        Returns:
            The targets that fit, in their order.

        Raises:
            ContextTooSmall: none does.
        """
        self._opened = job
        misfits: list[ContextTooSmall] = []
        fitting: list[Target] = []
        for target in self._job.targets:
            material = self._with_habits(self._job.material(target), target)
            try:
                for style in dict.fromkeys(self.styles(target)):
                    self._prompts[target.label, style] = await self._fitted(target, material, style)
                fitting.append(target)
            except ContextTooSmall as misfit:
                if await self._as_edits(target, material):
                    fitting.append(target)
                else:
                    misfits.append(misfit)
        if not fitting:
            raise min(misfits, key=lambda misfit: misfit.needed_tokens)
        return fitting

    def _with_habits(self, material: Material, target: Target) -> Material:
        if self._budget.small:
            return material  # all that is not the code distracts them
        habits = habits_of(self._job.setting.code, target.path)
        if habits.left_out:
            self.notes.append(f"the model was not shown {habits.left_out}: only what it says of style")
        return replace(material, habits=habits.text)

    async def _as_edits(self, target: Target, material: Material) -> bool:
        """Make the prompt that asks for edits of a target; False where that does not fit or is not taken."""
        if not self._job.takes_edits(target):
            return False
        try:
            prompt = await self._fitted(target, material, Style.EDITS)
        except ContextTooSmall:
            return False
        self._prompts[target.label, Style.EDITS] = prompt
        held = ", held to text that exists" if prompt.question.grammar else ""
        self.notes.append(f"{target.label} is too long to be written again, so edits were asked for{held}")
        return True

    async def _fitted(self, target: Target, material: Material, style: Style) -> Prompt:
        needed = 0
        if style is Style.EDITS:
            answer_tokens = min(EDITS_TOKENS, int(EDITS_SHARE * self._budget.context_tokens))
            cuts = _ever_fewer_lines(target, material)
        else:
            # a rewritten function is about as long as it was; twice that leaves room for a changed mind and some prose
            answer_tokens = max(2 * await self._count(self._job.expected_text(target)) + 64, MIN_ANSWER_TOKENS)
            cuts = _ever_less(material)
        for less, left_out in cuts:
            question = self._job.ask(target, less, style)
            if less.habits and style in (Style.FULL, Style.EDITS):
                question = preceded(question, less.habits)
            num_tokens = await self._count_all(question)
            needed = num_tokens + answer_tokens
            if needed <= self._budget.context_tokens:
                if left_out:
                    self.notes.append(
                        f"to fit {self._budget.context_tokens} tokens, the model was not shown {left_out}"
                    )
                return Prompt(question, num_tokens, answer_tokens)
        raise ContextTooSmall(needed, self._budget.context_tokens, self._budget.model)

    async def write(self, number: int, asked: Asked, num_before: int = 0) -> str:
        """One answer. Ends as soon as it holds a complete candidate.

        Args:
            number: of the candidate, from 1; also the seed, so that a task can be repeated.
            asked: for what, and how.
            num_before: how many answers for this candidate came to nothing.
        """
        target, temperature = asked.target, asked.temperature
        prompt = self._prompts[target.label, asked.style]
        question, num_tokens = prompt.question, prompt.num_tokens
        if asked.attempt is not None:
            again = self._job.ask_again(question, target, asked.attempt)
            num_again = await self._count_all(again)
            if num_again + prompt.answer_tokens <= self._budget.context_tokens:
                question, num_tokens = again, num_again
        enough = partial(self._job.enough, target) if asked.style is not Style.EDITS else is_finished
        opening = self._job.opening(target) if self._budget.is_base and asked.style is not Style.EDITS else None
        if opening is not None and question.messages:
            question = as_document(question, language_of(target.path), opening)
        cut = question.cut
        seed = number + SEEDS_APART * num_before
        request = self._request(question, temperature, seed=seed, max_tokens=prompt.answer_tokens)
        text = await self._patiently(
            number, (lambda text: cut(text)[1]) if cut else enough, request, num_tokens, question.lead
        )
        return cut(text)[0] if cut else text

    async def answer(self, question: Question, max_tokens: int) -> str:
        """One greedy answer that is no candidate: what a kind wants to know beforehand."""
        num_tokens = await self._count_all(question)
        room = self._budget.context_tokens - num_tokens
        if room < MIN_ANSWER_TOKENS:
            raise ContextTooSmall(num_tokens + MIN_ANSWER_TOKENS, self._budget.context_tokens, self._budget.model)
        request = self._request(question, 0.0, seed=0, max_tokens=min(max_tokens, room))
        return await self._patiently(0, None, request, num_tokens)

    def _request(self, question: Question, temperature: float, *, seed: int, max_tokens: int) -> GenerateRequest:
        return GenerateRequest(
            model=self._budget.model,
            messages=question.messages,
            prompt=question.prompt,
            suffix=question.suffix,
            sampling=SamplingParams(
                temperature=temperature, top_k=40, top_p=0.95, seed=seed, max_tokens=max_tokens, stop=question.stop
            ),
            num_ctx=self._budget.context_tokens,
            raw=not question.messages and question.suffix is None,
            think=False,
            truncate=False,
            grammar=question.grammar,
        )

    async def _patiently(
        self, number: int, enough: Enough | None, request: GenerateRequest, num_tokens: int, lead: str = ""
    ) -> str:
        """An answer, asked for again where the backend was too busy, or broke off and may be there again by now.

        What the question ended with already (`lead`) is put before it. Always the same model by the same name: behind
        one address there may be several servers, of which one died.
        """
        for delay_s in RETRY_DELAYS_S:
            try:
                return await self._stream(number, enough, request, num_tokens, lead)
            except (Overloaded, GenerationFailed, BackendUnavailable) as error:
                if not isinstance(error, Overloaded):
                    self.notes.append(f"an answer was asked for again: {str(error)[:160]}")
                await asyncio.sleep(delay_s)
        return await self._stream(number, enough, request, num_tokens, lead)

    async def _stream(
        self, number: int, enough: Enough | None, request: GenerateRequest, num_tokens: int, lead: str = ""
    ) -> str:
        text, usage = lead, None
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
                    if may_close and enough is not None and enough(text):
                        break
        if usage is None:  # broken off by us: the backend never told
            usage = Usage(prompt_tokens=num_tokens, completion_tokens=await self._count(text[len(lead) :]))
        self.tokens += TokenCount(usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens)
        return text

    async def _count(self, text: str) -> int:
        return await self._generator.count_tokens(self._budget.model, text)

    async def _count_all(self, question: Question) -> int:
        return await self._count(question.text) + TEMPLATE_TOKENS


def _ever_less(material: Material) -> Iterator[tuple[Material, str]]:
    """Material cut down step by step, with what each step leaves out."""
    yield material, ""
    if material.habits:
        material = replace(material, habits="")
        yield material, "what the repository says of its style"
    short = replace(material, tests=material.tests[:1], output=_shortened(material.output, 1200))
    yield short, "all failing tests and all of their output"
    yield replace(short, definitions=()), "what the code uses, nor all failing tests and their output"
    yield (
        replace(short, definitions=(), output=_shortened(material.output, 400)),
        "what the code uses, nor most of the failing output",
    )
    least = Material(output=_shortened(material.output, 300), focus=material.focus)
    yield least, "the failing tests, nor what the code uses"
    yield replace(least, output=""), "the failing tests and their output"


def _ever_fewer_lines(target: Target, material: Material) -> Iterator[tuple[Material, str]]:
    """Material cut down step by step, the target's own lines last of all."""
    yield from _ever_less(material)
    for num_lines in STEPS:
        cut = replace(material, tests=material.tests[:1], output=_shortened(material.output, 800), definitions=())
        for less in (cut, replace(cut, tests=())):
            if left_out := excerpt(target, material.focus, num_lines).left_out:
                yield replace(less, num_lines=num_lines), f"{left_out}, nor what it uses"


def _shortened(text: str, max_chars: int) -> str:
    return text if len(text) <= max_chars else text[: max_chars // 2] + "\n[...]\n" + text[-max_chars // 2 :]
