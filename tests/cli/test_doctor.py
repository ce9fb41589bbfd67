"""`garzone doctor` on machines that lack one thing or another."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from starlette.applications import Starlette

from garzone.cli.doctor import check_compiler, check_device, check_models, check_server, check_store
from garzone.config import Settings
from garzone.testing import write_tiny_model
from tests.clients.servers import Script, ollama_app, serving
from tests.store.test_catalog import ollama_wrote


def _settings(tmp_path: Path, **given: object) -> Settings:
    return Settings(home=tmp_path, models_dir=tmp_path / "models", **given)  # type: ignore[arg-type]


def _doctor(tmp_path: Path, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from garzone.cli import main; main()", "doctor", *arguments],
        env={**os.environ, "GARZONE_HOME": str(tmp_path), "OLLAMA_MODELS": str(tmp_path / "models"), **environ},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )


def test_this_machine_is_examined_without_importing_tensors_here(tmp_path: Path) -> None:
    done = _doctor(tmp_path, "--json", "--device", "CPU", OLLAMA_HOST="127.0.0.1:9")
    report = json.loads(done.stdout)
    states = {check["name"]: check["state"] for check in report["checks"]}
    assert list(states) == ["device", "compiler", "sandbox", "store", "models", "server"]
    assert states["models"] == states["server"] == "note", "neither is needed before a person wants one"
    assert done.returncode == (3 if "missing" in states.values() else 0)
    assert report["ok"] == (done.returncode == 0)
    program = "import sys, garzone.cli.doctor; sys.exit('tinygrad' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_something_missing_is_exit_code_three_with_advice(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("no directory")
    done = _doctor(tmp_path, OLLAMA_MODELS=str(blocked / "models"), OLLAMA_HOST="127.0.0.1:9")
    assert done.returncode == 3
    assert "missing  store" in done.stdout
    assert "set OLLAMA_MODELS" in done.stdout


@pytest.mark.parametrize(
    ("probe", "said"),
    [
        ("import time; time.sleep(60)", "did not answer within"),
        ("raise RuntimeError('no driver')", "RuntimeError: no driver"),
        ("import os; os.abort()", "cannot be used"),
        ("print('chatter')", "cannot be used: chatter"),
        ('print(\'{"device": "XPU", "total": 11.5, "arch": "", "found": ["XPU"]}\')', "computes nonsense"),
    ],
)
def test_a_broken_device_is_reported_and_cut_off(probe: str, said: str) -> None:
    finding = check_device("XPU", probe=probe, timeout_s=1.0 if "sleep" in probe else 20.0)
    assert finding.state == "missing"
    assert said in finding.detail
    assert "--device" in finding.advice


def test_a_gpu_is_good_and_a_processor_alone_is_a_note() -> None:
    probe = 'print(\'{"device": "%s", "total": 12.0, "arch": "gfx1100", "found": ["%s"]}\')'
    assert check_device("", probe=probe % ("AMD", "AMD")).state == "ok"
    assert "AMD gfx1100" in check_device("", probe=probe % ("AMD", "AMD")).detail
    assert check_device("", probe=probe % ("CPU", "CPU")).state == "note"


def test_a_compiler_is_tried_and_not_just_looked_for(tmp_path: Path) -> None:
    assert check_compiler(("no-such-compiler",)).state == "missing"
    fake = tmp_path / "cc"
    fake.write_text("#!/bin/sh\necho 'ld: cannot find crt1.o' >&2\nexit 1\n")
    fake.chmod(0o755)
    finding = check_compiler((str(fake),))
    assert finding.state == "missing"
    assert "crt1.o" in finding.detail


def test_a_store_that_is_not_there_yet_is_no_fault(tmp_path: Path) -> None:
    finding = check_store(tmp_path / "a" / "b")
    assert finding.state in ("ok", "note")
    assert "first pull" in finding.detail
    assert list(tmp_path.iterdir()) == []


def test_models_are_named_and_a_missing_default_is_a_note(tmp_path: Path) -> None:
    weights = write_tiny_model(tmp_path / "tiny.gguf").read_bytes()
    assert check_models(_settings(tmp_path)).state == "note"
    ollama_wrote(tmp_path / "models", "tiny:1b", weights)
    assert "tiny:1b" in check_models(_settings(tmp_path)).detail
    assert check_models(_settings(tmp_path)).state == "note"
    assert check_models(_settings(tmp_path, model="tiny:1b")).state == "ok"


def test_the_server_is_asked_for_its_version(tmp_path: Path) -> None:
    script = Script()
    with serving(ollama_app(lambda: script)) as url:
        port = int(url.rpartition(":")[2])
        assert "0.13.5" in check_server(_settings(tmp_path, port=port)).detail
    with serving(Starlette()) as url:
        port = int(url.rpartition(":")[2])
        assert "something else" in check_server(_settings(tmp_path, port=port)).detail
    assert "garzone serve" in check_server(_settings(tmp_path, port=9)).advice
