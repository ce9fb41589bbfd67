"""An engine that a test can make slow, wrong or dead by what it asks; loaded inside a real runner process.

What it writes depends on every row of its slot, so that a row that should have been replaced shows in the answer.
"""

import codecs
import os
import signal
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from garzone.core.chat import Message, ToolSpec
from garzone.core.errors import UnsupportedModel
from garzone.core.generation import SamplingParams
from garzone.engine.drafter import PromptLookup
from garzone.engine.row import Row
from garzone.engine.scores import HostScores, Scores
from garzone.runner.model import FillIn, Model
from garzone.runner.protocol import Load
from garzone.testing import ByteTokenizer
from garzone.text.grammar import GrammarCompiler

END = 257
CHUNK = 16


class Tokenizer(ByteTokenizer):
    special_ids = frozenset({256, 257})


def next_byte(rows: Sequence[int]) -> int:
    return ord("a") + sum((index + 1) * token for index, token in enumerate(rows)) % 26


class ToyEngine:
    """Rows are the tokens they were computed from; whatever looks at a row that is not there fails."""

    chunk_tokens = CHUNK
    row_bytes = 4

    def __init__(self, num_slots: int = 1) -> None:
        self.num_slots = num_slots
        self.slots: list[list[int]] = [[] for _ in range(num_slots)]
        self.wanted: list[list[bool]] = [[] for _ in range(num_slots)]  # whether logits were wanted after a row
        self.num_steps = 0
        self.num_rows = 0
        self.num_begun = 0
        self.num_prepared = 0

    def score(self, rows: Sequence[Row]) -> Sequence[HostScores]:
        assert 0 < len(rows) <= CHUNK
        self.num_steps += 1
        self.num_rows += len(rows)
        return [HostScores(logits) for logits in map(self._row, rows) if logits is not None]

    def prepare_more(self) -> bool:
        self.num_prepared += 1
        return self.num_prepared < 3

    def hidden(self, rows: Sequence[Row]) -> np.ndarray:
        for row in rows:
            self._row(row)
        states = [[sum(self.slots[row.slot][: row.position + 1]), 1.0 + row.token_id] for row in rows]
        return np.array([state for state, row in zip(states, rows, strict=True) if row.wants_logits], np.float32)

    def copy_rows(self, from_slot: int, to_slot: int, num_rows: int) -> None:
        assert num_rows <= len(self.slots[from_slot])
        self.slots[to_slot] = self.slots[from_slot][:num_rows]
        self.wanted[to_slot] = [False] * num_rows

    def read_rows(self, slot: int, start: int, count: int) -> bytes:
        assert start + count <= len(self.slots[slot])
        return np.array(self.slots[slot][start : start + count], "<i4").tobytes()

    def write_rows(self, slot: int, start: int, count: int, data: bytes) -> None:
        assert len(data) == 4 * count
        self.slots[slot][start:] = np.frombuffer(data, "<i4").tolist()
        self.wanted[slot][start:] = [False] * count

    def _row(self, row: Row) -> np.ndarray | None:
        slot, wanted = self.slots[row.slot], self.wanted[row.slot]
        assert row.position <= len(slot), "a hole in the slot"
        slot[row.position :] = [row.token_id]
        wanted[row.position :] = [row.wants_logits]
        if not row.wants_logits:
            return None
        num_said = 0
        while num_said < row.position and wanted[row.position - 1 - num_said]:
            num_said += 1
        return self._logits(slot, num_said)

    def _logits(self, rows: list[int], num_said: int) -> np.ndarray:
        text = bytes(token for token in rows if token < 256)
        if b"SLOW" in text:
            time.sleep(0.02)
        if num_said == 0:
            self.num_begun += 1
        if num_said == 3:
            if b"DIE" in text:
                os.kill(os.getpid(), signal.SIGKILL)
            if b"HANG" in text:
                time.sleep(3600)
            if b"RAISE" in text:
                raise RuntimeError("device lost")
            if b"NAN" in text:
                return np.full(258, np.nan, np.float32)
            if b"PRINT" in text:
                print("a library that prints to stdout")
                os.write(1, b"or writes to it")
        logits = np.zeros(258, np.float32)
        if b"NTH" in text:  # a letter for the first answer of this process, the next one for the second, and so on
            logits[ord("a") + self.num_begun - 1] = 1.0
            return logits
        if b"SAY" in text:
            said = text.partition(b"SAY")[2].partition(b"YAS")[0]
            logits[said[num_said] if num_said < len(said) else END] = 1.0
            return logits
        token = END if b"END" in text and num_said == 5 else next_byte(rows)
        logits[token] = 1.0
        return logits


class GreedySampler:
    def __init__(self, params: SamplingParams, history: Sequence[int]) -> None:
        del params, history

    def choose(self, scores: Scores, mask: np.ndarray | None = None) -> int:
        logits = scores.all()
        return int((logits if mask is None else np.where(mask, logits, -np.inf)).argmax())

    def accept(self, token_id: int) -> None:
        pass


class ByteDetokenizer:
    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        return self._decoder.decode(bytes([token_id]) if token_id < 256 else b"")

    def finish(self) -> str:
        return self._decoder.decode(b"", True)


class PlainTemplate:
    def __init__(self, source: str = "") -> None:
        self.source = source

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[ToolSpec] = (),
        add_generation_prompt: bool = True,
        extra: Mapping[str, Any] | None = None,
    ) -> str:
        offered = "".join(f"tool {tool.name}\n" for tool in tools)
        opened = "<think>" if (extra or {}).get("enable_thinking") else ""
        turns = "".join(f"{message.role.value}: {message.text}\n" for message in messages)
        return self.source + offered + turns + opened


def build(context_tokens: int = 256, num_slots: int = 1, key: str = "") -> Model:
    tokenizer = Tokenizer()
    return Model(
        engine=ToyEngine(num_slots),
        tokenizer=tokenizer,
        context_tokens=context_tokens,
        device="TOY",
        memory_bytes=1000,
        template=PlainTemplate(),
        compile_template=PlainTemplate,
        new_detokenizer=ByteDetokenizer,
        new_sampler=GreedySampler,
        new_drafter=PromptLookup,
        compile_grammar=GrammarCompiler(tokenizer).compile,
        fill_in=FillIn((ord("<"),), (ord("|"),), (ord(">"),)),
        engine_key=key,
    )


def load(request: Load) -> Model:
    """The `module:function` that the runner process is started with; file names choose how loading goes."""
    if "broken" in request.path:
        raise UnsupportedModel("architecture 'toy' is unknown")
    if "dying" in request.path:
        print("out of everything", flush=True)
        os._exit(7)
    if "endless" in request.path:
        time.sleep(3600)
    if "slow" in request.path:
        time.sleep(0.5)
    return build(request.num_ctx, request.num_slots, request.digest)
