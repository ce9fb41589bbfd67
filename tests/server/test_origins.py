"""Which pages and names a server on loopback talks to."""

import httpx2
import pytest

from garzone.server.origins import host_allowed, origin_allowed
from tests.server.conftest import app_of, running, scripted


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "localhost:11434",
        "127.0.0.1:11434",
        "[::1]:11434",
        "0.0.0.0",
        "192.168.1.5:80",
        "10.0.0.1",
        "a.localhost",
        "box.local",
        "host.docker.internal:11434",
        "",
    ],
)
def test_names_of_this_machine(host: str) -> None:
    assert host_allowed(host)


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "evil.example:11434", "8.8.8.8", "127.0.0.1.evil.example"]
)
def test_names_of_others(host: str) -> None:
    assert not host_allowed(host)


@pytest.mark.parametrize(
    "origin",
    [
        "http://localhost",
        "https://localhost:3000",
        "http://127.0.0.1:8080",
        "http://0.0.0.0:1",
        "http://[::1]:5173",
        "app://obsidian.md",
        "file://",
        "tauri://localhost",
        "vscode-webview://abc",
        "vscode-file://vscode-app",
    ],
)
def test_origins_on_this_machine(origin: str) -> None:
    assert origin_allowed(origin, "127.0.0.1:11434", ())


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "null",
        "http://localhost.evil.example",
        "chrome-extension://abc",
        "http://evil.example@localhost.evil.example",
    ],
)
def test_origins_elsewhere(origin: str) -> None:
    assert not origin_allowed(origin, "127.0.0.1:11434", ())


def test_origins_can_be_added_with_wildcards_and_a_server_trusts_its_own() -> None:
    assert origin_allowed("https://chat.example.org", "127.0.0.1", ("https://*.example.org",))
    assert origin_allowed("chrome-extension://abc", "127.0.0.1", ("chrome-extension://*",))
    assert origin_allowed("https://models.lan:8443", "models.lan:8443", ())


@pytest.fixture
def local() -> str:
    return "http://localhost:3000"


def test_a_rebound_name_is_refused(url: str) -> None:
    response = httpx2.get(f"{url}/api/tags", headers={"host": "evil.example"})
    assert response.status_code == 403
    assert "evil.example" in response.json()["error"]


def test_a_foreign_page_cannot_ask_for_anything() -> None:
    generator = scripted("x")
    with running(app_of(generator)) as url:
        body = {"model": "scripted", "prompt": "x"}
        response = httpx2.post(f"{url}/api/generate", json=body, headers={"origin": "https://evil.example"})
    assert response.status_code == 403
    assert "access-control-allow-origin" not in response.headers
    assert not generator.requests


def test_a_local_page_can(url: str, local: str) -> None:
    wanted = {"origin": local, "access-control-request-method": "POST", "access-control-request-headers": "x-a, x-b"}
    preflight = httpx2.options(f"{url}/api/chat", headers=wanted)
    assert preflight.status_code == 204
    assert preflight.headers["access-control-allow-origin"] == local
    assert preflight.headers["access-control-allow-headers"] == "x-a, x-b"
    response = httpx2.get(f"{url}/api/tags", headers={"origin": local})
    assert (response.status_code, response.headers["access-control-allow-origin"]) == (200, local)


def test_a_server_that_listens_everywhere_answers_to_any_name() -> None:
    with running(app_of(scripted("x"), host="0.0.0.0")) as url:
        assert httpx2.get(f"{url}/api/tags", headers={"host": "gpu.example"}).status_code == 200


@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "~/m.gguf", "here.GGUF"])
def test_strangers_cannot_ask_for_files(name: str) -> None:
    with running(app_of(scripted("x"), host="0.0.0.0")) as url:
        for path in ("/api/generate", "/api/show"):
            response = httpx2.post(url + path, json={"model": name, "prompt": "x"})
            assert response.status_code == 404
            assert "same machine" in response.json()["error"]


def test_nonsense_in_the_headers_is_refused(url: str) -> None:
    assert httpx2.get(f"{url}/api/tags", headers={"host": "[::1"}).status_code == 403
    assert httpx2.get(f"{url}/api/tags", headers={"origin": "http://[::1"}).status_code == 403
