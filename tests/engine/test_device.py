"""Devices: the best one that works, a machine without a compiler, and errors that name what is missing."""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tinygrad.device import Device
from tinygrad.tensor import Tensor

from garzone.core.errors import DeviceUnavailable
from garzone.engine.device import kernel_cache_environment, open_device
from garzone.testing import write_tiny_model

RUN_TINY_MODEL = """
import sys
from pathlib import Path
from garzone.engine.model_runner import ModelRunner
runner = ModelRunner.load(Path(sys.argv[1]), num_ctx=64, device=sys.argv[2])
logits = runner.prefill([1, 2, 3], 0)
print(*(f"{value:.3f}" for value in runner.decode(5, 3)[:4]))
"""


def run_tiny_model(path: Path, device: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", RUN_TINY_MODEL, str(path), device]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True)


def environment(tmp_path: Path, **changes: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if key not in ("DEV", "CC")}
    return {**kept, **kernel_cache_environment(tmp_path), "GARZONE_HOME": str(tmp_path), **changes}


@pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="the compiler that needs no compiler is for x86"
)
def test_without_a_compiler_the_cpu_still_computes_the_same(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path / "tiny.gguf", num_layers=1)
    (tmp_path / "empty").mkdir()
    bare = run_tiny_model(path, "CPU", environment(tmp_path, PATH=str(tmp_path / "empty")))
    compiled = run_tiny_model(path, "CPU", environment(tmp_path))
    assert "installing clang helps" in bare.stderr
    for one, other in zip(bare.stdout.split(), compiled.stdout.split(), strict=True):
        assert abs(float(one) - float(other)) < 2e-2  # C kernels round activations to eight bits


@pytest.mark.skipif(shutil.which("clang") is None, reason="needs clang, which CC hides here")
def test_a_cc_that_names_another_compiler_does_not_keep_tinygrad_from_clang(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path / "tiny.gguf", num_layers=1)
    found = [run_tiny_model(path, "CPU", environment(tmp_path, CC=cc)).stdout for cc in ("/bin/false", "clang")]
    assert found[0] == found[1] != ""


def test_kernels_are_kept_where_the_caller_says(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path / "tiny.gguf", num_layers=1)
    run_tiny_model(path, "CPU", environment(tmp_path))
    assert (tmp_path / "tinygrad.db").stat().st_size > 0


def test_a_device_that_is_asked_for_and_missing_is_an_error_that_names_it() -> None:
    with pytest.raises(DeviceUnavailable, match="'WEBCAM' cannot be used"):
        open_device("WEBCAM")


def test_a_device_that_failed_does_not_stay_the_default() -> None:
    default = Device.DEFAULT
    with pytest.raises(DeviceUnavailable):
        open_device("WEBCAM")
    assert default == Device.DEFAULT
    assert Tensor([1, 2]).sum().item() == 3
