"""Preparing activations on the device under test: RMSNorm, SwiGLU, and the three forms that products read."""

import numpy as np
import pytest
from tinygrad.dtype import dtypes

from garzone.kernels.gpu.activations import num_words, quantise
from garzone.kernels.gpu.intrinsics import AMD
from tests.kernels.gpu.gfx1100 import listing
from tests.kernels.gpu.oracle import intrinsics, quantise_rows, run

SOURCES = ("plain", "norm", "swiglu")


def expected(source: str, x: np.ndarray, weight: np.ndarray, epsilon: float) -> np.ndarray:
    x = x.astype(np.float64)
    if source == "norm":
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + epsilon) * weight
    if source == "swiglu":
        gate, up = np.split(x, 2, axis=-1)
        return gate / (1 + np.exp(-gate)) * up
    return x


def prepared(source: str, output: str, rows: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(count)
    x = rng.standard_normal((rows, count * (2 if source == "swiglu" else 1))).astype(np.float32) * 3
    x[0, :32] = 0
    weight = rng.standard_normal(count).astype(np.float32)
    kernel = quantise(rows, count, intrinsics(), source=source, epsilon=1e-5, output=output)
    shape, dtype = {
        "int8": ((rows, num_words(count)), np.uint32),
        "half": ((rows, count // 2), np.uint32),
        "float": ((rows, count), np.float32),
    }[output]
    got = run(kernel, np.zeros(shape, dtype), x, *([weight] if source == "norm" else []))
    return got, expected(source, x, weight, 1e-5)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize(("rows", "count"), [(1, 576), (2, 1056)])
def test_int8_activations_stand_for_their_source(source, rows, count):
    got, want = prepared(source, "int8", rows, count)
    numbers = np.ascontiguousarray(got[:, : count // 4]).view(np.int8).reshape(rows, -1, 32)
    aux = np.ascontiguousarray(got[:, count // 4 :]).reshape(rows, -1, 2)
    scale = np.ascontiguousarray(aux[..., 0]).view(np.float32)[..., None]
    groups = want.reshape(rows, -1, 32)
    np.testing.assert_allclose(scale[..., 0], np.abs(groups).max(-1) / 127, rtol=3e-6, atol=0)
    # Half a step, and a little for float32 rounding of what lies exactly between two steps.
    assert np.all(np.abs(numbers * scale - groups) <= 0.5001 * scale + 1e-12)
    sums = np.ascontiguousarray(aux[..., 1]).view(np.int16).reshape(rows, -1, 2)
    np.testing.assert_array_equal(sums, numbers.reshape(rows, -1, 2, 16).sum(-1, dtype=np.int32))


def test_int8_activations_are_the_ones_the_oracle_makes():
    x = np.random.default_rng(5).standard_normal((2, 320)).astype(np.float32)
    got = run(quantise(2, 320, intrinsics()), np.zeros((2, num_words(320)), np.uint32), x)
    want = quantise_rows(x)[0]
    numbers = [np.ascontiguousarray(a[:, :80]).view(np.int8).astype(int) for a in (got, want)]
    # A division and a product may round differently where a number lies between two steps.
    assert np.abs(numbers[0] - numbers[1]).max() <= 1
    assert (numbers[0] != numbers[1]).mean() < 0.01


@pytest.mark.parametrize("source", SOURCES)
def test_half_and_float_activations_are_rounded_once(source):
    got, want = prepared(source, "half", 2, 288)
    halves = got.view(np.float16).reshape(2, -1, 4)[..., [0, 2, 1, 3]].reshape(2, -1)
    np.testing.assert_allclose(halves.astype(np.float64), want, rtol=1.1e-3, atol=1e-5)
    got, want = prepared(source, "float", 2, 288)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("output", ["int8", "half", "float"])
def test_preparing_compiles_for_gfx1100_without_spills(source, output):
    code = listing(
        quantise(3, 3584, AMD, source=source, epsilon=1e-6, output=output),
        (dtypes.float if output == "float" else dtypes.uint32, 3 * num_words(3584) * 4),
        (dtypes.float, 3 * 3584 * 2),
        *([(dtypes.float, 3584)] if source == "norm" else []),
    )
    assert code.spills == 0
