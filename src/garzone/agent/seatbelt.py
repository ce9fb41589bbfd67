"""The sandbox on macOS: `sandbox-exec` with a profile that denies what is not needed.

Does not decide what to run or what the result means. `sandbox-exec` has been called deprecated since 2016 and is still
what every tool uses, Apple's own included. It cannot move directories, so the command sees its files where they lie,
and it has no process namespace: what leaves the process group is only ended by the limits. The profile language is
Apple's SBPL (see /System/Library/Sandbox/Profiles for examples); later rules win over earlier ones.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from garzone.agent.sandbox import clean_environment, limited, run_bounded, search_path
from garzone.core.errors import SandboxUnavailable
from garzone.core.ports import SandboxLimits, SandboxResult, SandboxView

SANDBOX_EXEC = "/usr/bin/sandbox-exec"
PROBE_TIMEOUT_S = 20.0
# where people's data lives; what a command needs from there is allowed again by name
PRIVATE_TREES = ("/Users", "/private/var/root", "/Volumes", "/private/etc/ssh", "/Library/Keychains")


@dataclass(frozen=True, slots=True)
class SeatbeltSandbox:
    """Runs commands under `sandbox-exec`."""

    isolated: bool = True

    @classmethod
    def open(cls) -> SeatbeltSandbox:
        """Try it once.

        Raises:
            SandboxUnavailable: not there, or not allowed (inside of another sandbox).
        """
        if not Path(SANDBOX_EXEC).exists():
            raise SandboxUnavailable(f"{SANDBOX_EXEC} is missing; nothing can be run safely without --unsandboxed")
        try:
            trial = subprocess.run(  # noqa: S603 - our own arguments
                [SANDBOX_EXEC, "-p", "(version 1)(allow default)", "/bin/sh", "-c", "exit 42"],
                capture_output=True,
                text=True,
                timeout=PROBE_TIMEOUT_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise SandboxUnavailable(f"sandbox-exec does not work: {error}; --unsandboxed accepts the risk") from error
        if trial.returncode != 42:
            raise SandboxUnavailable(
                f"sandbox-exec does not work here: {trial.stderr.strip()}; --unsandboxed accepts it"
            )
        return cls()

    async def run(
        self, command: str, directory: Path, limits: SandboxLimits, view: SandboxView | None = None
    ) -> SandboxResult:
        """Run a shell command; see `Sandbox.run`."""
        view = view or SandboxView()
        path = search_path(view)
        with tempfile.TemporaryDirectory(prefix="garzone-home-") as temporary:
            home = os.path.realpath(temporary)  # noqa: ASYNC240 - the kernel compares real paths
            policy = profile(directory, home, view, path)
            environment = clean_environment(view, home=home, path=path)
            arguments = [SANDBOX_EXEC, "-p", policy, *limited(command, limits, directory / view.start_in)]
            return await run_bounded(arguments, limits, environment=environment)


def profile(directory: Path, home: str, view: SandboxView, path: Iterable[Path]) -> str:
    """The SBPL profile: no network, no private data, writing only below the directory and a private home.

    Args:
        directory: what the command may change.
        home: its temporary home, a real path.
        view: further places to read or write, and files to protect.
        path: directories with programs; the tree around each may be read.
    """
    around = [entry.parent if entry.name in ("bin", "shims", "sbin") else entry for entry in path]
    own_home = Path.home()
    trees = [tree for tree in around if tree != own_home and tree not in own_home.parents]
    readable = [*trees, Path(sys.prefix), Path(sys.base_prefix), *view.read_only, *view.writable, directory]
    writable = [str(directory), home, *(str(place) for place in view.writable)]
    rules = [
        "(version 1)",
        "(allow default)",
        "(deny network*)",
        "(deny file-write*)",
        f"(deny file-read-data {_subpaths([*PRIVATE_TREES, str(own_home)])})",
        f"(allow file-read-data {_subpaths([*map(str, readable), home])})",
        f"(allow file-write* {_subpaths(writable)})",
        '(allow file-write-data (literal "/dev/null") (literal "/dev/zero") (literal "/dev/dtracehelper"))',
        # other programs must neither be talked to nor be ended
        "(deny mach-lookup)",
        '(allow mach-lookup (global-name "com.apple.system.notification_center"))',
        '(allow mach-lookup (global-name "com.apple.system.logger"))',
        "(deny appleevent-send)",
        "(deny signal)",
        "(allow signal (target same-sandbox))",
    ]
    if view.pinned:
        pinned = " ".join(f"(literal {_quoted(os.path.realpath(directory / name))})" for name in view.pinned)
        rules.append(f"(deny file-write* {pinned})")
    return "\n".join(rules)


def _subpaths(places: Iterable[str]) -> str:
    return " ".join(f"(subpath {_quoted(place)})" for place in dict.fromkeys(map(os.path.realpath, places)))


def _quoted(text: str) -> str:
    """A string literal of SBPL, which is a Scheme."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
