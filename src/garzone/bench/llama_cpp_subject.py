"""The other side of a speed comparison: llama.cpp through `llama-cpp-python`, in an interpreter that has it.

Answers the lines that `subject.py` describes. Imports nothing of garzone: the other interpreter runs it as a file.
"""
# pyright: basic, reportMissingImports=false, reportAttributeAccessIssue=false

from __future__ import annotations

import argparse
import ctypes
import json
import resource
import sys
import time
from pathlib import Path

import llama_cpp

MAXRSS_UNIT = 1 if sys.platform == "darwin" else 1024


class Subject:
    """llama.cpp's low-level interface behind the three operations."""

    def __init__(self, path: str, num_ctx: int, threads: int, flash_attention: bool) -> None:
        self._silence = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self._silence, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx, parameters.n_batch, parameters.n_ubatch = num_ctx, 512, 512
        parameters.n_threads = parameters.n_threads_batch = threads
        parameters.flash_attn_type = 1 if flash_attention else 0
        self.context = llama_cpp.llama_init_from_model(self.model, parameters)
        self.vocab = llama_cpp.llama_model_get_vocab(self.model)
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(self.vocab)

    def _evaluate(self, tokens: list[int]) -> None:
        array = (llama_cpp.llama_token * len(tokens))(*tokens)
        if llama_cpp.llama_decode(self.context, llama_cpp.llama_batch_get_one(array, len(tokens))) != 0:
            raise SystemExit("llama_decode failed")

    def prefill(self, count: int) -> float:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
        tokens = [(100 + 37 * index) % min(self.vocab_size, 40_000) for index in range(count)]
        started = time.perf_counter()
        for start in range(0, count, 512):
            self._evaluate(tokens[start : start + 512])
        llama_cpp.llama_get_logits_ith(self.context, -1)
        return time.perf_counter() - started

    def decode(self, position: int, count: int) -> list[float]:
        self.prefill(position)
        times = []
        token = 100
        for _ in range(count):
            started = time.perf_counter()
            self._evaluate([token])
            logits = llama_cpp.llama_get_logits_ith(self.context, -1)
            times.append(time.perf_counter() - started)
            token = max(range(0, self.vocab_size, 64), key=logits.__getitem__)  # any next token will do
        return times

    @staticmethod
    def memory() -> int:
        if sys.platform == "linux":  # ru_maxrss is inherited through exec: it may be that of whoever started this
            status = Path("/proc/self/status").read_text()
            return int(status.split("VmHWM:")[1].split()[0]) << 10
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * MAXRSS_UNIT


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("path")
    parser.add_argument("--num-ctx", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--flash-attention", type=int, default=0)
    arguments = parser.parse_args()
    subject = Subject(arguments.path, arguments.num_ctx, arguments.threads, bool(arguments.flash_attention))
    print(json.dumps({"ready": f"llama.cpp, flash attention {arguments.flash_attention}"}), flush=True)
    for line in sys.stdin:
        operation, *parameters = json.loads(line)
        print(json.dumps(getattr(subject, operation)(*parameters)), flush=True)


if __name__ == "__main__":
    main()
