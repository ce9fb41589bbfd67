"""A task that is killed goes on: what was answered is not asked again, and nothing it left is in the way."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from garzone.agent.sandbox import open_sandbox
from garzone.core.chat import Message, Role
from garzone.core.errors import UsageError
from garzone.core.generation import GenerateRequest, SamplingParams
from garzone.core.task import Verdict
from garzone.delegate.journal import Journaled, Journals
from garzone.delegate.ledger import Ledger
from garzone.delegate.run import run
from garzone.testing import ScriptedGenerator
from tests.agent.repositories import CHECK, FIXED_PAGINATE, PAGER, block, fix_task, git, make_repository
from tests.clients.servers import serving

WRONG = "def paginate(items, page, size):\n    return items[page + {0} : page + size + {0}]\n"
NUM_WRONG = 4


def _request(seed: int = 1) -> GenerateRequest:
    return GenerateRequest("m", (Message.of(Role.USER, "x"),), sampling=SamplingParams(seed=seed))


async def _text(generator: Journaled, request: GenerateRequest) -> str:
    return "".join([delta.text async for delta in generator.generate(request)])


async def test_what_was_answered_is_answered_from_the_journal(tmp_path: Path) -> None:
    journals, task = Journals(tmp_path / "tasks"), fix_task(tmp_path)
    model = ScriptedGenerator(["first", "second"], model="m")
    with journals.begin(task) as journal:
        assert await _text(Journaled(model, journal), _request()) == "first"
        stream = Journaled(model, journal).generate(_request(2))
        assert (await anext(stream)).text
        await stream.aclose()  # the reader has enough
        path = journal.path
    with path.open("a") as file:
        file.write('{"key": "torn')
    with journals.begin(task) as journal:
        assert journal.num_answers == 2
        assert await _text(Journaled(model, journal), _request()) == "first"
        assert await _text(Journaled(model, journal), _request(3)) == "second"
    assert len(model.requests) == 3
    with journals.begin(task) as journal:
        assert journal.num_answers == 3  # the torn line is alone
        journal.forget()
    assert journals.unfinished() == []


async def test_an_answer_that_was_cancelled_is_not_one(tmp_path: Path) -> None:
    class Slow(ScriptedGenerator):
        async def generate(self, request: GenerateRequest) -> AsyncGenerator[Any]:
            async for delta in super().generate(request):
                yield delta
                await asyncio.sleep(30)

    with Journals(tmp_path).begin(fix_task(tmp_path)) as journal:
        asked = asyncio.create_task(_text(Journaled(Slow(["abc" * 9], model="m"), journal), _request()))
        await asyncio.sleep(0.05)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        assert journal.num_answers == 0


def test_one_process_at_a_time_and_only_tasks_that_are_there(tmp_path: Path) -> None:
    journals, task = Journals(tmp_path / "tasks"), fix_task(tmp_path, files=("a.py",))
    with pytest.raises(UsageError, match="No task was interrupted"):
        journals.find("nope")
    with journals.begin(task):
        with pytest.raises(UsageError, match="another process"), journals.begin(task):
            pass
        assert journals.find(task.id) == replace(task, repo=tmp_path.resolve())
        with pytest.raises(UsageError, match=task.id):
            journals.find("nope")
    (tmp_path / "tasks" / "torn.jsonl").write_text('{"id": "to')
    assert [each.id for each in journals.unfinished()] == [task.id]
    with pytest.raises(UsageError, match="not the id"), journals.begin(replace(task, id="../x")):
        pass


async def test_a_finished_task_leaves_no_journal_and_a_broken_one_goes_on(tmp_path: Path) -> None:
    repo, ledger, journals = make_repository(tmp_path / "r"), Ledger(tmp_path / "ledger.db"), Journals(tmp_path / "t")
    task, box = fix_task(repo, num_candidates=3), open_sandbox()

    def dies(request: GenerateRequest) -> str:
        raise RuntimeError("killed")

    broken = ScriptedGenerator([block(WRONG.format(1)), dies])
    with pytest.raises(RuntimeError):
        await run(task, broken, box, ledger, journals=journals)
    assert [each.id for each in journals.unfinished()] == [task.id]
    model = ScriptedGenerator([block(FIXED_PAGINATE)])
    report = await run(journals.find(task.id), model, box, ledger, journals=journals)
    assert report.verdict is Verdict.PROVED
    assert any("1 answers" in note for note in report.notes)
    assert [request.sampling.seed for request in model.requests] == [2]
    assert journals.unfinished() == []


def test_what_nobody_went_on_with_for_two_weeks_is_forgotten(tmp_path: Path) -> None:
    journals = Journals(tmp_path)
    for task_id in ("0ld", "n3w"):
        with journals.begin(replace(fix_task(tmp_path), id=task_id)):
            pass
    os.utime(tmp_path / "0ld.jsonl", (0, 0))
    with journals.begin(fix_task(tmp_path)):
        assert {path.stem for path in tmp_path.glob("*.jsonl")} == {"n3w", fix_task(tmp_path).id}
    assert journals.way_back(replace(fix_task(tmp_path), id="0ld")) == ""


# --- with real processes


def _model(asked: list[int], delay_s: float) -> Starlette:
    """Answers by the request's seed: the first are wrong, the one after them is right."""

    async def complete(request: Request) -> Response:
        body = await request.json()
        seed = int(body["seed"])
        text = block(FIXED_PAGINATE if seed > NUM_WRONG else WRONG.format(seed))
        if "rewrite the file" in body["messages"][-1]["content"]:  # as every fourth candidate is asked
            text = block(PAGER.replace("page * size", f"page * size + {seed}"))

        async def stream() -> AsyncGenerator[bytes]:
            await asyncio.sleep(delay_s)
            for choice in ({"delta": {"content": text}}, {"delta": {}, "finish_reason": "stop"}):
                yield b"data: " + json.dumps({"choices": [{"index": 0, **choice}]}).encode() + b"\n\n"
            asked.append(seed)
            yield b"data: [DONE]\n\n"

        return StreamingResponse(stream(), media_type="text/event-stream")

    async def models(request: Request) -> Response:
        entry = {"id": "tiny:8b", "object": "model", "owned_by": "test", "max_model_len": 8192}
        return JSONResponse({"object": "list", "data": [entry]})

    return Starlette(routes=[Route("/v1/chat/completions", complete, methods=["POST"]), Route("/v1/models", models)])


@pytest.fixture
def model() -> Iterator[tuple[str, list[int]]]:
    asked: list[int] = []
    with serving(_model(asked, 0.15)) as url:
        yield url, asked


def _start(home: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "GARZONE_HOME": str(home), "TMPDIR": str(home.parent / "tmp")}
    return subprocess.Popen(
        [sys.executable, "-m", "garzone", "delegate", *arguments, "--json"],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def _kill_and_resume(tmp_path: Path, url: str, asked: list[int], delays_s: list[float]) -> None:
    home, repo = tmp_path / "home", make_repository(tmp_path / "repo")
    (tmp_path / "tmp").mkdir()
    given = ["fix", "--repo", str(repo), "--check", CHECK, "--backend", url, "--model", "tiny:8b"]
    process = _start(home, *given, "--candidates", str(NUM_WRONG + 1))
    num_kills = 0
    for delay_s in delays_s:
        deadline = time.monotonic() + 60
        while not list((home / "tasks").glob("*.jsonl")) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(delay_s)
        if process.poll() is not None or not list((home / "tasks").glob("*.jsonl")):
            break  # the task is done, and its process is about to end
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        num_kills += 1
        [task] = Journals(home / "tasks").unfinished()
        assert git(repo, "status", "--porcelain") == ""
        process = _start(home, "--resume", task.id)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    report = json.loads(out)
    assert report["verdict"] == "proved"
    assert git(repo, "branch", "--list", "garzone/*").split() == [report["branch"]]
    assert len(git(repo, "worktree", "list").splitlines()) == 1
    assert not list((tmp_path / "tmp").glob("garzone-*"))
    assert not list((home / "tasks").iterdir())
    with sqlite3.connect(home / "ledger.db") as ledger:
        outcomes = [row[0] for row in ledger.execute("SELECT outcome FROM tasks ORDER BY id")]
    assert outcomes[-1] == "proved"
    assert set(outcomes[:-1]) <= {"interrupted"}
    assert len(outcomes) <= num_kills + 1
    # at most what was being written at a kill was asked twice: four candidates at the same time
    assert len(asked) <= NUM_WRONG + 1 + 4 * num_kills
    assert set(asked) == set(range(1, NUM_WRONG + 2))


def test_a_killed_task_goes_on(tmp_path: Path, model: tuple[str, list[int]]) -> None:
    _kill_and_resume(tmp_path, *model, delays_s=[0.6])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_killed_at_any_point_it_goes_on(tmp_path: Path, model: tuple[str, list[int]], seed: int) -> None:
    chance = random.Random(seed)
    _kill_and_resume(tmp_path, *model, delays_s=[chance.uniform(0.0, 4.0) for _ in range(4)])


def test_resuming_takes_no_other_flags(tmp_path: Path) -> None:
    process = _start(tmp_path / "home", "--resume", "ab12cd", "--candidates", "3")
    assert "--candidates" in process.communicate()[1]
    assert process.returncode == 2
    process = _start(tmp_path / "home")
    assert "which kind" in process.communicate()[1]
    assert process.returncode == 2
