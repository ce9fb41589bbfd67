"""The highest logits of a step, found without copying a vocabulary to the host.

The device says the highest of every group of a row's logits; the host names the groups that matter, and gets those:
some ten kilobytes each way where a row of a large vocabulary has six hundred. It does not choose a token.
"""

from __future__ import annotations

from functools import cached_property
from typing import Final

import numpy as np
from tinygrad.dtype import dtypes
from tinygrad.tensor import Tensor
from tinygrad.uop import Ops
from tinygrad.uop.ops import AxisType, UOp

from garzone.kernels.gpu.activations import Kernel
from garzone.kernels.gpu.batch import empty, run
from garzone.kernels.gpu.intrinsics import described
from garzone.kernels.highest import GROUP, highest_ids, highest_of
from garzone.kernels.launch import Captured
from garzone.kernels.registry import Place, Step, write

PICKED: Final = 64  # groups of a row that are fetched: enough for any top_k up to that
_THREADS: Final = 64


def num_groups(vocab_size: int) -> int:
    """Groups of GROUP logits of a row, as far apart as there are groups, so that neighbours read neighbours.

    The last of some of them may lie beyond the vocabulary.
    """
    return -(-vocab_size // GROUP)


def maxima_kernel(num_rows: int, width: int, vocab_size: int) -> Kernel:
    """(out float32 [num_rows, groups], logits float32 [num_rows, width]): the highest of each group.

    One that holds a NaN is infinite: comparisons would lose it.
    """
    groups = num_groups(vocab_size)

    def kernel(out: UOp, logits: UOp) -> UOp:
        part, row = UOp.special(-(-groups // _THREADS), "gidx0"), UOp.special(num_rows, "gidx1")
        group = part * _THREADS + UOp.special(_THREADS, "lidx0")
        inside = group < groups
        member = UOp.range(GROUP, 0, AxisType.REDUCE)
        token = member * groups + inside.where(group, 0)
        exists = token < vocab_size
        value = logits.flatten()[row * width + exists.where(token, 0)].load()
        value = value.ne(value).where(float("inf"), exists.where(value, float("-inf")))
        highest = value.reduce(member, arg=Ops.MAX)
        store = out.flatten()[(row * groups + inside.where(group, 0)).valid(inside)].store(highest)
        return store.sink(arg=described(f"highest_of_groups_{num_rows}_{vocab_size}"), tag=1)

    return kernel


def pick_kernel(num_rows: int, width: int, vocab_size: int, picked: int) -> Kernel:
    """(out float32 [num_rows, picked, GROUP], logits, groups int32 [num_rows, picked]): the logits of chosen groups.

    What lies beyond the vocabulary is -inf.
    """
    groups = num_groups(vocab_size)

    def kernel(out: UOp, logits: UOp, chosen: UOp) -> UOp:
        which, row, member = UOp.special(picked, "gidx0"), UOp.special(num_rows, "gidx1"), UOp.special(GROUP, "lidx0")
        token = member * groups + chosen.flatten()[row * picked + which].load()
        exists = token < vocab_size
        value = logits.flatten()[row * width + exists.where(token, 0)].load()
        store = out.flatten()[(row * picked + which) * GROUP + member].store(exists.where(value, float("-inf")))
        return store.sink(arg=described(f"pick_groups_{num_rows}_{vocab_size}"), tag=1)

    return kernel


class Highest:
    """What finds the highest logits of one captured step, and the buffers for it."""

    def __init__(self, place: Place, num_rows: int, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self.num_rows, self._place = num_rows, place
        self._picked = min(PICKED, num_groups(vocab_size))
        self._chosen = np.zeros(num_rows * self._picked, np.int32)
        self._on_device = place.upload(self._chosen)
        self._pick: Captured[Tensor] | None = None

    def maxima(self, logits: Tensor, step: Step) -> Tensor:
        """float32 [num_rows * groups], part of the step."""
        out = empty(self._place, dtypes.float, self.num_rows * num_groups(self.vocab_size))
        kernel = maxima_kernel(self.num_rows, int(logits.numel()) // self.num_rows, self.vocab_size)
        return run(kernel, step, out, logits)[0]

    def pick(self, logits: Tensor, groups: np.ndarray) -> np.ndarray:
        """The logits of chosen groups.

        Args:
            logits: of the step, the same buffer each time.
            groups: int [num_rows, picked].

        Returns:
            float32 [num_rows, picked, GROUP].
        """
        self._chosen[:] = groups.reshape(-1)
        write(self._on_device, self._chosen)
        if self._pick is None:
            width = int(logits.numel()) // self.num_rows
            kernel = pick_kernel(self.num_rows, width, self.vocab_size, self._picked)
            step = Step(self.num_rows, self._on_device, 0, self.num_rows)
            shape = self.num_rows * self._picked * GROUP

            def picked() -> Tensor:
                out = empty(self._place, dtypes.float, shape)
                return run(kernel, step, out, logits, self._on_device)[0].realize()

            self._pick = Captured(picked)
        return self._pick().numpy().reshape(self.num_rows, self._picked, GROUP)


class StepScores:
    """The rows of one step. What is fetched for one of them is fetched for all."""

    def __init__(self, logits: Tensor, maxima: Tensor, highest: Highest) -> None:
        self._logits, self._maxima, self._highest = logits, maxima, highest

    @cached_property
    def maxima(self) -> np.ndarray:
        """The highest logit of each group: float32 [num_rows, groups]."""
        return self._maxima.numpy().reshape(self._highest.num_rows, -1)

    @cached_property
    def logits(self) -> np.ndarray:
        """All of them: float32 [num_rows, vocab]."""
        return self._logits.numpy().reshape(self._highest.num_rows, -1)[:, : self._highest.vocab_size]

    @cached_property
    def picked(self) -> tuple[np.ndarray, np.ndarray]:
        """Of each row the groups with the highest maxima, int [num_rows, picked], and their logits."""
        count = min(PICKED, self.maxima.shape[1])
        groups = np.argpartition(self.maxima, -count, axis=1)[:, -count:]
        return groups, self._highest.pick(self._logits, groups)


class DeviceScores:
    """One row of a step: as ``engine.scores.Scores``."""

    def __init__(self, step: StepScores, index: int) -> None:
        self._step, self._index = step, index

    @property
    def largest(self) -> float:
        """The highest logit; infinite where one is not a number."""
        return float(self._step.maxima[self._index].max())

    def all(self) -> np.ndarray:
        """float32 [vocab]."""
        return self._step.logits[self._index]

    def highest(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Ids of the `count` highest, ascending, and their logits; of equal ones the first."""
        maxima = self._step.maxima[self._index]
        if count <= min(PICKED, len(maxima)):
            # The count-th highest maximum is reached by as many logits at least, all in groups that reach it.
            least = np.partition(maxima, -count)[-count]
            if np.count_nonzero(maxima >= least) <= PICKED:
                return self._from_picked(count)
        ids = highest_ids(self.all(), count)
        return ids, self.all()[ids]

    def _from_picked(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        groups, values = (found[self._index] for found in self._step.picked)
        ids = (groups[:, None] + np.arange(GROUP) * self._step.maxima.shape[1]).reshape(-1)
        order = np.argsort(ids)
        ids, values = ids[order], values.reshape(-1)[order]
        near = highest_of(values, count)
        return ids[near], values[near]
