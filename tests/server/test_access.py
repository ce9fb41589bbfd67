"""Who gets in where a key is set, and how each client says it."""

import base64
from collections.abc import Iterator
from pathlib import Path

import anthropic
import httpx2
import ollama
import openai
import pytest

from garzone.store.catalog import Store
from tests.server.conftest import running, scripted
from tests.server.test_model_routes import front_of

HTTP = httpx2.Client(verify=False, timeout=30)  # one for all: each new one reads the trusted certificates
KEY = "correct horse"


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[str]:
    with running(front_of(Store(tmp_path), scripted("Hello there."), api_key=KEY)) as address:
        yield address


@pytest.mark.parametrize(
    "path",
    ["/api/tags", "/api/version", "/api/ps", "/v1/models", "/metrics", "/ui", "/ui/state", "/api/blobs/x", "/nothing"],
)
@pytest.mark.parametrize(
    "headers", [{}, {"authorization": "Bearer wrong"}, {"x-api-key": ""}, {"authorization": "Basic x"}]
)
def test_nobody_gets_in_without_the_key(guarded: str, path: str, headers: dict[str, str]) -> None:
    response = HTTP.get(guarded + path, headers=headers)
    assert response.status_code == 401
    assert KEY not in response.text


def test_hello_and_health_are_for_everybody(guarded: str) -> None:
    assert HTTP.get(guarded + "/").text == "Ollama is running"
    assert HTTP.head(guarded + "/").status_code == 200
    assert HTTP.get(guarded + "/health").json() == {"status": "ok"}


@pytest.mark.parametrize(
    "path", ["//", "/health/", "/health/../api/tags", "/HEALTH", "/api/tags?x=/health", "/%2e/api/tags"]
)
def test_nearly_open_paths_are_not_open(guarded: str, path: str) -> None:
    import http.client
    from urllib.parse import urlsplit

    connection = http.client.HTTPConnection(urlsplit(guarded).netloc)
    connection.request("GET", path)
    assert connection.getresponse().status == 401
    connection.close()


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": f"Bearer {KEY}"},
        {"authorization": f"bearer  {KEY}"},
        {"x-api-key": KEY},
        {"authorization": "Basic " + base64.b64encode(f"anybody:{KEY}".encode()).decode()},
        {"authorization": "Bearer other", "x-api-key": KEY},
    ],
)
def test_the_key_opens_in_every_spelling(guarded: str, headers: dict[str, str]) -> None:
    assert HTTP.get(guarded + "/api/tags", headers=headers).status_code == 200


def test_real_clients_send_it(guarded: str) -> None:
    assert ollama.Client(host=guarded, headers={"authorization": f"Bearer {KEY}"}).list().models is not None
    answer = openai.OpenAI(base_url=guarded + "/v1", api_key=KEY).chat.completions.create(
        model="scripted", messages=[{"role": "user", "content": "hi"}]
    )
    assert answer.choices[0].message.content == "Hello there."
    with pytest.raises(openai.AuthenticationError, match="API key"):
        openai.OpenAI(base_url=guarded + "/v1", api_key="no", max_retries=0).models.list()
    with pytest.raises(anthropic.AuthenticationError, match="API key"):
        anthropic.Anthropic(base_url=guarded, api_key="no", max_retries=0).messages.create(
            model="scripted", max_tokens=5, messages=[{"role": "user", "content": "hi"}]
        )


def test_a_browser_is_asked_for_it_and_may_preflight(guarded: str) -> None:
    assert HTTP.get(guarded + "/ui").headers["www-authenticate"].startswith("Basic")
    wanted = {"origin": "http://localhost:3000", "access-control-request-method": "POST"}
    assert HTTP.options(guarded + "/api/chat", headers=wanted).status_code == 204
    assert HTTP.options(guarded + "/api/chat").status_code == 401
