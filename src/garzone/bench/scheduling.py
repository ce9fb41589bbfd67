"""What scheduling saves on this machine: candidates, concurrency, drafts, prefixes, grammars; next to llama.cpp.

Answers are forced along given texts where that makes both sides compute the same tokens, whatever a small model would
rather say; the best token is looked for all the same. Sides take turns; what is reported is medians and their ratios.
"""

from __future__ import annotations

import os
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np

from garzone.bench.speed import Side
from garzone.core.generation import GenerateRequest, SamplingParams, Usage
from garzone.engine.row import Row
from garzone.engine.scores import Scores
from garzone.runner.batcher import Batcher
from garzone.runner.model import Model, load_model
from garzone.runner.protocol import Failed, Finished, Generate, Load, Message, Piece
from garzone.runner.row_store import RowStore

NUM_SLOTS: Final = 8
SHARED_TOKENS: Final = 1500
FILE_LINES: Final = 150
_SCHEMA: Final[dict[str, Any]] = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {"name": {"type": "string"}, "size": {"type": "integer"}},
        "required": ["name", "size"],
        "additionalProperties": False,
    },
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One comparison: `times` says how many times better `ours` is than `peer`."""

    name: str
    ours: float
    peer: float
    unit: str
    times: float
    goal: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class SchedulingReport:
    """All comparisons of a run and what they were measured on."""

    model: str
    machine: str
    peer: str
    findings: tuple[Finding, ...]

    def to_json(self) -> dict[str, Any]:
        """A document for `--json`."""
        return asdict(self)


class _Forced:
    """Says what it was told to, at the price of looking at the logits."""

    def __init__(self, answer: Sequence[int]) -> None:
        self._answer = answer
        self._said = 0

    def choose(self, scores: Scores, mask: np.ndarray | None = None) -> int:
        logits = scores.all()
        np.argmax(logits if mask is None else np.where(mask, logits, -np.inf))
        return self._answer[min(self._said, len(self._answer) - 1)]

    def accept(self, token_id: int) -> None:
        del token_id
        self._said += 1


@dataclass(eq=False)
class Run:
    """Requests answered at once."""

    first_ms: float = 0.0
    seconds: float = 0.0
    usages: list[Usage] = field(default_factory=list[Usage])

    @property
    def num_tokens(self) -> int:
        """Tokens of all answers."""
        return sum(usage.completion_tokens for usage in self.usages)

    @property
    def decode_rate(self) -> float:
        """Tokens a second of the first answer, after its prompt."""
        return (self.usages[0].completion_tokens - 1) / self.usages[0].decode_ms * 1e3


class Bench:
    """A loaded model, asked in different ways. Every run begins with nothing cached unless told otherwise."""

    def __init__(self, path: Path, device: str, num_ctx: int) -> None:
        self.model = load_model(Load(str(path), num_ctx, device, num_slots=NUM_SLOTS, digest="bench"))

    def encode(self, text: str) -> list[int]:
        """Token ids of a prompt."""
        return self.model.tokenizer.encode(text)

    def answer(self, requests: Sequence[GenerateRequest], said: Sequence[int] = (), folder: Path | None = None) -> Run:
        """Answer requests at once; each says `said`, or what the model says where that is empty."""
        return self.run(self.batcher(said, folder), requests)

    def batcher(self, said: Sequence[int] = (), folder: Path | None = None) -> Desk:
        """Something that answers requests."""
        model = self.model
        if said:

            def forced(params: SamplingParams, history: Sequence[int]) -> _Forced:
                del params, history
                return _Forced(said)

            model = replace(model, new_sampler=forced)
        return Desk(model, folder)

    @staticmethod
    def run(desk: Desk, requests: Sequence[GenerateRequest]) -> Run:
        """Answer requests at once."""
        desk.run = run = Run()
        desk.started = time.perf_counter()
        for number, one in enumerate(requests):
            desk.batcher.add(Generate(number, one))
        while desk.batcher.has_work:
            desk.batcher.step()
        run.seconds = time.perf_counter() - desk.started
        return run

    def forget(self) -> None:
        """Overwrite every slot, as in a new process."""
        for slot in range(self.model.engine.num_slots):
            self.model.engine.score([Row(slot, 0, 0)])


class Desk:
    """A batcher whose messages are only counted."""

    def __init__(self, model: Model, folder: Path | None) -> None:
        self.run = Run()
        self.started = 0.0
        self.batcher = Batcher(model, self._hear, RowStore(model.engine, model.engine_key, folder))

    def _hear(self, message: Message) -> None:
        if isinstance(message, Piece | Finished) and not self.run.first_ms:
            self.run.first_ms = (time.perf_counter() - self.started) * 1e3
        if isinstance(message, Finished):
            self.run.usages.append(message.usage)
        elif isinstance(message, Failed):
            raise message.failure.to_exception()


def _request(prompt: str, num_tokens: int, seed: int = 0, **fields: Any) -> GenerateRequest:
    sampling = SamplingParams(temperature=0.8, seed=seed, max_tokens=num_tokens)
    return replace(GenerateRequest("bench", prompt=prompt, raw=True, sampling=sampling, draft=False), **fields)


def source_file() -> str:
    """A file of our own, as long as the edits are measured on."""
    lines = Path(__file__).read_text(encoding="utf-8").splitlines(keepends=True)
    return "".join(lines[:FILE_LINES])


def with_three_changes(text: str) -> str:
    """The file after an edit: a word in one line, a line more, a line less."""
    lines = text.splitlines(keepends=True)
    lines[30] = lines[30].rstrip("\n") + "  # seen\n"
    lines.insert(75, "    # three things are different here\n")
    del lines[next(index for index in range(120, len(lines)) if lines[index].strip())]
    return "".join(lines)


def measure(
    path: Path,
    *,
    device: str = "",
    num_ctx: int = 4096,
    rounds: int = 3,
    peer_python: str | None = None,
    only: Sequence[str] = (),
    progress: Callable[[str], None] = lambda _what: None,
) -> SchedulingReport:
    """Measure all comparisons, or those named in `only` (keys of PARTS).

    Raises:
        UnavailableError: the peer could not be started.
    """
    progress("loading")
    bench = Bench(path, device, num_ctx)
    bench.answer([_request(source_file()[:1200], 8, seed) for seed in range(NUM_SLOTS)])  # every slot's memory is there
    threads = os.cpu_count() or 1
    side = None
    if peer_python:
        script = str(Path(__file__).with_name("llama_cpp_batches.py"))
        command = [peer_python, script, str(path), "--num-ctx", str(num_ctx), "--threads", str(threads), "--slots", "4"]
        side = Side("llama.cpp", command)
    findings: list[Finding] = []
    try:
        for name, part in PARTS.items():
            if not only or name in only:
                progress(name)
                findings += part(bench, side, rounds)
    finally:
        if side is not None:
            side.close()
    machine = f"{platform.machine()}, {threads} threads, {bench.model.device}"
    return SchedulingReport(path.name, machine, side.about if side is not None else "", tuple(findings))


def _candidates(bench: Bench, _side: Side | None, rounds: int) -> list[Finding]:
    prompt = source_file()[:1200]
    ones: list[float] = []
    eights: list[float] = []
    for turn in range(rounds):
        one = bench.answer([_request(prompt, 64, turn)])
        eight = bench.answer([_request(prompt, 64, 10 * turn + seed) for seed in range(NUM_SLOTS)])
        ones.append(one.num_tokens / one.seconds)
        eights.append(eight.num_tokens / eight.seconds)
    ours, alone = median(eights), median(ones)
    return [Finding("8 candidates of one prompt over 1", ours, alone, "tok/s", ours / alone, ">= 2.5")]


def _concurrent(bench: Bench, side: Side | None, rounds: int) -> list[Finding]:
    if side is None:
        return []
    text = source_file()
    prompts = [text[300 * index :][:500] for index in range(4)]
    tokens = [bench.encode(prompt) for prompt in prompts]
    ours: list[float] = []
    theirs: list[float] = []
    said = bench.encode("x" * 200)[:1] * 96
    for _ in range(rounds):
        run = bench.answer([_request(prompt, 96) for prompt in prompts], said)
        ours.append(run.num_tokens / run.seconds)
        theirs.append(4 * 96 / side.ask("concurrent", tokens, 96))
    rate, peer = median(ours), median(theirs)
    return [Finding("4 requests at once over llama.cpp with 4 slots", rate, peer, "tok/s", rate / peer, ">= 1.2")]


def _edit(bench: Bench, side: Side | None, rounds: int) -> list[Finding]:
    before = source_file()
    said = bench.model.tokenizer.encode(with_three_changes(before), add_special=False)
    prompt = f"Change three things in this file.\n\n{before}\n\nThe whole new file:\n\n"
    one = _request(prompt, len(said))
    rates: dict[str, list[float]] = {"plain": [], "drafted": [], "llama.cpp": [], "llama.cpp n-gram": []}
    run = Run()
    tokens = bench.encode(prompt)
    for _ in range(rounds):
        rates["plain"].append(bench.answer([one], said).decode_rate)
        run = bench.answer([replace(one, draft=True, prediction=before)], said)
        rates["drafted"].append(run.decode_rate)
        if side is not None:
            for name, drafted in (("llama.cpp", False), ("llama.cpp n-gram", True)):
                rates[name].append((len(said) - 1) / side.ask("edit", tokens, said, drafted))
    usage = run.usages[0]
    acceptance = usage.accepted_tokens / max(1, usage.drafted_tokens)
    note = f"{usage.completion_tokens} tokens, {usage.drafted_tokens} guessed, {acceptance:.0%} right"
    ours = median(rates.pop("drafted"))
    goals = {"plain": "our own without drafts", "llama.cpp": "llama.cpp", "llama.cpp n-gram": "llama.cpp's n-grams"}
    wanted = {"plain": ">= 3", "llama.cpp": ">= 3.5", "llama.cpp n-gram": ">= 1.3"}
    return [
        Finding(f"whole-file edit, drafted, over {goals[name]}", ours, median(values), "tok/s",
                ours / median(values), wanted[name], note)
        for name, values in rates.items() if values
    ]  # fmt: skip


def _prefix(bench: Bench, _side: Side | None, rounds: int) -> list[Finding]:
    text = source_file() * 3
    ids = bench.encode(text)[1:SHARED_TOKENS]
    shared = b"".join(map(bench.model.tokenizer.token_bytes, ids)).decode(errors="ignore")
    first, second = _request(shared + "\n# one\n", 2), _request(shared + "\n# another\n", 2)
    cold: list[float] = []
    warm: list[float] = []
    restored: list[float] = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            desk = bench.batcher(folder=Path(folder))
            cold.append(bench.run(desk, [first]).first_ms)
            warm.append(bench.run(desk, [second]).first_ms)
            desk.batcher.save(60)
            bench.forget()
            run = bench.answer([second], folder=Path(folder))
            restored.append(run.first_ms)
            assert run.usages[0].cached_tokens >= SHARED_TOKENS - 8, "nothing was restored"
    name = f"time to first token behind {SHARED_TOKENS} shared tokens"
    whole = median(cold)
    return [
        Finding(f"{name}, warm", median(warm), whole, "ms", whole / median(warm), ">= 10"),
        Finding(f"{name}, from disk", median(restored), whole, "ms", whole / median(restored), ">= 5"),
    ]


def _grammar(bench: Bench, _side: Side | None, rounds: int) -> list[Finding]:
    document = "[" + ", ".join(f'{{"name": "file number {index}", "size": {index * 37}}}' for index in range(24)) + "]"
    said = bench.model.tokenizer.encode(document, add_special=False)
    one = _request("Files as JSON:\n", len(said))
    held = replace(one, output_schema=_SCHEMA)
    free: list[float] = []
    kept: list[float] = []
    for _ in range(2 * rounds):
        free.append(bench.answer([one], said).decode_rate)
        kept.append(bench.answer([held], said).decode_rate)
    ours, plain = median(kept), median(free)
    return [Finding("decoding under a JSON schema", ours, plain, "tok/s", ours / plain, ">= 0.95")]


PARTS: Final[dict[str, Callable[[Bench, Side | None, int], list[Finding]]]] = {
    "candidates": _candidates,
    "concurrent": _concurrent,
    "edit": _edit,
    "prefix": _prefix,
    "grammar": _grammar,
}
