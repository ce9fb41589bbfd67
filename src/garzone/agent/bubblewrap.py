"""The sandbox on Linux: bubblewrap namespaces around a command, built from an allow-list of what it may see.

Does not decide what to run or what the result means.

What a command gets: the system's programs and libraries read-only, the toolchains that PATH names read-only even where
they live under a home directory, one writable directory, small private /tmp and /dev/shm, its own process, network,
IPC and host name spaces. Everything else (home directories, /run with its sockets, other people's data) is not
mounted, so it does not exist. The limits are rlimits; RLIMIT_NPROC does not bind the real root user, therefore root
becomes a user that owns nothing (bubblewrap as root, `setpriv` to drop). Where that is not possible (root in a
container without CAP_SYS_ADMIN) a user namespace is used as for everybody else, and a fork bomb is ended by the time
limit instead.

Not bounded: the number of files written into the worktree, and shared memory maps within the address space limit.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from garzone.agent.sandbox import (
    DRAIN_S,
    FIRST_UID,
    MAX_STRETCH,
    clean_environment,
    fresh_uid,
    hand_over,
    limited,
    owner_of,
    run_bounded,
    search_path,
)
from garzone.core.errors import SandboxUnavailable
from garzone.core.ports import SandboxLimits, SandboxResult, SandboxView

SYSTEM_TREES = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc", "/opt", "/nix/store", "/sys")
HIDDEN_FILES = ("/etc/shadow", "/etc/shadow-", "/etc/gshadow", "/etc/gshadow-", "/etc/sudoers")
HIDDEN_TREES = ("/etc/ssh", "/etc/ssl/private", "/etc/sudoers.d")
HOME_INSIDE = "/tmp/home"  # noqa: S108 - on the sandbox's private tmpfs
TMP_BYTES = 512 << 20
PROBE_TIMEOUT_S = 20.0
# credentials that live inside toolchain directories
SECRETS_IN_TOOLCHAINS = (".cargo/credentials", ".cargo/credentials.toml", ".npmrc", ".pypirc", ".netrc")


@dataclass(frozen=True, slots=True)
class BubblewrapSandbox:
    """Runs commands under `bwrap`. `drops_root` says that root changes its user inside."""

    bwrap: str
    drops_root: bool
    isolated: bool = True

    @classmethod
    def open(cls) -> BubblewrapSandbox:
        """Find bubblewrap and the way it works for this user.

        Raises:
            SandboxUnavailable: not installed, or the kernel does not let this user make namespaces.
        """
        bwrap = shutil.which("bwrap")
        if bwrap is None:
            raise SandboxUnavailable(
                "bubblewrap is not installed, so nothing can be run safely: install it (apt install bubblewrap, "
                "dnf install bubblewrap, pacman -S bubblewrap), or accept the risk with --unsandboxed"
            )
        ways = (
            [cls(bwrap, True), cls(bwrap, False)]
            if os.geteuid() == 0 and shutil.which("setpriv")
            else [cls(bwrap, False)]
        )
        complaint = ""
        for way in ways:
            try:
                trial = subprocess.run(  # noqa: S603 - our own arguments
                    [*way._namespaces(), *_system_mounts(), "--", *way._as_user(FIRST_UID), "/bin/sh", "-c", "exit 42"],
                    capture_output=True,
                    text=True,
                    timeout=PROBE_TIMEOUT_S,
                    check=False,
                )
            except (OSError, subprocess.TimeoutExpired) as error:
                complaint = str(error)
                continue
            if trial.returncode == 42:
                return way
            complaint = trial.stderr.strip() or f"exit code {trial.returncode}"
        raise SandboxUnavailable(
            f"bubblewrap cannot make its namespaces here ({complaint}): in a container, allow user namespaces "
            "(docker run --security-opt seccomp=unconfined --security-opt apparmor=unconfined, or --privileged); on "
            "Ubuntu 24.04 and later, sysctl kernel.apparmor_restrict_unprivileged_userns=0; "
            "or accept the risk with --unsandboxed"
        )

    async def run(
        self, command: str, directory: Path, limits: SandboxLimits, view: SandboxView | None = None
    ) -> SandboxResult:
        """Run a shell command; see `Sandbox.run`.

        Raises:
            SandboxUnavailable: bubblewrap broke off before the command began.
        """
        view = view or SandboxView()
        inside = view.appears_at or directory
        path = search_path(view)
        mounts = _Mounts()
        for place in (*_toolchains(path, avoid=(inside, directory)), *view.read_only):
            mounts.add(place, "--ro-bind", str(place), str(place))
        for secret in (Path.home() / name for name in SECRETS_IN_TOOLCHAINS):
            if secret.exists() and any(place in secret.parents for place in mounts):
                mounts.add(secret, "--ro-bind", "/dev/null", str(secret))
        for place in dict.fromkeys(cache.parent for cache in view.scratch):
            mounts.add(place, *_with_scratch(place, [cache for cache in view.scratch if cache.parent == place]))
        mounts.add(inside, "--bind", str(directory), str(inside))
        for name in view.pinned:
            mounts.add(inside / name, "--ro-bind", str(directory / name), str(inside / name))
        for place in view.writable:
            mounts.add(place, "--bind", str(place), str(place))
        uid = FIRST_UID
        if self.drops_root:
            uid = owner_of(directory) or fresh_uid()
            hand_over(uid, directory, *view.writable)
        environment = clean_environment(view, home=HOME_INSIDE, path=path)
        arguments = [
            *self._namespaces(),
            *_system_mounts(),
            *mounts.arguments(),
            "--remount-ro",
            "/",
            "--chdir",
            "/",
            "--clearenv",
            *(part for name, value in environment.items() for part in ("--setenv", name, value)),
            "--",
            *self._as_user(uid),
            *_ending_by_itself(limits),
            *limited(command, limits, inside / view.start_in),
        ]
        result = await run_bounded(arguments, limits, leaves_children=False)
        if result.exit_code == 1 and result.output.startswith("bwrap: "):
            raise SandboxUnavailable(f"the sandbox could not be built: {result.output.strip()}")
        return result

    def _namespaces(self) -> list[str]:
        user = ["--cap-drop", "ALL"]
        if self.drops_root:
            user += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
        else:
            user += ["--unshare-user", "--uid", str(os.getuid() or FIRST_UID), "--gid", str(os.getgid() or FIRST_UID)]
        return [
            self.bwrap,
            *user,
            "--unshare-ipc",
            "--unshare-pid",
            "--unshare-net",
            "--unshare-uts",
            "--unshare-cgroup-try",
            "--hostname",
            "garzone",
            "--die-with-parent",
            "--new-session",
        ]

    def _as_user(self, uid: int) -> list[str]:
        if not self.drops_root:
            return []
        setpriv = shutil.which("setpriv") or "setpriv"
        return [setpriv, "--reuid", str(uid), "--regid", str(uid), "--clear-groups", "--inh-caps=-all"]


def _ending_by_itself(limits: SandboxLimits) -> list[str]:
    """For the few milliseconds in which bubblewrap builds a sandbox and does not yet die with us.

    Whoever is killed just then leaves a command behind that nobody watches: it ends when its time is over all the same.
    """
    timeout = shutil.which("timeout")
    return [timeout, "--signal=KILL", f"{limits.wall_s * MAX_STRETCH + DRAIN_S:.1f}"] if timeout else []


class _Mounts:
    """Mounts in the order bubblewrap needs them: what contains others first; parents readable for everybody."""

    def __init__(self) -> None:
        self._mounts: dict[Path, tuple[str, ...]] = {}

    def add(self, inside: Path, *arguments: str) -> None:
        self._mounts[inside] = arguments

    def __iter__(self) -> Iterator[Path]:
        return iter(tuple(self._mounts))

    def arguments(self) -> list[str]:
        mounted = {*map(Path, SYSTEM_TREES), Path("/dev"), Path("/proc")}
        made = {Path("/"), Path("/tmp")}  # noqa: S108
        arguments: list[str] = []
        for place, mount in sorted(self._mounts.items(), key=lambda item: len(item[0].parts)):
            # bubblewrap makes missing parents with mode 0700, which another user could not enter
            for parent in reversed(place.parents):
                if parent not in made and not mounted & {parent, *parent.parents}:
                    arguments += ["--perms", "0755", "--dir", str(parent)]
                    made.add(parent)
            arguments += mount
            mounted.add(place)
        return arguments


def _with_scratch(place: Path, scratch: list[Path]) -> list[str]:
    """A read-only place with some empty directories in it that can be written.

    Where such a directory is not there, there is nothing to mount it on: the place is then put together anew, entry by
    entry. Symlinks stay symlinks, for what they lead to finds its neighbours from there (pnpm).
    """
    whole = all(each.is_dir() and not each.is_symlink() for each in scratch)
    arguments = ["--ro-bind", str(place), str(place)] if whole else ["--perms", "0755", "--tmpfs", str(place)]
    for entry in () if whole else sorted(place.iterdir()):
        if entry in scratch:
            continue
        if entry.is_symlink():
            arguments += ["--symlink", os.readlink(entry), str(entry)]  # noqa: PTH115 - the link's text, not a path
        else:
            arguments += ["--ro-bind", str(entry), str(entry)]
    for each in scratch:
        arguments += ["--perms", "1777", "--size", str(TMP_BYTES), "--tmpfs", str(each)]
    return arguments if whole else [*arguments, "--remount-ro", str(place)]


def _system_mounts() -> list[str]:
    arguments: list[str] = []
    for tree in SYSTEM_TREES:
        if Path(tree).is_symlink():
            arguments += ["--symlink", os.readlink(tree), tree]  # noqa: PTH115 - the link's text, not a path
        else:
            arguments += ["--ro-bind-try", tree, tree]
    arguments += [
        "--proc",
        "/proc",
        "--dev",
        "/dev",
        "--perms",
        "1777",
        "--size",
        str(TMP_BYTES),
        "--tmpfs",
        "/dev/shm",  # noqa: S108
    ]
    arguments += [
        "--perms",
        "1777",
        "--size",
        str(TMP_BYTES),
        "--tmpfs",
        "/tmp",  # noqa: S108
        "--perms",
        "0777",
        "--dir",
        HOME_INSIDE,
    ]
    for name in HIDDEN_FILES:
        if Path(name).exists():
            arguments += ["--ro-bind", "/dev/null", name]
    for name in HIDDEN_TREES:
        if Path(name).is_dir():
            arguments += ["--tmpfs", name]
    return arguments


def _toolchains(path: list[Path], avoid: tuple[Path, ...]) -> list[Path]:
    """Trees outside the system that programs on PATH need: each `bin` with what stands next to it.

    `~/.local` is taken in parts, because it also holds people's data; a tree that contains the repository, or a home
    directory, is never taken whole.
    """
    home = Path.home()
    wanted: list[Path] = [Path(sys.prefix), Path(sys.base_prefix)]
    for entry in path:
        root = entry.parent
        if root == home / ".local":
            shares = [root / "share" / name for name in ("uv", "pipx", "mise", "pnpm")]
            wanted += [entry, root / "lib", *shares]
        elif entry.name in ("bin", "sbin", "shims", "Scripts", "current") and not _holds(root, (home, *avoid)):
            wanted.append(root)
        else:
            wanted.append(entry)
        if (root / "pyvenv.cfg").is_file():
            wanted += _home_of_venv(root)
        if root == home / ".cargo":
            wanted.append(home / ".rustup")
    system = tuple(Path(tree) for tree in SYSTEM_TREES)
    found: list[Path] = []
    for place in dict.fromkeys(wanted):
        inside_system = any(place == tree or tree in place.parents for tree in system)
        if place.is_dir() and not inside_system and not _holds(place, (home, *avoid)):
            found.append(place)
    return [place for place in found if not any(other in place.parents for other in found)]


def _home_of_venv(venv: Path) -> list[Path]:
    """The installation a virtual environment borrows its interpreter from."""
    for line in (venv / "pyvenv.cfg").read_text(encoding="utf-8", errors="replace").splitlines():
        key, _, value = line.partition("=")
        if key.strip() == "home" and value.strip().startswith("/"):
            real = Path(value.strip()).resolve()
            return [real.parent, Path(value.strip()).parent]
    return []


def _holds(place: Path, others: tuple[Path, ...]) -> bool:
    return any(place == other or place in other.parents for other in others) or place == Path("/")
