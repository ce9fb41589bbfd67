"""Real processes with a stand-in engine: they crash, hang, queue, expire and make room."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from contextlib import aclosing
from pathlib import Path

import pytest

from garzone.core.chat import ImagePart, Message, Role, ToolSpec
from garzone.core.errors import (
    BackendUnavailable,
    GenerationFailed,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    RunnerCrashed,
    Unsupported,
    UnsupportedModel,
)
from garzone.core.generation import (
    Delta,
    FinishReason,
    GenerateRequest,
    Grammar,
    GrammarKind,
    KVCacheType,
    Pooling,
    SamplingParams,
)
from garzone.runner.process import RunnerPool
from tests.runner.conftest import MakePool


def ask(prompt: str = "hello", model: str = "toy", max_tokens: int | None = 8, **fields: object) -> GenerateRequest:
    sampling = SamplingParams(max_tokens=max_tokens)
    return GenerateRequest(model, prompt=prompt, raw=True, sampling=sampling, **fields)  # pyright: ignore[reportArgumentType]


async def collect(pool: RunnerPool, request: GenerateRequest) -> list[Delta]:
    return [delta async for delta in pool.generate(request)]


async def text(pool: RunnerPool, request: GenerateRequest) -> str:
    return "".join(delta.text for delta in await collect(pool, request))


def pids() -> set[int]:
    """Runner processes of this test process."""
    listed = subprocess.run(["ps", "-ww", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in listed.splitlines()]
    return {int(pid) for pid, parent, args in rows if int(parent) == os.getpid() and "garzone.runner.main" in args}


async def eventually(condition: object, timeout_s: float = 20.0) -> None:
    assert callable(condition)
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        await asyncio.sleep(0.01)


async def test_an_answer_is_streamed_and_ends_with_its_usage(make_pool: MakePool) -> None:
    deltas = await collect(make_pool(), ask())
    assert deltas[0] == Delta()
    assert [len(delta.text) for delta in deltas[1:-1]] == [1] * 8
    assert deltas[-1].finish_reason is FinishReason.LENGTH
    usage = deltas[-1].usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (6, 8)
    assert usage.load_ms > 0
    assert all(delta.finish_reason is None and delta.usage is None for delta in deltas[:-1])


async def test_killing_the_process_fails_the_request_in_flight_and_the_next_one_works(make_pool: MakePool) -> None:
    pool = make_pool()
    before = await text(pool, ask())
    (first,) = pids()
    with pytest.raises(RunnerCrashed, match="SIGKILL"):
        async with aclosing(pool.generate(ask("SLOW", max_tokens=None))) as stream:
            async for delta in stream:
                if delta.text:
                    os.kill(first, signal.SIGKILL)
    assert await text(pool, ask()) == before
    assert pids().isdisjoint({first})


async def test_heads_that_the_kv_cache_cannot_hold_are_refused_before_a_process_is_started(make_pool: MakePool) -> None:
    pool = make_pool(kv_cache=KVCacheType.Q8_0)
    with pytest.raises(Unsupported, match="80 elements"):
        await text(pool, ask(model="odd"))
    assert not pids()
    assert await text(pool, ask())
    assert [loaded.kv_cache for loaded in pool.loaded()] == [KVCacheType.Q8_0]


async def test_requests_queued_behind_a_crash_get_their_answers(make_pool: MakePool) -> None:
    pool = make_pool(num_parallel=1)
    crash = asyncio.create_task(text(pool, ask("DIE")))
    await asyncio.sleep(0)
    others = [asyncio.create_task(text(pool, ask())) for _ in range(3)]
    with pytest.raises(RunnerCrashed):
        await crash
    assert len({*await asyncio.gather(*others)}) == 1


async def test_a_process_that_died_while_idle_is_replaced(make_pool: MakePool) -> None:
    pool = make_pool()
    before = await text(pool, ask())
    (pid,) = pids()
    os.kill(pid, signal.SIGKILL)
    await eventually(lambda: not pool.loaded())
    assert await text(pool, ask()) == before


async def test_a_process_that_hangs_is_killed(make_pool: MakePool) -> None:
    pool = make_pool(stall_timeout_s=0.5)
    await text(pool, ask())
    with pytest.raises(RunnerCrashed, match=r"no progress for 0\.5 s"):
        await text(pool, ask("HANG"))
    await eventually(lambda: not pids())
    assert await text(pool, ask())


@pytest.mark.parametrize(("prompt", "words"), [("RAISE", "RuntimeError: device lost"), ("NAN", "nan")])
async def test_an_engine_that_failed_is_not_trusted_again(make_pool: MakePool, prompt: str, words: str) -> None:
    pool = make_pool()
    await text(pool, ask())
    (first,) = pids()
    with pytest.raises(GenerationFailed, match=words):
        await text(pool, ask(prompt))
    assert await text(pool, ask())
    assert first not in pids()


async def test_what_a_library_prints_does_not_end_up_among_the_messages(make_pool: MakePool) -> None:
    assert len(await text(make_pool(), ask("PRINT"))) == 8


async def test_closing_the_stream_stops_the_work_and_frees_the_model(make_pool: MakePool) -> None:
    pool = make_pool()
    await text(pool, ask())
    async with aclosing(pool.generate(ask("SLOW", max_tokens=200))) as stream:
        async for delta in stream:
            if delta.text:
                break
    started = time.monotonic()
    await text(pool, ask())
    assert time.monotonic() - started < 2.5  # 200 slow tokens would take four seconds


async def test_cancelling_the_task_that_reads_stops_the_work_too(make_pool: MakePool) -> None:
    pool = make_pool()
    await text(pool, ask())
    reading = asyncio.create_task(text(pool, ask("SLOW", max_tokens=200)))
    await asyncio.sleep(0.2)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    started = time.monotonic()
    await text(pool, ask())
    assert time.monotonic() - started < 2.5


async def test_a_full_queue_refuses(make_pool: MakePool) -> None:
    pool = make_pool(max_queue=2, num_parallel=1)
    await text(pool, ask())
    slow = asyncio.create_task(text(pool, ask("SLOW", max_tokens=50)))
    await asyncio.sleep(0.1)
    waiting = [asyncio.create_task(text(pool, ask())) for _ in range(2)]
    await asyncio.sleep(0.1)
    with pytest.raises(Overloaded, match="2 requests are waiting"):
        await text(pool, ask())
    assert await slow
    assert all(await asyncio.gather(*waiting))


async def test_requests_are_begun_in_the_order_in_which_they_came(make_pool: MakePool) -> None:
    pool = make_pool(num_parallel=1)
    said = await asyncio.gather(*(text(pool, ask("NTH", max_tokens=1)) for _ in range(20)))
    assert "".join(said) == "abcdefghijklmnopqrst"


async def test_a_short_request_does_not_wait_for_a_long_one(make_pool: MakePool) -> None:
    pool = make_pool()
    alone = await text(pool, ask())
    slow = asyncio.create_task(text(pool, ask("SLOW", max_tokens=200)))
    await asyncio.sleep(0.2)
    assert await asyncio.wait_for(text(pool, ask()), 2) == alone
    assert not slow.done()
    slow.cancel()
    with pytest.raises(asyncio.CancelledError):
        await slow


async def test_texts_become_vectors_through_the_process(make_pool: MakePool) -> None:
    found = await make_pool().embed("toy", ["hello", "a"], pooling=Pooling.LAST)
    assert found.num_tokens == (6, 2)
    assert [sum(number * number for number in vector) for vector in found.vectors] == pytest.approx([1.0, 1.0])
    assert found.load_ms > 0


async def test_one_model_is_loaded_once_for_all_who_wait(make_pool: MakePool) -> None:
    pool = make_pool()
    await asyncio.gather(*(text(pool, ask(model="slow")) for _ in range(5)))
    assert len(pids()) == 1


async def test_the_least_recently_used_idle_model_makes_room(make_pool: MakePool) -> None:
    pool = make_pool(max_loaded=2)
    for model in ("toy", "other", "toy", "third"):
        await text(pool, ask(model=model))
    assert [one.details.name for one in pool.loaded()] == ["third", "toy"]
    assert len(pids()) == 2


async def test_models_that_do_not_fit_the_device_together_take_turns(make_pool: MakePool) -> None:
    pool = make_pool(max_loaded=3, max_memory_bytes=200 << 20)  # less than what is set aside for one
    for model in ("toy", "other"):
        assert await text(pool, ask(model=model)), "one that is alone may always try"
    assert [one.details.name for one in pool.loaded()] == ["other"]
    roomy = make_pool(max_loaded=3, max_memory_bytes=2 << 30)
    for model in ("toy", "other"):
        await text(roomy, ask(model=model))
    assert [one.details.name for one in roomy.loaded()] == ["other", "toy"]


async def test_a_process_that_is_frozen_while_idle_is_killed(make_pool: MakePool) -> None:
    pool = make_pool(ping_interval_s=0.05)
    before = await text(pool, ask())
    (pid,) = pids()
    os.kill(pid, signal.SIGSTOP)
    await eventually(lambda: not pool.loaded())
    await eventually(lambda: pid not in pids())
    assert await text(pool, ask()) == before


async def test_a_model_in_use_is_not_thrown_out(make_pool: MakePool) -> None:
    pool = make_pool(max_loaded=1)
    busy = asyncio.create_task(text(pool, ask("SLOW", max_tokens=30)))
    await eventually(pool.loaded)
    assert not busy.done()
    assert await text(pool, ask(model="other"))
    assert len(await busy) == 30
    assert [one.details.name for one in pool.loaded()] == ["other"]


async def test_an_idle_model_leaves_after_its_keep_alive(make_pool: MakePool) -> None:
    pool = make_pool()
    await text(pool, ask(keep_alive_s=0.2))
    assert pool.loaded()
    await eventually(lambda: not pool.loaded())
    await eventually(lambda: not pids())


async def test_keep_alive_zero_leaves_at_once_and_negative_never(make_pool: MakePool) -> None:
    pool = make_pool()
    await text(pool, ask(keep_alive_s=-1.0))
    assert pool.loaded()[0].expires_at is None
    await text(pool, ask(keep_alive_s=0.0))
    assert not pool.loaded()


async def test_a_request_without_words_only_loads_and_with_keep_alive_zero_unloads(make_pool: MakePool) -> None:
    pool = make_pool()
    (loaded,) = await collect(pool, GenerateRequest("toy"))
    assert loaded.finish_reason is FinishReason.STOP
    assert loaded.usage is not None
    assert loaded.usage.load_ms > 0
    (model,) = pool.loaded()
    assert (model.details.name, model.device, model.context_tokens, model.memory_bytes) == ("toy", "TOY", 256, 1000)
    assert model.expires_at is not None
    assert abs(model.expires_at - time.time() - 300) < 5
    await collect(pool, GenerateRequest("toy", keep_alive_s=0.0))
    assert not pool.loaded()


async def test_unload_says_whether_there_was_anything(make_pool: MakePool) -> None:
    pool = make_pool()
    assert not await pool.unload("toy")
    await text(pool, ask())
    assert await pool.unload("toy")
    assert not pids()


async def test_unload_waits_for_the_answer_in_flight(make_pool: MakePool) -> None:
    pool = make_pool()
    busy = asyncio.create_task(text(pool, ask("SLOW", max_tokens=30)))
    await eventually(lambda: bool(pool.loaded()))
    assert await pool.unload("toy")
    assert len(await busy) == 30
    assert not pool.loaded()


async def test_what_the_loader_says_reaches_the_caller(make_pool: MakePool) -> None:
    pool = make_pool()
    with pytest.raises(UnsupportedModel, match="architecture 'toy' is unknown"):
        await text(pool, ask(model="broken"))
    with pytest.raises(RunnerCrashed, match=r"exit code 7.*out of everything"):
        await text(pool, ask(model="dying"))
    assert not pids()


async def test_loading_that_takes_for_ever_is_given_up(make_pool: MakePool) -> None:
    pool = make_pool(load_timeout_s=1.0)
    with pytest.raises(GenerationFailed, match="longer than 1 s"):
        await text(pool, ask(model="endless"))
    assert not pids()


async def test_closing_the_pool_breaks_off_and_leaves_no_process(make_pool: MakePool) -> None:
    pool = make_pool()
    answer = asyncio.create_task(text(pool, ask("SLOW", max_tokens=200)))
    loading = asyncio.create_task(text(pool, ask(model="endless")))
    await eventually(lambda: bool(pool.loaded()) and len(pids()) == 2)
    await asyncio.sleep(0.1)
    await pool.aclose()
    with pytest.raises(RunnerCrashed):
        await answer
    with pytest.raises(BackendUnavailable):
        await loading
    assert not pids()
    with pytest.raises(BackendUnavailable, match="shutting down"):
        await text(pool, ask())


def test_the_process_does_not_outlive_a_server_that_was_killed() -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    code = (
        "import asyncio, sys\n"
        "from garzone.runner.child import RunnerProcess\n"
        "from garzone.runner.protocol import Load\n"
        "async def main():\n"
        "    process = await RunnerProcess.start('tests.runner.stand_in:load', stall_timeout_s=60)\n"
        "    await process.load(Load('/toy.gguf', 64), 60)\n"
        "    print(process.pid, flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment) as server:
        assert server.stdout is not None
        pid = int(server.stdout.readline())
        server.kill()
    deadline = time.monotonic() + 5
    while (
        subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, check=False).stdout[:1] not in b"Z"
    ):
        assert time.monotonic() < deadline, "it is still there"
        time.sleep(0.05)


async def test_details_say_what_a_request_may_use_here(make_pool: MakePool) -> None:
    pool = make_pool(num_ctx=100)
    assert (await pool.details("toy")).context_tokens == 100
    assert (await make_pool(num_ctx=1000).details("toy")).context_tokens == 256
    assert (await make_pool(num_ctx=1000).details("primed")).context_tokens == 128
    with pytest.raises(ModelNotFound, match="model 'nope' not found"):
        await pool.details("nope")
    with pytest.raises(ModelNotFound):
        await text(pool, ask(model="nope"))


async def test_served_by_names_engine_and_device(make_pool: MakePool) -> None:
    pool = make_pool()
    await text(pool, ask())
    served = await pool.served_by("toy")
    assert (served.model, served.backend, served.device) == ("toy", "tinygrad", "TOY")
    assert served.digest == "sha256:" + "7" * 64


async def test_the_models_own_system_prompt_is_used_unless_another_is_given(make_pool: MakePool) -> None:
    pool = make_pool()

    async def prompt_tokens(request: GenerateRequest) -> int:
        usage = (await collect(pool, request))[-1].usage
        assert usage is not None
        return usage.prompt_tokens

    sampling = SamplingParams(max_tokens=1)
    own = await prompt_tokens(GenerateRequest("primed", prompt="x", sampling=sampling))
    assert own == 1 + len("system: be brief\nuser: x\n")
    assert await prompt_tokens(GenerateRequest("primed", prompt="x", system="no", sampling=sampling)) == own - 6
    chat = (Message.of(Role.USER, "x"),)
    assert await prompt_tokens(GenerateRequest("primed", messages=chat, sampling=sampling)) == own


UNSUPPORTED = {
    "images": {"messages": (Message(Role.USER, (ImagePart(b"x", "image/png"),)),)},
    "grammars": {"prompt": "x", "output_schema": {}, "grammar": Grammar(GrammarKind.REGEX, "a+")},
    "logprobs": {"prompt": "x", "logprobs": 21},
    "template": {"prompt": "x", "template": "{{ if .System }}{{ .System }}{{ end }}"},
}


@pytest.mark.parametrize("fields", [{"tools": (ToolSpec("f"),)}, {"think": True}, {"think": "high"}])
async def test_tools_and_thinking_are_refused_by_models_that_cannot(
    make_pool: MakePool, fields: dict[str, object]
) -> None:
    with pytest.raises(InvalidRequest, match="model 'toy' does not support"):
        await collect(make_pool(), GenerateRequest("toy", prompt="x", **fields))  # pyright: ignore[reportArgumentType]
    assert await text(make_pool(), ask(think=False))


@pytest.mark.parametrize("max_tokens", [None, 300])
async def test_calls_are_told_apart_from_words(make_pool: MakePool, max_tokens: int | None) -> None:
    said = 'SAYI look.<tool_call>{"name": "read", "arguments": {"path": "a.py"}}</tool_call>YAS'
    request = GenerateRequest(
        "clever",
        messages=(Message.of(Role.USER, said),),
        tools=(ToolSpec("read"),),
        think=False,
        sampling=SamplingParams(max_tokens=max_tokens),
    )
    deltas = await collect(make_pool(), request)
    assert "".join(delta.text for delta in deltas) == "I look."
    (call,) = [call for delta in deltas for call in delta.tool_calls]
    assert (call.name, call.arguments) == ("read", {"path": "a.py"})
    assert call.id
    assert deltas[-1].finish_reason is FinishReason.TOOL_CALLS


@pytest.mark.parametrize(("think", "said"), [(None, "hm</think>Paris"), (True, "hm</think>Paris"), (False, "Paris")])
async def test_thoughts_are_told_apart_from_words(make_pool: MakePool, think: bool | None, said: str) -> None:
    request = GenerateRequest("clever", prompt=f"SAY{said}YAS", think=think, sampling=SamplingParams())
    deltas = await collect(make_pool(), request)
    assert "".join(delta.text for delta in deltas) == "Paris"
    assert "".join(delta.thinking for delta in deltas) == ("" if think is False else "hm")
    assert deltas[-1].finish_reason is FinishReason.STOP


@pytest.mark.parametrize("fields", UNSUPPORTED.values(), ids=UNSUPPORTED)
@pytest.mark.parametrize("model", ["toy", "clever"])
async def test_what_cannot_be_done_is_refused_before_anything_is_loaded(
    make_pool: MakePool, model: str, fields: dict[str, object]
) -> None:
    pool = make_pool()
    with pytest.raises(InvalidRequest, match=r"support|template|not both|from 0 to 20"):
        await collect(pool, GenerateRequest(model, **fields))  # pyright: ignore[reportArgumentType]
    assert not pool.loaded()


async def test_a_gap_is_only_filled_by_models_that_can(make_pool: MakePool) -> None:
    gap = {"suffix": "y", "sampling": SamplingParams(max_tokens=2)}
    with pytest.raises(InvalidRequest, match="does not support insert"):
        await collect(make_pool(), GenerateRequest("toy", prompt="x", **gap))
    deltas = await collect(make_pool(), GenerateRequest("clever", prompt="x", **gap))
    assert deltas[-1].usage is not None
    assert deltas[-1].usage.prompt_tokens == len("_<x|y>")
