"""Tiny random models as `transformers` knows them, and their conversion to GGUF: both sides start from these arrays.

The conversion follows llama.cpp's convert_hf_to_gguf.py: llama's q and k rows are permuted, because GGUF rotates
adjacent pairs where transformers rotates halves.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from garzone.testing import tiny_vocabulary, write_gguf

TOKENS = [[1, 5, 9, 200, 3, 17, 60, 31], [42], list(range(30, 90)), [7] * 20]


@dataclass(frozen=True)
class Variant:
    """A model by its transformers configuration."""

    name: str
    architecture: str
    num_heads: int = 4
    num_kv_heads: int = 2
    hidden: int = 64
    feed_forward: int = 96
    num_layers: int = 3
    head_dim: int = 16
    rope_base: float = 10000.0
    rope_scaling: tuple[tuple[str, Any], ...] = ()
    tied: bool = False
    vocab_size: int = 260
    seed: int = 0
    window: int = 0  # of Gemma's local layers
    global_every: int = 6

    def config(self) -> dict[str, Any]:
        """config.json."""
        return {
            "architectures": [_CLASSES[self.architecture]],
            "model_type": self.architecture,
            "hidden_size": self.hidden,
            "intermediate_size": self.feed_forward,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "vocab_size": self.vocab_size,
            "max_position_embeddings": 256,
            "rms_norm_eps": 1e-5,
            "rope_parameters": {"rope_type": "default", "rope_theta": self.rope_base, **dict(self.rope_scaling)},
            "tie_word_embeddings": self.tied,
            "hidden_act": "silu",
            "torch_dtype": "float32",
        } | (self._gemma_config() if self.architecture == "gemma3" else {})

    def _gemma_config(self) -> dict[str, Any]:
        everywhere = {"rope_type": "default", "rope_theta": self.rope_base, **dict(self.rope_scaling)}
        nearby = {"rope_type": "default", "rope_theta": LOCAL_BASE}
        return {
            "model_type": "gemma3_text",
            "rope_parameters": {"full_attention": everywhere, "sliding_attention": nearby},
            "query_pre_attn_scalar": self.head_dim,
            "sliding_window": self.window,
            "sliding_window_pattern": self.global_every,
            "hidden_activation": "gelu_pytorch_tanh",
        }

    @property
    def norm_weight(self) -> float:
        """What the weights of norms lie around: Gemma's are what is added to 1."""
        return 0.0 if self.architecture == "gemma3" else 1.0

    def weights(self) -> dict[str, np.ndarray]:
        """Tensors by their names in a safetensors file."""
        rng = np.random.default_rng(self.seed)

        def matrix(rows: int, columns: int) -> np.ndarray:
            return (rng.standard_normal((rows, columns)) / columns**0.5).astype(np.float32)

        def vector(size: int, around: float) -> np.ndarray:
            return (around + 0.1 * rng.standard_normal(size)).astype(np.float32)

        query, key = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        # Gemma multiplies what it embeds by that root
        spread = 1.0 if self.architecture == "gemma3" else self.hidden**0.5
        tensors = {"model.embed_tokens.weight": matrix(self.vocab_size, self.hidden) * np.float32(spread)}
        for index in range(self.num_layers):
            block = f"model.layers.{index}."
            tensors[block + "input_layernorm.weight"] = vector(self.hidden, self.norm_weight)
            tensors[block + "post_attention_layernorm.weight"] = vector(self.hidden, self.norm_weight)
            if self.architecture == "gemma3":
                tensors[block + "pre_feedforward_layernorm.weight"] = vector(self.hidden, self.norm_weight)
                tensors[block + "post_feedforward_layernorm.weight"] = vector(self.hidden, self.norm_weight)
            if self.architecture in ("gemma3", "qwen3"):
                for part in "qk":
                    tensors[f"{block}self_attn.{part}_norm.weight"] = vector(self.head_dim, self.norm_weight)
            for part, rows in (("q", query), ("k", key), ("v", key)):
                tensors[f"{block}self_attn.{part}_proj.weight"] = matrix(rows, self.hidden)
                if self.architecture == "qwen2":
                    tensors[f"{block}self_attn.{part}_proj.bias"] = vector(rows, 0.0)
            tensors[block + "self_attn.o_proj.weight"] = matrix(self.hidden, query)
            tensors[block + "mlp.gate_proj.weight"] = matrix(self.feed_forward, self.hidden)
            tensors[block + "mlp.up_proj.weight"] = matrix(self.feed_forward, self.hidden)
            tensors[block + "mlp.down_proj.weight"] = matrix(self.hidden, self.feed_forward)
        tensors["model.norm.weight"] = vector(self.hidden, self.norm_weight)
        if not self.tied:
            tensors["lm_head.weight"] = matrix(self.vocab_size, self.hidden)
        return tensors


VARIANTS = (
    Variant("llama", "llama"),
    Variant("llama-wide-heads", "llama", num_heads=3, num_kv_heads=1, head_dim=32, hidden=72, seed=1),
    Variant("llama-linear-rope", "llama", rope_scaling=(("rope_type", "linear"), ("factor", 4.0)), tied=True, seed=2),
    Variant(
        "llama-3.1-rope",
        "llama",
        rope_base=500.0,
        rope_scaling=(
            ("rope_type", "llama3"),
            ("factor", 8.0),
            ("low_freq_factor", 1.0),
            ("high_freq_factor", 4.0),
            ("original_max_position_embeddings", 64),
        ),
        seed=3,
    ),
    Variant("qwen2", "qwen2", rope_base=1000000.0, seed=4),
    Variant("qwen2-tied", "qwen2", num_heads=6, num_kv_heads=2, tied=True, seed=5),
    Variant("qwen3", "qwen3", rope_base=1000000.0, head_dim=32, tied=True, seed=6),
    Variant("gemma3", "gemma3", num_layers=4, num_kv_heads=1, tied=True, window=8, global_every=3, seed=7),
    Variant(
        "gemma3-linear-rope",
        "gemma3",
        num_layers=7,
        rope_base=1000000.0,
        rope_scaling=(("rope_type", "linear"), ("factor", 8.0)),
        tied=True,
        window=24,
        seed=8,
    ),
)
LOCAL_BASE = 10000.0
_CLASSES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma3": "Gemma3ForCausalLM",
}

_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


_NAMES_OF_GEMMA = _NAMES | {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}


def _gguf_name(name: str, architecture: str) -> str:
    stem, kind = name.rsplit(".", 1)
    if stem.startswith("model.layers."):
        _, _, index, rest = stem.split(".", 3)
        return f"blk.{index}.{(_NAMES_OF_GEMMA if architecture == 'gemma3' else _NAMES)[rest]}.{kind}"
    return f"{_NAMES[stem]}.{kind}"


def _llama3_factors(variant: Variant) -> np.ndarray:
    """What convert_hf_to_gguf.py writes as rope_freqs.weight: by how much each frequency is divided."""
    scaling = dict(variant.rope_scaling)
    dims = variant.head_dim
    factors: list[float] = []
    for frequency in variant.rope_base ** (-np.arange(0, dims, 2) / dims):
        length = 2 * np.pi / frequency
        old = scaling["original_max_position_embeddings"]
        low, high = old / scaling["low_freq_factor"], old / scaling["high_freq_factor"]
        if length < high:
            factors.append(1.0)
        elif length > low:
            factors.append(scaling["factor"])
        else:
            smooth = (old / length - scaling["low_freq_factor"]) / (
                scaling["high_freq_factor"] - scaling["low_freq_factor"]
            )
            factors.append(1 / ((1 - smooth) / scaling["factor"] + smooth))
    return np.array(factors, np.float32)


def write_converted(variant: Variant, path: Path) -> Path:
    """The variant as a GGUF file."""
    tensors, metadata = converted(variant)
    return write_gguf(path, metadata, tensors)


def converted(variant: Variant) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The variant's tensors and metadata as a GGUF file has them."""
    tensors: dict[str, np.ndarray] = {}
    for name, tensor in variant.weights().items():
        stored = tensor
        if variant.architecture == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            heads = variant.num_heads if "q_proj" in name else variant.num_kv_heads
            halves = tensor.reshape(heads, 2, variant.head_dim // 2, -1)
            stored = halves.swapaxes(1, 2).reshape(tensor.shape)
        elif variant.architecture == "gemma3" and name.endswith("norm.weight"):
            stored = tensor + np.float32(1)
        tensors[_gguf_name(name, variant.architecture)] = stored
    scaling, prefix = dict(variant.rope_scaling), variant.architecture
    metadata: dict[str, Any] = {
        "general.architecture": prefix,
        f"{prefix}.block_count": variant.num_layers,
        f"{prefix}.context_length": 256,
        f"{prefix}.embedding_length": variant.hidden,
        f"{prefix}.feed_forward_length": variant.feed_forward,
        f"{prefix}.attention.head_count": variant.num_heads,
        f"{prefix}.attention.head_count_kv": variant.num_kv_heads,
        f"{prefix}.attention.layer_norm_rms_epsilon": 1e-5,
        f"{prefix}.attention.key_length": variant.head_dim,
        f"{prefix}.attention.value_length": variant.head_dim,
        f"{prefix}.rope.freq_base": variant.rope_base,
        f"{prefix}.rope.dimension_count": variant.head_dim,
        **tiny_vocabulary(),
    }
    if variant.window:
        metadata[f"{prefix}.attention.sliding_window"] = variant.window
    if variant.global_every != 6:  # what a file without the key means
        metadata[f"{prefix}.attention.sliding_window_pattern"] = variant.global_every
    if scaling.get("rope_type") == "linear":
        metadata |= {f"{prefix}.rope.scaling.type": "linear", f"{prefix}.rope.scaling.factor": scaling["factor"]}
    if scaling.get("rope_type") == "llama3":
        tensors["rope_freqs.weight"] = _llama3_factors(variant)
    return tensors, metadata
