"""Weights that cannot be computed with, or not fast: refused by name before anything is allocated, or said once."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants

from garzone.core.errors import GGUFError
from garzone.engine import model_runner
from garzone.engine.model_runner import ModelRunner
from garzone.kernels import portable
from garzone.kernels.dequantise import dequantise_array
from garzone.kernels.layouts import BLOCK, HALF_FACTORS, GGMLType, all_finite
from garzone.kernels.registry import Registry
from garzone.testing import write_tiny_model
from tests.engine.test_tiny_models import rewritten

FLOATS = {GGMLType.F32: "<f4", GGMLType.F16: "<f2"}


@pytest.mark.parametrize("ggml_type", sorted(HALF_FACTORS), ids=lambda t: t.name)
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_a_factor_that_is_not_finite_is_found_in_any_block(ggml_type: GGMLType, value: float) -> None:
    block = BLOCK[ggml_type].bytes
    blocks = np.full((5, block), 0x3B, np.uint8)
    assert all_finite(ggml_type, blocks.reshape(-1))
    for at in HALF_FACTORS[ggml_type]:
        spoilt = blocks.copy()
        spoilt[4, at : at + 2] = np.frombuffer(np.float16(value).tobytes(), np.uint8)
        assert not all_finite(ggml_type, spoilt.reshape(-1))


def test_floats_and_exponents_are_looked_at_too() -> None:
    for ggml_type, dtype in FLOATS.items():
        values = np.full(3_000_000, 1.5, dtype)
        assert all_finite(ggml_type, values.view(np.uint8))
        values[-1] = np.inf
        assert not all_finite(ggml_type, values.view(np.uint8))
    halves = np.full(100, 0x3F80, "<u2")
    assert all_finite(GGMLType.BF16, halves.view(np.uint8))
    halves[50] = 0xFF80
    assert not all_finite(GGMLType.BF16, halves.view(np.uint8))
    blocks = np.full((4, BLOCK[GGMLType.MXFP4].bytes), 0xFF, np.uint8)
    blocks[:, 0] = 120
    assert all_finite(GGMLType.MXFP4, blocks.reshape(-1))
    blocks[2, 0] = 0xFF
    assert not all_finite(GGMLType.MXFP4, blocks.reshape(-1))
    assert all_finite(GGMLType.I8, np.full(7, 0xFF, np.uint8))


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, 65504.0, -1.5, 0.0])
def test_the_scattered_factor_of_iq1_m_is_put_together(value: float) -> None:
    blocks = np.full((5, BLOCK[GGMLType.IQ1_M].bytes), 0x3B, np.uint8)
    bits = int(np.float16(value).view(np.uint16))
    words = blocks[3, 48:].view("<u2")
    words[:] = [(0x0B3B & 0x0FFF) | (bits >> 4 * index & 0xF) << 12 for index in range(4)]
    unpacked = quants.dequantize(blocks.reshape(1, -1), GGMLQuantizationType.IQ1_M)
    assert (
        all_finite(GGMLType.IQ1_M, blocks.reshape(-1)) == bool(np.isfinite(unpacked).all()) == bool(np.isfinite(value))
    )


def test_nvfp4_has_no_scale_that_is_not_finite() -> None:
    blocks = np.random.default_rng(1).integers(0, 256, (256, BLOCK[GGMLType.NVFP4].bytes), dtype=np.uint8)
    blocks[:, 0] = np.arange(256)  # every scale there is, those that stand for no number among them
    assert all_finite(GGMLType.NVFP4, blocks.reshape(-1))
    assert np.isfinite(dequantise_array(blocks.reshape(-1), GGMLType.NVFP4)).all()


def packed(ggml_type: GGMLType, rows: int, columns: int) -> tuple[int, tuple[int, int], np.ndarray]:
    """A matrix of zero bits but for small factors."""
    blocks = np.zeros((rows * columns // BLOCK[ggml_type].elements, BLOCK[ggml_type].bytes), np.uint8)
    for at in HALF_FACTORS[ggml_type]:
        blocks[:, at : at + 2] = np.frombuffer(np.float16(0.01).tobytes(), np.uint8)
    return int(ggml_type), (rows, columns), blocks


def with_matrix(tmp_path: Path, ggml_type: GGMLType, spoil: bool) -> Path:
    def edit(_: dict[str, Any], tensors: dict[str, Any]) -> None:
        for name in list(tensors):
            if name.endswith("ffn_down.weight"):
                rows, columns = tensors[name].shape
                kind, shape, blocks = packed(ggml_type, rows, columns)
                if spoil and name.startswith("blk.0"):
                    blocks[-1, HALF_FACTORS[ggml_type][0] + 1] = 0x7C
                tensors[name] = (kind, shape, blocks.tobytes())

    return rewritten(tmp_path, edit)


def test_a_damaged_matrix_is_named_before_anything_is_allocated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = with_matrix(tmp_path, GGMLType.Q8_0, spoil=True)

    def no_decoder(*_: object) -> None:
        raise AssertionError("weights were put on the device")

    monkeypatch.setattr(model_runner, "Decoder", no_decoder)
    with pytest.raises(GGUFError, match=r"blk\.0\.ffn_down\.weight.*not finite.*fetch it again"):
        ModelRunner.load(path, num_ctx=16, device="CPU")


def test_a_type_without_fast_kernels_loads_with_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = with_matrix(tmp_path, GGMLType.Q1_0, spoil=False)
    with caplog.at_level(logging.WARNING):
        runner = ModelRunner.load(path, num_ctx=16, device="CPU")
    assert [record.getMessage() for record in caplog.records] == [
        "there are no fast kernels for weights of type Q1_0 on CPU: the portable ones compute with them, slowly"
    ]
    assert np.isfinite(runner.prefill([1, 2, 3], 0)).all()


def test_a_device_without_fast_kernels_says_so_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        ModelRunner.load(
            write_tiny_model(tmp_path / "tiny.gguf"), num_ctx=16, device="CPU", registry=Registry(portable.OFFERS)
        )
    assert [record.getMessage() for record in caplog.records] == [
        "there are no fast kernels for CPU: the portable ones compute, slowly"
    ]
