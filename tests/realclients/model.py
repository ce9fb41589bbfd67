"""A model that always knows what to say, written as text so that the real parsers read its calls.

Asked for what is in secret.txt, it calls whatever tool of those offered can read files, and repeats what the tool
found: nothing else here knows that word, so who hears it from a client has seen the whole way there and back.
"""

import hashlib
import json
import re
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Any

from garzone.core.chat import Role, ToolSpec
from garzone.core.errors import ModelNotFound
from garzone.core.generation import (
    ChosenToken,
    Delta,
    Embeddings,
    FinishReason,
    GenerateRequest,
    LoadedModel,
    ModelDetails,
    Pooling,
    ServedBy,
    TokenLogprob,
    Usage,
)
from garzone.runner.support import parser_for

CAPITAL = "Paris is the capital of France."
SECRET = re.compile(r"SECRET-[0-9a-f]{8}")
MODEL = ModelDetails(
    name="scripted:latest",
    digest="sha256:" + "a" * 64,
    size_bytes=98_000_000,
    modified_at=1_700_000_000.0,
    family="qwen2",
    parameter_size="135M",
    quantization="Q4_1",
    context_tokens=131_072,
    embedding_length=8,
    capabilities=("completion", "tools", "insert"),
    template="{{ tools }}{{ messages }}",
    model_info={"general.architecture": "qwen2", "qwen2.context_length": 131_072, "qwen2.embedding_length": 8},
)

# Tools of agents that can read a file, what of their arguments says which, and how a shell is told to.
READERS = ("read", "Read", "read_file", "view", "read_secret")
SHELLS = ("Bash", "bash", "exec_command", "shell", "shell_command", "exec", "run_command")


def answer_to(request: GenerateRequest) -> str:
    """What the model writes."""
    if request.suffix:
        return "return a + b"
    if request.output_schema is not None:
        return json.dumps({"city": "Paris"})
    if not request.messages:
        return CAPITAL
    turns = [index for index, message in enumerate(request.messages) if message.role in (Role.ASSISTANT, Role.TOOL)]
    asked = "".join(message.text for message in request.messages[max(turns, default=-1) + 1 :])
    results = [message.text for message in request.messages if message.role is Role.TOOL]
    if results and (found := SECRET.search("\n".join(results))):
        return f"The secret is {found[0]}."
    if "EDIT-TASK" in "".join(message.text for message in request.messages):
        return 'greeting.py\n```\nprint("good morning")\n```\n'
    if "secret.txt" in asked and not results and (call := _call_for(request.tools)):
        return f"I will look.\n<tool_call>\n{json.dumps(call)}\n</tool_call>"
    if results:
        return "The tool said: " + results[-1][:300]
    return CAPITAL


def _call_for(tools: Sequence[ToolSpec]) -> dict[str, Any] | None:
    offered = {tool.name: tool for tool in tools}
    for name in (*SHELLS, *READERS):
        if name in offered:
            return {"name": name, "arguments": _arguments(name, offered[name].parameters)}
    return None


def _arguments(name: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    properties: Mapping[str, Any] = schema.get("properties", {})
    arguments: dict[str, Any] = {}
    for key, kind in properties.items():
        is_list = isinstance(kind, dict) and kind.get("type") == "array"
        if key in ("command", "cmd"):
            arguments[key] = ["cat", "secret.txt"] if is_list else "cat secret.txt"
        elif key in ("path", "filePath", "file_path", "file"):
            arguments[key] = "secret.txt"
        elif key == "description":
            arguments[key] = "read a file"
    return {key: value for key, value in arguments.items() if name in SHELLS or key not in ("command", "cmd")}


UNSCALED = 2.5  # the length of a vector that was asked for as it is


class ScriptedModel:
    """TextGenerator, Embedder, LoadedModels and ModelStore of one model, which writes what `answer` says."""

    def __init__(self, answer: Callable[[GenerateRequest], str] = answer_to) -> None:
        self.answer = answer
        self.requests: list[GenerateRequest] = []

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Delta]:
        self.find(request.model)
        self.requests.append(request)
        yield Delta()
        if request.load_only:
            yield Delta(finish_reason=FinishReason.STOP, usage=Usage())
            return
        text = self.answer(request)
        parser = parser_for(request, MODEL, thinking_open=False)
        num_calls = 0
        for start in range(0, len(text), 7):
            piece = text[start : start + 7]
            logprobs = _logprobs(piece, request.logprobs)
            for delta in parser.push(piece) if parser else [Delta(text=piece)]:
                num_calls += len(delta.tool_calls)
                yield delta
            if logprobs:
                yield Delta(logprobs=logprobs)
        for delta in parser.finish() if parser else []:
            num_calls += len(delta.tool_calls)
            yield delta
        prompt = request.prompt or "".join(message.text for message in request.messages)
        usage = Usage(prompt_tokens=len(prompt.split()), completion_tokens=-(-len(text) // 7))
        yield Delta(finish_reason=FinishReason.TOOL_CALLS if num_calls else FinishReason.STOP, usage=usage)

    async def count_tokens(self, model: str, text: str) -> int:
        return -(-len(text) // 4)

    async def details(self, model: str) -> ModelDetails:
        return self.find(model)

    async def served_by(self, model: str) -> ServedBy:
        return ServedBy(model=model, backend="scripted")

    async def aclose(self) -> None:
        pass

    async def embed(
        self,
        model: str,
        inputs: Sequence[str],
        *,
        pooling: Pooling | None = None,
        truncate: bool = True,
        dimensions: int | None = None,
        unit_length: bool = True,
        keep_alive_s: float | None = None,
    ) -> Embeddings:
        length = 1.0 if unit_length else UNSCALED
        vectors = tuple(tuple(length * number for number in vector_of(text)[:dimensions]) for text in inputs)
        return Embeddings(vectors, tuple(len(t.split()) for t in inputs))

    def loaded(self) -> Sequence[LoadedModel]:
        return [LoadedModel(MODEL, 131_072, "CPU", 98_000_000, 1_700_000_300.0)]

    async def unload(self, model: str) -> bool:
        return True

    def list_models(self) -> Sequence[ModelDetails]:
        return [MODEL]

    def find(self, reference: str) -> ModelDetails:
        if reference.lower().removesuffix(":latest") != "scripted":
            raise ModelNotFound(reference)
        return MODEL

    def remove(self, reference: str) -> None:
        raise ModelNotFound(reference)


def vector_of(text: str) -> tuple[float, ...]:
    """A vector of length 1 that differs from text to text."""
    raw = [byte - 127.5 for byte in hashlib.sha256(text.encode()).digest()[:8]]
    length = sum(number * number for number in raw) ** 0.5
    return tuple(number / length for number in raw)


def _logprobs(piece: str, num_top: int | None) -> tuple[ChosenToken, ...]:
    if num_top is None:
        return ()
    chosen = TokenLogprob(piece, 1, -0.25, piece.encode())
    return (ChosenToken(chosen, tuple(TokenLogprob(f"{n}", n, -1.0 - n, f"{n}".encode()) for n in range(num_top))),)
