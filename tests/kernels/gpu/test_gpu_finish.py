"""What products do with their sums on the device under test, against doing the same in launches of their own."""

from typing import Any

import numpy as np
import pytest
from tinygrad.tensor import Tensor

from garzone.kernels.gpu.activations import num_words, quantise
from garzone.kernels.gpu.attention import Heads, rotate_and_store
from garzone.kernels.gpu.finish import Destination, Finish, Floats, GatedBytes, Rotated
from garzone.kernels.gpu.matvec import QUANTS, Plan, matvec
from garzone.kernels.layouts import GGMLType
from tests.kernels.gpu.oracle import DEVICE, dequantise, intrinsics, quantise_rows, random_weights, run

Q8 = GGMLType.Q8_0


def product(  # noqa: PLR0917
    finish: Finish, shape: tuple[int, int], cut: Plan, tokens: int, outs: Any, given: Any
) -> list[np.ndarray]:
    """All written buffers of a Q8_0 product; its weights and activations are those of ``operands``."""
    weights, packed, _ = operands(*shape, tokens)
    arrays = [*outs, weights.reshape(-1).view(np.uint16), packed, *given]
    tensors = [Tensor(a.reshape(-1), device="CPU").to(DEVICE).realize() for a in arrays]
    kernel = matvec(QUANTS[Q8], *shape, intrinsics(), cut=cut, num_tokens=tokens, finish=finish)
    found = tensors[0].custom_kernel(*tensors[1:], fxn=kernel)[: len(outs)]
    Tensor.realize(*found)
    return [tensor.to("CPU").numpy() for tensor in found]


def operands(outputs: int, inputs: int, tokens: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights, activations as kernels read them, and the products in float64."""
    weights = random_weights(Q8, outputs, inputs)
    x = np.random.default_rng(inputs).standard_normal((tokens, inputs)).astype(np.float32)
    packed, values = quantise_rows(x)
    return weights, packed, values @ dequantise(weights, Q8).T


@pytest.mark.parametrize(
    ("rows", "span", "tokens"),
    [(4, 32, 1), pytest.param(2, 32, 2, marks=pytest.mark.slow), pytest.param(4, 64, 1, marks=pytest.mark.slow)],
)
def test_a_gated_product_is_quantised_as_it_would_be_by_itself(rows, span, tokens):
    results = 64
    out = np.zeros((tokens, num_words(results)), np.uint32)
    got = product(GatedBytes(results, span), (2 * results, 64), Plan(rows, 1), tokens, [out], [])[0].reshape(out.shape)
    gate, up = np.split(operands(2 * results, 64, tokens)[2], 2, axis=1)
    want = quantise_rows((gate / (1 + np.exp(-gate)) * up).astype(np.float32), span)[0]
    numbers = [np.ascontiguousarray(a[:, : results // 4]).view(np.int8).astype(int) for a in (got, want)]
    assert np.abs(numbers[0] - numbers[1]).max() <= 1
    assert (numbers[0] != numbers[1]).mean() < 0.05  # numbers between two steps, rounded the other way
    aux = [np.ascontiguousarray(a[:, results // 4 :]).reshape(tokens, -1, 2) for a in (got, want)]
    scales = [np.ascontiguousarray(a[..., 0]).view(np.float32) for a in aux]
    np.testing.assert_allclose(scales[0], scales[1], rtol=1e-5)
    sums = np.ascontiguousarray(aux[0][..., 1]).view(np.int16).reshape(tokens, -1, 2)
    np.testing.assert_array_equal(sums, numbers[0].reshape(tokens, -1, 2, 16).sum(-1))


@pytest.mark.parametrize(
    ("heads", "first", "bias", "tokens"),
    [
        (Heads(1, 1, 32, 32, 32, adjacent=True), 0, True, 1),
        pytest.param(Heads(2, 1, 32, 32, 24, adjacent=False, slots=2), 0, False, 3, marks=pytest.mark.slow),
        pytest.param(Heads(2, 2, 64, 32, 64, adjacent=False, slots=2), 4, True, 1, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_queries_keys_and_values_are_finished_as_they_would_be_by_a_launch_of_their_own(heads, first, bias, tokens):
    rng = np.random.default_rng(2)
    all_heads = heads.queries + 2 * heads.keys
    num_heads = all_heads - first
    places = np.array([[heads.slots - 1, 7], [0, 3], [0, -1]][:tokens], np.int32)
    rope = rng.standard_normal((heads.positions, heads.rotated // 2, 2)).astype(np.float32)
    biases = rng.standard_normal(all_heads * heads.size).astype(np.float32)
    outs = [np.zeros(tokens * heads.queries * heads.words, np.uint32)]
    outs += [np.zeros(heads.cache_words, np.uint32) for _ in range(2)]
    shape = (num_heads * heads.size, 32)
    finish = Rotated(heads, first, num_heads, has_bias=bias)
    given = [places, *([rope] if finish.turns else []), *([biases] if bias else [])]
    written = [outs[i] for i in finish.written]
    got = product(finish, shape, Plan(4, 1), tokens, written, given)

    qkv = np.zeros((tokens, all_heads * heads.size), np.float32)
    qkv[:, first * heads.size :] = operands(*shape, tokens)[2]
    qkv[:, first * heads.size :] += biases[first * heads.size :] if bias else 0
    tensors = [Tensor(a.reshape(-1), device="CPU").to(DEVICE).realize() for a in (*outs, qkv, places, rope)]
    want = tensors[0].custom_kernel(*tensors[1:], fxn=rotate_and_store(heads, tokens))[:3]
    Tensor.realize(*want)
    assert finish.written == ([2] if first else [0, 1, 2])
    for one, which in zip(got, finish.written, strict=True):
        numbers = [a.view(np.float16).astype(np.float32) for a in (one, want[which].to("CPU").numpy())]
        assert numbers[1].any()
        np.testing.assert_allclose(numbers[0], numbers[1], rtol=2e-3, atol=2e-3)  # f16 of sums in another order


def test_gated_floats_are_what_the_bytes_stand_for():
    got = product(Floats(8, Destination(8), gated=True), (16, 32), Plan(4, 1), 1, [np.zeros(8, np.float32)], [])[0]
    gate, up = np.split(operands(16, 32, 1)[2], 2, axis=1)
    # The interpreter takes subnormal f16 factors for zero.
    np.testing.assert_allclose(got[None], gate / (1 + np.exp(-gate)) * up, rtol=1e-4, atol=1e-3)


def test_rows_are_chosen_by_number_and_spans_share_a_scale():
    x = np.random.default_rng(3).standard_normal((4, 128)).astype(np.float32)
    chosen = np.array([2, -1, 0], np.int32)
    kernel = quantise(3, 128, intrinsics(), chosen=True, span=64)
    got = run(kernel, np.zeros((3, num_words(128)), np.uint32), x, chosen)
    want = quantise_rows(x[[2, 0, 0]], 64)[0]
    scales = [np.ascontiguousarray(a[:, 32::2]).view(np.float32) for a in (got, want)]
    np.testing.assert_allclose(scales[0], scales[1], rtol=1e-6)
    assert scales[0][0, 0] == scales[0][0, 1] != scales[0][0, 2]
    numbers = [np.ascontiguousarray(a[:, :32]).view(np.int8).astype(int) for a in (got, want)]
    assert np.abs(numbers[0] - numbers[1]).max() <= 1
