"""`garzone serve` as clients see it: the real packages of three vendors, real weights."""

import json

import anthropic
import httpx2
import ollama
import openai
import pytest

from tests.e2e.conftest import MODEL, World
from tests.numbers import record_number

QUESTION = "What is the capital of France? Answer in one short sentence."


def test_the_ollama_client_gets_a_streamed_answer(server: str) -> None:
    client = ollama.Client(host=server)
    parts = list(
        client.chat(
            MODEL,
            messages=[{"role": "user", "content": QUESTION}],
            stream=True,
            options={"temperature": 0, "num_predict": 40},
        )
    )
    assert "Paris" in "".join(part.message.content or "" for part in parts)
    assert len(parts) > 3
    last = parts[-1]
    assert last.done
    assert last.done_reason in ("stop", "length")
    assert last.eval_count
    assert last.eval_duration
    record_number("served decode, tok/s (short answer)", last.eval_count / last.eval_duration * 1e9)


def test_the_openai_client_gets_a_streamed_answer(server: str) -> None:
    client = openai.OpenAI(base_url=f"{server}/v1", api_key="none")
    stream = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": QUESTION}],
        stream=True,
        temperature=0,
        max_tokens=40,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert "Paris" in "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert chunks[-1].usage
    assert chunks[-1].usage.completion_tokens > 3
    assert MODEL in [model.id for model in client.models.list()]


def test_the_same_greedy_question_gives_the_same_answer_in_both_dialects(server: str) -> None:
    one = ollama.Client(host=server).chat(
        MODEL, messages=[{"role": "user", "content": QUESTION}], options={"temperature": 0, "num_predict": 30}
    )
    two = openai.OpenAI(base_url=f"{server}/v1", api_key="none").chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": QUESTION}], temperature=0, max_tokens=30
    )
    assert one.message.content == two.choices[0].message.content


def test_an_unknown_model_is_404_in_both_dialects(server: str) -> None:
    with pytest.raises(ollama.ResponseError) as native:
        ollama.Client(host=server).chat("nope:1b", messages=[{"role": "user", "content": "x"}])
    assert native.value.status_code == 404
    with pytest.raises(openai.NotFoundError):
        openai.OpenAI(base_url=f"{server}/v1", api_key="none").chat.completions.create(
            model="nope:1b", messages=[{"role": "user", "content": "x"}]
        )


def test_list_show_and_ps_know_the_model(server: str, world: World) -> None:
    client = ollama.Client(host=server)
    client.generate(MODEL, "x", options={"num_predict": 1})
    assert MODEL in [model.model for model in client.list().models]
    assert MODEL in [model.model for model in client.ps().models]
    shown = client.show(MODEL)
    assert shown.details is not None
    assert shown.details.quantization_level == "Q4_1"
    assert MODEL in world.garzone("list").stdout


def test_the_anthropic_client_gets_a_streamed_answer_and_its_tokens_counted_beforehand(server: str) -> None:
    client = anthropic.Anthropic(base_url=server, api_key="none", max_retries=0)
    messages: list[anthropic.types.MessageParam] = [{"role": "user", "content": QUESTION}]
    cold = {"temperature": 0}  # the package's newest release has no argument for it
    counted = client.messages.count_tokens(model=MODEL, messages=messages).input_tokens
    with client.messages.stream(model=MODEL, messages=messages, max_tokens=40, extra_body=cold) as stream:
        text = "".join(stream.text_stream)
        usage = stream.get_final_message().usage
    assert "Paris" in text
    assert usage.input_tokens + (usage.cache_read_input_tokens or 0) == counted


def test_responses_stream_and_end(server: str) -> None:
    client = openai.OpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0)
    with client.responses.stream(model=MODEL, input=QUESTION, max_output_tokens=40, temperature=0) as events:
        kinds = [event.type for event in events]
    assert kinds[-1] in ("response.completed", "response.incomplete")
    assert kinds.count("response.output_text.delta") > 3


def test_a_schema_is_kept_to_in_every_dialect(server: str) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}, "large": {"type": "boolean"}},
        "required": ["city", "large"],
        "additionalProperties": False,
    }
    asked = [{"role": "user", "content": "Which city is the capital of France? Answer as JSON."}]
    base = {"model": MODEL, "messages": asked, "stream": False, "max_tokens": 60, "temperature": 0}
    form = {"type": "json_schema", "schema": schema}
    native = {**base, "format": schema, "options": {"temperature": 0, "num_predict": 60}}
    answers = [
        httpx2.post(f"{server}/api/chat", json=native, timeout=120).json()["message"]["content"],
        httpx2.post(
            f"{server}/v1/chat/completions",
            json={**base, "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}},
            timeout=120,
        ).json()["choices"][0]["message"]["content"],
        httpx2.post(f"{server}/v1/messages", json={**base, "output_config": {"format": form}}, timeout=120).json()[
            "content"
        ][0]["text"],
    ]
    for answer in answers:
        document = json.loads(answer)
        assert isinstance(document["city"], str)
        assert isinstance(document["large"], bool)
    assert len(set(answers)) == 1, "greedy answers to the same question"
