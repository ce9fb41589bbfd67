"""Ollama's documents about changing the store: pull, create, copy, delete. Translates, opens nothing."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

from garzone.core.chat import Message, Role
from garzone.core.errors import InvalidRequest
from garzone.core.recipe import ModelRecipe

_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
_PATH: Final = re.compile(r"[/~.\\]|(?!hf:|pypi:).*\.gguf\Z", re.IGNORECASE)


def name_of(body: Mapping[str, Any], *keys: str) -> str:
    """The model a request is about. Raises InvalidRequest, in the same words whether or not there is such a file."""
    for key in keys:
        value = body.get(key)
        if isinstance(value, str) and value:
            return checked_name(value)
    raise InvalidRequest(f"{keys[0]} is required")


def checked_name(name: str) -> str:
    """A name that is no path: nobody can ask by HTTP which files there are."""
    if _PATH.match(name):
        raise InvalidRequest(f"{name[:80]!r} is a path; this route takes names of models")
    return name


def progress_line(what: str, done: int, total: int) -> dict[str, Any]:
    """One line of a pull or create, in the words that clients look for."""
    if what == "fetching the manifest":
        return {"status": "pulling manifest"}
    if what == "writing the manifest":
        return {"status": "writing manifest"}
    line: dict[str, Any] = {"status": what}
    if what.startswith("fetching "):
        part = what.removeprefix("fetching ")
        line["status"] = f"pulling {part[7:19] if _DIGEST.fullmatch(part) else part}"
        if _DIGEST.fullmatch(part):
            line["digest"] = part
    if total:
        line |= {"total": total, "completed": done}
    return line


def recipe_of(body: Mapping[str, Any]) -> ModelRecipe:
    """The recipe in a request to create a model. Raises InvalidRequest."""
    for key, why in (
        ("adapters", "adapters are not supported: merge them into the weights"),
        ("quantize", "models are not quantized here: pull the quantization that you want"),
        ("quantization", "models are not quantized here: pull the quantization that you want"),
        ("modelfile", "send the fields of the Modelfile (from, template, system, parameters), not its text"),
    ):
        if body.get(key):
            raise InvalidRequest(f"{key}: {why}")
    base, digest = body.get("from"), ""
    files = body.get("files")
    if files:
        if not isinstance(files, dict):
            raise InvalidRequest("files must be an object of names and digests")
        digests = list(cast("dict[str, Any]", files).values())  # the names are only names, and never used as paths
        if len(digests) != 1 or not isinstance(digests[0], str) or not _DIGEST.fullmatch(digests[0]):
            raise InvalidRequest("files must hold one GGUF file with its digest, as sha256: and 64 hex digits")
        digest = digests[0]
    elif not isinstance(base, str) or not base:
        raise InvalidRequest("from or files is required: what the model is made of")
    return ModelRecipe(
        base=checked_name(base) if isinstance(base, str) and base else "",
        weights_digest=digest,
        template=_optional_text(body, "template"),
        system=_optional_text(body, "system"),
        licenses=_texts(body.get("license"), "license"),
        parameters=_parameters(body.get("parameters")),
        messages=tuple(_messages(body.get("messages"))),
    )


def _optional_text(body: Mapping[str, Any], key: str) -> str | None:
    value = body.get(key)
    if value is not None and not isinstance(value, str):
        raise InvalidRequest(f"{key} must be text")
    return value or None


def _texts(value: Any, key: str) -> tuple[str, ...]:
    if not value:
        return ()
    values = cast("list[Any]", value) if isinstance(value, list) else [value]
    if not all(isinstance(each, str) for each in values):
        raise InvalidRequest(f"{key} must be text, or a list of texts")
    return tuple(values)


def _parameters(value: Any) -> dict[str, tuple[str, ...]]:
    if not value:
        return {}
    if not isinstance(value, dict):
        raise InvalidRequest("parameters must be an object")
    found: dict[str, tuple[str, ...]] = {}
    for name, given in cast("dict[str, Any]", value).items():
        values: Sequence[Any] = cast("list[Any]", given) if isinstance(given, list) else [given]
        if not all(isinstance(each, str | int | float) for each in values):
            raise InvalidRequest(f"parameters: {name[:40]} must be a number, a text, or a list of texts")
        found[name] = tuple(str(each).lower() if isinstance(each, bool) else str(each) for each in values)
    return found


def _messages(value: Any) -> list[Message]:
    if not value:
        return []
    found: list[Message] = []
    for entry in cast("list[Any]", value) if isinstance(value, list) else [value]:
        fields = cast("dict[str, Any]", entry) if isinstance(entry, dict) else {}
        role, content = fields.get("role"), fields.get("content")
        if role not in ("system", "user", "assistant") or not isinstance(content, str):
            raise InvalidRequest("messages: each has a role (system, user or assistant) and a content")
        found.append(Message.of(Role(role), content))
    return found
