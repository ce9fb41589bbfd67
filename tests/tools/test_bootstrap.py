"""What a newcomer sees when something is missing: the real script, on a machine made of chosen commands."""

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

BOOTSTRAP = Path(__file__).parents[2] / "tools" / "bootstrap"
BASICS = ("sh", "dirname", "uname", "cat", "mktemp", "tail", "rm", "env", "printf")


class Machine:
    """A machine that has only the commands named, each real or a script written here."""

    def __init__(self, root: Path) -> None:
        self.bin = root / "bin"
        self.log = root / "log"
        self.bin.mkdir()
        for name in BASICS:
            if real := shutil.which(name):
                (self.bin / name).symlink_to(real)
        self.script("python3", "exit 0")  # new enough, with venv
        self.script("id", "echo 1000")

    def script(self, name: str, body: str) -> None:
        path = self.bin / name
        path.unlink(missing_ok=True)
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def bootstrap(self) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["/bin/sh", BOOTSTRAP, "system"],
            env={"PATH": str(self.bin), "TMPDIR": str(self.bin.parent), "LOG": str(self.log)},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    if os.uname().sysname != "Linux":
        pytest.skip("describes Linux")
    return Machine(tmp_path)


def test_a_complete_machine_needs_nothing(machine: Machine) -> None:
    machine.script("clang", "exit 0")
    machine.script("bwrap", "exit 0")
    result = machine.bootstrap()
    assert (result.returncode, result.stderr) == (0, "")


def test_without_rights_it_says_exactly_what_to_install(machine: Machine) -> None:
    machine.script("apt-get", 'echo "$@" >>"$LOG"')
    machine.script("sudo", "exit 1")  # wants a password
    result = machine.bootstrap()
    assert result.returncode == 3
    assert "sudo apt-get install clang bubblewrap" in result.stderr
    assert not machine.log.exists(), "nothing may be tried without the right to"


def test_another_distribution_gets_its_own_command(machine: Machine) -> None:
    machine.script("dnf", "exit 0")
    result = machine.bootstrap()
    assert result.returncode == 3
    assert "sudo dnf install clang bubblewrap" in result.stderr


def test_with_passwordless_sudo_it_installs_only_what_is_missing(machine: Machine) -> None:
    machine.script("bwrap", "exit 0")
    machine.script("sudo", '[ "$1" = -n ] && exit 0; exec "$@"')
    machine.script("apt-get", 'echo "$@" >>"$LOG"')
    assert machine.bootstrap().returncode == 0
    assert machine.log.read_text().splitlines()[-1].endswith("--no-install-recommends clang")


def test_a_failed_installation_shows_its_last_words(machine: Machine) -> None:
    machine.script("id", "echo 0")
    machine.script("apt-get", 'echo "E: no network"; exit 100')
    result = machine.bootstrap()
    assert result.returncode == 3
    assert "E: no network" in result.stderr


def test_an_old_python_is_named_as_the_reason(machine: Machine) -> None:
    machine.script("python3", "exit 1")
    result = machine.bootstrap()
    assert result.returncode == 3
    assert "Python 3.11" in result.stderr


def test_debians_python_without_venv_gets_that_package_too(machine: Machine) -> None:
    machine.script("python3", 'case "$2" in *ensurepip*) exit 1;; *print*) echo 3.11;; esac')
    machine.script("dnf", "exit 0")
    machine.script("apt-get", "exit 0")
    result = machine.bootstrap()
    assert "python3.11-venv" in result.stderr
