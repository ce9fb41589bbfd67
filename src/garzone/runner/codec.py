"""Frozen dataclasses to JSON values and back, checked against their annotations.

Knows the shapes the vocabulary uses: dataclasses, enums, bytes, tuples, mappings with string keys, unions of these and
of plain values. Does not know any message, and reads or writes nothing.
"""

from __future__ import annotations

import base64
import dataclasses
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from functools import cache
from typing import Any, cast

TAG = "@"  # names the class, so that a union of dataclasses can be told apart


class CodecError(ValueError):
    """The value does not have the shape its type promises."""


def encode(value: Any) -> Any:
    """A value made of dicts, lists, strings, numbers, booleans and None only."""
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, Enum):
        return value.value
    if dataclasses.is_dataclass(value):
        body = {field: encode(getattr(value, field)) for field in _field_names(type(value))}
        return {TAG: type(value).__name__, **body}
    if isinstance(value, Mapping):
        return {str(key): encode(item) for key, item in cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, Sequence):
        return [encode(item) for item in cast("Sequence[Any]", value)]
    raise CodecError(f"cannot encode a {type(value).__name__}")


def decode(kind: Any, data: Any) -> Any:
    """The value of type `kind` that `data` stands for. Raises CodecError when it is not one."""
    return _decoder(kind)(data)


@cache
def _field_names(kind: type) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(kind))


@cache
def _decoder(kind: Any) -> Callable[[Any], Any]:
    origin = typing.get_origin(kind)
    if kind is Any:
        return lambda data: data
    if kind is None or kind is type(None):
        return _plain(type(None))
    if kind is float:
        return _decode_float
    if kind in (str, bool, int):
        return _plain(kind)
    if kind is bytes:
        return _decode_bytes
    if origin in (typing.Union, types.UnionType):
        return _union(tuple(_decoder(member) for member in typing.get_args(kind)))
    if origin is tuple:
        return _tuple(_decoder(typing.get_args(kind)[0]))
    if origin is not None and issubclass(origin, Mapping):
        return _mapping(_decoder(typing.get_args(kind)[1]))
    if isinstance(kind, type):
        if issubclass(kind, Enum):
            return _enum(kind)
        if dataclasses.is_dataclass(cast("type[Any]", kind)):
            return _dataclass(cast("type[Any]", kind))
    raise CodecError(f"no decoder for {kind!r}")


def _decode_float(data: Any) -> float:
    if isinstance(data, bool) or not isinstance(data, int | float):
        raise CodecError(f"expected a number, not {data!r:.80}")
    return float(data)


def _decode_bytes(data: Any) -> bytes:
    try:
        return base64.b64decode(data, validate=True)
    except (TypeError, ValueError) as error:
        raise CodecError(f"expected base64: {error}") from error


def _plain(kind: type) -> Callable[[Any], Any]:
    def decode_plain(data: Any) -> Any:
        if type(data) is not kind:
            raise CodecError(f"expected {kind.__name__}, not {data!r:.80}")
        return data

    return decode_plain


def _union(members: tuple[Callable[[Any], Any], ...]) -> Callable[[Any], Any]:
    def decode_union(data: Any) -> Any:
        for member in members:
            try:
                return member(data)
            except CodecError:
                continue
        raise CodecError(f"none of the allowed types fits {data!r:.80}")

    return decode_union


def _tuple(item: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def decode_tuple(data: Any) -> tuple[Any, ...]:
        if not isinstance(data, list):
            raise CodecError(f"expected a list, not {data!r:.80}")
        return tuple(item(entry) for entry in cast("list[Any]", data))

    return decode_tuple


def _mapping(item: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def decode_mapping(data: Any) -> dict[str, Any]:
        if not isinstance(data, dict):
            raise CodecError(f"expected an object, not {data!r:.80}")
        return {key: item(entry) for key, entry in cast("dict[str, Any]", data).items()}

    return decode_mapping


def _enum(kind: type[Enum]) -> Callable[[Any], Any]:
    def decode_enum(data: Any) -> Enum:
        try:
            return kind(data)
        except ValueError as error:
            raise CodecError(str(error)) from error

    return decode_enum


def _dataclass(kind: type) -> Callable[[Any], Any]:
    name, hints = kind.__name__, typing.get_type_hints(kind)
    decoders = {field: _decoder(hints[field]) for field in _field_names(kind)}

    def decode_dataclass(data: Any) -> Any:
        if not isinstance(data, dict) or cast("dict[str, Any]", data).get(TAG) != name:
            raise CodecError(f"expected a {name}, not {data!r:.80}")
        body = cast("dict[str, Any]", data)
        if body.keys() - {TAG} != decoders.keys():
            raise CodecError(f"{name}: fields differ: {sorted(body.keys() - {TAG} ^ decoders.keys())}")
        return kind(**{field: decoders[field](body[field]) for field in decoders})

    return decode_dataclass
