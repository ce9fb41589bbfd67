"""Several answers to one request: who asks for `n` of them gets so many, told apart, paid once, ended together."""

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

import httpx2
import openai
import pytest

from garzone.core.errors import GenerationFailed, Overloaded
from garzone.core.generation import Delta, FinishReason, GenerateRequest, Usage
from garzone.server.choices import answers
from tests.server.conftest import Scripted, app_of, running, scripted

HI = [{"role": "user", "content": "say hi"}]


def posted(url: str, path: str, **body: Any) -> Any:
    response = httpx2.post(f"{url}/v1{path}", json={"model": "scripted", **body}, timeout=30)
    return response.json() if response.status_code == 200 else (response.status_code, response.json())


def test_n_answers_in_one_document_with_usage_for_one_prompt() -> None:
    generator = scripted("Hi.", "Hello there.", "Good day to you.")
    with running(app_of(generator)) as url:
        document = posted(url, "/chat/completions", messages=HI, n=3, seed=5)
    texts = [(choice["index"], choice["message"]["content"]) for choice in document["choices"]]
    assert texts == [(0, "Hi."), (1, "Hello there."), (2, "Good day to you.")]
    assert {choice["finish_reason"] for choice in document["choices"]} == {"stop"}
    assert document["usage"]["prompt_tokens"] == 2
    assert document["usage"]["completion_tokens"] == 1 + 2 + 4
    assert [request.sampling.seed for request in generator.requests] == [5, 6, 7]


def test_the_openai_client_streams_n_answers_and_tells_them_apart() -> None:
    generator = scripted("The first of the answers.", "The second one.")
    with running(app_of(generator)) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0)
        stream = client.chat.completions.create(
            model="scripted",
            messages=[{"role": "user", "content": "hi"}],
            n=2,
            stream=True,
            stream_options={"include_usage": True},
        )
        texts, reasons, usages = {0: "", 1: ""}, dict[int, str](), list[int]()
        for chunk in stream:
            for choice in chunk.choices:
                assert choice.index not in reasons, "nothing follows an answer's end"
                texts[choice.index] += choice.delta.content or ""
                if choice.finish_reason:
                    reasons[choice.index] = choice.finish_reason
            if chunk.usage:
                usages.append(chunk.usage.completion_tokens)
    assert texts == {0: "The first of the answers.", 1: "The second one."}
    assert reasons == {0: "stop", 1: "stop"}
    assert usages == [5 + 3]


def test_completions_have_n_answers_to_each_of_several_prompts() -> None:
    generator = scripted("one", "two", "three", "four")
    with running(app_of(generator)) as url:
        document = posted(url, "/completions", prompt=["a b", "c"], n=2, echo=True)
        streamed = httpx2.post(
            f"{url}/v1/completions",
            json={"model": "scripted", "prompt": ["a b", "c"], "stream": True},
            timeout=30,
        ).text
    assert [(choice["index"], choice["text"]) for choice in document["choices"]] == [
        (0, "a bone"),
        (1, "a btwo"),
        (2, "cthree"),
        (3, "cfour"),
    ]
    assert document["usage"]["prompt_tokens"] == 2 + 1
    events = [json.loads(line[6:]) for line in streamed.splitlines() if line.startswith("data: {")]
    ends = [choice["index"] for event in events for choice in event["choices"] if choice["finish_reason"]]
    assert sorted(ends) == [0, 1]
    assert streamed.endswith("data: [DONE]\n\n")
    assert streamed.count("[DONE]") == 1


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/chat/completions", {"messages": HI, "n": 0}),
        ("/chat/completions", {"messages": HI, "n": 129}),
        ("/completions", {"prompt": "a", "best_of": 3}),
        ("/completions", {"prompt": ["a"] * 65, "n": 2}),
    ],
)
def test_what_is_too_much_or_cannot_be_is_refused_with_the_field(url: str, path: str, body: Any) -> None:
    status, document = posted(url, path, **body)
    assert status == 400
    assert document["error"]["message"].startswith(("n:", "best_of:", "prompt:"))


def test_one_answer_that_cannot_be_had_ends_all_with_its_status() -> None:
    generator = scripted("Hi.", Overloaded("the queue is full"))
    with running(app_of(generator)) as url:
        status, document = posted(url, "/chat/completions", messages=HI, n=2)
    assert (status, document["error"]["message"]) == (503, "the queue is full")


class _Slow(Scripted):
    """Writes for ever, and counts who still does."""

    def __init__(self) -> None:
        super().__init__(["x"], model="scripted")
        self.writing = 0

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Delta]:
        self.writing += 1
        try:
            while True:
                yield Delta(text="x")
                await asyncio.sleep(0.001)
        finally:
            self.writing -= 1


def test_closing_the_stream_ends_every_answer() -> None:
    async def read() -> int:
        generator = _Slow()
        stream = answers(generator, [GenerateRequest("scripted", prompt="x")] * 3)
        seen = {(await anext(stream)).choice for _ in range(9)}
        assert generator.writing == len(seen) == 3
        await stream.aclose()
        return generator.writing

    assert asyncio.run(read()) == 0


def test_an_answer_that_just_stops_is_an_error_and_no_wait_for_ever() -> None:
    class Broken(Scripted):
        async def generate(self, request: GenerateRequest) -> AsyncGenerator[Delta]:
            yield Delta(text="x")
            if request.prompt == "good":
                yield Delta(finish_reason=FinishReason.STOP, usage=Usage())

    async def read() -> None:
        requests = [GenerateRequest("scripted", prompt=prompt) for prompt in ("good", "bad")]
        async for _ in answers(Broken(["x"]), requests):
            pass

    with pytest.raises(GenerationFailed, match="without saying why"):
        asyncio.run(asyncio.wait_for(read(), 5))
