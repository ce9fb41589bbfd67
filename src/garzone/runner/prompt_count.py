"""How many tokens a prompt has for a model that need not be loaded: what `/v1/messages/count_tokens` answers.

Implements PromptCounter. Renders and tokenises as the model's process would, from the file's header alone.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from garzone.core.generation import GenerateRequest, ModelDetails
from garzone.core.ports import ModelStore
from garzone.runner.model import FillIn, Template, Tokenizer, fill_in_of
from garzone.runner.rendering import render
from garzone.runner.support import with_model_defaults
from garzone.text.chat_template import ChatTemplate, is_go_template
from garzone.text.family_template import template_of

MAX_READERS: Final = 2  # tens of megabytes each


@dataclass(frozen=True, slots=True)
class Reader:
    """The part of a model that turns requests into token ids."""

    tokenizer: Tokenizer
    template: Template | None
    compile_template: Callable[[str], Template]
    fill_in: FillIn | None


class TemplateCounter:
    """Counts for the models of a store."""

    def __init__(self, store: ModelStore) -> None:
        self._store = store
        self._readers: dict[str, Reader] = {}
        self._lock = threading.Lock()

    async def count_prompt(self, request: GenerateRequest) -> int:
        """Number of tokens the model would read for a request.

        Raises:
            ModelNotFound, InvalidRequest, GGUFError: as `generate` would.
        """
        return await asyncio.to_thread(self._count, request)

    def _count(self, request: GenerateRequest) -> int:
        details = self._store.find(request.model)
        reader = self._reader(details)
        return len(render(reader, with_model_defaults(request, details), sys.maxsize).tokens)

    def _reader(self, details: ModelDetails) -> Reader:
        with self._lock:  # two that ask at once share one
            reader = self._readers.get(details.path)
            if reader is None:
                while len(self._readers) >= MAX_READERS:
                    del self._readers[next(iter(self._readers))]
                reader = self._readers[details.path] = _read(details)
            return reader


def _read(details: ModelDetails) -> Reader:
    from garzone.engine.gguf import read_metadata  # noqa: PLC0415  only who counts pays for the import
    from garzone.text.tokenizer import Tokenizer as TextTokenizer  # noqa: PLC0415

    metadata = read_metadata(Path(details.path))
    tokenizer = TextTokenizer.from_gguf(metadata)
    tokens = metadata["tokenizer.ggml.tokens"]

    def text_of(key: str) -> str:
        token_id = metadata.get(key)
        return str(tokens[token_id]) if isinstance(token_id, int) and 0 <= token_id < len(tokens) else ""

    bos_token, eos_token = text_of("tokenizer.ggml.bos_token_id"), text_of("tokenizer.ggml.eos_token_id")

    def compile_template(source: str) -> Template:
        return ChatTemplate(source, bos_token=bos_token, eos_token=eos_token)

    given = "" if is_go_template(details.template) else details.template
    source = given or template_of(metadata)
    template = compile_template(source) if source else None
    return Reader(tokenizer, template, compile_template, fill_in_of(tokenizer.vocabulary))
