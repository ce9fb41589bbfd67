"""What a model takes of a device, and what devices there are: arithmetic against numbers that others published."""

from pathlib import Path

import numpy as np
import pytest

from garzone.core.errors import Unsupported
from garzone.core.generation import KVCacheType
from garzone.engine import devices
from garzone.engine.footprint import OVERHEAD_BYTES, Footprint, check_kv_cache, footprint

# https://huggingface.co/Qwen/Qwen2.5-Coder-7B-Instruct/blob/main/config.json
QWEN_7B = {
    "general.architecture": "qwen2",
    "qwen2.block_count": 28,
    "qwen2.attention.head_count": 28,
    "qwen2.attention.head_count_kv": 4,
    "qwen2.embedding_length": 3584,
    "qwen2.context_length": 32768,
}


def test_the_cache_of_a_7b_model_has_the_size_llama_cpp_prints() -> None:
    taken = footprint(QWEN_7B, 4_683_073_536)
    assert taken.kv_bytes_per_token * 8192 == 448 << 20  # "KV self size = 448.00 MiB" at -c 8192
    assert taken.context_length == 32768
    assert taken.active_share == 1.0


def test_a_cache_in_q8_0_takes_34_bytes_for_32_numbers() -> None:
    taken = footprint(QWEN_7B, 0, KVCacheType.Q8_0)
    assert taken.kv_bytes_per_token * 8192 == 238 << 20  # 448 MiB * 17 / 32, what llama.cpp prints with -ctk -ctv q8_0
    check_kv_cache(QWEN_7B, KVCacheType.Q8_0)
    odd = QWEN_7B | {"qwen2.attention.key_length": 80, "qwen2.attention.value_length": 80}
    check_kv_cache(odd, KVCacheType.F16)
    with pytest.raises(Unsupported, match=r"80 elements.* use f16"):
        check_kv_cache(odd, KVCacheType.Q8_0)


def test_the_largest_context_is_bounded_by_memory_and_by_training() -> None:
    taken = Footprint(weights_bytes=1000, kv_bytes_per_token=10, context_length=500)
    assert taken.largest_context(OVERHEAD_BYTES + 1000 + 1234) == 123
    assert taken.largest_context(OVERHEAD_BYTES + 100_000) == 500
    assert taken.largest_context(OVERHEAD_BYTES + 999) == 0
    assert taken.total_bytes(123) <= OVERHEAD_BYTES + 1000 + 1234 < taken.total_bytes(124)


def test_heads_may_differ_from_layer_to_layer_and_experts_are_read_in_part() -> None:
    lists = QWEN_7B | {"qwen2.attention.head_count_kv": np.array([4] * 14 + [0] * 14)}
    assert footprint(lists, 0).kv_bytes_per_token * 2 == footprint(QWEN_7B, 0).kv_bytes_per_token
    mixture = QWEN_7B | {"qwen2.expert_count": 128, "qwen2.expert_used_count": 8}
    assert footprint(mixture, 100).active_share == pytest.approx(0.1 + 0.9 / 16)


@pytest.mark.parametrize("value", [None, "x", -3, 0, True, [], 1.5])
def test_nonsense_in_the_metadata_is_no_crash(value: object) -> None:
    for key in QWEN_7B:
        footprint({**QWEN_7B, key: value}, 10)


@pytest.mark.parametrize(
    ("said", "name", "gib", "gb_s"),
    [
        ("7900xt", "Radeon RX 7900 XT", 20, 800),
        ("Radeon RX 7900 XTX", "Radeon RX 7900 XTX", 24, 960),
        ("rtx 4090", "GeForce RTX 4090", 24, 1008),
        ("m3 max", "Apple M3 Max", 0, 400),
        ("h100", "H100 SXM", 80, 3350),
    ],
)
def test_devices_are_found_by_what_people_call_them(said: str, name: str, gib: int, gb_s: float) -> None:
    found = devices.find(said)
    assert found is not None
    assert (found.name, found.memory_bytes, found.bandwidth) == (name, gib << 30, gb_s * 1e9)
    assert found.source.startswith("https://")


def test_what_is_no_device_is_not_found() -> None:
    assert devices.find("voodoo 2") is None
    assert devices.find("") is None


def test_a_radeon_is_told_from_its_sister_by_the_revision(tmp_path: Path) -> None:
    for card, revision, total in (("card0", "0xcc", 21458059264), ("card1", "0x99", 536870912)):
        folder = tmp_path / card / "device"
        folder.mkdir(parents=True)
        for name, value in (("vendor", "0x1002"), ("device", "0x744c"), ("revision", revision)):
            (folder / name).write_text(value + "\n")
        (folder / "mem_info_vram_total").write_text(f"{total}\n")
    (tmp_path / "card2" / "device").mkdir(parents=True)
    first, second = devices.amd_cards(tmp_path)
    assert (first.name, first.memory_bytes, first.bandwidth) == ("Radeon RX 7900 XT", 21458059264, 800e9)
    assert (second.name, second.bandwidth) == ("AMD GPU", 0.0)


def test_this_machine_has_a_processor_with_memory() -> None:
    cpu = devices.detect("CPU")
    assert cpu.memory_bytes > 1 << 28
    assert 0 < cpu.usable_bytes < cpu.memory_bytes
