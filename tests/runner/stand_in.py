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
from garzone.runner.model import Model
from garzone.runner.protocol import Load
from garzone.testing import ByteTokenizer

END = 257
CHUNK = 16


class Tokenizer(ByteTokenizer):
    special_ids = frozenset({256, 257})


def next_byte(rows: Sequence[int]) -> int:
    return ord("a") + sum((index + 1) * token for index, token in enumerate(rows)) % 26


class ToyEngine:
    chunk_tokens = CHUNK

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.steps = 0

    def prefill(self, token_ids: Sequence[int], start: int) -> np.ndarray:
        assert 0 < len(token_ids) <= CHUNK
        assert start <= len(self.rows), "a hole in the slot"
        self.rows[start:] = token_ids
        self.steps = 0
        return self._logits()

    def decode(self, token_id: int, position: int) -> np.ndarray:
        assert position == len(self.rows), "decode must go on where the slot ends"
        self.rows.append(token_id)
        self.steps += 1
        return self._logits()

    def _logits(self) -> np.ndarray:
        text = bytes(token for token in self.rows if token < 256)
        if b"SLOW" in text:
            time.sleep(0.02)
        if self.steps == 3:
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
        if b"SAY" in text:
            said = text.partition(b"SAY")[2].partition(b"YAS")[0]
            logits[said[self.steps] if self.steps < len(said) else END] = 1.0
            return logits
        token = END if b"END" in text and self.steps == 5 else next_byte(self.rows)
        logits[token] = 1.0
        return logits


class GreedySampler:
    def __init__(self, params: SamplingParams, history: Sequence[int]) -> None:
        del params, history

    def sample(self, logits: np.ndarray) -> int:
        return int(logits.argmax())

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


def build(context_tokens: int = 256) -> Model:
    return Model(
        engine=ToyEngine(),
        tokenizer=Tokenizer(),
        context_tokens=context_tokens,
        device="TOY",
        memory_bytes=1000,
        template=PlainTemplate(),
        compile_template=PlainTemplate,
        new_detokenizer=ByteDetokenizer,
        new_sampler=GreedySampler,
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
    return build(request.num_ctx)
