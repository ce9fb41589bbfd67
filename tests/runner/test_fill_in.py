"""Gaps are shown in the tokens each family of models was trained with."""

import pytest

from garzone.runner.model import FillIn, fill_in_of
from garzone.text.vocabulary import read_vocabulary

FAMILIES = {
    "qwen2.5-coder": (["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"], FillIn((1,), (2,), (3,))),
    "deepseek-coder": (["<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"], FillIn((1,), (2,), (3,))),
    "starcoder2": (["<fim_prefix>", "<fim_suffix>", "<fim_middle>"], FillIn((1,), (2,), (3,))),
    "codellama": (["▁<PRE>", "▁<SUF>", "▁<MID>"], FillIn((1,), (2,), (3,))),
    "codestral": (["[PREFIX]", "[SUFFIX]", "x"], FillIn((2,), (1,), (), suffix_first=True)),
    "none": (["<|im_start|>", "<|im_end|>", "x"], None),
    "only two of them": (["<|fim_prefix|>", "<|fim_suffix|>", "x"], None),
}


@pytest.mark.parametrize(("tokens", "expected"), FAMILIES.values(), ids=FAMILIES)
def test_each_family_has_its_own_tokens(tokens: list[str], expected: FillIn | None) -> None:
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": ["a", *tokens],
        "tokenizer.ggml.token_type": [1, 3, 3, 3],
        "tokenizer.ggml.merges": [],
    }
    assert fill_in_of(read_vocabulary(metadata, add_bos=False)) == expected
