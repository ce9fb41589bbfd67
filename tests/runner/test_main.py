"""The loop of a runner process, in a thread of this one."""

import os
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from garzone.core.generation import GenerateRequest, SamplingParams
from garzone.runner import main
from garzone.runner.model import Model
from garzone.runner.protocol import FrameDecoder, Generate, Load, Loaded, Message, Shutdown, encode, parse
from tests.runner.stand_in import ToyEngine, build


class Runner:
    """Messages to and from `run`."""

    def __init__(self, model: Model) -> None:
        (self._theirs, self._ours), (self._answers, answering) = os.pipe(), os.pipe()
        channel = main.Channel(self._theirs, answering)
        threading.Thread(target=channel.listen, daemon=True).start()
        self.ended: list[int] = []
        self.thread = threading.Thread(target=lambda: self.ended.append(main.run(channel, lambda _: model)))
        self.thread.start()
        self._decoder = FrameDecoder()
        self.send(Load("toy.gguf", 64))
        self.until(Loaded)

    def send(self, message: Message) -> None:
        os.write(self._ours, encode(message))

    def until(self, kind: type[Any]) -> None:
        while True:
            for frame in self._decoder.push(os.read(self._answers, 1 << 16)):
                if isinstance(parse(frame), kind):
                    return


@pytest.fixture
def toy() -> Model:
    return build()


@pytest.fixture
def runner(toy: Model, monkeypatch: pytest.MonkeyPatch) -> Iterator[Runner]:
    monkeypatch.setattr(main, "PREPARE_AFTER_S", 0.01)
    runner = Runner(toy)
    yield runner
    runner.send(Shutdown())
    runner.thread.join(10)
    assert runner.ended == [0]


def eventually(condition: Any) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.005)


def test_what_answers_may_need_is_prepared_while_nobody_asks_and_only_once(runner: Runner, toy: Model) -> None:
    engine = toy.engine
    assert isinstance(engine, ToyEngine)
    eventually(lambda: engine.num_prepared == 3)
    request = GenerateRequest("toy", prompt="hello", raw=True, sampling=SamplingParams(max_tokens=2))
    runner.send(Generate(1, request))
    eventually(lambda: engine.num_steps > 0)
    time.sleep(0.1)
    assert engine.num_prepared == 3


def test_a_preparation_that_fails_is_not_tried_again_and_answers_are_given(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    tries: list[ToyEngine] = []

    def fails(engine: ToyEngine) -> bool:
        tries.append(engine)
        raise RuntimeError("out of memory on the card")

    monkeypatch.setattr(main, "PREPARE_AFTER_S", 0.01)
    monkeypatch.setattr(ToyEngine, "prepare_more", fails)
    runner = Runner(build())
    eventually(lambda: tries)
    runner.send(Generate(1, GenerateRequest("toy", prompt="hi", raw=True, sampling=SamplingParams(max_tokens=2))))
    eventually(lambda: tries[0].num_steps > 0)
    time.sleep(0.05)
    runner.send(Shutdown())
    runner.thread.join(10)
    assert runner.ended == [0]
    assert len(tries) == 1
    assert "out of memory on the card" in capfd.readouterr().err
