"""What the runner needs of a model, as protocols, and how a GGUF file becomes one.

The only module of this room that reaches tensors, and only when `load_model` is called, inside the runner process.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from garzone.core.chat import Message, ToolSpec
from garzone.core.generation import SamplingParams
from garzone.runner.protocol import Load


class Engine(Protocol):
    """One slot of KV rows and the weights to fill it."""

    @property
    def chunk_tokens(self) -> int:
        """The most tokens one `prefill` takes."""
        ...

    def prefill(self, token_ids: Sequence[int], start: int) -> NDArray[np.float32]:
        """Write rows from `start` on; logits after the last token."""
        ...

    def decode(self, token_id: int, position: int) -> NDArray[np.float32]:
        """Write one row; logits after it."""
        ...


class Tokenizer(Protocol):
    """Text to token ids, and the bytes of each."""

    @property
    def vocab_size(self) -> int:
        """Ids are below this."""
        ...

    @property
    def bos_id(self) -> int | None:
        """The token that begins a text, where the model has one."""
        ...

    @property
    def eos_ids(self) -> frozenset[int]:
        """All tokens that end an answer."""
        ...

    @property
    def special_ids(self) -> frozenset[int]:
        """Control tokens, which are no text."""
        ...

    def encode(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> list[int]:
        """Token ids of `text`."""
        ...

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes a token stands for."""
        ...


class Template(Protocol):
    """Renders a conversation the way the model was trained to read it."""

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[ToolSpec] = (),
        add_generation_prompt: bool = True,
        extra: Mapping[str, Any] = {},
    ) -> str:
        """The prompt as text."""
        ...


class Detokenizer(Protocol):
    """Token ids to text that never ends inside a character."""

    def push(self, token_id: int) -> str:
        """The text that is whole now."""
        ...

    def finish(self) -> str:
        """What is left."""
        ...


class Sampler(Protocol):
    """Chooses the next token."""

    def sample(self, logits: NDArray[np.float32]) -> int:
        """A token id."""
        ...

    def accept(self, token_id: int) -> None:
        """That token was taken."""
        ...


@dataclass(frozen=True, slots=True)
class Model:
    """Everything that answers: the engine and the ways between text and token ids.

    `template` is None where neither the file nor the store has one; `compile_template` makes another from Jinja.
    """

    engine: Engine
    tokenizer: Tokenizer
    context_tokens: int
    device: str
    memory_bytes: int
    template: Template | None
    compile_template: Callable[[str], Template]
    new_detokenizer: Callable[[], Detokenizer]
    new_sampler: Callable[[SamplingParams, Sequence[int]], Sampler]


def load_model(load: Load) -> Model:
    """Load a GGUF file onto a device and compile what it needs.

    Raises:
        GGUFError, UnsupportedModel, DeviceUnavailable, InvalidRequest: the file or the device will not do.
    """
    from garzone.engine.gguf import read_metadata  # noqa: PLC0415  tensors live in this process only
    from garzone.engine.model_runner import ModelRunner  # noqa: PLC0415
    from garzone.engine.sampler import Sampler as EngineSampler  # noqa: PLC0415
    from garzone.text.chat_template import ChatTemplate  # noqa: PLC0415
    from garzone.text.detokenizer import Detokenizer as TextDetokenizer  # noqa: PLC0415
    from garzone.text.tokenizer import Tokenizer as TextTokenizer  # noqa: PLC0415

    path = Path(load.path)
    metadata = read_metadata(path)
    tokenizer = TextTokenizer.from_gguf(metadata)

    def text_of(key: str) -> str:
        token_id = metadata.get(key)
        tokens = metadata["tokenizer.ggml.tokens"]
        return str(tokens[token_id]) if isinstance(token_id, int) and 0 <= token_id < len(tokens) else ""

    bos_token, eos_token = text_of("tokenizer.ggml.bos_token_id"), text_of("tokenizer.ggml.eos_token_id")

    def compile_template(source: str) -> Template:
        return ChatTemplate(source, bos_token=bos_token, eos_token=eos_token)

    source = metadata.get("tokenizer.chat_template") or load.template
    engine = ModelRunner.load(path, num_ctx=load.num_ctx, device=load.device)
    engine.warm_up()
    return Model(
        engine=engine,
        tokenizer=tokenizer,
        context_tokens=engine.config.num_ctx,
        device=engine.device,
        memory_bytes=engine.memory_bytes,
        template=compile_template(source) if source else None,
        compile_template=compile_template,
        new_detokenizer=lambda: TextDetokenizer(tokenizer),
        new_sampler=EngineSampler,
    )
