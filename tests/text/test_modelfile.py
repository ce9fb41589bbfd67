"""Modelfiles in every spelling people use, and back."""

import json

import pytest

from garzone.core.chat import Message, Role
from garzone.core.errors import UsageError
from garzone.core.generation import ModelDetails
from garzone.text.modelfile import layer_of_parameters, parse_modelfile, render_modelfile

FULL = '''# a comment
FROM smollm2:135m

PARAMETER temperature 0.2
parameter stop "<|im_end|>"
PARAMETER stop "a \\"quoted\\" word"
PARAMETER num_ctx 4096
TEMPLATE """{% for m in messages %}{{ m.content }}
{% endfor %}"""
SYSTEM """
You are terse.

# this is no comment
"""
MESSAGE user Is Toronto in Canada?
MESSAGE assistant """yes
indeed"""
LICENSE "MIT"
LICENSE Apache
REQUIRES 0.14.0
'''


def test_everything_a_modelfile_may_say_is_understood() -> None:
    recipe = parse_modelfile(FULL)
    assert recipe.base == "smollm2:135m"
    assert recipe.parameters == {
        "temperature": ("0.2",), "stop": ("<|im_end|>", 'a "quoted" word'), "num_ctx": ("4096",)
    }  # fmt: skip
    assert recipe.template == "{% for m in messages %}{{ m.content }}\n{% endfor %}"
    assert recipe.system == "\nYou are terse.\n\n# this is no comment\n"
    assert recipe.messages == (
        Message.of(Role.USER, "Is Toronto in Canada?"),
        Message.of(Role.ASSISTANT, "yes\nindeed"),
    )
    assert recipe.licenses == ("MIT", "Apache")
    assert json.loads(layer_of_parameters(recipe.parameters)) == {
        "temperature": 0.2, "stop": ["<|im_end|>", 'a "quoted" word'], "num_ctx": 4096
    }  # fmt: skip


def test_windows_line_ends_and_single_lines_are_the_same() -> None:
    assert parse_modelfile("FROM x\r\nSYSTEM be brief\r\n") == parse_modelfile('from x\nsystem "be brief"')


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no FROM"),
        ("SYSTEM x", "no FROM"),
        ("FROM", "line 1: FROM needs a value"),
        ("FROM a\nFROM b", "line 2: a second FROM"),
        ("FROM a\nADAPTER ./lora.gguf", "line 2: ADAPTER is not supported"),
        ("FROM a\nRUN rm -rf /", "line 2: RUN is not"),
        ("FROM a\n{{ .Prompt }}", "line 2: '{{ .Prompt }}' is not a command"),
        ("FROM a\nPARAMETER warmth 3", "line 2: unknown parameter 'warmth'"),
        ("FROM a\nPARAMETER temperature hot", "line 2: 'hot' is not a value of temperature"),
        ("FROM a\nPARAMETER temperature nan", "not a value"),
        ("FROM a\nPARAMETER num_ctx 1.5", "not a value"),
        ("FROM a\nPARAMETER num_ctx", "not a value"),
        ('FROM a\n\nSYSTEM """never\nclosed', "line 3: the closing"),
        ("FROM a\nMESSAGE tool x", "line 2: a MESSAGE is from"),
        ("FROM a\n" + "#" * (5 << 20), "more than"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        parse_modelfile(text)


def test_what_is_shown_can_be_read_again() -> None:
    recipe = parse_modelfile(FULL)
    details = ModelDetails(
        name="x:latest", template=recipe.template or "", system=recipe.system or "", license="MIT\n\nApache",
        parameters=recipe.parameters, messages=recipe.messages, path="/models/blobs/sha256-" + "a" * 64,
    )  # fmt: skip
    again = parse_modelfile(render_modelfile(details))
    assert (again.template, again.system, again.messages) == (recipe.template, recipe.system, recipe.messages)
    assert again.parameters == recipe.parameters
    assert again.base == details.path
    assert again.licenses == ("MIT\n\nApache",)
