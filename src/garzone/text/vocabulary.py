"""What a GGUF file says about its vocabulary: tokens, their types, and which of them begin, end and steer a text.

Does not split or join text: `tokenizer.py` does, by the rules kept here. All rules are llama.cpp's, because GGUF files
are written for it (https://github.com/ggml-org/llama.cpp/blob/master/src/llama-vocab.cpp).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final, cast

from garzone.core.errors import GGUFError

PREFIX: Final = "tokenizer.ggml."


class TokenType(IntEnum):
    """`tokenizer.ggml.token_type`."""

    UNDEFINED = 0
    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


SPECIAL_TYPES: Final = frozenset({TokenType.UNKNOWN, TokenType.CONTROL})
PARSED_TYPES: Final = SPECIAL_TYPES | {TokenType.USER_DEFINED}

# Tokens that end an answer, by their text: files often name only one of the several that a model emits.
_END_TEXTS: Final = frozenset(
    {
        "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>",
        "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>",
        "<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>", "<｜end▁of▁sentence｜>", "[e~[",
    }
)  # fmt: skip
FIM_TEXTS: Final[Mapping[str, tuple[str, ...]]] = {
    "fim_pre": (
        "<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<｜fim▁begin｜>", "<PRE>", "▁<PRE>", "<|code_prefix|>",
        "<|prefix|>",
    ),
    "fim_suf": (
        "<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<｜fim▁hole｜>", "<SUF>", "▁<SUF>", "<|code_suffix|>",
        "<|suffix|>",
    ),
    "fim_mid": (
        "<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<｜fim▁end｜>", "<MID>", "▁<MID>", "<|code_middle|>",
        "<|middle|>",
    ),
    "fim_pad": ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    "fim_rep": ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    "fim_sep": ("<|file_sep|>",),
}  # fmt: skip
CODESTRAL_FIM: Final = ("[SUFFIX]", "[PREFIX]")  # in this order, and nothing in the middle
_ENDING_FIM: Final = ("fim_pad", "fim_rep", "fim_sep")
_ALWAYS_SHOWN: Final = ("<|channel|>", "<|message|>", "<|start|>", "<|constrain|>")  # gpt-oss


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Tokens by id, with types already corrected as llama.cpp corrects them.

    `ids` maps a token's text to its (first) id. `eos_ids` are all end-of-generation tokens. `fim` holds the ids of the
    fill-in-the-middle tokens that exist: fim_pre, fim_suf, fim_mid, fim_pad, fim_rep, fim_sep.
    """

    tokens: Sequence[str]
    types: Sequence[int]
    ids: Mapping[str, int]
    bos_id: int | None
    eos_id: int | None
    unknown_id: int | None
    add_bos: bool
    add_eos: bool
    eos_ids: frozenset[int]
    fim: Mapping[str, int]


def read_vocabulary(
    metadata: Mapping[str, Any], *, add_bos: bool, bos_id: int | None = None, eos_id: int | None = None
) -> Vocabulary:
    """Read it from GGUF metadata.

    Args:
        metadata: as `GGUFFile.metadata` gives it.
        add_bos: what holds when the file does not say.
        bos_id: likewise.
        eos_id: likewise.

    Raises:
        GGUFError: a key is missing or of the wrong shape.
    """
    tokens = _tokens(metadata)
    types = _types(metadata, len(tokens))
    ids: dict[str, int] = {}
    for index, token in enumerate(tokens):
        ids.setdefault(token, index)

    def named(name: str, default: int | None = None) -> int | None:
        value = metadata.get(f"{PREFIX}{name}_token_id", default)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < len(tokens):
            return default if default is not None and default < len(tokens) else None
        return value

    eos = named("eos", eos_id)
    fim = _fim_tokens(metadata, ids, named)
    ends = {ids[text] for text in _END_TEXTS if text in ids}
    for index in [*ends, *(fim[name] for name in fim)]:
        types[index] = TokenType.CONTROL  # whatever the converter thought
    ends |= {fim[name] for name in _ENDING_FIM if name in fim}
    ends |= {index for index in (eos, named("eot"), named("eom")) if index is not None}
    for text in _ALWAYS_SHOWN:
        if text in ids:
            types[ids[text]] = TokenType.USER_DEFINED
    _keep_harmony_turns_open(ids, ends, types)
    bos = named("bos", bos_id)
    adds_bos = bool(metadata.get(PREFIX + "add_bos_token", add_bos))
    adds_eos = bool(metadata.get(PREFIX + "add_eos_token", False))
    for adds, index, name in ((adds_bos, bos, "bos"), (adds_eos, eos, "eos")):
        if adds and index is None:
            raise GGUFError(f"{PREFIX}add_{name}_token is true, but {PREFIX}{name}_token_id names no token")
    return Vocabulary(
        tokens, types, ids, bos, eos, named("unknown", 0), adds_bos, adds_eos, frozenset(ends), fim
    )  # fmt: skip


def _keep_harmony_turns_open(ids: Mapping[str, int], ends: set[int], types: list[int]) -> None:
    """In gpt-oss and solar-open `<|end|>` ends a message, not the answer; in Gemma 4 `</s>` is ordinary."""
    present = {text for text in _END_TEXTS if ids.get(text) in ends}
    calls = {"<|call|>", "<|calls|>"} & present
    if "<|end|>" in present and calls and {"<|return|>", "<|flush|>"} & present:
        ends.discard(ids["<|end|>"])
        types[ids["<|end|>"]] = TokenType.USER_DEFINED
    if {"<|tool_response>", "</s>"} <= present:
        ends.discard(ids["</s>"])
        types[ids["</s>"]] = TokenType.NORMAL


def _fim_tokens(metadata: Mapping[str, Any], ids: Mapping[str, int], named: Any) -> dict[str, int]:
    older = {"fim_pre": "prefix", "fim_suf": "suffix", "fim_mid": "middle"}
    found: dict[str, int] = {}
    for name, texts in FIM_TEXTS.items():
        index = named(older.get(name, name))
        index = named(name, index)
        if index is None:
            index = next((ids[text] for text in texts if text in ids), None)
        if index is not None:
            found[name] = index
    return found


def _tokens(metadata: Mapping[str, Any]) -> list[str]:
    tokens = metadata.get(PREFIX + "tokens")
    if not isinstance(tokens, list) or not tokens:
        raise GGUFError(f"{PREFIX}tokens is missing: the file has no vocabulary")
    entries = cast("list[Any]", tokens)
    if not all(isinstance(token, str) for token in entries):
        raise GGUFError(f"{PREFIX}tokens must be an array of strings")
    return [token or f"[EMPTY_{index}]" for index, token in enumerate(cast("list[str]", entries))]


def numbers(metadata: Mapping[str, Any], key: str, count: int) -> list[Any] | None:
    """An array of at least `count` numbers, or None where the key is missing.

    Raises:
        GGUFError: it is no array, or too short.
    """
    value = metadata.get(key)
    if value is None:
        return None
    listed = cast("list[Any]", value.tolist() if hasattr(value, "tolist") else value)
    if not isinstance(value, str) and hasattr(value, "__len__"):
        if len(listed) >= count and all(isinstance(item, int | float) for item in listed[:1]):
            return listed
        raise GGUFError(f"{key} has {len(listed)} entries that should be {count} numbers")
    raise GGUFError(f"{key} must be an array of numbers")


def _types(metadata: Mapping[str, Any], count: int) -> list[int]:
    listed = numbers(metadata, PREFIX + "token_type", count)
    if listed is None:
        return [TokenType.NORMAL] * count
    if not all(isinstance(kind, int) for kind in listed):
        raise GGUFError(f"{PREFIX}token_type must be an array of whole numbers")
    return listed[:count]
