"""Counts the bytes that one decoded token moves, from the operations that were recorded and the sizes of their weights.

A count by the kernels' own loops, not a measurement: what a cache serves is counted like what memory serves.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from garzone.kernels.cpu import library
from garzone.kernels.cpu.library import CallKind

_BLOCK_POSITIONS: Final = 16  # csrc/attention.h: keys are read in blocks of so many positions
_FLOAT = 4
_ACTIVATION_SHARE: Final = 48 / 32  # csrc/activation.h: bytes of 32 quantised columns with their scale and sums


@dataclass(frozen=True, slots=True)
class MatrixSize:
    """Bytes of a matrix as the kernels keep it, and as the file has it."""

    kept: int
    in_file: int


@dataclass(frozen=True, slots=True)
class Traffic:
    """`moved_bytes`: everything read and written. `least_bytes`: weights as the file packs them, and cached rows."""

    moved_bytes: int
    least_bytes: int


def count_traffic(
    calls: Iterable[library.Call], sizes: Mapping[int, MatrixSize], position: int, cached: float
) -> Traffic:
    """Of one token at `position`, alone in its step, with a cache that takes `cached` bytes for a number."""
    moved, least = 0.0, 0.0
    for call in calls:
        match CallKind(call.kind):
            case CallKind.EMBED:
                table = library.Embed.from_address(call.operation).table
                size = sizes[table.weights]
                moved += size.kept / table.rows + _FLOAT * table.columns
                least += size.in_file / table.rows
            case CallKind.LINEAR:
                linear = library.Linear.from_address(call.operation)
                matrices = [sizes[linear.matrices[i].weights] for i in range(linear.num_matrices)]
                passes = 1 + 4 * bool(linear.gate) + 2 * bool(linear.post_norm) + (call.residual is not None)
                moved += sum(size.kept for size in matrices)
                moved += _FLOAT * (linear.columns + linear.out_columns * passes)
                moved += 2 * _ACTIVATION_SHARE * linear.columns  # written, and read again
                least += sum(size.in_file for size in matrices)
            case CallKind.ATTENTION:
                sizes_of = library.SelfAttention.from_address(call.operation)
                rows = min(position + 1, sizes_of.window or position + 1)
                blocks = -(-rows // _BLOCK_POSITIONS) * _BLOCK_POSITIONS
                kv_heads, head_size = sizes_of.cache.kv_heads, sizes_of.cache.head_size
                padded = -(-head_size // _BLOCK_POSITIONS) * _BLOCK_POSITIONS
                moved += cached * kv_heads * padded * (blocks + rows + 2)
                moved += _FLOAT * head_size * (4 * sizes_of.heads + 2 * kv_heads)
                least += cached * kv_heads * head_size * 2 * rows
    return Traffic(round(moved), round(least))
