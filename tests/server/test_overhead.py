"""What the server adds to an answer. Recorded, and only asserted with a wide margin: the machine is shared."""

import http.client
import json
import time
from collections.abc import AsyncGenerator
from urllib.parse import urlsplit

import pytest

from garzone.core.generation import Delta, FinishReason, GenerateRequest, Usage
from tests.numbers import record_number
from tests.server.conftest import Scripted, app_of, running

NUM_TOKENS = 500
PATHS = ["/api/chat", "/api/generate", "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"]


class Instant(Scripted):
    """As many tokens as asked for, in no time, each in its turn of the event loop's."""

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Delta]:
        for _ in range(request.sampling.max_tokens or 0):
            yield Delta(text="token ")
        yield Delta(finish_reason=FinishReason.LENGTH, usage=Usage())


@pytest.mark.parametrize("path", PATHS)
def test_the_server_costs_little_for_a_request_and_for_a_token(path: str) -> None:
    with running(app_of(Instant([""], model="scripted"))) as url:
        connection = http.client.HTTPConnection(urlsplit(url).netloc)

        def seconds(num_tokens: int) -> float:
            body = {
                "model": "scripted",
                "messages": [{"role": "user", "content": "hi"}],
                "prompt": "hi",
                "input": "hi",
                "stream": True,
                "max_tokens": num_tokens,
                "max_output_tokens": num_tokens,
                "options": {"num_predict": num_tokens},
            }
            started = time.perf_counter()
            connection.request("POST", path, json.dumps(body))
            answer = connection.getresponse().read()
            assert answer.count(b"token ") >= num_tokens
            return time.perf_counter() - started

        seconds(1)
        one = min(seconds(1) for _ in range(20))
        many = min(seconds(NUM_TOKENS) for _ in range(10))
        connection.close()
    per_token_us = (many - one) / (NUM_TOKENS - 1) * 1e6
    record_number(f"server overhead of {path}, us a token (with its client)", per_token_us, "< 50")
    record_number(f"server overhead of {path}, ms a request (with its client)", one * 1e3, "< 3")
    assert per_token_us < 500
    assert one < 0.03
