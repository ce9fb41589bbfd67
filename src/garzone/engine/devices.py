"""How much memory the devices have and how fast they read it: a table with its sources, and what this machine says.

Opens no device and imports no tensors; the system is only asked what it already knows. What cannot be known is 0.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

DRM_DIR: Final = Path("/sys/class/drm")
MEMINFO: Final = Path("/proc/meminfo")
# Left to whatever else draws on the screen, and to the driver's own buffers. Measured nowhere: a margin.
RESERVED_BYTES: Final = 512 << 20
SHARED_SHARE: Final = 0.75  # as Apple's recommendedMaxWorkingSetSize: 2/3 to 3/4 of the machine's memory
_AMD_VENDOR: Final = "0x1002"
_PROBE_BYTES: Final = 256 << 20
_MOST_THREADS: Final = 16  # more do not read faster
_NVIDIA_SMI_TIMEOUT_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Device:
    """A device's memory.

    `memory_bytes` is all of it, `bandwidth` in bytes a second; 0 where unknown. `kind` is tinygrad's name (`AMD`,
    `CUDA`, `METAL`, `CPU`). `source` says where the two numbers are from.
    """

    name: str
    kind: str
    memory_bytes: int = 0
    bandwidth: float = 0.0
    source: str = ""

    @property
    def usable_bytes(self) -> int:
        """What models may take of it."""
        if self.kind in ("METAL", "CPU"):  # where everything else on the machine lives, too
            return int(self.memory_bytes * SHARED_SHARE)
        return max(0, self.memory_bytes - RESERVED_BYTES)


def _card(name: str, kind: str, gib: int, gb_s: float, source: str) -> Device:
    return Device(name, kind, gib << 30, gb_s * 1e9, source)


_AMD: Final = "https://www.amd.com/en/products/graphics/desktops/radeon.html"
_NVIDIA: Final = "https://www.nvidia.com/en-us/geforce/graphics-cards/compare/"
_APPLE: Final = "https://support.apple.com/en-us/docs (technical specifications of the Mac)"

# Memory in GiB and bandwidth in GB/s as the makers' data sheets give them. Of Apple's chips the memory is what is
# bought with them, and asked of the system; the bandwidth belongs to the chip.
KNOWN: Final = (
    _card("Radeon RX 7900 XTX", "AMD", 24, 960, _AMD),
    _card("Radeon RX 7900 XT", "AMD", 20, 800, _AMD),
    _card("Radeon RX 7900 GRE", "AMD", 16, 576, _AMD),
    _card("Radeon RX 7800 XT", "AMD", 16, 624, _AMD),
    _card("Radeon RX 7700 XT", "AMD", 12, 432, _AMD),
    _card("Radeon RX 7600 XT", "AMD", 16, 288, _AMD),
    _card("Radeon RX 7600", "AMD", 8, 288, _AMD),
    _card("Radeon RX 6900 XT", "AMD", 16, 512, _AMD),
    _card("Radeon RX 6800 XT", "AMD", 16, 512, _AMD),
    _card("Radeon RX 6700 XT", "AMD", 12, 384, _AMD),
    _card("Radeon RX 9070 XT", "AMD", 16, 640, _AMD),
    _card("Radeon RX 9070", "AMD", 16, 640, _AMD),
    _card("Radeon PRO W7900", "AMD", 48, 864, _AMD),
    _card("Radeon PRO W7800", "AMD", 32, 576, _AMD),
    _card(
        "Instinct MI300X", "AMD", 192, 5300, "https://www.amd.com/en/products/accelerators/instinct/mi300/mi300x.html"
    ),
    _card("GeForce RTX 5090", "CUDA", 32, 1792, _NVIDIA),
    _card("GeForce RTX 5080", "CUDA", 16, 960, _NVIDIA),
    _card("GeForce RTX 5070 Ti", "CUDA", 16, 896, _NVIDIA),
    _card("GeForce RTX 5070", "CUDA", 12, 672, _NVIDIA),
    _card("GeForce RTX 4090", "CUDA", 24, 1008, _NVIDIA),
    _card("GeForce RTX 4080", "CUDA", 16, 716.8, _NVIDIA),
    _card("GeForce RTX 4070 Ti", "CUDA", 12, 504, _NVIDIA),
    _card("GeForce RTX 4070", "CUDA", 12, 504, _NVIDIA),
    _card("GeForce RTX 4060 Ti", "CUDA", 8, 288, _NVIDIA),
    _card("GeForce RTX 3090 Ti", "CUDA", 24, 1008, _NVIDIA),
    _card("GeForce RTX 3090", "CUDA", 24, 936, _NVIDIA),
    _card("GeForce RTX 3080", "CUDA", 10, 760, _NVIDIA),
    _card("GeForce RTX 3060", "CUDA", 12, 360, _NVIDIA),
    _card("A100 80GB", "CUDA", 80, 2039, "https://www.nvidia.com/en-us/data-center/a100/"),
    _card("H100 SXM", "CUDA", 80, 3350, "https://www.nvidia.com/en-us/data-center/h100/"),
    _card("H200", "CUDA", 141, 4800, "https://www.nvidia.com/en-us/data-center/h200/"),
    _card("L40S", "CUDA", 48, 864, "https://www.nvidia.com/en-us/data-center/l40s/"),
    _card("Apple M1", "METAL", 0, 68.25, _APPLE),
    _card("Apple M1 Pro", "METAL", 0, 200, _APPLE),
    _card("Apple M1 Max", "METAL", 0, 400, _APPLE),
    _card("Apple M1 Ultra", "METAL", 0, 800, _APPLE),
    _card("Apple M2", "METAL", 0, 100, _APPLE),
    _card("Apple M2 Pro", "METAL", 0, 200, _APPLE),
    _card("Apple M2 Max", "METAL", 0, 400, _APPLE),
    _card("Apple M2 Ultra", "METAL", 0, 800, _APPLE),
    _card("Apple M3", "METAL", 0, 100, _APPLE),
    _card("Apple M3 Pro", "METAL", 0, 150, _APPLE),
    _card("Apple M3 Max", "METAL", 0, 400, _APPLE),
    _card("Apple M3 Ultra", "METAL", 0, 819, _APPLE),
    _card("Apple M4", "METAL", 0, 120, _APPLE),
    _card("Apple M4 Pro", "METAL", 0, 273, _APPLE),
    _card("Apple M4 Max", "METAL", 0, 546, _APPLE),
)

# PCI device and revision of cards that share one chip: https://gitlab.freedesktop.org/mesa/drm/-/blob/main/data/amdgpu.ids
_AMD_IDS: Final = {
    ("0x744c", "0xc8"): "Radeon RX 7900 XTX",
    ("0x744c", "0xcc"): "Radeon RX 7900 XT",
    ("0x744c", "0xce"): "Radeon RX 7900 GRE",
    ("0x7448", "0x00"): "Radeon PRO W7900",
    ("0x747e", "0xc8"): "Radeon RX 7800 XT",
    ("0x747e", "0xff"): "Radeon RX 7700 XT",
    ("0x7550", "0xc0"): "Radeon RX 9070 XT",
    ("0x73bf", "0xc0"): "Radeon RX 6900 XT",
    ("0x73bf", "0xc1"): "Radeon RX 6800 XT",
    ("0x74a1", "0x00"): "Instinct MI300X",
}


def find(name: str) -> Device | None:
    """The device of the table that a person means by `7900xt`, `rtx 4090`, `m3 max`; the shortest name that has it."""
    wanted = _folded(name)
    exact = [device for device in KNOWN if _folded(device.name) == wanted]
    found = exact or [device for device in KNOWN if wanted and _folded(device.name).endswith(wanted)]
    found = found or [device for device in KNOWN if wanted and wanted in _folded(device.name)]
    return min(found, key=lambda device: len(device.name), default=None)


def detect(kind: str = "") -> Device:
    """The device of that kind in this machine ("" for the first GPU, else the CPU); numbers are 0 where unknown."""
    kind = kind.split(":", maxsplit=1)[0].upper()
    if kind in ("", "AMD", "HIP"):
        for found in amd_cards():
            return found
    if kind in ("", "CUDA", "NV"):
        for found in _nvidia_cards():
            return found
    if kind in ("", "METAL") and sys.platform == "darwin":
        return _apple_chip()
    if kind in ("", "CPU"):
        return Device("CPU", "CPU", _physical_bytes(), 0.0, "this machine")
    return Device(kind, kind)


def amd_cards(drm: Path = DRM_DIR) -> list[Device]:
    """Radeon cards as the kernel's driver lists them."""
    cards: list[Device] = []
    for card in sorted(drm.glob("card[0-9]*/device")) if drm.is_dir() else []:
        if _line(card / "vendor") != _AMD_VENDOR:
            continue
        total = _line(card / "mem_info_vram_total")
        name = _AMD_IDS.get((_line(card / "device"), _line(card / "revision")), "")
        known = find(name) if name else None
        device = known or Device("AMD GPU", "AMD", source="the kernel's driver")
        cards.append(replace(device, memory_bytes=int(total)) if total.isdigit() else device)
    return sorted(cards, key=lambda card: -card.memory_bytes)  # the one beside the screen's own is the larger one


def measured_cpu_bandwidth() -> float:
    """Bytes a second that this machine's cores read together, best of five over 256 MB; takes a quarter of a second."""
    num_threads = min(os.cpu_count() or 1, _MOST_THREADS)
    parts = np.array_split(np.ones(_PROBE_BYTES // 8, np.int64), num_threads)
    best = float("inf")
    with ThreadPoolExecutor(num_threads) as threads:
        for _ in range(5):
            started = time.perf_counter()
            list(threads.map(np.max, parts))  # without Python's lock
            best = min(best, time.perf_counter() - started)
    return _PROBE_BYTES / best


def _nvidia_cards() -> list[Device]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    command = [program, "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(  # noqa: S603  a fixed question to the driver's own program
            command, capture_output=True, text=True, timeout=_NVIDIA_SMI_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    cards: list[Device] = []
    for line in done.stdout.splitlines():
        name, _, mebibytes = line.rpartition(",")
        if mebibytes.strip().isdigit():
            known = find(name.replace("NVIDIA", "").strip())
            device = known or Device(name.strip(), "CUDA", source="nvidia-smi")
            cards.append(replace(device, memory_bytes=int(mebibytes) << 20))
    return cards


def _apple_chip() -> Device:
    try:
        done = subprocess.run(
            ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"],
            capture_output=True,
            text=True,
            check=False,
            timeout=5,
        )
        name = done.stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        name = ""
    known = find(name) if name else None
    return replace(known or Device(name or "Apple GPU", "METAL"), memory_bytes=_physical_bytes())


def _physical_bytes() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return 0


def _line(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip().lower()
    except (OSError, UnicodeDecodeError):
        return ""


def _folded(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
