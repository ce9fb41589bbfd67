"""Somebody who asks a batcher and keeps what it says, in this process."""

from dataclasses import replace
from pathlib import Path

from garzone.core.generation import GenerateRequest
from garzone.runner import protocol
from garzone.runner.batcher import Batcher
from garzone.runner.model import Model
from garzone.runner.protocol import Accepted, Embedded, Failed, Finished, Generate, Piece
from garzone.runner.row_store import RowStore
from garzone.scheduler.cost import StepTimes
from tests.runner.stand_in import ToyEngine, build


class FreeRows(StepTimes):
    """What makes every guess worth checking, whatever the machine is busy with."""

    def estimate(self, num_rows: int) -> float:
        del num_rows
        return 1.0


class Desk:
    """A batcher, and what it said to whom."""

    def __init__(self, model: Model | None = None, folder: Path | None = None) -> None:
        self.model = model or build()
        self.said: dict[int, list[protocol.Message]] = {}
        rows = RowStore(self.model.engine, self.model.engine_key, folder)
        self.batcher = Batcher(self.model, self._hear, rows, FreeRows())
        self.num_asked = 0

    @property
    def engine(self) -> ToyEngine:
        assert isinstance(self.model.engine, ToyEngine)
        return self.model.engine

    def _hear(self, message: protocol.Message) -> None:
        assert isinstance(message, Accepted | protocol.Progress | Piece | Finished | Failed | Embedded)
        self.said.setdefault(message.id, []).append(message)

    def ask(self, request: GenerateRequest, **fields: object) -> int:
        self.num_asked += 1
        self.batcher.add(replace(Generate(self.num_asked, request), **fields))
        return self.num_asked

    def work(self, until: int | None = None, cancel_after: int | None = None) -> None:
        """Step until all (or one) have ended, or that one is cancelled after so many messages."""
        while self.batcher.has_work and not (until in self.said and self.has_ended(until)):
            if cancel_after is not None and until is not None and len(self.said.get(until, ())) >= cancel_after:
                self.batcher.cancel(until)
            else:
                self.batcher.step()

    def has_ended(self, number: int | None) -> bool:
        return number is not None and isinstance(self.said[number][-1], Finished | Failed | Embedded)

    def text(self, number: int) -> str:
        return "".join(message.text for message in self.said[number] if isinstance(message, Piece | Finished))

    def end(self, number: int) -> Finished:
        end = self.said[number][-1]
        if isinstance(end, Failed):
            raise end.failure.to_exception()
        assert isinstance(end, Finished)
        return end
