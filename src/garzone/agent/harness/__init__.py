"""Scripts that run inside the sandbox, in the project's own interpreter. They import nothing of garzone.

`script` gives their bytes, for `Stage.run(harness=...)`. What they write to `$GARZONE_OUT` is evidence to be judged
like any other: the code under test runs in the same process.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files


@cache
def script(name: str) -> bytes:
    """The text of a script beside this file."""
    return (files("garzone.agent.harness") / name).read_bytes()
