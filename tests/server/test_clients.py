"""The real `ollama` and `openai` packages against a real server with a scripted model."""

from datetime import UTC, datetime

import httpx2
import ollama
import openai
import pytest

from garzone.core.chat import Role
from garzone.core.errors import (
    BackendUnavailable,
    ContextOverflow,
    GarzoneError,
    GenerationFailed,
    Overloaded,
    RunnerCrashed,
)
from garzone.core.generation import SamplingParams
from tests.server.conftest import MODEL, Scripted, app_of, running, scripted

ANSWER = "Paris is the capital of France."
HI = [{"role": "user", "content": "hi there"}]


def openai_client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0)


# --- ollama


def test_ollama_chat_streams(url: str) -> None:
    parts = list(ollama.Client(host=url).chat("scripted", HI, stream=True))
    assert "".join(part.message.content or "" for part in parts) == ANSWER
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]
    last = parts[-1]
    assert (last.done_reason, last.prompt_eval_count, last.eval_count) == ("stop", 2, 6)
    assert last.total_duration
    assert last.load_duration is None


def test_ollama_chat_in_one_piece(url: str) -> None:
    response = ollama.Client(host=url).chat("scripted", HI)
    assert response.message.content == ANSWER
    assert response.message.role == "assistant"
    assert response.done_reason == "stop"
    assert response.created_at


def test_ollama_generate_streams_and_comes_in_one_piece(url: str, generator: Scripted) -> None:
    client = ollama.Client(host=url)
    parts = list(client.generate("scripted", "hi", system="be brief", stream=True))
    assert "".join(part.response or "" for part in parts) == client.generate("scripted", "hi").response == ANSWER
    assert parts[-1].done
    assert (generator.requests[0].prompt, generator.requests[0].system) == ("hi", "be brief")


def test_ollama_options_reach_the_generator(url: str, generator: Scripted) -> None:
    options = {
        "temperature": 0.5,
        "top_k": 7,
        "top_p": 0.25,
        "min_p": 0.125,
        "seed": 42,
        "num_predict": 9,
        "num_ctx": 2048,
        "stop": ["END"],
        "repeat_penalty": 1.5,
        "repeat_last_n": 16,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.75,
    }
    ollama.Client(host=url).chat("scripted", HI, options=options, keep_alive="5m")
    (request,) = generator.requests
    assert request.sampling == SamplingParams(
        temperature=0.5,
        top_k=7,
        top_p=0.25,
        min_p=0.125,
        seed=42,
        max_tokens=9,
        stop=("END",),
        repeat_penalty=1.5,
        repeat_last_n=16,
        presence_penalty=0.5,
        frequency_penalty=0.75,
        num_keep=4,
    )
    assert (request.num_ctx, request.keep_alive_s, request.truncate) == (2048, 300.0, True)


def test_what_a_model_says_of_itself_is_the_default(url: str, generator: Scripted) -> None:
    ollama.Client(host=url).chat("scripted", HI)
    assert generator.requests[0].sampling == SamplingParams(
        temperature=0.2, stop=("<|im_end|>", "<|im_start|>"), num_keep=4
    )


def test_ollama_lists_shows_and_ps(url: str) -> None:
    client = ollama.Client(host=url)
    (listed,) = client.list().models
    assert (listed.model, listed.size, listed.digest) == (MODEL.name, MODEL.size_bytes, "a" * 64)
    assert listed.details is not None
    assert (listed.details.family, listed.details.quantization_level) == ("llama", "Q4_1")
    assert listed.modified_at == datetime.fromtimestamp(MODEL.modified_at, UTC)
    shown = client.show("scripted")
    assert shown.capabilities == ["completion"]
    assert shown.modelinfo is not None
    assert shown.modelinfo["general.architecture"] == "llama"
    assert shown.modelinfo["llama.context_length"] == 8192
    assert shown.parameters is not None
    assert [line.split() for line in shown.parameters.splitlines()] == [
        ["stop", '"<|im_end|>"'],
        ["stop", '"<|im_start|>"'],
        ["temperature", "0.2"],
    ]
    (loaded,) = client.ps().models
    assert httpx2.get(f"{url}/api/ps").json()["models"][0]["kv_cache_type"] == "f16"
    assert (loaded.size_vram, loaded.context_length) == (250_000_000, 4096)
    assert loaded.expires_at == datetime.fromtimestamp(1_700_000_300, UTC)


def test_ollama_errors_have_their_status_and_words(url: str) -> None:
    client = ollama.Client(host=url)
    with pytest.raises(ollama.ResponseError) as unknown:
        client.chat("nope", HI)
    assert (unknown.value.status_code, unknown.value.error) == (404, "model 'nope' not found")
    with pytest.raises(ollama.ResponseError) as unknown:
        client.show("nope")
    assert unknown.value.status_code == 404
    with pytest.raises(ollama.ResponseError, match=r"options.temperature") as bad:
        client.chat("scripted", HI, options={"temperature": -1})
    assert bad.value.status_code == 400


STATUSES = [
    (ContextOverflow(9000, 8191), 400),
    (Overloaded("512 requests are waiting"), 503),
    (RunnerCrashed("the model's process was killed"), 500),
    (BackendUnavailable("nobody answers"), 502),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("error", "status"), STATUSES, ids=lambda value: type(value).__name__)
def test_errors_before_the_first_word_have_a_status_even_when_streaming(
    error: GarzoneError, status: int, stream: bool
) -> None:
    with running(app_of(scripted(error))) as url:
        with pytest.raises(ollama.ResponseError) as native:
            list(ollama.Client(host=url).chat("scripted", HI, stream=stream))
        assert (native.value.status_code, native.value.error) == (status, str(error))
        with pytest.raises(openai.APIStatusError) as compatible:
            openai_client(url).chat.completions.create(model="scripted", messages=HI, stream=stream)  # pyright: ignore
        assert compatible.value.status_code == status
        assert str(error) in compatible.value.message


def test_an_overflow_has_the_code_that_clients_compact_on() -> None:
    with running(app_of(scripted(ContextOverflow(9000, 8191)))) as url, pytest.raises(openai.BadRequestError) as caught:
        openai_client(url).chat.completions.create(model="scripted", messages=HI)  # pyright: ignore
    assert caught.value.code == "context_length_exceeded"
    assert "prompt is too long: 9000 tokens > 8191 maximum context length" in caught.value.message


class Breaking(Scripted):
    """Breaks off after the first pieces."""

    async def generate(self, request):  # pyright: ignore
        count = 0
        async for delta in super().generate(request):
            count += 1
            if count == 3:
                raise GenerationFailed("the device was lost")
            yield delta


def test_an_error_in_the_middle_is_the_last_thing_said() -> None:
    with running(app_of(Breaking([ANSWER], model="scripted"))) as url:
        with pytest.raises(ollama.ResponseError, match="the device was lost"):
            list(ollama.Client(host=url).chat("scripted", HI, stream=True))
        with pytest.raises(openai.APIError, match="the device was lost"):
            list(openai_client(url).chat.completions.create(model="scripted", messages=HI, stream=True))  # pyright: ignore
        with pytest.raises(ollama.ResponseError) as whole:
            ollama.Client(host=url).chat("scripted", HI)
        assert whole.value.status_code == 500


# --- openai


def test_openai_streams_with_usage(url: str) -> None:
    stream = openai_client(url).chat.completions.create(
        model="scripted",
        messages=[{"role": "user", "content": "hi there"}],
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == ANSWER
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-2:] == [None, "stop"]
    usage = chunks[-1].usage
    assert chunks[-1].choices == []
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (2, 6, 8)
    assert len({chunk.id for chunk in chunks}) == 1
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_openai_answers_in_one_piece(url: str, generator: Scripted) -> None:
    completion = openai_client(url).chat.completions.create(
        model="scripted",
        messages=[
            {"role": "developer", "content": "be brief"},
            {"role": "user", "content": [{"type": "text", "text": "hi "}, {"type": "text", "text": "there"}]},
        ],
        stop="END",
        seed=7,
        max_completion_tokens=12,
    )
    assert completion.choices[0].message.content == ANSWER
    assert completion.choices[0].finish_reason == "stop"
    (request,) = generator.requests
    assert [(message.role, message.text) for message in request.messages] == [
        (Role.SYSTEM, "be brief"),
        (Role.USER, "hi there"),
    ]
    assert request.sampling == SamplingParams(temperature=1.0, top_p=1.0, seed=7, max_tokens=12, stop=("END",))


def test_openai_lists_models(url: str) -> None:
    client = openai_client(url)
    assert [model.id for model in client.models.list()] == ["scripted:latest"]
    assert client.models.retrieve("scripted:latest").owned_by == "library"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nope")


def test_openai_errors(url: str) -> None:
    client = openai_client(url)
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="nope", messages=[{"role": "user", "content": "hi"}])
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.chat.completions.create(model="scripted", messages=[{"role": "user", "content": "hi"}], temperature=-1)
    with pytest.raises(openai.BadRequestError, match=r"\bn\b"):
        client.chat.completions.create(model="scripted", messages=[{"role": "user", "content": "hi"}], n=0)
