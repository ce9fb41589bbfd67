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
from collections.abc import Callable, Iterator
from math import inf
from pathlib import Path

from garzone.core.errors import GenerationFailed
from garzone.runner.batcher import Batcher
from garzone.runner.model import Model
from garzone.runner.protocol import (
    PROTOCOL_VERSION,
    Cancel,
    Embed,
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
    SaveRows,
    Shutdown,
    encode,
    parse,
)
from garzone.runner.row_store import RowStore

LEAVE_S = 5.0  # how long a step that is under way may take once nobody waits for it
PREPARE_AFTER_S = 1.0  # without a request: while somebody types, kernels for later are compiled
SAVE_S = 3.0  # of those, for keeping rows on disk
DEFAULT_ENGINE = "garzone.runner.model:load_model"

LoadModel = Callable[[Load], Model]


class Channel:
    """Both directions of the pipe. `arrived` gives what is to be done, in order.

    `beats` goes up with every step of the engine: what the server asks for, to tell one that hangs from one that works.
    """

    def __init__(self, incoming: int, outgoing: int) -> None:
        self._incoming, self._outgoing = incoming, outgoing
        self._sending = threading.Lock()
        self.beats = 0
        self._inbox: queue.SimpleQueue[Message] = queue.SimpleQueue()

    def send(self, message: Message) -> None:
        """Write one frame; waits while the pipe is full."""
        frame = memoryview(encode(message))
        with self._sending:  # both threads write
            while frame:
                frame = frame[os.write(self._outgoing, frame) :]

    def arrived(self, wait_s: float) -> Iterator[Message]:
        """What came since the last call; if nothing did, the first message that comes within so many seconds."""
        try:
            if wait_s > 0:
                yield self._inbox.get(timeout=None if wait_s == inf else wait_s)
            while True:
                yield self._inbox.get_nowait()
        except queue.Empty:
            return

    def listen(self) -> None:
        """Read until the pipe closes, then see to it that the process ends."""
        decoder = FrameDecoder()
        try:
            while data := os.read(self._incoming, 1 << 16):
                for message in map(parse, decoder.push(data)):
                    if isinstance(message, Ping):
                        self.send(Pong(self.beats))
                    else:
                        self._inbox.put(message)
        finally:
            self._inbox.put(Shutdown())
            # a clean end where possible (a device left in the middle of a kernel may hang), an end in any case
            timer = threading.Timer(LEAVE_S, os._exit, (1,))
            timer.daemon = True
            timer.start()


def run(channel: Channel, load_model: LoadModel) -> int:
    """Serve until told to leave; the process's exit code."""
    channel.send(Hello(PROTOCOL_VERSION))
    batcher: Batcher | None = None
    is_prepared = True
    while True:
        wait = 0.0 if batcher is not None and batcher.has_work else inf if is_prepared else PREPARE_AFTER_S
        for message in channel.arrived(wait):
            if isinstance(message, Shutdown):
                if batcher is not None:
                    batcher.save(SAVE_S)
                return 0
            if isinstance(message, Load):
                batcher = _load(channel, load_model, message)
                if batcher is None:
                    return 1
                is_prepared = False
            elif batcher is not None:
                _take_in(batcher, message)
        if batcher is not None and batcher.has_work:
            if not _step(channel, batcher):
                return 1
        elif batcher is not None and not is_prepared:
            is_prepared = not _prepare(batcher)


def _load(channel: Channel, load_model: LoadModel, message: Load) -> Batcher | None:
    try:
        model = load_model(message)
        folder = Path(message.rows_dir) if message.rows_dir else None
        batcher = Batcher(model, channel.send, RowStore(model.engine, model.engine_key, folder))
    except Exception as error:  # noqa: BLE001  whatever it is, the server must hear of it
        _log(error)
        channel.send(LoadFailed(Failure.of(error)))
        return None
    channel.send(Loaded(model.context_tokens, model.device, model.memory_bytes, batcher.pool.num_free, model.note))
    return batcher


def _take_in(batcher: Batcher, message: Message) -> None:
    if isinstance(message, Generate):
        batcher.add(message)
    elif isinstance(message, Embed):
        batcher.embed(message)
    elif isinstance(message, Cancel):
        batcher.cancel(message.id)
    elif isinstance(message, SaveRows):
        batcher.save(SAVE_S)


def _prepare(batcher: Batcher) -> bool:
    """Compile for later while nobody waits; False when there is nothing left, or it fails: an answer will say why."""
    try:
        return batcher.prepare_more()
    except Exception as error:  # noqa: BLE001  drivers and compilers raise anything
        _log(error)
        return False


def _step(channel: Channel, batcher: Batcher) -> bool:
    """Compute once; False when the engine can no longer be trusted."""
    try:
        batcher.step()
        channel.beats += 1
    except BrokenPipeError:
        return False
    except Exception as error:  # noqa: BLE001  an engine that raised, or computed nonsense, has unknown state
        if not isinstance(error, GenerationFailed):
            _log(error)
        batcher.fail(error)
        return False
    return True


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
