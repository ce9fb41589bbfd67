"""What the runner needs of a model, as protocols, and how a GGUF file becomes one.

The only module of this room that reaches tensors, and only when `load_model` is called, inside the runner process.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from garzone import __version__
from garzone.core.chat import Message, ToolSpec
from garzone.core.errors import GarzoneError, Unsupported
from garzone.core.generation import Grammar, Pooling, SamplingParams
from garzone.engine.row import Row
from garzone.engine.scores import Scores
from garzone.runner.load_plan import DRAFT_SLOTS
from garzone.runner.protocol import Load
from garzone.scheduler.sequence import Drafter
from garzone.text.vocabulary import CODESTRAL_FIM, Vocabulary

if TYPE_CHECKING:
    from garzone.runner.draft_model import DraftModel
    from garzone.text.tokenizer import Tokenizer as TextTokenizer

_LAST_POOLING: Final = 3  # llama.cpp's enum llama_pooling_type; 1 is the mean


class Engine(Protocol):
    """Slots of KV rows and the weights to fill them.

    What a row yields depends on the rows before it in its slot and on nothing else that is in the step.
    """

    @property
    def num_slots(self) -> int:
        """Sequences that can be held at once."""
        ...

    @property
    def row_bytes(self) -> int:
        """Bytes of one row in `read_rows`."""
        ...

    @property
    def chunk_tokens(self) -> int:
        """The most rows one `score` takes; as many as there are slots at least."""
        ...

    def score(self, rows: Sequence[Row]) -> Sequence[Scores]:
        """Compute rows of any slots; those of one slot follow each other in ascending position.

        Returns:
            The logits of the rows that wanted them, in the rows' order. Valid until the next call.
        """
        ...

    def copy_rows(self, from_slot: int, to_slot: int, num_rows: int) -> None:
        """The first rows of one slot into another."""
        ...

    def read_rows(self, slot: int, start: int, count: int) -> bytes:
        """Rows as bytes, `row_bytes` for each."""
        ...

    def write_rows(self, slot: int, start: int, count: int, data: bytes) -> None:
        """All rows that one `read_rows` gave, back into any slot; rows behind them are lost."""
        ...

    def prepare_more(self) -> bool:
        """Compile one thing more that an answer may need, when nobody waits; False when there is nothing left."""
        ...

    def hidden(self, rows: Sequence[Row]) -> NDArray[np.float32]:
        """As `score`, but the normed states that logits would be computed from: (rows that wanted them, hidden)."""
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

    def choose(self, scores: Scores, mask: NDArray[np.bool_] | None = None) -> int:
        """A token id, one of those that the mask lets through."""
        ...

    def accept(self, token_id: int) -> None:
        """That token was taken."""
        ...


class Matcher(Protocol):
    """Where in its grammar an answer is."""

    @property
    def is_complete(self) -> bool:
        """Whether the answer may end here."""
        ...

    def mask(self) -> NDArray[np.bool_]:
        """Which tokens may come next."""
        ...

    def masks(self, draft: Sequence[int]) -> list[NDArray[np.bool_]]:
        """The masks before the first token of a draft, and after each."""
        ...

    def num_allowed(self, tokens: Sequence[int]) -> int:
        """How many of these tokens could come next, one after the other."""
        ...

    def accept(self, token_id: int) -> None:
        """That token came."""
        ...


@dataclass(frozen=True, slots=True)
class FillIn:
    """How a model is shown a gap: `before` the text in front of it, `between`, and `after` what follows it.

    `suffix_first` where the model was trained to read what follows the gap first.
    """

    before: tuple[int, ...]
    between: tuple[int, ...]
    after: tuple[int, ...]
    suffix_first: bool = False


def _no_grammar(grammar: Grammar) -> Matcher:
    raise Unsupported(f"{grammar.kind.value}: this engine cannot constrain its answers")


@dataclass(frozen=True, slots=True)
class Model:
    """Everything that answers: the engine and the ways between text and token ids.

    `template` is None where neither the file nor the store has one; `compile_template` makes another from Jinja.
    `fill_in` is None for models that were not trained to. `engine_key` names weights, engine and layout of the rows:
    rows of another key mean nothing here. `pooling` is what the file says of embeddings. `num_slots` are used; 0 for
    all that the engine has. `draft_model` guesses ahead where `new_drafter` finds nothing; `note` is what whoever
    asked for the model should be told.
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
    new_drafter: Callable[[Sequence[int], Sequence[int]], Drafter] | None = None
    compile_grammar: Callable[[Grammar], Matcher] = _no_grammar
    fill_in: FillIn | None = None
    engine_key: str = ""
    pooling: Pooling = Pooling.MEAN
    num_slots: int = 0
    draft_model: DraftModel | None = None
    note: str = ""


def load_model(load: Load) -> Model:
    """Load a GGUF file onto a device and compile what it needs.

    Raises:
        GGUFError, UnsupportedModel, DeviceUnavailable, InvalidRequest: the file or the device will not do.
    """
    from garzone.engine.drafter import PromptLookup  # noqa: PLC0415  tensors live in this process only
    from garzone.engine.gguf import read_metadata  # noqa: PLC0415
    from garzone.engine.model_runner import ModelRunner  # noqa: PLC0415
    from garzone.engine.sampler import Sampler as EngineSampler  # noqa: PLC0415
    from garzone.text.chat_template import ChatTemplate  # noqa: PLC0415
    from garzone.text.detokenizer import Detokenizer as TextDetokenizer  # noqa: PLC0415
    from garzone.text.family_template import template_of  # noqa: PLC0415
    from garzone.text.grammar import GrammarCompiler  # noqa: PLC0415
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

    source = load.template or template_of(metadata)
    engine = ModelRunner.load(
        path,
        num_ctx=load.num_ctx,
        device=load.device,
        num_slots=max(1, load.num_slots),
        kv_cache=load.kv_cache,
    )
    engine.warm_up()
    compiler = GrammarCompiler(tokenizer)
    pooling = metadata.get(f"{metadata.get('general.architecture')}.pooling_type")
    draft_model, note = _load_draft_model(load, tokenizer, engine.config.num_ctx)
    return Model(
        engine=engine,
        tokenizer=tokenizer,
        context_tokens=engine.config.num_ctx,
        device=engine.device,
        memory_bytes=engine.memory_bytes + (draft_model.memory_bytes if draft_model else 0),
        template=compile_template(source) if source else None,
        compile_template=compile_template,
        new_detokenizer=lambda: TextDetokenizer(tokenizer),
        new_sampler=EngineSampler,
        new_drafter=PromptLookup,
        compile_grammar=compiler.compile,
        fill_in=fill_in_of(tokenizer.vocabulary),
        engine_key=_engine_key(load, engine.device, engine.implementations),
        num_slots=0 if engine.is_batched else 1,  # each slot would be compiled apart, and nothing gained
        pooling=Pooling.LAST if pooling == _LAST_POOLING else Pooling.MEAN,
        draft_model=draft_model,
        note=note,
    )


def _engine_key(load: Load, device: str, implementations: Mapping[str, int]) -> str:
    """Names what rows mean: weights, version, device, how they are kept, and the kernels that computed them."""
    if not load.digest:
        return ""
    kernels = hashlib.blake2b(repr(sorted(map(repr, implementations.items()))).encode()).hexdigest()[:16]
    return f"{load.digest} garzone {__version__} {device} {load.kv_cache.value} {kernels}"


def _load_draft_model(load: Load, tokenizer: TextTokenizer, num_ctx: int) -> tuple[DraftModel | None, str]:
    """The model that guesses ahead; or None, and why, where it cannot guess for this one."""
    if not load.draft_path or Path(load.draft_path) == Path(load.path):
        return None, ""
    from garzone.engine.gguf import read_metadata  # noqa: PLC0415  tensors live in this process only
    from garzone.engine.model_runner import ModelRunner  # noqa: PLC0415
    from garzone.runner.draft_model import DraftModel, vocabularies_differ  # noqa: PLC0415
    from garzone.text.vocabulary import read_vocabulary  # noqa: PLC0415

    path = Path(load.draft_path)
    try:
        vocabulary = read_vocabulary(read_metadata(path), add_bos=False)
        if difference := vocabularies_differ(tokenizer.vocabulary.tokens, vocabulary.tokens):
            return None, f"goes without the draft model {path}: {difference}"
        engine = ModelRunner.load(
            path, num_ctx=num_ctx, device=load.device, num_slots=DRAFT_SLOTS, kv_cache=load.kv_cache
        )
    except GarzoneError as error:
        return None, f"goes without the draft model: {error}"
    engine.warm_up()
    return DraftModel(engine, engine.config.num_ctx, tokenizer.vocab_size, engine.memory_bytes), ""


def fill_in_of(vocabulary: Vocabulary) -> FillIn | None:
    """The tokens that a model was trained to fill gaps with, if it was.

    Prefix, suffix, middle for most (Qwen, DeepSeek, CodeLlama, StarCoder); Codestral reads the suffix first.
    """
    pre, suf, mid = (vocabulary.fim.get(name) for name in ("fim_pre", "fim_suf", "fim_mid"))
    if pre is not None and suf is not None and mid is not None:
        return FillIn((pre,), (suf,), (mid,))
    after, before = (vocabulary.ids.get(text) for text in CODESTRAL_FIM)
    if after is not None and before is not None:
        return FillIn((after,), (before,), (), suffix_first=True)
    return None
