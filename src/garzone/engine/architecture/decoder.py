"""A dense decoder: embedding, layers of attention and gated feed-forward, output. Built from the registry's operations.

Names the tensors and puts the operations in order; computes nothing itself, and owns no state but the weights.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from tinygrad.tensor import Tensor

from garzone.core.generation import KVCacheType
from garzone.engine.architecture.config import ModelConfig
from garzone.engine.weights import WeightDirectory
from garzone.kernels.layouts import GGMLType
from garzone.kernels.registry import (
    AttentionFunction,
    AttentionSpec,
    Cache,
    EmbedSpec,
    LinearFunction,
    LinearSpec,
    Place,
    Registry,
    Step,
)


@dataclass(frozen=True)
class _LayerPlan:
    qkv: LinearSpec
    attention: AttentionSpec
    attention_out: LinearSpec
    gate_up: LinearSpec
    down: LinearSpec


@dataclass(frozen=True)
class Plan:
    """Everything a decoder will need, checked against the file; nothing is allocated yet."""

    config: ModelConfig
    embed: EmbedSpec
    layers: tuple[_LayerPlan, ...]
    output: LinearSpec

    @property
    def ggml_types(self) -> frozenset[GGMLType]:
        """Of all matrices."""
        linears = [
            linear for layer in self.layers for linear in (layer.qkv, layer.attention_out, layer.gate_up, layer.down)
        ]
        return frozenset(matrix.ggml_type for spec in (self.embed, *linears, self.output) for matrix in spec.matrices)


@dataclass(frozen=True)
class _Layer:
    qkv: LinearFunction
    attention: AttentionFunction
    attention_out: LinearFunction
    gate_up: LinearFunction
    down: LinearFunction


def plan(config: ModelConfig, weights: WeightDirectory, kv_cache: KVCacheType = KVCacheType.F16) -> Plan:
    """Find every tensor and check its shape and type.

    Raises:
        GGUFError: a tensor is missing or has the wrong shape; names it.
        UnsupportedModel: a tensor of a type that cannot be unpacked, or one that this architecture does not use.
    """
    c = config
    query, key = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
    table = weights.matrix("token_embd.weight", c.vocab_size, c.hidden)
    head = weights.matrix("output.weight", c.vocab_size, c.hidden) if weights.has("output.weight") else table
    everywhere, nearby = _attentions(c, weights, exact_cache=head.ggml_type is GGMLType.F32, kv_cache=kv_cache)
    layers: list[_LayerPlan] = []
    for index in range(c.num_layers):
        name = f"blk.{index}."
        layers.append(
            _LayerPlan(
                qkv=LinearSpec(
                    tuple(
                        weights.matrix(f"{name}attn_{part}.weight", rows, c.hidden)
                        for part, rows in (("q", query), ("k", key), ("v", key))
                    ),
                    norm=weights.vector(name + "attn_norm.weight", c.hidden),
                    norm_eps=c.norm_eps,
                    bias=_qkv_bias(c, weights, name, query, key),
                ),
                attention=_with_norms(c, weights, nearby if c.local and index in c.local.layers else everywhere, name),
                attention_out=LinearSpec(
                    (weights.matrix(name + "attn_output.weight", c.hidden, query),),
                    norm_eps=c.norm_eps,
                    bias=weights.optional_vector(name + "attn_output.bias", c.hidden),
                    residual=True,
                    post_norm=weights.vector(name + "post_attention_norm.weight", c.hidden) if c.post_norms else None,
                ),
                gate_up=LinearSpec(
                    (
                        weights.matrix(name + "ffn_gate.weight", c.feed_forward, c.hidden),
                        weights.matrix(name + "ffn_up.weight", c.feed_forward, c.hidden),
                    ),
                    norm=weights.vector(name + "ffn_norm.weight", c.hidden),
                    norm_eps=c.norm_eps,
                    gated=True,
                    gate=c.gate,
                ),
                down=LinearSpec(
                    (weights.matrix(name + "ffn_down.weight", c.hidden, c.feed_forward),),
                    norm_eps=c.norm_eps,
                    residual=True,
                    post_norm=weights.vector(name + "post_ffw_norm.weight", c.hidden) if c.post_norms else None,
                ),
            )
        )
    output_norm = weights.vector("output_norm.weight", c.hidden)
    weights.refuse_unused()
    return Plan(
        config=c,
        embed=EmbedSpec(table, c.embedding_scale),
        layers=tuple(layers),
        output=LinearSpec((head,), norm=output_norm, norm_eps=c.norm_eps, last_row=True),
    )


def _attentions(
    config: ModelConfig, weights: WeightDirectory, *, exact_cache: bool, kv_cache: KVCacheType
) -> tuple[AttentionSpec, AttentionSpec]:
    """The attention of layers that see everything, and of those that see a window, where there are any."""
    c = config
    factors = weights.optional_vector("rope_freqs.weight", c.rope.dims // 2)
    everywhere = AttentionSpec(
        num_heads=c.num_heads,
        num_kv_heads=c.num_kv_heads,
        head_dim=c.head_dim,
        rope=c.rope.table(c.num_ctx, factors),
        rope_pairs=c.rope.pairs,
        exact_cache=exact_cache,
        kv_cache=kv_cache,
        norm_eps=c.norm_eps,
        scale=c.attention_scale,
    )
    if c.local is None:
        return everywhere, everywhere
    return everywhere, replace(everywhere, rope=c.local.rope.table(c.num_ctx), window=c.local.window)


def _with_norms(config: ModelConfig, weights: WeightDirectory, spec: AttentionSpec, prefix: str) -> AttentionSpec:
    """The attention of one layer. Without weights of its own it is the same object for all layers of its kind."""
    if not config.qk_norm:
        return spec
    q_norm, k_norm = (weights.vector(f"{prefix}attn_{part}_norm.weight", config.head_dim) for part in "qk")
    return replace(spec, q_norm=q_norm, k_norm=k_norm)


def _qkv_bias(config: ModelConfig, weights: WeightDirectory, prefix: str, query: int, key: int) -> np.ndarray | None:
    """The stacked biases of q, k and v; zeros where an optional one is missing, None where all are."""
    parts = (("q", query), ("k", key), ("v", key))
    if config.attention_bias:
        return np.concatenate([weights.vector(f"{prefix}attn_{part}.bias", size) for part, size in parts])
    found = [weights.optional_vector(f"{prefix}attn_{part}.bias", size) for part, size in parts]
    if all(bias is None for bias in found):
        return None
    filled = [np.zeros(size, np.float32) if b is None else b for b, (_, size) in zip(found, parts, strict=True)]
    return np.concatenate(filled)


class Decoder:
    """The functions of a planned model, with its weights on the device."""

    def __init__(self, plan: Plan, registry: Registry, place: Place) -> None:
        self._embed = registry.build(plan.embed, place)
        specs = {id(layer.attention): layer.attention for layer in plan.layers}
        attentions: dict[int, AttentionFunction] = {key: registry.build(spec, place) for key, spec in specs.items()}
        self._layers = [
            _Layer(
                registry.build(layer.qkv, place),
                attentions[id(layer.attention)],
                registry.build(layer.attention_out, place),
                registry.build(layer.gate_up, place),
                registry.build(layer.down, place),
            )
            for layer in plan.layers
        ]
        self.output: LinearFunction = registry.build(plan.output, place)
        self.plan = plan

    @property
    def attentions(self) -> list[AttentionFunction]:
        """What makes, reads and writes the cache of each layer; layers may share one."""
        return [layer.attention for layer in self._layers]

    def __call__(self, step: Step, caches: list[Cache]) -> Tensor:
        """The logits (1, at least vocab_size) of the step's last row; the caches are written in place."""
        return self.output(self.states(step, caches), step)

    def states(self, step: Step, caches: list[Cache]) -> Tensor:
        """The states (rows, hidden) of all rows before the last norm; the caches are written in place."""
        x: Tensor = self._embed(step)
        for layer, cache in zip(self._layers, caches, strict=True):
            attended, _ = layer.attention(layer.qkv(x, step), cache, step)
            x = layer.attention_out(attended, step, x)
            x = layer.down(layer.gate_up(x, step), step, x)
        return x
