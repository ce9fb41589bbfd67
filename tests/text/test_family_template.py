"""Templates for files that come without one."""

import pytest

from garzone.core.chat import Message, Role
from garzone.core.errors import InvalidRequest
from garzone.text.chat_template import ChatTemplate
from garzone.text.family_template import template_of

GEMMA = template_of({"general.architecture": "gemma3"})


def rendered(*turns: tuple[Role, str]) -> str:
    assert GEMMA is not None
    return ChatTemplate(GEMMA, bos_token="<bos>").render([Message.of(role, text) for role, text in turns])


def test_a_file_s_own_template_wins_and_an_unknown_family_has_none() -> None:
    assert template_of({"general.architecture": "gemma3", "tokenizer.chat_template": "mine"}) == "mine"
    assert template_of({"general.architecture": "llama"}) is None


def test_gemma_is_told_turns_as_it_was_trained_to_read_them() -> None:
    talk = rendered((Role.USER, "Hi "), (Role.ASSISTANT, "Hello."), (Role.USER, "Bye"))
    assert talk == (
        "<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\nHello.<end_of_turn>\n"
        "<start_of_turn>user\nBye<end_of_turn>\n<start_of_turn>model\n"
    )


def test_gemma_hears_the_system_through_the_user() -> None:
    expected = "<bos><start_of_turn>user\nBe brief.\n\nHi<end_of_turn>\n<start_of_turn>model\n"
    assert rendered((Role.SYSTEM, "Be brief."), (Role.USER, "Hi")) == expected


def test_two_turns_of_one_voice_are_merged_for_gemma() -> None:
    expected = "<bos><start_of_turn>user\na\n\nb<end_of_turn>\n<start_of_turn>model\n"
    assert rendered((Role.USER, "a"), (Role.USER, "b")) == expected


def test_gemma_refuses_results_of_tools_out_of_turn() -> None:
    with pytest.raises(InvalidRequest, match="take turns"):
        rendered((Role.USER, "a"), (Role.TOOL, "b"))
