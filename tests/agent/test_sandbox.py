from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import pytest

from garzone.agent import bubblewrap
from garzone.agent import sandbox as sandbox_module
from garzone.agent.bubblewrap import BubblewrapSandbox
from garzone.agent.sandbox import UnsandboxedRunner, open_sandbox
from garzone.core.errors import SandboxUnavailable
from garzone.core.ports import Sandbox, SandboxLimits, SandboxResult, SandboxView

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="bubblewrap is Linux's sandbox")
PYTHON = sys.executable
LIMITS = SandboxLimits(wall_s=20.0, cpu_s=20, memory_bytes=512 << 20, max_processes=64, file_bytes=4 << 20)


@pytest.fixture(scope="module")
def box() -> Sandbox:
    return open_sandbox()


@pytest.fixture
def place(tmp_path: Path) -> Path:
    place = tmp_path / "scene"
    place.mkdir()
    return place


def run(
    box: Sandbox, command: str, place: Path, view: SandboxView | None = None, limits: SandboxLimits = LIMITS
) -> SandboxResult:
    return asyncio.run(box.run(command, place, limits, view))


def processes_with(marker: str) -> list[str]:
    found: list[str] = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if marker in line:
                found.append(line)
    return found


def assert_gone(command: str) -> None:
    """The kernel ends what is left of a namespace when its first process has gone: on a busy machine a little later."""
    deadline = time.monotonic() + 10
    while processes_with(command) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not processes_with(command)


def test_a_command_writes_in_its_directory_and_nowhere_else(box: Sandbox, place: Path) -> None:
    outside = place.parent / "outside"
    outside.write_text("mine")
    result = run(
        box, f"echo ok > inside; echo bad > {outside}; echo bad > /usr/bad; echo bad > /etc/bad; echo bad > /bad", place
    )
    assert (place / "inside").read_text() == "ok\n"
    assert outside.read_text() == "mine"
    assert not Path("/usr/bad").exists()
    assert result.output.count("bad") >= 3


def test_secrets_of_home_and_environment_do_not_exist(
    box: Sandbox, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    (home / ".ssh").mkdir(parents=True)
    (home / ".ssh" / "id_rsa").write_text("PRIVATE KEY")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-secret")
    result = run(
        box, f"cat {home}/.ssh/id_rsa; cat ~/.ssh/id_rsa; env; cat /etc/shadow; ls -A ~ | head; echo end", place
    )
    assert "end" in result.output
    assert "PRIVATE" not in result.output
    assert "sk-secret" not in result.output
    assert "root:" not in result.output


def test_there_is_no_network_not_even_this_machine(box: Sandbox, place: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        code = f"import socket; socket.create_connection(('127.0.0.1', {port}), 3)"
        result = run(box, f'{PYTHON} -c "{code}"', place)
    assert result.exit_code != 0
    assert "refused" in result.output.lower() or "unreachable" in result.output.lower()


@pytest.mark.parametrize("there", [True, False])
def test_tools_have_an_empty_place_to_write_in_what_is_read_only(
    there: bool, box: Sandbox, place: Path, tmp_path: Path
) -> None:
    modules = tmp_path / "node_modules"
    (modules / "vite").mkdir(parents=True)
    (modules / "vite/index.js").write_text("1")
    (modules / "linked").symlink_to("vite")
    cache = modules / ".vite"
    if there:
        cache.mkdir()
        (cache / "old").write_text("of the user")
    view = SandboxView(read_only=(modules,), scratch=(cache,))
    command = f"cd {modules}; cat linked/index.js; readlink linked; ls .vite; echo new > .vite/new; cat .vite/new; "
    result = run(box, command + "echo 2 > vite/index.js; echo 2 > other; mkdir .bin", place, view)
    assert result.output.startswith("1vite\nnew\n"), result.output
    assert result.output.count("Read-only file system") == 3
    assert sorted(each.name for each in modules.iterdir()) == sorted([".vite"] * there + ["linked", "vite"])
    assert [each.name for each in cache.glob("*")] == ["old"] * there


def test_a_background_process_does_not_survive(box: Sandbox, place: Path) -> None:
    started = time.monotonic()
    result = run(box, "(setsid nohup sleep 98765 >/dev/null 2>&1 &) ; (setsid sleep 98765 &) ; echo gone", place)
    assert result.output == "gone\n"
    assert time.monotonic() - started < 10
    assert_gone("sleep 98765")


def test_time_is_limited_and_the_whole_tree_dies(box: Sandbox, place: Path) -> None:
    result = run(box, "trap '' TERM INT; (sleep 87654 &) ; sleep 87654", place, limits=SandboxLimits(wall_s=0.7))
    assert result.timed_out
    assert result.exit_code < 0
    assert_gone("sleep 87654")


def test_cancelling_kills_what_runs(box: Sandbox, place: Path) -> None:
    async def cancelled() -> None:
        running = asyncio.create_task(box.run("sleep 76543", place, LIMITS))
        await asyncio.sleep(0.5)
        assert processes_with("sleep 76543")
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    asyncio.run(cancelled())
    assert_gone("sleep 76543")


def test_a_fork_bomb_meets_the_process_limit(box: Sandbox, place: Path) -> None:
    bomb = """
import os, time
n = 0
try:
    while n < 500:
        if os.fork() == 0:
            time.sleep(30)
        n += 1
except OSError:
    pass
print('forked', n)
"""
    (place / "bomb.py").write_text(bomb)
    result = run(box, f"{PYTHON} bomb.py", place)
    assert "forked" in result.output
    assert int(result.output.split()[-1]) <= LIMITS.max_processes


def test_memory_is_limited(box: Sandbox, place: Path) -> None:
    result = run(box, f"{PYTHON} -c 'x = bytearray(1 << 30)'", place)
    assert result.exit_code != 0
    assert "MemoryError" in result.output


def test_cpu_time_is_limited(box: Sandbox, place: Path) -> None:
    result = run(box, "while :; do :; done", place, limits=SandboxLimits(wall_s=30.0, cpu_s=1))
    assert result.exit_code != 0
    assert not result.timed_out


def test_file_size_is_limited(box: Sandbox, place: Path) -> None:
    result = run(box, "head -c 8000000 /dev/zero > big", place)
    assert result.exit_code != 0
    assert (place / "big").stat().st_size <= LIMITS.file_bytes


def test_a_flood_of_output_keeps_head_and_tail(box: Sandbox, place: Path) -> None:
    command = "echo first; yes x | head -c 300000; echo; echo last"
    result = run(box, command, place, limits=SandboxLimits(wall_s=20, output_bytes=1000))
    assert result.output_truncated
    assert result.output.startswith("first")
    assert result.output.endswith("last\n")
    assert "bytes left out" in result.output
    assert len(result.output) < 1200


def test_endless_output_is_ended(box: Sandbox, place: Path) -> None:
    result = run(box, "yes", place, limits=SandboxLimits(wall_s=60, cpu_s=60, output_bytes=1000))
    assert not result.timed_out
    assert result.exit_code != 0
    assert "without end" in result.output


def test_a_command_that_asks_gets_the_end_of_input(box: Sandbox, place: Path) -> None:
    assert run(box, "read answer || echo nobody", place).output == "nobody\n"


def test_the_parent_cannot_be_killed(box: Sandbox, place: Path) -> None:
    result = run(box, f"kill -9 {os.getpid()}; kill -9 1; kill -9 -1; echo alive", place)
    assert os.getpid()
    assert result.exit_code != 127


def test_the_directory_appears_where_it_is_told_with_pinned_files_read_only(box: Sandbox, place: Path) -> None:
    (place / "sub").mkdir()
    (place / "sub" / "test_a.py").write_text("good")
    view = SandboxView(appears_at=Path("/home/somebody/project"), start_in="sub", pinned=("sub/test_a.py",))
    result = run(
        box, "pwd; echo bad > test_a.py; rm -f test_a.py; mv test_a.py x; cat test_a.py; echo new > new", place, view
    )
    assert result.output.startswith("/home/somebody/project/sub\n")
    assert "good" in result.output
    assert (place / "sub" / "test_a.py").read_text() == "good"
    assert (place / "sub" / "new").read_text() == "new\n"


def test_exit_codes_come_through(box: Sandbox, place: Path) -> None:
    assert run(box, "exit 7", place).exit_code == 7
    assert run(box, "definitely-not-a-command", place).exit_code == 127


def test_root_is_somebody_else_inside(place: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root has to become somebody else")
    box = BubblewrapSandbox.open()
    if not box.drops_root:
        pytest.skip("this machine does not let root make mounts")
    result = run(box, "id -u; grep -E 'Cap(Eff|Prm)' /proc/self/status", place)
    assert int(result.output.splitlines()[0]) in range(61184, 65520)
    assert result.output.count("0000000000000000") == 2


def test_a_user_namespace_works_too_where_the_machine_allows_it(place: Path) -> None:
    box = BubblewrapSandbox.open()
    way = BubblewrapSandbox(box.bwrap, drops_root=False)
    try:
        result = run(way, "echo hello > x; id -u", place)
    except SandboxUnavailable:
        pytest.skip("no user namespaces here")
    assert result.exit_code == 0
    assert (place / "x").read_text() == "hello\n"


def test_a_missing_sandbox_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SandboxUnavailable, match=r"apt install bubblewrap.*--unsandboxed") as caught:
        open_sandbox()
    assert caught.value.exit_code == 3


def test_a_sandbox_that_cannot_work_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "bwrap"
    broken.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2; exit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(SandboxUnavailable, match="No permissions to create new namespace"):
        open_sandbox()


def test_without_a_sandbox_limits_hold_and_it_is_said(place: Path) -> None:
    runner = open_sandbox(unsandboxed=True)
    assert isinstance(runner, UnsandboxedRunner)
    assert not runner.isolated
    assert run(runner, "pwd", place).output.strip() == str(place)
    assert run(runner, "sleep 50", place, limits=SandboxLimits(wall_s=0.5)).timed_out
    assert not processes_with("sleep 50 ")


def test_another_platform_has_no_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox_module.sys, "platform", "win32")
    with pytest.raises(SandboxUnavailable, match="WSL"):
        open_sandbox()


def test_a_command_that_nobody_watches_any_more_ends_by_itself(
    box: Sandbox, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def unwatched(argv: Sequence[str], limits: SandboxLimits, **_: object) -> SandboxResult:
        done = await asyncio.to_thread(subprocess.run, argv, check=False, capture_output=True, timeout=60)
        return SandboxResult(done.returncode, "", 0.0)

    monkeypatch.setattr(bubblewrap, "run_bounded", unwatched)
    started = time.monotonic()
    assert run(box, "sleep 50.25", place, limits=replace(LIMITS, wall_s=0.1)).exit_code == 137
    assert time.monotonic() - started < 40
    assert_gone("sleep 50.25")


@pytest.mark.parametrize("language", ["python", "node"])
def test_a_pipe_that_nobody_reads_holds_nothing_up(tmp_path: Path, language: str) -> None:
    probe = Path(str(files("garzone.agent") / "probe"))
    os.mkfifo(tmp_path / "record")
    environment = {**os.environ, "GARZONE_EVIDENCE": str(tmp_path / "record"), "PYTHONPATH": str(probe)}
    command = [PYTHON, "-c", "import sitecustomize as s; s._record(event='x'); print('done')"]
    if language == "node":
        if shutil.which("node") is None:
            pytest.skip("node is not installed")
        (tmp_path / "code.js").write_text("process.version; console.log('done')")
        environment["GARZONE_WATCH"] = str(tmp_path / "code.js")
        command = ["node", "--require", str(probe / "garzone_watch.cjs"), str(tmp_path / "code.js")]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip().splitlines()[-1] == "done"
