"""The Python API: imports nothing until it is used, speaks to any Ollama, delegates like the command line."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import garzone
from garzone import Garzone, code_review, implement_feature, query_local_coder
from garzone.core.chat import Message, Role
from garzone.core.errors import BackendUnavailable, GarzoneError, ModelNotFound, UsageError
from garzone.core.task import Verdict
from garzone.delegate.ledger import Ledger
from tests.agent.repositories import CHECK, FIXED_PAGINATE, block, make_repository
from tests.numbers import record_number
from tests.server.conftest import Scripted, app_of, running, scripted

MODEL = "scripted"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GARZONE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "models"))
    monkeypatch.delenv("GARZONE_BACKEND", raising=False)
    return tmp_path / "home"


@pytest.fixture
def generator() -> Scripted:
    return scripted("An answer.")


@pytest.fixture
def url(generator: Scripted) -> Iterator[str]:
    with running(app_of(generator)) as address:
        yield address


def test_import_garzone_is_quick_and_imports_nothing_heavy() -> None:
    script = (
        "import sys, time; start = time.perf_counter(); import garzone; took = time.perf_counter() - start\n"
        "import json; print(json.dumps([took, sorted(sys.modules)]))"
    )
    runs: list[list[Any]] = []
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        runs.append(json.loads(done.stdout))
    took_ms = min(took for took, _ in runs) * 1000
    record_number("import garzone, ms", took_ms, "under 100")
    assert took_ms < 100
    ours = [name for name in runs[0][1] if name.startswith("garzone")]
    assert ours == ["garzone"]
    heavy = {"tinygrad", "numpy", "httpx2", "pydantic", "starlette", "sqlite3", "asyncio", "rich", "click"}
    assert not heavy & set(runs[0][1])


def test_public_names_are_there_and_others_are_not() -> None:
    assert set(garzone.__all__) <= set(dir(garzone))
    assert all(getattr(garzone, name) for name in garzone.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = garzone.nonsense  # type: ignore[attr-defined]


def test_one_question_to_a_plain_ollama(url: str, generator: Scripted) -> None:
    assert query_local_coder("How?", model=MODEL, backend=url) == "An answer."
    (request,) = generator.requests
    assert request.sampling.temperature == pytest.approx(0.1)
    assert request.num_ctx == 8192  # said, never left to the server's default
    assert "How?" in request.messages[-1].text


def test_the_backend_may_come_from_the_environment(
    url: str, generator: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GARZONE_BACKEND", url)
    assert query_local_coder("How?", model=MODEL) == "An answer."


def test_a_review_shows_the_code_whatever_fences_it_contains(url: str, generator: Scripted) -> None:
    code = 'TEXT = """\n```python\n```\n"""'
    assert code_review(code, model=MODEL, backend=url) == "An answer."
    assert f"````\n{code}\n````" in generator.requests[0].messages[-1].text


def test_a_feature_is_described_in_the_prompt(url: str, generator: Scripted) -> None:
    assert implement_feature("a ring buffer", model=MODEL, backend=url) == "An answer."
    assert "a ring buffer" in generator.requests[0].messages[-1].text


async def test_the_plain_functions_work_inside_a_running_loop(url: str) -> None:
    assert query_local_coder("How?", model=MODEL, backend=url) == "An answer."
    with pytest.raises(ModelNotFound):
        query_local_coder("How?", model="other:1b", backend=url)


def test_nobody_there_is_said(url: str) -> None:
    with pytest.raises(BackendUnavailable, match=r"127\.0\.0\.1:9"):
        query_local_coder("How?", model=MODEL, backend="http://127.0.0.1:9")


def test_a_model_that_is_not_here_says_how_to_get_it() -> None:
    with pytest.raises(ModelNotFound, match="garzone pull smollm2:135m"):
        query_local_coder("How?", model="smollm2:135m")


async def test_a_conversation_and_a_stream(url: str, generator: Scripted) -> None:
    async with Garzone(url, model=MODEL) as g:
        assert await g.generate("Hello", temperature=0.0, max_tokens=5) == "An answer."
        turns = [Message.of(Role.USER, "a"), Message.of(Role.ASSISTANT, "b"), Message.of(Role.USER, "c")]
        assert await g.chat(turns) == "An answer."
        pieces = [delta.text async for delta in g.stream(turns)]
        with pytest.raises(UsageError, match="warmth"):
            await g.generate("Hello", warmth=3)
    assert "".join(pieces) == "An answer."
    assert len(pieces) > 1
    assert generator.requests[0].sampling.max_tokens == 5
    assert [message.role for message in generator.requests[1].messages] == [Role.USER, Role.ASSISTANT, Role.USER]


async def test_it_is_used_inside_async_with() -> None:
    with pytest.raises(UsageError, match="async with"):
        await Garzone().generate("Hello")


async def test_delegate_proves_a_fix_and_books_it(tmp_path: Path, home: Path) -> None:
    repo = make_repository(tmp_path / "repo")
    with running(app_of(scripted(block(FIXED_PAGINATE)))) as url:
        async with Garzone(url, model=MODEL) as g:
            report = await g.delegate("fix", "paginate skips the first page", repo=str(repo), check=CHECK)
            with pytest.raises(UsageError, match="complete, fix"):
                await g.delegate("paint", "it red", repo=repo)
    assert report.verdict is Verdict.PROVED
    assert report.branch
    (entry,) = await asyncio.to_thread(Ledger(home / "ledger.db").entries)
    assert entry.outcome == "proved"


async def test_a_task_that_broke_off_says_how_to_go_on_and_does(tmp_path: Path) -> None:
    repo = make_repository(tmp_path / "repo")
    wrong = block(FIXED_PAGINATE.replace("page - 1", "page - 3"))
    with running(app_of(scripted(wrong, BackendUnavailable("pulled the plug")))) as url:
        async with Garzone(url, model=MODEL) as g:
            with pytest.raises(GarzoneError) as broken:
                await g.delegate("fix", "paginate skips the first page", repo=repo, check=CHECK, candidates=2)
    (note,) = broken.value.__notes__
    task_id = note.split("--resume ")[1].split()[0]
    assert f"Garzone.resume('{task_id}')" in note
    with running(app_of(scripted(block(FIXED_PAGINATE)))) as url:
        async with Garzone(url, model=MODEL) as g:
            report = await g.resume(task_id)
            with pytest.raises(UsageError, match="finished"):
                await g.resume(task_id)
    assert (report.task_id, report.verdict) == (task_id, Verdict.PROVED)
    assert any("went on from 1 answers" in note for note in report.notes)
