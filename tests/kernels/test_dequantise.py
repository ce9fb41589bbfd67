"""Every block format against the format's own package, on random bytes."""

import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants
from hypothesis import given, settings
from hypothesis import strategies as st
from tinygrad.tensor import Tensor

from garzone.core.errors import UnsupportedModel
from garzone.kernels.dequantise import can_dequantise, dequantise, dequantise_array
from garzone.kernels.layouts import BLOCK, GGMLType

SUPPORTED = [ggml_type for ggml_type in GGMLType if can_dequantise(ggml_type)]
WITH_ORACLE = [ggml_type for ggml_type in SUPPORTED if ggml_type is not GGMLType.Q1_0]  # the package lacks that one


def random_blocks(ggml_type: GGMLType, count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, count * BLOCK[ggml_type].bytes, dtype=np.uint8)


def oracle(packed: np.ndarray, ggml_type: GGMLType) -> np.ndarray:
    with np.errstate(all="ignore"):
        return np.asarray(quants.dequantize(packed, GGMLQuantizationType(ggml_type.value)), np.float32).reshape(-1)


def same(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal to within two roundings; random scales are sometimes inf or nan, and must be so on both sides."""
    with np.errstate(invalid="ignore"):
        close = np.abs(a - b) <= 3e-7 * np.maximum(np.abs(a), np.abs(b))
    return bool(np.all((a == b) | close | (np.isnan(a) & np.isnan(b))))


@pytest.mark.parametrize("ggml_type", WITH_ORACLE, ids=lambda t: t.name)
@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=15, deadline=None)
def test_numpy_gives_what_the_format_package_gives(ggml_type: GGMLType, seed: int) -> None:
    packed = random_blocks(ggml_type, 6, seed)
    ours, theirs = dequantise_array(packed, ggml_type), oracle(packed, ggml_type)
    if ggml_type in (GGMLType.Q2_K, GGMLType.Q4_K, GGMLType.Q5_K, GGMLType.Q4_1, GGMLType.Q5_1):
        # d * q - m: cancellation leaves the rounding of the larger term
        scale = np.abs(theirs[np.isfinite(theirs)]).max(initial=1.0)
        finite = np.isfinite(theirs)
        assert np.abs(ours[finite] - theirs[finite]).max(initial=0.0) <= 1e-6 * scale
        assert (np.isfinite(ours) == finite).all()
    else:
        assert same(ours, theirs)


@pytest.mark.parametrize("ggml_type", SUPPORTED, ids=lambda t: t.name)
def test_tensors_give_what_numpy_gives(ggml_type: GGMLType) -> None:
    packed = random_blocks(ggml_type, 9, 7)
    expected = dequantise_array(packed, ggml_type)
    got = dequantise(Tensor(packed, device="CPU"), ggml_type).numpy()
    finite = np.isfinite(expected)
    scale = np.abs(expected[finite]).max(initial=1.0)
    assert np.abs(got[finite] - expected[finite]).max(initial=0.0) <= 1e-6 * scale
    assert got.shape == (9 * BLOCK[ggml_type].elements,)


def test_one_bit_blocks_are_the_scale_with_a_sign() -> None:
    packed = np.frombuffer(np.float16(1.5).tobytes() + bytes([0b00000101] + [0] * 15), np.uint8)
    assert dequantise_array(packed, GGMLType.Q1_0).tolist() == [1.5, -1.5, 1.5] + [-1.5] * 125


def test_a_type_without_a_formula_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedModel, match="Q8_K"):
        dequantise_array(np.zeros(292, np.uint8), GGMLType.Q8_K)
