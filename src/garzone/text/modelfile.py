"""Modelfiles: text to a recipe, and a model's details to text that makes the same model again. Pure.

The subset of https://github.com/ollama/ollama/blob/main/docs/modelfile.mdx that means something here; what would change
the weights (ADAPTER) is refused, not left out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from garzone.core.chat import Message, Role
from garzone.core.errors import UsageError
from garzone.core.generation import ModelDetails
from garzone.core.recipe import ModelRecipe

MAX_CHARS: Final = 4 << 20
_INTS: Final = frozenset(
    {
        "num_ctx", "num_predict", "num_keep", "num_batch", "num_gpu", "num_thread", "main_gpu", "top_k", "seed",
        "repeat_last_n", "mirostat", "draft_num_predict",
    }
)  # fmt: skip
_FLOATS: Final = frozenset(
    {
        "temperature", "top_p", "min_p", "typical_p", "repeat_penalty", "presence_penalty", "frequency_penalty",
        "mirostat_tau", "mirostat_eta", "tfs_z",
    }
)  # fmt: skip
_BOOLS: Final = frozenset({"use_mmap", "use_mlock", "low_vram", "numa", "penalize_newline", "f16_kv", "logits_all"})
_IGNORED: Final = frozenset({"requires", "renderer", "parser"})  # about Ollama's own engine
_KEYWORD: Final = re.compile(r"\s*([A-Za-z]+)(?:[ \t]+|$)")
_NUMBER: Final = re.compile(r"-?[0-9]+(\.[0-9]+)?")


def parse_modelfile(text: str) -> ModelRecipe:
    """The recipe in a Modelfile.

    Raises:
        UsageError: names the line.
    """
    if len(text) > MAX_CHARS:
        raise UsageError(f"a Modelfile of more than {MAX_CHARS} characters")
    base, template, system = "", None, None
    licenses: list[str] = []
    parameters: dict[str, list[str]] = {}
    messages: list[Message] = []
    for line, keyword, value in _commands(text):
        where = f"Modelfile, line {line}"
        if not value and keyword not in ("system", "template"):
            raise UsageError(f"{where}: {keyword.upper()} needs a value")
        if keyword == "from":
            if base:
                raise UsageError(f"{where}: a second FROM; a model has one base")
            base = value
        elif keyword == "template":
            template = value
        elif keyword == "system":
            system = value
        elif keyword == "license":
            licenses.append(value)
        elif keyword == "parameter":
            name, _, given = value.partition(" ")
            parameters.setdefault(name.lower(), []).append(_unquoted(given.strip(), where))
            typed_parameter(name.lower(), parameters[name.lower()], where)
        elif keyword == "message":
            messages.append(_message(value, where))
        elif keyword == "adapter":
            raise UsageError(f"{where}: ADAPTER is not supported; merge the adapter into the weights, and name those")
        elif keyword not in _IGNORED:
            raise UsageError(f"{where}: {keyword.upper()} is not a Modelfile command")
    if not base:
        raise UsageError("the Modelfile has no FROM: say which model it is made of, such as FROM smollm2:135m")
    frozen = {name: tuple(values) for name, values in parameters.items()}
    return ModelRecipe(base, "", template, system, tuple(licenses), frozen, tuple(messages))


def render_modelfile(model: ModelDetails) -> str:
    """A Modelfile that makes `model` again."""
    lines = [
        f"# Modelfile of {model.name}; to make another: garzone create NAME -f Modelfile",
        f"FROM {model.path or model.name}",
    ]
    for keyword, text in (("TEMPLATE", model.template), ("SYSTEM", model.system)):
        if text:
            lines.append(f"{keyword} {quoted(text)}")
    lines += [f"PARAMETER {key} {_quoted_value(value)}" for key, values in model.parameters.items() for value in values]
    lines += [f"MESSAGE {message.role.value} {quoted(message.text)}" for message in model.messages]
    if model.license:
        lines.append(f"LICENSE {quoted(model.license)}")
    return "\n".join(lines) + "\n"


def typed_parameter(name: str, values: Sequence[str], where: str = "parameters") -> Any:
    """A parameter as the layer on disk has it: a number, a truth, or a list of texts.

    Raises:
        UsageError: an unknown name, or a value of another type.
    """
    try:
        if name == "stop":
            return list(values)
        if name in _INTS:
            return int(values[-1])
        if name in _FLOATS:
            number = float(values[-1])
            if number - number == 0.0:  # neither infinite nor not a number: JSON has neither
                return number
        if name in _BOOLS and values[-1].lower() in ("true", "false", "1", "0"):
            return values[-1].lower() in ("true", "1")
    except (ValueError, IndexError):
        pass
    if name not in _INTS | _FLOATS | _BOOLS | {"stop"}:
        raise UsageError(f"{where}: unknown parameter {name!r}")
    raise UsageError(f"{where}: {values[-1] if values else ''!r} is not a value of {name}")


def layer_of_parameters(parameters: Mapping[str, Sequence[str]]) -> bytes:
    """Parameters as JSON, as they lie on disk. Raises UsageError."""
    typed = {name: typed_parameter(name, values) for name, values in parameters.items()}
    return json.dumps(typed, separators=(",", ":"), ensure_ascii=False).encode()


def quoted(text: str) -> str:
    """A text that may have several lines, so that a parser finds its end."""
    return f'"""{text}"""'


def _quoted_value(value: str) -> str:
    return value if _NUMBER.fullmatch(value) or value in ("true", "false") else json.dumps(value, ensure_ascii=False)


def _message(value: str, where: str) -> Message:
    role, _, content = value.partition(" ")
    if role not in ("system", "user", "assistant"):
        raise UsageError(f"{where}: a MESSAGE is from system, user or assistant, not {role[:20]!r}")
    return Message.of(Role(role), _unquoted(content.strip(), where))


def _unquoted(value: str, where: str) -> str:
    if value.startswith('"""'):
        if len(value) < 6 or not value.endswith('"""'):
            raise UsageError(f'{where}: the closing """ is missing')
        return value[3:-3]
    if len(value) >= 2 and value[0] == value[-1] == '"':
        try:
            return str(json.loads(value))
        except ValueError:
            return value[1:-1]  # as Ollama: a backslash that is no escape stays
    return value


def _commands(text: str) -> list[tuple[int, str, str]]:
    """(line number, keyword in lower case, value) of each command; quotes around a whole value are taken off."""
    found: list[tuple[int, str, str]] = []
    lines = text.replace("\r\n", "\n").split("\n")
    at = 0
    while at < len(lines):
        number, line = at + 1, lines[at]
        at += 1
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _KEYWORD.match(line)
        if match is None:
            raise UsageError(f"Modelfile, line {number}: {line.strip()[:40]!r} is not a command")
        keyword, value = match[1].lower(), line[match.end() :].strip()
        opened = value.find('"""')
        if opened >= 0 and '"""' not in value[opened + 3 :]:
            value = line[match.end() :].lstrip()
            while at < len(lines) and '"""' not in lines[at]:
                value += "\n" + lines[at]
                at += 1
            if at == len(lines):
                raise UsageError(f'Modelfile, line {number}: the closing """ is missing')
            value += "\n" + lines[at].rstrip()
            at += 1
        if keyword not in ("parameter", "message"):
            value = _unquoted(value, f"Modelfile, line {number}")
        found.append((number, keyword, value))
    return found
