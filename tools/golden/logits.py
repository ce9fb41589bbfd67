"""Golden logits of SmolLM2-135M or Gemma 3 270M: by the float64 reference and by llama.cpp, flash attention or not.

    python tools/golden/logits.py SmolLM2-135M-Instruct.Q4_1.gguf tests/golden/smollm2.npz
    python tools/golden/logits.py gemma-3-270m-q4_k_m.gguf tests/golden/gemma3.npz

Needs llama-cpp-python (built for this machine) and gguf. Keeps, of each prompt's last row, the logits of some tokens
(the likeliest and a random choice), and the RMS error over the whole vocabulary.
"""

from __future__ import annotations

import platform
import sys
from pathlib import Path

import llama_cpp
import numpy as np
from reference64 import Reference

LIKELIEST, RANDOM = 64, 960

CODE = """def quicksort(items):
    if len(items) <= 1:
        return items
    pivot = items[len(items) // 2]
    left = [x for x in items if x < pivot]
    middle = [x for x in items if x == pivot]
    right = [x for x in items if x > pivot]
    return quicksort(left) + middle + quicksort(right)
"""
PROSE = (
    "The apprentice swept the floor before the master came in. He had learned to listen for the bell over the door, "
    "because the bell came before the voice, and the voice came before the work. That morning there was no bell. "
)


def chat(user: str, system: str = "You are a helpful AI assistant named SmolLM, trained by Hugging Face") -> str:
    return f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n"


PROMPTS = (
    "The capital of France is",
    "Once upon a time",
    "1, 1, 2, 3, 5, 8, 13,",
    "import numpy as np\n\ndef mean(x):\n    ",
    CODE + "\n\ndef mergesort(items):\n",
    chat("What is the capital of Italy?"),
    chat("Write a Python function that reverses a string."),
    chat("Fix the bug:\n```python\ndef add(a, b):\n    return a - b\n```", "You repair code. Answer with code only."),
    chat("List three prime numbers.", "Be brief."),
    chat("Traduci in inglese: il gatto dorme sul tetto."),
    "La vita è bella, ma",
    "Die Würde des Menschen ist",
    "東京は日本の",
    "SELECT name, COUNT(*) FROM users WHERE",
    "<html>\n  <head>\n    <title>",
    '{"name": "garzone", "version": "',
    "Q: If I have three apples and eat one, how many are left?\nA:",
    "The quick brown fox jumps over the lazy dog. " * 6,
    "a a a a a a a a a a a a a a a a a a a a a a a a",
    "\n\n\n",
    "The",
    PROSE,
    PROSE * 4,
    (CODE + "\n\n") * 8 + "# The function above",
)


def llama_logits(path: Path, prompts: list[list[int]], *, flash: bool) -> list[np.ndarray]:
    model = llama_cpp.Llama(str(path), n_ctx=2048, n_batch=512, n_threads=2, verbose=False, flash_attn=flash)
    rows: list[np.ndarray] = []
    for tokens in prompts:
        model.reset()
        model.eval(tokens)
        pointer = llama_cpp.llama_get_logits_ith(model.ctx, -1)
        rows.append(np.ctypeslib.as_array(pointer, (model.n_vocab(),)).copy())
    return rows


def main(path: Path, out: Path) -> None:
    model = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    add_bos = model.metadata.get("tokenizer.ggml.add_bos_token") == "true"
    prompts = [model.tokenize(text.encode(), add_bos=add_bos, special=True) for text in PROMPTS]
    reference = Reference(path)
    truth = [reference.logits(tokens, last_only=True)[-1] for tokens in prompts]
    flash, plain = (llama_logits(path, prompts, flash=flash) for flash in (True, False))

    def rms(rows: list[np.ndarray]) -> np.ndarray:
        return np.array([np.sqrt(((a - b) ** 2).mean()) for a, b in zip(rows, truth, strict=True)])

    rng = np.random.default_rng(0)
    chosen = [
        np.unique(np.concatenate([np.argsort(-row)[:LIKELIEST], rng.choice(len(row), RANDOM, replace=False)]))
        for row in truth
    ]

    def selected(rows: list[np.ndarray]) -> np.ndarray:
        return np.concatenate([row[at] for row, at in zip(rows, chosen, strict=True)]).astype(np.float32)

    id_type = np.min_scalar_type(model.n_vocab())
    arrays = {
        "tokens": np.concatenate([np.array(tokens, id_type) for tokens in prompts]),
        "num_tokens": np.array([len(tokens) for tokens in prompts]),
        "selected": np.concatenate(chosen).astype(id_type),
        "num_selected": np.array([len(at) for at in chosen]),
        "reference": selected(truth),
        "llama_flash": selected(flash),
        "llama_plain": selected(plain),
        "llama_flash_rms": rms(flash),
        "llama_plain_rms": rms(plain),
        "made_by": np.array(
            f"llama-cpp-python {llama_cpp.__version__} built natively, 2 threads, {platform.machine()}; "
            f"numpy {np.__version__}; llama.cpp says {llama_cpp.llama_print_system_info().decode()}"
        ),
    }
    np.savez_compressed(out, **arrays)
    for name in ("flash", "plain"):
        print(name, "rms over the vocabulary:", np.round(arrays[f"llama_{name}_rms"], 3))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
