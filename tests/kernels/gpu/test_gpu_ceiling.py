"""The plain read that a card's speed is held against: it must read everything, 16 bytes at a time."""

import numpy as np
from tinygrad.dtype import dtypes

from garzone.kernels.gpu.ceiling import THREADS, WORDS, read_all
from tests.kernels.gpu.gfx1100 import listing
from tests.kernels.gpu.oracle import run


def test_every_word_is_read_once() -> None:
    words = np.random.default_rng(0).integers(0, 1 << 32, 2 * WORDS, dtype=np.uint32)
    sums = run(read_all(2 * WORDS), np.zeros(2 * THREADS, np.uint32), words)
    assert sums.sum(dtype=np.uint32) == words.sum(dtype=np.uint32)


def test_loads_are_sixteen_bytes_wide_and_all_in_flight_on_gfx1100() -> None:
    code = listing(read_all(1 << 20), (dtypes.uint32, (1 << 20) // WORDS * THREADS), (dtypes.uint32, 1 << 20))
    names = [instruction.name for instruction in code.instructions]
    loads = [at for at, name in enumerate(names) if name.startswith("global_load")]
    assert [names[at] for at in loads] == ["global_load_b128"] * 8
    assert not any("waitcnt vmcnt" in name for name in names[loads[0] : loads[-1]])
