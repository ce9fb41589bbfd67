"""Reads what a device says it used: energy counters of processors and GPUs, or their power where they have no counter.

Never guesses: where nothing can be read there is no number. What is read is the whole device's, not one process's.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

SYSFS = Path("/sys/class")
SAMPLE_EVERY_S = 0.5
GPU_DRIVERS = ("amdgpu", "xe", "i915")
_MICRO, _MILLI = 1e-6, 1e-3


@dataclass(frozen=True, slots=True)
class Energy:
    """Joules between two readings, and what they are the joules of."""

    joules: float
    source: str


@dataclass(frozen=True, slots=True)
class _Source:
    """Something to read: a counter in joules that wraps at `wraps_at` (0: never), or a power in watts."""

    name: str
    read: Callable[[], float]
    is_power: bool = False
    wraps_at: float = 0.0


class EnergyMeter:
    """Use as a context manager round the work; `result` is None where the device does not tell.

    Args:
        sysfs: where `powercap` and `hwmon` are.
        nvidia: the NVML library; None looks for it.
    """

    def __init__(self, sysfs: Path = SYSFS, *, nvidia: bool = True) -> None:
        self._sources = [*_rapl(sysfs / "powercap"), *_hwmon(sysfs / "hwmon"), *(_nvml() if nvidia else [])]
        self._before: list[float | None] = []
        self._sampled = dict.fromkeys((source.name for source in self._sources if source.is_power), 0.0)
        self._stop = threading.Event()
        self._sampler: threading.Thread | None = None
        self.result: Energy | None = None

    def __enter__(self) -> Self:
        self._before = [_read(source) for source in self._sources]
        if self._sampled:
            self._sampler = threading.Thread(target=self._sample, name="energy", daemon=True)
            self._sampler.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._sampler is not None:
            self._sampler.join()
        joules: dict[str, float] = {}
        for source, before in zip(self._sources, self._before, strict=True):
            used = self._sampled.get(source.name, 0.0)
            if not source.is_power and before is not None and (after := _read(source)) is not None:
                used = after - before
                used += source.wraps_at if used < 0 else 0
            if used > 0:
                joules[source.name] = used
        if joules:
            self.result = Energy(sum(joules.values()), " + ".join(joules))

    def _sample(self) -> None:
        """Add up power over time, by the trapezoid rule."""
        powers = [source for source in self._sources if source.is_power]
        last_at, last = time.monotonic(), [_read(source) for source in powers]
        while True:
            ended = self._stop.wait(SAMPLE_EVERY_S)
            now, watts = time.monotonic(), [_read(source) for source in powers]
            for source, earlier, later in zip(powers, last, watts, strict=True):
                self._sampled[source.name] += ((earlier or 0) + (later or 0)) / 2 * (now - last_at)
            last_at, last = now, watts
            if ended:
                return


def _read(source: _Source) -> float | None:
    """None where it does not tell just now: a counter that is there only at the end would count from its beginning."""
    try:
        return source.read()
    except (OSError, ValueError):
        return None


def _rapl(powercap: Path) -> list[_Source]:
    """Processor packages: https://docs.kernel.org/power/powercap/powercap.html. Readable for root only on most."""
    found: list[_Source] = []
    for zone in sorted(powercap.glob("intel-rapl:[0-9]*")):
        if zone.name.count(":") != 1:  # a part of a package, which the package's own counter has in it
            continue
        try:
            name = (zone / "name").read_text().strip()
            wraps_at = int((zone / "max_energy_range_uj").read_text()) * _MICRO
            _number(zone / "energy_uj")
        except (OSError, ValueError):
            continue
        found.append(_Source(f"RAPL {name}", _micro(zone / "energy_uj"), wraps_at=wraps_at))
    return found


def _hwmon(hwmon: Path) -> list[_Source]:
    """GPUs: https://docs.kernel.org/gpu/amdgpu/thermal.html. A counter where there is one, else the power."""
    found: list[_Source] = []
    for number, device in enumerate(sorted(hwmon.glob("hwmon*"))):
        try:
            driver = (device / "name").read_text().strip()
        except OSError:
            continue
        if driver not in GPU_DRIVERS:
            continue
        for file, is_power in (("energy1_input", False), ("power1_average", True), ("power1_input", True)):
            try:
                _number(device / file)
            except (OSError, ValueError):
                continue
            label = f"{driver} {number}" + (" (power sampled)" if is_power else "")
            found.append(_Source(label, _micro(device / file), is_power))
            break
    return found


def _nvml() -> list[_Source]:
    """NVIDIA GPUs since Volta count their energy in millijoules: nvmlDeviceGetTotalEnergyConsumption."""
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return []
    count = ctypes.c_uint()
    if nvml.nvmlInit_v2() or nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)):
        return []
    found: list[_Source] = []
    for index in range(count.value):
        device = ctypes.c_void_p()
        if nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(device)):
            continue

        def read(device: ctypes.c_void_p = device) -> float:
            millijoules = ctypes.c_ulonglong()
            if nvml.nvmlDeviceGetTotalEnergyConsumption(device, ctypes.byref(millijoules)):
                raise OSError("NVML does not tell")
            return millijoules.value * _MILLI

        try:
            read()
        except OSError:
            continue
        found.append(_Source(f"NVML {index}", read))
    return found


def _micro(path: Path) -> Callable[[], float]:
    return lambda: _number(path) * _MICRO


def _number(path: Path) -> int:
    return int(path.read_text())
