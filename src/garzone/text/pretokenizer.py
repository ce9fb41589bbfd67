"""How byte-level BPE vocabularies cut text into words before merging: the regular expressions of each `pre` type.

Does not merge or number anything. The expressions are facts about the vocabularies, in the form in which llama.cpp
applies them (https://github.com/ggml-org/llama.cpp/blob/master/src/llama-vocab.cpp), so that token ids agree with it:
every expression cuts the pieces that the one before it left, keeping what it matches and what lies between.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Final

from tokenizers import Regex, pre_tokenizers

from garzone.core.errors import UnsupportedModel

logger = logging.getLogger(__name__)

# Spelled out, not (?i:): Oniguruma folds U+017F (long s) into "s", llama.cpp does not.
_SUFFIX: Final = r"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])"
_SPACES: Final = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_PUNCTUATION: Final = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_WORD: Final = r"[^\r\n\p{L}\p{N}]?\p{L}+"

_GPT2: Final = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3: Final = rf"{_SUFFIX}|{_WORD}|\p{{N}}{{1,3}}|{_PUNCTUATION}|{_SPACES}"
_QWEN2: Final = rf"{_SUFFIX}|{_WORD}|\p{{N}}|{_PUNCTUATION}|{_SPACES}"

# Words by case, where llama.cpp counts letters outside ASCII as both upper and lower case.
_UPPER, _LOWER = r"[\p{L}&&[^a-z]]", r"[\p{L}&&[^A-Z]]"
_CASED: Final = rf"[^\r\n\p{{L}}\p{{N}}]?(?:{_UPPER}*{_LOWER}+|{_UPPER}+{_LOWER}*)"
_UPPER_OR_MARK, _LOWER_OR_MARK = r"[\p{L}\p{M}&&[^a-z]]", r"[\p{L}\p{M}&&[^A-Z]]"
_CASED_OR_MARK: Final = (
    rf"[^\r\n\p{{L}}\p{{N}}]?(?:{_UPPER_OR_MARK}*{_LOWER_OR_MARK}+|{_UPPER_OR_MARK}+{_LOWER_OR_MARK}*)"
)
_PUNCTUATION_OR_PATH: Final = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"

_DEEPSEEK3: Final = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+"
)
_KANA: Final = r"[\x{4E00}-\x{9FA5}\x{3040}-\x{309F}\x{30A0}-\x{30FF}]+"
# The range from U+0800 holds blanks such as U+2028, which llama.cpp has replaced by then.
_CJK: Final = r"[\x{4E00}-\x{9FA5}\x{800}-\x{4E00}\x{AC00}-\x{D7FF}&&[^\s]]+"
_HAN: Final = (
    r"\x{4E00}-\x{9FFF}\x{3400}-\x{4DBF}\x{20000}-\x{2A6DF}\x{2A700}-\x{2EBEF}\x{F900}-\x{FAFF}\x{2F800}-\x{2FA1F}"
)
_KIMI: Final = (
    rf"[{_HAN}]+|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}&&[^{_HAN}]]+(?:{_SUFFIX})?|\p{{N}}{{1,3}}|{_PUNCTUATION}|{_SPACES}"
)

# The cased letters of DeepSeek's first tokeniser, as its tokenizer.json lists them.
_DEEPSEEK_LETTERS: Final = (
    r"A-Za-z\x{B5}\x{C0}-\x{D6}\x{D8}-\x{F6}\x{F8}-\x{1BA}\x{1BC}-\x{1BF}\x{1C4}-\x{293}\x{295}-\x{2AF}"
    r"\x{370}-\x{373}\x{376}\x{377}\x{37B}-\x{37D}\x{37F}\x{386}\x{388}-\x{38A}\x{38C}\x{38E}-\x{3A1}"
    r"\x{3A3}-\x{3F5}\x{3F7}-\x{481}\x{48A}-\x{52F}\x{531}-\x{556}\x{10A0}-\x{10C5}\x{13A0}-\x{13F5}"
    r"\x{13F8}-\x{13FD}\x{1C90}-\x{1CBA}\x{1CBD}-\x{1CBF}\x{1D00}-\x{1D2B}\x{1D6B}-\x{1D77}\x{1D79}-\x{1D9A}"
    r"\x{1E00}-\x{1F15}\x{1F18}-\x{1F1D}\x{1F20}-\x{1F45}\x{1F48}-\x{1F4D}\x{1F50}-\x{1F57}\x{1F59}\x{1F5B}"
    r"\x{1F5D}\x{1F5F}-\x{1F7D}\x{1F80}-\x{1FB4}\x{1FB6}-\x{1FBC}\x{1FBE}\x{1FC2}-\x{1FC4}\x{1FC6}-\x{1FCC}"
    r"\x{1FD0}-\x{1FD3}\x{1FD6}-\x{1FDB}\x{1FE0}-\x{1FEC}\x{1FF2}-\x{1FF4}\x{1FF6}-\x{1FFC}\x{2102}\x{2107}"
    r"\x{210A}-\x{2113}\x{2115}\x{2119}-\x{211D}\x{2124}\x{2126}\x{2128}\x{212A}-\x{212D}\x{212F}-\x{2134}\x{2139}"
    r"\x{213C}-\x{213F}\x{2145}-\x{2149}\x{214E}\x{2183}\x{2184}\x{2C00}-\x{2C7B}\x{2C7E}-\x{2CE4}"
    r"\x{2CEB}-\x{2CEE}\x{2CF2}\x{2CF3}\x{A640}-\x{A66D}\x{A680}-\x{A69B}\x{A722}-\x{A76F}\x{A771}-\x{A787}"
    r"\x{A78B}-\x{A78E}\x{AB70}-\x{ABBF}\x{FB00}-\x{FB06}\x{FB13}-\x{FB17}\x{FF21}-\x{FF3A}\x{FF41}-\x{FF5A}"
    r"\x{10400}-\x{1044F}\x{104B0}-\x{104D3}\x{104D8}-\x{104FB}\x{10C80}-\x{10CB2}\x{10CC0}-\x{10CF2}"
    r"\x{118A0}-\x{118DF}\x{1E900}-\x{1E943}"
)

_BLOOM: Final = r" ?[^(\s|.,!?\x{2026}\x{3002}\x{FF0C}\x{3001}\x{964}\x{6D4}\x{60C})]+"
_YOUTU: Final = (
    r"[\x{AC00}-\x{D7A3}\x{3131}-\x{318E}]+"
    r"|[\x{FF01}\x{2026}\x{201C}\x{201D}\x{2018}\x{2019}\x{2014}\x{FF1A}\x{FF1B}\x{FF0C}\x{3001}-\x{303F}\x{FE30}-\x{FE4F}]+"
    r"|[\x{3105}-\x{312F}]+|" + _KANA
)

_EXPRESSIONS: Final[dict[str, tuple[str, ...]]] = {
    "default": (r"[\p{P}$+<=>^~|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"),
    "gpt-2": (_GPT2,),
    "llama3": (_LLAMA3,),
    "qwen2": (_QWEN2,),
    "qwen35": (
        rf"{_SUFFIX}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}",
    ),
    "smollm": (r"\p{N}", _GPT2),
    "falcon": (r"[\p{P}$+<=>^~|`]+", _GPT2, r"[0-9][0-9][0-9]"),
    "deepseek-llm": (
        r"[\r\n]",
        rf"\s?[{_DEEPSEEK_LETTERS}]+",
        # The original's range begins with U+3000, which llama.cpp reads as a space.
        r"\s?[!-/:-~\x{FF01}-\x{FF0F}\x{FF1A}-\x{FF5E}\x{2018}-\x{201F}\x{3001}-\x{3002}]+",
        r"\s+\z",
        _CJK,
        r"\p{N}+",
    ),
    "deepseek-coder": (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK, r"\p{N}"),
    "deepseek-v3": (r"\p{N}{1,3}", _KANA, rf"{_DEEPSEEK3}[\r\n]*|{_SPACES}"),
    "spark2_5": (r"\p{N}{1,3}", _KANA, rf"{_DEEPSEEK3}|[\r\n]|\s+(?!\S)|\s+", r"\p{N}"),
    "youtu": (
        _YOUTU,
        rf"[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+(?:{_SUFFIX})?|\p{{N}}|{_PUNCTUATION_OR_PATH}|{_SPACES}",
    ),
    "tekken": (rf"{_CASED}|\p{{N}}|{_PUNCTUATION_OR_PATH}|{_SPACES}",),
    "gpt-4o": (rf"{_CASED}(?:{_SUFFIX})?|\p{{N}}{{1,3}}|{_PUNCTUATION_OR_PATH}|{_SPACES}",),
    "granite-embed-multi-97m": (
        rf"{_CASED_OR_MARK}(?:{_SUFFIX})?|\p{{N}}{{1,3}}|{_PUNCTUATION_OR_PATH}|{_SPACES}",
    ),
    "poro-chat": (_BLOOM,),
    "viking": (_BLOOM, r"\p{N}"),
    "kimi-k2": (_KIMI,),
    "bailingmoe": (rf"{_SUFFIX}|{_WORD}|\p{{N}}|{_PUNCTUATION}|\s*[\r\n]|\s+(?!\S)|\s+",),
    "seed-coder": (rf"{_SUFFIX}|{_WORD}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACES}",),
    "ufakzeka": (rf"{_WORD}|\p{{N}}|{_PUNCTUATION}|{_SPACES}",),
    "laguna": (r"[^\n]+|\n+", _QWEN2),
    "minicpm5": (r"\p{N}{1,3}", rf"{_SUFFIX}|{_WORD}|\p{{N}}+|{_PUNCTUATION}|{_SPACES}"),
    "chameleon": (
        r"<sentinel:[0-9]+>", r"IMGIMG[A-I]{1,4}Z", r"[\t\n]|    |  ", r"\p{N}", r"[\p{P}!-/:-@\[-`{-~]", _GPT2,
    ),
}  # fmt: skip

_ALIASES: Final = {
    **dict.fromkeys(
        ("llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano", "dbrx",
         "smaug-bpe", "glm4", "chatglm-bpe"),
        "llama3",
    ),
    **dict.fromkeys(
        ("phi-2", "jina-es", "jina-de", "gigachat", "jina-v2-es", "jina-v2-de", "a.x-4.0", "mellum", "modern-bert",
         "jina-v1-en", "jina-v2-code", "roberta-bpe", "exaone4", "mpt", "olmo", "jais", "trillion", "granite-docling"),
        "gpt-2",
    ),
    **dict.fromkeys(
        ("starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"), "smollm"
    ),
    **dict.fromkeys(
        ("deepseek-r1-qwen", "kormo", "f2llmv2", "megrez", "hunyuan", "stablelm2", "grok-2", "solar-open"), "qwen2"
    ),
    **dict.fromkeys(("hunyuan-dense", "joyai-llm", "hy_v4"), "deepseek-v3"),
    **dict.fromkeys(("llama4", "kanana2", "talkie", "minimax-m2"), "gpt-4o"),
    **dict.fromkeys(("bloom", "gpt3-finnish"), "poro-chat"),
    **dict.fromkeys(("bailingmoe2", "llada-moe"), "bailingmoe"),
}  # fmt: skip

_LLAMA3_NAMES: Final = frozenset(
    {"llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano"}
)
_IGNORES_MERGES: Final = _LLAMA3_NAMES | {"tekken", "youtu", "minicpm5", "granite-embed-multi-97m"}
_ADDS_BOS: Final = _LLAMA3_NAMES | {"tekken", "chameleon"}

# Known, and not byte-level, not a matter of expressions alone, or (jais-2) of ones that take quadratic time on blanks:
# falling back would give wrong ids in silence.
_UNSUPPORTED: Final = frozenset(
    {"gemma4", "granite-embed-multi-311m", "sarvam-moe", "whitespace", "superbpe", "afmoe", "tiny_aya", "cohere2moe",
     "exaone-moe", "jais-2"}
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class PreTokenizer:
    """How a `pre` type treats text.

    `expressions` cut it, one after another. With `ignores_merges` a piece that is a token as it stands is not merged
    up from bytes. `adds_bos` is whether texts begin with the beginning token when the file does not say.
    """

    expressions: tuple[str, ...]
    ignores_merges: bool = False
    adds_bos: bool = False

    def build(self) -> pre_tokenizers.PreTokenizer:
        """The same for the `tokenizers` package."""
        steps: list[pre_tokenizers.PreTokenizer] = [
            pre_tokenizers.Split(Regex(expression), behavior="isolated") for expression in self.expressions
        ]
        steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
        return pre_tokenizers.Sequence(steps)


def pre_tokenizer(name: str) -> PreTokenizer:
    """What `tokenizer.ggml.pre` names; the default, with a warning, where that is nothing known.

    Raises:
        UnsupportedModel: the type is known and cannot be expressed here.
    """
    if name in _UNSUPPORTED:
        raise UnsupportedModel(f"tokenizer.ggml.pre is {name!r}, a way to split text that garzone does not know yet")
    expressions = _EXPRESSIONS.get(_ALIASES.get(name, name))
    if expressions is None:
        logger.warning("unknown tokenizer.ggml.pre %r: text is split by default rules, answers may suffer", name[:64])
        expressions = _EXPRESSIONS["default"]
    return PreTokenizer(expressions, name in _IGNORES_MERGES, name in _ADDS_BOS)


def known_pre_types() -> frozenset[str]:
    """All names that need no default."""
    return frozenset(_EXPRESSIONS) | frozenset(_ALIASES)
