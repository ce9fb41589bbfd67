"""What is said: messages, their parts, tools offered and tool calls made. Not how any wire format spells them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any


class Role(Enum):
    """Who speaks. Dialects map `developer` to SYSTEM."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"


@dataclass(frozen=True, slots=True)
class TextPart:
    """A run of text."""

    text: str


@dataclass(frozen=True, slots=True)
class ImagePart:
    """An image: raw bytes, still encoded as `media_type` says."""

    data: bytes
    media_type: str


ContentPart = TextPart | ImagePart


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """A tool the model may call. `parameters` is a JSON schema of type object."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call the model made. `arguments` is already parsed JSON."""

    name: str
    arguments: Mapping[str, Any]
    id: str = ""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation.

    `thinking` is the model's reasoning, kept apart from `content`. `tool_call_id` and `tool_name` are set on
    TOOL messages, `tool_calls` on ASSISTANT messages.
    """

    role: Role
    content: tuple[ContentPart, ...] = ()
    thinking: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    tool_name: str = ""

    @classmethod
    def of(cls, role: Role, text: str) -> Message:
        """A message of plain text."""
        return cls(role, (TextPart(text),) if text else ())

    @property
    def text(self) -> str:
        """All text parts joined; images are left out."""
        return "".join(part.text for part in self.content if isinstance(part, TextPart))
