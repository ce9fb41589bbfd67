"""Runs git so that nothing a repository brings along is executed: no hooks, monitors, drivers or filters of its own.

Does not know what the commands are for. Configuration is code to git; a repository that came as an archive brings its
own `.git/config`, so everything in it that names a program is overridden on the command line.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from garzone.core.errors import RepositoryError, UnavailableError

TIMEOUT_S = 600.0  # a large repository on a busy machine takes long; what hangs for ever is still ended
AUTHOR = ("garzone", "garzone@localhost")  # says who wrote it; whoever merges it signs with their own name
_OVERRIDES = {
    "core.hooksPath": os.devnull,
    "core.fsmonitor": "false",
    "core.pager": "cat",
    "core.editor": "true",
    "core.attributesFile": os.devnull,
    "diff.external": "",
    "diff.submodule": "short",
    "commit.gpgSign": "false",
    "tag.gpgSign": "false",
    "gc.auto": "0",
    "maintenance.auto": "false",
    "submodule.recurse": "false",
    "protocol.allow": "never",
    "advice.detachedHead": "false",
    "core.quotePath": "false",
}


class GitFailed(RepositoryError):
    """git said no. `detail` is what it said."""

    def __init__(self, arguments: Sequence[str], detail: str) -> None:
        super().__init__(f"git {' '.join(arguments[:2])} failed: {detail or 'no message'}")
        self.detail = detail


class Git:
    """git in one directory, hardened."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._filters: dict[str, str] | None = None

    def run(self, *arguments: str, data: bytes | None = None) -> bytes:
        """What git prints on stdout.

        Raises:
            GitFailed: it ended with another code than 0.
            UnavailableError: git is not installed.
        """
        if self._filters is None:
            self._filters = {}  # so that the next line does not ask for them again
            self._filters = self._neutralised_filters()
        return self._run(arguments, {**_OVERRIDES, **self._filters}, data)

    def text(self, *arguments: str) -> str:
        """What git prints, as text without the last line break."""
        return self.run(*arguments).decode("utf-8", "surrogateescape").rstrip("\n")

    def succeeds(self, *arguments: str) -> bool:
        """Whether git ends with 0."""
        try:
            self.run(*arguments)
        except GitFailed:
            return False
        return True

    def _neutralised_filters(self) -> dict[str, str]:
        """Overrides for every clean and smudge filter except Git LFS, without which its files would look changed."""
        try:
            listed = self._run(
                (
                    "config",
                    "--null",
                    "--get-regexp",
                    r"^(filter|diff)\..*\.(clean|smudge|process|textconv|command|required)$",
                ),
                _OVERRIDES,
                None,
            )
        except GitFailed:
            return {}  # none configured
        found: dict[str, str] = {}
        for entry in listed.decode("utf-8", "surrogateescape").split("\0"):
            key, _, value = entry.partition("\n")
            if key and not (key.startswith("filter.lfs.") and (value.startswith("git-lfs ") or value == "true")):
                found[key] = "false" if key.endswith(".required") else ""
        return found

    def _run(self, arguments: Sequence[str], overrides: dict[str, str], data: bytes | None) -> bytes:
        command = ["git", *(part for key, value in overrides.items() for part in ("-c", f"{key}={value}")), *arguments]
        name, address = AUTHOR
        environment = {
            key: value for key, value in os.environ.items() if not key.startswith("GIT_") or key == "GIT_CONFIG_GLOBAL"
        } | {
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_OPTIONAL_LOCKS": "0",
            "GIT_NO_LAZY_FETCH": "1",
            "GIT_AUTHOR_NAME": name,
            "GIT_AUTHOR_EMAIL": address,
            "GIT_COMMITTER_NAME": name,
            "GIT_COMMITTER_EMAIL": address,
            "LC_ALL": "C",
        }
        try:
            done = subprocess.run(  # noqa: S603 - arguments are ours, the shell is not involved
                command,
                cwd=self.directory,
                env=environment,
                input=data,
                capture_output=True,
                timeout=TIMEOUT_S,
                check=False,
            )
        except FileNotFoundError as error:
            if not self.directory.is_dir():
                raise RepositoryError(f"{self.directory}: no such directory") from error
            raise UnavailableError(
                "git is not installed: install it (apt install git, xcode-select --install)"
            ) from error
        except NotADirectoryError as error:
            raise RepositoryError(f"{self.directory} is not a directory") from error
        except subprocess.TimeoutExpired as error:
            raise GitFailed(arguments, f"it took longer than {TIMEOUT_S:.0f} s") from error
        if done.returncode != 0:
            raise GitFailed(arguments, done.stderr.decode("utf-8", "replace").strip())
        return done.stdout
