"""What all dialects need to read and write JSON: a tolerant base model, sentences for what is wrong, events, images.

No dialect itself, and the only thing dialects share.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, TypeVar, cast

from pydantic import BaseModel, BeforeValidator, ValidationError, model_validator

from garzone.core.chat import ImagePart
from garzone.core.errors import InvalidRequest
from garzone.core.generation import GenerateRequest

Json = dict[str, Any]
EVENT_STREAM: Final = "text/event-stream"
MAX_TOP_LOGPROBS: Final = 20  # as OpenAI and Ollama allow

# What reasoning effort means to a model that thinks, as Ollama maps it; the same words in all dialects
EFFORTS: Final[Mapping[str, bool | str]] = {
    "none": False,
    "minimal": "low",
    "low": "low",
    "medium": "medium",
    "high": "high",
    "max": "max",
    "xhigh": "max",
    "ultra": "max",
}


class Wire(BaseModel, extra="ignore", allow_inf_nan=False):
    """Unknown fields are ignored; null means not given."""

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, value: Any) -> Any:
        return drop_nulls(value)


def drop_nulls(value: Any) -> Any:
    """An object without its nulls; anything else as it is."""
    if not isinstance(value, dict):
        return value
    return {key: item for key, item in cast(Json, value).items() if item is not None}


def _one_or_more(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Strings = Annotated[list[str], BeforeValidator(_one_or_more)]
"""A list of texts, or one of them alone."""

_AnyWire = TypeVar("_AnyWire", bound=BaseModel)


class OneAnswer:
    """What the exchanges have in common whose requests want one answer."""

    def choices(self, request: GenerateRequest) -> Sequence[GenerateRequest]:
        """The request alone."""
        return (request,)


def validate(kind: type[_AnyWire], body: Mapping[str, Any]) -> _AnyWire:
    """The body as `kind`. Raises InvalidRequest that names the field."""
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        raise InvalidRequest(_explain(error)) from error


_ALTERNATIVES: Final = frozenset({"str", "int", "float", "bool", "none"})


def _explain(error: ValidationError) -> str:
    """The first thing that is wrong, as `field.path: what`; the names of a union's alternatives are left out."""
    first = error.errors(include_url=False, include_context=False)[0]
    path = ".".join(str(part) for part in first["loc"] if not _is_alternative(part))
    return f"{path}: {first['msg']}" if path else str(first["msg"])


def _is_alternative(part: int | str) -> bool:
    """Whether a step of a path is the name of a type, as pydantic puts them there for unions."""
    return isinstance(part, str) and (part in _ALTERNATIVES or "[" in part or part[:1] == "_" or part[:1].isupper())


def think_of(effort: str, field: str) -> bool | str | None:
    """What a word for effort asks of a model; None where nothing is said. Raises InvalidRequest."""
    if not effort:
        return None
    if effort not in EFFORTS:
        raise InvalidRequest(f"{field}: '{effort}' is none of {', '.join(EFFORTS)}")
    return EFFORTS[effort]


def image_of_base64(text: str, media_type: str, field: str) -> ImagePart:
    """An image that came as base64. Raises InvalidRequest."""
    try:
        return ImagePart(base64.b64decode(text, validate=True), media_type)
    except (binascii.Error, ValueError) as error:
        raise InvalidRequest(f"{field}: not base64: {error}") from error


def image_of_url(url: str, field: str) -> ImagePart:
    """A `data:` URL; anything else would make the server fetch what a stranger names. Raises InvalidRequest."""
    head, comma, body = url.partition(",")
    if not (head.startswith("data:") and head.endswith(";base64") and comma):
        raise InvalidRequest(f"{field}: only data:...;base64 URLs are supported")
    return image_of_base64(body, head[len("data:") : -len(";base64")], field)


def arguments_of(value: str | Mapping[str, Any], field: str) -> Json:
    """A call's arguments, which came as an object or as its text. Raises InvalidRequest."""
    document: object = value
    if isinstance(value, str):
        try:
            document = json.loads(value or "{}")
        except (ValueError, RecursionError) as error:
            raise InvalidRequest(f"{field}: not JSON: {error}") from error
    if not isinstance(document, dict):
        raise InvalidRequest(f"{field}: must be a JSON object")
    return cast(Json, document)


def event(document: Mapping[str, Any], name: str | None = None) -> bytes:
    """One server-sent event, with an `event:` line where the dialect has them."""
    text = f"data: {json.dumps(document)}\n\n"
    return (f"event: {name}\n{text}" if name else text).encode()


def clamped_top_logprobs(given: int | None) -> int:
    """How many alternatives a token is listed with. Raises InvalidRequest."""
    if given is not None and not 0 <= given <= MAX_TOP_LOGPROBS:
        raise InvalidRequest(f"top_logprobs: must be from 0 to {MAX_TOP_LOGPROBS}")
    return given or 0


def strip_empty(stops: Sequence[str]) -> tuple[str, ...]:
    """Stop strings that can stop something."""
    return tuple(stop for stop in stops if stop)
