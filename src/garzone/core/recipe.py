"""What a model is to be made of: the content of a Modelfile or of a request. Not how either is spelled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from garzone.core.chat import Message


@dataclass(frozen=True, slots=True)
class ModelRecipe:
    """A model as changes to another one.

    `base` is a reference to a model or the path of a GGUF file; `weights_digest`, if given, a blob that was handed in
    instead. What is None or empty is taken over from the base. `parameters` are by name, as text.
    """

    base: str = ""
    weights_digest: str = ""
    template: str | None = None
    system: str | None = None
    licenses: tuple[str, ...] = ()
    parameters: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    messages: tuple[Message, ...] = ()


@dataclass(frozen=True, slots=True)
class TensorSummary:
    """One tensor of a model's file. `shape` has the contiguous dimension first, as GGUF has it."""

    name: str
    kind: str
    shape: tuple[int, ...]
