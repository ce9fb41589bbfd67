"""`serve`, `ps` and `stop` in processes of their own: where the server listens, what it says about it, and its key."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import httpx2

COMMAND = [sys.executable, "-c", "from garzone.cli import main; main()"]


def environ(home: Path, **more: str) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("OLLAMA_", "GARZONE_"))}
    return {**clean, "GARZONE_HOME": str(home), "OLLAMA_MODELS": str(home / "models"), **more}


@contextmanager
def serving(home: Path, *arguments: str, **more: str) -> Generator[tuple[int, str]]:
    """A server's port, and all it said until it listened."""
    with subprocess.Popen(
        [*COMMAND, "serve", "--port", "0", *arguments], env=environ(home, **more), stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        said = ""
        while not (match := re.search(r"listening on http://[^ ]*:([0-9]+)", said)):
            line = process.stderr.readline()
            assert line, said
            said += line
        try:
            yield int(match[1]), said
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(30) in (0, 130)


def ask(home: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments], env=environ(home, **more), capture_output=True, text=True, timeout=60, check=False
    )


def test_a_server_keeps_to_itself_unless_told_and_then_says_so_loudly(tmp_path: Path) -> None:
    with serving(tmp_path) as (port, said):
        assert f"http://127.0.0.1:{port}" in said
        assert "WARNING" not in said
        assert httpx2.get(f"http://127.0.0.1:{port}/health").json() == {"status": "ok"}
        assert "<title>garzone</title>" in httpx2.get(f"http://127.0.0.1:{port}/ui").text
        assert "garzone_loaded_models 0.0" in httpx2.get(f"http://127.0.0.1:{port}/metrics").text
    with serving(tmp_path, "--host", "0.0.0.0") as (_, said):
        assert "WARNING" in said
        assert "without an API key" in said
        assert "GARZONE_API_KEY" in said


def test_a_key_is_asked_for_and_given_by_our_own_commands(tmp_path: Path) -> None:
    with serving(tmp_path, "--host", "0.0.0.0", GARZONE_API_KEY="s3cret") as (port, said):
        assert "WARNING" not in said
        assert "s3cret" not in said
        assert httpx2.get(f"http://127.0.0.1:{port}/api/tags").status_code == 401
        host = f"127.0.0.1:{port}"
        right = ask(tmp_path, "ps", "--json", OLLAMA_HOST=host, GARZONE_API_KEY="s3cret")
        assert (right.returncode, right.stdout.strip()) == (0, "[]")
        stopped = ask(tmp_path, "stop", "x", OLLAMA_HOST=host, GARZONE_API_KEY="s3cret")
        assert (stopped.returncode, "garzone pull x" in stopped.stderr) == (3, True)
        there = ask(tmp_path, "run", "x", "hi", OLLAMA_HOST=host, GARZONE_API_KEY="s3cret")
        assert (there.returncode, host in there.stderr) == (3, True), "asked of the server, with its key"
        keyless = ask(tmp_path, "run", "x", "hi", OLLAMA_HOST=host)
        assert (keyless.returncode, "wants an API key" in keyless.stderr) == (3, True)
        wrong = ask(tmp_path, "ps", OLLAMA_HOST=host, GARZONE_API_KEY="other")
        assert (wrong.returncode, "wants an API key" in wrong.stderr) == (3, True)
