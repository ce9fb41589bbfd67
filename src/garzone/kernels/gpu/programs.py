"""Compiled kernels: built once in a process however many layers launch them, and kept on disk for the next one.

tinygrad keeps what its compilers made of a text, but makes the text anew in every process: for a kernel of ours a third
of a second of Python. It does not know what a kernel computes.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import logging
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, cast

from tinygrad.codegen import to_program, to_program_key
from tinygrad.device import Device
from tinygrad.helpers import diskcache_get, diskcache_put
from tinygrad.renderer import Renderer
from tinygrad.uop import Ops
from tinygrad.uop.ops import UOp

_log = logging.getLogger(__name__)
_TABLE = "garzone_gpu_programs"
Arguments = ParamSpec("Arguments")


def remembered(factory: Callable[Arguments, Callable[..., UOp]]) -> Callable[Arguments, Callable[..., UOp]]:
    """A maker of kernels that gives the same kernel for equal arguments, which builds its UOps once for equal buffers.

    A model's layers ask for the same few kernels; building one takes 20 ms.
    """

    @functools.cache
    def make(*args: Any, **kwargs: Any) -> Callable[..., UOp]:
        return functools.cache(factory(*args, **kwargs))

    return cast("Callable[Arguments, Callable[..., UOp]]", functools.wraps(factory)(make))


def program(sink: UOp, device: str) -> UOp:
    """The kernel compiled for a device: a PROGRAM that a call can name in the kernel's place."""
    return _program(sink, Device[device].renderer)


@functools.cache
def _program(sink: UOp, renderer: Renderer) -> UOp:
    key = _key(sink, renderer)
    found = _kept(key)
    if found is None:
        found = _without_ops(to_program(sink, renderer))
        diskcache_put(_TABLE, key, found)
    return found


def _without_ops(compiled: UOp) -> UOp:
    """A program without what it was made of: tinygrad's checks refuse that inside a schedule, and nobody reads it.

    The sink's name and estimates and the parameters are asked for when it is launched.
    """
    sink, ops, *rest = compiled.src
    parameters = tuple(op for op in ops.src if op.op is Ops.PARAM)
    return compiled.replace(src=(sink.replace(src=()), ops.replace(src=parameters), *rest))


def _kept(key: str) -> UOp | None:
    try:
        found = diskcache_get(_TABLE, key)
    except (pickle.UnpicklingError, AttributeError, ImportError, EOFError, ValueError, TypeError) as error:
        _log.warning("a kept kernel cannot be read and is compiled again: %s", error)
        return None
    return found if isinstance(found, UOp) and found.op is Ops.PROGRAM and found.src[-1].op is Ops.BINARY else None


def _key(sink: UOp, renderer: Renderer) -> str:
    ast, kind, *rest = to_program_key(sink, renderer)
    parts = (ast.hex(), f"{kind.__module__}.{kind.__name__}", renderer.compiler.cachekey, *rest, _revision())
    return hashlib.sha256(repr(parts).encode()).hexdigest()


@functools.cache
def _revision() -> str:
    """Of what makes machine code out of UOps: tinygrad's release, and our renderer's text."""
    digest = hashlib.sha256(importlib.metadata.version("tinygrad").encode())
    for path in sorted((Path(__file__).parents[1] / "amd").glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
