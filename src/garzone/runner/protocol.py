"""What the server and a runner process say to each other, and how it is spelled on the pipe between them.

A frame is four bytes of length (big-endian) and that many bytes of JSON. JSON and not pickle: the runner opens files
that strangers made and runs their templates, and whoever took it over must not be able to make the server execute
anything; and a field that is missing or of another type is an error where it is read, not somewhere later. Both ends
are the same version of garzone, which the first frame proves. Opens no pipe and starts no process.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from typing import Any, Final

from garzone.core import errors
from garzone.core.errors import ContextOverflow, GarzoneError, GenerationFailed, ModelNotFound
from garzone.core.generation import (
    ChosenToken,
    Embeddings,
    FinishReason,
    GenerateRequest,
    KVCacheType,
    Pooling,
    Usage,
)
from garzone.runner import codec

PROTOCOL_VERSION: Final = 5
MAX_FRAME_BYTES: Final = 1 << 30  # a conversation full of images; anything longer is noise on the pipe
_LENGTH = struct.Struct(">I")


class ProtocolError(Exception):
    """The bytes on the pipe are not a message: a broken invariant, the process behind them cannot be trusted."""


# --- to the runner


@dataclass(frozen=True, slots=True)
class Load:
    """Bring a model into memory. Sent once, before anything else. `template`, if any, goes before the file's own.

    `num_slots` sequences are held at once. Rows are kept in `rows_dir` from one process to the next, for weights of
    this `digest`; "" for either keeps none. `draft_path` is a smaller model that guesses ahead for this one. `kv_cache`
    is how both keep their rows.
    """

    path: str
    num_ctx: int
    device: str = ""
    template: str = ""
    num_slots: int = 1
    digest: str = ""
    rows_dir: str = ""
    draft_path: str = ""
    kv_cache: KVCacheType = KVCacheType.F16


@dataclass(frozen=True, slots=True)
class Generate:
    """Answer a request. `id` only ever grows.

    `keep_special`: the text of control tokens is part of the answer, for who looks for calls and thoughts in it.
    `answer_after`: a grammar begins behind this text, which ends the model's reasoning that `thinking_mark` opens; ""
    where there is none. `answer_opened`: the answer always begins before it.
    """

    id: int
    request: GenerateRequest
    keep_special: bool = False
    thinking_mark: str = ""
    answer_after: str = ""
    answer_opened: bool = False


@dataclass(frozen=True, slots=True)
class Embed:
    """Turn texts into vectors. `id` as in Generate; Embedded, Failed, or Finished(ABORTED) follows."""

    id: int
    inputs: tuple[str, ...]
    pooling: Pooling | None = None
    truncate: bool = True
    dimensions: int | None = None
    unit_length: bool = True


@dataclass(frozen=True, slots=True)
class SaveRows:
    """Keep on disk now what would be kept when the process ends."""


@dataclass(frozen=True, slots=True)
class Cancel:
    """Stop answering; Finished(ABORTED) follows unless the answer had already ended."""

    id: int


@dataclass(frozen=True, slots=True)
class Ping:
    """Are you there? Answered at once, whatever the engine is doing."""


@dataclass(frozen=True, slots=True)
class Shutdown:
    """Leave."""


# --- from the runner


@dataclass(frozen=True, slots=True)
class Hello:
    """The first frame."""

    version: int


@dataclass(frozen=True, slots=True)
class Pong:
    """The process is there. `beats` counts the engine's steps: it stands still when the engine hangs."""

    beats: int


@dataclass(frozen=True, slots=True)
class Loaded:
    """The model is in memory, compiled, and ready. `note`: what somebody who runs the server should know of it."""

    context_tokens: int
    device: str
    memory_bytes: int
    num_slots: int = 1
    note: str = ""


@dataclass(frozen=True, slots=True)
class Failure:
    """An exception as it crosses the pipe: which class of core.errors, what it says, and its numbers if it has any."""

    kind: str
    message: str
    numbers: tuple[int, ...] = ()

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """What to say of `error`. Anything not ours becomes GenerationFailed with the exception's name in it."""
        if isinstance(error, ContextOverflow):
            return cls("ContextOverflow", str(error), (error.prompt_tokens, error.max_tokens))
        if isinstance(error, GarzoneError):
            return cls(type(error).__name__, str(error))
        return cls("GenerationFailed", f"the engine failed: {type(error).__name__}: {error}".rstrip(": "))

    def to_exception(self) -> GarzoneError:
        """The exception to raise on this side."""
        if self.kind == "ContextOverflow" and len(self.numbers) == 2:
            return ContextOverflow(*self.numbers)
        kind = getattr(errors, self.kind, None)
        if isinstance(kind, type) and issubclass(kind, GarzoneError) and kind not in (ContextOverflow, ModelNotFound):
            return kind(self.message)
        return GenerationFailed(self.message)


@dataclass(frozen=True, slots=True)
class LoadFailed:
    """The model cannot be loaded; the process ends after this."""

    failure: Failure


@dataclass(frozen=True, slots=True)
class Accepted:
    """The request is understood and its prompt fits; prefill begins.

    `thinking_open` when the template ended the prompt inside the model's reasoning.
    """

    id: int
    thinking_open: bool = False


@dataclass(frozen=True, slots=True)
class Progress:
    """So much of the prompt is in the slot: says that the process is alive while there is no text yet."""

    id: int
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Piece:
    """Text, whole UTF-8, that no stop string can take back; `logprobs` of the tokens since the last one, if asked."""

    id: int
    text: str
    logprobs: tuple[ChosenToken, ...] = ()


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of an answer, with its last piece of text; `stop` is the stop string that ended it, if one did."""

    id: int
    text: str
    finish_reason: FinishReason
    usage: Usage
    logprobs: tuple[ChosenToken, ...] = ()
    stop: str | None = None


@dataclass(frozen=True, slots=True)
class Embedded:
    """The vectors that were asked for."""

    id: int
    embeddings: Embeddings


@dataclass(frozen=True, slots=True)
class Failed:
    """A request broke off. `fatal`: the state of the engine is unknown, and the process ends after this."""

    id: int
    failure: Failure
    fatal: bool = False


Message = (
    Load
    | Generate
    | Embed
    | SaveRows
    | Cancel
    | Ping
    | Shutdown
    | Hello
    | Pong
    | Loaded
    | LoadFailed
    | Accepted
    | Progress
    | Piece
    | Finished
    | Embedded
    | Failed
)
_KINDS: Final[dict[str, type]] = {
    kind.__name__: kind
    for kind in (
        Load,
        Generate,
        Embed,
        SaveRows,
        Cancel,
        Ping,
        Shutdown,
        Hello,
        Pong,
        Loaded,
        LoadFailed,
        Accepted,
        Progress,
        Piece,
        Finished,
        Embedded,
        Failed,
    )
}


def encode(message: Message) -> bytes:
    """The frame of one message."""
    body = json.dumps(codec.encode(message), separators=(",", ":"), allow_nan=False).encode("ascii")
    if len(body) > MAX_FRAME_BYTES:
        raise ProtocolError(f"a {type(message).__name__} of {len(body)} bytes is longer than a frame may be")
    return _LENGTH.pack(len(body)) + body


def parse(body: bytes) -> Message:
    """The message in one frame's body. Raises ProtocolError."""
    try:
        data: Any = json.loads(body)
        return codec.decode(_KINDS[data[codec.TAG]], data)
    except (ValueError, KeyError, TypeError, RecursionError) as error:  # CodecError is a ValueError
        raise ProtocolError(f"not a message: {error}: {body[:80]!r}") from error


class FrameDecoder:
    """Cuts a stream of bytes, however it arrives, into frames' bodies."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def push(self, data: bytes) -> list[bytes]:
        """The bodies that are complete now. Raises ProtocolError on an impossible length."""
        self._buffer += data
        bodies: list[bytes] = []
        start = 0
        while len(self._buffer) - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer, start)
            if length > MAX_FRAME_BYTES:
                raise ProtocolError(f"a frame of {length} bytes: something else wrote to the pipe")
            end = start + _LENGTH.size + length
            if len(self._buffer) < end:
                break
            bodies.append(bytes(self._buffer[start + _LENGTH.size : end]))
            start = end
        del self._buffer[:start]
        return bodies
