import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from garzone.core.chat import ImagePart, Message, Role, ToolCall, ToolSpec
from garzone.core.errors import InvalidRequest
from garzone.engine.gguf import read_metadata
from garzone.text.chat_template import ChatTemplate, template_capabilities
from tests.text.vocabularies import TEMPLATES, config

USER = [Message.of(Role.USER, "hi")]


@cache
def golden() -> dict[str, Any]:
    path = Path(__file__).parents[1] / "golden" / "templates.json"
    return json.loads(path.read_text(encoding="utf-8"))


def message(shape: Mapping[str, Any]) -> Message:
    calls = tuple(
        ToolCall(call["function"]["name"], call["function"]["arguments"], call["id"])
        for call in shape.get("tool_calls", ())
    )
    said = Message.of(Role(shape["role"]), shape["content"])
    return Message(
        said.role, said.content, "", calls, shape.get("tool_call_id", ""), shape.get("name", "")
    )  # fmt: skip


def prompt(template: ChatTemplate, conversation: str) -> str:
    function = golden()["tool"]["function"]
    tools = [ToolSpec(**function)] if conversation == "tools" else []
    return template.render([message(shape) for shape in golden()["conversations"][conversation]], tools=tools)


def render(source: str, messages: list[Message] = USER, **given: Any) -> str:
    return ChatTemplate(source).render(messages, **given)


@pytest.mark.parametrize("name", ["chatml", "headers", "strings"])
@pytest.mark.parametrize("conversation", ["user", "system", "turns", "tools"])
def test_prompts_are_those_of_transformers(name: str, conversation: str) -> None:
    own = golden()["own"][name]
    template = ChatTemplate(own["source"], bos_token="<s>", eos_token="</s>")
    assert prompt(template, conversation) == own["prompts"][conversation]


def test_smollm2_is_prompted_as_transformers_does(smollm2_path: Path) -> None:
    template = ChatTemplate(read_metadata(smollm2_path)["tokenizer.chat_template"], bos_token="<s>", eos_token="</s>")
    for conversation, expected in golden()["smollm2"].items():
        assert prompt(template, conversation) == expected


@pytest.mark.network
@pytest.mark.slow
@pytest.mark.parametrize("name", TEMPLATES)
def test_published_templates_give_the_prompts_of_transformers(name: str) -> None:
    template = ChatTemplate(config(name)["chat_template"], bos_token="<s>", eos_token="</s>")
    for conversation, expected in golden()["real"][name].items():
        assert hashlib.sha256(prompt(template, conversation).encode()).hexdigest()[:16] == expected, conversation


def test_arguments_are_a_mapping_and_where_joined_to_text_json() -> None:
    call = Message(Role.ASSISTANT, (), "", (ToolCall("f", {"a": [1, None], "b": "ü"}, "id1"),))
    arguments = "messages[0].tool_calls[0]['function']['arguments']"
    as_json = '{"a": [1, null], "b": "ü"}'
    assert render("{{ " + arguments + ".a[0] }}{{ " + arguments + " is mapping }}", [call]) == "1True"
    for written in (f"'' + {arguments}", f"{arguments} + ''", f"{arguments} | tojson", f"'' ~ {arguments}", arguments):
        assert render("{{ " + written + " }}", [call]) == as_json, written


def test_content_of_a_bare_call_is_none_for_templates_that_ask_for_none() -> None:
    call = [Message(Role.ASSISTANT, (), "", (ToolCall("f", {}),))]
    assert render("{% if messages[0]['content'] is none %}call{% endif %}", call) == "call"
    assert render("{{ '</think>' in messages[0].content }}", call) == "False"


def test_messages_carry_what_templates_look_for() -> None:
    messages = [
        Message(Role.ASSISTANT, Message.of(Role.USER, "so").content, thinking="hm"),
        Message(Role.TOOL, Message.of(Role.USER, "42").content, tool_call_id="c1", tool_name="f"),
    ]
    assert render("{{ messages[0].reasoning_content }}{{ messages[0].thinking }}", messages) == "hmhm"
    assert render("{{ messages[1] | tojson }}", messages) == (
        '{"role": "tool", "content": "42", "tool_call_id": "c1", "name": "f"}'
    )
    assert render("{{ messages[0].tool_calls is defined }}{{ tools is none }}", messages) == "FalseTrue"


def test_extra_variables_and_the_generation_prompt_reach_the_template() -> None:
    source = "{{ enable_thinking }}{{ add_generation_prompt }}"
    assert render(source, extra={"enable_thinking": False}) == "FalseTrue"
    assert render(source, add_generation_prompt=False) == "False"


def test_the_date_is_the_clocks() -> None:
    template = ChatTemplate("{{ strftime_now('%d %b %Y') }}", now=lambda: datetime(2024, 7, 26, tzinfo=UTC))
    assert template.render(USER) == "26 Jul 2024"


def test_a_template_that_refuses_says_why() -> None:
    with pytest.raises(InvalidRequest, match="refuses these messages: roles must alternate"):
        render("{{ raise_exception('roles must alternate') }}")


def test_images_are_refused_rather_than_dropped() -> None:
    with pytest.raises(InvalidRequest, match="image"):
        render("{{ messages }}", [Message(Role.USER, (ImagePart(b"", "image/png"),))])


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("a\n{% if %}", "line 2"),
        ("a\nb\n{% endfor %}", "line 3"),
        ("a\n{{ messages[9].content.x }}", "line 2"),
        ("\n\n\n{{ 1 + 'a' }}", "line 4"),
        ("{{ 1 // 0 }}", "ZeroDivisionError"),
        ("{{ 'a' | nosuch }}", "nosuch"),
        ("{% include 'etc/passwd' %}", "line 1"),
        ("{{ messages.append(1) }}", "line 1"),
        ("{{ " + "(" * 50_000 + ")" * 50_000 + " }}", "."),  # deeper than any recursion limit a library may have set
        ("{% if 1 %}" * 200, "."),
        ("x" * 2_000_000, "2000000"),
    ],
)
def test_errors_name_the_line(source: str, what: str) -> None:
    with pytest.raises(InvalidRequest, match=what):
        render(source)


ESCAPES = [
    "{{ ''.__class__.__mro__ }}",
    "{{ ''['__class__'] }}",
    "{{ messages.__class__.__base__.__subclasses__() }}",
    "{{ ''|attr('__class__') }}",
    "{{ '{0.__class__}'.format(1) }}",
    "{{ '{a.__init__.__globals__}'.format_map({'a': cycler}) }}",
    "{{ cycler.__init__.__globals__ }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ raise_exception.__globals__ }}",
    "{{ strftime_now.__closure__ }}",
    "{{ self.__init__.__globals__ }}",
    "{{ self._TemplateReference__context.environment }}",
    "{{ [].append.__self__.__class__.__mro__ }}",
    "{% set x = messages %}{% set _ = x.clear() %}",
    "{{ lipsum.__globals__ }}",
    "{{ (messages|map(attribute='__class__')|list)[0].__mro__ }}",
    "{{ joiner.__init__.__builtins__ }}",
]


@pytest.mark.parametrize("source", ESCAPES)
def test_nothing_outside_the_template_can_be_reached(source: str) -> None:
    try:
        shown = render(source)
    except InvalidRequest:
        return
    assert not any(word in shown for word in ("<class", "<function", "<module", "built-in", "object at")), shown


BOMBS = [
    "{% for i in range(10**9) %}x{% endfor %}",
    "{{ range(100000) | list * 100000 }}",
    "{{ 'x' * 10**9 }}",
    "{{ 10**9 * 'x' }}",
    "{{ [0] * 10**9 }}",
    "{{ 9 ** (9 ** 9) }}",
    "{{ (10 ** 1000) ** 100 }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '%*d' % (1000000000, 1) }}",
    "{{ '%(a)s' * 2 % {'a': 'x' * 30000000} }}",
    "{{ '{:1000000000}'.format(1) }}",
    "{{ '{:{}}'.format(1, 1000000000) }}",
    "{{ ('{0}' * 1000).format('x' * 1000000) }}",
    "{{ 'x'.ljust(10**9) }}",
    "{{ 'x'.zfill(10**9) }}",
    "{{ ('x' * 1000000).replace('x', 'y' * 1000000) }}",
    "{{ ('x' * 1000000) | replace('x', 'y' * 1000000) }}",
    "{{ 'a' | center(10**9) }}",
    "{{ ('\\n' * 1000000) | indent(9999) }}",
    "{{ (['x' * 1000000] * 1000) | join }}",
    "{{ 'x'.join(['y' * 1000000] * 1000) }}",
    "{{ strftime_now('%1000000000d') }}",
    "{% set n = namespace(x='ab') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "{% set n = namespace(x='ab') %}{% for i in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "{% set n = namespace(x=[1]) %}{% for i in range(99) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x }}",
    "{% set n = namespace(x=[1]) %}{% for i in range(99) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x | tojson }}",
    "{% set n = namespace(x=[1]) %}{% for i in range(99) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x | string }}",
    "{% set n = namespace(x=[1]) %}{% for i in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "{% for i in range(99999) %}{{ 'x' * 9999 }}{% endfor %}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "{% for i in range(99999) %}{% set x = 'x' * 9999999 %}{% endfor %}",
]


@pytest.mark.parametrize("source", BOMBS, ids=lambda source: source[:40])
@pytest.mark.timeout(40)
def test_a_template_cannot_take_more_than_its_share(source: str) -> None:
    with pytest.raises(InvalidRequest):
        render(source)


def test_long_conversations_are_within_the_bounds() -> None:
    source = golden()["own"]["chatml"]["source"]
    messages = [Message.of(Role.USER, "x" * 2000), Message.of(Role.ASSISTANT, "y" * 2000)] * 1000
    assert len(render(source, messages)) > 4_000_000


def test_renderings_do_not_share_their_bounds() -> None:
    template = ChatTemplate("{% for i in range(90000) %}{% endfor %}ok")
    assert [template.render(USER) for _ in range(3)] == ["ok"] * 3


@pytest.mark.parametrize(
    ("source", "metadata", "expected"),
    [
        ("", {}, ("completion",)),
        ("{{ messages }}", None, ("completion",)),
        ("{% if tools %}{% endif %}", {}, ("completion", "tools")),
        ("{{ '<think>' }}", {}, ("completion", "thinking")),
        ("{% if enable_thinking %}{{ tools }}{% endif %}", {}, ("completion", "tools", "thinking")),
        ("{{ .Prompt }}{{ if .Tools }}{{ .Suffix }}{{ end }}", {}, ("completion", "tools", "insert")),
        ("", {f"tokenizer.ggml.fim_{n}_token_id": 1 for n in ("pre", "suf", "mid")}, ("completion", "insert")),
        ("", {f"tokenizer.ggml.{n}_token_id": 1 for n in ("prefix", "suffix", "middle")}, ("completion", "insert")),
        ("", {"tokenizer.ggml.tokens": ["<|fim_prefix|>", "<|fim_suffix|>", "a"]}, ("completion",)),
        (
            "",
            {"tokenizer.ggml.tokens": ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"]},
            ("completion", "insert"),
        ),
    ],
)
def test_capabilities_are_read_off_template_and_vocabulary(
    source: str, metadata: dict[str, Any] | None, expected: tuple[str, ...]
) -> None:
    assert template_capabilities(source, metadata) == expected


def test_a_template_that_wants_short_ids_gets_them_the_same_for_the_same_call() -> None:
    source = (
        "{% for m in messages %}{% for c in m.tool_calls or [] %}"
        "{% if c.id is not defined or c.id|length != 9 %}{{ raise_exception('ids of length 9!') }}{% endif %}{{ c.id }}"
        "{% endfor %}{% if m.tool_call_id %} {{ m.tool_call_id }}{% endif %}{% endfor %}"
    )
    calls = (ToolCall("read", {}, "toolu_0123456789abcdef"),)
    messages = [
        Message(Role.ASSISTANT, tool_calls=calls),
        Message(Role.TOOL, tool_call_id="toolu_0123456789abcdef"),
    ]
    one, two = ChatTemplate(source).render(messages).split()
    assert one == two
    assert len(one) == 9


ALTERNATING = (
    "{% set rest = messages[1:] if messages[0].role == 'system' else messages %}"
    "{% if messages[0].role == 'system' %}{{ messages[0].content }}|{% endif %}"
    "{% for m in rest %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{{ m.role }}:{{ m.content }}|{% endfor %}"
)


def test_a_template_that_wants_turns_to_alternate_gets_what_agents_send_in_such_turns() -> None:
    messages = [
        Message.of(Role.SYSTEM, "A"),
        Message.of(Role.SYSTEM, "B"),
        Message.of(Role.USER, "hi"),
        Message.of(Role.SYSTEM, "reminder"),
        Message.of(Role.ASSISTANT, "yes"),
        Message.of(Role.USER, "go on"),
    ]
    told = "A\n\nB|user:hi\n\n<system>\nreminder\n</system>|assistant:yes|user:go on|"
    assert ChatTemplate(ALTERNATING).render(messages) == told
    no_system = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + ALTERNATING
    assert ChatTemplate(no_system).render(messages[1:3]) == "user:B\n\nhi|"
    with pytest.raises(InvalidRequest, match="roles must alternate"):
        ChatTemplate(ALTERNATING).render([Message.of(Role.ASSISTANT, "I begin"), *messages[2:3]])


def test_a_template_that_takes_a_conversation_gets_it_as_it_is() -> None:
    plain = "{% for m in messages %}{{ m.role }}:{{ m.content }}|{% endfor %}"
    messages = [Message.of(Role.USER, "a"), Message.of(Role.USER, "b"), Message.of(Role.SYSTEM, "c")]
    assert ChatTemplate(plain).render(messages) == "user:a|user:b|system:c|"
