"""OpenAI's smaller routes: completions, embeddings, logprobs, tools; and native embeddings and logprobs."""

import base64
import json
import struct
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from garzone.core.errors import InvalidRequest
from garzone.core.generation import ChosenToken, Delta, FinishReason, SamplingParams, TokenLogprob, Usage
from garzone.server.dialects import anthropic_stream, ollama, openai, openai_completions, openai_responses_stream
from tests.realclients.model import CAPITAL, UNSCALED, ScriptedModel, vector_of
from tests.realclients.server import app_of
from tests.server.conftest import app_of as plain_app_of
from tests.server.conftest import running, scripted

HI = [{"role": "user", "content": "hi"}]
TOKEN = ChosenToken(TokenLogprob("é", 1, -0.5, "é".encode()), (TokenLogprob("b", 2, -1.5, b"b"),))
END = Delta(finish_reason=FinishReason.STOP, usage=Usage(prompt_tokens=7, completion_tokens=2))


@pytest.fixture
def model() -> ScriptedModel:
    return ScriptedModel()


@pytest.fixture
def url(model: ScriptedModel) -> Iterator[str]:
    with running(app_of(model)) as address:
        yield address


def post(url: str, path: str, body: object) -> httpx2.Response:
    return httpx2.post(url + path, json=body, timeout=30)


# --- completions


def test_completion_chunks_byte_for_byte() -> None:
    body = {"model": "m", "prompt": "p", "echo": True, "stream_options": {"include_usage": True}}
    exchange = openai_completions.CompletionExchange(body)
    raw = exchange.begin() + exchange.piece(Delta(text="a")) + exchange.piece(END)
    events = [line.removeprefix("data: ") for line in raw.decode().split("\n\n")]
    assert events[-2:] == ["[DONE]", ""]
    documents = [json.loads(event) for event in events[:-2]]
    assert {document["object"] for document in documents} == {"text_completion"}
    choices = [document["choices"] for document in documents]
    assert choices == [
        [{"index": 0, "text": "p", "logprobs": None, "finish_reason": None}],
        [{"index": 0, "text": "a", "logprobs": None, "finish_reason": None}],
        [{"index": 0, "text": "", "logprobs": None, "finish_reason": "stop"}],
        [],
    ]
    assert documents[-1]["usage"]["total_tokens"] == 9


def test_a_gap_is_asked_to_be_filled(url: str, model: ScriptedModel) -> None:
    body = {"model": "scripted", "prompt": "def add(a, b):\n    ", "suffix": "\n", "max_tokens": 9, "temperature": 0}
    answer = post(url, "/v1/completions", body).json()
    assert answer["choices"][0]["text"] == "return a + b"
    (request,) = model.requests
    assert (request.prompt, request.suffix, request.think) == ("def add(a, b):\n    ", "\n", False)
    assert (request.sampling.max_tokens, request.sampling.temperature) == (9, 0)


@pytest.mark.parametrize(
    ("fields", "words"),
    [({"prompt": []}, "prompt"), ({"prompt": ""}, "empty"), ({"best_of": 2}, "choose"),
     ({"prompt": [1, 2]}, "prompt"), ({"logprobs": 21}, "top_logprobs")],
)  # fmt: skip
def test_what_completions_cannot_do_is_said(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        openai_completions.CompletionExchange({"model": "m", "prompt": "x", **fields}).to_request(SamplingParams())


# --- logprobs, in four spellings


def test_logprobs_of_chat_completions() -> None:
    listed = {
        "token": "é", "logprob": -0.5, "bytes": [195, 169],
        "top_logprobs": [{"token": "b", "logprob": -1.5, "bytes": [98]}],
    }  # fmt: skip
    body = {"model": "m", "messages": HI, "logprobs": True, "top_logprobs": 1}
    exchange = openai.ChatExchange(body)
    assert exchange.to_request(SamplingParams()).logprobs == 1
    chunk = json.loads(exchange.piece(Delta(text="é", logprobs=(TOKEN,))).decode().removeprefix("data: "))
    assert chunk["choices"][0]["delta"] == {"content": "é"}
    assert chunk["choices"][0]["logprobs"]["content"] == [listed]
    whole = openai.ChatExchange(body).whole([Delta(text="é"), Delta(logprobs=(TOKEN,)), END])
    assert whole["choices"][0]["logprobs"]["content"] == [listed]
    alone = openai.ChatExchange({"model": "m", "messages": HI, "logprobs": True})
    assert alone.to_request(SamplingParams()).logprobs == 0


def test_logprobs_of_completions() -> None:
    exchange = openai_completions.CompletionExchange({"model": "m", "prompt": "x", "logprobs": 1})
    whole = exchange.whole([Delta(text="éé", logprobs=(TOKEN, TOKEN)), END])
    assert whole["choices"][0]["logprobs"] == {
        "tokens": ["é", "é"],
        "token_logprobs": [-0.5, -0.5],
        "top_logprobs": [{"b": -1.5}, {"b": -1.5}],
        "text_offset": [0, 1],
    }


def test_native_logprobs() -> None:
    body = {"model": "m", "messages": HI, "prompt": "x", "logprobs": True, "top_logprobs": 1}
    for exchange_of in (ollama.ChatExchange, ollama.GenerateExchange):
        exchange = exchange_of(body)
        assert exchange.to_request(SamplingParams()).logprobs == 1
        line = json.loads(exchange.piece(Delta(text="é", logprobs=(TOKEN,))))
        assert line["logprobs"][0]["token"] == "é"
        assert line["logprobs"][0]["top_logprobs"] == [{"token": "b", "logprob": -1.5, "bytes": [98]}]
        assert exchange.whole([Delta(logprobs=(TOKEN,)), END])["logprobs"] == line["logprobs"]


# --- embeddings


def test_embeddings_as_numbers_and_as_base64(url: str) -> None:
    plain = post(url, "/v1/embeddings", {"model": "scripted", "input": ["a", "b c"]}).json()
    assert plain["data"][1]["embedding"] == pytest.approx(vector_of("b c"))
    assert plain["usage"] == {"prompt_tokens": 3, "total_tokens": 3}
    packed = post(url, "/v1/embeddings", {"model": "scripted", "input": "a", "encoding_format": "base64"}).json()
    raw = base64.b64decode(packed["data"][0]["embedding"])
    assert struct.unpack("<8f", raw) == pytest.approx(vector_of("a"))
    short = post(url, "/v1/embeddings", {"model": "scripted", "input": "a", "dimensions": 3}).json()
    assert len(short["data"][0]["embedding"]) == 3


def test_native_embeddings(url: str) -> None:
    many = post(url, "/api/embed", {"model": "scripted", "input": ["a", "b c"], "options": {"num_ctx": None}}).json()
    assert many["embeddings"][0] == pytest.approx(vector_of("a"))
    assert many["prompt_eval_count"] == 3
    assert post(url, "/api/embed", {"model": "scripted", "input": "a"}).json()["embeddings"] == [
        pytest.approx(vector_of("a"))
    ]
    assert post(url, "/api/embed", {"model": "scripted", "input": ""}).json()["embeddings"] == []
    one = post(url, "/api/embeddings", {"model": "scripted", "prompt": "a"}).json()
    assert one == {"embedding": pytest.approx([UNSCALED * number for number in vector_of("a")])}
    assert post(url, "/api/embeddings", {"model": "scripted"}).json() == {"embedding": []}


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/v1/embeddings", {"input": [[1, 2]]}, "check_embedding_ctx_length"),
        ("/v1/embeddings", {"input": []}, "input"),
        ("/v1/embeddings", {"input": ["a", ""]}, "empty"),
        ("/api/embed", {"input": ["a", ""]}, "empty"),
        ("/api/embed", {"input": "a", "keep_alive": "soon"}, "keep_alive"),
    ],
)
def test_wrong_inputs_are_named(url: str, path: str, body: dict[str, Any], words: str) -> None:
    response = post(url, path, {"model": "scripted", **body})
    assert response.status_code == 400
    assert words in response.text


def test_a_server_without_an_embedder_says_so() -> None:
    with running(plain_app_of(scripted("x"))) as url:
        for path in ("/api/embed", "/api/embeddings", "/v1/embeddings"):
            response = post(url, path, {"model": "scripted", "input": "a", "prompt": "a"})
            assert response.status_code == 501
            assert response.headers["x-should-retry"] == "false"
        assert post(url, "/api/embed", {"model": "nope", "input": "a"}).status_code == 404


# --- tools


def test_a_call_in_the_models_own_words_becomes_a_call_in_every_dialect(url: str) -> None:
    parameters = {"type": "object", "properties": {"path": {"type": "string"}}}
    function = {"name": "read_file", "description": "Reads.", "parameters": parameters}
    asked = [{"role": "user", "content": "What is in secret.txt?"}]
    base = {"model": "scripted", "messages": asked, "stream": False}
    tools = [{"type": "function", "function": function}]
    native = post(url, "/api/chat", {**base, "tools": tools}).json()["message"]
    assert native["content"] == "I will look.\n"
    assert native["tool_calls"][0]["function"]["arguments"] == {"path": "secret.txt"}
    chat = post(url, "/v1/chat/completions", {**base, "tools": tools}).json()["choices"][0]
    assert chat["finish_reason"] == "tool_calls"
    assert json.loads(chat["message"]["tool_calls"][0]["function"]["arguments"]) == {"path": "secret.txt"}
    ids = {native["tool_calls"][0]["id"], chat["message"]["tool_calls"][0]["id"]}
    assert len(ids) == 2, "ids are not repeated from answer to answer"
    unoffered = post(url, "/v1/chat/completions", base).json()["choices"][0]["message"]
    assert unoffered["content"] == CAPITAL


def test_every_answer_has_an_id_of_its_own_in_its_headers(url: str) -> None:
    body = {"model": "scripted", "messages": HI}
    ids = [post(url, "/v1/chat/completions", body).headers["x-request-id"] for _ in range(2)]
    ids.append(post(url, "/v1/chat/completions", {**body, "model": "nope"}).headers["x-request-id"])
    ids.append(post(url, "/v1/messages", {**body, "max_tokens": 5}).headers["request-id"])
    assert len(set(ids)) == 4


@pytest.mark.parametrize(
    ("choice", "forced"), [("auto", False), ("none", False), ("required", True), ({"function": {"name": "f"}}, True)]
)
def test_tool_choice_can_force_a_call_in_every_dialect(choice: Any, forced: bool) -> None:
    function = {"name": "f", "parameters": {"type": "object"}}
    chat = {"model": "m", "messages": HI, "tools": [{"type": "function", "function": function}], "tool_choice": choice}
    assert openai.ChatExchange(chat).to_request(SamplingParams()).must_call is forced
    responses = {"model": "m", "input": "x", "tools": [{"type": "function", **function}], "tool_choice": choice}
    assert openai_responses_stream.ResponseExchange(responses).to_request(SamplingParams()).must_call is forced
    words: dict[str, Any] = {"required": {"type": "any"}, "auto": {"type": "auto"}, "none": {"type": "none"}}
    tool_choice = words[choice] if isinstance(choice, str) else {"type": "tool", "name": "f"}
    tools = [{"name": "f", "input_schema": {"type": "object"}}]
    messages = {"model": "m", "messages": HI, "tools": tools, "tool_choice": tool_choice}
    assert anthropic_stream.MessagesExchange(messages).to_request(SamplingParams()).must_call is forced
