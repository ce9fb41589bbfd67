"""Model families: one small file each says how it is configured; `decoder.py` is what they have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from garzone.core.errors import GGUFError, UnsupportedModel
from garzone.engine.architecture import gemma3, llama, qwen2, qwen3
from garzone.engine.architecture.config import ModelConfig

_FAMILIES: dict[str, Callable[[Mapping[str, Any], int, int], ModelConfig]] = {
    "gemma3": gemma3.configure,
    "llama": llama.configure,
    "qwen2": qwen2.configure,
    "qwen3": qwen3.configure,
}

SUPPORTED = tuple(sorted(_FAMILIES))


def configure(metadata: Mapping[str, Any], vocab_size: int, num_ctx: int) -> ModelConfig:
    """The model's configuration.

    Args:
        metadata: of the file.
        vocab_size: rows of the token embedding.
        num_ctx: tokens of context asked for.

    Raises:
        GGUFError: metadata that contradicts itself.
        UnsupportedModel: an architecture, or a feature of one, that is not implemented.
    """
    name = metadata.get("general.architecture")
    if not isinstance(name, str) or not name:
        raise GGUFError("metadata key 'general.architecture' is missing: the file does not say what model it holds")
    family = _FAMILIES.get(name)
    if family is None:
        raise UnsupportedModel(f"models of architecture {name!r} cannot be run; supported: {', '.join(SUPPORTED)}")
    return family(metadata, vocab_size, num_ctx)
