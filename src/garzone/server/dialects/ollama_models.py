"""Ollama's documents about models: `/api/tags`, `/api/show`, `/api/ps`. Translates what is known, asks nobody."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, cast

from garzone.core.generation import LoadedModel, ModelDetails
from garzone.core.recipe import TensorSummary
from garzone.text.modelfile import render_modelfile

FOR_EVER: Final = "2318-01-01T00:00:00Z"  # Ollama adds its longest duration, 292 years, to now


def tags_document(models: Sequence[ModelDetails]) -> dict[str, Any]:
    """`/api/tags`: the models on disk."""
    return {
        "models": [
            {**_identity(model), "modified_at": timestamp(model.modified_at), "capabilities": list(model.capabilities)}
            for model in models
        ]
    }


def ps_document(models: Sequence[LoadedModel]) -> dict[str, Any]:
    """`/api/ps`: the models in memory. `size_vram` is what of it is on a device other than the CPU."""
    return {
        "models": [
            {
                **_identity(model.details),
                "size": model.memory_bytes,
                "size_vram": 0 if model.device.upper().startswith("CPU") else model.memory_bytes,
                "expires_at": FOR_EVER if model.expires_at is None else timestamp(model.expires_at),
                "context_length": model.context_tokens,
                "kv_cache_type": model.kv_cache.value,
            }
            for model in models
        ]
    }


def show_document(model: ModelDetails, tensors: Sequence[TensorSummary] | None = None) -> dict[str, Any]:
    """`/api/show`. `model_info` is the file's metadata, without its vocabulary; `tensors` are for who asks for them."""
    parameters = [(name, value) for name, values in model.parameters.items() for value in values]
    document: dict[str, Any] = {
        "modelfile": render_modelfile(model),
        "parameters": "\n".join(f"{name:<30} {_quoted(value)}" for name, value in parameters),
        "template": model.template,
        "details": _details(model),
        "model_info": _json_safe(model.model_info),
        "capabilities": list(model.capabilities),
        "modified_at": timestamp(model.modified_at),
    }
    if model.license:
        document["license"] = model.license
    if model.system:
        document["system"] = model.system
    if model.messages:
        document["messages"] = [{"role": each.role.value, "content": each.text} for each in model.messages]
    if tensors is not None:
        document["tensors"] = [
            {"name": tensor.name, "type": tensor.kind, "shape": list(tensor.shape)} for tensor in tensors
        ]
    return document


def timestamp(seconds: float) -> str:
    """RFC 3339."""
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


def _identity(model: ModelDetails) -> dict[str, Any]:
    return {
        "name": model.name,
        "model": model.name,
        "size": model.size_bytes,
        "digest": model.digest.removeprefix("sha256:"),
        "details": _details(model),
    }


def _details(model: ModelDetails) -> dict[str, Any]:
    return {
        "parent_model": "",
        "format": "gguf",
        "family": model.family,
        "families": [model.family] if model.family else [],
        "parameter_size": model.parameter_size,
        "quantization_level": model.quantization,
        "context_length": model.context_tokens,
        "embedding_length": model.embedding_length,
    }


def _quoted(value: str) -> str:
    return value if re.fullmatch(r"-?[0-9.]+|true|false", value) else json.dumps(value, ensure_ascii=False)


def _json_safe(value: Any) -> Any:
    """Metadata as JSON has it: arrays of numbers (numpy's) as lists, infinities as null."""
    if isinstance(value, Mapping):
        return {str(key): _json_safe(item) for key, item in cast("Mapping[Any, Any]", value).items()}
    if hasattr(value, "tolist"):
        return _json_safe(value.tolist())
    if isinstance(value, list | tuple):
        return [_json_safe(item) for item in cast("Sequence[Any]", value)]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
