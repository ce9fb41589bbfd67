"""The chat templates of model families whose files come without one.

Data, and which file it is for; rendering is `chat_template.py`'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

# As the instruction-tuned models were trained (https://ai.google.dev/gemma/docs/core/prompt-structure): no system role,
# so what a system message says comes before what the user says first.
_GEMMA: Final = """{{ bos_token }}
{%- set system = messages[0].content + '\n\n' if messages[0].role == 'system' else '' -%}
{%- set turns = messages[1:] if system else messages -%}
{%- for message in turns -%}
{%- if message.role == 'system' or (message.role == 'assistant') != (loop.index0 % 2 == 1) -%}
{{ raise_exception('user and assistant must take turns') }}
{%- endif -%}
{{ '<start_of_turn>' + ('model' if message.role == 'assistant' else 'user') + '\n' }}
{{- (system if loop.first else '') + message.content | trim + '<end_of_turn>\n' -}}
{%- endfor -%}
{{ '<start_of_turn>model\n' if add_generation_prompt }}"""

_TEMPLATES: Final = {"gemma3": _GEMMA}


def template_of(metadata: Mapping[str, Any]) -> str | None:
    """The Jinja template of a GGUF file: its own, or else its family's where that is known here."""
    return metadata.get("tokenizer.chat_template") or _TEMPLATES.get(str(metadata.get("general.architecture")))
