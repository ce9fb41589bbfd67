"""Ollama's `/api/embed`, whose vectors have length 1, and `/api/embeddings`, which leaves them as they are."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import Field

from garzone.core.errors import InvalidRequest
from garzone.core.generation import Embeddings
from garzone.server.dialects.ollama_options import parse_keep_alive, warn_of_unknown
from garzone.server.dialects.wire import Strings, Wire, validate


class _Asked(Wire):
    model: str = Field("", max_length=1024)
    name: str = Field("", max_length=1024)
    truncate: bool = True
    dimensions: int | None = Field(None, ge=0)
    keep_alive: float | str | None = None
    options: dict[str, Any] = {}


class _AskedMany(_Asked):
    input: Strings = []


class _AskedOne(_Asked):
    prompt: str = ""


_AnyAsked = TypeVar("_AnyAsked", bound=_Asked)


class _Exchange:
    def __init__(self, asked: _Asked, inputs: list[str], *, unit_length: bool = True) -> None:
        self.unit_length = unit_length
        self._started = time.perf_counter_ns()
        self.model = asked.model or asked.name
        self.inputs = inputs
        self.truncate = asked.truncate
        self.dimensions = asked.dimensions or None
        try:
            self.keep_alive_s = None if asked.keep_alive is None else parse_keep_alive(asked.keep_alive)
        except ValueError as error:
            raise InvalidRequest(f"keep_alive: {error}") from error


class EmbedExchange(_Exchange):
    """`/api/embed`: one text or several."""

    def __init__(self, body: Mapping[str, Any]) -> None:
        asked = _validated(_AskedMany, body)
        inputs = [] if asked.input == [""] else asked.input  # only loads, as an empty prompt does
        if not all(inputs):
            raise InvalidRequest("input: texts must not be empty")
        super().__init__(asked, inputs)

    def document(self, embeddings: Embeddings) -> Mapping[str, Any]:
        """The answer."""
        metrics = {
            "total_duration": time.perf_counter_ns() - self._started,
            "load_duration": round(embeddings.load_ms * 1e6),
            "prompt_eval_count": sum(embeddings.num_tokens),
        }
        vectors = [list(vector) for vector in embeddings.vectors]
        return {"model": self.model, "embeddings": vectors, **{key: value for key, value in metrics.items() if value}}


class EmbeddingsExchange(_Exchange):
    """`/api/embeddings`: one text."""

    def __init__(self, body: Mapping[str, Any]) -> None:
        asked = _validated(_AskedOne, body)
        super().__init__(asked, [asked.prompt] if asked.prompt else [], unit_length=False)

    def document(self, embeddings: Embeddings) -> Mapping[str, Any]:
        """The answer."""
        return {"embedding": list(embeddings.vectors[0]) if embeddings.vectors else []}


def _validated(kind: type[_AnyAsked], body: Mapping[str, Any]) -> _AnyAsked:
    asked = validate(kind, body)
    if not (asked.model or asked.name):
        raise InvalidRequest("model is required")
    warn_of_unknown(asked.options)
    return asked
