"""The loop inside a runner process: read a message, load or answer, write what came of it.

Started as `python -m garzone.runner.main`; frames come on stdin and leave on stdout, everything else that anyone prints
goes to stderr. One thread reads, so that a cancellation is seen while the other one computes; when the pipe closes,
the server is gone and so is the reason to live.
"""

from __future__ import annotations

import argparse
import faulthandler
import importlib
import os
import queue
import sys
import threading
import traceback
from collections.abc import Callable

from garzone.core.errors import GarzoneError, GenerationFailed
from garzone.runner.model import Model
from garzone.runner.protocol import (
    PROTOCOL_VERSION,
    Cancel,
    Failed,
    Failure,
    FrameDecoder,
    Generate,
    Hello,
    Load,
    Loaded,
    LoadFailed,
    Message,
    Ping,
    Pong,
    Shutdown,
    encode,
    parse,
)
from garzone.runner.slot import Listener, Slot

LEAVE_S = 5.0  # how long a step that is under way may take once nobody waits for it
DEFAULT_ENGINE = "garzone.runner.model:load_model"

LoadModel = Callable[[Load], Model]


class Channel:
    """Both directions of the pipe. `inbox` holds what is to be done, in order; cancellations overtake it.

    `beats` goes up with every step of the engine: what the server asks for, to tell one that hangs from one that works.
    """

    def __init__(self, incoming: int, outgoing: int) -> None:
        self._incoming, self._outgoing = incoming, outgoing
        self._cancelled: set[int] = set()
        self._closed = threading.Event()
        self._sending = threading.Lock()
        self.beats = 0
        self.inbox: queue.SimpleQueue[Message] = queue.SimpleQueue()

    def send(self, message: Message) -> None:
        """Write one frame; waits while the pipe is full."""
        frame = memoryview(encode(message))
        with self._sending:  # both threads write
            while frame:
                frame = frame[os.write(self._outgoing, frame) :]

    def cancelled(self, number: int) -> bool:
        """True when request `number` is no longer wanted."""
        return number in self._cancelled or self._closed.is_set()

    def listen(self) -> None:
        """Read until the pipe closes, then see to it that the process ends."""
        decoder = FrameDecoder()
        try:
            while data := os.read(self._incoming, 1 << 16):
                for message in map(parse, decoder.push(data)):
                    if isinstance(message, Cancel):
                        self._cancelled.add(message.id)
                    elif isinstance(message, Ping):
                        self.send(Pong(self.beats))
                    else:
                        self.inbox.put(message)
        finally:
            self._closed.set()
            self.inbox.put(Shutdown())
            # a clean end where possible (a device left in the middle of a kernel may hang), an end in any case
            timer = threading.Timer(LEAVE_S, os._exit, (1,))
            timer.daemon = True
            timer.start()


def run(channel: Channel, load_model: LoadModel) -> int:
    """Serve until told to leave; the process's exit code."""
    channel.send(Hello(PROTOCOL_VERSION))
    slot: Slot | None = None
    while True:
        message = channel.inbox.get()
        if isinstance(message, Shutdown):
            return 0
        if isinstance(message, Load):
            try:
                model = load_model(message)
            except Exception as error:  # noqa: BLE001  whatever it is, the server must hear of it
                _log(error)
                channel.send(LoadFailed(Failure.of(error)))
                return 1
            slot = Slot(model)
            channel.send(Loaded(model.context_tokens, model.device, model.memory_bytes))
        elif isinstance(message, Generate) and slot is not None:
            fatal = _answer(channel, slot, message)
            if fatal:
                return 1


def _answer(channel: Channel, slot: Slot, message: Generate) -> bool:
    """Answer one request; True when the engine can no longer be trusted."""

    def cancelled() -> bool:
        channel.beats += 1  # asked once a step
        return channel.cancelled(message.id)

    try:
        channel.send(slot.answer(message.request, Listener(message.id, channel.send, cancelled, message.keep_special)))
    except BrokenPipeError:
        return True
    except GenerationFailed as error:  # nonsense may be in the rows, too
        channel.send(Failed(message.id, Failure.of(error), fatal=True))
        return True
    except GarzoneError as error:
        channel.send(Failed(message.id, Failure.of(error)))
    except Exception as error:  # noqa: BLE001  an engine that raised has unknown state: say so and leave
        _log(error)
        channel.send(Failed(message.id, Failure.of(error), fatal=True))
        return True
    return False


def _log(error: Exception) -> None:
    traceback.print_exception(error, file=sys.stderr)
    sys.stderr.flush()


def _take_over_stdio() -> Channel:
    """Keep the pipe for frames only: a `print` in any library must not end up between them."""
    channel = Channel(os.dup(0), os.dup(1))
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return channel


def main(arguments: list[str] | None = None) -> int:
    """Entry point of the process."""
    parser = argparse.ArgumentParser(prog="garzone-runner", description="Serves one model over stdin and stdout.")
    parser.add_argument("--engine", default=DEFAULT_ENGINE, help="module:function that loads the model")
    module, _, attribute = parser.parse_args(arguments).engine.partition(":")
    faulthandler.enable()  # a segmentation fault in a kernel leaves a stack in the log
    channel = _take_over_stdio()
    threading.Thread(target=channel.listen, name="listen", daemon=True).start()
    load_model: LoadModel = getattr(importlib.import_module(module), attribute)
    try:
        return run(channel, load_model)
    except BrokenPipeError:
        return 0  # the server is gone


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    os._exit(code)  # not waiting for threads of drivers and compilers, which may never end
