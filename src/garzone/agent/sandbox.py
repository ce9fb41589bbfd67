"""Opens the platform's sandbox, and runs one command to its end: bounded output, bounded time, nothing left behind.

What a command may see and change is decided in `bubblewrap.py` and `seatbelt.py`; what it means is decided elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import shlex
import signal
import sys
import tempfile
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path

from garzone.agent.queueing import Queueing
from garzone.core.errors import SandboxUnavailable
from garzone.core.ports import Sandbox, SandboxLimits, SandboxResult, SandboxView

SYSTEM_PATH = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
PASSED_ON = ("PYTEST_DISABLE_PLUGIN_AUTOLOAD",)  # what the user's own runs of a check go by, and what tells nothing
FLOOD_FACTOR = 1024  # a command that prints this many times what is kept is not going to say anything useful: kill it
# Root becomes one of these inside a sandbox; the range is systemd's for dynamic users (systemd.io/UIDS-GIDS).
# A user each, because the limit on processes counts all of a user's, wherever they run.
FIRST_UID, NUM_UIDS = 61184, 4336
_uids = itertools.count()
DRAIN_S = 2.0  # how long to wait for the pipe to close once the command is dead
LOOK_S = 1.0  # between two looks at how long a command has waited for a processor
MAX_STRETCH = 8.0  # however long it waits, a command ends after so many times its limit


def open_sandbox(unsandboxed: bool = False) -> Sandbox:
    """The sandbox of this platform, tried once so that a missing one is known before any model is asked.

    Args:
        unsandboxed: run commands directly instead, because a person said so.

    Raises:
        SandboxUnavailable: says what is missing and how to get it.
    """
    if unsandboxed:
        return UnsandboxedRunner()
    if sys.platform == "linux":
        from garzone.agent.bubblewrap import BubblewrapSandbox  # noqa: PLC0415 - one platform's part at a time

        return BubblewrapSandbox.open()
    if sys.platform == "darwin":
        from garzone.agent.seatbelt import SeatbeltSandbox  # noqa: PLC0415

        return SeatbeltSandbox.open()
    raise SandboxUnavailable(
        f"no sandbox for {sys.platform}: use Linux (also WSL 2 or a container) or macOS, "
        "or accept the risk with --unsandboxed"
    )


def search_path(view: SandboxView) -> list[Path]:
    """Directories in which the command's programs are looked for, in order, each once; only those that exist."""
    own = [Path(entry) for entry in os.environ.get("PATH", "").split(os.pathsep) if entry.startswith("/")]
    places = [*view.path_first, *own, *(Path(p) for p in SYSTEM_PATH), *view.path_last]
    return [place for place in dict.fromkeys(places) if place.is_dir()]


def clean_environment(view: SandboxView, *, home: str, path: Sequence[Path]) -> dict[str, str]:
    """The environment of a command: of ours the language and PASSED_ON, nothing secret, nothing that varies."""
    return {
        "PATH": os.pathsep.join(str(place) for place in path),
        "HOME": home,
        "USER": "garzone",
        "LOGNAME": "garzone",
        "TMPDIR": "/tmp" if home.startswith("/tmp/") else home,  # noqa: S108 - the sandbox's own
        "LANG": os.environ.get("LANG") or "C.UTF-8",
        "PYTHONDONTWRITEBYTECODE": "1",  # what one candidate compiled must not be loaded by the next
        "PYTHONHASHSEED": "0",  # the same command twice should say the same twice
        "CI": "1",  # test runners that would watch files or ask questions do neither
        "NO_COLOR": "1",
        **{name: os.environ[name] for name in PASSED_ON if name in os.environ},
        **_toolchain_homes(),
        **view.environment,
    }


def _toolchain_homes() -> dict[str, str]:
    """Where toolchains lie that are found through a home directory: inside a sandbox that is another one."""
    rustup = Path(os.environ.get("RUSTUP_HOME") or Path.home() / ".rustup")
    return {"RUSTUP_HOME": str(rustup)} if (rustup / "toolchains").is_dir() else {}


def limited(command: str, limits: SandboxLimits, directory: Path) -> list[str]:
    """The command under `ulimit` in `directory`, as arguments for `exec`.

    Memory is bounded twice: RLIMIT_DATA at what is allowed (what is really written to counts), RLIMIT_AS at four times
    that or what the limits say, because V8 and Go reserve address space they never use. dash spells the process limit
    -p, bash -u.
    """
    kib = limits.memory_bytes >> 10
    settings = [
        f"ulimit -t {limits.cpu_s}",
        f"ulimit -f {max(limits.file_bytes >> 9, 1)}",
        "ulimit -c 0",
        f"ulimit -d {kib}",
        f"ulimit -v {max(kib * 4, limits.address_bytes >> 10)}",
        "ulimit -n 1024",
        f"ulimit -u {limits.max_processes} 2>/dev/null || ulimit -p {limits.max_processes}",
    ]
    # a limit that is already lower than ours cannot be raised, and need not be
    script = "; ".join(f"{{ {setting}; }} 2>/dev/null" for setting in settings)
    return [
        "/bin/sh",
        "-c",
        f"{script}; cd {shlex.quote(str(directory))} || exit 126; exec /bin/sh -c {shlex.quote(command)}",
    ]


async def run_bounded(
    argv: Sequence[str],
    limits: SandboxLimits,
    *,
    environment: Mapping[str, str] | None = None,
    leaves_children: bool = True,
) -> SandboxResult:
    """Run a program in its own process group until it ends, its time is over or its output floods; then kill the group.

    While the program waits for a processor that others use, its time stands still, up to MAX_STRETCH times the limit:
    that a machine is busy says nothing of what runs on it.

    Args:
        argv: the program and its arguments.
        limits: of time and output; the others are the program's own business.
        environment: the whole of it; None is ours.
        leaves_children: kill the group also after the program has ended by itself. Not for a program that cannot leave
            anything behind: its number may by then belong to somebody else.

    Raises:
        SandboxUnavailable: the program cannot be started at all.
    """
    started = time.monotonic()
    # a pipe of our own: asyncio's would make `wait` wait for whoever else holds its other end
    read_end, write_end = os.pipe()
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=write_end,
            stderr=asyncio.subprocess.STDOUT,
            env=dict(environment) if environment is not None else None,
            start_new_session=True,
        )
    except OSError as error:
        os.close(read_end)
        raise SandboxUnavailable(f"{argv[0]} cannot be started: {error.strerror}") from error
    finally:
        os.close(write_end)
    output = _HeadAndTail(limits.output_bytes)
    waiter = asyncio.ensure_future(process.wait())
    reader = asyncio.ensure_future(_drain(read_end, process, output, limits.output_bytes * FLOOD_FACTOR))
    try:
        await _ended_or_late(waiter, process.pid, limits.wall_s)
        timed_out = not waiter.done()
    finally:
        if leaves_children or not waiter.done():
            _kill_group(process)
        await waiter  # also when cancelled: nobody may find it still writing
        await asyncio.wait({reader}, timeout=DRAIN_S)
        reader.cancel()
    duration_ms = (time.monotonic() - started) * 1000
    text = output.text()
    if output.flooded:
        text += "\n[killed: it printed without end]"
    assert process.returncode is not None
    return SandboxResult(process.returncode, text, duration_ms, timed_out, output.truncated)


async def _ended_or_late(waiter: asyncio.Future[int], pid: int, wall_s: float) -> None:
    """Wait for a program to end, or to use up its time."""
    queueing = Queueing(pid)
    used_s, started = 0.0, time.monotonic()
    while used_s < wall_s and time.monotonic() - started < MAX_STRETCH * wall_s:
        looked, wanted_s = time.monotonic(), min(LOOK_S, wall_s - used_s)
        if (await asyncio.wait({waiter}, timeout=wanted_s))[0]:
            return
        passed_s = time.monotonic() - looked
        # where we ourselves came to look late, nobody looked: the machine was suspended, or had no time for us either
        waited_s = await asyncio.to_thread(queueing.sample, passed_s)
        used_s += max(min(passed_s, wanted_s) - waited_s, 0.0)


def _kill_group(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # already gone, or only zombies of it are left
        os.killpg(process.pid, signal.SIGKILL)


async def _drain(read_end: int, process: asyncio.subprocess.Process, output: _HeadAndTail, flood_bytes: int) -> None:
    stream = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(stream), os.fdopen(read_end, "rb")
    )
    try:
        while piece := await stream.read(1 << 16):
            output.add(piece)
            if output.seen > flood_bytes and not output.flooded:
                output.flooded = True
                _kill_group(process)
    finally:
        transport.close()


class _HeadAndTail:
    """Keeps the first and the last half of what may be kept."""

    def __init__(self, max_bytes: int) -> None:
        self._half = max(max_bytes // 2, 1)
        self._head = bytearray()
        self._tail: deque[bytes] = deque()
        self._tail_bytes = 0
        self.seen = 0
        self.flooded = False

    def add(self, piece: bytes) -> None:
        self.seen += len(piece)
        room = self._half - len(self._head)
        self._head += piece[:room]
        if rest := piece[room:] if room > 0 else piece:
            self._tail.append(rest)
            self._tail_bytes += len(rest)
            while self._tail_bytes - len(self._tail[0]) >= self._half:
                self._tail_bytes -= len(self._tail.popleft())

    @property
    def truncated(self) -> bool:
        return self.seen > 2 * self._half

    def text(self) -> str:
        tail = b"".join(self._tail)[-self._half :]
        left_out = self.seen - len(self._head) - len(tail)
        middle = f"\n[... {left_out} bytes left out ...]\n".encode() if left_out > 0 else b""
        return (bytes(self._head) + middle + tail).decode("utf-8", "replace")


class UnsandboxedRunner:
    """Runs commands as the user, because the user said so. Limits hold; nothing is hidden and the network is open.

    A daemon that leaves the process group survives: that is one of the things a sandbox is for.
    """

    isolated = False

    async def run(
        self, command: str, directory: Path, limits: SandboxLimits, view: SandboxView | None = None
    ) -> SandboxResult:
        """Run a shell command in `directory`; see `Sandbox.run`."""
        view = view or SandboxView()
        with tempfile.TemporaryDirectory(prefix="garzone-home-") as home:
            environment = clean_environment(view, home=home, path=search_path(view))
            return await run_bounded(
                limited(command, limits, directory / view.start_in), limits, environment=environment
            )


def fresh_uid() -> int:
    """A user that owns nothing and, most likely, nobody else runs as now."""
    return FIRST_UID + (os.getpid() * 37 + next(_uids)) % NUM_UIDS


def owner_of(directory: Path) -> int | None:
    """The user a directory was handed over to; None when it is somebody's."""
    uid = directory.stat().st_uid
    return uid if FIRST_UID <= uid < FIRST_UID + NUM_UIDS else None


def hand_over(uid: int, *directories: Path) -> None:
    """Let a user own directories and all they hold; one that it owns already is left as it is."""
    for directory in directories:
        if directory.stat().st_uid == uid:
            continue
        for here, folders, files in os.walk(directory):
            for name in (*folders, *files):
                os.chown(Path(here) / name, uid, uid, follow_symlinks=False)
        os.chown(directory, uid, uid)
