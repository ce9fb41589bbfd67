"""Logits of a model held against tools/golden/logits.py's: the float64 reference, and llama.cpp with its own errors."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Errors:
    """Root mean square over the prompts of RMS logit errors against the reference, and cosine with llama.cpp's.

    llama.cpp with and without flash attention are two; `theirs` is the better one.
    """

    num_prompts: int
    ours: float
    theirs: float
    cosine: float

    @property
    def ratio(self) -> float:
        """Ours over llama.cpp's."""
        return self.ours / self.theirs


def prompts(golden: Path) -> Iterator[tuple[list[int], np.ndarray, dict[str, np.ndarray]]]:
    """Tokens, selected token ids, and their golden logits by who computed them."""
    with np.load(golden) as file:
        arrays = {name: file[name] for name in file.files}
    token_ends, selected_ends = np.cumsum(arrays["num_tokens"]), np.cumsum(arrays["num_selected"])
    for index, (token_end, selected_end) in enumerate(zip(token_ends, selected_ends, strict=True)):
        part = slice(selected_end - arrays["num_selected"][index], selected_end)
        tokens = arrays["tokens"][token_end - arrays["num_tokens"][index] : token_end]
        rows = {name: arrays[name][part].astype(np.float64) for name in ("reference", "llama_flash", "llama_plain")}
        yield [int(token) for token in tokens], arrays["selected"][part].astype(np.int64), rows


def errors(golden: Path, logits: Callable[[Sequence[int]], np.ndarray]) -> Errors:
    """What `logits`, of the last of some tokens, gives beside the golden ones."""
    squares: dict[str, list[float]] = {"ours": [], "llama_flash": [], "llama_plain": []}
    pooled: dict[str, list[np.ndarray]] = {"ours": [], "llama_flash": [], "llama_plain": []}
    for tokens, selected, rows in prompts(golden):
        rows["ours"] = logits(tokens)[selected].astype(np.float64)
        for name, values in squares.items():
            values.append(float(((rows[name] - rows["reference"]) ** 2).mean()))
            pooled[name].append(rows[name])
    error = {name: float(np.sqrt(np.mean(values))) for name, values in squares.items()}
    best = min(("llama_flash", "llama_plain"), key=lambda name: error[name])
    a, b = np.concatenate(pooled["ours"]), np.concatenate(pooled[best])
    return Errors(len(squares["ours"]), error["ours"], error[best], float(a @ b / np.sqrt((a @ a) * (b @ b))))
