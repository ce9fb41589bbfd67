"""Fakes and small real files for tests, shipped so that users' tests may use them too.

`ScriptedGenerator` writes what it was told, `ByteTokenizer` is the smallest honest tokeniser, and
`write_gguf` / `write_tiny_model` write real GGUF files. Nothing here is used in production.
"""

from __future__ import annotations

import struct
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from garzone.core.errors import GarzoneError, ModelNotFound
from garzone.core.generation import Delta, FinishReason, GenerateRequest, ModelDetails, ServedBy, Usage

Answer = str | GarzoneError | Callable[[GenerateRequest], str]


class ScriptedGenerator:
    """A TextGenerator that answers from a list, in order; the last answer repeats. Exceptions in the list are raised.

    `requests` records what was asked; `closed_early` counts streams that were closed before their end.
    """

    def __init__(
        self, answers: Sequence[Answer], *, model: str = "scripted", context_tokens: int = 8192, chunk_chars: int = 7
    ) -> None:
        self.answers = list(answers)
        self.model = model
        self.context_tokens = context_tokens
        self.chunk_chars = chunk_chars
        self.requests: list[GenerateRequest] = []
        self.closed_early = 0

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Delta]:
        """Stream the next answer in pieces of `chunk_chars` characters."""
        if request.model not in ("", self.model):
            raise ModelNotFound(request.model)
        answer = self.answers[min(len(self.requests), len(self.answers) - 1)]
        self.requests.append(request)
        if isinstance(answer, GarzoneError):
            raise answer
        text = answer if isinstance(answer, str) else answer(request)
        finished = False
        try:
            for start in range(0, len(text), self.chunk_chars):
                yield Delta(text=text[start : start + self.chunk_chars])
            prompt = request.prompt or "".join(message.text for message in request.messages)
            finished = True
            yield Delta(
                finish_reason=FinishReason.STOP,
                usage=Usage(prompt_tokens=len(prompt.split()), completion_tokens=len(text.split())),
            )
        finally:
            self.closed_early += not finished

    async def count_tokens(self, model: str, text: str) -> int:
        """One token for every four characters, rounded up."""
        return -(-len(text) // 4)

    async def details(self, model: str) -> ModelDetails:
        """A model that exists only here."""
        if model not in ("", self.model):
            raise ModelNotFound(model)
        return ModelDetails(name=self.model, context_tokens=self.context_tokens)

    async def served_by(self, model: str) -> ServedBy:
        """The fake says that it is one."""
        return ServedBy(model=model or self.model, backend="scripted")

    async def aclose(self) -> None:
        """Nothing to release."""


class ByteTokenizer:
    """One token a byte; ids 256 and 257 are the beginning and the end of a text."""

    vocab_size = 258
    bos_id = 256
    eos_ids = frozenset({257})

    def encode(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> list[int]:
        """UTF-8 bytes, with the beginning token in front if `add_special`."""
        return ([self.bos_id] if add_special else []) + list(text.encode())

    def token_bytes(self, token_id: int) -> bytes:
        """The byte itself; nothing for the two special tokens."""
        return bytes([token_id]) if token_id < 256 else b""


# --- GGUF, as https://github.com/ggml-org/ggml/blob/master/docs/gguf.md describes it

_U32, _I32, _F32, _BOOL, _STRING, _ARRAY, _U64 = 4, 5, 6, 7, 8, 9, 10
ALIGNMENT = 32
GGML_F32 = 0


def _string(text: str | bytes) -> bytes:
    raw = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _value(value: Any) -> tuple[int, bytes]:
    if isinstance(value, bool):
        return _BOOL, struct.pack("<?", value)
    if isinstance(value, int):
        return (_U32, struct.pack("<I", value)) if 0 <= value < 1 << 32 else (_U64, struct.pack("<Q", value))
    if isinstance(value, float):
        return _F32, struct.pack("<f", value)
    if isinstance(value, str | bytes):
        return _STRING, _string(value)
    items = list(value)
    if items and isinstance(items[0], str | bytes):
        kind, body = _STRING, b"".join(_string(item) for item in items)
    elif items and isinstance(items[0], float):
        kind, body = _F32, np.asarray(items, np.float32).tobytes()
    else:
        kind, body = _I32, np.asarray(items, np.int32).tobytes()
    return _ARRAY, struct.pack("<IQ", kind, len(items)) + body


def write_gguf(
    path: Path,
    metadata: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray | tuple[int, tuple[int, ...], bytes]],
    *,
    version: int = 3,
) -> Path:
    """Write a GGUF file.

    Args:
        path: where.
        metadata: str, bool, int, float, or lists of one of them (ints as INT32, floats as FLOAT32).
        tensors: float arrays of shape (rows, columns), written as F32, or (ggml type, shape, packed bytes).
        version: 2 or 3; the two differ only in the number.

    Returns:
        `path`.
    """
    blobs = {
        name: (GGML_F32, t.shape, np.ascontiguousarray(t, np.float32).tobytes()) if isinstance(t, np.ndarray) else t
        for name, t in tensors.items()
    }
    head = struct.pack("<4sIQQ", b"GGUF", version, len(blobs), len(metadata))
    for key, value in metadata.items():
        kind, body = _value(value)
        head += _string(key) + struct.pack("<I", kind) + body
    offset = 0
    for name, (kind, shape, raw) in blobs.items():
        dims = shape[::-1]  # GGUF lists the contiguous dimension first
        head += _string(name) + struct.pack("<I", len(dims)) + struct.pack(f"<{len(dims)}Q", *dims)
        head += struct.pack("<IQ", kind, offset)
        offset += -(-len(raw) // ALIGNMENT) * ALIGNMENT
    with path.open("wb") as file:
        file.write(head + b"\0" * (-len(head) % ALIGNMENT))
        for _, _, raw in blobs.values():
            file.write(raw + b"\0" * (-len(raw) % ALIGNMENT))
    return path


def byte_level_alphabet() -> list[str]:
    """The 256 characters that stand for bytes in GPT-2's byte-level BPE, in byte order."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    shifted = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(shifted)) for byte in range(256)]


def tiny_vocabulary() -> dict[str, Any]:
    """GGUF metadata of a byte-level BPE vocabulary of 260 tokens with a ChatML template."""
    merges = ["d e", "r e"]
    tokens = [*byte_level_alphabet(), "de", "re", "<|im_start|>", "<|im_end|>"]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1] * 258 + [3] * 2,
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": 258,
        "tokenizer.ggml.eos_token_id": 259,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": (
            "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
            "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
        ),
    }


def write_tiny_model(
    path: Path,
    *,
    architecture: str = "llama",
    seed: int = 0,
    num_layers: int = 2,
    hidden: int = 64,
    feed_forward: int = 128,
    num_heads: int = 4,
    num_kv_heads: int = 2,
    context_length: int = 512,
    tied: bool = False,
) -> Path:
    """Write a random `llama` or `qwen2` model that loads, runs and answers nonsense.

    Returns:
        `path`.
    """
    rng = np.random.default_rng(seed)
    vocabulary = tiny_vocabulary()
    vocab_size, head_dim = len(vocabulary["tokenizer.ggml.tokens"]), hidden // num_heads

    def matrix(rows: int, columns: int) -> np.ndarray:
        return rng.standard_normal((rows, columns)).astype(np.float32) / np.float32(columns) ** 0.5

    def vector(size: int, around: float) -> np.ndarray:
        return (around + 0.1 * rng.standard_normal(size)).astype(np.float32)

    tensors: dict[str, np.ndarray] = {"token_embd.weight": rng.standard_normal((vocab_size, hidden)).astype(np.float32)}
    for layer in range(num_layers):
        block = f"blk.{layer}."
        tensors[block + "attn_norm.weight"] = vector(hidden, 1.0)
        tensors[block + "ffn_norm.weight"] = vector(hidden, 1.0)
        for name, heads in (("q", num_heads), ("k", num_kv_heads), ("v", num_kv_heads)):
            tensors[block + f"attn_{name}.weight"] = matrix(heads * head_dim, hidden)
            if architecture == "qwen2":
                tensors[block + f"attn_{name}.bias"] = vector(heads * head_dim, 0.0)
            if architecture == "qwen3" and name != "v":
                tensors[block + f"attn_{name}_norm.weight"] = vector(head_dim, 1.0)
        tensors[block + "attn_output.weight"] = matrix(hidden, num_heads * head_dim)
        tensors[block + "ffn_gate.weight"] = matrix(feed_forward, hidden)
        tensors[block + "ffn_up.weight"] = matrix(feed_forward, hidden)
        tensors[block + "ffn_down.weight"] = matrix(hidden, feed_forward)
    tensors["output_norm.weight"] = vector(hidden, 1.0)
    if not tied:
        tensors["output.weight"] = matrix(vocab_size, hidden)
    metadata = {
        "general.architecture": architecture,
        "general.name": "tiny",
        "general.file_type": 0,
        f"{architecture}.block_count": num_layers,
        f"{architecture}.context_length": context_length,
        f"{architecture}.embedding_length": hidden,
        f"{architecture}.feed_forward_length": feed_forward,
        f"{architecture}.attention.head_count": num_heads,
        f"{architecture}.attention.head_count_kv": num_kv_heads,
        f"{architecture}.attention.layer_norm_rms_epsilon": 1e-5,
        f"{architecture}.rope.freq_base": 10000.0,
        f"{architecture}.rope.dimension_count": head_dim,
        f"{architecture}.vocab_size": vocab_size,
        **vocabulary,
    }
    return write_gguf(path, metadata, tensors)
