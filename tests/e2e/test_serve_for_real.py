"""`garzone serve` as clients see it: the real `ollama` and `openai` packages, real weights."""

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
