"""What a device says it used, from a sysfs made for the test; where it says nothing there is no number."""

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
