"""The operations of `registry.py` as plain tensor expressions: slow, obviously right, the specification of the others.

Takes every size from its arguments, keeps nothing, and computes in float32. A fast implementation is tested against
`embed`, `linear` and `attend` on the same packed weights.
"""

from __future__ import annotations

from tinygrad.dtype import dtypes
from tinygrad.tensor import Tensor

from garzone.core.generation import KVCacheType
from garzone.kernels.dequantise import dequantise
from garzone.kernels.registry import AttentionSpec, EmbedSpec, Gate, LinearSpec, Matrix, RopePairs


def unpacked(matrix: Matrix, device: str | None = None) -> Tensor:
    """The matrix as (rows, columns) float32."""
    packed = Tensor(matrix.read().copy(), device=device)
    return dequantise(packed, matrix.ggml_type).reshape(matrix.rows, matrix.columns)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Each row of x divided by its root mean square, times `weight`."""
    return x * ((x * x).mean(-1, keepdim=True) + eps).rsqrt() * weight


def embed(spec: EmbedSpec, tokens: Tensor) -> Tensor:
    """Tokens (rows,) to (rows, columns)."""
    return unpacked(spec.table, tokens.device if isinstance(tokens.device, str) else None)[tokens] * spec.scale


def linear(spec: LinearSpec, x: Tensor, residual: Tensor | None = None) -> Tensor:
    """X (rows, columns) to (rows, out_columns); of the last row only if the spec says so."""
    device = x.device if isinstance(x.device, str) else None
    if spec.last_row:
        x = x[-1:]
    if spec.norm is not None:
        x = rms_norm(x, Tensor(spec.norm, device=device), spec.norm_eps)
    products = [x.matmul(unpacked(matrix, device).transpose(0, 1), dtype=dtypes.float32) for matrix in spec.matrices]
    y = gated(spec.gate, products[0]) * products[1] if spec.gated else products[0].cat(*products[1:], dim=-1)
    if spec.bias is not None:
        y = y + Tensor(spec.bias, device=device)
    if spec.post_norm is not None:
        y = rms_norm(y, Tensor(spec.post_norm, device=device), spec.norm_eps)
    return y if residual is None else y + residual


def gated(gate: Gate, x: Tensor) -> Tensor:
    """What a gate makes of its input."""
    return x.silu() if gate is Gate.SILU else 0.5 * x * (1 + (0.7978845608 * (x + 0.044715 * x * x * x)).tanh())


def rotate(x: Tensor, rope: Tensor, pairs: RopePairs) -> Tensor:
    """X (rows, heads, head_dim), rope (rows, dims / 2, 2): cosines and sines of the rows' positions."""
    half = int(rope.shape[1])
    rotated, passed = x[..., : 2 * half], x[..., 2 * half :]
    cos, sin = rope[:, None, :, 0], rope[:, None, :, 1]
    if pairs is RopePairs.ADJACENT:
        first, second = rotated[..., 0::2], rotated[..., 1::2]
    else:
        first, second = rotated[..., :half], rotated[..., half:]
    a, b = first * cos - second * sin, first * sin + second * cos
    joined = Tensor.stack(a, b, dim=-1).flatten(-2) if pairs is RopePairs.ADJACENT else a.cat(b, dim=-1)
    return joined.cat(passed, dim=-1) if int(passed.shape[-1]) else joined


def split_qkv(spec: AttentionSpec, qkv: Tensor, start: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of LINEAR's output at positions start, start + 1, ... as rotated q, rotated k, and v: (rows, heads, dim)."""
    rows, dim = int(qkv.shape[0]), spec.head_dim
    q_end, k_end = spec.num_heads * dim, (spec.num_heads + spec.num_kv_heads) * dim
    rope = Tensor(spec.rope[start : start + rows], device=qkv.device)
    q, k = qkv[:, :q_end].reshape(rows, spec.num_heads, dim), qkv[:, q_end:k_end].reshape(rows, spec.num_kv_heads, dim)
    if spec.q_norm is not None:
        q = rms_norm(q, Tensor(spec.q_norm, device=qkv.device), spec.norm_eps)
    if spec.k_norm is not None:
        k = rms_norm(k, Tensor(spec.k_norm, device=qkv.device), spec.norm_eps)
    return (
        rotate(q, rope, spec.rope_pairs),
        rotate(k, rope, spec.rope_pairs),
        qkv[:, k_end:].reshape(rows, spec.num_kv_heads, dim),
    )


def rounded_to_q8_0(x: Tensor) -> Tensor:
    """What Q8_0 keeps of x: each 32 of the last axis as bytes, with the largest of them over 127 as factor, a half."""
    blocks = x.reshape(*x.shape[:-1], -1, 32)
    factors = (blocks.abs().max(-1, keepdim=True) / 127).cast(dtypes.float16).cast(dtypes.float32)
    numbers = (factors > 0).where(blocks / factors, 0).round().clip(-127, 127)
    return (numbers * factors).reshape(*x.shape)


def attend(spec: AttentionSpec, qkv: Tensor) -> Tensor:
    """Causal attention of a whole sequence from position 0: (rows, num_heads * head_dim).

    Whatever was cached is computed again, and rounded to Q8_0 where the cache is, but not to float16.
    """
    rows, group = int(qkv.shape[0]), spec.num_heads // spec.num_kv_heads
    q, k, v = split_qkv(spec, qkv, 0)
    if spec.kv_cache is KVCacheType.Q8_0:
        k, v = rounded_to_q8_0(k), rounded_to_q8_0(v)
    k, v = (x.repeat_interleave(group, dim=1).transpose(0, 1) for x in (k, v))
    scores = q.transpose(0, 1).matmul(k.transpose(-1, -2)) * spec.score_scale
    hidden = Tensor.ones(rows, rows, dtype=dtypes.bool, device=qkv.device).triu(1)
    if spec.window:
        hidden = hidden | Tensor.ones(rows, rows, dtype=dtypes.bool, device=qkv.device).tril(-spec.window)
    weights = hidden.where(float("-inf"), scores).softmax(-1)
    return weights.matmul(v).transpose(0, 1).reshape(rows, -1)
