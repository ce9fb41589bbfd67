"""OpenAI's `/v1/embeddings`: numbers as JSON, or as base64 of little-endian float32."""

from __future__ import annotations

import base64
from array import array
from collections.abc import Mapping
from sys import byteorder
from typing import Any, Literal

from pydantic import Field

from garzone.core.errors import InvalidRequest
from garzone.core.generation import Embeddings
from garzone.server.dialects.wire import Strings, Wire, validate

MAX_INPUTS = 2048  # as OpenAI allows


class _Asked(Wire):
    model: str = Field(min_length=1, max_length=1024)
    input: Strings | list[int] | list[list[int]]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(None, ge=1)


class EmbeddingsExchange:
    """`/v1/embeddings`."""

    keep_alive_s: float | None = None
    truncate = False  # what is too long is an error in this dialect

    def __init__(self, body: Mapping[str, Any]) -> None:
        asked = validate(_Asked, body)
        inputs = [text for text in asked.input if isinstance(text, str)]
        if len(inputs) != len(asked.input):
            raise InvalidRequest(
                "input: token ids are of another model's vocabulary; send text (in LangChain: "
                "check_embedding_ctx_length=False)"
            )
        if not inputs or len(inputs) > MAX_INPUTS or not all(inputs):
            raise InvalidRequest(f"input: must be one to {MAX_INPUTS} texts, none of them empty")
        self.model = asked.model
        self.inputs = inputs
        self.dimensions = asked.dimensions
        self.unit_length = True
        self._as_base64 = asked.encoding_format == "base64"

    def document(self, embeddings: Embeddings) -> Mapping[str, Any]:
        """The answer."""
        num_tokens = sum(embeddings.num_tokens)
        return {
            "object": "list",
            "data": [
                {
                    "object": "embedding",
                    "index": index,
                    "embedding": _base64(vector) if self._as_base64 else list(vector),
                }
                for index, vector in enumerate(embeddings.vectors)
            ],
            "model": self.model,
            "usage": {"prompt_tokens": num_tokens, "total_tokens": num_tokens},
        }


def _base64(vector: tuple[float, ...]) -> str:
    numbers = array("f", vector)
    if byteorder == "big":
        numbers.byteswap()
    return base64.b64encode(numbers.tobytes()).decode("ascii")
