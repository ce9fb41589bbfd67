"""Every weight type on every instruction set of this machine, against the gguf package and float64."""

import numpy as np
import pytest

from garzone.kernels.cpu.instruction_sets import InstructionSet, supported
from garzone.kernels.cpu.library import MATRIX_TYPES, MatrixLibrary, OperationLibrary, Threads
from garzone.kernels.layouts import BLOCK, GGMLType
from tests.kernels.cpu.matrices import (
    dequantised,
    instruction_set_name,
    multiply,
    pack,
    quantise,
    random_matrix,
    read_activation,
)

each_type = pytest.mark.parametrize("ggml_type", sorted(MATRIX_TYPES), ids=lambda t: t.name)
each_instruction_set = pytest.mark.parametrize("instruction_set", supported(), ids=instruction_set_name)

# float32 sums of up to 768 products in another order than float64's; the error grows with the sum of magnitudes
FLOAT32_TOLERANCE = 2e-6


def _error(out: np.ndarray, weights: np.ndarray, x: np.ndarray) -> float:
    """The largest error as a share of the sum of magnitudes that went into each output."""
    exact = x.astype(np.float64) @ weights.T.astype(np.float64)
    magnitude = np.abs(x).astype(np.float64) @ np.abs(weights.T).astype(np.float64)
    return float((np.abs(out - exact) / (magnitude + 1e-30)).max())


@each_instruction_set
@each_type
def test_packed_rows_hold_what_the_file_holds(
    ggml_type: GGMLType, instruction_set: InstructionSet, threads: Threads
) -> None:
    rows, columns = 37, 3 * max(BLOCK[ggml_type].elements, 32)
    matrix = random_matrix(ggml_type, rows, columns, np.random.default_rng(1))
    packed = pack(MatrixLibrary(ggml_type, instruction_set), matrix, columns, threads)
    expected = dequantised(ggml_type, matrix)
    got = np.stack([packed.row(row) for row in range(rows)])
    # three roundings in another order at most
    assert np.abs(got - expected).max() <= 4 * np.finfo(np.float32).eps * np.abs(expected).max()


@each_instruction_set
@each_type
@pytest.mark.parametrize(("rows", "tokens"), [(16, 1), (5, 1), (37, 1), (48, 2), (37, 9), (33, 17)])
def test_products_equal_the_reference_on_the_same_activations(
    ggml_type: GGMLType, instruction_set: InstructionSet, rows: int, tokens: int, threads: Threads
) -> None:
    columns = 3 * max(BLOCK[ggml_type].elements, 32)
    rng = np.random.default_rng(rows * 100 + tokens)
    matrix = random_matrix(ggml_type, rows, columns, rng)
    x = (rng.standard_normal((tokens, columns)) * rng.uniform(0.01, 10, (tokens, 1))).astype(np.float32)
    out, used = multiply(pack(MatrixLibrary(ggml_type, instruction_set), matrix, columns, threads), x, threads)
    assert _error(out, dequantised(ggml_type, matrix), used) < FLOAT32_TOLERANCE


@each_type
def test_rounding_activations_costs_less_than_one_per_cent(ggml_type: GGMLType, threads: Threads) -> None:
    columns = 1024
    rng = np.random.default_rng(5)
    matrix = random_matrix(ggml_type, 64, columns, rng)
    x = rng.standard_normal((4, columns), dtype=np.float32)
    out, _ = multiply(pack(MatrixLibrary(ggml_type), matrix, columns, threads), x, threads)
    exact = x.astype(np.float64) @ dequantised(ggml_type, matrix).T.astype(np.float64)
    assert np.sqrt(((out - exact) ** 2).mean()) < 0.01 * exact.std()


@each_instruction_set
@each_type
def test_a_token_gives_the_same_to_the_last_bit_alone_and_in_any_batch(
    ggml_type: GGMLType, instruction_set: InstructionSet, threads: Threads
) -> None:
    columns, tokens = 2 * max(BLOCK[ggml_type].elements, 32), 11
    rng = np.random.default_rng(8)
    packed = pack(
        MatrixLibrary(ggml_type, instruction_set), random_matrix(ggml_type, 37, columns, rng), columns, threads
    )
    x = rng.standard_normal((tokens, columns), dtype=np.float32)
    alone = np.concatenate([multiply(packed, x[token : token + 1], threads)[0] for token in range(tokens)])
    for size in (2, 3, 8, 11):
        assert np.array_equal(multiply(packed, x[:size], threads)[0], alone[:size])


@each_instruction_set
@pytest.mark.parametrize("ggml_type", [GGMLType.Q4_K, GGMLType.Q6_K, GGMLType.F16], ids=lambda t: t.name)
def test_more_tokens_than_one_pass_holds_give_what_each_gives_alone(
    ggml_type: GGMLType, instruction_set: InstructionSet, threads: Threads
) -> None:
    columns, tokens = 512, 261
    rng = np.random.default_rng(7)
    matrix = random_matrix(ggml_type, 20, columns, rng)
    packed = pack(MatrixLibrary(ggml_type, instruction_set), matrix, columns, threads)
    x = rng.standard_normal((tokens, columns), dtype=np.float32)
    together, used = multiply(packed, x, threads)
    assert _error(together, dequantised(ggml_type, matrix), used) < FLOAT32_TOLERANCE
    for token in (0, 8, 255, 256, 260):
        alone, used_alone = multiply(packed, x[token : token + 1], threads)
        assert np.array_equal(used_alone[0], used[token])
        assert np.array_equal(alone[0], together[token])


@each_instruction_set
@pytest.mark.parametrize("ggml_type", [GGMLType.Q4_1, GGMLType.F32], ids=lambda t: t.name)
@pytest.mark.parametrize("tokens", [1, 3])
def test_bias_and_residual_are_added(
    ggml_type: GGMLType, tokens: int, instruction_set: InstructionSet, threads: Threads
) -> None:
    rows, columns = 21, 64
    rng = np.random.default_rng(9)
    packed = pack(
        MatrixLibrary(ggml_type, instruction_set), random_matrix(ggml_type, rows, columns, rng), columns, threads
    )
    x = rng.standard_normal((tokens, columns), dtype=np.float32)
    bias = rng.standard_normal(rows, dtype=np.float32)
    residual = rng.standard_normal((tokens, rows), dtype=np.float32)
    plain, _ = multiply(packed, x, threads)
    out, _ = multiply(packed, x, threads, bias, residual)
    assert np.allclose(out, plain + bias + residual, atol=1e-5)


@each_instruction_set
@pytest.mark.parametrize("tokens", [1, 2, 5, 11])
def test_activations_are_rounded_to_the_nearest_of_255_steps(
    instruction_set: InstructionSet, tokens: int, threads: Threads
) -> None:
    columns = 576
    rng = np.random.default_rng(tokens)
    x = rng.standard_normal((tokens, columns), dtype=np.float32)
    x[0, :32] = 0  # a block of zeros must not divide by zero
    library = OperationLibrary(instruction_set)
    values = read_activation(library, quantise(library, x, threads), tokens, columns)
    blocks = np.abs(x.reshape(tokens, -1, 32))
    step = np.repeat(blocks.max(-1) / 127, 32, axis=-1)
    assert (np.abs(values - x) <= step * 0.501).all()
    assert not values[0, :32].any()


@each_instruction_set
@pytest.mark.parametrize("tokens", [1, 6])
def test_normalised_activations_follow_the_rms_of_their_token(
    instruction_set: InstructionSet, tokens: int, threads: Threads
) -> None:
    columns, epsilon = 1088, 1e-5  # more than the kernel normalises at once, and no multiple of it
    rng = np.random.default_rng(tokens)
    x = rng.standard_normal((tokens, columns), dtype=np.float32) * 3
    norm = rng.uniform(0.5, 2, columns).astype(np.float32)
    library = OperationLibrary(instruction_set)
    values = read_activation(library, quantise(library, x, threads, norm, epsilon), tokens, columns)
    wide = x.astype(np.float64)
    expected = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + epsilon) * norm
    step = np.repeat(np.abs(expected).reshape(tokens, -1, 32).max(-1) / 127, 32, axis=-1)
    assert (np.abs(values - expected) <= step * 0.51).all()
