"""The other side of `garzone bench scheduling`: llama.cpp through `llama-cpp-python`, in an interpreter that has it.

Answers the lines that `scheduling.py` sends. Imports nothing of garzone: the other interpreter runs it as a file. Uses
llama.cpp's own interface, without a server around it, as garzone's side is measured without one. Drafts are found by
llama-cpp-python's `LlamaPromptLookupDecoding` with its own defaults (two tokens agree, ten are guessed).
"""
# pyright: basic, reportMissingImports=false, reportAttributeAccessIssue=false

from __future__ import annotations

import argparse
import ctypes
import json
import sys
import time

import llama_cpp
import numpy as np
from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

CHUNK = 512


class Subject:
    """Sequences in one context, computed in batches."""

    def __init__(self, path: str, num_ctx: int, threads: int, num_slots: int) -> None:
        self._silence = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self._silence, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx, parameters.n_batch, parameters.n_ubatch = num_ctx * num_slots, CHUNK, CHUNK
        parameters.n_seq_max = num_slots
        parameters.n_threads = parameters.n_threads_batch = threads
        self.context = llama_cpp.llama_init_from_model(self.model, parameters)
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.batch = llama_cpp.llama_batch_init(CHUNK, 0, 1)
        self.drafter = LlamaPromptLookupDecoding()

    def _evaluate(self, rows: list[tuple[int, int, int, bool]]) -> list[int]:
        """Rows of (sequence, position, token, whether its best next token is wanted), and those tokens."""
        batch = self.batch
        batch.n_tokens = len(rows)
        for index, (sequence, position, token, wanted) in enumerate(rows):
            batch.token[index], batch.pos[index], batch.logits[index] = token, position, wanted
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = sequence
        if llama_cpp.llama_decode(self.context, batch) != 0:
            raise SystemExit("llama_decode failed")
        best = []
        for index, row in enumerate(rows):
            if row[3]:
                logits = llama_cpp.llama_get_logits_ith(self.context, index)
                best.append(int(np.argmax(np.ctypeslib.as_array(logits, (self.vocab_size,)))))
        return best

    def _prefill(self, sequence: int, prompt: list[int]) -> int:
        llama_cpp.llama_memory_seq_rm(llama_cpp.llama_get_memory(self.context), sequence, -1, -1)
        best = [0]
        for start in range(0, len(prompt), CHUNK):
            chunk = prompt[start : start + CHUNK]
            last = start + len(chunk) - 1
            best = self._evaluate([(sequence, start + i, token, start + i == last) for i, token in enumerate(chunk)])
        return best[-1]

    def concurrent(self, prompts: list[list[int]], num_tokens: int) -> float:
        """Seconds to answer all prompts at once, prefill included."""
        started = time.perf_counter()
        tokens = [self._prefill(sequence, prompt) for sequence, prompt in enumerate(prompts)]
        for step in range(num_tokens - 1):
            tokens = self._evaluate([(i, len(prompt) + step, tokens[i], True) for i, prompt in enumerate(prompts)])
        return time.perf_counter() - started

    def edit(self, prompt: list[int], answer: list[int], drafted: bool) -> float:
        """Seconds to write an answer that is forced along the given one, after its prompt."""
        self._prefill(0, prompt)
        memory = llama_cpp.llama_get_memory(self.context)
        text = [*prompt, answer[0]]
        started = time.perf_counter()
        while len(text) < len(prompt) + len(answer):
            said = len(text) - len(prompt)
            room = len(answer) - said - 1
            draft = self.drafter(np.array(text, np.intc))[: max(room, 0)].tolist() if drafted else []
            start = len(text) - 1
            self._evaluate([(0, start + i, token, True) for i, token in enumerate([text[-1], *draft])])
            right = 0
            while right < len(draft) and draft[right] == answer[said + right]:
                right += 1
            text += answer[said : said + right + 1]
            llama_cpp.llama_memory_seq_rm(memory, 0, len(text) - 1, -1)
        return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("path")
    parser.add_argument("--num-ctx", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--slots", type=int, default=4)
    arguments = parser.parse_args()
    subject = Subject(arguments.path, arguments.num_ctx, arguments.threads, arguments.slots)
    print(json.dumps({"ready": f"llama.cpp of llama-cpp-python {llama_cpp.__version__}"}), flush=True)
    for line in sys.stdin:
        operation, *parameters = json.loads(line)
        print(json.dumps(getattr(subject, operation)(*parameters)), flush=True)


if __name__ == "__main__":
    main()
