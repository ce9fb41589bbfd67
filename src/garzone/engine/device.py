"""Finds and opens the device to compute on.

Does not compile a model's kernels; one tiny kernel shows that a device works at all.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import platform
import shutil
import sys
from pathlib import Path
from typing import Final

from garzone.core.errors import DeviceUnavailable

_log = logging.getLogger(__name__)

# In this order when nothing was asked for. NV is tinygrad's own driver for the cards that CUDA runs too.
PREFERENCE: Final = ("AMD", "CUDA", "NV", "METAL", "CPU")


def kernel_cache_environment(cache_dir: Path) -> dict[str, str]:
    """What to set for a process before it imports tinygrad, so that compiled kernels are kept in that folder."""
    return {"CACHEDB": str(cache_dir / "tinygrad.db")}


def open_device(asked: str = "") -> str:
    """Open a device and run one kernel on it.

    Args:
        asked: a tinygrad device, possibly with a renderer (`CPU:X86`); "" for the best one that works.

    Returns:
        The name to create tensors with.

    Raises:
        DeviceUnavailable: what was asked for does not work, or nothing does.
    """
    if asked:
        try:
            return _open(asked)
        except Exception as error:
            raise DeviceUnavailable(f"device {asked!r} cannot be used: {_reason(error)}") from error
    reasons: list[str] = []
    for name in PREFERENCE:
        if name == "METAL" and sys.platform != "darwin":
            continue
        try:
            return _open(name)
        except Exception as error:  # noqa: BLE001 - drivers and compilers raise anything
            reasons.append(f"{name}: {_reason(error)}")
            _log.debug("device %s cannot be used: %s", name, _reason(error))
    raise DeviceUnavailable("no device can be used; " + "; ".join(reasons))


def _reason(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__


def _open(asked: str) -> str:
    from tinygrad.helpers import DEV, Target  # noqa: PLC0415 - importing this module must not open a device

    target = Target.parse(asked.upper())
    if target.device == "CPU" and not target.renderer and not shutil.which("clang"):
        target = Target.parse("CPU:X86")
    if target.device == "CPU" and target.renderer == "X86" and platform.machine().lower() not in ("x86_64", "amd64"):
        raise DeviceUnavailable("no C compiler was found: install clang")
    # The default too: otherwise tinygrad looks for one by opening every driver it knows, which takes a second.
    before = DEV.value
    DEV.value = [target]
    try:
        if target.device == "CPU" and not shutil.which("clang"):
            _log.warning(
                "clang was not found: what garzone has no C code for is computed slowly; installing clang helps"
            )
            _open_cpu_without_clang()
        elif target.device == "CPU":
            _compile_with_clang()
        if target.device == "AMD":
            _choose_our_compiler(target.device)
        _try(target.device)
    except BaseException:
        DEV.value = before  # a device that cannot be used must not stay the default
        raise
    return target.device


def _choose_our_compiler(device: str) -> None:
    """Put our renderer, with the compiler that pip installs, before tinygrad's own, which ask for ROCm or comgr."""
    if importlib.util.find_spec("llvmlite") is None:
        _log.warning(
            "llvmlite is missing, so AMD kernels are compiled by tinygrad's own means and without our instructions; "
            "pip install 'garzone[amd]' helps"
        )
        return
    from garzone.kernels.amd.renderer import install  # noqa: PLC0415

    install(device)


def _compile_with_clang() -> None:
    """Let tinygrad call clang whatever the user's CC names: its options are clang's, and gcc refuses them."""
    from tinygrad.helpers import getenv  # noqa: PLC0415

    users = os.environ.get("CC")
    os.environ["CC"] = "clang"
    getenv("CC", "clang")  # remembered from here on
    if users is None:
        del os.environ["CC"]
    else:
        os.environ["CC"] = users


def _open_cpu_without_clang() -> None:
    """Open tinygrad's CPU device where there is no clang.

    tinygrad 0.14.0 compiles four programs of its command queue with clang whatever renderer is asked for
    (CPUDevice.__init__ in runtime/ops_cpu.py). The queue is used under HCQ2=1 only, which garzone does not set, so the
    one of the four that the x86 renderer can compile stands in for all.
    """
    from tinygrad.device import Device  # noqa: PLC0415
    from tinygrad.runtime import ops_cpu  # noqa: PLC0415

    names = ("ClangRenderer", "wait_prog", "timestamp_prog", "worker_prog")
    saved = {name: getattr(ops_cpu, name) for name in names}
    try:
        ops_cpu.ClangRenderer = ops_cpu.X86Renderer  # type: ignore[misc,assignment]
        for name in names[1:]:
            setattr(ops_cpu, name, ops_cpu.signal_prog)
        Device["CPU"]
    finally:
        for name, value in saved.items():
            setattr(ops_cpu, name, value)


def _try(device: str) -> None:
    from tinygrad.tensor import Tensor  # noqa: PLC0415

    if (Tensor([1.0, 2.0], device=device) + 1).tolist() != [2.0, 3.0]:
        raise DeviceUnavailable(f"device {device} computes 1 + 1 wrongly")
