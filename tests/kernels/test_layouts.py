import gguf
import pytest

from garzone.kernels.layouts import BLOCK, REMOVED_TYPES, GGMLType, packed_bytes


def test_every_type_of_the_gguf_package_is_known_by_the_same_number_and_name() -> None:
    assert {t.name: int(t) for t in gguf.GGMLQuantizationType}.items() <= {t.name: int(t) for t in GGMLType}.items()


def test_block_sizes_are_those_of_the_gguf_package() -> None:
    theirs = {GGMLType(int(kind)): size for kind, size in gguf.GGML_QUANT_SIZES.items()}
    ours = {kind: tuple(block) for kind, block in BLOCK.items() if kind in theirs}
    # ggml-common.h: block_q8_1 is two ggml_half and int8[32]; the package still counts two float
    assert theirs.pop(GGMLType.Q8_1) == (32, 40)
    assert ours.pop(GGMLType.Q8_1) == (32, 36)
    assert ours == theirs


def test_every_type_has_a_block_and_no_removed_type_is_among_them() -> None:
    assert set(BLOCK) == set(GGMLType)
    assert not set(REMOVED_TYPES) & set(map(int, GGMLType))


def test_packed_bytes_counts_whole_blocks_only() -> None:
    assert packed_bytes(GGMLType.Q4_K, 512) == 288
    assert packed_bytes(GGMLType.F16, 3) == 6
    with pytest.raises(ValueError, match="Q4_K"):
        packed_bytes(GGMLType.Q4_K, 255)
