"""A model's step on a GPU: captured once for a few sizes of batch, replayed for any rows of any slots.

Takes the place of one captured step for each slot where all of a model's operations are ours. What is captured names
its rows by tensors on the device (``batch``), so nothing but a few numbers is sent before a step and no variable is
bound.
It does not decide which rows run together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, cast

import numpy as np
from tinygrad.tensor import Tensor

from garzone.kernels.gpu.batch import Batch
from garzone.kernels.gpu.heads import Attention
from garzone.kernels.gpu.highest import DeviceScores, Highest, StepScores
from garzone.kernels.gpu.linear import MOST_COLUMNS
from garzone.kernels.launch import Captured
from garzone.kernels.registry import Place, write

if TYPE_CHECKING:
    from garzone.kernels.registry import AttentionFunction, Cache

# Batches are filled up to one of these numbers of rows. Up to eight rows are decoded, more are a prompt's; a tile of
# matrix instructions takes 64.
_SIZES = (1, 2, 4, 8, 64)
_FEW_WANTED = (1, 8)  # rows of a prompt's batch whose logits are computed; more cost as much as all
States = Callable[[Batch, "list[Cache]"], Tensor]
Output = Callable[[Tensor, Batch], Tensor]


def new_caches(attentions: Sequence[AttentionFunction], num_slots: int) -> list[Cache]:
    """The caches of a model whose attentions, one for each layer, are ours; each for that many slots."""
    ours = cast("Sequence[Attention]", attentions)
    made = {one: iter(one.new_caches(ours.count(one), num_slots)) for one in dict.fromkeys(ours)}
    return [next(made[attention]) for attention in ours]


class _Captured:
    """One size of batch: its tensors, and the step captured at its first use.

    Without wanted rows it ends at the states; `highest` finds the highest logits of the others.
    """

    def __init__(
        self, place: Place, rows: int, num_wanted: int, *, vocab_size: int, compute: Callable[[Batch], Tensor]
    ) -> None:
        self._host = [np.zeros(size, np.int32) for size in (rows, rows * 2, max(num_wanted, 1))]
        self._device = [place.upload(array) for array in self._host]
        tokens, places, wanted = self._device
        batch = Batch(rows, tokens, 0, rows, places=places, wanted=wanted, num_wanted=max(num_wanted, 1))
        self.highest = Highest(place, num_wanted, vocab_size) if num_wanted else None

        def step() -> tuple[Tensor, ...]:
            computed = compute(batch)
            results = (computed,) if self.highest is None else (computed, self.highest.maxima(computed, batch))
            results[0].realize(*results[1:])
            return results

        self.step = Captured(step)

    def __call__(
        self, token_ids: Sequence[int], slots: Sequence[int], positions: Sequence[int], wanted: Sequence[int]
    ) -> tuple[Tensor, ...]:
        """The states; or the logits of wanted rows, and the maxima of their groups. The next call overwrites them."""
        tokens, places, chosen = self._host
        tokens[:], places[:], chosen[:] = 0, -1, -1
        count = len(token_ids)
        tokens[:count], chosen[: len(wanted)] = token_ids, wanted
        places[0 : 2 * count : 2], places[1 : 2 * count : 2] = slots, positions
        for tensor, array in zip(self._device, self._host, strict=True):
            write(tensor, array)
        return self.step()


def _num_wanted(size: int, count: int) -> int:
    """For how many rows of a step logits are computed where that many are wanted."""
    return size if size <= MOST_COLUMNS else next((n for n in _FEW_WANTED if n >= count), size)


class Program:
    """The steps of a model with caches of several slots. One caller at a time."""

    def __init__(
        self,
        place: Place,
        states: States,
        output: Output,
        attentions: Sequence[AttentionFunction],
        caches: list[Cache],
        *,
        vocab_size: int,
    ) -> None:
        """Take over a model; nothing is compiled yet.

        Args:
            place: where it is.
            states: computes the states of all rows of a batch and writes the caches.
            output: computes the logits of a batch's wanted rows from its states.
            attentions: of all layers.
            caches: of all layers, as ``new_caches`` gave them.
            vocab_size: logits of a row that mean something; the output may have more.
        """
        self._vocab_size = vocab_size
        self._place, self._states, self._output, self._caches = place, states, output, caches
        self._captured: dict[tuple[int, int], _Captured] = {}
        self._attentions = cast("Sequence[Attention]", attentions)
        self._copied_rows = place.upload(np.zeros(3, np.int32))
        self._copy: Captured[tuple[Tensor, ...]] | None = None

    def run(
        self, token_ids: Sequence[int], slots: Sequence[int], positions: Sequence[int], wanted: Sequence[int]
    ) -> np.ndarray:
        """Run one row for each token, which goes to a position of a slot.

        Returns:
            float32 [len(wanted), vocabulary]: logits of those rows.
        """
        return self._score(token_ids, slots, positions, wanted).logits[: len(wanted)]

    def score(
        self, token_ids: Sequence[int], slots: Sequence[int], positions: Sequence[int], wanted: Sequence[int]
    ) -> list[DeviceScores]:
        """As `run`, but the logits stay on the device until somebody looks at them; good until the next step."""
        scores = self._score(token_ids, slots, positions, wanted)
        return [DeviceScores(scores, index) for index in range(len(wanted))]

    def run_to_states(
        self, token_ids: Sequence[int], slots: Sequence[int], positions: Sequence[int], wanted: Sequence[int]
    ) -> np.ndarray:
        """As `run`, but float32 [len(wanted), hidden]: what the output would have been computed from."""
        size = self._size(len(token_ids))
        (states,) = self._step(size, 0)(token_ids, slots, positions, ())
        return states.numpy().reshape(size, -1)[list(wanted)]

    def copy_rows(self, from_slot: int, to_slot: int, num_rows: int) -> None:
        """Copy the first rows of a slot over another's in the caches of all layers."""
        if self._copy is None:

            def copy() -> tuple[Tensor, ...]:
                pairs = zip(self._attentions, self._caches, strict=True)
                copied = [tensor for one, cache in pairs for tensor in one.copied(cache, self._copied_rows)]
                copied[0].realize(*copied[1:])
                return tuple(copied)

            self._copy = Captured(copy)
        write(self._copied_rows, np.array([from_slot, to_slot, num_rows], np.int32))
        self._copy()

    def prepare_more(self) -> bool:
        """Capture a size of step that none has needed yet, prompts' first; False when there is none left."""
        most = self._place.chunk_tokens
        sizes = sorted({size for size in (*_SIZES, most) if size <= most}, key=lambda s: -s if s > MOST_COLUMNS else s)
        missing = [size for size in sizes if (size, _num_wanted(size, 1)) not in self._captured]
        if missing:
            step = self._step(missing[0], _num_wanted(missing[0], 1))
            step((), (), (), ())  # rows that only fill the batch up: no cache is written
        elif self._copy is None:
            self.copy_rows(0, 0, 0)
        return bool(missing)

    def captured_step(self, rows: int) -> Captured[tuple[Tensor, ...]]:
        """What is replayed for that many rows, all of them wanted, for whoever counts its launches."""
        return self._step(self._size(rows), self._size(rows)).step

    def _score(
        self, token_ids: Sequence[int], slots: Sequence[int], positions: Sequence[int], wanted: Sequence[int]
    ) -> StepScores:
        size = self._size(len(token_ids))
        step = self._step(size, _num_wanted(size, len(wanted)))
        assert step.highest is not None
        logits, maxima = step(token_ids, slots, positions, wanted)
        return StepScores(logits, maxima, step.highest)

    def _size(self, rows: int) -> int:
        return next((size for size in _SIZES if size >= rows), self._place.chunk_tokens)

    def _step(self, size: int, num_wanted: int) -> _Captured:
        """The captured step; without wanted rows it ends at the states."""
        if (size, num_wanted) not in self._captured:

            def compute(batch: Batch) -> Tensor:
                states = self._states(batch, self._caches)
                return self._output(states, batch) if num_wanted else states

            self._captured[size, num_wanted] = _Captured(
                self._place, size, num_wanted, vocab_size=self._vocab_size, compute=compute
            )
        return self._captured[size, num_wanted]
