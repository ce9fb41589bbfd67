"""Whatever a client sends, it is understood or refused with a sentence; nothing else happens."""

import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from garzone.core.errors import InvalidRequest
from garzone.core.generation import Delta, FinishReason, SamplingParams, Usage
from garzone.runner import protocol
from garzone.server.dialects import (
    anthropic_stream,
    ollama,
    ollama_embed,
    ollama_options,
    openai,
    openai_completions,
    openai_embeddings,
    openai_responses_stream,
)
from garzone.server.exchange import EmbedExchange, Exchange

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["5m", "json", "user"])
)
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
NAMES = [
    "model", "name", "messages", "prompt", "suffix", "system", "template", "context", "stream", "raw", "format",
    "think", "keep_alive", "images", "options", "tools", "truncate", "shift", "logprobs", "stop", "temperature",
    "top_p", "seed", "max_tokens", "n", "tool_choice", "response_format", "stream_options", "reasoning_effort",
    "reasoning", "input", "instructions", "max_output_tokens", "text", "include", "dimensions", "encoding_format",
    "thinking", "output_config", "stop_sequences", "prediction", "echo", "top_logprobs", "truncation", "best_of",
]  # fmt: skip
OPTIONS = st.dictionaries(st.sampled_from([*ollama_options.NAMES, "num_gpu"]), SCALARS, max_size=4)
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "system", "assistant", "tool", "developer"]) | ANYTHING},
    optional={
        "content": ANYTHING | st.just([{"type": "text", "text": "x"}]),
        "tool_calls": ANYTHING | st.just([{"function": {"name": "f", "arguments": "[1]"}}]),
        "images": ANYTHING,
    },
)
BLOCK = st.fixed_dictionaries(
    {"type": st.sampled_from(
        ["text", "image", "tool_use", "tool_result", "thinking", "document", "new", "message", "reasoning",
         "function_call", "function_call_output", "custom_tool_call", "item_reference", "input_text"]) | ANYTHING},
    optional=dict.fromkeys(
        ("text", "content", "source", "input", "id", "name", "tool_use_id", "arguments", "output", "role"), ANYTHING),
)  # fmt: skip
BODIES = st.fixed_dictionaries(
    {"model": st.just("m") | ANYTHING},
    optional={
        **{name: ANYTHING for name in NAMES if name not in ("model", "options", "messages")},
        "options": OPTIONS | ANYTHING,
        "messages": st.lists(
            MESSAGE
            | st.fixed_dictionaries(
                {"role": st.sampled_from(["user", "assistant"]), "content": st.lists(BLOCK, max_size=3)}
            ),
            max_size=2,
        )
        | ANYTHING,
        "system": st.lists(BLOCK, max_size=2) | ANYTHING,
        "input": st.lists(BLOCK, max_size=3) | st.text(max_size=4) | ANYTHING,
    },
)


EXCHANGES = [
    ollama.ChatExchange,
    ollama.GenerateExchange,
    openai.ChatExchange,
    openai_completions.CompletionExchange,
    openai_responses_stream.ResponseExchange,
    anthropic_stream.MessagesExchange,
]


@pytest.mark.parametrize("exchange_of", EXCHANGES)
@settings(max_examples=50)
@given(body=BODIES)
def test_any_body_becomes_a_request_or_a_sentence(
    exchange_of: Callable[[Mapping[str, Any]], Exchange], body: dict[str, Any]
) -> None:
    try:
        exchange = exchange_of(body)
        request = exchange.to_request(SamplingParams())
    except InvalidRequest as error:
        assert str(error)
        return
    assert request.model or exchange.model
    frame = protocol.encode(protocol.Generate(1, request))  # what is understood can be sent to the runner
    assert protocol.parse(frame[4:]) == protocol.Generate(1, request)


@pytest.mark.parametrize(
    "exchange_of",
    [ollama_embed.EmbedExchange, ollama_embed.EmbeddingsExchange, openai_embeddings.EmbeddingsExchange],
)
@settings(max_examples=50)
@given(body=BODIES)
def test_any_body_asks_for_embeddings_or_is_a_sentence(
    exchange_of: Callable[[Mapping[str, Any]], EmbedExchange], body: dict[str, Any]
) -> None:
    try:
        exchange = exchange_of(body)
    except InvalidRequest as error:
        assert str(error)
        return
    assert all(text and isinstance(text, str) for text in exchange.inputs)


@given(st.lists(st.text(max_size=12), max_size=6), st.sampled_from(FinishReason))
def test_any_text_survives_every_dialect(pieces: list[str], reason: FinishReason) -> None:
    deltas = [*(Delta(text=piece) for piece in pieces), Delta(finish_reason=reason, usage=Usage())]
    chat = ollama.ChatExchange({"model": "m", "messages": [{"role": "user", "content": "x"}]})
    chat.to_request(SamplingParams())
    lines = b"".join(map(chat.piece, deltas)).splitlines()
    assert "".join(json.loads(line)["message"]["content"] for line in lines) == "".join(pieces)
    assert [json.loads(line)["done"] for line in lines] == [False] * (len(lines) - 1) + [True]
    completion = openai.ChatExchange({"model": "m", "messages": [{"role": "user", "content": "x"}]})
    events = (completion.begin() + b"".join(map(completion.piece, deltas))).split(b"\n\n")
    assert events[-2:] == [b"data: [DONE]", b""]
    chunks = [json.loads(event.removeprefix(b"data: ")) for event in events[:-2]]
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == "".join(pieces)

    message = anthropic_stream.MessagesExchange({"model": "m", "messages": [{"role": "user", "content": "x"}]})
    events = (message.begin() + b"".join(map(message.piece, deltas))).decode().split("\n\n")
    said = [json.loads(event.partition("\ndata: ")[2]) for event in events[:-1]]
    assert "".join(event["delta"].get("text", "") for event in said if "delta" in event) == "".join(pieces)
    assert said[-1] == {"type": "message_stop"}
    response = openai_responses_stream.ResponseExchange({"model": "m", "input": "x"})
    events = (response.begin() + b"".join(map(response.piece, deltas))).decode().split("\n\n")
    said = [json.loads(event.partition("\ndata: ")[2]) for event in events[:-1]]
    assert "".join(event["delta"] for event in said if event["type"] == "response.output_text.delta") == "".join(pieces)
    assert [event["sequence_number"] for event in said] == list(range(len(said)))
