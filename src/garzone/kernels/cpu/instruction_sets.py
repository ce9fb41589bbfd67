"""The instruction sets that kernels are written for: which this processor has, and how to compile for each.

Does not compile anything. A processor that none of the special ones fits runs plain C.
"""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Set
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True, slots=True)
class InstructionSet:
    """One way to compile the kernels.

    `define` selects the header in `csrc/lanes.h`; `machines` are the names `platform.machine()` gives, none meaning
    any; `features` are what the processor must have, by the names Linux gives them.
    """

    name: str
    define: str
    machines: tuple[str, ...] = ()
    features: frozenset[str] = frozenset()
    flags: tuple[str, ...] = ()


AVX512 = InstructionSet(
    "avx512-vnni",
    "GARZONE_AVX512",
    ("x86_64", "AMD64"),
    frozenset({"avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni"}),
    ("-mavx2", "-mfma", "-mf16c", "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni"),
)
AVX2 = InstructionSet(
    "avx2",
    "GARZONE_AVX2",
    ("x86_64", "AMD64"),
    frozenset({"avx2", "fma", "f16c"}),
    ("-mavx2", "-mfma", "-mf16c"),
)
NEON = InstructionSet(
    "neon-dotprod", "GARZONE_NEON", ("aarch64", "arm64"), frozenset({"asimddp"}), ("-march=armv8.2-a+dotprod+fp16",)
)
PORTABLE = InstructionSet("portable", "GARZONE_PORTABLE")

BEST_FIRST = (AVX512, AVX2, NEON, PORTABLE)


@cache
def processor_features() -> frozenset[str]:
    """What this processor has, as far as the kernels care, by the names Linux gives."""
    if sys.platform == "linux":
        return _linux_features(Path("/proc/cpuinfo"))
    if sys.platform == "darwin":
        return _mac_features()
    return frozenset()


def supported(features: Set[str] | None = None, machine: str | None = None) -> list[InstructionSet]:
    """The instruction sets that a processor can run, best first; this one unless told otherwise."""
    features = processor_features() if features is None else features
    machine = machine or platform.machine()
    return [s for s in BEST_FIRST if (not s.machines or machine in s.machines) and s.features <= features]


def _linux_features(cpuinfo: Path) -> frozenset[str]:
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip().lower() in ("flags", "features"):  # x86 and ARM
            return frozenset(value.split())
    return frozenset()


def _mac_features() -> frozenset[str]:
    names = ("machdep.cpu.features", "machdep.cpu.leaf7_features", "hw.optional.arm.FEAT_DotProd")
    words: list[str] = []
    for name in names:
        answer = subprocess.run(["/usr/sbin/sysctl", "-n", name], capture_output=True, text=True, check=False)  # noqa: S603
        words += answer.stdout.split()
        if name.endswith("DotProd") and answer.stdout.strip() == "1":
            words.append("asimddp")
    # Apple names AVX512VNNI without the underscore that Linux puts into it
    return frozenset(word.lower().replace("avx512vnni", "avx512_vnni") for word in words)
