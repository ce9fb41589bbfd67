"""What is counted without a model in memory is what the model reads."""

from pathlib import Path

import pytest

from garzone.core.chat import Message, Role, ToolSpec
from garzone.core.errors import ModelNotFound
from garzone.core.generation import GenerateRequest, ModelDetails
from garzone.runner.prompt_count import TemplateCounter
from garzone.testing import write_tiny_model
from tests.runner.conftest import ListStore

MESSAGES = (Message.of(Role.SYSTEM, "Be brief."), Message.of(Role.USER, "Hello there"))


async def test_the_template_and_the_models_own_system_prompt_count(tmp_path: Path) -> None:
    path = str(write_tiny_model(tmp_path / "tiny.gguf", num_layers=1))
    counter = TemplateCounter(ListStore(ModelDetails("tiny", path=path), ModelDetails("primed", path=path, system="S")))
    # one token a byte but for "de", "re" and the marks; the template is ChatML
    rendered = (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello there<|im_end|>\n<|im_start|>assistant\n"
    )
    marks = rendered.count("<|im_start|>"), rendered.count("<|im_end|>")
    expected = len(rendered) - marks[0] * 11 - marks[1] * 9 - rendered.count("re")
    assert await counter.count_prompt(GenerateRequest("tiny", messages=MESSAGES)) == expected
    tools = (ToolSpec("f", "does f"),)
    assert await counter.count_prompt(GenerateRequest("tiny", messages=MESSAGES, tools=tools)) == expected
    alone = GenerateRequest("primed", messages=MESSAGES[1:])
    bare = GenerateRequest("tiny", messages=MESSAGES[1:])
    assert await counter.count_prompt(alone) - await counter.count_prompt(bare) == len("|system\nS|\n")
    with pytest.raises(ModelNotFound):
        await counter.count_prompt(GenerateRequest("nope", messages=MESSAGES))
