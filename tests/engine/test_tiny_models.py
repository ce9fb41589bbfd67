"""Tiny models against `transformers`, and files that must be refused."""

import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from garzone.core.errors import DeviceUnavailable, GGUFError, UnsupportedModel
from garzone.engine.gguf import GGUFFile
from garzone.engine.model_runner import ModelRunner
from garzone.kernels import portable
from garzone.kernels.registry import Registry
from garzone.testing import tiny_vocabulary, write_gguf, write_tiny_model
from tests.engine.tiny_transformers import TOKENS, VARIANTS, Variant, write_converted
from tests.numbers import record_number

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "tiny_transformers.npz")


def load(path: Path, **given: Any) -> ModelRunner:
    return ModelRunner.load(path, num_ctx=128, device="CPU", registry=Registry(portable.OFFERS), **given)


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_logits_agree_with_transformers(variant: Variant, tmp_path: Path) -> None:
    runner = load(write_converted(variant, tmp_path / "tiny.gguf"))
    worst = 0.0
    for index, tokens in enumerate(TOKENS):
        expected = GOLDEN[f"{variant.name}/{index}"]
        worst = max(worst, float(np.abs(runner.prefill(tokens, 0) - expected).max()))
        # the same tokens one by one: decode's path
        logits = [runner.decode(token, position) for position, token in enumerate(tokens[:20])]
        if len(tokens) <= 20:
            worst = max(worst, float(np.abs(logits[-1] - expected).max()))
    record_number(f"{variant.name}: largest logit difference from transformers", worst, "< 1e-3")
    assert worst < 1e-3


def test_fewer_rope_dims_than_the_head_has_are_honoured(tmp_path: Path) -> None:
    # What exactly they compute is held against the reference in tests/kernels; here, that the key is honoured.
    model = rewritten(tmp_path, lambda metadata, _: metadata.update({"llama.rope.dimension_count": 8}))
    runner = load(model)
    logits = runner.prefill([5, 6, 7], 0)
    assert np.isfinite(logits).all()
    full = load(rewritten(tmp_path, lambda *_: None)).prefill([5, 6, 7], 0)
    assert np.abs(logits - full).max() > 1e-3


def test_weights_kept_packed_give_the_same_logits(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_tiny_model(tmp_path / "tiny.gguf", num_layers=1)
    unpacked = load(path).prefill([1, 2, 3], 0)
    packed = load(path, dense_bytes=0).prefill([1, 2, 3], 0)
    assert np.abs(packed - unpacked).max() < 1e-5
    assert sum("stay packed" in record.message for record in caplog.records) == 1


def test_the_context_is_what_was_asked_for_up_to_what_was_trained(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path / "tiny.gguf", num_layers=1, context_length=100)
    assert ModelRunner.load(path, num_ctx=70, device="CPU").config.num_ctx == 70
    assert ModelRunner.load(path, num_ctx=4096, device="CPU").config.num_ctx == 100


@pytest.mark.parametrize(
    "tokens", [[], [260], [-1], list(range(129))], ids=["none", "too high", "negative", "too many"]
)
def test_tokens_that_cannot_be_run_are_refused(tokens: list[int], tmp_path: Path) -> None:
    runner = load(write_tiny_model(tmp_path / "tiny.gguf", num_layers=1))
    with pytest.raises(ValueError, match="token"):
        runner.prefill(tokens, 0)


def test_rows_outside_the_cache_or_behind_a_hole_are_refused(tmp_path: Path) -> None:
    runner = load(write_tiny_model(tmp_path / "tiny.gguf", num_layers=1))
    with pytest.raises(ValueError, match="only rows before 0"):
        runner.decode(1, 5)
    runner.prefill(list(range(120)), 0)
    with pytest.raises(ValueError, match="do not lie in a cache"):
        runner.prefill(list(range(9)), 120)
    runner.prefill(list(range(8)), 120)


Edit = Callable[[dict[str, Any], dict[str, np.ndarray]], None]


def rewritten(folder: Path, edit: Edit, architecture: str = "llama") -> Path:
    """The tiny model with its metadata or tensors changed."""
    source = write_tiny_model(folder / "source.gguf", architecture=architecture, num_layers=1)
    with GGUFFile.open(source) as file:
        metadata = {key: file.metadata[key] for key in file.metadata if not key.startswith("tokenizer.")}
        tensors = {
            name: file.data(name).view(np.float32).reshape(info.shape).copy() for name, info in file.tensors.items()
        }
    edit(metadata, tensors)
    return write_gguf(folder / "edited.gguf", metadata | tiny_vocabulary(), tensors)


def setting(**keys: Any) -> Edit:
    return lambda metadata, _: metadata.update({key.replace("__", "."): value for key, value in keys.items()})


def dropping(name: str) -> Edit:
    return lambda metadata, tensors: (tensors.pop(name, None), metadata.pop(name, None), None)[-1]


def reshaping(name: str, *shape: int) -> Edit:
    return lambda _, tensors: tensors.update({name: np.zeros(shape, np.float32)})


@pytest.mark.parametrize(
    ("edit", "error", "message"),
    [
        (setting(general__architecture="mamba"), UnsupportedModel, "mamba"),
        (setting(llama__rope__scaling__type="yarn"), UnsupportedModel, "yarn"),
        (setting(llama__expert_count=8), UnsupportedModel, "experts"),
        (setting(llama__logit_scale=0.5), UnsupportedModel, "logit"),
        (setting(llama__attention__head_count=0), GGUFError, "head_count"),
        (setting(llama__attention__head_count_kv=3), GGUFError, "cannot share"),
        (setting(llama__rope__dimension_count=18), GGUFError, "dimension_count"),
        (setting(llama__embedding_length="64"), GGUFError, "embedding_length"),
        (setting(llama__attention__layer_norm_rms_epsilon=-1.0), GGUFError, "epsilon"),
        (setting(llama__feed_forward_length=96), GGUFError, "blk.0.ffn_gate.weight"),
        (dropping("llama.block_count"), GGUFError, "block_count"),
        (dropping("general.architecture"), GGUFError, "general.architecture"),
        (dropping("token_embd.weight"), GGUFError, "token_embd.weight"),
        (dropping("output_norm.weight"), GGUFError, "output_norm.weight"),
        (dropping("blk.0.attn_k.weight"), GGUFError, "blk.0.attn_k.weight"),
        (reshaping("blk.0.attn_v.weight", 32, 32), GGUFError, "blk.0.attn_v.weight"),
        (reshaping("token_embd.weight", 260, 32), GGUFError, "token_embd.weight"),
        (reshaping("blk.0.attn_q_norm.weight", 16), UnsupportedModel, "blk.0.attn_q_norm.weight"),
        (reshaping("blk.1.ffn_up.weight", 128, 64), UnsupportedModel, "blk.1.ffn_up.weight"),
    ],
)
def test_a_model_that_would_be_computed_wrongly_is_refused_by_name(
    edit: Edit, error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        load(rewritten(tmp_path, edit))


def test_qwen2_without_its_biases_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GGUFError, match=r"attn_k\.bias"):
        load(rewritten(tmp_path, dropping("blk.0.attn_k.bias"), "qwen2"))


def test_a_norm_that_is_not_a_number_is_refused_by_name(tmp_path: Path) -> None:
    def spoil(_: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
        tensors["blk.0.ffn_norm.weight"][3] = struct.unpack("<f", b"\0\0\xc0\x7f")[0]

    with pytest.raises(GGUFError, match=r"ffn_norm\.weight"):
        load(rewritten(tmp_path, spoil))


def test_a_device_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DeviceUnavailable, match="QUANTUM"):
        ModelRunner.load(write_tiny_model(tmp_path / "tiny.gguf"), num_ctx=16, device="QUANTUM")
