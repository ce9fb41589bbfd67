"""The page in a real browser: what it shows, in light and dark, and that nothing it asks for is refused."""

import re
import shutil
import struct
import subprocess
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import httpx2
import pytest

from garzone.core.task import TaskSummary
from garzone.store.catalog import Store
from garzone.testing import write_tiny_model
from tests.server.conftest import running, scripted
from tests.server.test_front import History
from tests.server.test_model_routes import front_of
from tests.store.test_catalog import ollama_wrote

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), ""
)
HOSTILE = "<img src=x onerror=alert(1)>"
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not CHROMIUM, reason="needs Chromium: apt-get install chromium")]


def browse(url: str, profile: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Open the page; the log of its console is in `stderr`."""
    fixed = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr", "--v=0"]
    command = [CHROMIUM, *fixed, f"--user-data-dir={profile}", "--virtual-time-budget=4000", "--window-size=1240,1180"]
    return subprocess.run([*command, *arguments, url], capture_output=True, text=True, timeout=120, check=True)


def pixels(png: Path) -> tuple[int, int, Counter[tuple[int, ...]]]:
    """Width, height and how often each colour is there. PNG of 8 bits a channel, as Chromium writes it."""
    raw = png.read_bytes()
    assert raw[:8] == b"\x89PNG\r\n\x1a\n"
    width, height, depth, colour = struct.unpack(">IIBB", raw[16:26])
    assert depth == 8
    channels = {2: 3, 6: 4}[colour]
    at, packed = 8, b""
    while at < len(raw):
        (length,) = struct.unpack(">I", raw[at : at + 4])
        if raw[at + 4 : at + 8] == b"IDAT":
            packed += raw[at + 8 : at + 8 + length]
        at += 12 + length
    lines = zlib.decompress(packed)
    stride, before, colours = width * channels, bytes(width * channels), Counter[tuple[int, ...]]()
    for y in range(height):
        kind, line = lines[y * (stride + 1)], bytearray(lines[y * (stride + 1) + 1 : (y + 1) * (stride + 1)])
        for x in range(stride):
            left = line[x - channels] if x >= channels else 0
            up, corner = before[x], before[x - channels] if x >= channels else 0
            if kind == 1:
                line[x] = (line[x] + left) & 255
            elif kind == 2:
                line[x] = (line[x] + up) & 255
            elif kind == 3:
                line[x] = (line[x] + (left + up) // 2) & 255
            elif kind == 4:
                guess = left + up - corner
                nearest = min((abs(guess - left), 0, left), (abs(guess - up), 1, up), (abs(guess - corner), 2, corner))
                line[x] = (line[x] + nearest[2]) & 255
        before = bytes(line)
        colours.update(zip(*(before[channel::channels] for channel in range(3)), strict=True))
    return width, height, colours


def text_of(html: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", re.sub(r"<(script|style)>.*?</\1>", "", html, flags=re.DOTALL)))


def test_the_page_shows_models_requests_tasks_and_savings(tmp_path: Path) -> None:
    ollama_wrote(tmp_path / "models", "tiny:1b", write_tiny_model(tmp_path / "tiny.gguf").read_bytes())
    app = front_of(
        Store(tmp_path / "models"),
        scripted("Paris is the capital."),
        history=History(),
        memory_limit=lambda: 20 * 10**9,
    )
    with running(app) as url:
        for _ in range(3):
            httpx2.post(f"{url}/api/generate", json={"model": "scripted", "prompt": "where is it"})
        httpx2.post(f"{url}/api/generate", json={"model": HOSTILE, "prompt": "x"})
        dom = browse(f"{url}/ui", tmp_path / "profile", "--dump-dom")
        said = text_of(dom.stdout)
        for part in (
            "tiny:1b", "scripted:latest", "AMD gfx1100", "250 MB", "of 20 GB for models",  # models, and where they are
            "idle · up", "done", "8,100 tokens", "$0.17 net", "2 of 3 proved", "estimated",  # activity and savings
            "fix", "proved", "pager",  # tasks
        ):  # fmt: skip
            assert part in said, part
        assert "no answer" not in said
        assert "Content Security Policy" not in dom.stderr, "its own policy lets it do what it does"
        assert "Refused to" not in dom.stderr
        shown: dict[str, Counter[tuple[int, ...]]] = {}
        for name, arguments in (("light", []), ("dark", ["--blink-settings=preferredColorScheme=0"])):
            png = tmp_path / f"{name}.png"
            browse(f"{url}/ui", tmp_path / f"profile-{name}", f"--screenshot={png}", *arguments)
            width, height, shown[name] = pixels(png)
            assert (width, height) == (1240, 1180)
    paper = {"light": (0xF7, 0xF5, 0xF1), "dark": (0x17, 0x15, 0x13)}
    for name, colours in shown.items():
        assert colours.most_common(2)[0][0] == paper[name] or colours[paper[name]] > 100_000, name
        assert len(colours) > 100, "text has edges of many shades; an empty page has a handful"
    assert shown["light"][0xB4, 0x53, 0x2A] > 50, "the bar of what is in memory"
    assert shown["light"][0xE0, 0xEE, 0xE1] > 100, "a verdict"


def test_what_others_name_is_text_and_never_markup(tmp_path: Path) -> None:
    class Named(History):
        def recent(self, limit: int) -> Sequence[TaskSummary]:
            return [TaskSummary("id", HOSTILE, f"/x/{HOSTILE}", HOSTILE, HOSTILE, 0.0, 1, 1)]

    with running(front_of(Store(tmp_path), history=Named())) as url:
        dom = browse(f"{url}/ui", tmp_path / "profile", "--dump-dom").stdout
    assert "&lt;img src=x" in dom
    assert "<img" not in dom


def test_the_page_says_when_the_server_is_gone(tmp_path: Path) -> None:
    with running(front_of(Store(tmp_path))) as url:
        page = httpx2.get(f"{url}/ui").text
    alone = tmp_path / "page.html"
    alone.write_text(page)
    said = text_of(browse(alone.as_uri(), tmp_path / "profile", "--dump-dom").stdout)
    assert "no answer" in said
