"""The comparison of kernels with the reference, and what `garzone doctor --kernels` makes of it."""

import json
import subprocess
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from garzone.bench import kernels
from garzone.bench.synthetic import random_blocks
from garzone.cli.doctor_kernels import check_kernels
from garzone.core.errors import DeviceUnavailable
from garzone.kernels import portable
from garzone.kernels.cpu.library import MATRIX_TYPES
from garzone.kernels.dequantise import dequantise_array
from garzone.kernels.gpu import offers as gpu_offers
from garzone.kernels.layouts import GGMLType
from garzone.kernels.registry import Registry


def test_every_kernel_of_the_processor_agrees_with_the_reference() -> None:
    lines = kernels.run("CPU", sorted(MATRIX_TYPES), timed=False)
    results = [line for line in lines if isinstance(line, kernels.KernelResult)]
    named = {(result.kernel, result.ggml_type) for result in results}
    assert {(kind, t.name) for kind in ("decode", "prefill") for t in MATRIX_TYPES} <= named
    assert {"attention, decode", "attention, prefill", "norm and rounding", "embed"} <= {kind for kind, _ in named}
    assert [result for result in results if not result.correct] == []


def test_kernels_of_graphics_cards_are_given_activations_that_they_hold_exactly(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    registry = Registry((*portable.OFFERS, *gpu_offers.offers(("PYTHON",))))
    monkeypatch.setattr(kernels, "default_registry", lambda: registry)
    # Q2_K's have one scale for 64 elements, all others' for 32.
    results = list(islice(kernels.run("PYTHON", [GGMLType.Q2_K], timed=False), 1, 2))
    assert [(r.implementation, r.correct) for r in results if isinstance(r, kernels.KernelResult)] == [
        ("PYTHON gpu linear", True)
    ]


def test_a_kernel_that_computes_something_else_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    unpacked = kernels._unpacked  # pyright: ignore[reportPrivateUsage]
    monkeypatch.setattr(kernels, "_unpacked", lambda matrix: unpacked(matrix) + 1e-3)
    results = list(kernels.run("CPU", [GGMLType.Q4_K], timed=False))[1:3]
    assert [result.correct for result in results if isinstance(result, kernels.KernelResult)] == [False, False]


@pytest.mark.parametrize("ggml_type", sorted(MATRIX_TYPES), ids=lambda t: t.name)
def test_random_weights_are_like_a_models(ggml_type: GGMLType) -> None:
    blocks = random_blocks(ggml_type, 64, 512, np.random.default_rng(1))
    weights = dequantise_array(blocks.reshape(-1), ggml_type)
    assert 0.005 < weights.std() < 0.1
    assert abs(weights.mean()) < 0.6 * weights.std()


def test_activations_made_for_comparing_lose_nothing_by_rounding() -> None:
    x = kernels.exact_activations(3, 96, np.random.default_rng(2)).reshape(-1, 32)
    scale = np.abs(x).max(-1, keepdims=True) / 127
    assert np.array_equal(np.rint(x / scale) * scale, x)


def _stand_in(tmp_path: Path, *lines: object, exit_code: int = 0) -> tuple[str, ...]:
    program = tmp_path / "stand_in.py"
    printed = "\n".join(f"print({json.dumps(line)!r})" for line in lines)
    program.write_text(f"import sys\n{printed}\nprint('it broke', file=sys.stderr)\nsys.exit({exit_code})\n")
    return sys.executable, str(program)


RESULT = {
    "kernel": "decode",
    "ggml_type": "Q4_K",
    "implementation": "C linear",
    "error": 1e-7,
    "tolerance": 2e-3,
    "correct": True,
    "rate": 25.0,
    "unit": "GB/s",
    "share": 0.83,
}
CEILING = {"read_gb_s": 30.0, "integer_gops": 470.0, "float_gops": None}


def test_results_are_shown_with_their_share_of_the_ceiling(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = _stand_in(tmp_path, {"device": "CPU"}, CEILING, RESULT)
    assert check_kernels("", as_json=False, command=command) == 0
    shown = capsys.readouterr().out
    assert "reads 30 GB/s, integers 470 GOPS, floats not measured" in shown
    assert "25.0 GB/s" in shown
    assert "83% of the ceiling" in shown
    assert check_kernels("", as_json=True, command=command) == 0
    document = json.loads(capsys.readouterr().out)
    assert document == {"ok": True, "device": "CPU", "ceiling": CEILING, "kernels": [RESULT]}


def test_a_wrong_kernel_is_exit_code_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = _stand_in(tmp_path, {"device": "CPU"}, CEILING, RESULT, {**RESULT, "correct": False})
    assert check_kernels("", as_json=False, command=command) == 1
    assert "1 of 2 kernels are wrong" in capsys.readouterr().out


def test_a_device_that_cannot_be_used_is_the_environments_fault(tmp_path: Path) -> None:
    with pytest.raises(DeviceUnavailable, match="it broke") as raised:
        check_kernels("", as_json=False, command=_stand_in(tmp_path, exit_code=1))
    assert raised.value.exit_code == 3
    done = subprocess.run(
        [sys.executable, "-c", "from garzone.cli import main; main()", "doctor", "--kernels", "--device", "NOSUCH"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3
    assert "NOSUCH" in done.stderr
