from collections.abc import Iterator

import pytest

from garzone.kernels.cpu.library import Threads


@pytest.fixture(scope="session")
def threads() -> Iterator[Threads]:
    """Three threads on any machine, so that parts meet."""
    pool = Threads(3)
    yield pool
    pool.stop()
