"""A dense decoder in float64 numpy, written to be read: what every faster one is measured against.

Weights are the dequantised ones of a GGUF file (by the `gguf` package, not by garzone). Slow and without a cache.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize


class Reference:
    """One model. `logits(tokens)` gives float64 (len(tokens), vocab_size)."""

    def __init__(self, path: Path) -> None:
        reader = GGUFReader(path)
        self.weights = {t.name: np.asarray(dequantize(t.data, t.tensor_type), np.float32) for t in reader.tensors}

        def key(name: str, default: object = None) -> object:
            field = reader.get_field(name)
            return default if field is None else field.contents()

        architecture = str(key("general.architecture"))
        self.num_layers = int(key(f"{architecture}.block_count"))  # type: ignore[arg-type]
        self.num_heads = int(key(f"{architecture}.attention.head_count"))  # type: ignore[arg-type]
        self.num_kv_heads = int(key(f"{architecture}.attention.head_count_kv", self.num_heads))  # type: ignore[arg-type]
        self.eps = float(key(f"{architecture}.attention.layer_norm_rms_epsilon"))  # type: ignore[arg-type]
        self.rope_base = float(key(f"{architecture}.rope.freq_base", 10000.0))  # type: ignore[arg-type]
        self.rope_factor = float(key(f"{architecture}.rope.scaling.factor", 1.0))  # type: ignore[arg-type]
        hidden = self.weights["token_embd.weight"].shape[1]
        self.head_dim = int(key(f"{architecture}.attention.key_length", hidden // self.num_heads))  # type: ignore[arg-type]
        self.rope_dims = int(key(f"{architecture}.rope.dimension_count", self.head_dim))  # type: ignore[arg-type]
        self.rope_halves = architecture != "llama"
        self.is_gemma = architecture == "gemma3"
        self.window = int(key(f"{architecture}.attention.sliding_window", 0))  # type: ignore[arg-type]

    def weight(self, name: str) -> np.ndarray:
        return self.weights[name].astype(np.float64)

    def linear(self, x: np.ndarray, name: str) -> np.ndarray:
        y = x @ self.weight(f"{name}.weight").T
        return y + self.weight(f"{name}.bias") if f"{name}.bias" in self.weights else y

    def norm(self, x: np.ndarray, name: str) -> np.ndarray:
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + self.eps) * self.weight(f"{name}.weight")

    def rotate(self, x: np.ndarray, is_local: bool) -> np.ndarray:
        """x is (tokens, heads, head_dim). Gemma's local layers have the base that is usual elsewhere, and no factor."""
        half = self.rope_dims // 2
        base, factor = (10000.0, 1.0) if is_local else (self.rope_base, self.rope_factor)
        frequency = base ** (-np.arange(half) / half) / factor
        if "rope_freqs.weight" in self.weights:
            frequency = frequency / self.weight("rope_freqs.weight")
        angle = np.arange(len(x))[:, None, None] * frequency
        cos, sin = np.cos(angle), np.sin(angle)
        first = slice(0, half) if self.rope_halves else slice(0, self.rope_dims, 2)
        second = slice(half, 2 * half) if self.rope_halves else slice(1, self.rope_dims, 2)
        out = x.copy()
        out[..., first] = x[..., first] * cos - x[..., second] * sin
        out[..., second] = x[..., first] * sin + x[..., second] * cos
        return out

    def heads(self, x: np.ndarray, name: str, count: int, is_local: bool) -> np.ndarray:
        """Queries or keys, normalised where the model does that, and rotated."""
        heads = self.linear(x, name).reshape(len(x), count, self.head_dim)
        return self.rotate(
            self.norm(heads, f"{name}_norm") if f"{name}_norm.weight" in self.weights else heads, is_local
        )

    def attention(self, x: np.ndarray, block: str, is_local: bool) -> np.ndarray:
        tokens, group = len(x), self.num_heads // self.num_kv_heads
        q = self.heads(x, block + "attn_q", self.num_heads, is_local)
        k = self.heads(x, block + "attn_k", self.num_kv_heads, is_local)
        v = self.linear(x, block + "attn_v").reshape(tokens, self.num_kv_heads, self.head_dim)
        k, v = np.repeat(k, group, axis=1), np.repeat(v, group, axis=1)
        scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(self.head_dim)
        seen = np.tril(np.ones((tokens, tokens), bool))
        if is_local:
            seen &= ~np.tril(np.ones((tokens, tokens), bool), -self.window)
        scores = np.where(seen, scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        mixed = np.einsum("hqk,khd->qhd", weights, v).reshape(tokens, -1)
        return self.linear(mixed, block + "attn_output")

    def feed_forward(self, x: np.ndarray, block: str) -> np.ndarray:
        gate, up = self.linear(x, block + "ffn_gate"), self.linear(x, block + "ffn_up")
        if self.is_gemma:
            gate = gate / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)))
        else:
            gate = gate / (1 + np.exp(-gate))
        return self.linear(gate * up, block + "ffn_down")

    def added(self, y: np.ndarray, norm: str) -> np.ndarray:
        """What a block adds to the states."""
        return self.norm(y, norm) if self.is_gemma else y

    def logits(self, tokens: list[int], *, last_only: bool = False) -> np.ndarray:
        x = self.weights["token_embd.weight"][tokens].astype(np.float64)
        if self.is_gemma:
            x = x * np.sqrt(x.shape[1])
        for index in range(self.num_layers):
            block = f"blk.{index}."
            is_local = self.is_gemma and index % 6 < 5
            attended = self.attention(self.norm(x, block + "attn_norm"), block, is_local)
            x = x + self.added(attended, block + "post_attention_norm")
            x = x + self.added(self.feed_forward(self.norm(x, block + "ffn_norm"), block), block + "post_ffw_norm")
        output = "output" if "output.weight" in self.weights else "token_embd"
        return self.linear(self.norm(x[-1:] if last_only else x, "output_norm"), output)
