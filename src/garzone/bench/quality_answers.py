"""Generators for measuring: one that knows the right answers, one that replays given answers, one that keeps time.

They stand where a model stands, so everything behind them is the real worker. Knows no attack: see
`quality_sabotage.py`.
"""

from __future__ import annotations

import ast
import re
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from pathlib import PurePosixPath

from garzone.agent.document import as_document
from garzone.agent.kinds.asking import user
from garzone.bench.quality_suites import BenchTask, Reference
from garzone.core.generation import Delta, FinishReason, GenerateRequest, ModelDetails, SamplingParams, ServedBy, Usage
from garzone.core.ports import TextGenerator

CONTEXT_TOKENS = 32_768
CHARS_PER_TOKEN = 4

Answerer = Callable[[GenerateRequest, int], str]


class Answers:
    """A TextGenerator that answers with what a function of the request and its number (from 0) says.

    `backend` names it in `served_by`, so that no report of a rehearsal looks like one of a model.
    """

    def __init__(self, answer: Answerer, backend: str) -> None:
        self._answer = answer
        self._backend = backend
        self._asked = 0

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Delta]:
        """One answer in one piece."""
        text = self._answer(request, self._asked)
        self._asked += 1
        yield Delta(text=text)
        prompt = request.prompt or "".join(message.text for message in request.messages)
        usage = Usage(prompt_tokens=_tokens(prompt), completion_tokens=_tokens(text))
        yield Delta(finish_reason=FinishReason.STOP, usage=usage)

    async def count_tokens(self, model: str, text: str) -> int:
        """An estimate."""
        return _tokens(text)

    async def details(self, model: str) -> ModelDetails:
        """A model with a context that everything fits."""
        return ModelDetails(
            name=self._backend,
            context_tokens=CONTEXT_TOKENS,
            capabilities=("completion", "insert"),
            parameter_size="8B",
        )

    async def served_by(self, model: str) -> ServedBy:
        """Says what it is."""
        return ServedBy(model=self._backend, backend=self._backend)

    async def aclose(self) -> None:
        """Nothing to release."""


def language(task: BenchTask) -> str:
    """Of the answer, as Markdown names it."""
    return {".ts": "typescript", ".mjs": "javascript"}.get(PurePosixPath(task.solution_path).suffix, "python")


def oracle(task: BenchTask, reference: Reference) -> Answers:
    """Answers with the reference solution, as a well-behaved model would write it."""
    written_in = language(task)
    text = reference.files.get(task.solution_path, "")
    if task.suite == "testgen_humaneval":
        text = _as_pytest(reference.tests, task.files["solution.py"], task.entry_point)

    def answer(request: GenerateRequest, _: int) -> str:
        if request.suffix is not None:  # fill in the middle: the middle alone, without a fence
            return reference.middle or text
        if reference.middle and _asks_for_middle(request):
            return fenced(reference.middle, written_in)
        return fenced(text, written_in)

    return Answers(answer, "oracle")


def replay(answers: Sequence[str], backend: str) -> Answers:
    """Answers in order; after the last one, over and over again the last."""
    return Answers(lambda _, number: answers[min(number, len(answers) - 1)], backend)


def fenced(code: str, language: str) -> str:
    """Code as models write it; the fence is longer than any in the code."""
    longest = max((len(mark) for mark in re.findall(r"`{3,}", code)), default=2)
    fence = "`" * (longest + 1)
    return f"Here is the code:\n\n{fence}{language}\n{code.rstrip(chr(10))}\n{fence}\n"


def _asks_for_middle(request: GenerateRequest) -> bool:
    text = "".join(message.text for message in request.messages).lower()
    return "missing" in text and "only" in text


def _as_pytest(tests: str, code: str, name: str) -> str:
    """The suite's assertion script as a pytest file: names imported by name, the check called from a test."""
    defined = {node.name for node in ast.parse(code).body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    tree = ast.parse(tests)
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} & defined | {name}
    checks = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    imports = [
        node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom) and "_il" not in ast.dump(node)
    ]
    head = [*map(ast.unparse, imports), f"from solution import {', '.join(sorted(used))}"]
    bodies = "\n\n\n".join(map(ast.unparse, checks))
    return "\n".join(head) + f"\n\n\n{bodies}\n\n\ndef test_{name}():\n    check({name})\n"


class Timed:
    """Passes everything on to another generator and adds up how long it took to answer."""

    def __init__(self, inner: TextGenerator) -> None:
        self._inner = inner
        self.generation_ms = 0.0
        self.usage: Usage | None = None

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Delta]:
        """The other's answer; only its own time counts, not the reader's."""
        stream = self._inner.generate(request)
        try:
            while True:
                started = time.monotonic()
                try:
                    delta = await anext(stream)
                except StopAsyncIteration:
                    return
                finally:
                    self.generation_ms += (time.monotonic() - started) * 1000
                self.usage = delta.usage or self.usage
                yield delta
        finally:
            await stream.aclose()

    async def count_tokens(self, model: str, text: str) -> int:
        """Asked of the other; its time counts too."""
        started = time.monotonic()
        try:
            return await self._inner.count_tokens(model, text)
        finally:
            self.generation_ms += (time.monotonic() - started) * 1000

    async def details(self, model: str) -> ModelDetails:
        """The other's."""
        started = time.monotonic()
        try:
            return await self._inner.details(model)
        finally:
            self.generation_ms += (time.monotonic() - started) * 1000

    async def served_by(self, model: str) -> ServedBy:
        """The other's."""
        return await self._inner.served_by(model)

    async def aclose(self) -> None:
        """The other is not ours to close."""


async def ask_once(
    generator: TextGenerator, details: ModelDetails, prompt: str, *, num_ctx: int, max_tokens: int, language: str
) -> str:
    """One greedy answer without any worker: what the model says when it is simply asked.

    A pretrained model, which knows no turns, gets the same as a document to go on with.
    """
    question = user(prompt)
    if details.is_base:
        question = as_document(question, language)
    request = GenerateRequest(
        model=details.name,
        messages=question.messages,
        prompt=question.prompt,
        raw=details.is_base,
        sampling=SamplingParams(temperature=0.0, seed=1, max_tokens=max_tokens, stop=question.stop),
        num_ctx=num_ctx,
        think=False,
        truncate=False,
    )
    return question.lead + "".join([delta.text async for delta in generator.generate(request)])


def _tokens(text: str) -> int:
    return -(-len(text) // CHARS_PER_TOKEN)
