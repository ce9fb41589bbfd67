"""Real weights in every type: logits with the kernels on against a float64 reference of the same weights.

And beside llama.cpp's, which reads the same file, where GARZONE_LLAMA_PYTHON names an interpreter with
llama-cpp-python. SmolLM2's rows are no multiples of 256 but in its 30 `ffn_down`, which alone take the types with such
blocks; the others are Q8_0 then, as llama.cpp does it.
"""

import importlib.util
import io
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from garzone.engine.model_runner import ModelRunner
from garzone.kernels.cpu.library import FLOATS, MATRIX_TYPES
from garzone.kernels.layouts import BLOCK, GGMLType
from garzone.kernels.registry import default_registry
from tests.engine import golden_logits
from tests.engine.requantised import packed, requantise
from tests.numbers import record_number

ROOT = Path(__file__).parents[2]
MOST_TOKENS = 129  # of a text; longer ones take the reference minutes each
# RMS error over the reference's standard deviation. SmolLM2's own Q4_1 has 0.05 (docs/engine-log.md).
TOLERANCE, TOLERANCE_OF_FLOATS = 0.12, 0.01
# Of five texts everything is asked; of all, only to be as near as llama.cpp: four positions make Q3_K's 0.17 there, and
# llama.cpp's 0.24.
LENGTHS, NUM_CHOSEN = range(30, 130), 5
# What rounding leaves of standard normal weights: each packer of ours is about as good as its number of bits.
ROUNDING = {
    GGMLType.Q2_K: 0.35,
    GGMLType.Q3_K: 0.2,
    GGMLType.Q4_K: 0.09,
    GGMLType.Q5_K: 0.045,
    GGMLType.Q6_K: 0.025,
    GGMLType.IQ4_NL: 0.1,
    GGMLType.IQ4_XS: 0.1,
}


def rms(a: np.ndarray) -> float:
    return float(np.sqrt((a**2).mean()))


@pytest.mark.parametrize("ggml_type", ROUNDING, ids=lambda t: t.name)
def test_packed_weights_read_back_are_the_weights_rounded(ggml_type: GGMLType) -> None:
    x = np.random.default_rng(1).standard_normal((3, 1024)).astype(np.float32)
    x[1, :256] = 0  # a block without a scale
    back = gguf.quants.dequantize(packed(x, ggml_type), gguf.GGMLQuantizationType(int(ggml_type)))
    assert rms(back - x) < ROUNDING[ggml_type]
    assert not back[1, :256].any()


def prompts() -> list[list[int]]:
    """All golden texts but the longest. Errors differ sevenfold between positions: a mean needs hundreds of them."""
    golden = golden_logits.prompts(ROOT / "tests" / "golden" / "smollm2.npz")
    return [tokens for tokens, _, _ in golden if len(tokens) <= MOST_TOKENS]


def of_five_texts(chosen: list[list[int]]) -> np.ndarray:
    """Which positions belong to the first texts of a middling length."""
    picked = [at for at, tokens in enumerate(chosen) if len(tokens) in LENGTHS][:NUM_CHOSEN]
    return np.repeat([at in picked for at in range(len(chosen))], [len(tokens) for tokens in chosen])


def reference(path: Path) -> Any:
    """tools/golden's float64 decoder of the same file."""
    spec = importlib.util.spec_from_file_location("reference64", ROOT / "tools" / "golden" / "reference64.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Reference(path)


def llama_logits(python: str, path: Path, tokens: list[list[int]], *, flash: bool) -> np.ndarray:
    script = str(Path(__file__).with_name("llama_cpp_logits.py"))
    command = [python, script, str(path), str(int(flash))]
    done = subprocess.run(command, input=json.dumps(tokens).encode(), capture_output=True, check=True)
    return np.load(io.BytesIO(done.stdout))


def our_logits(path: Path, tokens: list[list[int]]) -> np.ndarray:
    """Token by token, which gives the bits of whole prompts (another test)."""
    runner = ModelRunner.load(path, num_ctx=256, device="CPU", registry=default_registry())
    assert all(name.startswith("C ") for name in runner.implementations)
    return np.array([runner.decode(token, at).copy() for one in tokens for at, token in enumerate(one)])


@pytest.mark.slow
@pytest.mark.parametrize("ggml_type", sorted(MATRIX_TYPES), ids=lambda t: t.name)
def test_logits_of_real_weights_in_every_type_are_as_near_the_reference_as_llama_cpp_s(
    ggml_type: GGMLType, smollm2_path: Path, tmp_path: Path
) -> None:
    path = tmp_path / "requantised.gguf"
    matrices = requantise(smollm2_path, path, ggml_type)
    assert matrices == (30 if BLOCK[ggml_type].elements == 256 else 211)
    chosen = prompts()
    assert sum(map(len, chosen)) > 500
    exact = reference(path)
    want = np.concatenate([exact.logits(tokens) for tokens in chosen])
    del exact
    ours = our_logits(path, chosen) - want
    who = f"SmolLM2 in {ggml_type.name}, {matrices} matrices"
    tolerance = TOLERANCE_OF_FLOATS if ggml_type in FLOATS else TOLERANCE
    few = of_five_texts(chosen)
    record_number(f"{who}: relative RMS error", rms(ours[few]) / float(want[few].std()), f"<= {tolerance}")
    assert rms(ours[few]) <= tolerance * want[few].std()
    if python := os.environ.get("GARZONE_LLAMA_PYTHON"):
        theirs = [llama_logits(python, path, chosen, flash=flash) - want for flash in (False, True)]
        for texts, rows in (("all texts", slice(None)), ("five texts", few)):
            best = min(rms(errors[rows]) for errors in theirs)
            ratio = rms(ours[rows]) / best
            record_number(f"{who}, {texts}: RMS error, ours over llama.cpp's", ratio, "<= 1.10")
            assert ratio <= 1.10 or rms(ours[rows]) <= 0.001 * want[rows].std()
