from __future__ import annotations

import sys
from pathlib import Path

import pytest

from garzone.agent.seatbelt import SeatbeltSandbox, profile
from garzone.core.ports import SandboxLimits, SandboxView


def test_the_profile_quotes_paths_and_protects_pinned_files_last(tmp_path: Path) -> None:
    place = tmp_path / 'a "b" \\ c'
    place.mkdir()
    view = SandboxView(pinned=("test_a.py",), writable=(tmp_path / "evidence",))
    rules = profile(place, "/private/tmp/home", view, [Path("/usr/bin")]).splitlines()
    assert rules[0] == "(version 1)"
    assert "(deny network*)" in rules
    assert rules.index("(deny file-write*)") < next(
        i for i, r in enumerate(rules) if r.startswith("(allow file-write*")
    )
    assert 'test_a.py")' in rules[-1] and rules[-1].startswith("(deny file-write*")
    assert '\\"b\\" \\\\ c' in rules[-1]
    assert all(rule.count("(") - rule.count("\\(") == rule.count(")") for rule in rules)


@pytest.mark.skipif(sys.platform != "darwin", reason="sandbox-exec is macOS's")
async def test_it_runs_on_a_mac_and_keeps_the_network_out(tmp_path: Path) -> None:
    box = SeatbeltSandbox.open()
    result = await box.run("echo ok > x; nc -z 1.1.1.1 53 || echo closed; ls ~", tmp_path, SandboxLimits())
    assert (tmp_path / "x").read_text() == "ok\n"
    assert "closed" in result.output
