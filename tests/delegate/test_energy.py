"""What a device says it used, from a sysfs made for the test; where it says nothing there is no number."""

import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from garzone.delegate.energy import EnergyMeter


def package(sysfs: Path, name: str, microjoules: int, wraps_at: int = 262_143_328_850) -> Path:
    zone = sysfs / "powercap" / name
    zone.mkdir(parents=True)
    (zone / "name").write_text("package-0\n")
    (zone / "max_energy_range_uj").write_text(f"{wraps_at}\n")
    (zone / "energy_uj").write_text(f"{microjoules}\n")
    return zone / "energy_uj"


def card(sysfs: Path, driver: str, **files: int) -> Path:
    device = sysfs / "hwmon" / "hwmon3"
    device.mkdir(parents=True)
    (device / "name").write_text(f"{driver}\n")
    for name, value in files.items():
        (device / name).write_text(f"{value}\n")
    return device


def test_a_machine_that_does_not_tell_has_no_number(tmp_path: Path) -> None:
    with EnergyMeter(tmp_path, nvidia=False) as meter:
        pass
    assert meter.result is None


def test_processor_packages_are_counted_and_their_parts_are_not(tmp_path: Path) -> None:
    counter = package(tmp_path, "intel-rapl:0", 1_000_000)
    package(tmp_path, "intel-rapl:0:0", 0)
    with EnergyMeter(tmp_path, nvidia=False) as meter:
        counter.write_text("13_500_000".replace("_", ""))
    assert meter.result is not None
    assert meter.result.joules == pytest.approx(12.5)
    assert meter.result.source == "RAPL package-0"


def test_a_counter_that_wrapped_meanwhile_is_not_negative(tmp_path: Path) -> None:
    counter = package(tmp_path, "intel-rapl:0", 99_000_000, wraps_at=100_000_000)
    with EnergyMeter(tmp_path, nvidia=False) as meter:
        counter.write_text("2000000")
    assert meter.result is not None
    assert meter.result.joules == pytest.approx(3.0)


def test_a_gpu_with_a_counter_is_read_by_it(tmp_path: Path) -> None:
    device = card(tmp_path, "amdgpu", energy1_input=5_000_000, power1_average=300_000_000)
    with EnergyMeter(tmp_path, nvidia=False) as meter:
        (device / "energy1_input").write_text("9000000")
    assert meter.result is not None
    assert meter.result.joules == pytest.approx(4.0)


def test_a_gpu_without_one_is_sampled_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("garzone.delegate.energy.SAMPLE_EVERY_S", 0.01)
    card(tmp_path, "amdgpu", power1_average=200_000_000)
    started = time.monotonic()
    with EnergyMeter(tmp_path, nvidia=False) as meter:
        time.sleep(0.2)
    took = time.monotonic() - started
    assert meter.result is not None
    assert 200 * 0.15 < meter.result.joules <= 200 * took
    assert "power sampled" in meter.result.source
    assert "energy" not in [thread.name for thread in threading.enumerate()]


def test_network_cards_and_the_like_are_no_gpus(tmp_path: Path) -> None:
    card(tmp_path, "r8169", power1_average=1)
    with EnergyMeter(tmp_path, nvidia=False) as meter:
        pass
    assert meter.result is None


def test_a_counter_that_vanishes_does_not_matter(tmp_path: Path) -> None:
    counter = package(tmp_path, "intel-rapl:0", 0)
    with EnergyMeter(tmp_path, nvidia=False) as meter:
        counter.unlink()
    assert meter.result is None


def test_a_counter_that_could_not_be_read_at_first_is_not_taken_from_its_beginning(tmp_path: Path) -> None:
    counter = package(tmp_path, "intel-rapl:0", 5_000_000)
    meter = EnergyMeter(tmp_path, nvidia=False)
    counter.write_text("busy")
    with meter:
        counter.write_text("99000000")
    assert meter.result is None


# The functions of NVML that are called, with the signatures of https://docs.nvidia.com/deploy/nvml-api: two devices, of
# which the first is too old to count. Energy is in millijoules and grows by 1,500 a reading.
_NVML = """
typedef struct { int number; } *device_t;
static struct { int number; } devices[2] = {{0}, {1}};
static unsigned long long energy = 1ull << 40;
int nvmlInit_v2(void) { return 0; }
int nvmlDeviceGetCount_v2(unsigned int *count) { *count = 2; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned int index, device_t *device) {
  if (index > 1) return 2;
  *device = (device_t)&devices[index];
  return 0;
}
int nvmlDeviceGetTotalEnergyConsumption(device_t device, unsigned long long *millijoules) {
  if (device->number != 1) return 3;
  *millijoules = energy += 1500;
  return 0;
}
"""


@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("cc"), reason="a compiler and a Linux linker")
def test_nvidias_library_is_asked_as_its_documentation_says(tmp_path: Path) -> None:
    """A library with the same functions, in a process of its own; no real NVIDIA device was there to try it on."""
    (tmp_path / "nvml.c").write_text(_NVML)
    library = tmp_path / "libnvidia-ml.so.1"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, tmp_path / "nvml.c"], check=True)
    script = (
        "from pathlib import Path; from garzone.delegate.energy import EnergyMeter\n"
        "with EnergyMeter(Path('/nonexistent')) as meter: pass\n"
        "print(meter.result.joules, meter.result.source)"
    )
    environment = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1.5", "NVML", "1"]
