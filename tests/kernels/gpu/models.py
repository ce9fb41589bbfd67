"""Tiny models with quantised weights, and runners of them on devices that `open_device` would not choose."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from garzone.engine import model_runner
from garzone.engine.gguf import GGUFFile
from garzone.engine.model_runner import ModelRunner
from garzone.kernels import portable
from garzone.kernels.gpu import offers
from garzone.kernels.layouts import GGMLType
from garzone.kernels.registry import Registry
from garzone.testing import write_gguf, write_tiny_model


def write_quantised(path: Path, types: dict[str, GGMLType], *, vocabulary: int = 260, **sizes: Any) -> Path:
    """A tiny model whose matrices are of the type of the first name that theirs contains; "" fits any.

    Of its vocabulary only the first tokens are kept: an interpreter takes its time for each.
    """
    with GGUFFile.open(write_tiny_model(path.with_suffix(".f32"), **sizes)) as file:
        tensors: dict[str, Any] = {}
        for name, info in file.tensors.items():
            values = file.data(name).view(np.float32).reshape(info.shape)
            if len(info.shape) < 2:
                tensors[name] = values.copy()
                continue
            if name in ("token_embd.weight", "output.weight"):
                values = values[:vocabulary]
            ggml_type = next(types[part] for part in types if part in name)
            packed = gguf.quants.quantize(values, gguf.GGMLQuantizationType(int(ggml_type)))
            tensors[name] = (int(ggml_type), values.shape, packed.tobytes())
        return write_gguf(path, dict(file.metadata), tensors)


def gpu_runner(path: Path, device: str, monkeypatch: pytest.MonkeyPatch, **given: Any) -> ModelRunner:
    """A runner that computes with the GPU kernels on any of tinygrad's devices."""
    registry = Registry((*portable.OFFERS, *offers.offers((device,))))
    with monkeypatch.context() as patched:
        patched.setattr(model_runner, "open_device", lambda _: device)
        return ModelRunner.load(path, registry=registry, **given)
