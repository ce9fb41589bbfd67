"""`garzone serve` as clients see it: the real packages of three vendors, real weights."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import anthropic
import httpx2
import ollama
import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

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


def test_several_choices_share_one_prompt(server: str) -> None:
    client = openai.OpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0)
    messages: list[ChatCompletionMessageParam] = [{"role": "user", "content": QUESTION}]
    alone = client.chat.completions.create(model=MODEL, messages=messages, max_tokens=1)
    assert alone.usage
    three = client.chat.completions.create(model=MODEL, messages=messages, n=3, seed=7, max_tokens=12)
    again = client.chat.completions.create(model=MODEL, messages=messages, n=3, seed=7, max_tokens=12)
    texts = [choice.message.content for choice in three.choices]
    assert len(set(texts)) > 1, "each choice has a seed of its own"
    assert texts == [choice.message.content for choice in again.choices]
    assert three.usage
    assert three.usage.prompt_tokens == alone.usage.prompt_tokens
    greedy = client.chat.completions.create(model=MODEL, messages=messages, n=2, temperature=0, max_tokens=12)
    assert len({choice.message.content for choice in greedy.choices}) == 1


def test_the_anthropic_client_learns_which_sequence_stopped_an_answer(server: str) -> None:
    client = anthropic.Anthropic(base_url=server, api_key="none", max_retries=0)
    asked: list[anthropic.types.MessageParam] = [{"role": "user", "content": QUESTION}]
    message = client.messages.create(
        model=MODEL, messages=asked, max_tokens=40, stop_sequences=["Rome", "Paris"], extra_body={"temperature": 0}
    )
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", "Paris")
    message = client.messages.create(model=MODEL, messages=asked, max_tokens=3, stop_sequences=["Rome"])
    assert (message.stop_reason, message.stop_sequence) == ("max_tokens", None)


# As Qwen2.5's template tells of tools, shortened; smollm2:135m was trained on none
TOOL_TEMPLATE = """{%- if tools %}<|im_start|>system
Call a function with <tool_call>{"name": ..., "arguments": ...}</tool_call>. There are:
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}<|im_end|>
{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}{% for c in m.tool_calls or [] %}<tool_call>{{ c | tojson }}</tool_call>{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "enum": ["Paris", "Rome"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}
PLACE = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Rome"]}},
    "required": ["city"],
    "additionalProperties": False,  # else a hot sampler makes some up until there are no tokens left
}
TOOLS = [("weather", WEATHER), ("move", PLACE)]


@pytest.fixture(scope="session")
def tool_model(server: str) -> Iterator[str]:
    """The same weights with a template that offers tools."""
    made = httpx2.post(
        f"{server}/api/create",
        json={"model": "tooled", "from": MODEL, "template": TOOL_TEMPLATE, "stream": False},
        timeout=60,
    )
    assert made.json() == {"status": "success"}
    assert "tools" in httpx2.post(f"{server}/api/show", json={"model": "tooled"}).json()["capabilities"]
    yield "tooled"
    httpx2.request("DELETE", f"{server}/api/delete", json={"model": "tooled"}).raise_for_status()


def _fits(name: str, arguments: Any) -> bool:
    if name == "move":
        return arguments["city"] == "Rome"
    return set(arguments) == {"city", "days"} and arguments["city"] in ("Paris", "Rome") and 1 <= arguments["days"] <= 9


Called = list[tuple[str, Any, str]]
"""Name, arguments, and why the answer ended, of each call."""


def _call_chat(server: str, model: str, name: str | None, stream: bool) -> Called:
    client: Any = openai.OpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0)
    made = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": QUESTION}],
        tools=[{"type": "function", "function": {"name": tool, "parameters": schema}} for tool, schema in TOOLS],
        tool_choice={"type": "function", "function": {"name": name}} if name else "required",
        max_tokens=80,
        temperature=1.5,
        stream=stream,
    )
    if not stream:
        choice = made.choices[0]
        called = [call.function for call in choice.message.tool_calls]
        return [(one.name, json.loads(one.arguments), choice.finish_reason) for one in called]
    choices = [chunk.choices[0] for chunk in made if chunk.choices]
    called = [call.function for choice in choices for call in choice.delta.tool_calls or []]
    return [(one.name, json.loads(one.arguments), choices[-1].finish_reason) for one in called]


def _call_messages(server: str, model: str, name: str | None, stream: bool) -> Called:
    client: Any = anthropic.Anthropic(base_url=server, api_key="none", max_retries=0)
    asked = {
        "model": model,
        "messages": [{"role": "user", "content": QUESTION}],
        "tools": [{"name": tool, "input_schema": schema} for tool, schema in TOOLS],
        "tool_choice": {"type": "tool", "name": name} if name else {"type": "any"},
        "max_tokens": 80,
        "extra_body": {"temperature": 1.5},
    }
    if stream:
        with client.messages.stream(**asked) as events:
            message = events.get_final_message()
    else:
        message = client.messages.create(**asked)
    return [(block.name, block.input, message.stop_reason) for block in message.content if block.type == "tool_use"]


def _call_responses(server: str, model: str, name: str | None, stream: bool) -> Called:
    client: Any = openai.OpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0)
    asked = {
        "model": model,
        "input": QUESTION,
        "tools": [{"type": "function", "name": tool, "parameters": schema} for tool, schema in TOOLS],
        "tool_choice": {"type": "function", "name": name} if name else "required",
        "max_output_tokens": 80,
        "temperature": 1.5,
    }
    if stream:
        with client.responses.stream(**asked) as events:
            response = events.get_final_response()
    else:
        response = client.responses.create(**asked)
    items = [item for item in response.output if item.type == "function_call"]
    return [(item.name, json.loads(item.arguments), response.status) for item in items]


@pytest.mark.parametrize("stream", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("call", "ended"), [(_call_chat, "tool_calls"), (_call_messages, "tool_use"), (_call_responses, "completed")]
)
def test_a_call_that_must_be_is_made_by_a_model_that_never_learnt_to(
    server: str, tool_model: str, call: Callable[[str, str, str | None, bool], Called], ended: str, stream: bool
) -> None:
    """A hot sampler, 135 million parameters, and still one call whose arguments fit the tool's schema."""
    for name in (None, "move"):
        ((called, arguments, reason),) = call(server, tool_model, name, stream)
        assert called == name or (name is None and called in ("weather", "move"))
        assert _fits(called, arguments), arguments
        assert reason == ended
